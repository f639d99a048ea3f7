# SPDX-License-Identifier: 0BSD
"""Sizes that a step's C function has as constants, and the int32 bound they imply."""

from __future__ import annotations

from typing import Any

import numpy as np

from bdcc.approx.model import Decomposition, TensorQuant
from bdcc.codegen.packing import Form, Packed, pack_filters, words_of
from bdcc.errors import ModelError
from bdcc.ir.graph import AveragePool, Conv, Dense, MaxPool, WeightLayer

MapShape = tuple[int, int, int]  # channels, height, width


def pool_geometry(
    node: MaxPool | AveragePool, *, source: MapShape, output: MapShape
) -> dict[str, Any]:
    channels, in_h, in_w = source
    _, out_h, out_w = output
    top, left, bottom, right = node.pads
    counted = isinstance(node, AveragePool) and node.count_include_pad
    return {
        "geometry": (
            ("in_h", in_h), ("in_w", in_w), ("channels", channels),
            ("out_h", out_h), ("out_w", out_w),
            ("kernel_h", node.kernel[0]), ("kernel_w", node.kernel[1]),
            ("stride_h", node.strides[0]), ("stride_w", node.strides[1]),
            ("pad_top", top), ("pad_left", left),
            ("dilation_h", node.dilations[0]), ("dilation_w", node.dilations[1]),
            ("pad_bottom", bottom), ("pad_right", right),
            ("count_include_pad", int(counted)),
        )
    }  # fmt: skip


def lrn_scratch_bytes(channels: int, size: int) -> int:
    """What bdcc_lrn.h calls BDCC_LRN_SCRATCH, in bytes."""
    return 4 * (channels + 8 * (channels + size) + 16)


def pack_layer(
    node: WeightLayer, decomposition: Decomposition, map_shape: tuple[int, int, int]
) -> Packed:
    """Weights of all groups, in their form."""
    if isinstance(node, Dense):
        return pack_filters(decomposition, kernel=map_shape, groups=1, form="vector")
    kernel = (int(node.weight.shape[1]), *node.kernel)
    return pack_filters(decomposition, kernel=kernel, groups=node.groups, form=form_of(node))


def form_of(node: Conv) -> Form:
    """The form that needs fewer words; direct while it costs at most 15 % more."""
    kernel = (int(node.weight.shape[1]), *node.kernel)
    direct, gathered = (words_of(kernel, form) for form in ("direct", "gathered"))
    return "direct" if node.dilations[1] == 1 and direct <= 1.15 * gathered else "gathered"


def largest_weight(decomposition: Decomposition) -> int:
    """The largest sum of |c| of a filter: no integer weight is above it."""
    return int(np.abs(decomposition.coefficients.astype(np.int64)).sum(axis=1).max(initial=0))


def check_int32(node: WeightLayer, decomposition: Decomposition, quant: TensorQuant) -> None:
    largest = largest_weight(decomposition)
    reduction = int(decomposition.signs.shape[1])
    if reduction * quant.top * largest >= 2**31:
        raise ModelError(
            f"its {reduction} inputs of {quant.bits} bits times weights up to {largest}"
            " pass 32-bit sums",
            layer=node.name,
            hint="choose fewer bits for it with --q, or keep it float with --keep-float",
        )
