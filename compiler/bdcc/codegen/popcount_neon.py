# SPDX-License-Identifier: 0BSD
"""Tiles of the NEON popcount kernels, and their inner loops in assembly.

A register of weights is two filters of one basis, a register of activations twice a word of one
plane. Each pair of the two has an accumulator: and, count the bits of each byte, add bytes. In C it
is the compiler's choice what stays in registers, and a core that issues in order waits for every
result that is used too early. Here nothing is spilled, and a product is counted while the next ones
are made, and added while these are counted, across the end of the loop too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

LIMIT = 31  # positions, each of which adds at most 8 to a byte
MAX_PIXELS = 4
SIXTEEN_BIT_PLANES = 7  # whose weighted counts of LIMIT positions fit 16 bits
LOAD_COST = 2  # in instructions on vectors
PASS_COST = 3  # the same, per position: the ends of the loop, widening the sums
WORTH = 0.97  # of a tile's cost: what a second one must come below


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """width: of the architecture; registers: of vectors; ahead: products that are made between a
    product and its count, and again until it is added."""

    width: int
    registers: int
    ahead: int


MACHINES = (Machine(width=64, registers=32, ahead=2), Machine(width=32, registers=16, ahead=1))


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """Registers that one loop multiplies: `pairs` of filters of each of `bases`; `planes` of each
    of `pixels`. bits: planes that there are of a pixel, 0 for one pixel, where that is no matter.
    """

    pixels: int
    pairs: int
    bases: int
    planes: int
    bits: int

    @property
    def name(self) -> str:
        of = f"of{self.bits}" if self.bits else ""
        return f"{2 * self.pairs}b{self.bases}x{self.pixels}q{self.planes}{of}"

    @property
    def rows(self) -> tuple[int, ...]:
        """Bytes from the first register of weights to each."""
        return tuple(64 * b + 16 * pair for b in range(self.bases) for pair in range(self.pairs))

    @property
    def columns(self) -> tuple[int, ...]:
        """Bytes from the first register of activations to each."""
        return tuple(
            16 * (p * self.bits + q) for p in range(self.pixels) for q in range(self.planes)
        )

    def temporaries(self, ahead: int) -> tuple[int, ...]:
        """Which temporary each product of a position is in: no two of 2 * ahead + 1 products in
        sequence share one, neither do the last ones and the first of the next position."""
        count = len(self.rows) * len(self.columns)
        blocks = parts(count, -(-count // max(1, count // (2 * ahead + 1))))
        return tuple(i for block in blocks for _ in block for i in range(block.step))

    def registers(self, ahead: int) -> int:
        rows, columns = len(self.rows), len(self.columns)
        return rows * columns + rows + columns + max(self.temporaries(ahead)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The assembly of one shape, each line the template's macros for some instructions.

    zero: what is 0 before; words, weights: the loads of a position; products: all of a position,
    some counted and added that were made in the position before; rest: counts and adds the last
    ones; flush: adds all to the sums. registers: numbers of those used.
    """

    shape: Shape
    zero: tuple[str, ...]
    words: tuple[str, ...]
    weights: tuple[str, ...]
    products: tuple[str, ...]
    rest: tuple[str, ...]
    flush: tuple[str, ...]
    registers: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Loops of one shape, one from each of these bases and planes on."""

    shape: Shape
    bases: range
    planes: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """`pixels` that are computed together, for `pairs` of filters at a time."""

    pixels: int
    pairs: int
    passes: tuple[Passes, ...]


def parts(count: int, most: int) -> tuple[range, ...]:
    """0 .. count - 1 in as few parts of at most `most` as will do, as even as can be: where the
    larger ones begin, and the others; the step is their size."""
    size, larger = divmod(count, -(-count // most))
    middle = larger * (size + 1)
    found = (range(0, middle, size + 1), range(middle, count, size))
    return tuple(part for part in found if part)


def tiles(bases: int, bits: int, machine: Machine) -> tuple[Tile, ...]:
    """The tiles that cost least: of one pixel, and of several if that is better."""

    def tile(pixels: int, pairs: int, most_bases: int, most_planes: int) -> Tile:
        kept = bits if pixels > 1 else 0
        passes = tuple(
            Passes(shape=Shape(pixels, pairs, b.step, q.step, kept), bases=b, planes=q)
            for b, q in itertools.product(parts(bases, most_bases), parts(bits, most_planes))
        )
        return Tile(pixels=pixels, pairs=pairs, passes=passes)

    def cost(tile: Tile) -> float:
        instructions = 0
        for some in tile.passes:
            rows, columns = len(some.shape.rows), len(some.shape.columns)
            each = 3 * rows * columns + LOAD_COST * (rows + columns) + PASS_COST
            instructions += len(some.bases) * len(some.planes) * each
        return instructions / (tile.pixels * tile.pairs)

    def best(pixels: Iterable[int]) -> Tile:
        splits = itertools.product(
            pixels, (2, 4), range(1, bases + 1), range(1, min(bits, SIXTEEN_BIT_PLANES) + 1)
        )
        fit = [
            candidate
            for candidate in (tile(*split) for split in splits)
            if all(p.shape.registers(machine.ahead) <= machine.registers for p in candidate.passes)
        ]
        return min(fit, key=cost)

    one, several = best([1]), best(range(1, MAX_PIXELS + 1))
    return (one, several) if cost(several) < WORTH * cost(one) else (one,)


def loop(shape: Shape, machine: Machine) -> Loop:
    """The numbers of registers: accumulators row by row, activations, weights, temporaries."""
    rows, columns = shape.rows, shape.columns
    width, count = len(columns), len(rows) * len(columns)
    x, w, first = count, count + width, count + width + len(rows)
    temporaries = [first + name for name in shape.temporaries(machine.ahead)]
    registers = range(max(temporaries) + 1)
    ahead = min(machine.ahead, (count - 1) // 2)

    def memory(access: str, register: int, base: str, offset: int) -> str:
        """AArch32 reads and writes halves of the register."""
        halves = f"{2 * register}, {2 * register + 1}"
        return f"BDCC_V_{access}({register}, {halves}, {base}, {offset}, {offset + 8})"

    def made(i: int) -> str:
        return f"BDCC_V_AND({temporaries[i]}, {w + i // width}, {x + i % width})"

    def counted(i: int) -> str:
        return f"BDCC_V_CNT({temporaries[i % count]})"

    def added(i: int) -> str:
        return f"BDCC_V_ADD({i % count}, {temporaries[i % count]})"

    # What the first position counts and adds of the one before must be 0.
    unready = sorted({temporaries[i] for i in range(count - 2 * ahead, count)})
    # The planes of a pair of filters and a pixel are neighbours; the top one is worth the most.
    tops = range(shape.planes - 1, count, shape.planes)
    flush = [f"BDCC_V_PAIRS({top})" for top in tops]
    for below in range(1, shape.planes):
        flush += [f"BDCC_V_TWICE({top})" for top in tops]
        flush += [f"BDCC_V_ADD_PAIRS({top}, {top - below})" for top in tops]
    free = len(registers) - x  # for sums
    for at in range(0, len(tops), free):
        some = tops[at : at + free]
        flush += [memory("LOAD", x + i, "sums", 16 * (at + i)) for i in range(len(some))]
        flush += [f"BDCC_V_ADD_SUMS({x + i}, {top})" for i, top in enumerate(some)]
        flush += [memory("STORE", x + i, "sums", 16 * (at + i)) for i in range(len(some))]
    return Loop(
        shape=shape,
        zero=tuple(f"BDCC_V_ZERO({i})" for i in (*range(count), *unready)),
        words=tuple(memory("LOAD", x + i, "x", offset) for i, offset in enumerate(columns)),
        weights=tuple(memory("LOAD", w + i, "w", offset) for i, offset in enumerate(rows)),
        products=tuple(
            " ".join((made(i), counted(i - ahead), added(i - 2 * ahead))) for i in range(count)
        ),
        rest=(
            *(counted(i) for i in range(count - ahead, count)),
            *(added(i) for i in range(count - 2 * ahead, count)),
        ),
        flush=tuple(flush),
        registers=registers,
    )
