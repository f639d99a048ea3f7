# SPDX-License-Identifier: 0BSD
"""The numbers behind templates/popcount.h.j2: register tiles and networks of carry-save adders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

ACCUMULATORS = 24  # of 32 vector registers; the rest hold weights, activations and temporaries
NEON64_ACCUMULATORS = 20  # of 32 registers
NEON32_ACCUMULATORS = 8  # of 16
NEON_LIMIT = 31  # positions, each adds at most 8 to a byte
MAX_TILE = 4  # pixels; more does not pay, the loads are hidden by then
GROUP = 4  # positions (words) that one round of the adder network takes in
EXTRA_LEVELS = 2  # of a counter above its planes: then at most one word leaves it in a round
PREFETCH_BYTES = 8192  # 4 to 16 KB measured alike for weights that come from L3 or memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Adder:
    """One statement of a network that adds one-bit numbers, 64 or more side by side in a word.

    product: out = weight & x[position][plane];
    full:    a + b + the word of `level`: the sum stays in that word, the carry is `out`;
    half:    the same without b;
    count:   the bits of a are counted into the total.
    """

    kind: str
    level: int = 0
    out: str = ""
    a: str = ""
    b: str = ""
    position: int = 0
    plane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Counter for `bits` planes: a network for `group` positions at a time, and one for a single.

    levels: words that it keeps; limit: most positions before no byte of a total may take more.
    """

    bits: int
    levels: int
    group: int
    limit: int
    many: tuple[Adder, ...]
    single: tuple[Adder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What NEON computes together: `pixels`, for `pairs` of filters at a time (a register of weights
    is two filters). passes: the bases and planes whose accumulators are in registers at the same
    time, pixels * pairs * bases * planes of them."""

    pixels: int
    pairs: int
    passes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One (bases, bits) pair. tile: pixels that AVX-512 computes together; passes: the bases whose
    accumulators are in registers at the same time; limit: positions, see Counter; neon64, neon32:
    tiles of AArch64 and AArch32, of one pixel and, if that is better, of several."""

    bases: int
    bits: int
    tile: int
    limit: int
    passes: tuple[tuple[int, ...], ...]
    neon64: tuple[Tile, ...]
    neon32: tuple[Tile, ...]


def kernel_parameters(bases: int, bits: int) -> Kernel:
    """The numbers of one kernel; a tile has tile * len(pass) * bits accumulators."""
    count = -(-bases * bits // ACCUMULATORS)
    passes = _parts(bases, -(-bases // count))
    tile = max(1, min(MAX_TILE, ACCUMULATORS // (len(passes[0]) * bits)))
    return Kernel(
        bases=bases,
        bits=bits,
        tile=tile,
        limit=counter(bits).limit,
        passes=passes,
        neon64=_neon_tiles(bases, bits, NEON64_ACCUMULATORS),
        neon32=_neon_tiles(bases, bits, NEON32_ACCUMULATORS),
    )


def _parts(count: int, most: int) -> tuple[tuple[int, ...], ...]:
    """0 .. count - 1 in as few parts of at most `most` as will do, as even as can be."""
    size, larger = divmod(count, -(-count // most))
    parts, first = [], 0
    while first < count:
        after = first + size + (len(parts) < larger)
        parts.append(tuple(range(first, after)))
        first = after
    return tuple(parts)


def _neon_tiles(bases: int, bits: int, accumulators: int) -> tuple[Tile, ...]:
    """The tiles that load least per product: of one pixel, and of several if they load less."""

    def loads(tile: Tile) -> float:
        loaded = sum(tile.pairs * len(b) + tile.pixels * len(q) for b, q in tile.passes)
        return loaded / (tile.pixels * tile.pairs)

    def best(pixels: Iterable[int]) -> Tile:
        tiles = [
            Tile(pixels=p, pairs=pairs, passes=tuple(itertools.product(basis_parts, plane_parts)))
            for p in pixels
            for pairs in (2, 4)
            for basis_parts in {_parts(bases, most) for most in range(1, bases + 1)}
            for plane_parts in {_parts(bits, most) for most in range(1, min(bits, 7) + 1)}
            if p * pairs * len(basis_parts[0]) * len(plane_parts[0]) <= accumulators
        ]
        return min(tiles, key=lambda tile: (loads(tile), len(tile.passes), tile.pixels))

    one, several = best([1]), best(range(1, MAX_TILE + 1))
    return (one,) if several.pixels == 1 else (one, several)


def adder_network(bits: int, positions: int) -> tuple[Adder, ...]:
    """Adds `positions` words of each of `bits` planes to a counter of bits + EXTRA_LEVELS levels.

    A bit at level l is worth 2^l, so a word of plane q enters at level q: carries of one plane meet
    the words of the next, and one counter serves all planes. A full adder takes each two words that
    arrive at a level; what is left over at the end goes through a half adder, so that a round
    leaves one word per level. What comes out at the top is counted.
    """
    top = bits + EXTRA_LEVELS
    waiting: list[list[str]] = [[] for _ in range(top)]
    steps: list[Adder] = []
    names = (f"v{i}" for i in range(1000))

    def enter(level: int, word: str) -> None:
        if level == top:
            steps.append(Adder(kind="count", a=word))
            return
        waiting[level].append(word)
        if len(waiting[level]) == 2:
            a, b = waiting[level]
            waiting[level].clear()
            carry = next(names)
            steps.append(Adder(kind="full", level=level, out=carry, a=a, b=b))
            enter(level + 1, carry)

    for position in range(positions):
        for plane in range(bits):
            word = next(names)
            steps.append(Adder(kind="product", out=word, position=position, plane=plane))
            enter(plane, word)
    for level in range(top):
        for word in tuple(waiting[level]):
            waiting[level].clear()
            carry = next(names)
            steps.append(Adder(kind="half", level=level, out=carry, a=word))
            enter(level + 1, carry)
    return tuple(steps)


def counter(bits: int) -> Counter:
    """The counter of the kernels with `bits` planes."""
    many, single = adder_network(bits, GROUP), adder_network(bits, 1)
    per_round, per_single = (sum(s.kind == "count" for s in steps) for steps in (many, single))
    rounds = (255 // 8 - (GROUP - 1) * per_single) // per_round  # each adds at most 8 to a byte
    return Counter(
        bits=bits,
        levels=bits + EXTRA_LEVELS,
        group=GROUP,
        limit=GROUP * rounds,
        many=many,
        single=single,
    )


def template_variables(pairs: Iterable[tuple[int, int]]) -> dict[str, object]:
    """What templates/popcount.h.j2 is rendered with, for the (bases, bits) pairs of a model."""
    ordered = sorted(set(pairs))
    return {
        "kernels": tuple(kernel_parameters(bases, bits) for bases, bits in ordered),
        "counters": tuple(counter(bits) for bits in sorted({bits for _, bits in ordered})),
        "ahead": PREFETCH_BYTES,
        "neon_limit": NEON_LIMIT,
    }
