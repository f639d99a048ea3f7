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

from bdcc.errors import ModelError
from bdcc.ir import onnx_fold
from bdcc.ir.graph import Graph, Node, Shape, make_graph, reads
from bdcc.ir.onnx_attributes import label, operator_type, read_attributes
from bdcc.ir.onnx_file import EXPORT, OnnxFile, read_onnx
from bdcc.ir.onnx_layers import SUPPORTED, convert, unsupported
from bdcc.ir.onnx_limits import MAX_MEMORY, Budget
from bdcc.ir.onnx_operator import Operator, Tensor, Value


def load_onnx(path: Path, *, max_memory: int = MAX_MEMORY) -> Graph:
    """Read an ONNX file; raises ModelError, naming file, node or tensor, for what bdcc cannot take.

    max_memory: bytes that bound weights, activations and work (`onnx_limits.py`).
    The batch becomes 1. Tensor names stay ONNX's; a layer has its node's name, else its output
    tensor's, made unique. `sha256` is the file's, continued over tensors stored outside it.
    """
    try:
        budget = Budget(max_memory=max_memory)
        return _to_graph(read_onnx(path, budget), budget)
    except UnicodeDecodeError as error:  # from any access to a name
        raise ModelError("holds a damaged name", layer=str(path), hint=EXPORT) from error


def _to_graph(file: OnnxFile, budget: Budget) -> Graph:
    walk = _Walk(opset=file.opset, budget=budget, values=dict(file.constants))
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
    budget: Budget
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
        if twice or len(set(proto.output)) < len(proto.output):
            found = twice or proto.output[0]
            raise ModelError(f"writes '{found}', which is written before", layer=name)
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        constant = not tensors and onnx_fold.foldable(proto)
        if not constant and operator_type(proto) not in SUPPORTED:
            raise unsupported(proto)
        attributes = read_attributes(proto, self.opset)
        if constant:
            constants = [value for value in inputs if not isinstance(value, Tensor)]
            self.values |= onnx_fold.fold(
                proto, constants, attributes, opset=self.opset, budget=self.budget, label=name
            )
            return
        operator = Operator(
            proto=proto,
            opset=self.opset,
            inputs=inputs,
            producer=self.nodes.get(tensors[0].name) if tensors else None,
            attributes=attributes,
            budget=self.budget,
        )
        self.values[operator.output] = self._keep(convert(operator), operator)
        self.lost |= {n: name for n in proto.output[1:] if n}

    def _keep(self, result: Node | Value, operator: Operator) -> Value:
        if isinstance(result, Tensor | np.ndarray):
            return result
        sources = [self.shapes[tensor] for tensor in reads(result)]
        shape = operator.output_shape(result, *sources)
        self.budget.node(result, sources[0], shape, layer=label(operator.proto))
        self.nodes[result.output] = result
        self.shapes[result.output] = shape
        return Tensor(name=result.output, shape=shape)


def _uniquely_named(nodes: Iterable[Node]) -> Iterable[Node]:
    last: dict[str, int] = {}  # the number that a name was given last
    for node in nodes:
        name = node.name
        while name in last:
            last[node.name] += 1
            name = f"{node.name}_{last[node.name]}"
        last[name] = 1
        yield node if name == node.name else replace(node, name=name)
