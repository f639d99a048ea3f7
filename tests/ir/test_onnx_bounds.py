# SPDX-License-Identifier: 0BSD
"""Models that ask for too much are refused in one line, within seconds and little memory.

Every model is loaded in a process of its own that the system ends after 5 s of the processor, and
that gets no more than 2 GB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx_reference import chain, one_node

import zoo
from bdcc.errors import ModelError
from bdcc.ir.graph import Conv
from bdcc.ir.onnx_import import load_onnx
from fuzz.driver import run_mutants

PICTURE = (1, 4, 7, 9)
ONES = np.ones((6, 4, 3, 3), np.float32)
HUGE = 2**63 - 1
OPSETS = [helper.make_opsetid("", 13), helper.make_opsetid("d", 1)]


def node(op: str, inputs: Sequence[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [output], **attributes)


def check(path: Path, expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    assert str(caught.value).startswith(expected), str(caught.value)


def assert_refused(model: onnx.ModelProto, path: Path, expected: str) -> None:
    path.write_bytes(model.SerializeToString())
    assert run_mutants([(path.name, partial(check, path, expected))]) == []


def referring(proto: onnx.NodeProto, name: str, kind: int) -> onnx.ModelProto:
    """A node of the main graph with an attribute that stands for one of a function."""
    proto.attribute.add(name=name, type=kind, ref_attr_name="outer")
    return chain([proto], PICTURE, [ONES])


def of_constants(
    nodes: Sequence[onnx.NodeProto], constants: Sequence[np.ndarray], *, opset: int = 20
) -> onnx.ModelProto:
    """A Conv whose weight "w" the nodes make of constants."""
    return chain([*nodes, node("Conv", ["x", "w"])], PICTURE, list(constants), opset)


def of_functions(
    bodies: Sequence[Sequence[onnx.NodeProto]], called: str = "f0", *, opset: int = 13
) -> onnx.ModelProto:
    """Functions f0, f1, .. of "a" that make "b", one of them called."""
    model = chain([node(called, ["x"], domain="d")], PICTURE, [], opset)
    model.opset_import.append(OPSETS[1])
    for index, body in enumerate(bodies):
        function = helper.make_function("d", f"f{index}", ["a"], ["b"], list(body), OPSETS)
        model.functions.append(function)
    return model


def call(index: int, source: str = "a", output: str = "b") -> onnx.NodeProto:
    return node(f"f{index}", [source], output, domain="d")


def doubling(levels: int) -> onnx.ModelProto:
    """A function that calls one twice that calls one twice, and so on."""
    inner = [[call(n + 1, "a", "m"), call(n + 1, "m", "b")] for n in range(levels)]
    return of_functions([*inner, [node("Relu", ["a"], "b")]])


def with_dims(*dims: int, raw: bytes = b"") -> onnx.ModelProto:
    """A Conv whose weight says that its shape is this."""
    model = one_node("Conv", PICTURE, [ONES])
    tensor = model.graph.initializer[0]
    tensor.dims[:] = dims
    tensor.raw_data = raw
    return model


def with_branch(op: str) -> onnx.ModelProto:
    """An If or Loop that the output needs."""
    branch = helper.make_graph(
        [node("Relu", ["x"], "b")], "g", [], [helper.make_empty_tensor_value_info("b")]
    )
    names = {"If": ("then_branch", "else_branch"), "Loop": ("body",)}[op]
    return chain([node(op, ["c0"], **dict.fromkeys(names, branch))], PICTURE, [np.array(True)])


def doubled_concat(times: int) -> onnx.ModelProto:
    names = ["c0", *(f"t{n}" for n in range(times - 1)), "w"]
    nodes = [node("Concat", [a, a], b, axis=0) for a, b in pairwise(names)]
    return of_constants(nodes, [ONES])


def scaled_many_times(count: int) -> onnx.ModelProto:
    """Each scaling makes new weights of 9 MB."""
    tensors = ["x", *(f"t{n}" for n in range(count)), "y"]
    nodes = [node("Conv", ["x", "c0"], "t0")]
    nodes += [node("Mul", [a, "c1"], b) for a, b in pairwise(tensors[1:])]
    half = np.full((), 0.999, np.float32)
    return chain(nodes, (1, 512, 3, 3), [np.ones((512, 512, 3, 3), np.float32), half])


def shared_many_times(count: int) -> onnx.ModelProto:
    """One matrix of 4 MB, a layer's own each time."""
    tensors = ["f", *(f"t{n}" for n in range(count - 1)), "y"]
    nodes = [node("Flatten", ["x"], "f")]
    nodes += [node("MatMul", [a, "c0"], b) for a, b in pairwise(tensors)]
    return chain(nodes, (1, 1, 1, 1024), [np.ones((1024, 1024), np.float32)])


MORE = "Raise it with --max-memory."
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    # attributes
    "a reference outside a function": (
        lambda: referring(node("Conv", ["x", "c0"]), "strides", AttributeProto.INTS),
        "y (Conv): attribute 'strides' refers to 'outer' of a function, and is in none.",
    ),
    "a reference of a constant": (
        lambda: chain(
            [
                onnx.NodeProto(
                    op_type="Constant",
                    output=["k"],
                    attribute=[AttributeProto(name="value", type=4, ref_attr_name="o")],
                ),
                node("Conv", ["x", "k"]),
            ],
            PICTURE,
        ),
        "k (Constant): attribute 'value' refers to 'o' of a function, and is in none.",
    ),
    "an attribute of another type": (
        lambda: one_node("Conv", PICTURE, [ONES], strides=2.0),
        "y (Conv): attribute 'strides' is not a list of integers.",
    ),
    "an alpha that is no number": (
        lambda: one_node("LRN", PICTURE, size=5, alpha=float("nan")),
        "y (LRN): alpha is nan; bdcc handles finite numbers.",
    ),
    "a left out weight": (
        lambda: chain([node("Conv", ["x", ""])], PICTURE),
        "y (Conv): its input 1, W, is missing.",
    ),
    "too many inputs": (
        lambda: chain([node("Relu", ["x", "x"])], PICTURE),
        "y (Relu): it has 2 inputs; Relu has 1.",
    ),
    "one output twice": (
        lambda: chain(
            [helper.make_node("MaxPool", ["x"], ["y", "y"], kernel_shape=[1, 1])], PICTURE
        ),
        "y (MaxPool): writes 'y', which is written before.",
    ),
    # windows
    "pads of a billion": (
        lambda: one_node("MaxPool", PICTURE, kernel_shape=[3, 3], pads=[10**9] * 4),
        "y (MaxPool): pads is [1000000000, 1000000000, 1000000000, 1000000000]; bdcc handles four",
    ),
    "pads that make a large map": (
        lambda: one_node("Conv", PICTURE, [ONES], pads=[65536] * 4),
        "y (Conv): a feature map of 6 x 131077 x 131079; bdcc handles up to 65536 channels, rows",
    ),
    "pads around which windows stride": (
        lambda: one_node("Conv", PICTURE, [ONES], pads=[65536] * 4, strides=[65536, 65536]),
        "y (Conv): a tensor of 4 x 131079 x 131081, 68727865596 values; bdcc handles 67108864.",
    ),
    "a kernel as large as the map": (
        lambda: one_node("MaxPool", (1, 1, 2000, 2000), kernel_shape=[1000, 1000]),
        "y (MaxPool): a window of 1000000 positions; bdcc handles 65536.",
    ),
    "a kernel of 2^63": (
        lambda: one_node("AveragePool", PICTURE, kernel_shape=[HUGE, 1]),
        f"y (AveragePool): kernel_shape is [{HUGE}, 1]; bdcc handles two numbers of 1 to 65536.",
    ),
    "strides of 2^63": (
        lambda: one_node("Conv", PICTURE, [ONES], strides=[HUGE, HUGE]),
        f"y (Conv): strides is [{HUGE}, {HUGE}]; bdcc handles two numbers of 1 to 65536.",
    ),
    "dilations of 2^63": (
        lambda: one_node("MaxPool", PICTURE, kernel_shape=[1, 1], dilations=[HUGE, 1]),
        f"y (MaxPool): dilations is [{HUGE}, 1]; bdcc handles two numbers of 1 to 65536.",
    ),
    "strides of a million numbers": (
        lambda: one_node("Conv", PICTURE, [ONES], strides=[1] * 10**6),
        "y (Conv): strides is [1, 1, 1, 1, 1, 1, 1, 1]; bdcc handles two numbers",
    ),
    "same padding of a huge kernel": (
        lambda: one_node(
            *("MaxPool", PICTURE),
            **{"kernel_shape": [65536, 1], "dilations": [65536, 1], "auto_pad": "SAME_UPPER"},
        ),
        "y (MaxPool): kernel (65536, 1) with pads (2147450880, 0, 2147450880, 0) has windows that",
    ),
    "lrn over 2^63 channels": (
        lambda: one_node("LRN", PICTURE, size=HUGE),
        f"y (LRN): size is {HUGE}; bdcc handles 1 to 65536.",
    ),
    "lrn over more channels than fit": (
        lambda: one_node("LRN", (1, 1, 64, 64), size=65535),
        "y (LRN): a tensor of 65535 x 64 x 64, 268431360 values; bdcc handles 67108864. " + MORE,
    ),
    # shapes
    "a picture of 10000 x 10000": (
        lambda: one_node("Relu", (1, 3, 10000, 10000)),
        "x: a picture of 3 x 10000 x 10000, 300000000 values; bdcc handles 16777216, as 64 are in "
        f"memory at a time. {MORE}",
    ),
    "a picture of 2^63 rows": (
        lambda: one_node("Flatten", (1, 3, HUGE, HUGE)),
        f"x: a picture of 3 x {HUGE} x {HUGE}, ",
    ),
    "many filters": (
        lambda: chain(
            [node("Conv", ["x", "c0"])], (1, 1, 2000, 2000), [np.ones((20, 1, 1, 1), np.float32)]
        ),
        "y (Conv): a tensor of 20 x 2000 x 2000, 80000000 values; bdcc handles 67108864. " + MORE,
    ),
    "many large layers": (
        lambda: chain(
            [node("Relu", [f"t{i}" if i else "x"], f"t{i + 1}") for i in range(100)],
            (1, 1, 4000, 4000),
            output="t100",
        ),
        "t67 (Relu): up to here the model has 4352000000 bytes of weights and activations; bdcc "
        f"handles 4294967296. {MORE}",
    ),
    "work without end": (
        lambda: one_node("MaxPool", (1, 16, 1000, 1000), kernel_shape=[256, 256], pads=[255] * 4),
        "y (MaxPool): up to here the model has 1651533414400 multiply-adds of a picture; bdcc",
    ),
    "filters of many inputs": (
        lambda: one_node("Conv", (1, 1, 256, 256), [np.ones((1, 1, 200, 200), np.float32)]),
        "y (Conv): it is approximated in 13440000000 bytes; bdcc handles 4294967296. " + MORE,
    ),
    "many outputs of many inputs": (
        lambda: one_node("Conv", (1, 1, 400, 400), [np.ones((1, 1, 120, 120), np.float32)]),
        "y (Conv): it is approximated in 4548153600 bytes; bdcc handles 4294967296. " + MORE,
    ),
    "filters whose sums int32 does not hold": (
        lambda: one_node("Conv", (1, 1, 300, 300), [np.ones((1, 1, 257, 257), np.float32)]),
        "y (Conv): filters of 66049 weights; bdcc handles 65536, which sums in 32 bits hold.",
    ),
    "flatten at 2^63": (
        lambda: one_node("Flatten", PICTURE, axis=HUGE),
        f"y (Flatten): axes [{HUGE}] of 4 dimensions; bdcc handles -4 to 3, each once.",
    ),
    "flatten at -2^63": (
        lambda: one_node("Flatten", PICTURE, axis=-(2**63)),
        f"y (Flatten): axes [{-(2**63)}] of 4 dimensions; bdcc handles -4 to 3, each once.",
    ),
    "unsqueeze at 2^63": (
        lambda: one_node("Unsqueeze", PICTURE, [np.array([HUGE])]),
        f"y (Unsqueeze): axes [{HUGE}] of 5 dimensions; bdcc handles -5 to 4, each once.",
    ),
    "unsqueeze at one place twice": (
        lambda: one_node("Unsqueeze", PICTURE, [np.array([1, 1])]),
        "y (Unsqueeze): axes [1, 1] of 6 dimensions; bdcc handles -6 to 5, each once.",
    ),
    "squeeze at 2^63": (
        lambda: one_node("Squeeze", PICTURE, [np.array([HUGE])]),
        f"y (Squeeze): axes [{HUGE}] of 4 dimensions; bdcc handles -4 to 3, each once.",
    ),
    "mean over an axis that is not there": (
        lambda: one_node("ReduceMean", PICTURE, axes=[2, 7]),
        "y (ReduceMean): axes [2, 7] of 4 dimensions; bdcc handles -4 to 3, each once.",
    ),
    "reshape whose sizes overflow": (
        lambda: one_node("Reshape", PICTURE, [np.array([2**32, 2**32, 252])]),
        "y (Reshape): does not fit shape (1, 4, 7, 9) with a batch of 1: cannot reshape it",
    ),
    "reshape to a million dimensions": (
        lambda: one_node("Reshape", PICTURE, [np.ones(10**6, np.int64)]),
        "y (Reshape): does not fit shape (1, 4, 7, 9) with a batch of 1: 1000000 dimensions.",
    ),
    # stored constants
    "negative sizes": (
        lambda: with_dims(6, 4, -3, -3, raw=bytes(6 * 4 * 9 * 4)),
        "c0: its shape (6, 4, -3, -3) is damaged; bdcc handles up to 8 dimensions, none negative.",
    ),
    "sizes whose product overflows": (
        lambda: with_dims(2**32, 2**32, raw=b""),
        "c0: up to here the model has 737869762948382",
    ),
    "sizes without data": (
        lambda: with_dims(2**20, 2**9, 1, 1),
        "c0: its data is damaged or does not fill its shape (1048576, 512, 1, 1).",
    ),
    "a thousand dimensions": (
        lambda: with_dims(*[1] * 1000, raw=bytes(4)),
        "c0: its shape (1, 1, 1, 1, 1, 1, 1, 1, 1) is damaged; bdcc handles up to 8 dimensions,",
    ),
    "texts as weights": (
        lambda: one_node("Conv", PICTURE, [np.array([["a"]], object)]),
        "c0: its type is string; bdcc handles float, double, float16,",
    ),
    "one matrix many times": (
        lambda: shared_many_times(1100),
        "t144 (MatMul): up to here the model has ",
    ),
    "weights scaled many times": (
        lambda: scaled_many_times(500),
        "t72 (Mul): up to here the model has ",
    ),
    # operators on constants
    "a constant of 5.6 GB": (
        lambda: of_constants([node("ConstantOfShape", ["c0"], "w")], [np.array([1400, 10**6])]),
        "w (ConstantOfShape): up to here the model has 5600000016 bytes of constants that are "
        "worked on; bdcc handles 536871168. " + MORE,
    ),
    "a constant of 2^200": (
        lambda: of_constants([node("ConstantOfShape", ["c0"], "w")], [np.full(4, 2**50)]),
        "w (ConstantOfShape): up to here the model has ",
    ),
    "expanded": (
        lambda: of_constants(
            [node("Expand", ["c0", "c1"], "w")], [np.ones(1, np.float32), np.array([10**5, 10**5])]
        ),
        "w (Expand): up to here the model has ",
    ),
    "tiled": (
        lambda: of_constants(
            [node("Tile", ["c0", "c1"], "w")], [np.ones(9, np.float32), np.array([10**9])]
        ),
        "w (Tile): up to here the model has ",
    ),
    "a range": (
        lambda: of_constants(
            [node("Range", ["c0", "c1", "c2"], "w")], [np.array(0), np.array(10**12), np.array(1)]
        ),
        "w (Range): up to here the model has ",
    ),
    "gathered": (
        lambda: of_constants(
            [node("Gather", ["c0", "c1"], "w", axis=0)],
            [np.ones((1, 10**5), np.float32), np.zeros(10**5, np.int64)],
        ),
        "w (Gather): up to here the model has ",
    ),
    "a column and a row": (
        lambda: of_constants(
            [node("Add", ["c0", "c1"], "w")],
            [np.ones((10**5, 1), np.float32), np.ones((1, 10**5), np.float32)],
        ),
        "w (Add): up to here the model has ",
    ),
    "a column times a row": (
        lambda: of_constants(
            [node("MatMul", ["c0", "c1"], "w")],
            [np.ones((10**5, 1), np.float32), np.ones((1, 10**5), np.float32)],
        ),
        "w (MatMul): up to here the model has ",
    ),
    "doubled fifty times": (
        lambda: doubled_concat(50),
        "t16 (Concat): up to here the model has ",
    ),
    "a large constant read many times": (
        lambda: of_constants(
            [
                node("ConstantOfShape", ["c0"], "k"),
                *(node("ReduceSum", ["k"], f"s{n}", keepdims=0) for n in range(2000)),
                node("Sum", [f"s{n}" for n in range(2000)], "w"),
            ],
            [np.array([10**6])],
        ),
        "s44 (ReduceSum): up to here the model has ",
    ),
    "a regular expression": (
        lambda: of_constants(
            [
                node("Constant", [], "t", value_string="a" * 40),
                node("RegexFullMatch", ["t"], "w", pattern="(a*)*" * 20 + "b"),
            ],
            [],
        ),
        "t (Constant): its constant is <U40 of 0 dimensions; bdcc handles numbers of up to 8.",
    ),
    "a regular expression on what is left": (
        lambda: of_constants([node("RegexFullMatch", ["c0"], "w", pattern="a")], [ONES]),
        "w (RegexFullMatch): the operator is not supported; bdcc handles Add,",
    ),
    "a cast to texts": (
        lambda: of_constants([node("Cast", ["c0"], "w", to=TensorProto.STRING)], [ONES]),
        "w (Cast): its constant is ",
    ),
    "constants cast like the picture": (
        lambda: chain(
            [
                node("ConstantOfShape", ["c0"], "k", value=helper.make_tensor("", 3, [1], [1])),
                node("CastLike", ["k", "x"], "w"),
                node("Add", ["x", "w"]),
            ],
            PICTURE,
            [np.array([2 * 10**8])],
            15,
        ),
        "w (CastLike): up to here the model has ",
    ),
    # functions and subgraphs
    "a function that calls itself": (
        lambda: of_functions([[call(0)]]),
        "m.onnx: its local functions call themselves, or are nested deeper than 32.",
    ),
    "functions that call each other": (
        lambda: of_functions([[call(1)], [call(0)]]),
        "m.onnx: its local functions call themselves, or are nested deeper than 32.",
    ),
    "five thousand functions deep": (
        lambda: of_functions([*([call(n + 1)] for n in range(5000)), [node("Relu", ["a"], "b")]]),
        "m.onnx: its local functions call themselves, or are nested deeper than 32.",
    ),
    "a bomb of functions": (
        lambda: doubling(30),
        "m.onnx: 3221225471 nodes once its local functions are inlined, 31 deep; bdcc handles",
    ),
    "a bomb of constants in functions": (
        lambda: of_functions(
            [
                [
                    call(1, "a", "m"),
                    *(call(1, "m", f"z{n}") for n in range(999)),
                    call(1, "m", "b"),
                ],
                [
                    node("Constant", [], "k", value=numpy_helper.from_array(np.ones(20000))),
                    node("Relu", ["a"], "b"),
                ],
            ]
        ),
        "m.onnx: up to here the model has ",
    ),
    "a bomb of an attribute in functions": (
        lambda: of_one_argument(v=numpy_helper.from_array(np.ones(20000))),
        "m.onnx: up to here the model has ",
    ),
    "a bomb of a name in functions": (
        lambda: of_one_argument("k" * 200_000),
        "m.onnx: up to here the model has ",
    ),
    "a function twice": (
        lambda: with_the_same_function(2),
        "m.onnx: its local functions cannot be inlined: Model contains multiple local functions",
    ),
    "if": (lambda: with_branch("If"), "y (If): the operator is not supported; bdcc handles Add,"),
    "loop": (lambda: with_branch("Loop"), "y (Loop): the operator is not supported; bdcc handles"),
    # the graph
    "more nodes than it reads": (
        lambda: chain(
            [node("Relu", [f"t{i}" if i else "x"], f"t{i + 1}") for i in range(40000)],
            PICTURE,
            output="t40000",
        ),
        "m.onnx: 40000 nodes; bdcc handles 32768.",
    ),
    "a cycle": (
        lambda: chain([node("Relu", ["y"], "r"), node("Relu", ["r"])], PICTURE),
        "r (Relu): reads 'y', which nothing before it writes.",
    ),
    "ten thousand outputs": (
        lambda: many_outputs(10000),
        "m.onnx: the model has 10000 outputs ('y', 'y0', 'y1', 'y2', 'y3', 'y4', 'y5', 'y6'); bdcc",
    ),
}


def of_one_argument(name: str = "k", **attributes: TensorProto) -> onnx.ModelProto:
    """A function of 10,000 nodes, which all have its input or its attribute v; called once."""
    body = [node("Abs", ["a"], f"t{index}") for index in range(10000)]
    if attributes:
        body = [node("Constant", [], f"t{index}") for index in range(10000)]
        for one in body:
            one.attribute.add(name="value", type=AttributeProto.TENSOR, ref_attr_name="v")
    body.append(node("Sum", [one.output[0] for one in body], "b"))
    called = node("f0", [name], "k", domain="d", **attributes)
    model = chain([called, node("Add", ["x", "k"])], PICTURE, [])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), name))
    model.opset_import.append(OPSETS[1])
    model.functions.append(
        helper.make_function("d", "f0", ["a"], ["b"], body, OPSETS, attributes=list(attributes))
    )
    return model


def with_the_same_function(times: int) -> onnx.ModelProto:
    model = of_functions([[node("Relu", ["a"], "b")]])
    model.functions.extend(list(model.functions) * (times - 1))
    return model


def many_outputs(count: int) -> onnx.ModelProto:
    model = one_node("Relu", PICTURE)
    model.graph.output.extend(onnx.ValueInfoProto(name=f"y{n}") for n in range(count - 1))
    return model


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path: Path) -> None:
    build, expected = REFUSED[what]
    assert_refused(build(), tmp_path / "m.onnx", expected)


def test_an_attribute_or_a_weight_that_is_there_twice(tmp_path: Path) -> None:
    model = one_node("Conv", PICTURE, [ONES], strides=[1, 1])
    model.graph.node[0].attribute.append(model.graph.node[0].attribute[0])
    assert_refused(model, tmp_path / "m.onnx", "y (Conv): attribute 'strides' is there twice.")
    model = one_node("Conv", PICTURE, [ONES])
    model.graph.initializer.append(model.graph.initializer[0])
    assert_refused(model, tmp_path / "m.onnx", "c0: is stored twice.")


@pytest.mark.parametrize("name", ["conv", "x", "y", "c0", "Conv", "strides", "w.bin"])
def test_a_name_that_is_no_utf8(name: str, tmp_path: Path) -> None:
    """Of a node, an input, an output, a weight, an operator, an attribute, a file."""
    model = one_node("Conv", PICTURE, [ONES], strides=[1, 1], name="conv")
    refer(model.graph.initializer[0])
    (tmp_path / "w.bin").write_bytes(ONES.tobytes())
    data, (path, other) = model.SerializeToString(), (tmp_path / f"{n}.onnx" for n in "mw")
    other.write_bytes(data)
    assert load_onnx(other).output == "y"
    text = bytes([len(name)]) + name.encode()  # with its length in front, as the file has it
    assert text in data
    path.write_bytes(data.replace(text, text[:-1] + b"\xff"))

    def run() -> None:
        with pytest.raises(ModelError) as caught:
            load_onnx(path)
        assert "holds a damaged name" in str(caught.value)

    assert run_mutants([(name, run)]) == []


@pytest.mark.parametrize("name", ["of a call", "y1", "f1"])
def test_a_name_in_a_function_that_is_no_utf8(name: str, tmp_path: Path) -> None:
    model, path = of_functions([[call(1)], [node("Relu", ["a"], "b")]]), tmp_path / "m.onnx"
    model.functions[0].node[0].name = "of a call"
    model.functions[0].node[0].output[0] = model.functions[0].output[0] = "y1"
    onnx.save(model, path)
    load_onnx(path)
    text = bytes([len(name)]) + name.encode()
    assert text in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(text, text[:-1] + b"\xff"))
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    assert "holds a damaged name" in str(caught.value)


@pytest.mark.parametrize("name", ["same", None])
def test_ten_thousand_nodes(name: str | None, tmp_path: Path) -> None:
    """In 5 s, whether all have one name or each its own."""
    nodes = [
        node("Relu", [f"t{i}" if i else "x"], f"t{i + 1}", name=name or f"relu{i}")
        for i in range(10000)
    ]
    path = tmp_path / "m.onnx"
    path.write_bytes(chain(nodes, PICTURE, output="t10000").SerializeToString())

    def load() -> None:
        graph = load_onnx(path)
        assert len({node.name for node in graph.nodes}) == 10000
        assert graph.map_shape("t10000") == PICTURE[1:]
        for each in graph.nodes:
            assert graph.producer(each.output) is each
            assert len(graph.consumers(each.input)) == 1

    assert run_mutants([("load", load)]) == []


def test_ten_thousand_convolutions_and_constants(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32))
    nodes = []
    for i in range(5000):
        nodes.append(node("Constant", [], f"w{i}", value=weight))
        nodes.append(node("Conv", [f"t{i}" if i else "x", f"w{i}"], f"t{i + 1}"))
    path = tmp_path / "m.onnx"
    path.write_bytes(chain(nodes, PICTURE, output="t5000").SerializeToString())
    assert run_mutants([("load", partial(load_onnx, path))]) == []


def test_numpy_warns_of_no_constant(tmp_path: Path) -> None:
    """Here a warning is an error; a user would see lines of NumPy's beside the message."""
    mean = node("ReduceMean", ["c0"], "w", axes=[4], keepdims=0)
    model = of_constants([mean], [np.ones((6, 4, 3, 3, 0), np.float32)], opset=13)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    check(tmp_path / "m.onnx", "y (Conv): tensor 'w' holds NaN or infinity")


def test_functions_within_the_bounds_are_inlined(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(doubling(10).SerializeToString())
    assert len(load_onnx(path).nodes) == 1024
    deep = [*([call(n + 1)] for n in range(31)), [node("Relu", ["a"], "b")]]
    path.write_bytes(of_functions(deep).SerializeToString())
    assert len(load_onnx(path).nodes) == 1


def test_what_real_models_take_is_within_the_bounds(tmp_path: Path) -> None:
    """VGG-16's layers at 224 pixels, its weights made by an operator on constants in a small
    file: in a sixth of their bytes, as float16 would be.
    """
    b, x, channels = zoo.Builder(), "x", 3
    for width, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convs):
            weight = b.constant(f"w{len(b.nodes)}", np.ones((width, channels, 3, 3), np.float16))
            weight = b.node("Cast", [weight], f"{weight}_cast", to=TensorProto.FLOAT)
            x = b.node("Conv", [x, weight], f"t{len(b.nodes)}", pads=[1, 1, 1, 1])
            x, channels = b.node("Relu", [x], f"t{len(b.nodes)}"), width
        pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
        x = b.node("MaxPool", [x], f"t{len(b.nodes)}", **pool)
    b.node("GlobalAveragePool", [x], "y")
    model = b.model(input="x", shape=(1, 3, 640, 640), output="y")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert len(load_onnx(tmp_path / "m.onnx").weight_layers) == 13


def test_max_memory_raises_what_is_bounded_by_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(one_node("Conv", PICTURE, [ONES]).SerializeToString())
    with pytest.raises(ModelError, match=r"x: a picture of 4 x 7 x 9, 252 values; .*--max-memory"):
        load_onnx(path, max_memory=60000)
    assert load_onnx(path, max_memory=10**6).output == "y"


# --- external data --------------------------------------------------------------------------------


def external(folder: Path, **entries: object) -> Path:
    """A model whose weight lies in w.bin, 864 bytes of it, as `entries` say."""
    model = one_node("Conv", PICTURE, [ONES])
    refer(model.graph.initializer[0], **entries)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def refer(tensor: TensorProto, **entries: object) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin"} | entries).items():
        tensor.external_data.add(key=key, value=str(value))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"offset": 4}, "the tensor has 864 bytes, told are 860 at 4 of 864"),
        ({"offset": -4}, "the tensor has 864 bytes, told are 868 at -4 of 864"),
        ({"offset": 10**30}, f"told are {864 - 10**30} at {10**30} of 864"),
        ({"length": 10**12}, "told are 1000000000000 at 0 of 864"),
        ({"length": 860}, "told are 860 at 0 of 864"),
        ({"length": "many"}, "invalid literal for int"),
        ({"location": "/etc/hostname"}, "it is outside the model's folder"),
        ({"location": "../w.bin"}, "it is outside the model's folder"),
        ({"location": "link.bin"}, "it is outside the model's folder"),
        ({"location": "loop"}, "loop"),
        ({"location": "fifo"}, "it is no regular file, or has several hard links"),
        ({"location": "hard.bin"}, "it is no regular file, or has several hard links"),
        ({"location": ""}, "it is no regular file, or has several hard links"),
        ({"location": "a\0b"}, "null"),
        ({"location": "n" * 3000}, "File name too long"),
        ({"location": "sparse.bin"}, "told are 1000000000000 at 0 of 1000000000000"),
    ],
    ids=str,
)
def test_external_data_that_is_not_read(
    entries: dict[str, object], why: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (tmp_path / "w.bin", tmp_path / "other.bin", folder / "w.bin"):
        file.write_bytes(ONES.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "hard.bin").hardlink_to(tmp_path / "other.bin")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    (folder / "sparse.bin").touch()
    os.truncate(folder / "sparse.bin", 10**12)
    path = external(folder, **entries)

    def run() -> None:
        with pytest.raises(ModelError) as caught:
            load_onnx(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: the data of tensor 'c0' cannot be read from '")
        assert why.lower() in message.lower(), message

    assert run_mutants([(str(entries), run)]) == []


def test_a_part_of_a_sparse_file_is_read(tmp_path: Path) -> None:
    """Of 10^12 bytes those that the tensor has."""
    with (tmp_path / "w.bin").open("wb") as file:
        file.seek(10**11)
        file.write(ONES.tobytes())
        file.truncate(10**12)
    path = external(tmp_path, offset=10**11, length=ONES.nbytes)

    def run() -> None:
        (layer,) = load_onnx(path).weight_layers
        assert (layer.weight == ONES).all()

    assert run_mutants([("sparse", run)]) == []


@pytest.mark.parametrize("where", ["an initializer", "constants"])
def test_more_of_sparse_files_than_fits_is_not_read(where: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").touch()
    os.truncate(tmp_path / "w.bin", 1 << 34)
    tensor = TensorProto(name="c0", data_type=TensorProto.INT8, dims=[1 << 34])
    refer(tensor)
    if where == "constants":
        constants = [node("Constant", [], f"k{index}", value=tensor) for index in range(2)]
        model = of_constants([*constants, node("Sum", ["k0", "k1"], "w")], [])
    else:
        model = chain([node("Conv", ["x", "c0"])], PICTURE, [])
        model.graph.initializer.append(tensor)
    expected = f"c0: up to here the model has {1 << 34} bytes of external data; bdcc handles"
    assert_refused(model, tmp_path / "m.onnx", expected)


def test_external_data_in_a_function_lies_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the folder where bdcc runs."""
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model, elsewhere):
        folder.mkdir()
    constant = node("Constant", [], "w", value=numpy_helper.from_array(ONES))
    refer(constant.attribute[0].t)
    body = [constant, node("Conv", ["a", "w"], "b")]
    (model / "m.onnx").write_bytes(of_functions([body]).SerializeToString())
    (elsewhere / "w.bin").write_bytes((2 * ONES).tobytes())
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ModelError, match=r"cannot be read from 'w\.bin'"):
        load_onnx(model / "m.onnx")
    (model / "w.bin").write_bytes((3 * ONES).tobytes())
    (layer,) = load_onnx(model / "m.onnx").weight_layers
    assert isinstance(layer, Conv)
    assert (layer.weight == 3).all()


@pytest.mark.parametrize("what", ["fifo", "sparse"])
def test_a_model_file_without_an_end(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if what == "fifo":
        os.mkfifo(path)
        expected = f"{path}: cannot be read: it is no regular file."
    else:
        path.touch()
        os.truncate(path, 10**12)
        expected = (
            f"{path}: cannot be read: it has 1000000000000 bytes, and at most 4294967296 are read. "
            + MORE
        )
    assert run_mutants([(what, partial(check, path, expected))]) == []
