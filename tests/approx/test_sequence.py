# SPDX-License-Identifier: 0BSD
"""Decomposition in sequence on small nets: means, orders of K, branches, and that it helps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from nets import Noise, conv, dense, miniature_alexnet, miniature_squeezenet

from bdcc.approx import sequence
from bdcc.approx.evaluate import (
    columns_at,
    fake_quantize,
    forward,
    logits_of,
    nhwc,
    prepare,
)
from bdcc.approx.model import DecomposedModel, Decomposition, QuantizedModel
from bdcc.approx.observe import fit_range, observe
from bdcc.approx.quantize import choose_range
from bdcc.approx.sensitivity import divergence, log_probabilities
from bdcc.approx.sequence import SequenceDecomposer
from bdcc.errors import ModelError
from bdcc.ir.graph import Conv, Flatten, Graph, Node, Relu, make_graph

FRESH = Noise(200, seeds=tuple(range(5000, 5200)))


def strided(*, dilation: int = 2) -> Graph:
    """Asymmetric pads, strides, dilation and groups before a dense layer on a map."""
    rng = np.random.default_rng(8)
    nodes: list[Node] = [
        conv(rng, "c1", "x", 3, 6, kernel=(3, 2), strides=(2, 1), pads=(1, 0, 2, 1)),
        Relu(name="r1", input="c1_out", output="v1"),
        conv(rng, "c2", "v1", 6, 9, groups=3, dilations=(dilation, 1), pads=(2, 1, 0, 1)),
        Relu(name="r2", input="c2_out", output="v2"),
        conv(rng, "c3", "v2", 9, 4, kernel=(1, 1), strides=(2, 3)),
        Flatten(name="f", input="c3_out", output="f"),
    ]
    graph = make_graph(
        name="g", input_name="x", input_shape=(3, 13, 13), output="f", nodes=tuple(nodes)
    )
    nodes.append(dense(rng, "fc", "f", int(np.prod(graph.shapes["f"])), 6))
    return make_graph(
        name="g", input_name="x", input_shape=(3, 13, 13), output="fc_out", nodes=tuple(nodes)
    )


NETS = {
    "alexnet": miniature_alexnet,
    "branches": miniature_squeezenet,
    "strided": strided,
}


def decomposer(graph: Graph, pictures: Noise, *, workers: int = 1) -> SequenceDecomposer:
    observed = observe(graph, pictures, seed=3, workers=workers)
    return SequenceDecomposer(observed=observed, mode="clip", seed=3, workers=workers)


def all_layers(graph: Graph, bases: int) -> dict[str, int]:
    return {layer.name: bases for layer in graph.weight_layers}


def all_tensors(graph: Graph, bits: int) -> dict[str, int]:
    return {layer.input: bits for layer in graph.weight_layers}


def tensors_of(model: QuantizedModel | Graph, pictures: Noise) -> Mapping[str, np.ndarray]:
    """Every tensor, node by node, so that no Relu overwrites what it reads; of a graph: the float
    network's."""
    if isinstance(model, Graph):
        none = DecomposedModel(graph=model, layers={})
        return tensors_of(QuantizedModel(decomposed=none, tensors={}), pictures)
    graph, network = model.graph, prepare(model.decomposed)
    values = {graph.input: nhwc(pictures.batch(range(len(pictures))))}
    for node in graph.nodes:
        values = forward(network, [node], values, model.tensors)
    return values


def divergence_of(model: QuantizedModel) -> float:
    graph = model.graph
    outputs = (logits_of(graph, tensors_of(each, FRESH)) for each in (graph, model))
    p, q = (log_probabilities(graph, y) for y in outputs)
    return float(divergence(p, q).mean())


def same(one: Decomposition, other: Decomposition) -> bool:
    return all(
        getattr(one, name).tobytes() == getattr(other, name).tobytes()
        for name in ("coefficients", "signs", "scale", "bias")
    )


# --- what every decomposition keeps -------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("count", [20, 90])
def test_many_bases_are_the_float_network(net: str, count: int) -> None:
    """With fewer pictures than a dense layer has inputs, and with more: orders of K included."""
    graph = NETS[net]()
    model, problems = decomposer(graph, Noise(count)).decompose(all_layers(graph, 7), {})
    assert model.tensors == {}
    assert {one.bases for one in model.decomposed.layers.values()} == {7}
    assert list(problems) == [layer.name for layer in graph.weight_layers]
    wanted, found = tensors_of(graph, FRESH), tensors_of(model, FRESH)
    for layer in graph.weight_layers:
        y, z = wanted[layer.output], found[layer.output]
        assert np.square(y - z).mean() < (0.05 if count == 20 else 0.01) * y.var()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bits", [None, 3])
@pytest.mark.parametrize("count", [20, 90])
def test_the_mean_output_of_every_layer_is_the_float_one(
    net: str, bits: int | None, count: int
) -> None:
    graph, pictures = NETS[net](), Noise(count)
    quants = {} if bits is None else all_tensors(graph, bits)
    model, _ = decomposer(graph, pictures).decompose(all_layers(graph, 2), quants)
    wanted, found = tensors_of(graph, pictures), tensors_of(model, pictures)
    for layer in graph.weight_layers:
        y, z = (one[layer.output].reshape(-1, len(layer.bias)) for one in (wanted, found))
        np.testing.assert_allclose(z.mean(axis=0), y.mean(axis=0), atol=2e-5 * y.std())
        assert np.abs(z - y).max() > 0.01 * y.std()  # it is not trivially so
        own = model.decomposed.layers[layer.name]
        assert (own.bias != layer.bias).any()


@pytest.mark.parametrize("net", ["alexnet", "branches"])
def test_workers_change_nothing(net: str) -> None:
    graph, found = NETS[net](), []
    for workers in (1, 2, 3):
        some = decomposer(graph, Noise(40), workers=workers)
        model, problems = some.decompose(all_layers(graph, 3), all_tensors(graph, 4))
        layer = graph.weight_layers[1]
        singles = [some.single(layer, 2), some.fit(problems[layer.name], 2)]
        found.append((model.tensors, [*model.decomposed.layers.values(), *singles]))
    for tensors, layers in found[1:]:
        assert tensors == found[0][0]
        assert all(same(a, b) for a, b in zip(layers, found[0][1], strict=True))


def test_what_was_decomposed_before_changes_nothing() -> None:
    """One decomposer serves many settings, in any order."""
    graph = miniature_alexnet()
    busy = decomposer(graph, Noise(40))
    for bases, bits in ((1, 2), (4, 8), (3, 4)):
        for layer in graph.weight_layers:
            busy.single(layer, bases)
        last, _ = busy.decompose(all_layers(graph, bases), all_tensors(graph, bits))
    fresh, _ = decomposer(graph, Noise(40)).decompose(all_layers(graph, 3), all_tensors(graph, 4))
    assert fresh.tensors == last.tensors
    for name, one in fresh.decomposed.layers.items():
        assert same(one, last.decomposed.layers[name])


@pytest.mark.parametrize("net", ["alexnet", "branches"])
def test_layers_kept_float(net: str) -> None:
    """They are left out, and the layers behind them make up for those before."""
    graph = NETS[net]()
    kept = graph.weight_layers[1]
    bases = {name: 2 for name in all_layers(graph, 2) if name != kept.name}
    quants = {layer.input: 3 for layer in graph.weight_layers if layer.name in bases}
    model, problems = decomposer(graph, Noise(40)).decompose(bases, quants)
    assert set(model.decomposed.layers) == set(problems) == set(bases)
    weights = prepare(model.decomposed).weights[kept.name]
    float_weights = prepare(DecomposedModel(graph=graph, layers={})).weights[kept.name]
    np.testing.assert_array_equal(weights, float_weights)
    wanted, found = tensors_of(graph, Noise(40)), tensors_of(model, Noise(40))
    last = graph.weight_layers[-1]
    np.testing.assert_allclose(
        found[last.output].mean(axis=0), wanted[last.output].mean(axis=0), atol=1e-4
    )


def test_nothing_to_decompose() -> None:
    graph = miniature_alexnet()
    model, problems = decomposer(graph, Noise(3)).decompose({}, {})
    assert (model.decomposed.layers, model.tensors, problems) == ({}, {}, {})


@pytest.mark.parametrize("count", [1, 2, 17])
def test_few_pictures_are_enough_to_run(count: int) -> None:
    """One picture: dense layers see no variance at all."""
    graph = miniature_alexnet()
    some = decomposer(graph, Noise(count), workers=2)
    model, _ = some.decompose(all_layers(graph, 4), all_tensors(graph, 8))
    found, wanted = (tensors_of(each, Noise(count)) for each in (model, graph))
    for layer in graph.weight_layers:
        y, z = wanted[layer.output], found[layer.output]
        assert np.square(y - z).mean() < 0.1 * np.square(y).mean()


def test_large_maps_are_kept_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = miniature_squeezenet()
    found = []
    for room in (sequence.IN_MEMORY, 1000):
        monkeypatch.setattr(sequence, "IN_MEMORY", room)
        some = decomposer(graph, Noise(30), workers=2)
        found.append(some.decompose(all_layers(graph, 2), all_tensors(graph, 4))[0])
    for name, one in found[0].decomposed.layers.items():
        other = found[1].decomposed.layers[name]
        np.testing.assert_array_equal(one.signs, other.signs)
        np.testing.assert_array_equal(one.bias, other.bias)


class Constant(Noise):
    """Every picture the same in every pixel."""

    def batch(self, indices) -> np.ndarray:
        return np.full((len(indices), 3, 13, 13), 0.7, np.float32)


@pytest.mark.parametrize("pictures", [Noise(1), Constant(8)], ids=["one", "constant"])
@pytest.mark.parametrize("seed", range(20))
def test_a_conv_without_variance(pictures: Noise, seed: int) -> None:
    """A map of one pixel, as LeNet's last conv has, or flat pictures: moments are rounding only."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [
        conv(rng, "c1", "x", 3, 40, kernel=(13, 13)),
        Relu(name="r1", input="c1_out", output="v1"),
        conv(rng, "c2", "v1", 40, 5, kernel=(1, 1)),
    ]
    graph = make_graph(
        name="g", input_name="x", input_shape=(3, 13, 13), output="c2_out", nodes=tuple(nodes)
    )
    model, _ = decomposer(graph, pictures).decompose(all_layers(graph, 3), all_tensors(graph, 8))
    found, wanted = (tensors_of(each, pictures)["c2_out"] for each in (model, graph))
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()  # the bias says it all


def test_constant_inputs_and_dead_filters() -> None:
    graph = miniature_alexnet()
    for layer in graph.weight_layers:
        layer.weight[1] = 0
        layer.bias[1] = -1
    model, _ = decomposer(graph, Noise(40)).decompose(all_layers(graph, 2), all_tensors(graph, 4))
    for layer in graph.weight_layers:
        one = model.decomposed.layers[layer.name]
        assert np.isfinite(one.bias).all()
        assert np.isfinite(one.weights()).all()
        assert np.abs(one.weights()[1]).max() < 1e-3
        assert one.bias[1] == pytest.approx(-1, abs=1e-3)


# --- ranges -------------------------------------------------------------------------------


def unexplained(graph: Graph, name: str, pictures: Noise, quant) -> float:
    """By the definition: each filter's output against a line through its quantized one."""
    layer = next(one for one in graph.weight_layers if one.name == name)
    network = prepare(DecomposedModel(graph=graph, layers={}))
    x = tensors_of(graph, pictures)[layer.input]
    lost = total = 0.0
    groups = x[None]
    if isinstance(layer, Conv):
        height, width = graph.shapes[layer.output][1:]
        where = np.tile(np.arange(height * width), (len(x), 1))
        groups = columns_at(graph, layer, x, where)
    for seen, weight in zip(groups, network.weights[name], strict=True):
        for filter in weight.T:
            y, z = seen @ filter, fake_quantize(seen, quant) @ filter
            line = np.polyfit(z, y, 1)
            lost += float(np.square(y - np.polyval(line, z)).sum())
            total += float(np.square(y - y.mean()).sum())
    return lost / total


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("bits", [2, 4])
def test_ranges_explain_no_less_than_where_they_start(net: str, bits: int) -> None:
    graph, pictures, moved = NETS[net](), Noise(30), 0
    observed = observe(graph, pictures, seed=0, workers=1)
    for tensor in all_tensors(graph, bits):
        start = choose_range(observed.stats[tensor], bits=bits, mode="clip")
        found = fit_range(observed, tensor, bits=bits, mode="clip")
        readers = [one.name for one in graph.weight_layers if one.input == tensor]
        losses = [
            sum(unexplained(graph, name, pictures, quant) for name in readers)
            for quant in (start, found)
        ]
        assert losses[1] <= losses[0] * (1 + 1e-3)
        assert (found.bits, found.zero_point) == (bits, start.zero_point)
        moved += found != start
    assert moved
    for mode in ("minmax", "dynamic"):
        for tensor in all_tensors(graph, bits):
            given = choose_range(observed.stats[tensor], bits=bits, mode=mode)
            assert fit_range(observed, tensor, bits=bits, mode=mode) == given


# --- what it is for -----------------------------------------------------------------------


def test_in_sequence_is_closer_than_layer_by_layer() -> None:
    """On pictures that the decomposition has not seen; each layer alone: on its float inputs."""
    ratios = []
    for seed, (bases, bits) in itertools.product(range(3), ((2, 3), (3, 4))):
        graph = miniature_alexnet(seed=seed)
        some = decomposer(graph, Noise(150))
        sequence, _ = some.decompose(all_layers(graph, bases), all_tensors(graph, bits))
        layers = {layer.name: some.single(layer, bases) for layer in graph.weight_layers}
        alone = QuantizedModel(
            decomposed=DecomposedModel(graph=graph, layers=layers), tensors=sequence.tensors
        )
        ratios.append(divergence_of(sequence) / divergence_of(alone))
    assert np.exp(np.log(ratios).mean()) < 0.9, ratios


def test_values_that_squared_errors_cannot_tell_apart_are_refused() -> None:
    pictures = Noise(8)

    def louder(*names: str) -> Graph:
        graph = strided()
        nodes = [
            replace(node, weight=node.weight * np.float32(1e9))
            if isinstance(node, Conv) and node.name in names
            else node
            for node in graph.nodes
        ]
        return replace(graph, nodes=tuple(nodes))

    observe(louder("c1"), pictures, seed=0, workers=1)
    with pytest.raises(ModelError, match=r"^c2: on the pictures it reads or makes values of"):
        observe(louder("c1", "c2"), pictures, seed=0, workers=1)
