# SPDX-License-Identifier: 0BSD
"""Where each buffer lies in the arena: lifetimes in steps, offsets by first fit, largest buffer
first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
    placed: dict[str, int] = {}
    alive = defaultdict[int, list[tuple[int, int]]](list)  # by step: offset and size
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first, b.name)):
        offset = 0
        steps = range(buffer.first, buffer.last + 1)
        for start, size in sorted({area for step in steps for area in alive[step]}):
            if offset + buffer.size <= start:
                break
            offset = max(offset, round_up(start + size, ALIGNMENT))
        placed[buffer.name] = offset
        for step in steps:
            alive[step].append((offset, buffer.size))
        total = max(total, offset + buffer.size)
    return placed, round_up(total, ALIGNMENT)
