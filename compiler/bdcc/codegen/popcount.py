# SPDX-License-Identifier: 0BSD
"""The numbers behind templates/popcount.h.j2: register tiles and networks of carry-save adders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bdcc.codegen.popcount_neon import LIMIT, MACHINES, Tile, loop, parts, tiles

ACCUMULATORS = 24  # of 32 vector registers; the rest hold weights, activations and temporaries
MAX_TILE = 4  # pixels; more does not pay, the loads are hidden by then
GROUP = 4  # positions (words) that one round of the adder network takes in
EXTRA_LEVELS = 2  # of a counter above its planes: then at most one word leaves it in a round
HALF_LEVELS = 3  # the same for words of 32 bits, of which a round takes in twice as many
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
class Kernel:
    """One (bases, bits) pair. tile: pixels that AVX-512 computes together; passes: the bases whose
    accumulators are in registers at the same time; limit, half_limit: positions, see Counter; neon:
    tiles of AArch64 and of AArch32, of one pixel and, if that is better, of several."""

    bases: int
    bits: int
    tile: int
    limit: int
    half_limit: int
    passes: tuple[tuple[int, ...], ...]
    neon: dict[int, tuple[Tile, ...]]


def kernel_parameters(bases: int, bits: int) -> Kernel:
    """The numbers of one kernel; a tile has tile * len(pass) * bits accumulators."""
    count = -(-bases * bits // ACCUMULATORS)
    passes = tuple(
        tuple(range(first, first + part.step))
        for part in parts(bases, -(-bases // count))
        for first in part
    )
    tile = max(1, min(MAX_TILE, ACCUMULATORS // (len(passes[0]) * bits)))
    return Kernel(
        bases=bases,
        bits=bits,
        tile=tile,
        limit=counter(bits).limit,
        half_limit=half_counter(bits).limit,
        passes=passes,
        neon={machine.width: tiles(bases, bits, machine) for machine in MACHINES},
    )


def adder_network(
    bits: int, positions: int, *, extra: int = EXTRA_LEVELS, by_plane: bool = False
) -> tuple[Adder, ...]:
    """Adds `positions` words of each of `bits` planes to a counter of bits + extra levels.

    A bit at level l is worth 2^l, so a word of plane q enters at level q: carries of one plane meet
    the words of the next, and one counter serves all planes. A full adder takes each two words that
    arrive at a level; what is left over at the end goes through a half adder, so that a round
    leaves one word per level. What comes out at the top is counted. Plane by plane, few levels are
    at work at a time, for machines with few registers.
    """
    top = bits + extra
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

    words = [(position, plane) for position in range(positions) for plane in range(bits)]
    for position, plane in sorted(words, key=lambda w: w[1]) if by_plane else words:
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
    return _counter(adder_network(bits, GROUP), adder_network(bits, 1), bits, EXTRA_LEVELS)


def half_counter(bits: int) -> Counter:
    """The same with words of 32 bits, two to a position."""
    many, single = (
        adder_network(bits, 2 * positions, extra=HALF_LEVELS, by_plane=True)
        for positions in (GROUP, 1)
    )
    return _counter(many, single, bits, HALF_LEVELS)


def _counter(many: tuple[Adder, ...], single: tuple[Adder, ...], bits: int, extra: int) -> Counter:
    per_round, per_single = (sum(s.kind == "count" for s in steps) for steps in (many, single))
    rounds = (255 // 8 - (GROUP - 1) * per_single) // per_round  # each adds at most 8 to a byte
    return Counter(
        bits=bits,
        levels=bits + extra,
        group=GROUP,
        limit=GROUP * rounds,
        many=many,
        single=single,
    )


def template_variables(pairs: Iterable[tuple[int, int]]) -> dict[str, object]:
    """What templates/popcount.h.j2 is rendered with, for the (bases, bits) pairs of a model."""
    ordered = sorted(set(pairs))
    every_bits = sorted({bits for _, bits in ordered})
    kernels = tuple(kernel_parameters(bases, bits) for bases, bits in ordered)
    shapes = {
        machine: sorted(
            {p.shape for k in kernels for tile in k.neon[machine.width] for p in tile.passes}
        )
        for machine in MACHINES
    }
    return {
        "kernels": kernels,
        "counters": tuple(counter(bits) for bits in every_bits),
        "half_counters": tuple(half_counter(bits) for bits in every_bits),
        "ahead": PREFETCH_BYTES,
        "neon_limit": LIMIT,
        "neon_loops": {
            machine.width: tuple(loop(shape, machine) for shape in found)
            for machine, found in shapes.items()
        },
    }
