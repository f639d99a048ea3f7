# SPDX-License-Identifier: 0BSD
"""Whole models: shapes against onnx, values layer by layer against onnxruntime, names, elision."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, inliner, numpy_helper, shape_inference
from onnx_reference import assert_close, check_against_onnxruntime, run_onnxruntime

import zoo
from bdcc.approx.simulate import run_float
from bdcc.ir.graph import AveragePool, Concat, Conv, Dense, Flatten, GlobalAveragePool, Lrn
from bdcc.ir.onnx_import import load_onnx


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_tensor_equals_onnxruntime(name: str, tmp_path: Path) -> None:
    check_against_onnxruntime(zoo.MODELS[name](), tmp_path / f"{name}.onnx")


@pytest.mark.parametrize("seed", range(12))
def test_random_branches_equal_onnxruntime(seed: int, tmp_path: Path) -> None:
    graph = check_against_onnxruntime(zoo.random_branches(seed=seed), tmp_path / "m.onnx")
    assert any(isinstance(node, Concat) for node in graph.nodes)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_shapes_equal_onnx_inference(name: str, tmp_path: Path) -> None:
    model = zoo.MODELS[name]()
    onnx.save(model, tmp_path / "model.onnx")
    graph = load_onnx(tmp_path / "model.onnx")
    if model.functions:
        model = inliner.inline_local_functions(model)
    batch = next(v for v in model.graph.input if v.name == graph.input).type.tensor_type.shape
    batch.dim[0].dim_value = 1
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    known = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    unknown = [tensor for tensor in graph.shapes if not known[tensor] or 0 in known[tensor]]
    # onnx cannot follow the batch through Gather and Concat to the vectors behind; onnxruntime
    # judges the shapes of these (above).
    assert bool(unknown) == name.startswith("torchscript")
    assert all(len(graph.shapes[tensor]) == 1 for tensor in unknown)
    for tensor in graph.shapes.keys() - unknown:
        assert known[tensor] == (1, *graph.shapes[tensor]), tensor


def test_the_topologies_are_the_real_ones(tmp_path: Path) -> None:
    """Known extents, counted by hand from the papers and from torchvision."""
    expected = {
        "bvlc_227": (("norm1_out", 55), ("pool1_out", 27), ("pool2_out", 13), ("pool5_out", 6)),
        "bvlc_224": (("norm1_out", 54), ("pool1_out", 26), ("pool2_out", 12), ("pool5_out", 6)),
        "pool_norm_227": (("norm1_out", 27), ("norm2_out", 13), ("pool5_out", 6)),
        "squeezenet": (("conv1_out", 111), ("pool1", 55), ("pool4", 27), ("pool8", 13)),
        "light_bvlc": (("r0", 54), ("r3", 26), ("r14", 6)),
        "dynamo": (("conv2d", 55), ("max_pool2d", 27), ("max_pool2d_2", 6), ("avg_pool2d", 6)),
    }
    for name, extents in expected.items():
        onnx.save(zoo.MODELS[name](), tmp_path / "model.onnx")
        shapes = load_onnx(tmp_path / "model.onnx").shapes
        for tensor, extent in extents:
            assert shapes[tensor][1:] == (extent, extent), (name, tensor)


def test_node_kinds_of_torchvision_as_exported(tmp_path: Path) -> None:
    """Shape, Gather, Unsqueeze, Concat, Identity and local functions leave nothing behind."""
    kinds = {}
    for name in ("torchscript", "torchscript_global", "dynamo", "dynamo_functions"):
        onnx.save(zoo.MODELS[name](), tmp_path / "model.onnx")
        kinds[name] = [type(node) for node in load_onnx(tmp_path / "model.onnx").nodes]
    assert kinds["torchscript"] == kinds["dynamo"] == kinds["dynamo_functions"]
    assert len(kinds["dynamo"]) == 5 + 5 + 3 + 1 + 1 + 3 + 2  # conv relu pool avg flatten fc relu
    assert kinds["dynamo"].count(AveragePool) == 1
    assert kinds["torchscript_global"].count(GlobalAveragePool) == 1


def test_light_bvlc_alexnet_as_it_is(tmp_path: Path) -> None:
    graph = load_onnx(zoo.LIGHT_BVLC)
    assert graph.input == "data_0"
    assert graph.shapes["data_0"] == (3, 224, 224)
    assert graph.output == "prob_1"
    assert graph.shapes["prob_1"] == (1000,)
    assert sum(isinstance(node, Lrn) for node in graph.nodes) == 2
    assert [layer.weight.shape for layer in graph.weight_layers] == [
        *((96, 3, 11, 11), (256, 48, 5, 5), (384, 256, 3, 3), (384, 192, 3, 3), (256, 192, 3, 3)),
        *((4096, 9216), (4096, 4096), (1000, 4096)),
    ]
    for layer in graph.weight_layers:
        assert np.all(layer.weight == np.float32(0.02))
        assert np.all(layer.bias == np.float32(0.02))
    assert graph.sha256 == hashlib.sha256(zoo.LIGHT_BVLC.read_bytes()).hexdigest()
    assert graph.name == "light_bvlc_alexnet"


def test_an_elided_node_lets_its_readers_read_the_tensor_before(tmp_path: Path) -> None:
    onnx.save(zoo.alexnet(norm_first=True, shrink=16), tmp_path / "alexnet.onnx")
    graph = load_onnx(tmp_path / "alexnet.onnx")
    (fc7,) = (node for node in graph.nodes if node.name == "fc7")
    assert fc7.input == "relu6_out"  # the file says drop6_out
    assert "drop6_out" not in graph.shapes


def test_the_output_of_an_elided_node_is_the_surviving_tensor(tmp_path: Path) -> None:
    b = zoo.Builder()
    b.node("Relu", ["x"], "r")
    b.node("Identity", ["r"], "i")
    b.node("Dropout", ["i"], "y")
    onnx.save(b.model(input="x", shape=(1, 2, 3, 3), output="y"), tmp_path / "m.onnx")
    assert load_onnx(tmp_path / "m.onnx").output == "r"


def test_layer_names_are_the_nodes_else_the_outputs_and_unique(tmp_path: Path) -> None:
    b = zoo.Builder()
    for index, name in enumerate(("same", "same", "", "same_2")):
        b.node("Relu", [f"t{index}" if index else "x"], f"t{index + 1}", name=name)
    onnx.save(b.model(input="x", shape=(1, 2, 3, 3), output="t4"), tmp_path / "m.onnx")
    names = [node.name for node in load_onnx(tmp_path / "m.onnx").nodes]
    assert names == ["same", "same_2", "t3", "same_2_2"]


def test_what_the_output_does_not_need_is_dropped_before_it_can_be_refused(tmp_path: Path) -> None:
    """A tensor read twice, once by an operator that bdcc does not know, in a dead branch."""
    b = zoo.Builder()
    b.node("Relu", ["x"], "r")
    b.node("Sigmoid", ["r"], "dead")
    b.node("MaxPool", ["r"], "y", kernel_shape=[2, 2])
    graph = check_against_onnxruntime(
        b.model(input="x", shape=(1, 2, 3, 3), output="y"), tmp_path / "m.onnx"
    )
    assert [node.output for node in graph.nodes] == ["r", "y"]


def test_layers_that_share_a_weight_share_its_array(tmp_path: Path) -> None:
    b = zoo.Builder()
    shared = b.weights("w", 4, 4, 3, 3)
    b.node("Conv", ["x", shared], "a", pads=[1, 1, 1, 1])
    b.node("Conv", ["a", shared], "y")
    graph = check_against_onnxruntime(
        b.model(input="x", shape=(1, 4, 5, 5), output="y"), tmp_path / "m.onnx"
    )
    first, second = graph.weight_layers
    assert first.weight is second.weight


def test_external_data(tmp_path: Path) -> None:
    """The same graph, and a fingerprint that follows the weights out of the file."""
    inside, outside = tmp_path / "inside.onnx", tmp_path / "outside.onnx"
    model = zoo.batchnorm_net()
    onnx.save(model, inside)
    onnx.save(model, outside, save_as_external_data=True, location="w.bin", size_threshold=64)
    assert (tmp_path / "w.bin").stat().st_size > 1000
    expected, found = load_onnx(inside), load_onnx(outside)
    for a, b in zip(expected.weight_layers, found.weight_layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "w.bin").write_bytes(bytes(data))
    assert load_onnx(outside).sha256 != found.sha256


def test_float_data_and_raw_data_are_the_same(tmp_path: Path) -> None:
    model = zoo.batchnorm_net()
    onnx.save(model, tmp_path / "raw.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(
                helper.make_tensor(tensor.name, TensorProto.FLOAT, values.shape, values.ravel())
            )
    onnx.save(model, tmp_path / "listed.onnx")
    raw, listed = load_onnx(tmp_path / "raw.onnx"), load_onnx(tmp_path / "listed.onnx")
    for a, b in zip(raw.weight_layers, listed.weight_layers, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
        np.testing.assert_array_equal(a.bias, b.bias)


def test_batch_normalization_is_folded_in_float64(tmp_path: Path) -> None:
    model = zoo.batchnorm_net(seed=3)
    onnx.save(model, tmp_path / "m.onnx")
    graph = load_onnx(tmp_path / "m.onnx")
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    for n, layer in enumerate(graph.weight_layers[:3]):
        assert isinstance(layer, Conv)
        assert layer.name == f"node_conv2d_{n}"
        assert layer.output == f"getitem_{n}"
        for c in range(layer.weight.shape[0]):
            epsilon = float(np.float32(1e-3))
            a = values[f"b{n}.weight"][c] / np.sqrt(values[f"b{n}.var"][c] + epsilon)
            bias = values[f"b{n}.bias"][c] - a * values[f"b{n}.mean"][c]
            np.testing.assert_array_equal(
                layer.weight[c], (a * values[f"c{n}.weight"][c]).astype(np.float32)
            )
            assert layer.bias[c] == np.float32(bias)


@pytest.mark.real
def test_the_trained_alexnet(shared: Path) -> None:
    path = shared / "models/alexnet.onnx"
    graph = load_onnx(path)
    kinds = [type(node).__name__ for node in graph.nodes]
    assert len(graph.weight_layers) == 8
    assert kinds[:4] == ["Conv", "Relu", "MaxPool", "Lrn"]
    assert sum(layer.weight.size for layer in graph.weight_layers) == 57_686_048
    x = np.random.default_rng(0).normal(scale=60, size=(3, 227, 227)).astype(np.float32)
    found = run_float(graph, x)
    expected = run_onnxruntime(onnx.load(path), x[None], [node.output for node in graph.nodes])
    for name, values in expected.items():
        assert_close(name, found[name], values[0])
    (flatten,) = (node for node in graph.nodes if isinstance(node, Flatten))
    assert graph.map_shape(flatten.output) == (256, 6, 6)
    assert isinstance(graph.nodes[-2], Dense)


@pytest.mark.real
def test_the_trained_squeezenet(shared: Path) -> None:
    path = shared / "models/squeezenet1_0.onnx"
    graph = load_onnx(path)
    kinds = [type(node).__name__ for node in graph.nodes]
    assert (kinds.count("Conv"), kinds.count("Concat"), kinds.count("MaxPool")) == (26, 8, 3)
    assert [graph.shapes[f"pool{n}"] for n in (1, 4, 8)] == [
        *((96, 55, 55), (256, 27, 27), (512, 13, 13)),  # ceil_mode
    ]
    x = np.random.default_rng(0).normal(scale=60, size=(3, 227, 227)).astype(np.float32)
    found = run_float(graph, x)
    expected = run_onnxruntime(onnx.load(path), x[None], [node.output for node in graph.nodes])
    for name, values in expected.items():
        assert_close(name, found[name], values[0])
