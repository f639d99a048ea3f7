# SPDX-License-Identifier: 0BSD
"""Sizes and strides that a step's C function has as constants, and the int32 bound they imply."""

from __future__ import annotations

from typing import Any

import numpy as np

from bdcc.approx.model import Decomposition, TensorQuant
from bdcc.codegen.memory import ALIGNMENT, round_up
from bdcc.codegen.packing import Form, Packed, pack_filters, words_of
from bdcc.errors import ModelError
from bdcc.ir.graph import AveragePool, Dense, MaxPool, WeightLayer

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


def gemm_geometry(
    node: WeightLayer, packed: Packed, *, bits: int, source: MapShape, pixels: int
) -> tuple[dict[str, Any], int, int]:
    """Constants of one GEMM call, bytes of the bit planes, bytes of the row that is gathered
    before packing.
    """
    channels, in_h, in_w = source
    blocks, rows, words = packed.weights.shape[1:4]
    gemm = {"pixels": pixels, "blocks": blocks, "rows": rows, "words": words}
    if isinstance(node, Dense):
        gemm |= {"pixel_stride": words * 8, "row_stride": 0, "plane_stride": words * 8}
        return (
            {"form": "vector", "gemm": tuple(gemm.items()), "k": channels * in_h * in_w},
            words * 8 * bits,
            0,
        )
    top, left, bottom, right = node.pads
    shared: dict[str, Any] = {
        "group_in": channels // node.groups,
        "window": (
            ("in_h", in_h), ("in_w", in_w),
            ("in_c", channels), ("channels", channels // node.groups),
            ("pad_top", top), ("pad_left", left), ("pad_bottom", bottom), ("pad_right", right),
            ("kernel_h", node.kernel[0]), ("kernel_w", node.kernel[1]),
            ("stride_h", node.strides[0]), ("stride_w", node.strides[1]),
            ("dilation_h", node.dilations[0]), ("dilation_w", node.dilations[1]),
        ),
    }  # fmt: skip
    if packed.form == "direct":
        bytes_per_pixel = round_up(channels // node.groups, 8) // 8
        line = (in_w + left + right) * bytes_per_pixel
        plane = line * (in_h + top + bottom)
        gemm |= {
            "pixel_stride": node.strides[1] * bytes_per_pixel,
            "row_stride": node.dilations[0] * line,
            "plane_stride": plane,
        }
        shared |= {"form": "direct", "output_row_stride": node.strides[0] * line}
        return shared | {"gemm": tuple(gemm.items())}, plane * bits, 0
    gemm |= {"pixel_stride": words * 8, "row_stride": 0, "plane_stride": pixels * words * 8}
    shared |= {"form": "gathered"}
    return shared | {"gemm": tuple(gemm.items())}, pixels * words * 8 * bits, words * 64


def scratch_areas(**sizes: int) -> dict[str, tuple[int, int]]:
    """Lay scratch areas one behind the other: name -> (offset, bytes)."""
    offset, areas = 0, {}
    for name, size in sizes.items():
        areas[name] = (offset, size)
        offset += round_up(size, ALIGNMENT)
    return areas


def pack_layer(
    node: WeightLayer, decomposition: Decomposition, map_shape: tuple[int, int, int]
) -> Packed:
    """Weights of all groups in the form that needs fewer words; direct wins while it costs at most
    15 % more.
    """
    if isinstance(node, Dense):
        return pack_filters(decomposition, kernel=map_shape, groups=1, form="vector")
    kernel = (int(node.weight.shape[1]), *node.kernel)
    direct, gathered = (words_of(kernel, form) for form in ("direct", "gathered"))
    form: Form = "direct" if node.dilations[1] == 1 and direct <= 1.15 * gathered else "gathered"
    return pack_filters(decomposition, kernel=kernel, groups=node.groups, form=form)


def check_int32(node: WeightLayer, decomposition: Decomposition, quant: TensorQuant) -> None:
    largest = int(np.abs(decomposition.coefficients.astype(np.int64)).sum(axis=1).max(initial=0))
    reduction = int(decomposition.signs.shape[1])
    if reduction * quant.top * largest >= 2**31:
        raise ModelError(
            f"its {reduction} inputs of {quant.bits} bits times weights up to {largest}"
            " pass 32-bit sums",
            layer=node.name,
            hint="choose fewer bits for it with --q, or keep it float with --keep-float",
        )
