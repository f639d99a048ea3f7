# SPDX-License-Identifier: 0BSD
"""What disappears at import: operators on constants, and affine operators behind a weight layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from bdcc.errors import ModelError
from bdcc.ir.graph import F32, Conv, Dense, Shape, WeightLayer
from bdcc.ir.onnx_file import ELEMENT_TYPES, Constant, first_line, read_tensor
from bdcc.ir.onnx_limits import MAX_RANK, Budget

F64 = npt.NDArray[np.float64]

# Operators that are worked out where all their inputs are constants: what computes shapes, puts
# weights in order, scales them. By what their result is as large as.
BROADCAST = frozenset(
    {"Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "DequantizeLinear", "Div", "Equal"}
    | {"Exp", "Expand", "Floor", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual"}
    | {"Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "QuantizeLinear"}
    | {"Reciprocal", "Round", "Sign", "Sqrt", "Sub", "Sum", "Where", "Xor"}
)
SUM_OF_INPUTS = frozenset(
    {"Concat", "Flatten", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin"}
    | {"ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape", "Shape", "Size", "Slice", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)
OTHERS = frozenset(
    {"Constant", "ConstantOfShape", "Gather", "Gemm", "MatMul", "NonZero", "Range", "Tile"}
)
FOLDED = BROADCAST | SUM_OF_INPUTS | OTHERS
ELEMENT_BYTES = 8  # at most
NUMPY_TYPES = frozenset(helper.tensor_dtype_to_np_dtype(number).name for number in ELEMENT_TYPES)


def foldable(node: onnx.NodeProto) -> bool:
    """Whether the node, if all its inputs are constants, is one."""
    return node.domain in ("", "ai.onnx") and node.op_type in FOLDED


def fold(
    node: onnx.NodeProto,
    inputs: Sequence[Constant | None],
    attributes: Mapping[str, Any],
    *,
    opset: int,
    budget: Budget,
    label: str,
) -> dict[str, Constant]:
    """The node's outputs by name, worked out by ONNX's own reference implementation once the budget
    has room for them. inputs: None, one that is left out.
    """
    names = [name for name in node.output if name]
    if isinstance(attributes.get("value"), onnx.TensorProto):
        value = read_tensor(attributes["value"], budget, layer=label)
        if node.op_type == "Constant":
            return {names[0]: value}
    given = {n: v for n, v in zip(node.input, inputs, strict=True) if v is not None}
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is no number is refused where weights are read
            read = sum(array.nbytes for array in given.values())
            budget.fold(_written(node, inputs, attributes) + read, layer=label)
            graph = helper.make_graph(
                [node],
                "constants",
                [onnx.ValueInfoProto(name=name) for name in given],
                [onnx.ValueInfoProto(name=name) for name in names],
            )
            results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, given)
    except ModelError:
        raise
    except Exception as error:  # whatever a malformed node makes the reference raise
        raise ModelError(
            f"its constant cannot be worked out: {first_line(error)}", layer=label
        ) from error
    found = {}
    for name, result in zip(names, results, strict=True):
        array = np.asarray(result)
        if array.dtype.name not in NUMPY_TYPES or array.ndim > MAX_RANK:
            raise ModelError(
                f"its constant is {array.dtype} of {array.ndim} dimensions; bdcc handles numbers "
                f"of up to {MAX_RANK}",
                layer=label,
            )
        budget.hold(array.nbytes, layer=label)
        found[name] = array
    return found


def _written(
    node: onnx.NodeProto, inputs: Sequence[Constant | None], attributes: Mapping[str, Any]
) -> int:
    """At least as many bytes as the node will write."""
    size = ELEMENT_BYTES
    if node.op_type == "ConstantOfShape":  # as some files have all their weights
        value = attributes.get("value", onnx.TensorProto(data_type=onnx.TensorProto.FLOAT))
        size = helper.tensor_dtype_to_np_dtype(value.data_type).itemsize
    return size * _elements(node, inputs, attributes)


def _elements(
    node: onnx.NodeProto, inputs: Sequence[Constant | None], attributes: Mapping[str, Any]
) -> int:
    """At least as many elements as the node will write, or multiplications as it will make, without
    doing it. Raises what Python and NumPy do where an input is missing or of another kind.
    """
    arrays = [value for value in inputs if value is not None]
    first = arrays[0] if arrays else np.empty(0)
    match node.op_type:
        case "ConstantOfShape":
            return math.prod(_integers(first))
        case "Expand":
            return _broadcast(first.shape, _integers(arrays[1]))
        case "Tile":
            return math.prod(s * r for s, r in zip(first.shape, _integers(arrays[1]), strict=True))
        case "Range":
            start, limit, delta = (float(value) for value in arrays)
            return max(0, math.ceil((limit - start) / delta))
        case "Gather":
            axis = first.shape[int(attributes.get("axis", 0))]
            return int(first.size // max(axis, 1) * arrays[1].size)
        case "MatMul":
            return int(first.size * arrays[1].size // max(first.shape[-1], 1))
        case "Gemm":
            return int(first.size * arrays[1].size // max(min(first.shape), 1))
        case "NonZero":
            return int(first.ndim * first.size)
        case op if op in BROADCAST:
            return _broadcast(*(array.shape for array in arrays))
        case _:
            return sum(array.size for array in arrays)


def _broadcast(*shapes: Sequence[int]) -> int:
    """Elements of the shape that those broadcast to, if they do."""
    backwards = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return math.prod(max(sizes) for sizes in backwards)


def _integers(array: Constant) -> list[int]:
    return [int(value) for value in array.reshape(-1)]


def per_channel(constant: Constant, shape: Shape) -> F64 | None:
    """float64 [C] if `constant` broadcasts to (1, *shape) with one value per channel, else None."""
    missing = 1 + len(shape) - constant.ndim
    full = (1,) * missing + constant.shape
    if missing < 0 or full[0] != 1 or full[1] not in (1, shape[0]) or set(full[2:]) - {1}:
        return None
    return np.broadcast_to(constant.reshape(-1).astype(np.float64), (shape[0],))


def scale_and_shift(
    layer: WeightLayer, *, scale: F64, shift: F64, output: str, label: str
) -> WeightLayer:
    """The layer followed by y = x * scale[channel] + shift[channel], in float64, rounded once.

    label: the folded operator, named when the result is not finite.
    """
    axes = (-1,) + (1,) * (layer.weight.ndim - 1)
    with np.errstate(all="ignore"):  # judged below
        weight = layer.weight
        if np.any(scale != 1.0):  # spares a copy of the weights for a mere bias
            weight = (weight * scale.reshape(axes)).astype(np.float32)
        bias = (layer.bias * scale + shift).astype(np.float32)
    if not (is_finite(weight) and is_finite(bias)):
        raise ModelError(f"folding {label} into it gives NaN or infinite weights", layer=layer.name)
    match layer:
        case Conv():
            return replace(layer, weight=weight, bias=bias, output=output)
        case Dense():
            return replace(layer, weight=weight, bias=bias, output=output)


def normalization(parameters: tuple[F64, F64, F64, F64], *, epsilon: float) -> tuple[F64, F64]:
    """(scale, shift) at inference; parameters: gamma, beta, mean, variance, each [C]."""
    gamma, beta, mean, variance = parameters
    with np.errstate(all="ignore"):  # a negative variance gives NaN, which scale_and_shift refuses
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale


def is_finite(array: F32) -> bool:
    """Without the temporary that np.isfinite makes: NaN passes through min and max."""
    return array.size == 0 or bool(np.isfinite(array.min()) and np.isfinite(array.max()))
