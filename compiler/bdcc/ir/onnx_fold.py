# SPDX-License-Identifier: 0BSD
"""What disappears at import: operators on constants, and affine operators behind a weight layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from bdcc.errors import ModelError
from bdcc.ir.graph import F32, Conv, Dense, Shape, WeightLayer
from bdcc.ir.onnx_file import Constant, first_line

F64 = npt.NDArray[np.float64]

# Their result is not a function of their inputs.
RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"}
    | {"RandomUniformLike"}
)


def foldable(node: onnx.NodeProto) -> bool:
    """Whether the node, if all its inputs are constants, is one."""
    subgraph = any(value.HasField("g") or value.graphs for value in node.attribute)
    return node.domain in ("", "ai.onnx") and node.op_type not in RANDOM and not subgraph


def fold(
    node: onnx.NodeProto, inputs: Mapping[str, Constant], *, opset: int, label: str
) -> dict[str, Constant]:
    """The node's outputs by name, worked out by ONNX's own reference implementation."""
    names = [name for name in node.output if name]
    graph = helper.make_graph(
        [node],
        "constants",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in names],
    )
    try:
        results = ReferenceEvaluator(graph, opsets={"": opset}).run(None, dict(inputs))
    except Exception as error:  # whatever a malformed node makes the reference raise
        raise ModelError(
            f"its constant cannot be worked out: {first_line(error)}", layer=label
        ) from error
    return {name: np.asarray(result) for name, result in zip(names, results, strict=True)}


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
