# SPDX-License-Identifier: 0BSD
"""The model as bdcc sees it: a DAG of nodes over named tensors, batch 1, in ONNX order.

Shapes never carry the batch: a feature map is (C, H, W), a vector is (N,). Everything is frozen;
arrays are
never written after construction. `infer_shapes` is the only place that knows how an operator
changes a shape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
import numpy.typing as npt

from bdcc.errors import ModelError

F32 = npt.NDArray[np.float32]
Shape = tuple[int, ...]
Pair = tuple[int, int]
Pads = tuple[int, int, int, int]  # top, left, bottom, right

MAX_MAGNITUDE = 1e15  # of weights, and of what layers read and make: squares are summed in float32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conv:
    """2-D convolution. weight: float32 [CO, CI/groups, KH, KW]; bias: float32 [CO]."""

    name: str
    input: str
    output: str
    weight: F32
    bias: F32
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    groups: int = 1

    @property
    def kernel(self) -> Pair:
        return (int(self.weight.shape[2]), int(self.weight.shape[3]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """y = weight @ x + bias on a vector (ONNX Gemm, or MatMul and Add). weight: float32 [N, K];
    bias: float32 [N].
    """

    name: str
    input: str
    output: str
    weight: F32
    bias: F32


@dataclass(frozen=True, slots=True, kw_only=True)
class Relu:
    name: str
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxPool:
    name: str
    input: str
    output: str
    kernel: Pair
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    ceil_mode: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePool:
    """count_include_pad: padded positions (not those that ceil_mode adds) count in the divisor."""

    name: str
    input: str
    output: str
    kernel: Pair
    strides: Pair = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalAveragePool:
    name: str
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lrn:
    """y = x / (bias + alpha/size * sum of squares over `size` neighbouring channels)^beta; beta a
    multiple of 1/4.
    """

    name: str
    input: str
    output: str
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Flatten:
    """(C, H, W) -> (C*H*W,), C slowest, as ONNX does; a vector passes unchanged."""

    name: str
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax:
    """Over the channels: of a vector, or at each pixel of a feature map."""

    name: str
    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Concat:
    """Along the channels: feature maps of one size, or vectors. An input may be named twice."""

    name: str
    inputs: tuple[str, ...]
    output: str


Node = (
    Conv
    | Dense
    | Relu
    | MaxPool
    | AveragePool
    | GlobalAveragePool
    | Lrn
    | Flatten
    | Softmax
    | Concat
)
Pool = MaxPool | AveragePool
WeightLayer = Conv | Dense


def reads(node: Node) -> tuple[str, ...]:
    """The tensors that a node reads, in its order."""
    return node.inputs if isinstance(node, Concat) else (node.input,)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """nodes: topological order, each tensor written once; `shapes` has every tensor, the input's
    included.
    """

    name: str
    input: str
    output: str
    nodes: tuple[Node, ...]
    shapes: Mapping[str, Shape]
    sha256: str = ""  # of the ONNX file, "" when built in memory
    _producers: Mapping[str, Node] = field(init=False, repr=False)
    _consumers: Mapping[str, tuple[Node, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(reads(node)):
                consumers.setdefault(tensor, []).append(node)
        producers: dict[str, Node] = {}
        for node in self.nodes:
            producers.setdefault(node.output, node)  # the first, where a name is written twice
        object.__setattr__(self, "_producers", producers)
        object.__setattr__(self, "_consumers", {t: tuple(found) for t, found in consumers.items()})

    @property
    def weight_layers(self) -> tuple[WeightLayer, ...]:
        """Conv and Dense nodes, in order: what can be decomposed."""
        return tuple(node for node in self.nodes if isinstance(node, Conv | Dense))

    def producer(self, tensor: str) -> Node | None:
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        return self._consumers.get(tensor, ())

    def map_shape(self, tensor: str) -> tuple[int, int, int]:
        """(C, H, W) behind a tensor: a vector that a Flatten made has its feature map's shape, any
        other (N, 1, 1).

        This is what makes Flatten free: such a vector lies in memory as [H][W][C], and the dense
        layer's weights
        are permuted instead. Values through Relu keep the layout.
        """
        while len(self.shapes[tensor]) != 3:
            node = self.producer(tensor)
            if not isinstance(node, Flatten | Relu):
                return (self.shapes[tensor][0], 1, 1)
            tensor = node.input
        channels, height, width = self.shapes[tensor]
        return (channels, height, width)


def op_name(node: Node) -> str:
    """The ONNX name of a node's operator."""
    match node:
        case Dense():
            return "Gemm"
        case Lrn():
            return "LRN"
        case _:
            return type(node).__name__


def extent(
    size: int,
    kernel: int,
    stride: int,
    pad: int,
    dilation: int = 1,
    *,
    ceil_mode: bool = False,
    begin: int = 0,
) -> int:
    """Output extent of a window sliding over one axis; pad is begin + end.

    With ceil_mode a last, partial window counts if it starts inside the input or its begin padding.
    """
    span = size + pad - dilation * (kernel - 1) - 1
    if span < 0:
        return 0
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + begin else count


def _window(node: Conv | Pool, shape: Shape) -> Pair:
    if len(shape) != 3:
        raise ModelError(f"needs a feature map (C, H, W), got shape {shape}", layer=node.name)
    top, left, bottom, right = node.pads
    ceil = not isinstance(node, Conv) and node.ceil_mode
    height = extent(
        shape[1],
        node.kernel[0],
        node.strides[0],
        top + bottom,
        node.dilations[0],
        ceil_mode=ceil,
        begin=top,
    )
    width = extent(
        shape[2],
        node.kernel[1],
        node.strides[1],
        left + right,
        node.dilations[1],
        ceil_mode=ceil,
        begin=left,
    )
    if height < 1 or width < 1:
        raise ModelError(
            f"kernel {node.kernel} does not fit its padded input of {shape[1]}x{shape[2]}",
            layer=node.name,
        )
    return height, width


def output_shape(node: Node, *inputs: Shape) -> Shape:
    """Shape of the node's output for inputs of these shapes; raises ModelError, naming the node, if
    they do not fit.
    """
    shape = inputs[0]
    match node:
        case Conv():
            height, width = _window(node, shape)
            channels = node.weight.shape[1] * node.groups
            if shape[0] != channels or node.weight.shape[0] % node.groups:
                raise ModelError(
                    f"weight {node.weight.shape} with {node.groups} groups does not fit"
                    f" {shape[0]} input channels",
                    layer=node.name,
                )
            return (int(node.weight.shape[0]), height, width)
        case Dense():
            if shape != (node.weight.shape[1],):
                raise ModelError(
                    f"expects a vector of {node.weight.shape[1]} features, got shape {shape}",
                    layer=node.name,
                )
            return (int(node.weight.shape[0]),)
        case MaxPool() | AveragePool():
            height, width = _window(node, shape)
            return (shape[0], height, width)
        case GlobalAveragePool():
            if len(shape) != 3:
                raise ModelError(
                    f"needs a feature map (C, H, W), got shape {shape}", layer=node.name
                )
            return (shape[0], 1, 1)
        case Flatten():
            return (math.prod(shape),)
        case Relu() | Lrn() | Softmax():
            return shape
        case Concat():
            for other in inputs[1:]:
                if len(other) != len(shape) or other[1:] != shape[1:]:
                    raise ModelError(
                        f"joins shapes {shape} and {other}, which differ in more than channels",
                        layer=node.name,
                    )
            return (sum(each[0] for each in inputs), *shape[1:])
        case _:
            assert_never(node)


def infer_shapes(nodes: Iterable[Node], input_name: str, input_shape: Shape) -> dict[str, Shape]:
    """Shape of every tensor, from the input's; nodes in topological order."""
    shapes = {input_name: input_shape}
    for node in nodes:
        shapes[node.output] = output_shape(node, *(shapes[t] for t in reads(node)))
    return shapes


def macs(node: Node, shapes: Mapping[str, Shape]) -> int:
    """Multiply-accumulates of one inference (padding counted as if it were data)."""
    match node:
        case Conv():
            _, height, width = shapes[node.output]
            return int(node.weight.size) * height * width
        case Dense():
            return int(node.weight.size)
        case _:
            return 0


def make_graph(
    *,
    name: str,
    input_name: str,
    input_shape: Shape,
    output: str,
    nodes: Iterable[Node],
    sha256: str = "",
) -> Graph:
    """A Graph with its shapes worked out; nodes that do not lead to `output` are dropped."""
    ordered = tuple(nodes)
    needed = {output}
    for node in reversed(ordered):
        if node.output in needed:
            needed.update(reads(node))
    kept = tuple(node for node in ordered if node.output in needed)
    return Graph(
        name=name,
        input=input_name,
        output=output,
        nodes=kept,
        shapes=infer_shapes(kept, input_name, input_shape),
        sha256=sha256,
    )
