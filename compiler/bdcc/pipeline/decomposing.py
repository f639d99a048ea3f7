# SPDX-License-Identifier: 0BSD
"""Decomposition and calibration through the cache: each layer, and each set of pictures, once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import calibrate
from bdcc.approx.model import DecomposedModel, Decomposition
from bdcc.approx.quantize import TensorStats
from bdcc.data.pictures import Pictures, Progress
from bdcc.ir.graph import Graph
from bdcc.pipeline.cache import Arrays, Cache
from bdcc.pipeline.options import CompileOptions


def decompose_cached(
    graph: Graph,
    bases: Mapping[str, int],
    options: CompileOptions,
    *,
    cache: Cache,
    progress: Progress | None,
) -> DecomposedModel:
    """The plain `decompose`, layer by layer, each kept by its weights, bases and seed."""
    chosen = [layer for layer in graph.weight_layers if layer.name in bases]
    total, before = sum(layer.weight.size for layer in chosen), 0
    layers: dict[str, Decomposition] = {}
    for layer in chosen:
        name, offset = layer.name, before

        def watch(stage: str, done: int, _: int, offset: int = offset) -> None:
            if progress is not None:
                progress(stage, offset + done, total)

        def make(name: str = name, watch: Progress = watch) -> Arrays:
            model = decompose(
                graph,
                bases={name: bases[name]},
                seed=options.seed,
                workers=options.worker_count,
                progress=watch,
            )
            one = model.layers[name]
            return {
                "coefficients": one.coefficients,
                "signs": one.signs,
                "scale": one.scale,
                "bias": one.bias,
            }

        state = hashlib.sha256(np.ascontiguousarray(layer.weight).reshape(-1).view(np.uint8).data)
        state.update(layer.bias.tobytes() + repr(layer.weight.shape).encode())
        key = (state.hexdigest(), bases[name], options.seed)
        arrays = cache.arrays("decompositions", *key, make=make)
        layers[name] = Decomposition(
            coefficients=arrays["coefficients"],
            signs=arrays["signs"],
            scale=arrays["scale"],
            bias=arrays["bias"],
        )
        before += layer.weight.size
    return DecomposedModel(graph=graph, layers=layers)


def model_key(model: DecomposedModel) -> str:
    """Hex digest of a decomposed model: of its ONNX file and of every decomposition."""
    state = hashlib.sha256(model.graph.sha256.encode())
    for name in sorted(model.layers):
        one = model.layers[name]
        state.update(name.encode())
        for array in (one.coefficients, one.signs, one.scale, one.bias):
            state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def calibrate_cached(
    model: DecomposedModel,
    pictures: Pictures,
    options: CompileOptions,
    *,
    cache: Cache,
    progress: Progress | None,
) -> Mapping[str, TensorStats]:
    """`calibrate`, kept by the model and the pictures."""

    def make() -> Arrays:
        stats = calibrate(model, pictures, workers=options.worker_count, progress=progress)
        arrays: dict[str, np.ndarray] = {"tensors": np.array(list(stats), dtype=np.str_)}
        for index, one in enumerate(stats.values()):
            arrays[f"extremes{index}"] = np.array([one.minimum, one.maximum], np.float64)
            arrays[f"sample{index}"] = one.sample
        return arrays

    arrays = cache.arrays("ranges", model_key(model), pictures.key, make=make)
    return {
        str(tensor): TensorStats(
            minimum=float(arrays[f"extremes{index}"][0]),
            maximum=float(arrays[f"extremes{index}"][1]),
            sample=arrays[f"sample{index}"],
        )
        for index, tensor in enumerate(arrays["tensors"])
    }
