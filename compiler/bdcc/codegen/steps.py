# SPDX-License-Identifier: 0BSD
"""The steps of a network: which tensors live as codes and which as floats, and which nodes one step
covers (a Relu joins its layer, a Flatten is free, a Concat's inputs are written side by side).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import Decomposition, QuantizedModel, TensorQuant
from bdcc.approx.quantize import quantize_array
from bdcc.approx.simulate import layer_constants
from bdcc.codegen.binary import FAMILIES, Family, plan_binary
from bdcc.codegen.bounds import magnitude_bounds
from bdcc.codegen.geometry import check_int32, lrn_scratch_bytes, pack_layer, pool_geometry
from bdcc.codegen.names import PART_MOST, c_identifier
from bdcc.codegen.packing import pack_float_filters, side_by_side
from bdcc.data.preprocess import Preprocess
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
    WeightLayer,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """A tensor in memory as [H][W][C]: float32 (bits 0) or uint8 codes of `bits` bits.

    name: of its block of the arena; shape: (C, H, W); pitch: values of the block per pixel, of
    which the tensor has those from `start` on: all, unless it is a slice of what a Concat makes.
    """

    name: str
    shape: tuple[int, int, int]
    bits: int
    pitch: int
    start: int = 0

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def value_bytes(self) -> int:
        return 1 if self.bits else 4

    @property
    def block_bytes(self) -> int:
        return self.pitch * self.shape[1] * self.shape[2] * self.value_bytes

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs of neighbouring values it consists of, and the length of each."""
        whole = self.pitch == self.shape[0]
        return (1, self.count) if whole else (self.count // self.shape[0], self.shape[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One C function. `tensor` is the graph tensor whose values it leaves in `output`; when those
    are codes, `quant` names
    the tensor whose range they were made with. `values` are the constants its template reads,
    `sections` its weights; `private_bytes`, at the end of the scratch, each thread has its own;
    `scratch_by_family`: what scratch a decomposed layer would take with each family."""

    kind: str
    name: str
    layer: str
    tensor: str
    quant: str | None
    input: Buffer | None
    output: Buffer | None
    scratch_bytes: int = 0
    private_bytes: int = 0
    scratch_by_family: Mapping[Family, int] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    sections: tuple[str, ...] = ()


# Kinds of step that write their output in one piece. The others can leave room between pixels.
WHOLE = ("relu", "lrn", "softmax")


class StepBuilder:
    """Walks the graph once, in order. The only mutable thing here; it does not outlive
    make_plan.
    """

    def __init__(
        self,
        model: QuantizedModel,
        preprocess: Preprocess | None,
        *,
        families: Mapping[str, Family],
        isas: Sequence[str],
    ) -> None:
        self.model = model
        self.families = families
        self.isas = isas
        self.graph: Graph = model.graph
        self.static = {t: q for t, q in model.tensors.items() if not q.dynamic}
        self.steps: list[Step] = []
        self.arrays: dict[str, Array] = {}
        self.floats: dict[str, Buffer] = {}  # tensor -> its float buffer
        self.codes: dict[str, Buffer] = {}  # tensor -> its codes
        self.absorbed: set[str] = set()  # tensors that never exist in memory
        self.bounds = magnitude_bounds(model)
        self.carried = carried_codes(model, self.bounds)
        self.names: set[str] = set()
        self.repeats = Counter[str]()  # of names: how often another had to be made of it
        self.preprocess = preprocess

    def build(self) -> tuple[Step, ...]:
        graph = self.graph
        self._add_input()
        for node in graph.nodes:
            if node.output not in self.absorbed:
                self._add_node(node)
        self._add_output()
        return tuple(self.steps)

    # Where tensors lie

    def _unique(self, wanted: str) -> str:
        stem = name = c_identifier(wanted)[:PART_MOST]
        while name in self.names:
            self.repeats[stem] += 1
            name = f"{stem}_{self.repeats[stem] + 1}"
        self.names.add(name)
        return name

    def _buffer(self, tensor: str, quant: str | None, *, sliced: bool = True) -> Buffer:
        """Where floats or codes of `tensor` go: into the block of the Concat that alone reads them,
        if they are `sliced`, or a block of their own.
        """
        shape, readers = self.graph.map_shape(tensor), self.graph.consumers(tensor)
        if sliced and len(readers) == 1 and isinstance(join := readers[0], Concat):
            once, alike = join.inputs.count(tensor) == 1, self.carried[join.output] == quant
            if once and alike and lies_in_onnx_order(self.graph, tensor):
                return self._slice(join, join.inputs.index(tensor), quant)
        bits = self.static[quant].bits if quant else 0
        suffix = f"#{bits}" if bits else ""
        return Buffer(name=_block(tensor) + suffix, shape=shape, bits=bits, pitch=shape[0])

    def _slice(self, join: Concat, index: int, quant: str | None) -> Buffer:
        """Where the input of this index goes in the Concat's block."""
        whole = self._buffer(join.output, quant)
        channels = [self.graph.shapes[tensor][0] for tensor in join.inputs]
        shape = (channels[index], *whole.shape[1:])
        return replace(whole, shape=shape, start=whole.start + sum(channels[:index]))

    def _codes(self, tensor: str, quant: str | None) -> Buffer | None:
        """The tensor's codes if they were made with this range."""
        return self.codes[tensor] if quant and self.carried[tensor] == quant else None

    def _leave(self, tensor: str, buffer: Buffer, quant: str | None) -> None:
        """Record where a tensor lies, and quantize it here if a later layer reads its codes."""
        if quant:
            self.codes[tensor] = buffer
            return
        self.floats[tensor] = buffer
        wanted = tensor if tensor in self.static else self.carried[tensor]
        if wanted:
            codes = self._buffer(tensor, wanted)
            self.steps.append(
                Step(
                    kind="quantize",
                    name=self._unique(f"{tensor}_codes"),
                    layer=wanted,
                    tensor=tensor,
                    quant=wanted,
                    input=buffer,
                    output=codes,
                    values={"quant": _quant_values(self.static[wanted])},
                )
            )
            self.codes[tensor] = codes

    def _step(
        self, kind: str, node: Node, *, tensor: str, quant: str | None, source: Buffer, **rest: Any
    ) -> None:
        output = self._buffer(tensor, quant, sliced=kind not in WHOLE)
        self.steps.append(
            Step(
                kind=kind,
                name=self._unique(node.name),
                layer=node.name,
                tensor=tensor,
                quant=quant,
                input=source,
                output=output,
                **rest,
            )
        )
        self._leave(tensor, output, quant)

    # Steps

    def _add_input(self) -> None:
        """The caller's floats or pixels; as codes at once if nothing reads floats."""
        tensor = self.graph.input
        quant = self.carried[tensor]
        made = self.static[quant] if quant else None
        buffer = self._buffer(tensor, quant, sliced=False)
        sections: tuple[str, ...] = ()
        if self.preprocess is not None:
            table = self.preprocess.table()
            self.arrays["pixel_table"] = np.ascontiguousarray(
                quantize_array(table, made) if made else table.astype(np.float32, copy=False)
            )
            sections = ("pixel_table",)
        self.steps.append(
            Step(
                kind="input",
                name=self._unique("input"),
                layer=tensor,
                tensor=tensor,
                quant=quant,
                input=None,
                output=buffer,
                values={"quant": _quant_values(made) if made else None},
                sections=sections,
            )
        )
        self._leave(tensor, buffer, quant)

    def _add_output(self) -> None:
        tensor = self.graph.output
        self.steps.append(
            Step(
                kind="output",
                name=self._unique("output"),
                layer=tensor,
                tensor=tensor,
                quant=None,
                input=self.floats[tensor],
                output=None,
            )
        )

    def _add_node(self, node: Node) -> None:
        match node:
            case Conv() | Dense():
                decomposition = self.model.decomposed.layers.get(node.name)
                if decomposition is None:
                    self._add_float_layer(node)
                else:
                    self._add_binary_layer(node, decomposition)
            case Flatten():
                self._pass_on(node)
            case MaxPool():
                quant = self.carried[node.output]
                source = self._codes(node.input, quant)
                if source is not None:
                    self._step(
                        "max_pool_codes",
                        node,
                        tensor=node.output,
                        quant=quant,
                        source=source,
                        values=self._pool(node),
                    )
                else:
                    self._step(
                        "max_pool_float",
                        node,
                        tensor=node.output,
                        quant=None,
                        source=self.floats[node.input],
                        values=self._pool(node)
                        | {"finite": int(np.isfinite(self.bounds[node.input]))},
                    )
            case AveragePool():
                self._step(
                    "average_pool",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self.floats[node.input],
                    values=self._pool(node),
                )
            case GlobalAveragePool():
                self._step(
                    "global_average_pool",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self.floats[node.input],
                )
            case Relu():
                if self._codes(node.input, self.carried[node.output]):
                    self._pass_on(node)
                else:
                    self._step(
                        "relu",
                        node,
                        tensor=node.output,
                        quant=None,
                        source=self.floats[node.input],
                    )
            case Concat():
                self._join(node)
            case Lrn():
                quant = self.carried[node.output]
                channels, height, width = self.graph.map_shape(node.output)
                self._step(
                    "lrn",
                    node,
                    tensor=node.output,
                    quant=quant,
                    source=self._in_onnx_order(node, node.input),
                    scratch_bytes=lrn_scratch_bytes(channels, node.size),
                    values={
                        "geometry": (
                            ("pixels", height * width),
                            ("channels", channels),
                            ("size", node.size),
                            ("alpha_over_size", c_float(np.float32(node.alpha / node.size))),
                            ("bias", c_float(np.float32(node.bias))),
                            ("beta_quarters", round(node.beta * 4)),
                        ),
                        "size": node.size,
                        "quant": _quant_values(self.static[quant]) if quant else None,
                    },
                )
            case Softmax():
                self._step(
                    "softmax",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self._in_onnx_order(node, node.input),
                )
            case _:
                assert_never(node)

    def _pass_on(self, node: Flatten | Relu) -> None:
        """What the node makes lies where its input does."""
        quant = self.carried[node.output]
        codes = self._codes(node.input, quant)
        if codes is not None:
            self._leave(node.output, codes, quant)
        else:
            self._leave(node.output, self.floats[node.input], None)

    def _join(self, node: Concat) -> None:
        """Copy or quantize those inputs that their layers could not leave in the Concat's block."""
        quant = self.carried[node.output]
        for index, tensor in enumerate(node.inputs):
            output = self._slice(node, index, quant)
            codes = self._codes(tensor, quant)
            source = codes or self._in_onnx_order(node, tensor)
            if source == output:
                continue
            made = quant is not None and codes is None
            self.steps.append(
                Step(
                    kind="quantize" if made else "concat",
                    name=self._unique(f"{node.name}_{index}"),
                    layer=node.name,
                    tensor=tensor,
                    quant=quant,
                    input=source,
                    output=output,
                    values={"quant": _quant_values(self.static[quant])} if quant and made else {},
                )
            )
        self._leave(node.output, self._buffer(node.output, quant), quant)

    def _in_onnx_order(self, node: Node, tensor: str) -> Buffer:
        """Some work along a vector's elements, whose order matters: undo a free Flatten."""
        source = self.floats[tensor]
        if lies_in_onnx_order(self.graph, tensor):
            return source
        buffer = Buffer(
            name=f"{_block(tensor)}#onnx", shape=(source.count, 1, 1), bits=0, pitch=source.count
        )
        self.steps.append(
            Step(
                kind="reorder",
                name=self._unique(f"{node.name}_order"),
                layer=node.name,
                tensor=tensor,
                quant=None,
                input=source,
                output=buffer,
            )
        )
        return buffer

    def _pool(self, node: MaxPool | AveragePool) -> dict[str, Any]:
        source, output = (self.graph.map_shape(t) for t in (node.input, node.output))
        return pool_geometry(node, source=source, output=output)

    def _fused_relu(self, node: WeightLayer) -> tuple[bool, str]:
        """Whether the layer's only reader is a Relu, and the tensor that the fused step writes."""
        consumers = self.graph.consumers(node.output)
        if (
            len(consumers) == 1
            and isinstance(consumers[0], Relu)
            and node.output != self.graph.output
        ):
            if node.output in self.static:
                return False, node.output
            self.absorbed.add(consumers[0].output)
            return True, consumers[0].output
        return False, node.output

    def _add_float_layer(self, node: WeightLayer) -> None:
        relu, tensor = self._fused_relu(node)
        channels, in_h, in_w = self.graph.map_shape(node.input)
        weight, bias = f"{node.name}.weight", f"{node.name}.bias"
        self.arrays[bias] = node.bias
        values: dict[str, Any]
        if isinstance(node, Conv):
            out_c, out_h, out_w = self.graph.map_shape(node.output)
            self.arrays[weight] = pack_float_filters(node.weight, groups=node.groups)
            values = {
                "relu": int(relu),
                "geometry": (
                    ("in_h", in_h), ("in_w", in_w), ("in_c", channels),
                    ("out_h", out_h), ("out_w", out_w), ("out_c", out_c),
                    ("kernel_h", node.kernel[0]), ("kernel_w", node.kernel[1]),
                    ("stride_h", node.strides[0]), ("stride_w", node.strides[1]),
                    ("pad_top", node.pads[0]), ("pad_left", node.pads[1]),
                    ("dilation_h", node.dilations[0]), ("dilation_w", node.dilations[1]),
                    ("groups", node.groups),
                ),
            }  # fmt: skip
            kind = "conv_float"
        else:
            physical = node.weight.reshape(-1, channels, in_h, in_w).transpose(2, 3, 1, 0)
            self.arrays[weight] = np.ascontiguousarray(physical.reshape(-1, node.weight.shape[0]))
            values = {"relu": int(relu), "k": node.weight.shape[1], "n": node.weight.shape[0]}
            kind = "dense_float"
        self._step(
            kind,
            node,
            tensor=tensor,
            quant=None,
            source=self.floats[node.input],
            values=values,
            sections=(weight, bias),
        )

    def _add_binary_layer(self, node: WeightLayer, decomposition: Decomposition) -> None:
        quant = self.model.tensors[node.input]
        relu, tensor = self._fused_relu(node)
        carried = self.carried[tensor]
        channels, in_h, in_w = self.graph.map_shape(node.input)
        check_int32(node, decomposition, quant)
        packed = pack_layer(node, decomposition, (channels, in_h, in_w))
        scale, bias, sums = layer_constants(decomposition, quant)
        family = self.families.get(node.name, "popcount")
        codes_lie_ready = family == "bytedot" and packed.form == "vector"
        sections = {
            "weights": side_by_side(packed.weights) if codes_lie_ready else packed.weights,
            "coefficients": packed.coefficients,
            "valid": packed.valid,
            "scale": scale,
            "bias": bias,
        }
        if quant.dynamic:
            sections["sums"] = sums
        for part, array in sections.items():
            self.arrays[f"{node.name}.{part}"] = np.ascontiguousarray(array)
        planned = {
            one: plan_binary(
                node,
                packed,
                decomposition,
                quant,
                family=one,
                isas=self.isas,
                source=(channels, in_h, in_w),
                output=self.graph.map_shape(node.output),
            )
            for one in FAMILIES
        }
        values, scratch = planned[family]
        values |= {
            "source": None if quant.dynamic else _quant_values(quant),
            "quant": _quant_values(self.static[carried]) if carried else None,
            "relu": int(relu),
        }
        self._step(
            "binary",
            node,
            tensor=tensor,
            quant=carried,
            source=self.floats[node.input] if quant.dynamic else self.codes[node.input],
            scratch_bytes=scratch.bytes,
            private_bytes=scratch.private_bytes,
            scratch_by_family={family: one.bytes for family, (_, one) in planned.items()},
            values=values,
            sections=tuple(f"{node.name}.{part}" for part in sections),
        )


def _block(tensor: str) -> str:
    """The name of its block in the arena. Codes and scratch have names of their own (x#4,
    scratch:conv), which no tensor may take.
    """
    return ("#" if tensor.startswith("scratch:") else "") + tensor.replace("#", "##")


def lies_in_onnx_order(graph: Graph, tensor: str) -> bool:
    """Whether it is a map, or a vector that is not a flattened map of several pixels."""
    return len(graph.shapes[tensor]) == 3 or graph.map_shape(tensor)[1:] == (1, 1)


def carried_codes(model: QuantizedModel, bounds: Mapping[str, float]) -> dict[str, str | None]:
    """Of each tensor: the quantized tensor whose codes may stand for it everywhere, or None if
    floats are needed.

    Max-pooling commutes with the monotone quantizer, but only where no NaN can arise (a NaN has
    code z). A quantizer with z = 0 does what a Relu in front of it would.
    """
    graph = model.graph
    carried: dict[str, str | None] = {}

    def through(node: Node, tensor: str) -> str | None:
        match node:
            case MaxPool() if np.isfinite(bounds[tensor]):
                return carried[node.output]
            case Relu():
                quant = carried[node.output]
                return quant if quant and not model.tensors[quant].zero_point else None
            case Flatten():
                return carried[node.output]
            case Concat() if lies_in_onnx_order(graph, tensor):
                return carried[node.output]
            case _:
                return None

    for tensor in reversed((graph.input, *(node.output for node in graph.nodes))):
        quant, readers = model.tensors.get(tensor), graph.consumers(tensor)
        if quant and not quant.dynamic:
            coded = all(node.name in model.decomposed.layers for node in readers)
            carried[tensor] = tensor if coded else None
        else:
            found = {through(node, tensor) for node in readers}
            carried[tensor] = found.pop() if len(found) == 1 else None
    return carried


def _quant_values(quant: TensorQuant) -> dict[str, Any]:
    return {
        "reciprocal": c_float(quant.reciprocal),
        "zero_point": quant.zero_point,
        "top": quant.top,
    }


def c_float(value: np.float32 | float) -> str:
    """A float32 as an exact C literal."""
    return f"{float(np.float32(value)).hex()}f"
