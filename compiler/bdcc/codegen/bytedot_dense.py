# SPDX-License-Identifier: 0BSD
"""The numbers behind templates/bytedot_dense.h.j2: where codes are in words, and how many
products fit 16 bits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bdcc.approx.model import COEFFICIENT_CAP
from bdcc.codegen.popcount import PREFETCH_BYTES

PLANES = 4  # of a table: 16 entries, which is what one byte shuffle looks up
CHUNK = 512  # words of x that are put in order at a time: 32 KB on the stack, more than VGG needs
INT16_MAX = 32767
FEW_WORDS = 3  # of 64 k: simd32 saves about as many instructions as its tables of 256 pairs take
UINT16_MAX = 65535
WORD = 8  # products of a word that a lane of 16 bits gets on NEON


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """Where the codes of k = 2i and 2i + 1 (mod 8) are: in the two words of `pair`, `shift` bits
    above the bottom of every byte. half: of these, the bits (0 or 4) down to the half byte that
    `mask` then takes the code out of; a byte shuffle looks up what is left, not moved further.
    """

    pair: int
    shift: int
    half: int
    mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Up to four bases whose bits together are a code, and the weights are looked up by it.

    Bits of two and of four lie side by side (`packing.side_by_side`): even and odd k apart, or
    k mod 4. One is as two whose second is masked out, three are made four.
    """

    bases: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """Pairs of words, of k that are neighbours."""
        return -(-len(self.bases) // 2)

    @property
    def width(self) -> int:
        """Bits that a code takes in a word, 2 or 4."""
        return 2 * self.pairs

    @property
    def lookups(self) -> tuple[Lookup, ...]:
        """Of a byte, in the order of k."""
        shifts = ((i % self.pairs, self.width * (i // self.pairs)) for i in range(4))
        return tuple(
            Lookup(
                pair=pair,
                shift=shift,
                half=shift & 4,
                mask=(1 << len(self.bases)) - 1 << (shift & 3),
            )
            for pair, shift in shifts
        )

    @property
    def codes(self) -> int:
        """Number of codes."""
        return 1 << len(self.bases)

    @property
    def pairs_of_codes(self) -> int:
        """Number of pairs of codes, of two or of four bits."""
        return 1 << 2 * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What NEON looks a half byte up in, whose code of `planes` bases stands `shift` bits above its
    bottom; whatever the other bits are. offset: what is added to every weight.
    """

    first: int
    planes: int
    shift: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """One (bases, bits) pair.

    Where there is no four-way dot product, products are added in 16 bits: `together` of the four
    of a word, over `rounds` words. split: not even one pair fits; x goes by half bytes then.
    NEON adds `products` of a word in 16 bits, of weights with `offset` added, none of which is
    negative then.
    """

    bases: int
    bits: int
    tables: tuple[Table, ...]
    together: int
    rounds: int
    split: bool
    offset: int
    products: int

    @property
    def weights(self) -> tuple[Weights, ...]:
        """What the look-ups of a filter need on NEON; a table's are at its number and, for codes
        that are not at the bottom of the half byte, behind."""
        return tuple(
            Weights(
                first=table.bases[0],
                planes=len(table.bases),
                shift=shift,
                offset=0 if table.bases[0] else self.offset,
            )
            for table in self.tables
            for shift in range(0, 4, table.width)
        )

    @property
    def masks(self) -> tuple[int, ...]:
        """What the look-ups of all tables mask with."""
        return tuple(sorted({lookup.mask for table in self.tables for lookup in table.lookups}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """An instruction set of x86. lanes: 64-bit words of a register, a filter each."""

    isa: str
    target: str
    type: str
    prefix: str
    bits: int
    dot: str

    @property
    def lanes(self) -> int:
        return self.bits // 64

    @property
    def parts(self) -> int:
        """Registers that hold the eight filters of a block."""
        return 8 // self.lanes

    @property
    def ways(self) -> int:
        """Sums of one filter. Two, where there are registers for them, are added to directly; a
        single one would be waited for, and gets the sum of a word at a time."""
        return 2 if self.bits == 512 else 1


VECTORS = (
    Vectors(isa="popcnt", target="POPCNT", type="__m128i", prefix="_mm", bits=128, dot=""),
    Vectors(isa="avx2", target="AVX2", type="__m256i", prefix="_mm256", bits=256, dot=""),
    Vectors(
        isa="avxvnni", target="AVXVNNI", type="__m256i", prefix="_mm256", bits=256,
        dot="_mm256_dpbusd_avx_epi32",
    ),
    Vectors(
        isa="avx512", target="AVX512", type="__m512i", prefix="_mm512", bits=512,
        dot="_mm512_dpbusd_epi32",
    ),
)  # fmt: skip


def dense_parameters(bases: int, bits: int) -> Dense:
    """The numbers of one kernel. A product of 16 bits is two of code times weight, and a weight is
    at most the sum of its filter's coefficients."""
    cap, top = COEFFICIENT_CAP[bases], (1 << bits) - 1
    fit = INT16_MAX // (2 * top * cap)
    split = fit == 0
    if split:
        fit = INT16_MAX // (2 * 15 * cap)
    every = range(bases)
    products = min(WORD, UINT16_MAX // (2 * top * cap))
    return Dense(
        bases=bases,
        bits=bits,
        tables=tuple(Table(bases=tuple(every[i : i + PLANES])) for i in range(0, bases, PLANES)),
        together=4 if fit >= 4 else 2 if fit >= 2 else 1,
        rounds=1 if split else max(1, fit // 4),
        split=split,
        offset=cap,
        products=1 << products.bit_length() - 1,
    )


def lacking(width: int) -> tuple[tuple[str, str], ...]:
    """For every basis of a table of that width, -1 in those of 16 bytes whose code lacks it, as
    two words in hexadecimal. Narrow codes stand at the bottom of the half byte or above it."""
    words: list[tuple[str, str]] = []
    for basis in range(width):
        has = [index >> basis & 1 or (width == 2 and index >> basis + 2 & 1) for index in range(16)]
        text = ["00" if bit else "ff" for bit in reversed(has)]
        words.append(("".join(text[8:]), "".join(text[:8])))
    return tuple(words)


def template_variables(pairs: Iterable[tuple[int, int]]) -> dict[str, object]:
    """What templates/bytedot_dense.h.j2 is rendered with, for the (bases, bits) pairs of the dense
    layers of a model."""
    kernels = tuple(dense_parameters(bases, bits) for bases, bits in sorted(set(pairs)))
    return {
        "kernels": kernels,
        "bases": tuple({kernel.bases: kernel for kernel in kernels}.values()),
        "vectors": VECTORS,
        "lacking": tuple(lacking(width) for width in (2, 4)),
        "chunk": CHUNK,
        "ahead": PREFETCH_BYTES,
        "few": FEW_WORDS,
    }
