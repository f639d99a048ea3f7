# SPDX-License-Identifier: 0BSD
"""Buffers that live at the same time never share a byte."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bdcc.codegen.memory import ALIGNMENT, Lifetime, place, round_up
from bdcc.codegen.plan import _lifetimes, make_plan
from bdcc.codegen.targets import find_target
from codegen.nets import alexnet_like, quantized


def check(buffers: list[Lifetime], offsets: dict[str, int], total: int) -> None:
    for buffer in buffers:
        assert offsets[buffer.name] % ALIGNMENT == 0
        assert offsets[buffer.name] + buffer.size <= total
    for a in buffers:
        for b in buffers:
            if a is not b and a.first <= b.last and b.first <= a.last:
                start, end = offsets[a.name], offsets[a.name] + a.size
                assert end <= offsets[b.name] or offsets[b.name] + b.size <= start


@pytest.mark.parametrize("steps", [1, 20000], ids=["a chain", "all at once"])
def test_many_buffers_are_placed_in_seconds(steps: int) -> None:
    """20,000 buffers, each alive for so many steps; looking at them one by one takes minutes."""
    sizes = np.random.default_rng(0).integers(1, 1000, 20000)
    began = time.process_time()
    offsets, total = place(
        [Lifetime(name=str(i), size=int(s), first=i, last=i + steps) for i, s in enumerate(sizes)]
    )
    assert time.process_time() - began < 10
    assert len(offsets) == 20000
    assert total < (4000 if steps == 1 else 1.1 * sum(sizes + ALIGNMENT))


@pytest.mark.parametrize("seed", range(30))
def test_random_lifetimes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    buffers = []
    for index in range(int(rng.integers(1, 40))):
        first = int(rng.integers(0, 20))
        buffers.append(
            Lifetime(
                name=str(index),
                size=int(rng.integers(0, 5000)),
                first=first,
                last=first + int(rng.integers(0, 6)),
            )
        )
    offsets, total = place(buffers)
    check(buffers, offsets, total)
    alive = max(sum(b.size for b in buffers if b.first <= t <= b.last) for t in range(30))
    assert total <= round_up(alive, ALIGNMENT) * 2 + ALIGNMENT * len(buffers)


def test_nothing_to_place() -> None:
    assert place([]) == ({}, 0)


def test_plan_of_a_network() -> None:
    model = quantized(alexnet_like(), bases=3, bits=4)
    plan = make_plan(model, name="net", target=find_target("host"))
    check(_lifetimes(plan.steps), dict(plan.offsets), plan.arena_bytes)
    largest = max(
        sum(b.block_bytes for b in (s.input, s.output) if b) + s.scratch_bytes for s in plan.steps
    )
    assert largest <= plan.arena_bytes <= 1.2 * largest + 6 * ALIGNMENT
