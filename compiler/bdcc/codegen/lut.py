# SPDX-License-Identifier: 0BSD
"""The numbers behind templates/lut.h.j2: tables of partial sums, looked up by bits of the weights.

A *step* takes `inputs` codes: a table has their 2^inputs sums, and the bits that a filter's basis
has there are the index. Vector kernels look up a whole register of filters at once and add bytes;
before a byte can run over they are widened to 16 bits (*flush*), and before those can, multiplied
by the coefficients and added to y (*fold*). Where one step alone could pass a byte (from 6 bits on
with tables of six codes, from 7 on with tables of four), codes are looked up in two parts, the low
bits and the high ones. So every instruction set holds every (bases, bits) pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BYTE, HALF = 255, 65535
GENERIC_UNIT = 512  # filters; each unit builds its tables anew
GENERIC_WORDS = (
    4  # of weights that a single pixel takes at a time: fills what four pixels' tables need
)
GENERIC_TABLES = 8 * 256 * 8  # bytes: four pixels' of one word, or one pixel's of GENERIC_WORDS
PIXELS = 96  # output pixels whose 16-bit sums are in memory at a time
NEAR_BYTES = 32768  # of indices and tables that a tile of pixels passes through: what L1 holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """What an instruction set looks up with. size: bytes of a register, filters of a unit;
    inputs: codes per step; accumulators: registers for sums; least_tile: pixels that make a tile
    worth it (with one, indices are read where they are used and need no registers)."""

    isa: str
    size: int
    inputs: int
    accumulators: int
    least_tile: int


VECTORS = (
    Vector(isa="popcnt", size=16, inputs=4, accumulators=9, least_tile=3),
    Vector(isa="avx2", size=32, inputs=4, accumulators=9, least_tile=3),
    Vector(isa="avx512", size=64, inputs=6, accumulators=9, least_tile=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The tables of one instruction set and number of bits.

    parts: 2 where codes are looked up in two parts, the lower of `low` bits; flush: steps before
    a byte may run over; limit: steps before 16 bits may.
    """

    isa: str
    size: int
    inputs: int
    bits: int
    parts: int
    low: int
    flush: int
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One (bases, bits) pair on one instruction set. tile: pixels that share an index; held: their
    16-bit sums are in registers; most: steps of a row that are taken in one go."""

    bases: int
    table: Table
    tile: int
    held: bool
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic:
    """One (bases, bits) pair in plain C. limit: words before a lane of 16 bits may run over."""

    bases: int
    bits: int
    limit: int


def table(vector: Vector, bits: int) -> Table:
    parts = 1 if vector.inputs * ((1 << bits) - 1) <= BYTE else 2
    low = -(-bits // parts)
    return Table(
        isa=vector.isa,
        size=vector.size,
        inputs=vector.inputs,
        bits=bits,
        parts=parts,
        low=low,
        flush=BYTE // (vector.inputs * ((1 << low) - 1)),
        limit=HALF // (vector.inputs * ((1 << bits) - 1)),
    )


def kernel(vector: Vector, bases: int, bits: int) -> Kernel:
    entries = table(vector, bits)
    tile = vector.accumulators // (bases * entries.parts)
    return Kernel(
        bases=bases,
        table=entries,
        tile=tile if tile >= vector.least_tile else 1,
        held=vector.isa == "avx512",
        most=min(entries.limit, NEAR_BYTES // (bases * vector.size)),
    )


def generic_kernel(bases: int, bits: int) -> Generic:
    return Generic(bases=bases, bits=bits, limit=HALF // (64 * ((1 << bits) - 1)))


def unit_filters(isa: str) -> int:
    """Filters of one unit of work: a row of y has as many, whatever the layer has."""
    sizes = {vector.isa: vector.size for vector in VECTORS}
    return sizes.get("avx2" if isa == "avxvnni" else isa, GENERIC_UNIT)


def table_bytes(*, bits: int, cells: int, tap_bytes: int) -> int:
    """Bytes of the tables of one group, the most of all instruction sets. cells: taps of
    `tap_bytes` that its codes hold (direct: pixels of the padded map; gathered: output pixels)."""
    return _round_up(4 * cells) + cells * max(
        -(-tap_bytes // vector.inputs) * table(vector, bits).parts << vector.inputs
        for vector in VECTORS
    )


def scratch_bytes(*, bases: int, rows: int, taps: int, tap_bytes: int) -> int:
    """Bytes that one call works in, the most of all instruction sets."""
    sizes = [
        (rows * taps * -(-tap_bytes // vector.inputs) + 2 * PIXELS) * bases * vector.size
        for vector in VECTORS
    ]
    return max(*sizes, GENERIC_TABLES + GENERIC_UNIT * bases * 8)


def _round_up(size: int) -> int:
    return -(-size // 64) * 64


def template_variables(pairs: Iterable[tuple[int, int]]) -> dict[str, object]:
    """What templates/lut.h.j2 is rendered with, for the (bases, bits) pairs of a model."""
    ordered = sorted(set(pairs))
    every_bits = sorted({bits for _, bits in ordered})
    return {
        "generics": tuple(generic_kernel(*pair) for pair in ordered),
        "generic_unit": GENERIC_UNIT,
        "generic_words": GENERIC_WORDS,
        "generic_tables": GENERIC_TABLES,
        "vectors": VECTORS,
        "tables": {v.isa: tuple(table(v, bits) for bits in every_bits) for v in VECTORS},
        "kernels": {v.isa: tuple(kernel(v, *pair) for pair in ordered) for v in VECTORS},
        "pixels": PIXELS,
        "near": NEAR_BYTES,
    }
