# SPDX-License-Identifier: 0BSD
"""The steps of a network: which tensors live as codes and which as floats, and which nodes one step
covers (a Relu joins its layer, a Flatten is free).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import Decomposition, QuantizedModel, TensorQuant
from bdcc.approx.simulate import layer_constants
from bdcc.codegen.bounds import magnitude_bounds
from bdcc.codegen.geometry import (
    check_int32,
    gemm_geometry,
    pack_layer,
    pool_geometry,
    scratch_areas,
)
from bdcc.data.preprocess import Preprocess
from bdcc.ir.graph import (
    AveragePool,
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
    """A tensor in memory as [H][W][C]: float32 (bits 0) or uint8 codes of `bits` bits. shape: (C,
    H, W).
    """

    name: str
    shape: tuple[int, int, int]
    bits: int

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * (1 if self.bits else 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One C function. `tensor` is the graph tensor whose values it leaves in `output`; when those
    are codes, `quant` names
    the tensor whose range they were made with. `values` are the constants its template reads,
    `sections` its weights."""

    kind: str
    name: str
    layer: str
    tensor: str
    quant: str | None
    input: Buffer | None
    output: Buffer | None
    scratch_bytes: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    sections: tuple[str, ...] = ()


def c_identifier(text: str) -> str:
    """A valid, lower-case C identifier made from a file or layer name."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "model"
    return name if not name[0].isdigit() else f"m{name}"


def project_name(text: str) -> str:
    """The prefix of a project's C names and files; never one that its own sources already have."""
    name = c_identifier(text)
    taken = name in ("main", "selftest", "bin2c", "popcount_kernels") or name.startswith("bdcc_")
    return f"{name}_model" if taken else name


class StepBuilder:
    """Walks the graph once, in order. The only mutable thing here; it does not outlive
    make_plan.
    """

    def __init__(self, model: QuantizedModel, preprocess: Preprocess | None) -> None:
        self.model = model
        self.graph: Graph = model.graph
        self.static = {t: q for t, q in model.tensors.items() if not q.dynamic}
        self.steps: list[Step] = []
        self.arrays: dict[str, Array] = {}
        self.floats: dict[str, Buffer] = {}  # tensor -> its float buffer
        self.codes: dict[str, Buffer] = {}  # tensor -> its codes
        self.absorbed: set[str] = set()  # tensors that never exist in memory
        self.bounds = magnitude_bounds(model)
        self.names: set[str] = set()
        self.preprocess = preprocess

    def build(self) -> tuple[Step, ...]:
        graph = self.graph
        self._add_input()
        for node in graph.nodes:
            if node.output not in self.absorbed:
                self._add_node(node)
        self._add_output()
        return tuple(self.steps)

    # Which representation

    def _carried(self, tensor: str) -> str | None:
        """The quantized tensor whose codes may stand for `tensor` everywhere, or None if floats are
        needed.

        Max-pooling commutes with the monotone quantizer, but only where no NaN can arise (a NaN has
        code z).
        """
        if tensor == self.graph.output:
            return None
        consumers = self.graph.consumers(tensor)
        if tensor in self.static:
            coded = all(node.name in self.model.decomposed.layers for node in consumers)
            return tensor if coded else None
        found = set()
        for node in consumers:
            if isinstance(node, Flatten) or (
                isinstance(node, MaxPool) and np.isfinite(self.bounds[tensor])
            ):
                found.add(self._carried(node.output))
            else:
                return None
        return found.pop() if len(found) == 1 else None

    def _unique(self, wanted: str) -> str:
        name, count = c_identifier(wanted), 2
        while name in self.names:
            name = f"{c_identifier(wanted)}_{count}"
            count += 1
        self.names.add(name)
        return name

    def _buffer(self, tensor: str, quant: str | None) -> Buffer:
        bits = self.static[quant].bits if quant else 0
        suffix = f"#{bits}" if bits else ""
        return Buffer(name=tensor + suffix, shape=self.graph.map_shape(tensor), bits=bits)

    def _leave(self, tensor: str, buffer: Buffer, quant: str | None) -> None:
        """Record where a tensor lies, and quantize it here if a later layer reads its codes."""
        if quant:
            self.codes[tensor] = buffer
            return
        self.floats[tensor] = buffer
        wanted = tensor if tensor in self.static else self._carried(tensor)
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

    def _float_input(self, tensor: str) -> Buffer:
        return self.floats[tensor]

    def _step(
        self, kind: str, node: Node, *, tensor: str, quant: str | None, source: Buffer, **rest: Any
    ) -> None:
        output = self._buffer(tensor, quant)
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
        tensor = self.graph.input
        buffer = self._buffer(tensor, None)
        sections: tuple[str, ...] = ()
        if self.preprocess is not None:
            self.arrays["pixel_table"] = np.ascontiguousarray(
                self.preprocess.table(), dtype=np.float32
            )
            sections = ("pixel_table",)
        self.steps.append(
            Step(
                kind="input",
                name=self._unique("input"),
                layer=tensor,
                tensor=tensor,
                quant=None,
                input=None,
                output=buffer,
                sections=sections,
            )
        )
        self._leave(tensor, buffer, None)

    def _add_output(self) -> None:
        tensor = self.graph.output
        self.steps.append(
            Step(
                kind="output",
                name=self._unique("output"),
                layer=tensor,
                tensor=tensor,
                quant=None,
                input=self._float_input(tensor),
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
                for places in (self.floats, self.codes):
                    if node.input in places:
                        places[node.output] = places[node.input]
                if node.output not in self.codes and node.output in self.static:
                    self._leave(node.output, self.floats[node.input], None)
            case MaxPool():
                quant = self._carried(node.output)
                source = (
                    self.codes.get(node.input)
                    if quant and self._carried(node.input) == quant
                    else None
                )
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
                        source=self._float_input(node.input),
                        values=self._pool(node),
                    )
            case AveragePool():
                self._step(
                    "average_pool",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self._float_input(node.input),
                    values=self._pool(node),
                )
            case GlobalAveragePool():
                self._step(
                    "global_average_pool",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self._float_input(node.input),
                )
            case Relu():
                self._step(
                    "relu",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self._float_input(node.input),
                )
            case Lrn():
                self._step(
                    "lrn",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self._in_onnx_order(node),
                    values={
                        "size": node.size,
                        "alpha_over_size": c_float(np.float32(node.alpha / node.size)),
                        "bias": c_float(np.float32(node.bias)),
                        "beta_quarters": round(node.beta * 4),
                    },
                )
            case Softmax():
                self._step(
                    "softmax",
                    node,
                    tensor=node.output,
                    quant=None,
                    source=self._in_onnx_order(node),
                )
            case _:
                assert_never(node)

    def _in_onnx_order(self, node: Lrn | Softmax) -> Buffer:
        """These work along a vector's elements, whose order matters: undo a free Flatten."""
        source = self._float_input(node.input)
        channels, height, width = source.shape
        if len(self.graph.shapes[node.input]) == 3 or height * width == 1:
            return source
        buffer = Buffer(name=f"{node.input}#onnx", shape=(channels * height * width, 1, 1), bits=0)
        self.steps.append(
            Step(
                kind="reorder",
                name=self._unique(f"{node.name}_order"),
                layer=node.name,
                tensor=node.input,
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
            grouped = node.weight.reshape(node.groups, -1, *node.weight.shape[1:])
            self.arrays[weight] = np.ascontiguousarray(grouped.transpose(0, 3, 4, 2, 1))
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
            source=self._float_input(node.input),
            values=values,
            sections=(weight, bias),
        )

    def _add_binary_layer(self, node: WeightLayer, decomposition: Decomposition) -> None:
        quant = self.model.tensors[node.input]
        relu, tensor = self._fused_relu(node)
        carried = self._carried(tensor)
        channels, in_h, in_w = self.graph.map_shape(node.input)
        out_c, out_h, out_w = self.graph.map_shape(node.output)
        groups = node.groups if isinstance(node, Conv) else 1
        check_int32(node, decomposition, quant)
        packed = pack_layer(node, decomposition, (channels, in_h, in_w))
        scale, bias, sums = layer_constants(decomposition, quant)
        sections = {
            "weights": packed.weights,
            "coefficients": packed.coefficients,
            "valid": packed.valid,
            "scale": scale,
            "bias": bias,
        }
        if quant.dynamic:
            sections["sums"] = sums
        for part, array in sections.items():
            self.arrays[f"{node.name}.{part}"] = np.ascontiguousarray(array)
        pixels = out_w if isinstance(node, Conv) else 1
        blocks = packed.weights.shape[1]
        values, planes_bytes, row_bytes = gemm_geometry(
            node, packed, bits=quant.bits, source=(channels, in_h, in_w), pixels=pixels
        )
        areas = scratch_areas(
            planes=planes_bytes + 64,
            row=row_bytes,
            sums=pixels * blocks * 8 * 4,
            codes=channels * in_h * in_w if quant.dynamic else 0,
            scale=out_c * 4 if quant.dynamic else 0,
            bias=out_c * 4 if quant.dynamic else 0,
        )
        values |= {
            "bases": decomposition.bases,
            "bits": quant.bits,
            "dynamic": quant.dynamic,
            "source": None if quant.dynamic else _quant_values(quant),
            "quant": _quant_values(self.static[carried]) if carried else None,
            "relu": int(relu),
            "out_h": out_h if isinstance(node, Conv) else 1,
            "out_channels": out_c,
            "group_channels": out_c // groups,
            "sums_stride": blocks * 8,
            "out_row": pixels * out_c,
            "groups": groups,
            "count": channels * in_h * in_w,
            "areas": {name: start for name, (start, _) in areas.items()},
            "weight_stride": int(np.prod(packed.weights.shape[1:])),
            "coefficient_stride": int(np.prod(packed.coefficients.shape[1:])),
        }
        self._step(
            "binary",
            node,
            tensor=tensor,
            quant=carried,
            source=self._float_input(node.input) if quant.dynamic else self.codes[node.input],
            scratch_bytes=max(start + size for start, size in areas.values()),
            values=values,
            sections=tuple(f"{node.name}.{part}" for part in sections),
        )


def _quant_values(quant: TensorQuant) -> dict[str, Any]:
    return {
        "reciprocal": c_float(quant.reciprocal),
        "zero_point": quant.zero_point,
        "top": quant.top,
    }


def c_float(value: np.float32 | float) -> str:
    """A float32 as an exact C literal."""
    return f"{float(np.float32(value)).hex()}f"
