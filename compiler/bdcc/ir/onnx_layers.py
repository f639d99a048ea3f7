# SPDX-License-Identifier: 0BSD
"""What each ONNX operator becomes: a node of the graph, another name of its input, or a constant.

`convert` is the one place that dispatches over ONNX operators; docs/operators.md is its table.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from bdcc.errors import ModelError
from bdcc.ir import onnx_fold
from bdcc.ir.graph import (
    F32,
    AveragePool,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Lrn,
    MaxPool,
    Node,
    Pool,
    Relu,
    Shape,
    Softmax,
    WeightLayer,
)
from bdcc.ir.onnx_attributes import label
from bdcc.ir.onnx_limits import MAX_RANK
from bdcc.ir.onnx_operator import Operator, Tensor, Value

SUPPORTED = (
    *("Add", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Concat", "Conv", "Div"),
    *("Dropout", "Flatten", "Gemm", "GlobalAveragePool", "Identity", "LRN", "MatMul", "MaxPool"),
    *("Mul", "ReduceMean", "Relu", "Reshape", "Shape", "Softmax", "Squeeze", "Sub", "Unsqueeze"),
)


def convert(operator: Operator) -> Node | Value:
    """What the operator becomes: a node; the tensor that it passes on; a constant."""
    match operator.op:
        case "Conv":
            return _conv(operator)
        case "Gemm":
            return _gemm(operator)
        case "MatMul":
            return _matmul(operator)
        case "Relu":
            x = operator.tensor()
            return Relu(name=operator.name, input=x.name, output=operator.output)
        case "MaxPool" | "AveragePool":
            return _pool(operator)
        case "GlobalAveragePool":
            x = operator.tensor()
            return GlobalAveragePool(name=operator.name, input=x.name, output=operator.output)
        case "LRN":
            return _lrn(operator)
        case "Concat":
            return _concat(operator)
        case "Softmax":
            return _softmax(operator)
        case "BatchNormalization":
            return _batch_normalization(operator)
        case "Add" | "Sub" | "Mul" | "Div":
            return _affine(operator)
        case "Dropout":
            return _dropout(operator)
        case "Identity":
            return operator.tensor()
        case "ReduceMean":
            return _reduce_mean(operator)
        case "Cast" | "CastLike":
            return _cast(operator)
        case "Shape":
            shape = np.array(operator.tensor().onnx_shape, dtype=np.int64)
            return shape[operator.attributes.get("start", 0) : operator.attributes.get("end")]
        case "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze":
            return _reshape(operator)
        case _:
            raise unsupported(operator.proto)


def unsupported(proto: onnx.NodeProto) -> ModelError:
    """The refusal of an operator that would have to work on what depends on the picture."""
    if proto.op_type in ("Gather", "Slice", "Transpose"):
        return ModelError(
            f"works on a feature map; bdcc handles {proto.op_type} of constants",
            layer=label(proto),
        )
    return ModelError(
        f"the operator is not supported; bdcc handles {', '.join(SUPPORTED)}", layer=label(proto)
    )


def _conv(operator: Operator) -> Conv:
    x, weight, bias = operator.tensor(), operator.weights(1), operator.weights(2)
    assert weight is not None, "read_attributes has seen it"
    if weight.ndim != 4 or len(x.shape) != 3:
        raise operator.refuse(
            f"weight {weight.shape} on input {x.onnx_shape}; bdcc handles 2-D convolutions"
        )
    kernel = operator.pair("kernel_shape", weight.shape[2:])
    if kernel != weight.shape[2:]:
        raise operator.refuse(f"kernel_shape {kernel} does not fit its weight {weight.shape}")
    if bias is None:
        bias = np.zeros(weight.shape[0], dtype=np.float32)
    if bias.shape != weight.shape[:1]:
        raise operator.refuse(f"bias {bias.shape} does not fit its weight {weight.shape}")
    strides, dilations = operator.pair("strides"), operator.pair("dilations")
    return Conv(
        name=operator.name,
        input=x.name,
        output=operator.output,
        weight=weight,
        bias=bias,
        strides=strides,
        pads=operator.pads(x.shape, kernel, strides, dilations),
        dilations=dilations,
        groups=operator.count("group"),
    )


def _gemm(operator: Operator) -> WeightLayer:
    x, weight = operator.tensor(), operator.weights(1)
    assert weight is not None, "read_attributes has seen it"
    attributes = operator.attributes
    if attributes.get("transA") and x.shape != (1,):
        raise operator.refuse("transA turns features into a batch; bdcc handles transA = 0")
    if not attributes.get("transB"):
        weight = weight.T
    dense = _dense(operator, x, weight)
    scale = np.full(dense.weight.shape[0], attributes.get("alpha", 1.0))
    bias = operator.weights(2)
    if bias is None:
        bias = np.zeros((), dtype=np.float32)
    shift = onnx_fold.per_channel(bias, dense.bias.shape)
    if shift is None or bias.ndim > 2:
        raise operator.refuse(f"bias {bias.shape} does not fit {scale.size} outputs")
    with np.errstate(all="ignore"):  # scale_and_shift refuses what is not finite
        shift = shift * attributes.get("beta", 1.0)
    return onnx_fold.scale_and_shift(
        dense,
        scale=scale,
        shift=shift,
        output=operator.output,
        label="alpha and beta",
    )


def _matmul(operator: Operator) -> Dense:
    if not isinstance(operator.value(0), Tensor):
        raise operator.refuse("its weight is the first operand; bdcc handles x @ weight")
    weight = operator.weights(1)
    assert weight is not None, "read_attributes has seen it"
    return _dense(operator, operator.tensor(), weight.T)


def _dense(operator: Operator, x: Tensor, weight: F32) -> Dense:
    """weight: [N, K], of whatever strides."""
    if len(x.shape) != 1 or weight.ndim != 2:
        raise operator.refuse(
            f"weight {weight.T.shape} on input {x.onnx_shape}; bdcc handles a matrix on a vector",
        )
    return Dense(
        name=operator.name,
        input=x.name,
        output=operator.output,
        weight=np.ascontiguousarray(weight),
        bias=np.zeros(weight.shape[0], dtype=np.float32),
    )


def _pool(operator: Operator) -> Pool:
    x, attributes = operator.tensor(), operator.attributes
    if len(x.shape) != 3:
        raise operator.refuse(f"needs a feature map (1, C, H, W), got shape {x.onnx_shape}")
    kernel, strides = operator.pair("kernel_shape"), operator.pair("strides")
    dilations = operator.pair("dilations")
    pads = operator.pads(x.shape, kernel, strides, dilations)
    same = attributes.get("auto_pad", b"NOTSET").startswith(b"SAME")
    ceil_mode = bool(attributes.get("ceil_mode", 0)) and not same  # SAME fixes the extent itself
    if operator.op == "MaxPool":
        pool: Pool = MaxPool(
            name=operator.name,
            input=x.name,
            output=operator.output,
            kernel=kernel,
            strides=strides,
            pads=pads,
            dilations=dilations,
            ceil_mode=ceil_mode,
        )
    else:
        pool = AveragePool(
            name=operator.name,
            input=x.name,
            output=operator.output,
            kernel=kernel,
            strides=strides,
            pads=pads,
            dilations=dilations,
            ceil_mode=ceil_mode,
            count_include_pad=bool(attributes.get("count_include_pad", 0)),
        )
    extents = operator.output_shape(pool, x.shape)[1:]
    for axis in (0, 1):
        start = strides[axis] * np.arange(extents[axis]) - pads[axis]
        tap = np.maximum(0, -(start // dilations[axis]))  # the first that is not before the input
        touches = start + tap * dilations[axis] < x.shape[1 + axis]
        if not (touches & (tap < kernel[axis])).all():
            raise operator.refuse(
                f"kernel {kernel} with pads {pads} has windows that lie in the padding alone; "
                "bdcc handles windows that touch the input"
            )
    return pool


def _lrn(operator: Operator) -> Lrn:
    x, attributes = operator.tensor(), operator.attributes
    beta = float(attributes.get("beta", 0.75))
    if not (0 < beta <= 4 and (4 * beta).is_integer()):
        raise operator.refuse(f"beta is {beta:g}; bdcc handles multiples of 1/4 up to 4")
    if len(x.shape) != 3:
        raise operator.refuse(f"needs a feature map (1, C, H, W), got shape {x.onnx_shape}")
    return Lrn(
        name=operator.name,
        input=x.name,
        output=operator.output,
        size=operator.count("size"),
        alpha=float(attributes.get("alpha", 1e-4)),
        beta=beta,
        bias=float(attributes.get("bias", 1.0)),
    )


def _concat(operator: Operator) -> Concat | Tensor:
    inputs = [operator.tensor(index) for index in range(len(operator.inputs))]
    rank, axis = len(inputs[0].onnx_shape), int(operator.attributes["axis"])
    if axis not in (1, 1 - rank):
        raise operator.refuse(
            f"joins along axis {axis} of shape {inputs[0].onnx_shape}; "
            "bdcc handles the channels, axis 1"
        )
    if len(inputs) == 1:
        return inputs[0]
    return Concat(name=operator.name, inputs=tuple(x.name for x in inputs), output=operator.output)


def _softmax(operator: Operator) -> Softmax:
    x = operator.tensor()
    rank = len(x.onnx_shape)
    axis = operator.attributes.get("axis", 1 if operator.opset < 13 else -1)
    axis += rank if axis < 0 else 0
    # Before opset 13 over all that follows the axis; a batch of 1 in front changes nothing.
    flat = axis in (0, 1) and set(x.shape[1:]) <= {1}
    if not (flat if operator.opset < 13 else axis == 1):
        raise operator.refuse(
            f"axis {axis} of shape {x.onnx_shape}; bdcc handles Softmax over the channels",
            "Flatten before it, or use axis 1 and opset 13",
        )
    return Softmax(name=operator.name, input=x.name, output=operator.output)


def _reduce_mean(operator: Operator) -> GlobalAveragePool:
    x, attributes = operator.tensor(), operator.attributes
    given = operator.constant(1) if operator.opset >= 18 else attributes.get("axes")
    axes = operator.axes(operator.integers(given) or [], len(x.onnx_shape))
    if sorted(axes) != [2, 3] or not attributes.get("keepdims", 1):
        raise operator.refuse(
            "bdcc handles ReduceMean over height and width of a feature map, with keepdims = 1"
        )
    return GlobalAveragePool(name=operator.name, input=x.name, output=operator.output)


def _cast(operator: Operator) -> Value:
    """Cast of a tensor to float32; CastLike of a constant or tensor to the type of another."""
    value, like = operator.value(0), operator.value(1)
    if operator.op == "CastLike" and isinstance(like, Tensor) and isinstance(value, np.ndarray):
        operator.budget.fold(value.nbytes + 4 * value.size, layer=label(operator.proto))
        operator.budget.hold(4 * value.size, layer=label(operator.proto))
        return value.astype(np.float32)
    to = operator.attributes.get("to", onnx.TensorProto.FLOAT)
    if to != onnx.TensorProto.FLOAT or (isinstance(like, np.ndarray) and like.dtype != np.float32):
        raise operator.refuse("casts a feature map; bdcc handles float32 activations")
    return operator.tensor()


def _batch_normalization(operator: Operator) -> Node | Value:
    x, attributes = operator.tensor(), operator.attributes
    if attributes.get("training_mode", 0) or not attributes.get("spatial", 1):
        raise operator.refuse(
            "is in training mode or not per channel; bdcc handles inference, per channel",
            "Export in eval mode",
        )
    parameters = []
    for index in (1, 2, 3, 4):
        values = operator.weights(index)
        if values is None or values.shape != x.shape[:1]:
            found = None if values is None else values.shape
            raise operator.refuse(
                f"tensor '{operator.proto.input[index]}' has shape {found}, not ({x.shape[0]},)"
            )
        parameters.append(values.astype(np.float64))
    scale, shift = onnx_fold.normalization(
        (parameters[0], parameters[1], parameters[2], parameters[3]),
        epsilon=attributes.get("epsilon", 1e-5),
    )
    return _scaled(operator, x, scale, shift)


def _affine(operator: Operator) -> Node | Value:
    """Add, Sub, Mul, Div of a tensor and a constant, either order."""
    first, second = operator.value(0), operator.value(1)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        raise operator.refuse(f"joins two feature maps; bdcc handles {operator.op} of a constant")
    flipped = isinstance(second, Tensor)
    x, constant = operator.tensor(int(flipped)), operator.weights(int(not flipped))
    values = None if constant is None else onnx_fold.per_channel(constant, x.shape)
    if values is None or (operator.op == "Div" and flipped):
        found = () if constant is None else constant.shape
        raise operator.refuse(
            f"constant of shape {found} on {x.onnx_shape}; "
            "bdcc handles one value per channel, as the second operand of Div"
        )
    one, zero = np.ones(x.shape[0]), np.zeros(x.shape[0])
    match operator.op:
        case "Add":
            scale, shift = one, values
        case "Sub":
            scale, shift = (-one, values) if flipped else (one, -values)
        case "Mul":
            scale, shift = values, zero
        case _:
            with np.errstate(divide="ignore"):  # scale_and_shift refuses infinity
                scale, shift = 1.0 / values, zero
    return _scaled(operator, x, scale, shift)


def _scaled(
    operator: Operator, x: Tensor, scale: onnx_fold.F64, shift: onnx_fold.F64
) -> Node | Value:
    """x * scale + shift by changed weights of x's producer, which stays if others read x too."""
    if np.all(scale == 1.0) and not np.any(shift):
        return x
    producer = operator.producer
    if not isinstance(producer, Conv | Dense):
        raise operator.refuse(
            f"follows '{x.name}'; bdcc folds {operator.op} into a Conv, Gemm or MatMul "
            "directly in front of it"
        )
    return onnx_fold.scale_and_shift(
        producer, scale=scale, shift=shift, output=operator.output, label=label(operator.proto)
    )


def _dropout(operator: Operator) -> Tensor:
    training = operator.constant(2)
    if training is not None and training.any():
        raise operator.refuse("is in training mode", "Export in eval mode")
    return operator.tensor()


def _reshape(operator: Operator) -> Node | Value:
    """Flatten, Reshape, Squeeze, Unsqueeze: to the same shape or to a vector, or refused."""
    x = operator.tensor()
    old, new = x.onnx_shape, _new_shape(operator, x.onnx_shape)
    if new == old:
        return x
    if new == (1, math.prod(old)):
        return Flatten(name=operator.name, input=x.name, output=operator.output)
    raise operator.refuse(f"turns shape {old} into {new}; bdcc handles flattening to (1, N)")


def _new_shape(operator: Operator, old: Shape) -> Shape:
    attributes = operator.attributes
    match operator.op:
        case "Flatten":
            axis = int(attributes.get("axis", 1))
            if axis != len(old):
                (axis,) = operator.axes([axis], len(old))
            return (math.prod(old[:axis]), math.prod(old[axis:]))
        case "Reshape":
            return _reshaped(operator, old)
    given = operator.constant(1) if operator.opset >= 13 else attributes.get("axes")
    axes = operator.integers(given)
    if operator.op == "Squeeze":
        ones = [axis for axis, size in enumerate(old) if size == 1]
        dropped = ones if axes is None else operator.axes(axes, len(old))
        if not set(dropped) <= set(ones):
            raise _misfit(operator, old, f"axes {axes} are not all of size 1")
        return tuple(size for axis, size in enumerate(old) if axis not in dropped)
    added = operator.axes(axes or [], len(old) + len(axes or []))
    sizes = iter(old)
    return tuple(1 if axis in added else next(sizes) for axis in range(len(old) + len(added)))


def _reshaped(operator: Operator, old: Shape) -> Shape:
    """What Reshape makes of a shape: 0 keeps a size, one -1 stands for what is left."""
    target = operator.integers(operator.constant(1)) or []
    if len(target) > MAX_RANK:
        raise _misfit(operator, old, f"{len(target)} dimensions")
    if not operator.attributes.get("allowzero"):
        target = [old[i] if n == 0 and i < len(old) else n for i, n in enumerate(target)]
    known = math.prod(n for n in target if n != -1)
    if target.count(-1) == 1 and known > 0:
        target[target.index(-1)] = math.prod(old) // known
    if min(target, default=1) < 1 or math.prod(target) != math.prod(old):
        raise _misfit(operator, old, f"cannot reshape it into {target}")
    return tuple(target)


def _misfit(operator: Operator, old: Shape, why: str) -> ModelError:
    return operator.refuse(
        f"does not fit shape {old} with a batch of 1: {why}",
        "Export with a batch of 1 or a dynamic batch",
    )
