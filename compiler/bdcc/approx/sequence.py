# SPDX-License-Identifier: 0BSD
"""Layer by layer through the network: each is decomposed on the inputs that it will really have.

Two flows of the same pictures are compared: the float network's, of which samples are taken once
(observe.py), and that of the network as it is decomposed and quantized so far. A layer's target is
its float output, so that it also makes up for what the layers before it did: its weights are
first replaced by their ridge regression onto the new inputs, then decomposed with the second
moments of these (aware.py); the bias takes up what is left in the mean.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import numpy as np
import numpy.typing as npt

from bdcc.approx.aware import AwareFit, FullMoments, Moments, SampleMoments, fit_filters
from bdcc.approx.decompose import decompose_filters
from bdcc.approx.evaluate import (
    Network,
    Progress,
    columns_at,
    fake_quantize,
    forward,
    nhwc,
    one_blas_thread,
    ordered_weights,
    threads,
)
from bdcc.approx.model import U8, DecomposedModel, Decomposition, QuantizedModel, TensorQuant
from bdcc.approx.observe import Observed, batches, fit_range
from bdcc.approx.quantize import RangeMode
from bdcc.files import TEMPORARY_HINT, reserve, temporary_place, writing
from bdcc.ir.graph import F32, Conv, Dense, Graph, WeightLayer, reads

F64 = npt.NDArray[np.float64]

IN_MEMORY = 2 << 30  # bytes of one map of all calibration pictures
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of products of float32, relative to their size
MOST_DAMPING = 1.0  # of the mean diagonal of the second moments
FILTERS = 1024  # that are fitted together
TEMPLATES = 32  # filters that show how levels lie


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """What a layer is fitted by: per group, the ridge target float32 [N, K] and second moments;
    input_mean: float64 [groups, K]; output_mean: float64 [N], of the float layer.
    """

    layer: WeightLayer
    targets: tuple[F32, ...]
    moments: tuple[Moments, ...]
    input_mean: F64
    output_mean: F64


@dataclass(slots=True, kw_only=True, eq=False)
class SequenceDecomposer:
    """Decomposes a graph for any number of settings; what settings share is kept.

    mode: of ranges; uniform: levels as of an integer format instead of free ones, to compare with.
    The result does not depend on `workers`.
    """

    observed: Observed
    mode: RangeMode
    seed: int = 0
    workers: int = 2
    uniform: bool = False
    progress: Progress | None = None
    _ranges: dict[tuple[str, int], TensorQuant] = field(default_factory=dict)
    _on_float: dict[str, Problem] = field(default_factory=dict)
    _singles: dict[tuple[str, int], Decomposition] = field(default_factory=dict)

    def range_of(self, tensor: str, bits: int) -> TensorQuant:
        """`fit_range`, once for each tensor and bits."""
        key = tensor, bits
        if key not in self._ranges:
            self._ranges[key] = fit_range(self.observed, tensor, bits=bits, mode=self.mode)
        return self._ranges[key]

    def single(self, layer: WeightLayer, bases: int) -> Decomposition:
        """The layer decomposed on its float inputs."""
        key = layer.name, bases
        if key not in self._singles:
            if layer.name not in self._on_float:
                self._find_float_problems()
            self._singles[key] = self.fit(self._on_float[layer.name], bases)
        return self._singles[key]

    def fit(self, problem: Problem, bases: int) -> Decomposition:
        """The best B bases for a layer's problem."""
        layer, parts = problem.layer, []
        for target, moments in zip(problem.targets, problem.moments, strict=True):
            with one_blas_thread():
                levels = _start_levels(target, bases, self.seed)
            for start in range(0, len(target), FILTERS):
                rows = slice(start, start + FILTERS)
                parts.append((target[rows], moments, levels[rows]))
        if isinstance(layer, Dense):  # more take long and lessen its error by half a per cent
            rounds, sweeps = 1, 1
        else:  # the more levels there are, the longer they take to settle
            rounds, sweeps = 3 if bases <= 3 else 16, 2

        def work(part: tuple[F32, Moments, F64]) -> AwareFit:
            target, moments, levels = part
            return fit_filters(
                target, moments, levels=levels, rounds=rounds, sweeps=sweeps, uniform=self.uniform
            )

        with threads(self.workers) as pool:
            fits = list(pool.map(work, parts))
        one = Decomposition(
            coefficients=np.concatenate([fit.coefficients for fit in fits]),
            signs=_in_onnx_order(
                self.observed.graph, layer, np.concatenate([fit.signs for fit in fits])
            ),
            scale=np.concatenate([fit.scale for fit in fits]),
            bias=layer.bias,
        )
        return _with_bias(one, ordered_weights(self.observed.graph, layer, one), problem)

    def decompose(
        self, bases: Mapping[str, int], bits: Mapping[str, int]
    ) -> tuple[QuantizedModel, Mapping[str, Problem]]:
        """The layers named in `bases`, in sequence; the others stay float.

        bits: by tensor; {}: weights alone, the activations being float. Also returns the layers'
        problems, for `fit` with other bases.
        """
        observed, graph = self.observed, self.observed.graph
        weights, biases = dict(observed.network.weights), dict(observed.network.biases)
        network = Network(graph=graph, weights=weights, biases=biases, quantized=frozenset(bases))
        quants = {tensor: self.range_of(tensor, count) for tensor, count in bits.items()}
        layers: dict[str, Decomposition] = {}
        problems: dict[str, Problem] = {}
        flow = _Flow(observed, self.workers)
        for layer in graph.weight_layers:
            if layer.name not in bases:
                continue
            flow.reach(layer, network, quants)
            problem = _problem(observed, layer, flow, quants.get(layer.input))
            one = self.fit(problem, bases[layer.name])
            layers[layer.name], problems[layer.name] = one, problem
            weights[layer.name] = ordered_weights(graph, layer, one)
            biases[layer.name] = one.bias
            if self.progress:
                self.progress("decompose", len(layers), len(bases))
        model = DecomposedModel(graph=graph, layers=layers)
        return QuantizedModel(decomposed=model, tensors=quants), problems

    def _find_float_problems(self) -> None:
        """The problems of all layers on the float inputs, in one pass of the float network."""
        observed = self.observed
        flow = _Flow(observed, self.workers)
        for count, layer in enumerate(observed.graph.weight_layers, start=1):
            flow.reach(layer, observed.network, {})
            self._on_float[layer.name] = _problem(observed, layer, flow, None)
            if self.progress:
                self.progress("moments", count, len(observed.graph.weight_layers))


class _Flow:
    """The calibration pictures on their way through a network, up to one layer after another.

    What they have become is kept in memory, or in files that vanish with it where a map of all of
    them is larger than IN_MEMORY.
    """

    def __init__(self, observed: Observed, workers: int) -> None:
        self.observed, self.workers = observed, workers
        largest = max(int(np.prod(shape)) for shape in observed.graph.shapes.values())
        self._in_files = 4 * largest * len(observed.pictures) > IN_MEMORY
        self._batches = batches(len(observed.pictures))
        self._values: list[dict[str, F32]] | None = None
        self._done = 0

    def reach(
        self, layer: WeightLayer, network: Network, quants: Mapping[str, TensorQuant]
    ) -> None:
        """Compute what the layer reads, with the network as it is now."""
        graph = self.observed.graph
        stop = graph.nodes.index(layer)
        nodes = graph.nodes[self._done : stop]
        wanted = {tensor for node in graph.nodes[stop:] for tensor in reads(node)}
        self._done = stop

        def advance(index: int) -> dict[str, F32]:
            if self._values is None:
                values = {graph.input: nhwc(self.observed.pictures.batch(self._batches[index]))}
            else:
                values = self._values[index]
            reached = forward(network, nodes, values, quants)
            return {
                tensor: x if x is values.get(tensor) else self._keep(x)
                for tensor, x in reached.items()
                if tensor in wanted
            }

        with threads(self.workers) as pool:
            self._values = list(pool.map(advance, range(len(self._batches))))

    def _keep(self, x: F32) -> F32:
        if not self._in_files:
            return x
        place = temporary_place()
        with (
            writing(place, wanted_bytes=x.nbytes, hint=TEMPORARY_HINT),
            tempfile.TemporaryFile(dir=place) as file,
        ):
            reserve(file, x.nbytes)
            mapped = np.memmap(file, np.float32, "r+", shape=x.shape)
        mapped[...] = x
        return mapped.view(np.ndarray)

    def inputs(self, layer: WeightLayer, quant: TensorQuant | None) -> Iterator[tuple[range, F32]]:
        """(pictures, x float32 [n, ..]) batch by batch, as the layer gets it."""
        assert self._values is not None, "a layer was reached"
        for rows, values in zip(self._batches, self._values, strict=True):
            x = values[layer.input]
            yield rows, x if quant is None else fake_quantize(x, quant)


def _problem(
    observed: Observed, layer: WeightLayer, flow: _Flow, quant: TensorQuant | None
) -> Problem:
    with one_blas_thread():
        match layer:
            case Conv():
                return _conv_problem(observed, layer, flow, quant)
            case Dense():
                return _dense_problem(observed, layer, flow, quant)
            case _:
                assert_never(layer)


def _conv_problem(
    observed: Observed, layer: Conv, flow: _Flow, quant: TensorQuant | None
) -> Problem:
    weights = observed.network.weights[layer.name]
    groups, size, filters = weights.shape
    outputs = observed.outputs[layer.name]
    mean = outputs.mean(axis=0, dtype=np.float64)
    spots = observed.spots[layer.name]
    per = spots.shape[1]
    made = (outputs - mean.astype(np.float32)).reshape(len(outputs), groups, filters)
    second, cross = np.zeros((groups, size, size)), np.zeros((groups, filters, size))
    total = np.zeros((groups, size))

    def gather(batch: tuple[range, F32]) -> tuple[F32, F32, F64]:
        rows, x = batch
        seen = columns_at(observed.graph, layer, x, spots[rows.start : rows.stop])
        y = made[rows.start * per : rows.stop * per]
        both = [seen[g].T @ seen[g] for g in range(groups)]
        mixed = [y[:, g].T @ seen[g] for g in range(groups)]
        return np.array(both), np.array(mixed), seen.sum(axis=1, dtype=np.float64)

    with threads(flow.workers) as pool:
        for both, mixed, seen in pool.map(gather, flow.inputs(layer, quant)):
            second += both
            cross += mixed
            total += seen
    count = len(outputs)
    average = total / count
    targets, moments = [], []
    for group in range(groups):
        covariance = second[group] / count - np.outer(average[group], average[group])
        weight = weights[group].T.astype(np.float64)
        gap = cross[group] / count - weight @ covariance
        # Constant inputs leave what rounding the products made: a matrix that is not positive.
        power = float(np.trace(second[group])) / count
        of_input = FullMoments(covariance, damping=_damping(size, count), floor=ROUNDING * power)
        target = weight.copy()
        target[:, of_input.order] += of_input.solve(gap[:, of_input.order])
        targets.append(target.astype(np.float32))
        moments.append(of_input)
    return Problem(
        layer=layer,
        targets=tuple(targets),
        moments=tuple(moments),
        input_mean=average,
        output_mean=mean,
    )


def _dense_problem(
    observed: Observed, layer: Dense, flow: _Flow, quant: TensorQuant | None
) -> Problem:
    x = np.concatenate([x for _, x in flow.inputs(layer, quant)])
    y, weight = observed.outputs[layer.name], observed.network.weights[layer.name][0]
    input_mean, output_mean = x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64)
    share = 1 / np.sqrt(len(x))
    samples = (x - input_mean) * share
    single = samples.astype(np.float32)
    moments: Moments
    damping = _damping(x.shape[1], len(x))
    if len(x) < x.shape[1]:
        moments = SampleMoments(samples, damping=damping)
    else:
        moments = FullMoments(samples.T @ samples, damping=damping)

    def regress(start: int) -> F32:
        """The targets of some filters."""
        some = slice(start, start + FILTERS)
        own = weight[:, some]
        residual = ((y[:, some] - output_mean[some]) * share).astype(np.float32) - single @ own
        target: F32 = own.T.copy()
        if isinstance(moments, SampleMoments):
            target[:, moments.order] += moments.solve_samples(residual)
        else:
            gap = (residual.T @ single)[:, moments.order]
            target[:, moments.order] += moments.solve(gap.astype(np.float64)).astype(np.float32)
        return target

    with threads(flow.workers) as pool:
        targets = list(pool.map(regress, range(0, weight.shape[1], FILTERS)))
    return Problem(
        layer=layer,
        targets=(np.concatenate(targets),),
        moments=(moments,),
        input_mean=input_mean[None],
        output_mean=output_mean,
    )


def _damping(inputs: int, samples: int) -> float:
    """A part of the mean diagonal, to be added to second moments: the fewer samples there are for
    each weight, the more of what they say is chance.
    """
    return min(inputs / samples, MOST_DAMPING)


def _with_bias(one: Decomposition, ordered: F32, problem: Problem) -> Decomposition:
    """With the bias that gives the float layer's mean output; ordered: weights [groups, K, N]."""
    mean = np.einsum("gk,gkn->gn", problem.input_mean, ordered.astype(np.float64)).reshape(-1)
    return replace(one, bias=(problem.output_mean - mean).astype(np.float32))


# --- filters ------------------------------------------------------------------------------


def _start_levels(target: F32, bases: int, seed: int) -> F64:
    """float64 [N, B], real coefficients to start from: how the levels of some filters lie, at the
    size of each.
    """
    some = target[:: -(-len(target) // TEMPLATES)]
    coefficients, _, scale = decompose_filters(some, bases=bases, seed=seed)
    spread = np.sqrt((some.astype(np.float64) ** 2).mean(axis=1))
    alive = spread > 0
    if not alive.any():
        return np.ones((len(target), bases))
    levels = coefficients * scale[:, None].astype(np.float64)
    template = np.median(levels[alive] / spread[alive, None], axis=0)
    size = np.sqrt(np.einsum("nk,nk->n", target, target, dtype=np.float64) / target.shape[1])
    return np.asarray(np.where(size > 0, size, 1)[:, None] * template)


def _in_onnx_order(graph: Graph, layer: WeightLayer, signs: U8) -> U8:
    """[N, K] from (KH, KW, CI), or the order of a flattened map, to ONNX's."""
    match layer:
        case Conv():
            shape = (*layer.kernel, layer.weight.shape[1])
        case Dense():
            channels, height, width = graph.map_shape(layer.input)
            shape = (height, width, channels)
        case _:
            assert_never(layer)
    maps = signs.reshape(len(signs), *shape).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(maps).reshape(signs.shape)
