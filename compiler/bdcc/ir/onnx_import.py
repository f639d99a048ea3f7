# SPDX-License-Identifier: 0BSD
"""ONNX to Graph: one pass over the operators of the file.

A name of the file stands for a constant or for a tensor of the graph. An operator on constants is
worked out at once; one that changes nothing at inference (Dropout, Identity, a Reshape to the same
shape) makes its output another name of its input; any other becomes a node or is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import checker, helper

from bdcc.errors import ModelError
from bdcc.ir import onnx_fold
from bdcc.ir.graph import Graph, Node, Shape, make_graph, reads
from bdcc.ir.onnx_file import OnnxFile, first_line, read_onnx
from bdcc.ir.onnx_layers import SUPPORTED, convert, unsupported
from bdcc.ir.onnx_operator import Operator, Tensor, Value, label, operator_type


def load_onnx(path: Path) -> Graph:
    """Read an ONNX file; raises ModelError, naming file, node or tensor, for what bdcc cannot take.

    The batch becomes 1. Tensor names stay ONNX's; a layer has its node's name, else its output
    tensor's, made unique. `sha256` is the file's, continued over tensors stored outside it.
    """
    try:
        return _to_graph(read_onnx(path))
    except UnicodeDecodeError as error:  # from any access to a name
        raise ModelError("holds a damaged name", layer=str(path)) from error


def _to_graph(file: OnnxFile) -> Graph:
    walk = _Walk(opset=file.opset, values=dict(file.constants))
    walk.shapes[file.input] = file.input_shape
    walk.values[file.input] = Tensor(name=file.input, shape=file.input_shape)
    for proto in file.nodes:
        walk.step(proto)
    output = walk.look_up(file.output, reader="the model's output")
    if not isinstance(output, Tensor) or output.name == file.input:
        raise ModelError("the output does not depend on any layer", layer=file.output)
    graph = make_graph(
        name=file.name,
        input_name=file.input,
        input_shape=file.input_shape,
        output=output.name,
        nodes=walk.nodes.values(),
        sha256=file.sha256,
    )
    return replace(graph, nodes=tuple(_uniquely_named(graph.nodes)))


@dataclass(slots=True, kw_only=True, eq=False)
class _Walk:
    """The state of one pass: what each ONNX name stands for, and the nodes so far by output."""

    opset: int
    values: dict[str, Value]
    nodes: dict[str, Node] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)  # outputs that nothing computes, by whom

    def look_up(self, name: str, *, reader: str) -> Value:
        if name in self.values:
            return self.values[name]
        if name in self.lost:
            raise ModelError(
                f"reads '{name}' of {self.lost[name]}; bdcc computes first outputs only",
                layer=reader,
            )
        raise ModelError(f"reads '{name}', which nothing before it writes", layer=reader)

    def step(self, proto: onnx.NodeProto) -> None:
        name = label(proto)
        inputs = tuple(self.look_up(n, reader=name) if n else None for n in proto.input)
        if not proto.output or not proto.output[0]:
            raise ModelError("has no output", layer=name)
        twice = next((n for n in proto.output if n in self.values or n in self.lost), None)
        if twice:
            raise ModelError(f"writes '{twice}', which is written before", layer=name)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if not tensors and onnx_fold.foldable(proto):
            _check(proto, self.opset)
            constants = {
                given: value
                for given, value in zip(proto.input, inputs, strict=True)
                if isinstance(value, np.ndarray)
            }
            self.values |= onnx_fold.fold(proto, constants, opset=self.opset, label=name)
            return
        if operator_type(proto) not in SUPPORTED:
            raise unsupported(proto)
        _check(proto, self.opset)
        operator = Operator(
            proto=proto,
            opset=self.opset,
            inputs=inputs,
            producer=self.nodes.get(tensors[0].name) if tensors else None,
            attributes={a.name: helper.get_attribute_value(a) for a in proto.attribute},
        )
        self.values[operator.output] = self._keep(convert(operator), operator)
        self.lost |= {n: name for n in proto.output[1:] if n}

    def _keep(self, result: Node | Value, operator: Operator) -> Value:
        if isinstance(result, Tensor | np.ndarray):
            return result
        shape = operator.output_shape(result, *(self.shapes[t] for t in reads(result)))
        self.nodes[result.output] = result
        self.shapes[result.output] = shape
        return Tensor(name=result.output, shape=shape)


def _check(proto: onnx.NodeProto, opset: int) -> None:
    """Number of inputs, names and types of attributes: as the operator's definition wants them."""
    context = checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    try:
        checker.check_node(proto, context)
    except checker.ValidationError as error:
        raise ModelError(f"is not valid ONNX: {first_line(error)}", layer=label(proto)) from error


def _uniquely_named(nodes: Iterable[Node]) -> Iterable[Node]:
    taken: set[str] = set()
    for node in nodes:
        name, number = node.name, 1
        while name in taken:
            number += 1
            name = f"{node.name}_{number}"
        taken.add(name)
        yield node if name == node.name else replace(node, name=name)
