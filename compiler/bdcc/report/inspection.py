# SPDX-License-Identifier: 0BSD
"""What `bdcc inspect` shows: the layers of a model, and which of them can be decomposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from bdcc.codegen.escape import CELL_MOST
from bdcc.errors import one_line
from bdcc.ir.graph import (
    AveragePool,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Graph,
    Lrn,
    MaxPool,
    Node,
    Relu,
    Softmax,
    macs,
    op_name,
)
from bdcc.report.text import many, table


def _reason(node: Node) -> str | None:
    """Why a node stays float; None for those that are decomposed."""
    match node:
        case Conv() | Dense():
            return None
        case Relu() | MaxPool():
            return "no weights; works on codes where the next layer reads codes"
        case Flatten():
            return "no weights; moves nothing"
        case Concat():
            return "no weights; what it joins is written side by side"
        case AveragePool() | GlobalAveragePool():
            return "no weights; a mean needs floats"
        case Lrn() | Softmax():
            return "no weights; its powers need floats"
        case _:
            assert_never(node)


def inspect_graph(graph: Graph) -> dict[str, Any]:
    """Of each node: name, op, output shape, MACs, parameters, and why it stays float (None: it does
    not).
    """
    rows = []
    for node in graph.nodes:
        weights = int(node.weight.size + node.bias.size) if isinstance(node, Conv | Dense) else 0
        rows.append(
            {
                "name": node.name,
                "op": op_name(node),
                "shape": list(graph.shapes[node.output]),
                "macs": macs(node, graph.shapes),
                "parameters": weights,
                "stays_float": _reason(node),
            }
        )
    return {
        "model": graph.name,
        "sha256": graph.sha256,
        "input": {"name": graph.input, "shape": list(graph.shapes[graph.input])},
        "output": {"name": graph.output, "shape": list(graph.shapes[graph.output])},
        "layers": rows,
        "macs": sum(row["macs"] for row in rows),
        "parameters": sum(row["parameters"] for row in rows),
        "keep_float": [layer.name for layer in graph.weight_layers],
    }


def inspection_text(found: Mapping[str, Any]) -> str:
    def shape(sizes: list[int]) -> str:
        return "x".join(str(n) for n in sizes)

    rows = [
        [
            layer["name"],
            layer["op"],
            layer["stays_float"] or "decomposed",
            shape(layer["shape"]),
            many(layer["macs"]) if layer["macs"] else "",
            many(layer["parameters"]) if layer["parameters"] else "",
        ]
        for layer in found["layers"]
    ]
    header = ["layer", "op", "weights", "output", "MACs", "parameters"]
    ends = [
        f"{one_line(found[end]['name'], most=CELL_MOST)} {shape(found[end]['shape'])}"
        for end in ("input", "output")
    ]
    return "\n".join(
        (
            f"{one_line(found['model'], most=CELL_MOST)}: input {ends[0]}, output {ends[1]}, "
            f"{many(found['macs'])} MACs, {many(found['parameters'])} parameters",
            "",
            table(header, rows, left=3),
            "",
            one_line(f"--keep-float takes: {', '.join(found['keep_float']) or 'nothing'}"),
        )
    )
