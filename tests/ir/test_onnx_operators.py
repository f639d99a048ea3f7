# SPDX-License-Identifier: 0BSD
"""One operator at a time, at the edges of its attributes, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_reference import chain, check_against_onnxruntime, one_node

from bdcc.errors import ModelError
from bdcc.ir.graph import Conv, Dense, Flatten, Lrn
from bdcc.ir.onnx_import import load_onnx

RNG = np.random.default_rng(7)
PICTURE = (1, 4, 7, 9)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


FLATTEN = node("Flatten", ["x"], "f")

WINDOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "asymmetric_pads": {"pads": [0, 1, 2, 1]},
    "same_upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same_lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "valid": {"auto_pad": "VALID", "strides": [3, 2]},
    "notset": {"auto_pad": "NOTSET", "pads": [1, 1, 1, 1]},
    "dilation": {"dilations": [2, 3], "pads": [1, 2, 1, 2]},
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv(window: str, groups: int, tmp_path: Path) -> None:
    weights = [normal(8, 4 // groups, 3, 3), normal(8)]
    model = one_node("Conv", PICTURE, weights, group=groups, **WINDOWS[window])
    check_against_onnxruntime(model, tmp_path / "m.onnx")


def test_conv_without_bias_and_with_kernel_shape(tmp_path: Path) -> None:
    model = one_node("Conv", PICTURE, [normal(5, 4, 2, 3)], kernel_shape=[2, 3])
    (layer,) = check_against_onnxruntime(model, tmp_path / "m.onnx").weight_layers
    np.testing.assert_array_equal(layer.bias, np.zeros(5, np.float32))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "AveragePool with padding"])
def test_pool(op: str, ceil_mode: int, window: str, tmp_path: Path) -> None:
    attributes = {"kernel_shape": [3, 3], "ceil_mode": ceil_mode} | WINDOWS[window]
    if op == "AveragePool with padding":
        attributes["count_include_pad"] = 1
    if "auto_pad" in attributes and attributes["auto_pad"].startswith("SAME"):
        attributes["ceil_mode"] = 0  # SAME fixes the extent: the two contradict each other
    model = one_node(op.split()[0], PICTURE, opset=19, **attributes)
    check_against_onnxruntime(model, tmp_path / "m.onnx")


def test_random_windows(tmp_path: Path) -> None:
    """Extents at every remainder: whatever onnxruntime takes too must agree in shape and values."""
    agreed = 0
    for _ in range(150):
        kernel, strides = RNG.integers(1, 5, 2).tolist(), RNG.integers(1, 5, 2).tolist()
        shape = (1, 2, *RNG.integers(4, 14, 2).tolist())
        pads = [int(RNG.integers(0, k)) for k in (*kernel, *kernel)]
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
        attributes["ceil_mode"] = int(RNG.integers(2))
        op = ("MaxPool", "AveragePool")[int(RNG.integers(2))]
        if op == "AveragePool":
            attributes["count_include_pad"] = int(RNG.integers(2))
        check_against_onnxruntime(one_node(op, shape, **attributes), tmp_path / "m.onnx")
        agreed += 1
    assert agreed == 150


def test_global_average_pool_and_relu(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], "r"), node("GlobalAveragePool", ["r"])]
    check_against_onnxruntime(chain(nodes, PICTURE), tmp_path / "m.onnx")


@pytest.mark.parametrize("opset", [13, 18])
def test_reduce_mean_over_the_map_is_global_average_pool(opset: int, tmp_path: Path) -> None:
    if opset < 18:
        model = one_node("ReduceMean", PICTURE, opset=opset, axes=[2, 3])
    else:
        model = one_node("ReduceMean", PICTURE, [np.array([-1, 2])], opset=opset)
    check_against_onnxruntime(model, tmp_path / "m.onnx")


@pytest.mark.parametrize("beta", [0.25, 0.5, 0.75, 1.0, 1.25, 2.5, 3.75, 4.0])
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_lrn(beta: float, size: int, tmp_path: Path) -> None:
    """size 9 is wider than the 4 channels."""
    model = one_node("LRN", PICTURE, size=size, alpha=0.3, beta=beta, bias=1.5)
    check_against_onnxruntime(model, tmp_path / "m.onnx")


def test_lrn_defaults(tmp_path: Path) -> None:
    (lrn,) = check_against_onnxruntime(one_node("LRN", PICTURE, size=3), tmp_path / "m").nodes
    assert isinstance(lrn, Lrn)
    assert (lrn.beta, lrn.bias, lrn.alpha) == (0.75, 1.0, pytest.approx(1e-4))


BIASES = {
    "none": None,
    "scalar": (),
    "one": (1,),
    "vector": (5,),
    "row": (1, 5),
    "one by one": (1, 1),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0)])
def test_gemm(bias: str, trans_b: int, alpha: float, beta: float, tmp_path: Path) -> None:
    constants = [normal(*((5, 24) if trans_b else (24, 5)))]
    shape = BIASES[bias]
    if shape is not None:
        constants.append(np.asarray(RNG.normal(size=shape), dtype=np.float32))
    inputs = ["f", "c0", "c1"][: 1 + len(constants)]
    nodes = [FLATTEN, node("Gemm", inputs, transB=trans_b, alpha=alpha, beta=beta)]
    graph = check_against_onnxruntime(chain(nodes, (1, 4, 2, 3), constants), tmp_path / "m.onnx")
    layer = graph.nodes[-1]
    assert isinstance(layer, Dense)
    assert layer.weight.flags.c_contiguous


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5)])
def test_matmul_and_add(shape: tuple[int, ...], flipped: bool, tmp_path: Path) -> None:
    bias = np.asarray(RNG.normal(size=shape), dtype=np.float32)
    nodes = [
        FLATTEN,
        helper.make_node("MatMul", ["f", "c0"], ["m"], name="fc"),
        node("Add", ["c1", "m"] if flipped else ["m", "c1"]),
    ]
    model = chain(nodes, (1, 4, 2, 3), [normal(24, 5), bias])
    graph = check_against_onnxruntime(model, tmp_path / "m.onnx")
    assert [(n.name, n.output) for n in graph.nodes] == [("f", "f"), ("fc", "y")]


def test_matmul_read_before_and_after_its_add(tmp_path: Path) -> None:
    """The output is the product itself: the Add of a bias must not have changed it."""
    nodes = [FLATTEN, node("MatMul", ["f", "c0"], "m"), node("Add", ["m", "c1"], "biased")]
    nodes += [node("Relu", ["m"]), node("Relu", ["biased"], "other")]
    model = chain(nodes, (1, 4, 2, 3), [normal(24, 5), normal(5)])
    graph = check_against_onnxruntime(model, tmp_path / "m.onnx")
    assert not graph.weight_layers[0].bias.any()


AFFINE = [("Add", False), ("Add", True), ("Sub", False), ("Sub", True)]
AFFINE += [("Mul", False), ("Mul", True), ("Div", False)]


@pytest.mark.parametrize(("op", "flipped"), AFFINE)
@pytest.mark.parametrize("shape", [(), (6, 1, 1), (1, 6, 1, 1), (1,)])
def test_affine_operators_fold_into_the_conv_before_them(
    op: str, flipped: bool, shape: tuple[int, ...], tmp_path: Path
) -> None:
    constant = np.asarray(RNG.uniform(0.5, 2.0, size=shape), dtype=np.float32)
    nodes = [node("Conv", ["x", "c0"], "a"), node(op, ["c1", "a"] if flipped else ["a", "c1"])]
    model = chain(nodes, PICTURE, [normal(6, 4, 3, 3), constant])
    graph = check_against_onnxruntime(model, tmp_path / "m.onnx")
    assert [type(n) for n in graph.nodes] == [Conv]


def test_batch_normalization_behind_gemm(tmp_path: Path) -> None:
    constants = [normal(24, 5), normal(5), normal(5), normal(5), RNG.uniform(0.1, 2, 5)]
    nodes = [FLATTEN, node("Gemm", ["f", "c0"], "g")]
    nodes += [node("BatchNormalization", ["g", "c1", "c2", "c3", "c4"])]
    model = chain(nodes, (1, 4, 2, 3), [c.astype(np.float32) for c in constants])
    check_against_onnxruntime(model, tmp_path / "m.onnx")


FLATTENINGS: dict[str, tuple[onnx.NodeProto, int]] = {
    "flatten": (node("Flatten", ["x"]), 13),
    "flatten axis 0": (node("Flatten", ["x"], axis=0), 13),
    "flatten axis -3": (node("Flatten", ["x"], axis=-3), 13),
    "reshape 0 -1": (node("Reshape", ["x", "c0"]), 13),
    "reshape with allowzero": (node("Reshape", ["x", "c1"], allowzero=1), 14),
    "reshape 1 24": (node("Reshape", ["x", "c2"]), 7),
}


@pytest.mark.parametrize("how", FLATTENINGS)
def test_flattening(how: str, tmp_path: Path) -> None:
    proto, opset = FLATTENINGS[how]
    constants = [np.array([0, -1]), np.array([-1, 24]), np.array([1, 24])]
    graph = check_against_onnxruntime(
        chain([proto], (1, 4, 2, 3), constants, opset), tmp_path / "m.onnx"
    )
    assert [type(n) for n in graph.nodes] == [Flatten]
    assert graph.map_shape("y") == (4, 2, 3)


def test_reshapes_to_the_same_shape_leave_nothing(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], "r"),
        node("Reshape", ["r", "c0"], "same"),
        node("Unsqueeze", ["same", "c1"], "five"),
        node("Squeeze", ["five", "c1"], "four"),
        node("Flatten", ["four"], "flat"),
        node("Flatten", ["flat"], "again"),
        node("Reshape", ["again", "c2"]),
    ]
    constants = [np.array([0, 0, -1, 3]), np.array([0]), np.array([1, -1])]
    onnx.save(chain(nodes[:2], (1, 4, 2, 3), constants, output="same"), tmp_path / "m.onnx")
    assert load_onnx(tmp_path / "m.onnx").output == "r"
    onnx.save(chain(nodes, (1, 4, 2, 3), constants), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"^five \(Unsqueeze\): turns shape \(1, 4, 2, 3\) into"):
        load_onnx(tmp_path / "m.onnx")
    short = [nodes[0], nodes[1], node("Flatten", ["same"], "flat"), *nodes[5:]]
    graph = check_against_onnxruntime(chain(short, (1, 4, 2, 3), constants), tmp_path / "m.onnx")
    assert [n.output for n in graph.nodes] == ["r", "flat"]
    assert graph.output == "flat"


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_behind_a_global_pool_flattens(opset: int, tmp_path: Path) -> None:
    squeeze = node("Squeeze", ["g"], axes=[2, 3])
    if opset >= 13:
        squeeze = node("Squeeze", ["g", "c0"])
    nodes = [node("GlobalAveragePool", ["x"], "g"), squeeze]
    model = chain(nodes, PICTURE, [np.array([-1, -2])], opset)
    assert check_against_onnxruntime(model, tmp_path / "m.onnx").shapes["y"] == (4,)


@pytest.mark.parametrize("opset", [7, 10, 11, 12, 13, 21])
@pytest.mark.parametrize("axis", [None, 1, -1])
def test_softmax_of_a_vector(opset: int, axis: int | None, tmp_path: Path) -> None:
    attributes = {} if axis is None else {"axis": axis if opset > 10 else abs(axis)}
    nodes = [FLATTEN, node("Softmax", ["f"], **attributes)]
    check_against_onnxruntime(chain(nodes, (1, 4, 2, 3), opset=opset), tmp_path / "m.onnx")


def test_softmax_of_a_map_over_its_channels(tmp_path: Path) -> None:
    """Since opset 13 at each pixel; before only where there is one pixel."""
    model = one_node("Softmax", PICTURE, axis=1, opset=13)
    check_against_onnxruntime(model, tmp_path / "m.onnx")
    model = one_node("Softmax", (1, 6, 1, 1), axis=1, opset=11)
    check_against_onnxruntime(model, tmp_path / "m.onnx")


def test_dropout_of_every_opset(tmp_path: Path) -> None:
    off, ratio = np.array(False), np.array(0.5, np.float32)
    for opset, attributes, constants in (
        (7, {"ratio": 0.5}, []),
        (10, {}, []),
        (12, {"seed": 1}, [ratio]),
        (13, {}, [ratio, off]),
        (22, {}, [None, off]),
    ):
        inputs = ["r", *(f"c{i}" if c is not None else "" for i, c in enumerate(constants))]
        nodes = [node("Relu", ["x"], "r")]
        nodes.append(helper.make_node("Dropout", inputs, ["d", "unread_mask"], **attributes))
        nodes.append(node("MaxPool", ["d"], kernel_shape=[2, 2]))
        model = chain(nodes, PICTURE, constants, opset)
        graph = check_against_onnxruntime(model, tmp_path / "m.onnx")
        assert [n.output for n in graph.nodes] == ["r", "y"]


CONSTANTS: dict[str, dict[str, Any]] = {
    "value": {"value": numpy_helper.from_array(np.full(6, 2, np.float32))},
    "value_float": {"value_float": 2.0},
    "value_floats": {"value_floats": [2.0] * 6},
}


@pytest.mark.parametrize("how", CONSTANTS)
def test_constant_of_every_form_as_a_bias(how: str, tmp_path: Path) -> None:
    nodes = [FLATTEN, node("MatMul", ["f", "c0"], "m"), node("Constant", [], "b", **CONSTANTS[how])]
    nodes.append(node("Add", ["m", "b"]))
    check_against_onnxruntime(chain(nodes, (1, 4, 2, 3), [normal(24, 6)]), tmp_path / "m.onnx")


def test_constant_of_integers_as_a_shape(tmp_path: Path) -> None:
    nodes = [node("Constant", [], "s", value_ints=[1, 24]), node("Reshape", ["x", "s"])]
    check_against_onnxruntime(chain(nodes, (1, 4, 2, 3)), tmp_path / "m.onnx")


def test_weights_computed_from_constants(tmp_path: Path) -> None:
    """Cast, Transpose, Slice, Concat, Mul, ConstantOfShape: anything on constants is worked out."""
    nodes = [
        node("Cast", ["c0"], "w0", to=TensorProto.FLOAT),
        node("Transpose", ["w0"], "w1", perm=[3, 2, 1, 0]),
        node("Concat", ["w1", "w1"], "w2", axis=0),
        node("Slice", ["w2", "c1", "c2"], "w3"),
        node("Mul", ["w3", "c3"], "w"),
        node("Shape", ["w"], "s"),
        node("Gather", ["s", "c4"], "n"),
        node("ConstantOfShape", ["n"], "b", value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("Conv", ["x", "w", "b"]),
    ]
    constants = [
        normal(3, 3, 4, 4).astype(np.float16),
        np.array([1]),
        np.array([7]),
        np.array(0.5, np.float32),
        np.array([0]),
    ]
    graph = check_against_onnxruntime(chain(nodes, PICTURE, constants), tmp_path / "m.onnx")
    (layer,) = graph.weight_layers
    assert layer.weight.shape == (6, 4, 3, 3)
    np.testing.assert_array_equal(layer.bias, np.ones(6, np.float32))


def test_cast_like_as_the_dynamo_exporter_writes_it(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], "zero", value_int=3),
        node("CastLike", ["zero", "x"], "typed"),
        node("Shape", ["c0"], "n", start=0, end=1),
        node("Expand", ["typed", "n"], "b"),
        node("Conv", ["x", "c0", "b"], "a"),
        node("CastLike", ["a", "c0"], "same"),
        node("Cast", ["same"], "cast", to=TensorProto.FLOAT),
        node("Relu", ["cast"]),
    ]
    model = chain(nodes, PICTURE, [normal(6, 4, 3, 3)], 18)
    graph = check_against_onnxruntime(model, tmp_path / "m.onnx")
    assert [n.output for n in graph.nodes] == ["a", "y"]


CONCATS = {
    "the picture and what was made of it": (["x", "r", "p"], 1),
    "counted from behind": (["p", "r"], -3),
    "one of one": (["r"], 1),
    "the same twice": (["r", "p", "r"], 1),
    "a concat and what it joined": (["j", "r", "j"], 1),
    "vectors": (["f", "g", "f"], 1),
    "vectors counted from behind": (["g", "f"], -1),
}


@pytest.mark.parametrize("which", CONCATS)
def test_concat(which: str, tmp_path: Path) -> None:
    inputs, axis = CONCATS[which]
    nodes = [
        node("Relu", ["x"], "r"),
        node("MaxPool", ["x"], "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Concat", ["p", "x"], "j", axis=1),
        node("Flatten", ["p"], "f"),
        node("MatMul", ["f", "c0"], "g"),
        node("Concat", inputs, "c", name="join", axis=axis),
        node("Relu", ["c"]),
    ]
    graph = check_against_onnxruntime(
        chain(nodes, (1, 3, 4, 5), [normal(60, 7)]), tmp_path / "m.onnx"
    )
    assert any(n.name == "join" for n in graph.nodes) == (len(inputs) > 1)


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 23])
def test_opsets_of_concat(opset: int, tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], "r"), node("Concat", ["r", "x"], axis=1)]
    check_against_onnxruntime(chain(nodes, PICTURE, opset=opset), tmp_path / "m.onnx")


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 18, 21, 22, 23])
def test_opsets(opset: int, tmp_path: Path) -> None:
    weights = [normal(6, 4, 3, 3), *(normal(6) for _ in range(3)), np.full(6, 2, np.float32)]
    nodes = [
        node("Conv", ["x", "c0"], "a"),
        node("BatchNormalization", ["a", "c1", "c2", "c3", "c4"], "b"),
        node("Relu", ["b"], "r"),
        node("LRN", ["r"], "l", size=5),
        node("AveragePool", ["l"], "p", kernel_shape=[2, 2]),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "c5", "c6"], "g"),
        node("Softmax", ["g"], axis=1),
    ]
    weights += [normal(144, 5), normal(5)]
    check_against_onnxruntime(chain(nodes, PICTURE, weights, opset), tmp_path / "m.onnx")


def test_the_newest_opset_that_onnx_knows(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    onnx.save(one_node("Relu", PICTURE, opset=newest), tmp_path / "m.onnx")
    assert load_onnx(tmp_path / "m.onnx").output == "y"


@pytest.mark.parametrize("batch", [1, "N", None])
def test_a_batch_of_one_or_a_dynamic_batch(batch: int | str | None, tmp_path: Path) -> None:
    graph = check_against_onnxruntime(one_node("Relu", (batch, 2, 3, 3)), tmp_path / "m.onnx")  # type: ignore[arg-type]
    assert graph.shapes["x"] == (2, 3, 3)
