# SPDX-License-Identifier: 0BSD
"""A decomposed layer's step: the sizes and strides that its kernel family has as constants, and the
memory it works in. All families read the same packed weights, but for a dense layer by bytes, whose
bits lie side by side.

Scratch has a part that all threads share (the codes, laid out for the kernels) and, behind it, one
that each has for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

import numpy as np

from bdcc.approx.model import Decomposition, TensorQuant
from bdcc.codegen import lut
from bdcc.codegen.bytedot import (
    UNIT,
    expanded_bytes,
    flush_interval,
    signed_flush_interval,
    signed_offset,
)
from bdcc.codegen.geometry import MapShape, largest_weight
from bdcc.codegen.memory import ALIGNMENT, round_up
from bdcc.codegen.packing import LANES, Packed
from bdcc.ir.graph import Conv, WeightLayer

Family = Literal["popcount", "lut", "bytedot"]
FAMILIES: tuple[Family, ...] = ("popcount", "lut", "bytedot")

OVERRUN = 64  # bytes behind an area that a kernel may read, never use
CHUNK_PIXELS = 48  # whose sums are made before they become codes: whole tiles, and few
GATHERED_BYTES = 256 * 1024  # of gathered codes at a time: they are read once for each unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """Bytes that a step works in: areas by name (their offsets), those of all threads and those of
    each.
    """

    shared: Mapping[str, int]
    shared_bytes: int
    private: Mapping[str, int]
    private_bytes: int

    @property
    def bytes(self) -> int:
        return self.shared_bytes + self.private_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Map:
    """The padded map of one group, [rows][line bytes]: `pixel` bytes a pixel."""

    pixel: int
    line: int
    rows: int

    @property
    def bytes(self) -> int:
        return self.line * self.rows


def plan_binary(
    node: WeightLayer,
    packed: Packed,
    decomposition: Decomposition,
    quant: TensorQuant,
    *,
    family: Family,
    isas: Sequence[str],
    source: MapShape,
    output: MapShape,
) -> tuple[dict[str, Any], Scratch]:
    """Constants of the step of a decomposed layer, and its scratch, which holds what any of the
    instruction sets needs. source, output: (C, H, W).
    """
    channels, in_h, in_w = source
    conv = node if isinstance(node, Conv) else None
    out_c, out_h, out_w = output if conv else (output[0] * output[1] * output[2], 1, 1)
    groups = conv.groups if conv else 1
    values: dict[str, Any] = {
        "family": family,
        "form": packed.form,
        "bases": decomposition.bases,
        "bits": quant.bits,
        "dynamic": quant.dynamic,
        "out_h": out_h,
        "out_w": out_w,
        "out_channels": out_c,
        "groups": groups,
        "group_channels": out_c // groups,
        "group_in": channels // groups,
        "blocks": packed.weights.shape[1],
        "words": packed.weights.shape[3],
        "k": channels * in_h * in_w,
        "weight_stride": int(np.prod(packed.weights.shape[1:])),
        "coefficient_stride": int(np.prod(packed.coefficients.shape[1:])),
        "window": _window(conv, source) if conv else (),
    }
    dynamic = {
        "codes": channels * in_h * in_w if quant.dynamic else 0,
        "scale": out_c * 4 if quant.dynamic else 0,
        "bias": out_c * 4 if quant.dynamic else 0,
    }
    match family:
        case "popcount":
            more, shared, private = _popcount(conv, packed, quant, source=source, pixels=out_w)
        case "bytedot":
            more, shared, private = _bytedot(
                conv, packed, decomposition, quant, source=source, output=(out_c, out_h, out_w)
            )
        case "lut":
            more, shared, private = _lut(
                conv, packed, quant, isas=isas, source=source, output=(out_c, out_h, out_w)
            )
        case _:
            assert_never(family)
    at, shared_bytes = _areas(**dynamic, **shared)
    own, private_bytes = _areas(**private)
    scratch = Scratch(
        shared=at, shared_bytes=shared_bytes, private=own, private_bytes=private_bytes
    )
    return values | more | {"areas": at, "own": own, "shared_bytes": shared_bytes}, scratch


def _areas(**sizes: int) -> tuple[dict[str, int], int]:
    """Areas one behind the other: their offsets, and the bytes of all."""
    offset, areas = 0, {}
    for name, size in sizes.items():
        areas[name] = offset
        offset += round_up(size, ALIGNMENT)
    return areas, offset


def _window(conv: Conv, source: MapShape) -> tuple[tuple[str, int], ...]:
    channels, in_h, in_w = source
    top, left, bottom, right = conv.pads
    return (
        ("in_h", in_h), ("in_w", in_w),
        ("in_c", channels), ("channels", channels // conv.groups),
        ("pad_top", top), ("pad_left", left), ("pad_bottom", bottom), ("pad_right", right),
        ("kernel_h", conv.kernel[0]), ("kernel_w", conv.kernel[1]),
        ("stride_h", conv.strides[0]), ("stride_w", conv.strides[1]),
        ("dilation_h", conv.dilations[0]), ("dilation_w", conv.dilations[1]),
    )  # fmt: skip


def _padded(conv: Conv, source: MapShape, *, pixel: int) -> _Map:
    _, in_h, in_w = source
    top, left, bottom, right = conv.pads
    return _Map(pixel=pixel, line=(left + in_w + right) * pixel, rows=top + in_h + bottom)


Parts = tuple[dict[str, Any], dict[str, int], dict[str, int]]  # constants, shared, private areas


def _popcount(
    conv: Conv | None, packed: Packed, quant: TensorQuant, *, source: MapShape, pixels: int
) -> Parts:
    """Bit planes, one output row at a time."""
    blocks, rows, words = packed.weights.shape[1:4]
    gemm = {"pixels": pixels, "blocks": blocks, "rows": rows, "words": words}
    sums = {"sums": pixels * blocks * LANES * 4}
    if conv is None:
        gemm |= {"pixel_stride": words * 8, "row_stride": 0, "plane_stride": words * 8}
        planes = {"planes": words * 8 * quant.bits + OVERRUN}
        return {"gemm": tuple(gemm.items())}, planes, sums
    if packed.form == "direct":
        padded = _padded(conv, source, pixel=round_up(source[0] // conv.groups, 8) // 8)
        gemm |= {
            "pixel_stride": conv.strides[1] * padded.pixel,
            "row_stride": conv.dilations[0] * padded.line,
            "plane_stride": padded.bytes,
        }
        planes = {"planes": padded.bytes * quant.bits + OVERRUN}
        constants = {
            "gemm": tuple(gemm.items()),
            "output_row_stride": conv.strides[0] * padded.line,
        }
        return constants, planes, sums
    gemm |= {"pixel_stride": words * 8, "row_stride": 0, "plane_stride": pixels * words * 8}
    planes = {"planes": pixels * words * 8 * quant.bits + OVERRUN}
    return {"gemm": tuple(gemm.items())}, {}, planes | {"row": words * 64} | sums


def _bytes(
    conv: Conv | None, packed: Packed, quant: TensorQuant, *, source: MapShape, output: MapShape
) -> tuple[dict[str, Any], int]:
    """Codes as bytes: constants, and bytes of the area they are laid out in (0: as they are)."""
    channels, in_h, in_w = source
    _, out_h, out_w = output
    blocks, rows, words = packed.weights.shape[1:4]
    view = {"pixels": out_h * out_w, "out_w": out_w, "blocks": blocks, "rows": rows, "words": words}
    lines, map_rows, whole = out_h, 0, True
    if conv is None:
        run_bytes = group_bytes = channels * in_h * in_w
        view |= {"taps": 1, "tap_bytes": run_bytes}
        view |= {"pixel_stride": 0, "row_stride": 0, "line_stride": 0}
    elif packed.form == "direct":
        padded = _padded(conv, source, pixel=round_up(channels // conv.groups, 8))
        run_bytes = conv.kernel[1] * padded.pixel
        view |= {
            "taps": conv.kernel[1],
            "tap_bytes": padded.pixel,
            "pixel_stride": conv.strides[1] * padded.pixel,
            "row_stride": conv.dilations[0] * padded.line,
            "line_stride": conv.strides[0] * padded.line,
        }
        whole = not any(conv.pads) and padded.pixel == channels
        group_bytes, map_rows = padded.bytes, padded.rows
    else:
        run_bytes = round_up(channels // conv.groups * conv.kernel[0] * conv.kernel[1], 8)
        view |= {
            "taps": 1,
            "tap_bytes": run_bytes,
            "pixel_stride": run_bytes,
            "row_stride": 0,
            "line_stride": out_w * run_bytes,
        }
        whole = False
        lines = max(1, min(out_h, GATHERED_BYTES // (out_w * run_bytes)))
        group_bytes = lines * out_w * run_bytes
    constants = {
        "view": tuple(view.items()),
        "whole": whole,
        "lines": lines,
        "map_rows": map_rows,
        "run_bytes": run_bytes,
        "group_bytes": group_bytes,
    }
    groups = conv.groups if conv else 1
    return constants, 0 if whole else groups * group_bytes + OVERRUN


def _bytedot(
    conv: Conv | None,
    packed: Packed,
    decomposition: Decomposition,
    quant: TensorQuant,
    *,
    source: MapShape,
    output: MapShape,
) -> Parts:
    """Filter blocks are expanded to int8, then meet all pixels; a dense layer's in registers."""
    blocks, rows, words = packed.weights.shape[1:4]
    if conv is None:
        k = source[0] * source[1] * source[2]
        filled = words * 64  # a kernel reads whole words, and zeros behind the last code
        whole = filled == k
        sums = {"sums": blocks * LANES * 4}
        return {"whole": whole, "filled": filled}, {"x": 0 if whole else filled}, sums
    largest = largest_weight(decomposition)
    flush = flush_interval(quant.bits, largest)
    constants, x_bytes = _bytes(conv, packed, quant, source=source, output=output)
    constants["view"] += (
        ("flush", flush),
        ("offset", signed_offset(quant.bits)),
        ("flush_signed", signed_flush_interval(quant.bits, largest)),
    )
    constants |= {
        "flush": flush,
        "units": -(-blocks // UNIT),
        "unit_filters": UNIT * LANES,
        "chunk": CHUNK_PIXELS,
    }
    private = {
        "expanded": expanded_bytes(rows, constants["run_bytes"]),
        "sums": CHUNK_PIXELS * UNIT * LANES * 4,
    }
    return constants, {"x": x_bytes}, private


def _lut(
    conv: Conv | None,
    packed: Packed,
    quant: TensorQuant,
    *,
    isas: Sequence[str],
    source: MapShape,
    output: MapShape,
) -> Parts:
    """Tables of what a few codes can add up to; some filters look up all pixels' sums in them."""
    rows = packed.weights.shape[2]
    bases = packed.weights.shape[4]
    constants, x_bytes = _bytes(conv, packed, quant, source=source, output=output)
    view = dict(constants["view"])
    taps, tap_bytes = view["taps"], view["tap_bytes"]
    cells = constants["group_bytes"] // tap_bytes
    table_bytes = round_up(
        lut.table_bytes(isas, bits=quant.bits, cells=cells, tap_bytes=tap_bytes), ALIGNMENT
    )
    constants["view"] += (("cells", cells),)
    sums = lut.sums(isas)
    constants |= {"table_bytes": table_bytes, "cells": cells, "sums": sums}
    private = {
        "lut": lut.scratch_bytes(
            isas,
            bases=bases,
            bits=quant.bits,
            blocks=packed.weights.shape[1],
            rows=rows,
            taps=taps,
            tap_bytes=tap_bytes,
        ),
        "sums": sums * 4,
    }
    groups = conv.groups if conv else 1
    return constants, {"x": x_bytes, "tables": groups * table_bytes}, private
