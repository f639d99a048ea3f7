# SPDX-License-Identifier: 0BSD
"""What the float network does on the calibration pictures: samples of what each weight layer sees
and makes, and the ranges that fit them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bdcc.approx.evaluate import (
    Network,
    PictureSource,
    Progress,
    columns_at,
    fake_quantize,
    forward,
    nhwc,
    one_blas_thread,
    prepare,
    threads,
)
from bdcc.approx.model import DecomposedModel, TensorQuant
from bdcc.approx.quantize import RangeMode, RangeObserver, TensorStats, choose_range
from bdcc.errors import ModelError
from bdcc.ir.graph import F32, MAX_MAGNITUDE, Conv, Dense, Graph, Node, WeightLayer

I64 = npt.NDArray[np.int64]

PICTURES = 16  # of one batch of a flow
ROWS = 48_000  # output pixels of a conv layer whose inputs make its second moments
RANGE_ROWS = 4_000  # of them, those that ranges are fitted on
WIDER = (0.9, 1.0, 1.1, 1.2, 1.3)  # steps that are tried, as parts of the one of least input error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """What the float network does on the calibration pictures.

    spots: by conv layer, int64 [pictures, p], output pixels; outputs: by layer, float32 [rows, N],
    its outputs there (of dense layers: all); inputs: by layer, float32 [groups, rows, K], what some
    of these outputs see (of dense layers: all), K in the order (KH, KW, CI); stats: by the tensors
    that weight layers read.
    """

    graph: Graph
    pictures: PictureSource
    network: Network
    spots: Mapping[str, I64]
    outputs: Mapping[str, F32]
    inputs: Mapping[str, F32]
    stats: Mapping[str, TensorStats]


def observe(
    graph: Graph,
    pictures: PictureSource,
    *,
    seed: int = 0,
    workers: int = 2,
    progress: Progress | None = None,
) -> Observed:
    """Run the float network over the calibration pictures, once."""
    network = prepare(DecomposedModel(graph=graph, layers={}))
    total, layers = len(pictures), graph.weight_layers
    spots = {
        layer.name: _draw_spots(graph, layer, total, [seed, index])
        for index, layer in enumerate(layers)
        if isinstance(layer, Conv)
    }
    some = max(1, -(-RANGE_ROWS // total))
    observers = {layer.input: RangeObserver() for layer in layers}
    outputs: dict[str, list[F32]] = {layer.name: [] for layer in layers}
    inputs: dict[str, list[F32]] = {layer.name: [] for layer in layers}

    def run(rows: range) -> tuple[dict[str, F32], dict[str, F32], dict[str, F32]]:
        """The inputs of the weight layers, and samples of what they see and make."""
        values = {graph.input: nhwc(pictures.batch(rows))}
        whole, seen, made = {}, {}, {}
        for nodes, layer in _segments(graph):
            values = forward(network, nodes, values, {})
            if layer is None:
                break
            whole[layer.input] = x = values[layer.input]
            y = values[layer.output]
            if isinstance(layer, Conv):
                where = spots[layer.name][rows.start : rows.stop]
                every = max(1, where.shape[1] // some)
                seen[layer.name] = columns_at(graph, layer, x, where[:, ::every][:, :some])
                y = np.take_along_axis(y.reshape(len(y), -1, y.shape[-1]), where[..., None], axis=1)
                made[layer.name] = y.reshape(-1, y.shape[-1])
            else:
                seen[layer.name], made[layer.name] = x[None], y
        return whole, seen, made

    with threads(workers) as pool:
        parts = batches(total)
        for rows, (whole, seen, made) in zip(parts, pool.map(run, parts), strict=True):
            for tensor, x in whole.items():
                observers[tensor].observe(x)
            for name in inputs:
                inputs[name].append(seen[name])
                outputs[name].append(made[name])
            if progress:
                progress("observe", rows.stop, total)
    observed = Observed(
        graph=graph,
        pictures=pictures,
        network=network,
        spots=spots,
        outputs={name: np.concatenate(parts) for name, parts in outputs.items()},
        inputs={name: np.concatenate(parts, axis=1) for name, parts in inputs.items()},
        stats={tensor: observer.stats() for tensor, observer in observers.items()},
    )
    _check_magnitudes(observed)
    return observed


def _check_magnitudes(observed: Observed) -> None:
    """Raises ModelError, naming the first layer that reads or makes values that are no numbers or
    too large to be told apart by squared errors.
    """
    for layer in observed.graph.weight_layers:
        read, made = observed.stats[layer.input], observed.outputs[layer.name]
        values = (read.minimum, read.maximum, made.min(initial=0), made.max(initial=0))
        most = float(np.max(np.abs(values)))
        if not most <= MAX_MAGNITUDE:
            raise ModelError(
                f"on the pictures it reads or makes values of {most:.3g}; layers can be decomposed "
                f"up to {MAX_MAGNITUDE:g}",
                layer=layer.name,
                hint="Scale the layers in front of it down, or compile with --float",
            )


def _segments(graph: Graph) -> Iterator[tuple[Sequence[Node], WeightLayer | None]]:
    """The nodes up to each weight layer, with it; what follows the last one has None."""
    start = 0
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Conv | Dense):
            yield graph.nodes[start : index + 1], node
            start = index + 1
    yield graph.nodes[start:], None


def _draw_spots(graph: Graph, layer: Conv, pictures: int, seed: Sequence[int]) -> I64:
    """int64 [pictures, p]: output pixels, different ones of each picture."""
    _, height, width = graph.shapes[layer.output]
    count = min(height * width, -(-ROWS // pictures))
    draws = np.random.default_rng(seed)
    drawn = [draws.choice(height * width, count, replace=False) for _ in range(pictures)]
    return np.sort(np.array(drawn, np.int64), axis=1)


def fit_range(observed: Observed, tensor: str, *, bits: int, mode: RangeMode) -> TensorQuant:
    """How to quantize a tensor; mode clip: so that the layers that read it come closest.

    Of steps around the one of least error on the tensor itself, that which leaves most of these
    layers' output explained (a gain and an offset per filter are free: decomposition has them).
    """
    start = choose_range(observed.stats[tensor], bits=bits, mode=mode)
    readers = [layer for layer in observed.graph.weight_layers if layer.input == tensor]
    if mode != "clip" or start.delta is None:
        return start
    choices = [replace(start, delta=np.float32(start.delta * factor)) for factor in WIDER]
    with one_blas_thread():
        losses = [
            sum(_unexplained(observed, layer, choice) for layer in readers) for choice in choices
        ]
    return choices[int(np.argmin(losses))]


def _unexplained(observed: Observed, layer: WeightLayer, quant: TensorQuant) -> float:
    """Part of the layer's output variance that its quantized input no longer explains."""
    lost = total = 0.0
    for x, weight in zip(
        observed.inputs[layer.name], observed.network.weights[layer.name], strict=True
    ):
        y, z = x @ weight, fake_quantize(x, quant) @ weight
        y, z = y - y.mean(axis=0), z - z.mean(axis=0)
        yy, yz, zz = (np.einsum("rn,rn->n", a, b) for a, b in ((y, y), (y, z), (z, z)))
        lost += float((yy - yz**2 / np.where(zz > 0, zz, 1)).sum())
        total += float(yy.sum())
    return lost / total if total > 0 else 0.0


def batches(count: int) -> list[range]:
    """The pictures that go through a network together."""
    return [range(start, min(start + PICTURES, count)) for start in range(0, count, PICTURES)]
