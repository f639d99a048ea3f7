# SPDX-License-Identifier: 0BSD
"""Approximations of one graph for any setting of bases and bits, by the method asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from bdcc.approx.joint import Setting
from bdcc.approx.model import DecomposedModel, Decomposition, QuantizedModel, TensorQuant
from bdcc.approx.observe import observe
from bdcc.approx.quantize import TensorStats, choose_range, quantize_model
from bdcc.approx.sequence import Problem, SequenceDecomposer
from bdcc.data.pictures import Pictures, Progress
from bdcc.ir.graph import Graph, WeightLayer
from bdcc.pipeline.cache import Cache
from bdcc.pipeline.decomposing import calibrate_cached, decompose_cached
from bdcc.pipeline.options import CompileOptions


def outline(
    graph: Graph, bases: Mapping[str, int], bits: Mapping[str, int], *, dynamic: bool
) -> QuantizedModel:
    """A model of the sizes that a choice gives, without its values. bits: by tensor; dynamic:
    whether its ranges are.
    """
    layers = {
        layer.name: Decomposition(
            coefficients=np.ones((len(layer.weight), bases[layer.name]), np.int16),
            signs=np.zeros((len(layer.weight), layer.weight[0].size), np.uint8),
            scale=np.ones(len(layer.weight), np.float32),
            bias=layer.bias,
        )
        for layer in graph.weight_layers
        if layer.name in bases
    }
    delta = None if dynamic else np.float32(1)
    tensors = {t: TensorQuant(bits=count, delta=delta) for t, count in bits.items()}
    return QuantizedModel(decomposed=DecomposedModel(graph=graph, layers=layers), tensors=tensors)


KEPT = 2  # models: a search goes back to the one that it tries to lower
Built = tuple[QuantizedModel, Mapping[str, Problem]]


@dataclass(kw_only=True, eq=False)
class Models:
    """method aware: in sequence on the calibration pictures; plain: on the weights alone, with
    ranges of what the decomposed layers then read. The last models built are kept.

    timed: a context that adds up what decomposing takes.
    """

    graph: Graph
    calib: Pictures
    options: CompileOptions
    cache: Cache
    progress: Progress | None
    timed: Callable[[], AbstractContextManager[None]] = nullcontext
    _last: dict[Setting, Built] = field(default_factory=dict)

    @cached_property
    def _sequence(self) -> SequenceDecomposer:
        options, workers = self.options, self.options.worker_count
        return SequenceDecomposer(
            observed=observe(
                self.graph,
                self.calib,
                seed=options.seed,
                workers=workers,
                progress=self.progress,
            ),
            mode=options.range,
            seed=options.seed,
            workers=workers,
            progress=self.progress,
        )

    @property
    def method(self) -> str:
        return self.options.method

    @cached_property
    def key(self) -> str:
        """All that a model of a setting depends on."""
        options = self.options
        return repr((self.graph.sha256, self.calib.key, self.method, options.range, options.seed))

    def range_of(self, tensor: str, bits: int) -> TensorQuant:
        """How a tensor of the float network is quantized."""
        if self.method == "aware":
            return self._sequence.range_of(tensor, bits)
        stats = self._sequence.observed.stats[tensor]
        return choose_range(stats, bits=bits, mode=self.options.range)

    def single(self, layer: WeightLayer, bases: int) -> Decomposition:
        """A layer decomposed by itself, as the tables of the search want it."""
        if self.method == "aware":
            return self._sequence.single(layer, bases)
        one = decompose_cached(
            self.graph,
            {layer.name: bases},
            self.options,
            cache=self.cache,
            progress=self.progress,
        )
        return one.layers[layer.name]

    def weights(self, bases: Mapping[str, int]) -> DecomposedModel:
        """The decomposed weights for float activations."""
        with self.timed():
            if self.method == "aware":
                return self._sequence.decompose(bases, {})[0].decomposed
            return decompose_cached(
                self.graph, bases, self.options, cache=self.cache, progress=self.progress
            )

    def stats(self, model: DecomposedModel) -> Mapping[str, TensorStats]:
        """What the model's layers read, activations being float."""
        return calibrate_cached(
            model, self.calib, self.options, cache=self.cache, progress=self.progress
        )

    def fixed(self, bases: Mapping[str, int], bits: Mapping[str, int]) -> QuantizedModel:
        """B and Q by layer, as given; a tensor takes the most that its readers were given."""
        tensors: dict[str, int] = {}
        for layer in self.graph.weight_layers:
            if layer.name in bases:
                tensors[layer.input] = max(tensors.get(layer.input, 1), bits[layer.name])
        return self.build(Setting(bases=tuple(bases.items()), bits=tuple(tensors.items())))

    def build(self, setting: Setting) -> QuantizedModel:
        return self._built(setting)[0]

    def _built(self, setting: Setting) -> Built:
        built = self._last.pop(setting, None) or self._make(dict(setting.bases), dict(setting.bits))
        while len(self._last) >= KEPT:
            del self._last[next(iter(self._last))]
        self._last[setting] = built
        return built

    def _make(self, bases: Mapping[str, int], bits: Mapping[str, int]) -> Built:
        if self.method == "aware":
            with self.timed():
                return self._sequence.decompose(bases, bits)
        model = self.weights(bases)
        by_layer = {
            layer.name: bits[layer.input]
            for layer in self.graph.weight_layers
            if layer.name in bases
        }
        stats = self.stats(model)
        return quantize_model(model, stats=stats, bits=by_layer, mode=self.options.range), {}

    def lowered(self, setting: Setting, lowered: Setting) -> QuantizedModel:
        """The model of a setting with the choices changed in which `lowered` differs, and nothing
        else adapted to them.
        """
        model, problems = self._built(setting)
        layers, tensors = dict(model.decomposed.layers), dict(model.tensors)
        by_name = {layer.name: layer for layer in self.graph.weight_layers}
        for (name, before), (_, after) in zip(setting.bases, lowered.bases, strict=True):
            if before != after and name in problems:
                layers[name] = self._sequence.fit(problems[name], after)
            elif before != after:
                layers[name] = self.single(by_name[name], after)
        for (tensor, before), (_, after) in zip(setting.bits, lowered.bits, strict=True):
            if before != after:
                tensors[tensor] = self.range_of(tensor, after)
        decomposed = replace(model.decomposed, layers=layers)
        return QuantizedModel(decomposed=decomposed, tensors=tensors)
