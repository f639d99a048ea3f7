# SPDX-License-Identifier: 0BSD
"""Tiles of the NEON popcount kernels, and their inner loops in assembly.

A register of weights is two filters of one basis, a register of activations twice a word of one
plane. Each pair of the two has an accumulator: and, count the bits of each byte, add bytes. Written
in C, the loop comes out with its loads in front of it and with sums in memory; a core that issues
in order then waits for a quarter of the time. Here a product is counted while the next ones are
made, and added while these are counted, across the end of the loop too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

LIMIT = 31  # positions, each of which adds at most 8 to a byte
MAX_PIXELS = 4
SIXTEEN_BIT_PLANES = 7  # whose weighted counts of LIMIT positions fit 16 bits
PASS_COST = 5  # in instructions per position: the ends of the loop, widening the sums
WORTH = 0.97  # of a tile's cost: what a second one must come below


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How AArch64 and AArch32 write the same instruction. registers: of vectors; ahead: products
    that are made between a product and its count, and again until it is added."""

    width: int
    registers: int
    ahead: int
    register: str
    zero: str
    product: str
    count: str
    add: str
    pairs: str
    double: str
    add_pairs: str
    add_to_sum: str
    load: tuple[str, ...]
    store: tuple[str, ...]


DIALECTS = (
    Dialect(
        width=64,
        registers=32,
        ahead=2,
        register="v{}",
        zero="movi v{0}.16b, #0",
        product="and v{0}.16b, v{1}.16b, v{2}.16b",
        count="cnt v{0}.16b, v{0}.16b",
        add="add v{0}.16b, v{0}.16b, v{1}.16b",
        pairs="uaddlp v{0}.8h, v{0}.16b",
        double="add v{0}.8h, v{0}.8h, v{0}.8h",
        add_pairs="uadalp v{0}.8h, v{1}.16b",
        add_to_sum="uadalp v{0}.4s, v{1}.8h",
        load=("ldr q{0}, [%[{1}], #{2}]",),
        store=("str q{0}, [%[{1}], #{2}]",),
    ),
    Dialect(
        width=32,
        registers=16,
        ahead=1,
        register="q{}",
        zero="vmov.i8 q{0}, #0",
        product="vand q{0}, q{1}, q{2}",
        count="vcnt.8 q{0}, q{0}",
        add="vadd.i8 q{0}, q{0}, q{1}",
        pairs="vpaddl.u8 q{0}, q{0}",
        double="vadd.i16 q{0}, q{0}, q{0}",
        add_pairs="vpadal.u8 q{0}, q{1}",
        add_to_sum="vpadal.u16 q{0}, q{1}",
        load=("vldr d{3}, [%[{1}], #{2}]", "vldr d{4}, [%[{1}], #{5}]"),
        store=("vstr d{3}, [%[{1}], #{2}]", "vstr d{4}, [%[{1}], #{5}]"),
    ),
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

    def temporaries(self, ahead: int) -> tuple[int, ...]:
        """Which temporary each product of a position is in: no two of 2 * ahead + 1 products in
        sequence share one, neither do the last ones and the first of the next position."""
        count = len(self.rows) * len(self.columns)
        blocks = parts(count, -(-count // max(1, count // (2 * ahead + 1))))
        return tuple(i for block in blocks for i in range(len(block)))

    def registers(self, ahead: int) -> int:
        rows, columns = len(self.rows), len(self.columns)
        return rows * columns + rows + columns + max(self.temporaries(ahead)) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """The assembly of one shape, and the vector registers that it uses."""

    shape: Shape
    lines: tuple[str, ...]
    registers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Bases and planes from the first ones on that a loop of this shape counts."""

    basis: int
    plane: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """`pixels` that are computed together, for `pairs` of filters at a time."""

    pixels: int
    pairs: int
    passes: tuple[Pass, ...]


def parts(count: int, most: int) -> tuple[tuple[int, ...], ...]:
    """0 .. count - 1 in as few parts of at most `most` as will do, as even as can be."""
    size, larger = divmod(count, -(-count // most))
    found: list[tuple[int, ...]] = []
    first = 0
    while first < count:
        after = first + size + (len(found) < larger)
        found.append(tuple(range(first, after)))
        first = after
    return tuple(found)


def tiles(bases: int, bits: int, dialect: Dialect) -> tuple[Tile, ...]:
    """The tiles that cost least: of one pixel, and of several if that is better."""

    def tile(pixels: int, pairs: int, most_bases: int, most_planes: int) -> Tile:
        passes = tuple(
            Pass(
                basis=b[0],
                plane=q[0],
                shape=Shape(pixels, pairs, len(b), len(q), bits if pixels > 1 else 0),
            )
            for b, q in itertools.product(parts(bases, most_bases), parts(bits, most_planes))
        )
        return Tile(pixels=pixels, pairs=pairs, passes=passes)

    def cost(tile: Tile) -> float:
        instructions = 0
        for shape in (p.shape for p in tile.passes):
            rows, columns = len(shape.rows), len(shape.columns)
            instructions += 3 * rows * columns + rows + columns + PASS_COST
        return instructions / (tile.pixels * tile.pairs)

    def best(pixels: Iterable[int]) -> Tile:
        splits = itertools.product(
            pixels, (2, 4), range(1, bases + 1), range(1, min(bits, SIXTEEN_BIT_PLANES) + 1)
        )
        fit = [
            candidate
            for candidate in (tile(*split) for split in splits)
            if all(p.shape.registers(dialect.ahead) <= dialect.registers for p in candidate.passes)
        ]
        return min(fit, key=cost)

    one, several = best([1]), best(range(1, MAX_PIXELS + 1))
    return (one, several) if cost(several) < WORTH * cost(one) else (one,)


def loop(shape: Shape, dialect: Dialect) -> Loop:
    """Counts one to LIMIT positions: operands i: positions; x, w: the first word and the first
    weight, each with its step in bytes in xs, ws; sums: what it adds to, [row][pixel] 4 of 32 bits.
    """
    rows, columns = shape.rows, shape.columns
    width, count = len(columns), len(rows) * len(columns)
    names = shape.temporaries(dialect.ahead)
    x, w, first = count, count + width, count + width + len(rows)  # registers, after accumulators
    temporaries = [first + name for name in names]
    registers = first + max(names) + 1
    ahead = min(dialect.ahead, (count - 1) // 2)

    def memory(access: tuple[str, ...], register: int, base: str, offset: int) -> list[str]:
        low, high = 2 * register, 2 * register + 1
        return [line.format(register, base, offset, low, high, offset + 8) for line in access]

    def made(i: int) -> str:
        return dialect.product.format(temporaries[i], w + i // width, x + i % width)

    def counted(i: int) -> str:
        return dialect.count.format(temporaries[i])

    def added(i: int) -> str:
        return dialect.add.format(i, temporaries[i])

    # What the first position counts and adds of the one before is 0.
    unready = sorted({temporaries[i] for i in range(count - 2 * ahead, count)})
    lines = [dialect.zero.format(i) for i in (*range(count), *unready)]
    weights = [memory(dialect.load, w + i, "w", offset) for i, offset in enumerate(rows)]
    words = [memory(dialect.load, x + i, "x", offset) for i, offset in enumerate(columns)]
    # All loads together: after each change from one to the other, loads wait until the work before
    # them is done. Integer work goes along with loads.
    lines += ["sub %[w], %[w], %[ws]", "1:", "add %[w], %[w], %[ws]", *words[0]]
    lines += ["subs %[i], %[i], #1", *itertools.chain(*words[1:])]
    lines += ["add %[x], %[x], %[xs]", *itertools.chain(*weights)]
    for i in range(count):
        lines += [made(i), counted((i - ahead) % count), added((i - 2 * ahead) % count)]
    lines.append("bne 1b")
    lines += [counted(i) for i in range(count - ahead, count)]
    lines += [added(i) for i in range(count - 2 * ahead, count)]
    # The planes of a pair of filters and a pixel are neighbours; the top one is worth the most.
    tops = range(shape.planes - 1, count, shape.planes)
    lines += [dialect.pairs.format(top) for top in tops]
    for below in range(1, shape.planes):
        lines += [dialect.double.format(top) for top in tops]
        lines += [dialect.add_pairs.format(top, top - below) for top in tops]
    free = registers - x  # registers, for sums
    for at in range(0, len(tops), free):
        some = [(x + i, top, 16 * (at + i)) for i, top in enumerate(tops[at : at + free])]
        for register, _, offset in some:
            lines += memory(dialect.load, register, "sums", offset)
        lines += [dialect.add_to_sum.format(register, top) for register, top, _ in some]
        for register, _, offset in some:
            lines += memory(dialect.store, register, "sums", offset)
    return Loop(
        shape=shape,
        lines=tuple(lines),
        registers=tuple(dialect.register.format(i) for i in range(registers)),
    )
