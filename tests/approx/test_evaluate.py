# SPDX-License-Identifier: 0BSD
"""The fast evaluator against the oracle: as close as another order of summation allows."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
from nets import Noise, conv, dense, miniature_alexnet, miniature_squeezenet

from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import (
    calibrate,
    fake_quantize,
    first_classes,
    forward,
    in_onnx_order,
    nhwc,
    prepare,
    ranks_of,
)
from bdcc.approx.model import DecomposedModel, TensorQuant
from bdcc.approx.quantize import dequantize, dynamic_range, quantize_array, quantize_model
from bdcc.approx.simulate import run_exact, run_float
from bdcc.approx.tables import compute_logits
from bdcc.ir.graph import (
    AveragePool,
    Flatten,
    GlobalAveragePool,
    Graph,
    Lrn,
    MaxPool,
    Relu,
    Softmax,
    infer_shapes,
    make_graph,
)


def every_operator() -> Graph:
    rng = np.random.default_rng(20)
    nodes = [
        AveragePool(
            name="a", input="x", output="a", kernel=(3, 2), strides=(1, 2), pads=(1, 0, 2, 1)
        ),
        conv(rng, "c1", "a", 3, 6, dilations=(2, 1), pads=(2, 1, 0, 0)),
        Lrn(name="l1", input="c1_out", output="l1", size=4, alpha=0.3, beta=1.25),
        MaxPool(name="m", input="l1", output="m", kernel=(3, 3), strides=(2, 2), ceil_mode=True),
        conv(rng, "c2", "m", 6, 4, kernel=(1, 1), groups=2, strides=(2, 1)),
        AveragePool(
            name="b",
            input="c2_out",
            output="b",
            kernel=(2, 2),
            pads=(1, 1, 0, 0),
            count_include_pad=True,
            dilations=(1, 2),
        ),
        Softmax(name="s1", input="b", output="s1"),
        Flatten(name="f", input="s1", output="f"),
        Relu(name="r", input="f", output="r"),
        Lrn(name="l2", input="r", output="l2", size=3, alpha=0.5, beta=0.5),
        dense(rng, "d", "l2", 0, 8),
    ]
    size = int(np.prod(infer_shapes(nodes[:-1], "x", (3, 13, 13))["l2"]))
    nodes[-1] = dense(rng, "d", "l2", size, 8)
    return make_graph(
        name="ops", input_name="x", input_shape=(3, 13, 13), output="d_out", nodes=nodes
    )


def test_every_operator_and_tensor() -> None:
    for graph in (every_operator(), miniature_alexnet(), miniature_squeezenet()):
        batch = Noise(3).batch(range(3))
        values = forward(
            prepare(DecomposedModel(graph=graph, layers={})),
            graph.nodes,
            {graph.input: nhwc(batch)},
            {},
        )
        exact = [run_float(graph, x) for x in batch]
        for node in graph.nodes:
            # A Relu overwrites its layer's output where nobody else reads it.
            if [type(n) for n in graph.consumers(node.output)] == [Relu]:
                continue
            got = values[node.output]
            got = (
                got.transpose(0, 3, 1, 2)
                if got.ndim == 4
                else in_onnx_order(graph, node.output, got)
            )
            want = np.stack([e[node.output] for e in exact])
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=node.name)


def test_global_average_and_map_outputs() -> None:
    rng = np.random.default_rng(21)
    nodes = [conv(rng, "c", "x", 3, 6), GlobalAveragePool(name="g", input="c_out", output="g")]
    for output in ("g", "c_out"):
        graph = make_graph(
            name="gap", input_name="x", input_shape=(3, 13, 13), output=output, nodes=nodes
        )
        batch = Noise(11).batch(range(11))
        network = prepare(DecomposedModel(graph=graph, layers={}))
        got = compute_logits(network, batch, np.arange(11), quants={})
        want = np.stack([run_float(graph, x)[output].reshape(-1) for x in batch])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


NETS = {"chain": miniature_alexnet, "branches": miniature_squeezenet}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mode", ["clip", "minmax", "dynamic"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_models_are_judged_like_the_oracle_judges_them(mode, bits: int, net: str) -> None:
    graph, pictures = NETS[net](), Noise(40)
    model = decompose(graph, bases={n.name: 3 for n in graph.weight_layers}, workers=1)
    stats = calibrate(model, Noise(8))
    quantized = quantize_model(
        model, stats=stats, bits={n.name: bits for n in graph.weight_layers}, mode=mode
    )
    batch = pictures.batch(range(40))
    fast = compute_logits(prepare(model), batch, np.arange(40), quants=quantized.tensors)
    exact = np.stack([run_exact(quantized, x).values[graph.output] for x in batch])
    # A value at a rounding edge may take the neighbouring code: rare, and never large.
    difference = np.abs(fast - exact).max(axis=1)
    assert np.median(difference) < 1e-5
    assert difference.max() < 0.05
    assert (first_classes(fast) == first_classes(exact)).mean() >= 0.95


def test_a_layer_left_float_reads_floats() -> None:
    """Also where it shares its input with a layer that reads codes."""
    graph, pictures = miniature_squeezenet(), Noise(8)
    readers = [[n for n in graph.weight_layers if n.input == m.input] for m in graph.weight_layers]
    left = next(shared[0].name for shared in readers if len(shared) > 1)
    bases = {n.name: 3 for n in graph.weight_layers if n.name != left}
    model = decompose(graph, bases=bases, workers=1)
    quantized = quantize_model(
        model, stats=calibrate(model, pictures), bits=dict.fromkeys(bases, 2), mode="clip"
    )
    batch = pictures.batch(range(8))
    fast = compute_logits(prepare(model), batch, np.arange(8), quants=quantized.tensors)
    exact = np.stack([run_exact(quantized, x).values[graph.output] for x in batch])
    assert np.median(np.abs(fast - exact).max(axis=1)) < 1e-5


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_fake_quantization_is_the_quantizer(bits: int) -> None:
    x = np.random.default_rng(22).normal(size=(5, 3, 2, 4)).astype(np.float32)
    x[0], x[1], x[2] = 0.0, np.abs(x[1]), 1e-38 * x[2]
    static = TensorQuant(bits=bits, delta=np.float32(0.21), zero_point=1)
    codes = quantize_array(x, static)
    np.testing.assert_array_equal(fake_quantize(x, static), dequantize(codes, np.float32(0.21), 1))
    got = fake_quantize(x, TensorQuant(bits=bits, delta=None))
    for picture, own in zip(x, got, strict=True):
        delta, zero, _ = dynamic_range(picture, bits)
        resolved = TensorQuant(bits=bits, delta=delta, zero_point=zero)
        want = dequantize(quantize_array(picture, resolved), delta, zero)
        np.testing.assert_array_equal(own, want)


def test_what_others_read_is_not_overwritten() -> None:
    """A layer's output with two readers, and values handed in, survive a Relu."""
    rng = np.random.default_rng(23)
    nodes = (
        conv(rng, "c", "x", 3, 4),
        Relu(name="r", input="c_out", output="y"),
        Flatten(name="f", input="c_out", output="f"),
    )
    graph = Graph(
        name="fork",
        input="x",
        output="y",
        nodes=nodes,
        shapes=infer_shapes(nodes, "x", (3, 13, 13)),
    )
    network = prepare(DecomposedModel(graph=graph, layers={}))
    x = nhwc(Noise(2).batch(range(2)))
    values = forward(network, nodes, {"x": x}, {})
    assert (values["c_out"] < 0).any()
    assert (values["f"] < 0).any()
    chain = miniature_alexnet()
    network = prepare(DecomposedModel(graph=chain, layers={}))
    given = {"conv1_out": np.full((1, 7, 7, 8), -1, np.float32)}
    forward(network, chain.nodes[1:2], given, {})
    assert (given["conv1_out"] == -1).all()


def test_calibration_sees_what_each_layer_reads() -> None:
    graph, pictures = miniature_alexnet(), Noise(19)
    model = decompose(graph, bases={"conv1": 2, "conv3": 2, "fc1": 2}, workers=1)
    seen: list[tuple[str, int, int]] = []
    stats = calibrate(model, pictures, progress=lambda *step: seen.append(step))
    assert set(stats) == {"x", "v2", "f"}
    assert seen[-1] == ("calibrate", 19, 19)
    approximate = Graph(
        name="a",
        input=graph.input,
        output=graph.output,
        shapes=graph.shapes,
        nodes=tuple(_with_weights(model, node) for node in graph.nodes),
    )
    traces = [run_float(approximate, x) for x in pictures.batch(range(19))]
    for tensor, seen_stats in stats.items():
        values = np.stack([trace[tensor] for trace in traces])
        assert seen_stats.minimum == pytest.approx(values.min(), rel=1e-5, abs=1e-6)
        assert seen_stats.maximum == pytest.approx(values.max(), rel=1e-5)
        np.testing.assert_allclose(seen_stats.sample, np.sort(values.ravel()), rtol=1e-4, atol=1e-5)


def test_calibration_is_the_same_on_any_number_of_cores() -> None:
    """Of a product this large two threads of BLAS make other sums than one."""
    rng = np.random.default_rng(0)
    nodes = [
        Flatten(name="flatten", input="x", output="f"),
        dense(rng, "fc1", "f", 512, 96),
        dense(rng, "fc2", "fc1_out", 96, 5),
    ]
    graph = make_graph(
        name="wide", input_name="x", input_shape=(8, 8, 8), output="fc2_out", nodes=nodes
    )
    model = decompose(graph, bases={"fc2": 2}, workers=1)
    found = []
    for cores in (1, 2):
        with threadpoolctl.threadpool_limits(cores, user_api="blas"):
            found.append(calibrate(model, Noise(130, (8, 8, 8)), workers=cores)["fc1_out"])
    assert found[0].sample.tobytes() == found[1].sample.tobytes()


def _with_weights(model: DecomposedModel, node):
    layer = model.layers.get(node.name)
    if layer is None:
        return node
    rest = {f: getattr(node, f) for f in node.__slots__ if f not in ("weight", "bias")}
    weight = layer.weights().reshape(node.weight.shape)
    return type(node)(weight=weight, bias=layer.bias, **rest)


def test_ranks_count_what_comes_before() -> None:
    nan, inf = np.nan, np.inf
    logits = np.array(
        [[3, 1, 2], [1, 1, 1], [1, 1, 1], [nan, 0, nan], [nan, 0, -1], [inf, inf, 0]], np.float32
    )
    labels = np.array([1, 0, 2, 1, 0, 1])
    np.testing.assert_array_equal(ranks_of(logits, labels), [2, 0, 2, 0, 2, 1])
    np.testing.assert_array_equal(first_classes(logits), [0, 0, 0, 1, 1, 0])
    rng = np.random.default_rng(24)
    logits = rng.integers(0, 5, size=(50, 9)).astype(np.float32)
    labels = rng.integers(0, 9, size=50)
    for row, label, rank in zip(logits, labels, ranks_of(logits, labels), strict=True):
        assert sorted(range(9), key=lambda c: (-row[c], c)).index(label) == rank
