# SPDX-License-Identifier: 0BSD
"""Timing: what is reported, and that it is time at all."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from bdcc.errors import OptionError
from bdcc.host import bench as module
from bdcc.host.bench import bench
from bdcc.host.library import Library


def test_the_last_line_is_for_scripts(net: Path) -> None:
    result = bench(net, rounds=5)
    *_, about, last = result.text().splitlines()
    found = re.fullmatch(r"min=(\d+\.\d+) median=(\d+\.\d+) ms", last)
    assert found
    assert 0 < float(found[1]) <= float(found[2])
    assert about == f"{result.isa}, threads: 1, rounds: 5"
    assert json.loads(json.dumps(result.as_json()))["min_ms"] == result.min_ms


def test_rounds_stop_at_the_budget(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET_S", 0.0)
    assert bench(net).rounds == module.ROUNDS[0]


def test_the_steps_make_up_the_whole(net: Path) -> None:
    result = bench(net, isa="generic", rounds=20, layers=True)
    with Library.open(net, isa="generic") as library:
        names = [library.step_name(index) for index in range(library.step_count)]
    assert [step.layer for step in result.steps] == names
    assert all(step.median_ms >= 0 for step in result.steps)
    # Up to the noise of a busy machine.
    assert 0.2 < sum(step.median_ms for step in result.steps) / result.median_ms < 5
    assert result.text().count(" ms\n") == len(result.steps)


def test_layers_are_timed_apart(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step made slow is the one that stands out, by just what it was slowed."""
    original = Library.run_steps

    def slow(
        self: Library, x: object, output: object, first: int, last: int, **rest: object
    ) -> None:
        original(self, x, output, first, last, **rest)  # type: ignore[arg-type]
        if first <= 3 < last:
            time.sleep(0.02)

    monkeypatch.setattr(Library, "run_steps", slow)
    steps = bench(net, rounds=3, layers=True).steps
    slowest = max(range(len(steps)), key=lambda i: steps[i].median_ms)
    assert slowest == 3
    assert steps[3].median_ms >= 20


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(net: Path, threads: int) -> None:
    result = bench(net, threads=threads, rounds=3)
    assert (result.threads, result.rounds, result.steps) == (threads, 3, ())
    assert 0 < result.min_ms <= result.median_ms


def test_an_unknown_instruction_set(net: Path) -> None:
    with pytest.raises(OptionError, match="it has generic"):
        bench(net, isa="mmx")
