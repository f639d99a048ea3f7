# SPDX-License-Identifier: 0BSD
"""Tiles of the NEON popcount kernels, and their inner loops in assembly.

A register of weights is two filters of one basis, a register of activations twice a word of one
plane. Each pair of the two has an accumulator: and, count the bits of each byte, add bytes. In C it
is the compiler's choice what stays in registers, and a core that issues in order waits for every
result that is used too early. Here nothing is spilled, and a product is counted while the next ones
are made, and added while these are counted, across the end of the loop too. Where there are 32
registers, two positions take turns: one is loaded while the other is multiplied, by instructions
that load three or four registers each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

LIMIT = 30  # positions, each of which adds at most 8 to a byte; an odd number takes longer
MAX_PIXELS = 4
SIXTEEN_BIT_PLANES = 7  # whose weighted counts of LIMIT positions fit 16 bits
LIST = 4  # registers that one instruction loads
LOAD_COST = 2  # in instructions on vectors, of each register where positions do not take turns
PASS_COST = 3  # the same, per position: the ends of the loop, widening the sums
WORTH = 0.97  # of a tile's cost: what a second one must come below


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """width: of the architecture; registers: of vectors; ahead: products that are made between a
    product and its count, and again until it is added; turns: positions that have registers of
    their own for what is loaded."""

    width: int
    registers: int
    ahead: int
    turns: int


MACHINES = (
    Machine(width=64, registers=32, ahead=2, turns=2),
    Machine(width=32, registers=16, ahead=1, turns=1),
)


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

    def ahead(self, machine: Machine) -> int:
        """The machine's, or less if there are not as many products: those in flight differ, and are
        of two positions in sequence."""
        count = len(self.rows) * len(self.columns)
        return min(machine.ahead, (machine.turns * count - 1) // 2, count // 2)

    def temporaries(self, machine: Machine) -> tuple[int, ...]:
        """Which temporary each product of all turns is in: no two of 2 * ahead + 1 products in
        sequence share one, neither do the last ones and the first of the next turn."""
        count = machine.turns * len(self.rows) * len(self.columns)
        blocks = parts(count, -(-count // max(1, count // (2 * machine.ahead + 1))))
        return tuple(i for block in blocks for _ in block for i in range(block.step))

    def fits(self, machine: Machine) -> bool:
        """Whether there are registers for it, and, where positions take turns, one instruction
        loads all rows, and one all columns."""
        rows, columns = len(self.rows), len(self.columns)
        temporaries = max(self.temporaries(machine)) + 1
        used = rows * columns + machine.turns * (rows + columns) + temporaries
        lists = all(
            some == tuple(range(0, 16 * min(len(some), LIST), 16))
            for some in (self.rows, self.columns)
        )
        return used <= machine.registers and (machine.turns == 1 or lists)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one position does that takes turns. words, weights: its loads; products: all of it, some
    counted and added that were made in the position before."""

    words: tuple[str, ...]
    weights: tuple[str, ...]
    products: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The assembly of one shape, each line the template's macros for some instructions.

    zero: what is 0 before; turns: of as many positions; first: the products of turn 0 where it is
    the first position, with nothing 0 before; rest: counts and adds the last products; flush: makes
    and writes the sums. registers: numbers of those used.
    """

    shape: Shape
    zero: tuple[str, ...]
    turns: tuple[Turn, ...]
    first: tuple[str, ...]
    rest: tuple[str, ...]
    flush: tuple[str, ...]
    registers: tuple[int, ...]


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
            loads = LOAD_COST * (rows + columns) if machine.turns == 1 else 0
            each = 3 * rows * columns + loads + PASS_COST
            instructions += len(some.bases) * len(some.planes) * each
        return instructions / (tile.pixels * tile.pairs)

    def best(pixels: Iterable[int]) -> Tile:
        splits = itertools.product(
            pixels, (2, 4), range(1, bases + 1), range(1, min(bits, SIXTEEN_BIT_PLANES) + 1)
        )
        fit = [
            candidate
            for candidate in (tile(*split) for split in splits)
            if all(p.shape.fits(machine) for p in candidate.passes)
        ]
        return min(fit, key=cost)

    one, several = best([1]), best(range(1, MAX_PIXELS + 1))
    return (one, several) if cost(several) < WORTH * cost(one) else (one,)


def loop(shape: Shape, machine: Machine) -> Loop:
    """The assembly of a shape. Its registers: accumulators row by row; of each turn activations and
    weights; temporaries.
    """
    rows, columns = shape.rows, shape.columns
    width, count = len(columns), len(rows) * len(columns)
    loaded = width + len(rows)
    ahead, numbers = shape.ahead(machine), shape.temporaries(machine)
    above = count + machine.turns * loaded
    used = range(above + max(numbers) + 1)
    # The upper half comes first: functions must save some of the lower one.
    v = [(machine.registers // 2 + i) % machine.registers for i in used]
    temporaries = [v[above + i] for i in numbers]

    def memory(access: str, register: int, base: str, offset: int) -> str:
        """AArch32 reads and writes halves of the register."""
        halves = f"{2 * register}, {2 * register + 1}"
        return f"BDCC_V_{access}({register}, {halves}, {base}, {offset}, {offset + 8})"

    def loads(first: int, base: str, offsets: tuple[int, ...]) -> tuple[str, ...]:
        into = v[first : first + len(offsets)]
        if machine.turns == 1:
            return tuple(memory("LOAD", r, base, at) for r, at in zip(into, offsets, strict=True))
        return (f"BDCC_V_LOAD{len(into)}({base}, {', '.join(map(str, into))})",)

    # Products are numbered through all turns; those before turn 0 are of the last one, negative.
    def made(i: int) -> str:
        x = count + i // count * loaded
        row, column = divmod(i % count, width)
        return f"BDCC_V_AND({temporaries[i]}, {v[x + width + row]}, {v[x + column]})"

    def counted(i: int) -> str:
        return f"BDCC_V_CNT({temporaries[i]}, {temporaries[i]})"

    def added(i: int) -> str:
        return f"BDCC_V_ADD({v[i % count]}, {temporaries[i]})"

    def turn(number: int) -> Turn:
        x = count + number * loaded
        return Turn(
            words=loads(x, f"x{number}", columns),
            weights=loads(x + width, f"w{number}", rows),
            products=tuple(
                " ".join((made(i), counted(i - ahead), added(i - 2 * ahead)))
                for i in range(number * count, (number + 1) * count)
            ),
        )

    # Of the first position, only what is added in the next one needs a 0 to be added to.
    early, late = range(count - 2 * ahead), range(count - 2 * ahead, count)
    first = [f"BDCC_V_ZERO({v[i]})" for i in late]
    first += [made(i) for i in range(2 * ahead)]
    for i in early:
        first += [made(i + 2 * ahead), f"BDCC_V_CNT({v[i]}, {temporaries[i]})"]
    first += [counted(i) for i in late[:ahead]]
    # What turn 1 counts and adds of turn 0 must be 0 where it is the first position.
    unready = sorted({temporaries[i] for i in late})
    last = range(-2 * ahead, 0)
    # The planes of a pair of filters and a pixel are neighbours; the top one is worth the most.
    tops = range(shape.planes - 1, count, shape.planes)
    flush = [f"BDCC_V_PAIRS({v[top]})" for top in tops]
    for below in range(1, shape.planes):
        flush += [f"BDCC_V_TWICE({v[top]})" for top in tops]
        flush += [f"BDCC_V_ADD_PAIRS({v[top]}, {v[top - below]})" for top in tops]
    flush += [f"BDCC_V_SUMS({v[top]})" for top in tops]
    flush += [memory("STORE", v[top], "sums", 16 * i) for i, top in enumerate(tops)]
    return Loop(
        shape=shape,
        zero=tuple(f"BDCC_V_ZERO({r})" for r in (*v[:count], *unready)),
        turns=tuple(turn(number) for number in range(machine.turns)),
        first=tuple(first),
        rest=(*(counted(i) for i in last[ahead:]), *(added(i) for i in last)),
        flush=tuple(flush),
        registers=tuple(v),
    )
