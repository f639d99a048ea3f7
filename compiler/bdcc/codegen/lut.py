# SPDX-License-Identifier: 0BSD
"""The numbers behind templates/lut.h.j2: tables of partial sums, looked up by bits of the weights.

A *step* takes `inputs` codes: a table has their 2^inputs sums, and the bits that a filter's basis
has there are the index. Vector kernels look up a whole register of filters at once and add bytes;
before a byte can run over they are widened to 16 bits (*flush*), and before those can, multiplied
by the coefficients and added to y (*fold*). With many bits, where nearly every step would flush,
AVX-512 adds what one or two steps look up to 32-bit sums (*wide*, templates/lut_wide.h.j2). Where
one step alone could pass a byte, codes are looked up in two parts, the low bits and the high ones.
So every instruction set holds every (bases, bits) pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bdcc.codegen.packing import LANES

BYTE, HALF = 255, 65535
GENERIC_UNIT = 512  # filters; each unit builds its tables anew
GENERIC_WORDS = (
    4  # of weights that a single pixel takes at a time: fills what four pixels' tables need
)
GENERIC_TABLES = 8 * 256 * 8  # bytes: four pixels' of one word, or one pixel's of GENERIC_WORDS
SIMD32_TABLES = 4 * 256 * 4  # bytes: two pixels' of half a word
PLAIN_PIXELS = 8  # output pixels at a time where there are no vectors, and so perhaps little RAM
PIXELS = 96  # output pixels whose 16-bit sums are in memory at a time
NEAR_BYTES = 32768  # of indices and tables that a tile of pixels passes through: what L1 holds
NEON_PIXELS = 6  # of a tile, at most
NEON_HELD = 14  # registers of 8- and 16-bit sums together, where steps repeat between flushes
NEON_UNROLL = 4  # steps between two flushes that are written out, at most
WIDE_ISA, WIDE_BITS = "avx512", 4  # where sums are of 32 bits, and from how many bits of a code on
WIDE_FILTERS = 16  # that a register serves, with
WIDE_INPUTS = 16  # codes per step: four tables of four
WIDE_UNROLL = 2  # steps, at most, whose bytes are added before they join the sums
WIDE_REGISTERS = 29  # of 32, for sums, tables and indices
WIDE_PIXELS = 384  # that an index serves before the next is fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """What an instruction set looks up with. size: bytes of a register, filters of a unit; inputs:
    codes per step; accumulators: registers for sums of bytes; least_tile: pixels that make a tile
    worth it (with one, indices are read where they are used and need no registers). NEON's are in
    `neon`."""

    isa: str
    size: int
    inputs: int
    accumulators: int = 1
    least_tile: int = 1


NEON = Vector(isa="neon", size=16, inputs=4)
VECTORS = (
    Vector(isa="popcnt", size=16, inputs=4, accumulators=9, least_tile=3),
    Vector(isa="avx2", size=32, inputs=4, accumulators=9, least_tile=3),
    NEON,
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
    16-bit sums are in registers, as those of a single pixel always are; most: steps of a row that
    are taken in one go.
    """

    bases: int
    table: Table
    tile: int
    held: bool
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wide:
    """One (bases, bits) pair with sums of 32 bits. parts, low: as of a Table; unroll: steps whose
    bytes are added first; tile: pixels that share an index."""

    bases: int
    bits: int
    parts: int
    low: int
    unroll: int
    tile: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Neon:
    """One (bases, bits) pair on NEON. tile, most: as of a Kernel; tiles: pixels of each tile, and
    for how many pairs of a pixel and a basis 16-bit sums are in registers; unroll: steps that are
    written out; rounds: of so many, between two flushes."""

    bases: int
    table: Table
    tile: int
    tiles: tuple[tuple[int, int], ...]
    unroll: int
    rounds: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generic:
    """One (bases, bits) pair in plain C. limit: words before a lane of 16 bits may run over."""

    bases: int
    bits: int
    limit: int


def table(vector: Vector, bits: int) -> Table:
    parts, low = _parts(vector.inputs, bits)
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


def _parts(inputs: int, bits: int) -> tuple[int, int]:
    """In how many parts so many codes are looked up, and the bits of the lower one."""
    parts = 1 if inputs * ((1 << bits) - 1) <= BYTE else 2
    return parts, -(-bits // parts)


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


def is_wide(isa: str, bits: int) -> bool:
    return isa == WIDE_ISA and bits >= WIDE_BITS


def wide(bases: int, bits: int) -> Wide:
    parts, low = _parts(WIDE_INPUTS // 4, bits)
    unroll = min(WIDE_UNROLL, BYTE // (WIDE_INPUTS // 4 * ((1 << low) - 1)))
    return Wide(
        bases=bases,
        bits=bits,
        parts=parts,
        low=low,
        unroll=unroll,
        tile=min(8, (WIDE_REGISTERS - unroll) // (bases + unroll * parts)),
    )


def neon(bases: int, bits: int, registers: int) -> Neon:
    """The kernel for so many registers: 32 on AArch64, 16 on AArch32."""
    entries = table(NEON, bits)
    looped = entries.flush > NEON_UNROLL
    if registers == 32:
        accumulators, whole = 8 if looped else 6, 8
        unroll = 3 if looped else entries.flush  # 3 divides the flushes of up to three bits
    else:
        accumulators, whole = 6 if looped else 4, 4
        unroll = 1 if entries.flush > 2 else entries.flush
    sums = bases * entries.parts
    most = max(1, min(NEON_PIXELS, accumulators // sums))

    def held(pixels: int) -> int:
        pairs = pixels * bases
        if looped and registers == 32:  # with more gcc runs out, and waits for each that it reads
            return min(pairs, (NEON_HELD - pairs) // 2)
        return pairs if pixels == 1 or pixels * sums <= whole else 0

    return Neon(
        bases=bases,
        table=entries,
        tile=most,
        tiles=tuple((p, held(p)) for p in sorted({1, most})),
        unroll=unroll,
        rounds=entries.flush // unroll,
        most=min(entries.limit, NEAR_BYTES // (bases * NEON.size)),
    )


def generic_kernel(bases: int, bits: int) -> Generic:
    return Generic(bases=bases, bits=bits, limit=HALF // (64 * ((1 << bits) - 1)))


def unit_filters(isa: str) -> int:
    """Filters of one unit of work: a row of y has as many, whatever the layer has."""
    vector = _vector(isa)
    return vector.size if vector else GENERIC_UNIT


def filters_together(isa: str, bits: int) -> int:
    """Filters that are looked up at once: work is for so many, where a layer has fewer."""
    vector = _vector(isa)
    if vector is None:
        return LANES
    return WIDE_FILTERS if is_wide(isa, bits) else vector.size


def _vector(isa: str) -> Vector | None:
    """None: plain C. avxvnni runs what avx2 does, neondot what neon does."""
    name = {"avxvnni": "avx2", "neondot": "neon"}.get(isa, isa)
    return next((vector for vector in VECTORS if vector.isa == name), None)


def table_bytes(isas: Sequence[str], *, bits: int, cells: int, tap_bytes: int) -> int:
    """Bytes of the tables of one group, the most that an instruction set needs. cells: taps of
    `tap_bytes` that its codes hold (direct: pixels of the padded map; gathered: output pixels)."""

    def of_a_cell(isa: str) -> int:
        vector = _vector(isa)
        if vector is None:
            return 0
        if is_wide(isa, bits):
            return -(-tap_bytes // WIDE_INPUTS) * wide(1, bits).parts * 64
        return -(-tap_bytes // vector.inputs) * table(vector, bits).parts << vector.inputs

    most = max(map(of_a_cell, isas))
    return _round_up(4 * cells) + cells * most if most else 0


def scratch_bytes(
    isas: Sequence[str],
    *,
    bases: int,
    bits: int,
    blocks: int,
    rows: int,
    taps: int,
    tap_bytes: int,
) -> int:
    """Bytes that one call works in, the most that an instruction set needs. blocks: of a group's
    filters."""

    def of_a_call(isa: str) -> int:
        vector = _vector(isa)
        if vector is None:
            sums = min(blocks * LANES, GENERIC_UNIT) * bases
            return SIMD32_TABLES + sums * 4 if isa == "simd32" else GENERIC_TABLES + sums * 8
        if is_wide(isa, bits):
            registers = rows * taps * -(-tap_bytes // WIDE_INPUTS) * vector.size // WIDE_FILTERS
        else:
            registers = rows * taps * -(-tap_bytes // vector.inputs) + 2 * PIXELS
        return registers * bases * vector.size

    return max(map(of_a_call, isas))


def sums(isas: Sequence[str]) -> int:
    """How many y_int of pixels and a unit's filters are kept at a time: for plain C, little."""
    plain = all(_vector(isa) is None for isa in isas)
    return (PLAIN_PIXELS if plain else PIXELS) * GENERIC_UNIT


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
        "simd32_tables": SIMD32_TABLES,
        "every_bits": every_bits,
        "vectors": VECTORS,
        "tables": {
            v.isa: tuple(table(v, bits) for bits in every_bits if not is_wide(v.isa, bits))
            for v in VECTORS
        },
        "kernels": {
            v.isa: tuple(kernel(v, *pair) for pair in ordered if not is_wide(v.isa, pair[1]))
            for v in VECTORS
            if v is not NEON
        },
        "neons": tuple(
            (condition, tuple(neon(*pair, registers) for pair in ordered))
            for condition, registers in (("BDCC_NEON64", 32), ("!BDCC_NEON64", 16))
        ),
        "wide_tables": tuple(wide(1, bits) for bits in every_bits if is_wide(WIDE_ISA, bits)),
        "wides": tuple(wide(*pair) for pair in ordered if is_wide(WIDE_ISA, pair[1])),
        "wide_pixels": WIDE_PIXELS,
        "pixels": PIXELS,
        "near": NEAR_BYTES,
    }
