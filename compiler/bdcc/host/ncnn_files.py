# SPDX-License-Identifier: 0BSD
"""A Graph as ncnn's pair of files, since ncnn reads no ONNX: NAME.param, text with a line per
layer, and NAME.bin, their weights one behind the other.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

import numpy as np

from bdcc.errors import ModelError
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
    Pool,
    Relu,
    Softmax,
    reads,
)

MAGIC = 7767517
INPUT, OUTPUT = "input", "output"  # what they are called there
RAW_FLOATS = np.zeros(1, "<u4").tobytes()  # in front of weights: they are float32
RELU = "9=1"  # the activation of a weight layer


class _Writer:
    """Lines of a .param file. A tensor that several layers read has a copy for each, as ncnn wants
    it: a Split layer names them.
    """

    def __init__(self, graph: Graph) -> None:
        channels, height, width = graph.shapes[graph.input]
        self.lines: list[str] = []
        self.blobs = 0
        self._graph = graph
        self._names: dict[str, list[str]] = {}
        self.add("Input", (), graph.input, f"0={width} 1={height} 2={channels}", name=INPUT)

    def add(
        self, kind: str, read: tuple[str, ...], output: str, parameters: str, *, name: str = ""
    ) -> None:
        sources = [self._names[tensor].pop() for tensor in read]
        name = name or (OUTPUT if output == self._graph.output else f"t{len(self.lines)}")
        self._line(kind, sources, [name], parameters)
        count = sum(reads(node).count(output) for node in self._graph.consumers(output))
        if count > 1:
            copies = [f"{name}_{index}" for index in range(count)]
            self._line("Split", [name], copies, "")
            self._names[output] = copies
        else:
            self._names[output] = [name]

    def _line(self, kind: str, sources: list[str], names: list[str], parameters: str) -> None:
        parts = (kind, f"l{len(self.lines)}", str(len(sources)), str(len(names)))
        self.lines.append(" ".join((*parts, *sources, *names, parameters)))
        self.blobs += len(names)

    def text(self) -> str:
        return "\n".join([str(MAGIC), f"{len(self.lines)} {self.blobs}", *self.lines, ""])


def write_ncnn(graph: Graph, param: Path) -> Path:
    """Writes param and the .bin beside it, which is returned. A Relu behind a weight layer becomes
    part of it, as ncnn's own tools have it. Raises ModelError for what ncnn has not got.
    """
    writer, binary, done = _Writer(graph), param.with_suffix(".bin"), set()
    with binary.open("wb") as weights:
        for node in graph.nodes:
            if node.output in done:
                continue
            output, (kind, parameters) = node.output, _layer(node)
            after = graph.consumers(output)
            if isinstance(node, Conv | Dense):
                weights.write(RAW_FLOATS)
                weights.write(node.weight.astype("<f4").tobytes())
                weights.write(node.bias.astype("<f4").tobytes())
                if len(after) == 1 and isinstance(after[0], Relu):
                    output, parameters = after[0].output, f"{parameters} {RELU}"
                    done.add(output)
            writer.add(kind, reads(node), output, parameters)
    param.write_text(writer.text(), "ascii")
    return binary


def _layer(node: Node) -> tuple[str, str]:
    """The layer's type and parameters, by ncnn's numbers."""
    match node:
        case Conv():
            kind = "Convolution" if node.groups == 1 else "ConvolutionDepthWise"
            (top, left, bottom, right), (kh, kw) = node.pads, node.kernel
            (sh, sw), (dh, dw) = node.strides, node.dilations
            window = f"1={kw} 11={kh} 2={dw} 12={dh} 3={sw} 13={sh}"
            pads = f"4={left} 14={top} 15={right} 16={bottom}"
            count = f"0={node.weight.shape[0]} 5=1 6={node.weight.size} 7={node.groups}"
            return kind, f"{count} {window} {pads}"
        case Dense():
            return "InnerProduct", f"0={node.weight.shape[0]} 1=1 2={node.weight.size}"
        case MaxPool():
            return "Pooling", f"0=0 {_window(node)}"
        case AveragePool():
            return "Pooling", f"0=1 {_window(node)} 6={int(node.count_include_pad)}"
        case GlobalAveragePool():
            return "Pooling", "0=1 4=1"
        case Lrn():
            if node.size % 2 == 0:
                raise ModelError(
                    "ncnn centres windows of an even size differently", layer=node.name
                )
            numbers = f"2={node.alpha:.9g} 3={node.beta:.9g} 4={node.bias:.9g}"
            return "LRN", f"0=0 1={node.size} {numbers}"
        case Relu():
            return "ReLU", ""
        case Flatten():
            return "Flatten", ""
        case Softmax():
            return "Softmax", "0=0 1=1"
        case Concat():
            return "Concat", "0=0"
        case _:
            assert_never(node)


def _window(node: Pool) -> str:
    if node.dilations != (1, 1):
        raise ModelError("ncnn has no pools with dilation", layer=node.name)
    (top, left, bottom, right), (kh, kw), (sh, sw) = node.pads, node.kernel, node.strides
    pads = f"3={left} 13={top} 14={right} 15={bottom} 5={0 if node.ceil_mode else 1}"
    return f"1={kw} 11={kh} 2={sw} 12={sh} {pads}"
