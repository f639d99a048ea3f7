# SPDX-License-Identifier: 0BSD
"""Small models with real topologies and seeded random weights, as exporters write them.

`shrink` divides the number of channels and features, never the size of the maps, so that every
stride, pad and pooled extent is the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LIGHT_BVLC = Path(onnx.__file__).parent / "backend/test/data/light/light_bvlc_alexnet.onnx"


class Builder:
    """Nodes and initializers in the making; each call appends one node and returns its output."""

    def __init__(self, *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, *, name: str = "", **attrs: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attrs))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def weights(self, name: str, *shape: int, fan_in: int | None = None) -> str:
        """He-scaled normal weights; a vector is a bias of small values."""
        fan = fan_in or (int(np.prod(shape[1:])) if len(shape) > 1 else 200)
        values = self.rng.normal(scale=np.sqrt(2 / fan), size=shape)
        return self.constant(name, values.astype(np.float32))

    def model(
        self,
        *,
        input: str,
        shape: tuple[int | str, ...],
        output: str,
        opset: int = 13,
        ir_version: int = 8,
        **options: Any,
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "zoo",
            [helper.make_tensor_value_info(input, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", opset), *options.pop("opsets", ())]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **options)


def alexnet(
    *, norm_first: bool, size: int = 227, shrink: int = 8, classes: int = 10, seed: int = 0
) -> onnx.ModelProto:
    """Grouped AlexNet. norm_first: conv-relu-LRN-maxpool (BVLC), else conv-relu-maxpool-LRN.

    With size 224 the last pool is padded at the bottom and right, as in the ONNX zoo's file.
    """
    b = Builder(seed=seed)
    x, channels, extent = "data", 3, size
    widths = [width // shrink for width in (96, 256, 384, 384, 256)]
    for index, width in enumerate(widths):
        kernel, stride, pad = ((11, 4, 0), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))[index]
        group, n = (1, 2, 1, 2, 2)[index], str(index + 1)
        weight = b.weights(f"conv{n}_w", width, channels // group, kernel, kernel)
        bias = b.weights(f"conv{n}_b", width)
        x = b.node(
            *("Conv", [x, weight, bias], f"conv{n}_out"),
            **{"name": f"conv{n}", "group": group, "kernel_shape": [kernel] * 2},
            **{"strides": [stride] * 2, "pads": [pad] * 4},
        )
        extent = (extent + 2 * pad - kernel) // stride + 1
        x, channels = b.node("Relu", [x], f"relu{n}_out", name=f"relu{n}"), width
        if index in (0, 1, 4):
            last = 1 if index == 4 and size == 224 else 0
            pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, last, last]}
            norm = {"size": 5, "alpha": 5e-4, "beta": 0.75, "bias": 2.0}
            if norm_first and index < 2:
                x = b.node("LRN", [x], f"norm{n}_out", name=f"norm{n}", **norm)
            x = b.node("MaxPool", [x], f"pool{n}_out", name=f"pool{n}", **pool)
            if not norm_first and index < 2:
                x = b.node("LRN", [x], f"norm{n}_out", name=f"norm{n}", **norm)
            extent = (extent + last - 3) // 2 + 1
    x = b.node("Flatten", [x], "flatten_out", name="flatten", axis=1)
    features = channels * extent * extent
    for n, width in (("6", 4096 // shrink), ("7", 4096 // shrink), ("8", classes)):
        weight, bias = b.weights(f"fc{n}_w", width, features), b.weights(f"fc{n}_b", width)
        x = b.node("Gemm", [x, weight, bias], f"fc{n}_out", name=f"fc{n}", transB=1)
        if n != "8":
            x = b.node("Relu", [x], f"relu{n}_out", name=f"relu{n}")
            x = b.node("Dropout", [x], f"drop{n}_out", name=f"drop{n}")
        features = width
    b.node("Softmax", [x], "prob_out", name="prob", axis=1)
    return b.model(input="data", shape=(1, 3, size, size), output="prob_out")


def torchvision_alexnet(
    *,
    exporter: str,
    pool: str = "average",
    functions: bool = False,
    shrink: int = 8,
    classes: int = 10,
    seed: int = 0,
) -> onnx.ModelProto:
    """torchvision's AlexNet: no LRN, no groups, a pool to 6x6 (or to 1x1: pool="global").

    exporter: "torchscript" (opset 11, hierarchical names, the batch taken by Shape and Gather) or
    "dynamo" (opset 20, FX names); functions: ReLU and dropout as local functions.
    """
    script = exporter == "torchscript"
    b = Builder(seed=seed)
    domain = {"domain": "pkg.torch"} if functions else {}
    seen: dict[str, int] = {}

    def names(fx: str, path: str) -> dict[str, str]:
        if script:
            return {"output": f"/{path}_output_0", "name": f"/{path}"}
        seen[fx] = seen.get(fx, -1) + 1
        output = fx if not seen[fx] else f"{fx}_{seen[fx]}"
        return {"output": output, "name": f"node_{output}"}

    def relu(x: str, path: str) -> str:
        op = "torch_relu" if functions else "Relu"
        return b.node(op, [x], **names("relu", f"{path}/Relu"), **domain)

    def dropout(x: str, path: str) -> str:
        if functions:
            return b.node("torch_dropout", [x], **names("dropout", path), **domain)
        return b.node("Identity", [x], **names("clone", f"{path}/Identity"))

    x, channels = "input" if script else "x", 3
    convs = ((0, 64, 11, 4, 2), (3, 192, 5, 1, 2), (6, 384, 3, 1, 1), (8, 256, 3, 1, 1))
    for at, width, kernel, stride, pad in (*convs, (10, 256, 3, 1, 1)):
        width //= shrink
        weight = b.weights(f"features.{at}.weight", width, channels, kernel, kernel)
        x = b.node(
            *("Conv", [x, weight, b.weights(f"features.{at}.bias", width)]),
            **names("conv2d", f"features/features.{at}/Conv"),
            **{"dilations": [1, 1], "group": 1, "kernel_shape": [kernel] * 2},
            **{"pads": [pad] * 4, "strides": [stride] * 2},
        )
        x, channels = relu(x, f"features/features.{at + 1}"), width
        if at in (0, 3, 10):
            window = {"ceil_mode": 0, "dilations": [1, 1], "kernel_shape": [3, 3], "pads": [0] * 4}
            path = names("max_pool2d", f"features/features.{at + 2}/MaxPool")
            x = b.node("MaxPool", [x], **path, **window, strides=[2, 2])
    if pool == "global":
        x = b.node("GlobalAveragePool", [x], **names("mean", "avgpool/GlobalAveragePool"))
    else:
        path = names("avg_pool2d", "avgpool/AveragePool")
        x = b.node("AveragePool", [x], **path, kernel_shape=[1, 1], strides=[1, 1])
    if script:
        batch = b.node("Shape", [x], "/Shape_output_0", name="/Shape")
        zero = helper.make_tensor("value", TensorProto.INT64, [], [0])
        b.node("Constant", [], "/Constant_output_0", name="/Constant", value=zero)
        batch = b.node("Gather", [batch, "/Constant_output_0"], "/Gather_output_0", axis=0)
        batch = b.node("Unsqueeze", [batch], "/Unsqueeze_output_0", axes=[0])
        minus_one = helper.make_tensor("value", TensorProto.INT64, [1], [-1])
        b.node("Constant", [], "/Constant_1_output_0", value=minus_one)
        shape = b.node("Concat", [batch, "/Constant_1_output_0"], "/Concat_output_0", axis=0)
        x = b.node("Reshape", [x, shape], "/Reshape_output_0", name="/Reshape")
    else:
        target = b.constant("val_8", np.array([-1, channels * (1 if pool == "global" else 36)]))
        x = b.node("Reshape", [x, target], **names("view", ""), allowzero=1)
    features = channels * (1 if pool == "global" else 36)
    for at, width in ((1, 4096 // shrink), (4, 4096 // shrink), (6, classes)):
        if at != 6:
            x = dropout(x, f"classifier/classifier.{at - 1}")
        weight = b.weights(f"classifier.{at}.weight", width, features)
        bias = b.weights(f"classifier.{at}.bias", width)
        path = names("linear", f"classifier/classifier.{at}/Gemm")
        x = b.node("Gemm", [x, weight, bias], **path, alpha=1.0, beta=1.0, transB=1)
        if at != 6:
            x = relu(x, f"classifier/classifier.{at + 1}")
        features = width
    options: dict[str, Any] = {"input": "input" if script else "x", "output": x}
    options |= {"shape": ("batch", 3, 224, 224)}
    if script:
        return b.model(**options, opset=11, ir_version=6)
    if functions:
        options["functions"] = _torch_functions()
        options["opsets"] = [helper.make_opsetid("pkg.torch", 1)]
    return b.model(**options, opset=20, ir_version=10)


def _torch_functions() -> list[onnx.FunctionProto]:
    opsets = [helper.make_opsetid("", 20)]
    relu = [helper.make_node("Relu", ["self"], ["result"])]
    dropout = [
        helper.make_node("Constant", [], ["ratio"], value_float=0.5),
        helper.make_node("Constant", [], ["train"], value=_scalar(False)),
        helper.make_node("Dropout", ["self", "ratio", "train"], ["result", "mask"]),
    ]
    return [
        helper.make_function("pkg.torch", f"torch_{name}", ["self"], ["result"], body, opsets)
        for name, body in (("relu", relu), ("dropout", dropout))
    ]


def _scalar(value: bool) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value))


def batchnorm_net(*, seed: int = 0) -> onnx.ModelProto:
    """Conv without bias, BatchNormalization, depthwise conv, ReduceMean, as PyTorch writes them."""
    b = Builder(seed=seed)
    x, channels = "x", 3
    for n, (width, group, stride) in enumerate(((8, 1, 2), (8, 8, 1), (12, 1, 1))):
        kernel = 3 if n < 2 else 1
        weight = b.weights(f"c{n}.weight", width, channels // group, kernel, kernel)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        x = b.node(
            "Conv", [x, weight], f"conv2d_{n}", name=f"node_conv2d_{n}", group=group, **window
        )
        mean, gamma = b.weights(f"b{n}.mean", width), b.weights(f"b{n}.weight", width)
        spread = b.rng.uniform(0.2, 4.0, size=width).astype(np.float32)
        parts = [gamma, b.weights(f"b{n}.bias", width), mean, b.constant(f"b{n}.var", spread)]
        x = b.node("BatchNormalization", [x, *parts], f"getitem_{n}", epsilon=1e-3)
        x, channels = b.node("Relu", [x], f"relu_{n}"), width
    axes = b.constant("axes", np.array([-1, -2]))
    x = b.node("ReduceMean", [x, axes], "mean", keepdims=1)
    x = b.node("Flatten", [x], "flat")
    x = b.node("MatMul", [x, b.weights("fc", 12, 5, fan_in=12)], "matmul")
    x = b.node("Add", [b.weights("fc_bias", 5), x], "linear")
    b.node("Softmax", [x], "softmax", axis=-1)
    return b.model(input="x", shape=(1, 3, 31, 33), output="softmax", opset=18)


def squeezenet(*, shrink: int = 8, classes: int = 10, seed: int = 0) -> onnx.ModelProto:
    """SqueezeNet 1.0 as Caffe's converters write it: fire modules joined by Concat, pools with
    ceil_mode, a padded 1x1 convolution, average over the map, Dropout and Softmax.
    """
    b = Builder(seed=seed)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}

    def conv(x: str, name: str, channels: int, width: int, kernel: int, **window: Any) -> str:
        weight, bias = b.weights(f"{name}_w", width, channels, kernel, kernel), f"{name}_b"
        inputs = [x, weight, b.weights(bias, width)]
        x = b.node("Conv", inputs, f"{name}_out", name=name, kernel_shape=[kernel] * 2, **window)
        return b.node("Relu", [x], f"{name}_relu", name=f"{name}_relu")

    x = conv("data", "conv1", 3, 96 // shrink, 7, strides=[2, 2])
    x, channels = b.node("MaxPool", [x], "pool1", name="pool1", **pool), 96 // shrink
    for n, squeezed in zip(range(2, 10), (16, 16, 32, 32, 48, 48, 64, 64), strict=True):
        few, many = squeezed // shrink, 4 * squeezed // shrink
        x = conv(x, f"fire{n}_squeeze", channels, few, 1)
        one = conv(x, f"fire{n}_expand1", few, many, 1)
        three = conv(x, f"fire{n}_expand3", few, many, 3, pads=[1, 1, 1, 1])
        x, channels = b.node("Concat", [one, three], f"fire{n}", name=f"fire{n}", axis=1), 2 * many
        if n in (4, 8):
            x = b.node("MaxPool", [x], f"pool{n}", name=f"pool{n}", **pool)
    x = b.node("Dropout", [x], "drop9", name="drop9")
    x = conv(x, "conv10", channels, classes, 1, pads=[1, 1, 1, 1])
    x = b.node("GlobalAveragePool", [x], "pool10", name="pool10")
    b.node("Softmax", [b.node("Flatten", [x], "flat")], "prob", name="prob", axis=1)
    return b.model(input="data", shape=(1, 3, 227, 227), output="prob")


def random_branches(*, seed: int) -> onnx.ModelProto:
    """Operators on tensors drawn at random among all maps so far, joined in threes."""
    b = Builder(seed=seed)
    maps: dict[str, int] = {"x": 3}  # channels by name; all of one size
    for n in range(12):
        x = list(maps)[int(b.rng.integers(max(0, len(maps) - 4), len(maps)))]
        match int(b.rng.integers(5)):
            case 0:
                width = int(b.rng.integers(1, 9))
                weight = b.weights(f"w{n}", width, maps[x], 3, 3)
                maps[b.node("Conv", [x, weight], f"t{n}", pads=[1, 1, 1, 1])] = width
            case 1:
                maps[b.node("Relu", [x], f"t{n}")] = maps[x]
            case 2:
                window = {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0]}
                maps[b.node("MaxPool", [x], f"t{n}", **window)] = maps[x]
            case _:
                joined = [x, *(str(name) for name in b.rng.choice(list(maps), 2))]
                axis = int(b.rng.choice([1, -3]))
                maps[b.node("Concat", joined, f"t{n}", axis=axis)] = sum(maps[t] for t in joined)
    b.node("Concat", [*list(maps)[-3:], "x"], "y", axis=1)
    return b.model(input="x", shape=(1, 3, 6, 5), output="y")


def light_bvlc_alexnet(*, shrink: int = 1, seed: int | None = 0) -> onnx.ModelProto:
    """The onnx package's file: weights are inputs made by ConstantOfShape.

    seed None leaves it as it is; else random weights replace its own.
    """
    model = onnx.load(LIGHT_BVLC)
    if seed is None:
        return model
    b = Builder(seed=seed)
    made = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in made:
        shape = [int(extent) for extent in shapes[node.input[0]]]
        layer = node.output[0].split("_")[0]
        shape[0] = shape[0] if layer == "fc8" else shape[0] // shrink
        if len(shape) > 1 and layer != "conv1":
            shape[1] //= shrink
        b.weights(node.output[0], *shape)
        model.graph.node.remove(node)
    model.graph.initializer.extend(b.initializers)
    flat = next(tensor for tensor in model.graph.initializer if tensor.name == "OC2_DUMMY_1")
    flat.CopyFrom(numpy_helper.from_array(np.array([1, 9216 // shrink]), flat.name))
    for tensor in b.initializers:  # IR 3: a weight is an input too
        info = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        model.graph.input.append(info)
    return model


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "bvlc_227": partial(alexnet, norm_first=True),
    "bvlc_224": partial(alexnet, norm_first=True, size=224),
    "pool_norm_227": partial(alexnet, norm_first=False),
    "torchscript": partial(torchvision_alexnet, exporter="torchscript"),
    "torchscript_global": partial(torchvision_alexnet, exporter="torchscript", pool="global"),
    "dynamo": partial(torchvision_alexnet, exporter="dynamo"),
    "dynamo_global": partial(torchvision_alexnet, exporter="dynamo", pool="global"),
    "dynamo_functions": partial(torchvision_alexnet, exporter="dynamo", functions=True),
    "batchnorm": batchnorm_net,
    "squeezenet": squeezenet,
    "light_bvlc": partial(light_bvlc_alexnet, shrink=8),
}
