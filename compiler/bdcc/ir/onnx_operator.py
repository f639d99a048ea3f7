# SPDX-License-Identifier: 0BSD
"""One operator of the file, its inputs looked up, and the questions that conversions ask it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from bdcc.errors import ModelError
from bdcc.ir import onnx_fold
from bdcc.ir.graph import F32, MAX_MAGNITUDE, Node, Pads, Pair, Shape, output_shape
from bdcc.ir.onnx_attributes import label, operator_type
from bdcc.ir.onnx_file import Constant
from bdcc.ir.onnx_limits import MAX_EXTENT, Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor of the graph: the name of the first ONNX tensor that holds it; shape: no batch."""

    name: str
    shape: Shape

    @property
    def onnx_shape(self) -> Shape:
        return (1, *self.shape)


Value = Tensor | Constant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operator:
    """One node of the file with its inputs looked up (None: an optional input left out)."""

    proto: onnx.NodeProto
    opset: int
    inputs: tuple[Value | None, ...]
    producer: Node | None  # of the first input that is a tensor
    attributes: dict[str, Any]  # of read_attributes
    budget: Budget

    @property
    def op(self) -> str:
        return operator_type(self.proto)

    @property
    def name(self) -> str:
        return self.proto.name or self.output

    @property
    def output(self) -> str:
        return str(self.proto.output[0])

    def refuse(self, message: str, hint: str | None = None) -> ModelError:
        return ModelError(message, layer=label(self.proto), hint=hint)

    def output_shape(self, node: Node, *inputs: Shape) -> Shape:
        """Shape of the node's output; its refusal names the operator as all others do."""
        try:
            return output_shape(node, *inputs)
        except ModelError as error:
            raise self.refuse(error.message) from error

    def value(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int = 0) -> Tensor:
        value = self.value(index)
        if not isinstance(value, Tensor):
            raise self.refuse(f"input {index} is a constant; bdcc handles a tensor there")
        return value

    def constant(self, index: int) -> Constant | None:
        """None if left out; raises ModelError if it is computed from the picture."""
        value = self.value(index)
        if isinstance(value, Tensor):
            raise self.refuse(
                f"input '{self.proto.input[index]}' depends on the picture; "
                "bdcc handles a constant there"
            )
        return value

    def weights(self, index: int) -> F32 | None:
        """A constant that must be float32 without NaN and infinity."""
        constant = self.constant(index)
        if constant is None:
            return None
        name = self.proto.input[index]
        if constant.dtype != np.float32:
            raise self.refuse(
                f"tensor '{name}' is {constant.dtype}; bdcc handles float32",
                "Convert the model to float32",
            )
        if not constant.size:
            raise self.refuse(f"tensor '{name}' of shape {constant.shape} is empty")
        most = onnx_fold.largest(constant)
        if not np.isfinite(most):
            raise self.refuse(f"tensor '{name}' holds NaN or infinity; bdcc handles finite weights")
        if most > MAX_MAGNITUDE:
            raise self.refuse(
                f"tensor '{name}' holds {most:.3g}; bdcc handles {MAX_MAGNITUDE:g} at most",
                "Scale its layer down, and the next one up",
            )
        return constant

    def axes(self, axes: Sequence[int], rank: int) -> list[int]:
        """From the front, each in 0 .. rank - 1 and there once."""
        found = [axis + rank if axis < 0 else axis for axis in axes]
        if len(set(found)) < len(found) or not all(0 <= axis < rank for axis in found):
            raise self.refuse(
                f"axes {list(axes[:8])} of {rank} dimensions; bdcc handles {-rank} to {rank - 1}, "
                "each once"
            )
        return found

    def integers(self, values: Sequence[int] | Constant | None) -> list[int] | None:
        if values is None:
            return None
        array = np.asarray(values)
        if array.dtype.kind != "i" or array.ndim != 1:
            raise self.refuse("its shape or axes are not a list of integers")
        return [int(value) for value in array]

    def pair(self, attribute: str, default: Sequence[int] = (1, 1)) -> Pair:
        values = [int(value) for value in self.attributes.get(attribute, default)]
        if len(values) != 2 or not 1 <= min(values) <= max(values) <= MAX_EXTENT:
            raise self.refuse(
                f"{attribute} is {values[:8]}; bdcc handles two numbers of 1 to {MAX_EXTENT}"
            )
        return (values[0], values[1])

    def count(self, attribute: str) -> int:
        value = int(self.attributes.get(attribute, 1))
        if not 1 <= value <= MAX_EXTENT:
            raise self.refuse(f"{attribute} is {value}; bdcc handles 1 to {MAX_EXTENT}")
        return value

    def pads(self, shape: Shape, kernel: Pair, strides: Pair, dilations: Pair) -> Pads:
        mode = self.attributes.get("auto_pad", b"NOTSET").decode("ascii", "replace")
        match mode:
            case "NOTSET" | "":
                pads = tuple(self.attributes.get("pads", (0, 0, 0, 0)))
                if len(pads) != 4 or not 0 <= min(pads) <= max(pads) <= MAX_EXTENT:
                    raise self.refuse(
                        f"pads is {list(pads[:8])}; bdcc handles four numbers of 0 to {MAX_EXTENT}"
                    )
                return (int(pads[0]), int(pads[1]), int(pads[2]), int(pads[3]))
            case "VALID":
                return (0, 0, 0, 0)
            case "SAME_UPPER" | "SAME_LOWER":
                before, after = [], []
                for axis in (0, 1):
                    count = -(-shape[1 + axis] // strides[axis])
                    span = (count - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
                    if span - shape[1 + axis] < -1:  # TensorFlow crops nothing, onnxruntime does
                        raise self.refuse(
                            f"{mode} with strides {list(strides)} past the kernel is ambiguous",
                            "Re-export with explicit pads",
                        )
                    total = max(span - shape[1 + axis], 0)
                    before.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
                    after.append(total - before[axis])
                return (before[0], before[1], after[0], after[1])
            case _:
                raise self.refuse(
                    f"auto_pad '{mode}' is not supported; "
                    "bdcc handles NOTSET, SAME_UPPER, SAME_LOWER and VALID"
                )
