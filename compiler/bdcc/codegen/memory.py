# SPDX-License-Identifier: 0BSD
"""Where each buffer lies in the arena: lifetimes in steps, offsets by first fit, largest buffer
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64  # bytes; one cache line, one AVX-512 register


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """A buffer of `size` bytes that is written in step `first` and last read in step `last`."""

    name: str
    size: int
    first: int
    last: int


def round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def place(buffers: Sequence[Lifetime]) -> tuple[dict[str, int], int]:
    """Offset of every buffer by name and the size of the arena, both in bytes and multiples of
    ALIGNMENT.

    Buffers whose lifetimes overlap share no byte. Largest first, each at the lowest gap that fits:
    within a few per
    cent of the lower bound (the largest sum of sizes alive in one step) on chains.
    """
    order = sorted(buffers, key=lambda b: (-b.size, b.first, b.name))
    first, last, size = (
        np.array([getattr(buffer, field) for buffer in order], np.int64)
        for field in ("first", "last", "size")
    )
    starts = np.zeros(len(order), np.int64)
    for index, buffer in enumerate(order):
        beside = np.flatnonzero((first[:index] <= buffer.last) & (buffer.first <= last[:index]))
        beside = beside[np.argsort(starts[beside])]
        ends = -(-(starts[beside] + size[beside]) // ALIGNMENT) * ALIGNMENT
        free = np.maximum.accumulate(np.append(0, ends))  # in front of each, and behind all
        fits = np.append(free[:-1] + buffer.size <= starts[beside], True)
        starts[index] = free[np.argmax(fits)]
    total = int((starts + size).max(initial=0))
    offsets = {buffer.name: int(start) for buffer, start in zip(order, starts, strict=True)}
    return offsets, round_up(total, ALIGNMENT)
