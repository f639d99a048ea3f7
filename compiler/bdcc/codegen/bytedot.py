# SPDX-License-Identifier: 0BSD
"""The numbers behind templates/bytedot.h.j2: register tiles, and how long int16 sums last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNIT = 4  # filter blocks that are expanded together: 32 filters, four 512-bit registers
WIDE_BELOW = 2  # of the flush interval: then int16 products in pairs are no slower, and always fit


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Register tiles of so many vectors of weights, for so many pixels: most first, 1 last."""

    vectors: int
    pixels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How an instruction set multiplies. bytes: of a vector; type, prefix, dot, per_half: its C
    names; kind: "dot" (products of bytes into int32) or "madd" (pairs into int16).
    """

    kind: str
    bytes: int
    type: str
    prefix: str
    per_half: str
    dot: str
    shapes: tuple[Shape, ...]


def _tiling(kind: str, size: int, shapes: tuple[Shape, ...], dot: str = "") -> Tiling:
    bits = size * 8
    return Tiling(
        kind=kind,
        bytes=size,
        type=f"__m{bits}i",
        prefix="_mm" if size == 16 else f"_mm{bits}",
        per_half="_mm256_broadcastsi128_si256" if size == 32 else "",
        dot=dot,
        shapes=shapes,
    )


# Accumulators and weights fill the registers: 16, of AVX-512 32.
TILINGS: Mapping[str, Tiling] = {
    "popcnt": _tiling("madd", 16, (Shape(vectors=2, pixels=(4, 1)),)),
    "avx2": _tiling("madd", 32, (Shape(vectors=2, pixels=(4, 1)),)),
    "avxvnni": _tiling("dot", 32, (Shape(vectors=2, pixels=(6, 3, 1)),), "_mm256_dpbusd_avx_epi32"),
    "avx512": _tiling(
        "dot",
        64,
        (
            Shape(vectors=4, pixels=(6, 3, 1)),
            Shape(vectors=3, pixels=(8, 3, 1)),
            Shape(vectors=2, pixels=(8, 3, 1)),
            Shape(vectors=1, pixels=(8, 3, 1)),
        ),
        "_mm512_dpbusd_epi32",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Of some bases: the sums of their coefficients, + or -, for every choice of their bits.

    entries: of each filter; registers: that hold those of eight filters; mask: of the code's bits
    in a byte, the filter's are above; having: for each basis, which of the 64 bytes of a register
    are for codes with its bit, as C has it.
    """

    bases: tuple[int, ...]
    entries: int
    registers: int
    mask: int
    having: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """How AVX-512 turns the bits of so many bases into bytes."""

    bases: int
    tables: tuple[Table, ...]


def expansion(bases: int) -> Expansion:
    """Tables of three bases, whose eight entries of eight filters fill one register, or of four in
    two."""
    sizes = {1: (1,), 2: (2,), 3: (3,), 4: (4,), 5: (3, 2), 6: (3, 3), 7: (4, 3)}[bases]
    tables, first = [], 0
    for size in sizes:
        entries = 16 if size == 4 else 8
        having = (
            sum(1 << i for i in range(64) if i % entries >> basis & 1) for basis in range(size)
        )
        tables.append(
            Table(
                bases=tuple(range(first, first + size)),
                entries=entries,
                registers=entries // 8,
                mask=(1 << size) - 1,
                having=tuple(f"0x{mask:016x}" for mask in having),
            )
        )
        first += size
    return Expansion(bases=bases, tables=tuple(tables))


def flush_interval(bits: int, largest: int) -> int:
    """Steps whose products of a pair of positions an int16 holds; largest: sum of |c| of a filter,
    the largest of the layer.
    """
    return int((2**15 - 1) // (2 * (2**bits - 1) * max(largest, 1)))


# Two filters times two pixels, eight positions: of a word of four bytes, l has bytes 0 and 2 as
# int16, h 1 and 3, and takes in the next word when it is done with. No register is left over; the
# order has few stalls on cores that start two instructions at once if these are of different kinds.
_SIMD32_ROUND = """
    ldr %[h0], [%[x0]], #4
    ldr %[h1], [%[x1]], #4
    ldr %[hw], [%[w]], #4
    uxtb16 %[l0], %[h0]
    uxtb16 %[h0], %[h0], ror #8
    sxtb16 %[lw], %[hw]
    uxtb16 %[l1], %[h1]
    smlad %[a00], %[l0], %[lw], %[a00]
    sxtb16 %[hw], %[hw], ror #8
    smlad %[a10], %[l1], %[lw], %[a10]
    uxtb16 %[h1], %[h1], ror #8
    ldr %[lw], [%[w]], #4
    smlad %[a00], %[h0], %[hw], %[a00]
    smlad %[a10], %[h1], %[hw], %[a10]
    sxtb16 %[hw], %[lw], ror #8
    smlad %[a01], %[h0], %[hw], %[a01]
    smlad %[a11], %[h1], %[hw], %[a11]
    sxtb16 %[lw], %[lw]
    ldr %[hw], [%[w]], #4
    ldr %[h0], [%[x0]], #4
    smlad %[a01], %[l0], %[lw], %[a01]
    uxtb16 %[l0], %[h0]
    smlad %[a11], %[l1], %[lw], %[a11]
    sxtb16 %[lw], %[hw]
    ldr %[h1], [%[x1]], #4
    sxtb16 %[hw], %[hw], ror #8
    smlad %[a00], %[l0], %[lw], %[a00]
    uxtb16 %[l1], %[h1]
    uxtb16 %[h0], %[h0], ror #8
    smlad %[a10], %[l1], %[lw], %[a10]
    smlad %[a00], %[h0], %[hw], %[a00]
    uxtb16 %[h1], %[h1], ror #8
    ldr %[lw], [%[w]], #4
    smlad %[a10], %[h1], %[hw], %[a10]
    sxtb16 %[hw], %[lw], ror #8
    smlad %[a01], %[h0], %[hw], %[a01]
    sxtb16 %[lw], %[lw]
    smlad %[a11], %[h1], %[hw], %[a11]
    ldr %[hw], %[end]
    smlad %[a11], %[l1], %[lw], %[a11]
    cmp %[x0], %[hw]
    smlad %[a01], %[l0], %[lw], %[a01]
"""


def simd32_round(pixels: int) -> tuple[str, ...]:
    """Instructions of one round, for 1 or 2 pixels."""
    second = ("%[x1]", "%[l1]", "%[h1]", "%[a10]", "%[a11]")
    lines = (line.strip() for line in _SIMD32_ROUND.strip().splitlines())
    return tuple(line for line in lines if pixels == 2 or not any(name in line for name in second))


def signed_offset(bits: int) -> int:
    """What is taken off codes so that they are signed bytes."""
    return 128 if bits == 8 else 0


def signed_flush_interval(bits: int, largest: int) -> int:
    """flush_interval of codes less their signed_offset: 1 or more, whatever the layer."""
    top = max((1 << bits) - 1 - signed_offset(bits), signed_offset(bits))
    return int((2**15 - 1) // (2 * top * max(largest, 1)))


def expanded_bytes(rows: int, run_bytes: int) -> int:
    """int8 weights of one unit, and the int32 sum of each filter's."""
    return rows * run_bytes * 8 * UNIT + 4 * 8 * UNIT


def template_variables(bases: Iterable[int], *, wide: bool, offset: bool) -> dict[str, Any]:
    """What templates/bytedot.h.j2 is rendered with. wide: whether a layer's flush interval is
    below WIDE_BELOW; offset: whether a layer has a signed_offset.
    """
    ordered = tuple(sorted(set(bases)))
    return {
        "bytedot_bases": ordered,
        "expansions": tuple(expansion(count) for count in ordered),
        "tiles": TILINGS,
        "unit": UNIT,
        "offset": offset,
        "simd32_rounds": {pixels: simd32_round(pixels) for pixels in (1, 2)},
        "wide": wide,
        "wide_below": WIDE_BELOW,
    }
