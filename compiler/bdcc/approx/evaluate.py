# SPDX-License-Identifier: 0BSD
"""The fast evaluator that the search chooses by: float32 BLAS over batches of pictures.

It sums in another order than the oracle and works on x_hat = delta * (q - z) instead of codes, so
that logits differ in the last bits; what is finally reported comes from the exact path. Maps are
(n, H, W, C) here, and a vector made by Flatten lies in that order too (`Graph.map_shape`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

import numpy as np
import numpy.typing as npt
import threadpoolctl

from bdcc.approx.model import DecomposedModel, Decomposition, TensorQuant
from bdcc.approx.quantize import RangeObserver, TensorStats
from bdcc.approx.simulate import pool_counts, power
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
    Softmax,
    WeightLayer,
    reads,
)

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]

PICTURES = 4  # run through the convolutions together: what one layer reads and writes stays in L2
OBSERVED = 64  # calibration pictures at a time
COLUMNS = 2 << 20  # floats of one im2col matrix


class PictureSource(Protocol):
    """Where pictures come from; picklable where worker processes are used."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int] | I64) -> F32:
        """float32 [n, C, H, W]."""

    def portable(self, indices: Sequence[int] | I64) -> PictureSource:
        """Those at `indices` (ascending), for a host that has none of this one's files."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A graph whose weight layers are laid out for sgemm.

    weights: by layer, float32 [groups, K, N/groups], K in the order (KH, KW, CI) or that of the
    flattened map; biases: float32 [N]; quantized: the layers that may read codes, the others being
    left float.
    """

    graph: Graph
    weights: Mapping[str, F32]
    biases: Mapping[str, F32]
    quantized: frozenset[str]


def prepare(model: DecomposedModel) -> Network:
    """The network with the weights of its decompositions; layers that have none keep their own."""
    graph = model.graph
    weights: dict[str, F32] = {}
    biases: dict[str, F32] = {}
    for layer in graph.weight_layers:
        one = model.layers.get(layer.name)
        biases[layer.name] = layer.bias if one is None else one.bias
        weights[layer.name] = ordered_weights(graph, layer, one)
    return Network(graph=graph, weights=weights, biases=biases, quantized=frozenset(model.layers))


def ordered_weights(graph: Graph, layer: WeightLayer, one: Decomposition | None) -> F32:
    """A layer's weights as a Network has them; None: its own."""
    weight = layer.weight if one is None else one.weights().reshape(layer.weight.shape)
    match layer:
        case Conv():
            filters = weight.shape[0] // layer.groups
            grouped = weight.reshape(layer.groups, filters, *weight.shape[1:])
            ordered = grouped.transpose(0, 3, 4, 2, 1).reshape(layer.groups, -1, filters)
            return np.ascontiguousarray(ordered)
        case Dense():
            maps = weight.reshape(-1, *graph.map_shape(layer.input)).transpose(0, 2, 3, 1)
            return maps.reshape(1, *weight.shape).transpose(0, 2, 1)
        case _:
            assert_never(layer)


def forward(
    network: Network,
    nodes: Iterable[Node],
    values: Mapping[str, F32],
    quants: Mapping[str, TensorQuant],
) -> dict[str, F32]:
    """`values` and what `nodes` make of them.

    A tensor named in `quants` is quantized where a layer of `network.quantized` reads it. A layer's
    output that only a Relu reads is overwritten by it.
    """
    out = dict(values)
    rounded: dict[str, F32] = {}
    for node in nodes:
        inputs = [out[tensor] for tensor in reads(node)]
        scratch = False
        match node:
            case Conv() | Dense() if node.input in quants and node.name in network.quantized:
                if node.input not in rounded:
                    rounded[node.input] = fake_quantize(inputs[0], quants[node.input])
                inputs = [rounded[node.input]]
            case Relu():
                mine = isinstance(network.graph.producer(node.input), Conv | Dense)
                alone = len(network.graph.consumers(node.input)) == 1 and node.input not in values
                scratch = mine and alone
        with np.errstate(all="ignore"):  # NaN and infinity are values, as the oracle has them
            out[node.output] = _step(network, node, inputs, scratch=scratch)
    return out


def forward_all(
    network: Network, pictures: F32, quants: Mapping[str, TensorQuant], *, keep: Collection[str]
) -> dict[str, F32]:
    """The tensors `keep` for pictures [n, C, H, W]: maps a few at a time, dense layers together."""
    graph = network.graph
    head, tail = split_at_dense(graph)
    wanted = {*keep, *inputs_of(graph, tail)}
    parts = []
    for start in range(0, len(pictures), PICTURES):
        x = {graph.input: nhwc(pictures[start : start + PICTURES])}
        values = forward(network, head, x, quants)
        parts.append({name: value for name, value in values.items() if name in wanted})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    values = forward(network, tail, joined, quants)
    return {name: values[name] for name in keep}


def split_at_dense(graph: Graph) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The nodes before the first dense layer that no conv follows, and the others.

    Dense layers read their weights once for all pictures: they want many, maps want few.
    """
    cut = len(graph.nodes)
    for index in reversed(range(len(graph.nodes))):
        match graph.nodes[index]:
            case Conv():
                break
            case Dense():
                cut = index
    return graph.nodes[:cut], graph.nodes[cut:]


def inputs_of(graph: Graph, tail: Sequence[Node]) -> set[str]:
    """What must be known before `tail` runs: what it reads and does not make, or the output."""
    made = {node.output for node in tail}
    return ({tensor for node in tail for tensor in reads(node)} | {graph.output}) - made


def nhwc(batch: F32) -> F32:
    """[n, C, H, W] -> contiguous [n, H, W, C]."""
    return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))


def _step(network: Network, node: Node, inputs: Sequence[F32], *, scratch: bool) -> F32:
    """One node; `scratch` says that nobody else reads its input, which may then be overwritten."""
    graph, x = network.graph, inputs[0]
    match node:
        case Conv():
            return _conv(node, x, graph.shapes[node.output], network)
        case Dense():
            y: F32 = x @ network.weights[node.name][0]
            y += network.biases[node.name]
            return y
        case Relu():
            return np.maximum(x, np.float32(0), out=x if scratch else None)
        case MaxPool():
            return _fold(np.maximum, node, x, graph.shapes[node.output], -np.inf)
        case AveragePool():
            shape = graph.shapes[node.output]
            counts = pool_counts(node, (x.shape[1], x.shape[2]), (shape[1], shape[2]))
            return np.asarray(_fold(np.add, node, x, shape, 0.0) / counts[:, :, None])
        case GlobalAveragePool():
            return np.asarray(x.mean(axis=(1, 2), keepdims=True))
        case Lrn():
            return _lrn(node, in_onnx_order(graph, node.input, x))
        case Flatten():
            return x.reshape(len(x), -1)
        case Softmax():
            x = in_onnx_order(graph, node.input, x)
            e = np.exp(x - x.max(axis=-1, keepdims=True))
            return np.asarray(e / e.sum(axis=-1, keepdims=True))
        case Concat():
            pairs = zip(node.inputs, inputs, strict=True)
            return np.concatenate([in_onnx_order(graph, *pair) for pair in pairs], axis=-1)
        case _:
            assert_never(node)


def in_onnx_order(graph: Graph, tensor: str, x: F32) -> F32:
    """x itself if it is a map, else the vector with a free Flatten undone."""
    if x.ndim == 4:
        return x
    channels, height, width = graph.map_shape(tensor)
    return x.reshape(-1, height, width, channels).transpose(0, 3, 1, 2).reshape(x.shape)


def one_blas_thread() -> threadpoolctl.threadpool_limits:
    """A context in which sums do not depend on how many cores there are."""
    return threadpoolctl.threadpool_limits(1, user_api="blas")


@contextmanager
def threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads do their sums alone, so that their number changes no result."""
    with one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        yield pool


def fake_quantize(x: F32, quant: TensorQuant) -> F32:
    """delta * (q - z) of [n, ...]; a dynamic range is each picture's own. NaN stays NaN."""
    if quant.delta is not None:
        delta: Any = np.float32(quant.delta)
        reciprocal: Any = quant.reciprocal
        zero: Any = np.float32(quant.zero_point)
    else:
        delta, reciprocal, zero = _dynamic_ranges(x, quant.top)
    t: F32 = x * reciprocal
    np.rint(t, out=t)
    np.maximum(t, -zero, out=t)
    np.minimum(t, np.float32(quant.top) - zero, out=t)
    t *= delta
    return t


def _dynamic_ranges(x: F32, top: int) -> tuple[F32, F32, F32]:
    axes = tuple(range(1, x.ndim))
    n, huge = np.float32(top), np.float32(2.0**100)
    low = np.minimum(x.min(axis=axes, keepdims=True), np.float32(0))
    high = np.maximum(x.max(axis=axes, keepdims=True), np.float32(0))
    delta: F32 = high / n - low / n
    fits = delta >= np.float32(2.0**-100)
    delta = np.where(fits, np.minimum(delta, huge), np.float32(1))
    reciprocal = np.float32(1) / delta
    zero: F32 = np.where(fits, np.clip(np.rint(-low * reciprocal), 0, n), 0).astype(np.float32)
    return delta, reciprocal, zero


def _padded(x: F32, node: Conv | Pool, shape: tuple[int, ...], fill: float) -> F32:
    """x with `fill` around it, as far as the windows of an output of `shape` (C, H, W) reach."""
    top, left = node.pads[:2]
    reach = [
        (out - 1) * stride + dilation * (kernel - 1) + 1
        for out, stride, dilation, kernel in zip(
            shape[1:], node.strides, node.dilations, node.kernel, strict=True
        )
    ]
    if not (top or left) and reach[0] <= x.shape[1] and reach[1] <= x.shape[2]:
        return x
    out = np.full((len(x), *reach, x.shape[3]), fill, np.float32)
    rows = max(0, min(x.shape[1], reach[0] - top))
    columns = max(0, min(x.shape[2], reach[1] - left))
    out[:, top : top + rows, left : left + columns] = x[:, :rows, :columns]
    return out


def _windows(node: Conv, x: F32, shape: tuple[int, ...]) -> F32:
    """View [n, H, W, KH, KW, CI] of what each output of a conv sees."""
    (kh, kw), (sh, sw), (dh, dw) = node.kernel, node.strides, node.dilations
    padded = _padded(x, node, shape, 0.0)
    sn, sy, sx, sc = padded.strides
    return np.lib.stride_tricks.as_strided(
        padded,
        (len(x), *shape[1:], kh, kw, padded.shape[3]),
        (sn, sy * sh, sx * sw, sy * dh, sx * dw, sc),
        writeable=False,
    )


def columns_at(graph: Graph, node: Conv, x: F32, where: I64) -> F32:
    """float32 [groups, n * p, K]: what output pixels `where`, int64 [n, p], see of x NHWC."""
    shape = graph.shapes[node.output]
    pictures = np.arange(len(x))[:, None]
    seen = _windows(node, x, shape)[pictures, where // shape[2], where % shape[2]]
    taps = seen.reshape(where.size, seen.shape[2] * seen.shape[3], node.groups, -1)
    return np.ascontiguousarray(taps.transpose(2, 0, 1, 3)).reshape(node.groups, where.size, -1)


def _conv(node: Conv, x: F32, shape: tuple[int, ...], network: Network) -> F32:
    weights = network.weights[node.name]
    channels, height, width = shape
    kh, kw = node.kernel
    windows = _windows(node, x, shape)
    out = np.empty((len(x) * height * width, channels), np.float32)
    depth, filters = windows.shape[5] // node.groups, channels // node.groups
    together = max(1, COLUMNS // (height * width * kh * kw * depth))
    for start in range(0, len(x), together):
        batch = windows[start : start + together]
        rows = slice(start * height * width, (start + len(batch)) * height * width)
        for group in range(node.groups):
            taps = batch[..., group * depth : (group + 1) * depth]
            columns = taps.reshape(-1, kh * kw * depth)
            part = out[rows, group * filters : (group + 1) * filters]
            np.matmul(columns, weights[group], out=part)
    out += network.biases[node.name]
    return out.reshape(len(x), height, width, channels)


def _fold(combine: np.ufunc, node: Pool, x: F32, shape: tuple[int, ...], fill: float) -> F32:
    """Combine each window's values: first down its rows, then along its columns."""
    x = _padded(x, node, shape, fill)
    for axis in (1, 2):
        stride, dilation = node.strides[axis - 1], node.dilations[axis - 1]
        span = (shape[axis] - 1) * stride + 1
        lines = [
            x[(slice(None),) * axis + (slice(k * dilation, k * dilation + span, stride),)]
            for k in range(node.kernel[axis - 1])
        ]
        x = functools.reduce(combine, lines[1:], lines[0])
    return x


def _lrn(node: Lrn, x: F32) -> F32:
    squares = x * x
    total = squares.copy()
    for shift in range(1, node.size // 2 + 1):
        total[..., :-shift] += squares[..., shift:]
    for shift in range(1, (node.size - 1) // 2 + 1):
        total[..., shift:] += squares[..., :-shift]
    total *= np.float32(node.alpha / node.size)
    total += np.float32(node.bias)
    return np.asarray(x / power(total, round(node.beta * 4)))


# --- judging ------------------------------------------------------------------------------


def logits_of(graph: Graph, values: Mapping[str, F32]) -> F32:
    """float32 [n, outputs], in ONNX order."""
    y = values[graph.output]
    if y.ndim == 4:
        return y.transpose(0, 3, 1, 2).reshape(len(y), -1)
    return in_onnx_order(graph, graph.output, y)


def ranks_of(logits: F32, labels: I64) -> I32:
    """How many classes come before the label: int32 [n]. At ties the lower index comes first."""
    scores = np.where(np.isnan(logits), -np.inf, logits)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    return np.asarray(before.sum(axis=1), np.int32)


def first_classes(logits: F32) -> I64:
    """int64 [n]: the first class, at ties the lower index: the labels that agreement takes."""
    return np.asarray(np.where(np.isnan(logits), -np.inf, logits).argmax(axis=1), np.int64)


# --- calibration --------------------------------------------------------------------------


def calibrate(
    model: DecomposedModel,
    pictures: PictureSource,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> Mapping[str, TensorStats]:
    """What the input of every decomposed layer holds on `pictures`, activations being float.

    The result does not depend on `workers`.
    """
    network = prepare(model)
    wanted = {node.input for node in model.graph.weight_layers if node.name in model.layers}
    observers = {tensor: RangeObserver() for tensor in wanted}
    total = len(pictures)
    parts = [range(at, min(at + OBSERVED, total)) for at in range(0, total, OBSERVED)]

    def run(rows: range) -> dict[str, F32]:
        return forward_all(network, pictures.batch(rows), {}, keep=wanted)

    with threads(workers) as pool:
        for rows, values in zip(parts, pool.map(run, parts), strict=True):
            for tensor, observer in observers.items():
                observer.observe(values[tensor])
            if progress:
                progress("calibrate", rows.stop, total)
    return {tensor: observers[tensor].stats() for tensor in sorted(wanted)}
