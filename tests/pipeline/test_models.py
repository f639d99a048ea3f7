# SPDX-License-Identifier: 0BSD
"""Models of settings: the same whatever was built before, and changed in one place alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trained_network import Trained, options_for

from bdcc.approx.joint import Setting
from bdcc.approx.model import Decomposition, QuantizedModel, TensorQuant
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import find_target
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.cache import open_cache
from bdcc.pipeline.material import gather
from bdcc.pipeline.models import KEPT, Models, outline

LAYERS = ("conv1", "conv2", "fc3", "fc4")


@pytest.fixture(scope="module", params=["aware", "plain"])
def models(
    trained: Trained, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Models]:
    options = options_for(
        trained, Path("unused"), decompose=request.param, cache=tmp_path_factory.mktemp("cache")
    )
    graph = load_onnx(trained.model)
    with open_cache(options.cache) as cache:
        material = gather(
            graph, options, preprocess=options.preprocess(graph), cache=cache, progress=None
        )
        yield Models(graph=graph, calib=material.calib, options=options, cache=cache, progress=None)


def setting(models: Models, bases: tuple[int, ...], bits: tuple[int, ...]) -> Setting:
    tensors = [layer.input for layer in models.graph.weight_layers]
    return Setting(
        bases=tuple(zip(LAYERS, bases, strict=True)), bits=tuple(zip(tensors, bits, strict=True))
    )


def equal(one: Decomposition, other: Decomposition) -> bool:
    fields = ("coefficients", "signs", "scale", "bias")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


def differing(one: QuantizedModel, other: QuantizedModel) -> set[str]:
    """Names of layers and tensors that are not the same in both."""
    left, right = one.decomposed.layers, other.decomposed.layers
    layers = {name for name in left if not equal(left[name], right[name])}
    return layers | {name for name in one.tensors if one.tensors[name] != other.tensors[name]}


def test_a_model_does_not_depend_on_those_built_before(models: Models) -> None:
    wanted = setting(models, (2, 2, 2, 2), (5, 4, 4, 4))
    first = models.build(wanted)
    assert models.build(wanted) is first
    for count in range(KEPT):
        models.build(setting(models, (1, 1, 1, 1), (2 + count, 2, 2, 2)))
    again = models.build(wanted)
    assert again is not first
    assert differing(first, again) == set()


def test_what_the_search_chose_is_what_is_built_when_it_is_given(models: Models) -> None:
    by_layer = dict(zip(LAYERS, (5, 4, 3, 4), strict=True))
    searched = models.build(setting(models, (2, 1, 2, 2), tuple(by_layer.values())))
    models.build(setting(models, (1, 1, 1, 1), (2, 2, 2, 2)))
    given = models.fixed(dict(zip(LAYERS, (2, 1, 2, 2), strict=True)), by_layer)
    assert differing(searched, given) == set()


@pytest.mark.parametrize("dynamic", [False, True])
def test_an_outline_has_the_sizes_of_the_model(models: Models, dynamic: bool) -> None:
    wanted = setting(models, (2, 1, 2, 2), (5, 4, 3, 4))
    bases, bits = dict(wanted.bases), dict(wanted.bits)
    sketch = outline(models.graph, bases, bits, dynamic=dynamic)
    model = models.build(wanted)
    if dynamic:
        tensors = {t: TensorQuant(bits=q.bits, delta=None) for t, q in model.tensors.items()}
        model = replace(model, tensors=tensors)
    host = find_target("host")
    one, other = (make_plan(m, name="m", target=host) for m in (sketch, model))
    assert (one.blob_bytes, one.arena_bytes) == (other.blob_bytes, other.arena_bytes)


@pytest.mark.parametrize("name", LAYERS)
def test_a_lowered_choice_changes_nothing_else(models: Models, name: str) -> None:
    wanted = setting(models, (2, 2, 2, 2), (5, 4, 4, 4))
    whole = models.build(wanted)
    fewer = models.lowered(wanted, wanted.lowered(name, of_bits=False))
    assert differing(whole, fewer) == {name}
    assert fewer.decomposed.layers[name].bases == 1
    (tensor,) = [layer.input for layer in models.graph.weight_layers if layer.name == name]
    coarser = models.lowered(wanted, wanted.lowered(tensor, of_bits=True))
    assert differing(whole, coarser) == {tensor}
    assert coarser.tensors[tensor].bits == whole.tensors[tensor].bits - 1
    assert models.build(wanted) is whole  # and not the one kept
