# SPDX-License-Identifier: 0BSD
"""The oracle: what every C project must compute, bit for bit.

docs/design.md fixes the order of operations. Written to be obvious rather than fast: one picture at
a time, float32 sums in that order, vectorised over outputs only. The integer products of decomposed
layers go through float64 BLAS, exact below 2^53. Maps are (C, H, W), vectors (N,), in ONNX order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import (
    I8,
    U8,
    DecomposedModel,
    Decomposition,
    QuantizedModel,
    TensorQuant,
)
from bdcc.approx.quantize import dynamic_range, quantize_array
from bdcc.ir.graph import (
    F32,
    AveragePool,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Graph,
    Lrn,
    MaxPool,
    Node,
    Pool,
    Relu,
    Shape,
    Softmax,
    WeightLayer,
    reads,
)

I32 = npt.NDArray[np.int32]
Array = npt.NDArray[Any]

ROWS = 512  # filters of a layer that are widened to float64 at a time: keeps fc6 under 40 MB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Everything one picture computes.

    values: float32, every tensor of the graph; codes: uint8, every quantized tensor; sums: int32
    y_int of every decomposed layer, by layer name, in the shape of its output.
    """

    values: Mapping[str, F32]
    codes: Mapping[str, U8]
    sums: Mapping[str, I32]


def run_exact(model: QuantizedModel, x: F32) -> Trace:
    """The whole network on one picture. x: float32 of the input's shape (C, H, W)."""
    graph = model.graph
    values: dict[str, F32] = {graph.input: _checked_input(graph, x)}
    codes: dict[str, U8] = {}
    ranges: dict[str, TensorQuant] = {}
    sums: dict[str, I32] = {}
    for node in graph.nodes:
        layer = model.decomposed.layers.get(node.name)
        if layer is None or not isinstance(node, Conv | Dense):
            values[node.output] = run_node(graph, node, *(values[t] for t in reads(node)))
            continue
        quant = model.tensors[node.input]
        if node.input not in codes:
            ranges[node.input] = resolve_range(quant, values[node.input])
            codes[node.input] = quantize_array(values[node.input], ranges[node.input])
        sums[node.name], values[node.output] = _run_decomposed(
            node, layer, codes[node.input], quant, ranges[node.input], graph.shapes[node.output]
        )
    return Trace(values=values, codes=codes, sums=sums)


def run_float(graph: Graph, x: F32) -> Mapping[str, F32]:
    """Every tensor of the float model for one picture x, (C, H, W); same order of operations."""
    decomposed = DecomposedModel(graph=graph, layers={})
    return run_exact(QuantizedModel(decomposed=decomposed, tensors={}), x).values


def _checked_input(graph: Graph, x: F32) -> F32:
    shape = graph.shapes[graph.input]
    if x.shape != shape or x.dtype != np.float32:
        raise ValueError(f"the input must be float32 {shape}, not {x.dtype} {x.shape}")
    return x


def run_node(graph: Graph, node: Node, *inputs: F32) -> F32:
    """One float step. inputs: what the node reads, in ONNX order; the result too, its NaNs
    canonical, where it computes anything.
    """
    x = inputs[0]
    with np.errstate(all="ignore"):
        match node:
            case Conv():
                y = _conv(node, x, graph.shapes[node.output])
            case Dense():
                y = _dense(node, x, graph.map_shape(node.input))
            case Relu():
                y = np.where(x < 0, np.float32(0), x)
            case MaxPool():
                y = _max_pool(node, x, graph.shapes[node.output])
            case AveragePool():
                y = _average_pool(node, x, graph.shapes[node.output])
            case GlobalAveragePool():
                pixels = x.reshape(x.shape[0], -1).T
                y = (_add_up(pixels) / np.float32(len(pixels))).reshape(-1, 1, 1)
            case Lrn():
                y = _lrn(node, x)
            case Softmax():
                y = _softmax(x)
            case Flatten():
                return x.reshape(-1)
            case Concat():
                return np.concatenate(inputs)
            case _:
                assert_never(node)
    return _canonical(y)


def _canonical(y: F32) -> F32:
    return np.where(np.isnan(y), np.float32(np.nan), y)


# --- decomposed layers ----------------------------------------------------------------------------


def resolve_range(quant: TensorQuant, x: F32) -> TensorQuant:
    """The range that x is quantized with: its own when `quant` is dynamic."""
    if not quant.dynamic:
        return quant
    delta, zero_point, _ = dynamic_range(x, quant.bits)
    return TensorQuant(bits=quant.bits, delta=np.float32(delta), zero_point=int(zero_point))


def layer_constants(layer: Decomposition, quant: TensorQuant) -> tuple[F32, F32, F32]:
    """What a decomposed layer's epilogue reads: float32 [N] each.

    (scale, bias, sums of the integer weights). Static range: y = scale * y_int + bias. Dynamic:
    scale and bias are the layer's own, each picture's follow from them by `dynamic_constants`.
    """
    return _constants(layer, quant, layer.integer_weights())


def _constants(layer: Decomposition, quant: TensorQuant, weights: I8) -> tuple[F32, F32, F32]:
    sums = weights.sum(axis=1, dtype=np.int64)
    if quant.delta is None:
        return layer.scale, layer.bias, sums.astype(np.float32)
    scale = layer.scale.astype(np.float64) * np.float64(quant.delta)
    bias = layer.bias.astype(np.float64) - scale * quant.zero_point * sums
    return scale.astype(np.float32), bias.astype(np.float32), sums.astype(np.float32)


def dynamic_constants(scale: F32, bias: F32, sums: F32, quant: TensorQuant) -> tuple[F32, F32]:
    """(scale, bias') of one picture whose resolved range is `quant`: float32, in fixed order."""
    scaled = scale * np.float32(quant.delta or 1.0)
    return scaled, bias - (scaled * np.float32(quant.zero_point)) * sums


def _run_decomposed(
    node: WeightLayer,
    layer: Decomposition,
    codes: U8,
    quant: TensorQuant,
    resolved: TensorQuant,
    shape: Shape,
) -> tuple[I32, F32]:
    """(y_int, y) of one decomposed layer; `resolved` is the range the codes were made with."""
    weights = layer.integer_weights()
    sums = _integer_sums(node, weights, codes, resolved.zero_point, shape)
    column = (-1,) + (1,) * (sums.ndim - 1)
    with np.errstate(all="ignore"):
        scale, bias, weight_sums = _constants(layer, quant, weights)
        if quant.dynamic:
            scale, bias = dynamic_constants(scale, bias, weight_sums, resolved)
        y = scale.reshape(column) * sums.astype(np.float32) + bias.reshape(column)
    return sums, _canonical(y)


def _integer_sums(node: WeightLayer, weights: I8, codes: U8, zero_point: int, shape: Shape) -> I32:
    """y_int: codes times integer weights, padding filled with the zero point's code."""
    match node:
        case Conv():
            columns = _windows(_padded(codes, node, shape, zero_point), node)
            blocks = columns.transpose(0, 3, 4, 1, 2).reshape(node.groups, -1, shape[1] * shape[2])
        case Dense():
            blocks = codes.reshape(1, -1, 1)
        case _:
            assert_never(node)
    out = np.empty((len(weights), blocks.shape[2]), np.int32)
    per_group = len(weights) // len(blocks)
    for group, block in enumerate(blocks):
        wide, stop = block.astype(np.float64), (group + 1) * per_group
        for start in range(group * per_group, stop, ROWS):
            rows = slice(start, min(start + ROWS, stop))
            out[rows] = weights[rows].astype(np.float64) @ wide
    return out.reshape(shape)


# --- float layers ---------------------------------------------------------------------------------


def _padded(x: Array, node: Conv | Pool, shape: Shape, fill: float) -> Array:
    """x with `fill` around it, so large as the windows of an output of `shape` reach."""
    top, left = node.pads[:2]
    reach = [
        (out - 1) * stride + dilation * (kernel - 1) + 1
        for out, stride, dilation, kernel in zip(
            shape[1:], node.strides, node.dilations, node.kernel, strict=True
        )
    ]
    out = np.full((x.shape[0], *reach), fill, x.dtype)
    rows, columns = (
        max(0, min(x.shape[1], reach[0] - top)),
        max(0, min(x.shape[2], reach[1] - left)),
    )
    out[:, top : top + rows, left : left + columns] = x[:, :rows, :columns]
    return out


def _windows(padded: Array, node: Conv | Pool) -> Array:
    """View [C, OH, OW, KH, KW] of a padded map: what each output sees."""
    span = [d * (k - 1) + 1 for d, k in zip(node.dilations, node.kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))
    (sh, sw), (dh, dw) = node.strides, node.dilations
    return view[:, ::sh, ::sw, ::dh, ::dw]


def _taps(padded: Array, node: Conv | Pool) -> Iterator[Array]:
    """[C, OH, OW] for each kernel position, (kh, kw) ascending."""
    windows = _windows(padded, node)
    for kh in range(node.kernel[0]):
        for kw in range(node.kernel[1]):
            yield windows[:, :, :, kh, kw]


def _conv(node: Conv, x: F32, shape: Shape) -> F32:
    # Zero padding stands for "skipped": weights are finite, so it adds +-0, which changes nothing
    # in a sum that began at +0 and therefore is never -0.
    filters = node.weight.shape[0] // node.groups
    acc = np.zeros((node.groups, filters, shape[1] * shape[2]), np.float32)
    product = np.empty_like(acc[0])
    for tap, source in enumerate(_taps(_padded(x, node, shape, 0.0), node)):
        grouped = source.reshape(node.groups, -1, acc.shape[2])
        weights = node.weight.reshape(node.groups, filters, grouped.shape[1], -1)[..., tap]
        for group in range(node.groups):
            for channel in range(grouped.shape[1]):
                np.multiply(weights[group, :, channel, None], grouped[group, channel], out=product)
                acc[group] += product
    return acc.reshape(shape) + node.bias[:, None, None]


def _dense(node: Dense, x: F32, map_shape: tuple[int, int, int]) -> F32:
    order = np.arange(x.size).reshape(map_shape).transpose(1, 2, 0).reshape(-1)
    acc = np.zeros(len(node.weight), np.float32)
    for start in range(0, x.size, ROWS):
        block = order[start : start + ROWS]
        for weights, value in zip(node.weight[:, block].T.copy(), x[block], strict=True):
            acc += weights * value
    return acc + node.bias


def _greater(m: F32, v: F32) -> F32:
    return np.where((v > m) | (v != v), v, m)


def _max_pool(node: MaxPool, x: F32, shape: Shape) -> F32:
    # -inf in the padding gives "first valid position": it never wins, and ties only with -inf.
    best = np.full(shape, -np.inf, np.float32)
    for tap in _taps(_padded(x, node, shape, -np.inf), node):
        best = _greater(best, tap)
    return best


def _average_pool(node: AveragePool, x: F32, shape: Shape) -> F32:
    total = np.zeros(shape, np.float32)
    for tap in _taps(_padded(x, node, shape, 0.0), node):
        total = total + tap
    divisor = pool_counts(node, (x.shape[1], x.shape[2]), (shape[1], shape[2]))
    return np.asarray(total / divisor)


def pool_counts(node: AveragePool, size: tuple[int, int], out: tuple[int, int]) -> F32:
    """float32 [OH, OW]: the divisor of each output of an average pool over a map of `size`."""
    counts = []
    for axis in range(2):
        begin, end = (node.pads[axis], node.pads[axis + 2]) if node.count_include_pad else (0, 0)
        start = np.arange(out[axis]) * node.strides[axis] - node.pads[axis]
        below, above = (  # taps in front of either end
            np.clip(-((start - bound) // node.dilations[axis]), 0, node.kernel[axis])
            for bound in (-begin, size[axis] + end)
        )
        counts.append(above - below)
    return np.asarray(np.outer(*counts), np.float32)


def _add_up(terms: Array) -> F32:
    """Sum over axis 0, ascending from +0."""
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total = total + term
    return np.asarray(total)


def _lrn(node: Lrn, x: F32) -> F32:
    before, after = (node.size - 1) // 2, node.size // 2
    squares = np.pad(x * x, [(before, after)] + [(0, 0)] * (x.ndim - 1))
    window = np.lib.stride_tricks.sliding_window_view(squares, node.size, axis=0)
    t = np.float32(node.bias) + np.float32(node.alpha / node.size) * _add_up(
        np.moveaxis(window, -1, 0)
    )
    return x / power(t, round(node.beta * 4))


def power(t: F32, quarters: int) -> F32:
    """t^(quarters/4) as the product, left to right, of t's, its square root and its fourth root."""
    factors = [t] * (quarters // 4)
    if quarters & 2:
        factors.append(np.sqrt(t))
    if quarters & 1:
        factors.append(np.sqrt(np.sqrt(t)))
    return math.prod(factors[1:], start=factors[0])


def _softmax(x: F32) -> F32:
    largest = np.asarray(x[0])
    for value in x[1:]:
        largest = _greater(largest, value)
    e = exact_exp(x - largest)
    return e / _add_up(e)


EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)


def exact_exp(x: F32) -> F32:
    """exp of float32 by the polynomial of docs/design.md, in its order."""
    inside = np.where((x >= -87) & (x <= 88), x, np.float32(0))
    n: F32 = np.rint(inside * np.float32(1.44269504))
    r = (inside - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    p: F32 = np.full_like(x, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        p = p * r + np.float32(coefficient)
    mantissa = ((p * (r * r)) + r) + np.float32(1)
    y = (mantissa.view(np.int32) + (n.astype(np.int32) << 23)).view(np.float32)
    y = np.where(x < -87, np.float32(0), np.where(x > 88, np.float32(np.inf), y))
    return np.where(np.isnan(x), x, y)
