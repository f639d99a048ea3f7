# SPDX-License-Identifier: 0BSD
"""The physical order of decomposed weights: the one home, with runtime/bdcc_pack.h, of bit order.

run:    byte 0            byte 1           ...      word w = bytes 8w .. 8w+7, little-endian
bits:   7 6 5 4 3 2 1 0   15 ... 8                  bit i of the run = bit (i mod 64) of word i/64

A filter of one group is `rows` runs of `words` 64-bit words, reduction order (KH, KW, CI):
- direct:   one run per kernel row, each tap's channels padded to a multiple of 8 bits;
- gathered: one run of all K weights, nothing padded;
- vector:   a dense layer, one run; its kernel is the (C, H, W) behind its input, which lies as
            [H][W][C].
Filters go in blocks of eight, whose words lie side by side. Positions that are not weights are 0
in the weights and in the mask of valid positions.

A dense layer by bytes has the bits of a position side by side instead, as far as that takes no
more memory (`side_by_side`), in place of the words of its bases:

two bases, b = 0, 1:   word b = fields of two bits, of positions 2i + b
four bases, b = 0..3:  word b = half bytes, of positions 4i + b

The two words of b and b + 1 go together then, of the even filters of a block and of the odd ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import U8, Decomposition
from bdcc.ir.graph import F32

U64 = npt.NDArray[np.uint64]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
Form = Literal["direct", "gathered", "vector"]
Kernel = tuple[int, int, int]  # channels of one group, height, width

LANES = 8  # filters of a block: one 512-bit register of 64-bit words
_STEP = 64  # filters packed at a time: bounds temporary memory to about 64 * K * 3 bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """The weight arrays of one layer, as the kernels read them.

    weights: uint64 [groups, blocks, rows, words, bases, 8]; coefficients: int32
    [groups, blocks, bases, 8], 0 for filters that fill up the last block; valid: uint64
    [rows * words], a bit for each real weight position.
    """

    form: Form
    weights: U64
    coefficients: I32
    valid: U64


def run_shape(kernel: Kernel, form: Form) -> tuple[int, int]:
    """(rows, words): runs per filter and 64-bit words per run."""
    channels, height, width = kernel
    if form == "direct":
        return height, -(-width * (-(-channels // 8) * 8) // 64)
    return 1, -(-channels * height * width // 64)


def words_of(kernel: Kernel, form: Form) -> int:
    """64-bit words of one filter and basis: what the planner weighs the forms by."""
    rows, words = run_shape(kernel, form)
    return rows * words


def pack_filters(
    decomposition: Decomposition, *, kernel: Kernel, groups: int, form: Form
) -> Packed:
    """Pack a layer's bases; its signs are [N, K] with K in ONNX order (channels, height, width)."""
    filters, bases = decomposition.coefficients.shape
    per_group = filters // groups
    blocks = -(-per_group // LANES)
    rows, words = run_shape(kernel, form)
    weights = np.zeros((groups, blocks, rows, words, bases, LANES), dtype="<u8")
    signs = decomposition.signs.reshape(groups, per_group, *kernel)
    for group in range(groups):
        for start in range(0, per_group, _STEP):
            runs = _runs(signs[group, start : start + _STEP], form)
            count = -(-runs.shape[0] // LANES)
            lanes = np.zeros((count * LANES, rows, words), dtype="<u8")
            for basis in range(bases):
                lanes[: runs.shape[0]] = _pack_bits(runs & np.uint8(1 << basis))
                block = start // LANES
                weights[group, block : block + count, :, :, basis] = lanes.reshape(
                    count, LANES, rows, words
                ).transpose(0, 2, 3, 1)
    coefficients = np.zeros((groups, blocks * LANES, bases), dtype=np.int32)
    coefficients[:, :per_group] = decomposition.coefficients.reshape(groups, per_group, bases)
    by_block = coefficients.reshape(groups, blocks, LANES, bases).transpose(0, 1, 3, 2)
    return Packed(
        form=form,
        weights=weights,
        coefficients=np.ascontiguousarray(by_block),
        valid=_pack_bits(_runs(np.ones((1, *kernel), np.uint8), form)).reshape(-1),
    )


def side_by_side(planes: U64) -> U64:
    """uint64 [..., bases, 8], a word of each basis -> the same bits, those of a position side by
    side: of every four bases, of two that are left, and not of one that is left then. The 16 words
    of two bases are [even or odd filter][filter / 2][basis] then."""
    words = planes.copy()
    bases = words.shape[-2]

    def exchange(low: int, high: int, shift: int, mask: int) -> None:
        a, b = words[..., low, :], words[..., high, :]  # views, changed in place
        change = (a >> np.uint64(shift) ^ b) & np.uint64(mask)
        a ^= change << np.uint64(shift)
        b ^= change

    for basis in range(0, bases - 1, 2):
        exchange(basis, basis + 1, 1, 0x5555_5555_5555_5555)
    for basis in range(0, bases - 3, 4):
        exchange(basis, basis + 2, 2, 0x3333_3333_3333_3333)
        exchange(basis + 1, basis + 3, 2, 0x3333_3333_3333_3333)
    for basis in range(0, bases - 1, 2):
        two = words[..., basis : basis + 2, :]
        by_filter = two.reshape(*two.shape[:-1], LANES // 2, 2)
        two[:] = np.swapaxes(by_filter, -3, -1).reshape(two.shape)
    return words


def unpack_filters(packed: Packed, *, kernel: Kernel, filters: int) -> tuple[U8, I16]:
    """signs [N, K] and coefficients [N, bases] that were packed: the inverse of `pack_filters`."""
    channels, height, width = kernel
    groups, blocks, bases, _ = packed.coefficients.shape
    lanes = np.ascontiguousarray(packed.weights.transpose(0, 1, 5, 4, 2, 3), dtype="<u8")
    bits = np.unpackbits(lanes.view(np.uint8), axis=-1, bitorder="little")
    if packed.form == "direct":
        deep = -(-channels // 8) * 8
        taps = bits[..., : width * deep].reshape(-1, bases, height, width, deep)[..., :channels]
    else:
        taps = bits[..., : channels * height * width].reshape(-1, bases, height, width, channels)
    shifts = np.arange(bases, dtype=np.uint8)[:, None, None, None]
    signs = (taps << shifts).sum(axis=1, dtype=np.uint8)
    signs = signs.transpose(0, 3, 1, 2).reshape(groups, blocks * LANES, -1)
    coefficients = packed.coefficients.transpose(0, 1, 3, 2).reshape(groups, blocks * LANES, bases)
    per_group = filters // groups
    return (
        np.ascontiguousarray(signs[:, :per_group].reshape(filters, -1)),
        coefficients[:, :per_group].reshape(filters, bases).astype(np.int16),
    )


def _runs(signs: U8, form: Form) -> U8:
    """uint8 [n, channels, height, width] -> [n, rows, bits of a run], zeros in the padding."""
    count, channels, height, width = signs.shape
    physical = signs.transpose(0, 2, 3, 1)
    if form == "direct":
        padding = -channels % 8
        deep = np.pad(physical, ((0, 0), (0, 0), (0, 0), (0, padding)))
        return deep.reshape(count, height, width * (channels + padding))
    return np.ascontiguousarray(physical).reshape(count, 1, -1)


def _pack_bits(runs: U8) -> U64:
    """uint8 [n, rows, bits], any value but 0 being a 1 -> uint64 [n, rows, words]."""
    packed = np.packbits(runs, axis=-1, bitorder="little")
    padded = np.zeros((*packed.shape[:-1], -(-packed.shape[-1] // 8) * 8), np.uint8)
    padded[..., : packed.shape[-1]] = packed
    return padded.view("<u8")


FLOAT_FILTERS = 64  # BDCC_FILTER_BLOCK of runtime/bdcc_float.h


def pack_float_filters(weight: F32, *, groups: int) -> F32:
    """A float layer's weights, float32 [CO, CI/groups, KH, KW], as bdcc_float_layers.h reads
    them: [group][block of FLOAT_FILTERS filters or what is left][KH][KW][CI/groups][filter].
    """
    blocks = [
        part[start : start + FLOAT_FILTERS].transpose(2, 3, 1, 0).reshape(-1)
        for part in np.split(weight, groups)
        for start in range(0, len(part), FLOAT_FILTERS)
    ]
    return np.concatenate(blocks)
