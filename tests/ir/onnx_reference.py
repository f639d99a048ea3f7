# SPDX-License-Identifier: 0BSD
"""What others say a model computes: onnxruntime's values and onnx's shapes, by tensor name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, inliner, numpy_helper

from bdcc.approx.simulate import run_float
from bdcc.ir.graph import Graph
from bdcc.ir.onnx_import import load_onnx

TOLERANCE = 1e-5  # of the largest value of the tensor: float32 sums in another order


def run_onnxruntime(
    model: onnx.ModelProto, x: np.ndarray, tensors: Iterable[str]
) -> dict[str, np.ndarray]:
    """Values of `tensors`, which become outputs; x: [1, C, H, W]."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    names = list(tensors)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    shown.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # weights that are inputs too are not worth a line each
    session = onnxruntime.InferenceSession(
        shown.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    weights = {tensor.name for tensor in model.graph.initializer}
    (picture,) = (value.name for value in model.graph.input if value.name not in weights)
    return dict(zip(names, session.run(names, {picture: x}), strict=True))


def assert_close(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape, name
    largest = float(np.abs(expected).max()) or 1.0
    assert float(np.abs(found - expected).max()) <= TOLERANCE * largest, name


def check_against_onnxruntime(model: onnx.ModelProto, path: Path, *, seed: int = 1) -> Graph:
    """Load the model from `path` and compare every tensor of the graph for one random picture."""
    onnx.save(model, path)
    graph = load_onnx(path)
    shape = graph.shapes[graph.input]
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    found = run_float(graph, x)
    expected = run_onnxruntime(model, x[None], [node.output for node in graph.nodes])
    for name, values in expected.items():
        assert_close(name, found[name], values[0])
    return graph


def one_node(
    op: str,
    shape: tuple[int | str, ...],
    constants: Iterable[np.ndarray | None] = (),
    *,
    opset: int = 13,
    first: bool = True,
    name: str = "",
    **attributes: object,
) -> onnx.ModelProto:
    """A model of one operator on the picture 'x' and constants 'c0', 'c1', .. (None: left out).

    first: the picture is the first operand, else the last.
    """
    given = list(constants)
    names = ["" if value is None else f"c{i}" for i, value in enumerate(given)]
    inputs = ["x", *names] if first else [*names, "x"]
    return chain(
        [helper.make_node(op, inputs, ["y"], name=name, **attributes)], shape, given, opset
    )


def chain(
    nodes: Iterable[onnx.NodeProto],
    shape: tuple[int | str, ...],
    constants: Iterable[np.ndarray | None] = (),
    opset: int = 13,
    output: str = "y",
) -> onnx.ModelProto:
    """A model from picture 'x' to `output` with initializers 'c0', 'c1', .."""
    initializers = [
        numpy_helper.from_array(value, f"c{i}")
        for i, value in enumerate(constants)
        if value is not None
    ]
    graph = helper.make_graph(
        list(nodes),
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
