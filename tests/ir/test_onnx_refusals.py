# SPDX-License-Identifier: 0BSD
"""What bdcc cannot take: one line that names the place, says what was found and what is handled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_reference import chain, one_node

import zoo
from bdcc.errors import ModelError
from bdcc.ir.onnx_import import load_onnx

PICTURE = (1, 4, 7, 9)
ONES = np.ones((6, 4, 3, 3), np.float32)


def node(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], **attributes)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_onnx(path)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert message.endswith(".")
    assert "\n" not in message
    return message


def of_model(model: onnx.ModelProto, path: Path) -> str:
    onnx.save(model, path)
    return refusal(path)


def spoiled(value: float, *, at: str) -> onnx.ModelProto:
    """A conv and a Gemm, `value` planted in one element of the initializer `at`."""
    tensors = [ONES.copy(), np.zeros(6, np.float32), np.ones((210, 5), np.float32)]
    tensors[int(at[1])].flat[-1] = value
    nodes = [node("Conv", ["x", "c0", "c1"], "a", name="conv1"), node("Flatten", ["a"], "f")]
    return chain([*nodes, node("Gemm", ["f", "c2"], name="fc")], PICTURE, tensors)


def norm_of(
    inputs: str = "x c0 c1 c1 c1 c1", *, opset: int = 15, **attributes: Any
) -> onnx.ModelProto:
    x, weight, *rest = inputs.split()
    nodes = [node("Conv", [x, weight], "a"), node("BatchNormalization", ["a", *rest], **attributes)]
    constants = [ONES, np.ones(6, np.float32), -np.ones(6, np.float32), np.ones(5, np.float32)]
    return chain(nodes, PICTURE, constants, opset)


def behind_flatten(proto: onnx.NodeProto, *constants: np.ndarray) -> onnx.ModelProto:
    return chain([node("Flatten", ["x"], "f"), proto], (1, 4, 2, 3), constants)


def joined(inputs: list[str], *, axis: int) -> onnx.ModelProto:
    """Concat of the picture 'x', its Relu 'r', a smaller map 'p', a vector 'f', a constant 'c0'."""
    nodes = [
        node("Relu", ["x"], "r"),
        node("MaxPool", ["x"], "p", kernel_shape=[2, 2]),
        node("Flatten", ["x"], "f"),
        node("Concat", inputs, name="join", axis=axis),
    ]
    return chain(nodes, PICTURE, [np.ones((1, 2, 7, 9), np.float32)])


HANDLED = "; bdcc handles "

REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    # operators
    "unknown operator": (
        lambda: one_node("Sigmoid", PICTURE, name="gate"),
        "gate (Sigmoid): the operator is not supported; bdcc handles Add, AveragePool,",
    ),
    "operator of another domain": (
        lambda: one_node("FusedConv", PICTURE, domain="com.microsoft"),
        "y (com.microsoft.FusedConv): the operator is not supported" + HANDLED,
    ),
    "operator that ONNX does not have": (
        lambda: one_node("Frobnicate", PICTURE, name="f"),
        "f (Frobnicate): the operator is not supported" + HANDLED,
    ),
    "concat along the height": (
        lambda: joined(["x", "r"], axis=2),
        "join (Concat): joins along axis 2 of shape (1, 4, 7, 9)" + HANDLED + "the channels, ax",
    ),
    "concat along the width, counted from behind": (
        lambda: joined(["x", "r"], axis=-1),
        "join (Concat): joins along axis -1 of shape (1, 4, 7, 9)" + HANDLED + "the channels, ax",
    ),
    "concat of batches": (
        lambda: joined(["x", "r"], axis=0),
        "join (Concat): joins along axis 0 of shape (1, 4, 7, 9)" + HANDLED + "the channels, ax",
    ),
    "concat of maps of different sizes": (
        lambda: joined(["x", "p"], axis=1),
        "join (Concat): joins shapes (4, 7, 9) and (4, 6, 8), which differ in more than channels.",
    ),
    "concat of a map and a vector": (
        lambda: joined(["x", "f"], axis=1),
        "join (Concat): joins shapes (4, 7, 9) and (252,), which differ in more than channels.",
    ),
    "concat of a map and a constant": (
        lambda: joined(["r", "c0"], axis=1),
        "join (Concat): input 1 is a constant; bdcc handles a tensor there.",
    ),
    "add of maps": (
        lambda: chain([node("Relu", ["x"], "r"), node("Add", ["x", "r"], name="skip")], PICTURE),
        "skip (Add): joins two feature maps; bdcc handles Add of a constant.",
    ),
    "transpose of a map": (
        lambda: one_node("Transpose", PICTURE, perm=[0, 2, 3, 1]),
        "y (Transpose): works on a feature map; bdcc handles Transpose of constants.",
    ),
    "random constant": (
        lambda: chain([node("RandomNormal", [], "r", shape=[1]), node("Add", ["x", "r"])], PICTURE),
        "r (RandomNormal): the operator is not supported" + HANDLED,
    ),
    "constant that cannot be worked out": (
        lambda: chain(
            [node("MatMul", ["c0", "c1"], "w"), node("Conv", ["x", "w"])],
            PICTURE,
            [np.ones((2, 3), np.float32)] * 2,
        ),
        "w (MatMul): its constant cannot be worked out: ",
    ),
    "mask of a dropout": (
        lambda: chain(
            [helper.make_node("Dropout", ["x"], ["d", "mask"], name="drop"), node("Not", ["mask"])],
            PICTURE,
        ),
        "y (Not): reads 'mask' of drop (Dropout); bdcc computes first outputs only.",
    ),
    "indices of a pool as the output": (
        lambda: chain(
            [helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2], name="pool")],
            PICTURE,
            output="i",
        ),
        "the model's output: reads 'i' of pool (MaxPool); bdcc computes first outputs only.",
    ),
    # attributes
    "lrn beta": (
        lambda: one_node("LRN", PICTURE, size=5, beta=0.6, name="norm"),
        "norm (LRN): beta is 0.6; bdcc handles multiples of 1/4 up to 4.",
    ),
    "lrn beta 0": (
        lambda: one_node("LRN", PICTURE, size=5, beta=0.0),
        "y (LRN): beta is 0; bdcc handles multiples of 1/4 up to 4.",
    ),
    "lrn beta above 4": (
        lambda: one_node("LRN", PICTURE, size=5, beta=4.25),
        "y (LRN): beta is 4.25; bdcc handles multiples of 1/4 up to 4.",
    ),
    "lrn of a vector": (
        lambda: behind_flatten(node("LRN", ["f"], size=5)),
        "y (LRN): needs a feature map (1, C, H, W), got shape (1, 24).",
    ),
    "missing attribute": (
        lambda: one_node("MaxPool", PICTURE, name="pool"),
        "pool (MaxPool): its attribute 'kernel_shape' is missing.",
    ),
    "attribute of another opset": (
        lambda: one_node("MaxPool", PICTURE, opset=7, kernel_shape=[2, 2], ceil_mode=1),
        "y (MaxPool): attribute 'ceil_mode' is not one of MaxPool in opset 7.",
    ),
    "auto_pad": (
        lambda: one_node("Conv", PICTURE, [ONES], auto_pad="MIRROR"),
        "y (Conv): auto_pad 'MIRROR' is not supported; bdcc handles NOTSET, SAME_UPPER,",
    ),
    "same padding that would crop": (
        lambda: one_node(
            "MaxPool", (1, 4, 8, 8), kernel_shape=[1, 1], strides=[4, 4], auto_pad="SAME_UPPER"
        ),
        "y (MaxPool): SAME_UPPER with strides [4, 4] past the kernel is ambiguous. Re-export",
    ),
    "negative pads": (
        lambda: one_node("Conv", PICTURE, [ONES], pads=[0, 0, -1, 0]),
        "y (Conv): pads is [0, 0, -1, 0]; bdcc handles four numbers of 0 to 65536.",
    ),
    "stride 0": (
        lambda: one_node("Conv", PICTURE, [ONES], strides=[1, 0]),
        "y (Conv): strides is [1, 0]; bdcc handles two numbers of 1 to 65536.",
    ),
    "groups 0": (
        lambda: one_node("Conv", PICTURE, [ONES], group=0),
        "y (Conv): group is 0; bdcc handles 1 to 65536.",
    ),
    "groups that do not fit": (
        lambda: one_node("Conv", PICTURE, [ONES], group=2, name="c"),
        "c (Conv): weight (6, 4, 3, 3) with 2 groups does not fit 4 input channels.",
    ),
    "kernel_shape that does not fit": (
        lambda: one_node("Conv", PICTURE, [ONES], kernel_shape=[3, 5]),
        "y (Conv): kernel_shape (3, 5) does not fit its weight (6, 4, 3, 3).",
    ),
    "bias that does not fit": (
        lambda: one_node("Conv", PICTURE, [ONES, np.ones(5, np.float32)]),
        "y (Conv): bias (5,) does not fit its weight (6, 4, 3, 3).",
    ),
    "1-D convolution": (
        lambda: one_node("Conv", PICTURE, [np.ones((6, 4, 3), np.float32)]),
        "y (Conv): weight (6, 4, 3) on input (1, 4, 7, 9); bdcc handles 2-D convolutions.",
    ),
    "kernel larger than the map": (
        lambda: one_node("Conv", (1, 4, 2, 9), [ONES], name="big"),
        "big (Conv): kernel (3, 3) does not fit its padded input of 2x9.",
    ),
    "window in the padding": (
        lambda: one_node("MaxPool", PICTURE, kernel_shape=[2, 2], pads=[2, 0, 0, 0]),
        "y (MaxPool): kernel (2, 2) with pads (2, 0, 0, 0) has windows that lie in the padding",
    ),
    "pool of a vector": (
        lambda: behind_flatten(node("MaxPool", ["f"], kernel_shape=[2, 2])),
        "y (MaxPool): needs a feature map (1, C, H, W), got shape (1, 24).",
    ),
    "transA": (
        lambda: behind_flatten(node("Gemm", ["f", "c0"], transA=1), np.ones((1, 5), np.float32)),
        "y (Gemm): transA turns features into a batch; bdcc handles transA = 0.",
    ),
    "weight as first operand": (
        lambda: behind_flatten(node("MatMul", ["c0", "f"]), np.ones((5, 1), np.float32)),
        "y (MatMul): its weight is the first operand; bdcc handles x @ weight.",
    ),
    "matrix on a map": (
        lambda: one_node("MatMul", PICTURE, [np.ones((9, 5), np.float32)]),
        "y (MatMul): weight (9, 5) on input (1, 4, 7, 9); bdcc handles a matrix on a vector.",
    ),
    "features that do not fit": (
        lambda: behind_flatten(node("Gemm", ["f", "c0"]), np.ones((23, 5), np.float32)),
        "y (Gemm): expects a vector of 23 features, got shape (24,).",
    ),
    "gemm bias that does not fit": (
        lambda: behind_flatten(
            node("Gemm", ["f", "c0", "c1"]), np.ones((24, 5), np.float32), np.ones(4, np.float32)
        ),
        "y (Gemm): bias (4,) does not fit 5 outputs.",
    ),
    "softmax over the width": (
        lambda: one_node("Softmax", PICTURE, axis=-1),
        "y (Softmax): axis 3 of shape (1, 4, 7, 9); bdcc handles Softmax over the channels.",
    ),
    "softmax of a map before opset 13": (
        lambda: one_node("Softmax", PICTURE, axis=1, opset=11),
        "y (Softmax): axis 1 of shape (1, 4, 7, 9); bdcc handles Softmax over the channels.",
    ),
    "training dropout": (
        lambda: one_node("Dropout", PICTURE, [None, np.array(True)], name="drop"),
        "drop (Dropout): is in training mode. Export in eval mode.",
    ),
    "reshape for another batch": (
        lambda: one_node("Reshape", PICTURE, [np.array([2, -1, 9])], name="view"),
        "view (Reshape): turns shape (1, 4, 7, 9) into (2, 14, 9); bdcc handles flattening to",
    ),
    "reshape that does not fit": (
        lambda: one_node("Reshape", PICTURE, [np.array([8, 252])]),
        "y (Reshape): does not fit shape (1, 4, 7, 9) with a batch of 1: cannot reshape",
    ),
    "reshape by the picture": (
        lambda: chain(
            [node("Cast", ["x"], "s", to=TensorProto.INT64), node("Reshape", ["x", "s"])], PICTURE
        ),
        "s (Cast): casts a feature map; bdcc handles float32 activations.",
    ),
    "flatten of half a map": (
        lambda: one_node("Flatten", PICTURE, axis=2),
        "y (Flatten): turns shape (1, 4, 7, 9) into (4, 63); bdcc handles flattening to (1, N).",
    ),
    "mean over the width": (
        lambda: one_node("ReduceMean", PICTURE, axes=[3]),
        "y (ReduceMean): bdcc handles ReduceMean over height and width of a feature map,",
    ),
    # folding
    "batchnorm of the picture": (
        lambda: one_node("BatchNormalization", PICTURE, [np.ones(4, np.float32)] * 4, name="bn"),
        "bn (BatchNormalization): follows 'x'; bdcc folds BatchNormalization into a Conv,",
    ),
    "batchnorm in training": (
        lambda: norm_of(training_mode=1),
        "y (BatchNormalization): is in training mode or not per channel; bdcc handles inference",
    ),
    "batchnorm per activation": (
        lambda: norm_of(opset=7, spatial=0),
        "y (BatchNormalization): is in training mode or not per channel; bdcc handles inference",
    ),
    "batchnorm of another size": (
        lambda: norm_of("x c0 c1 c1 c1 c3"),
        "y (BatchNormalization): tensor 'c3' has shape (5,), not (6,).",
    ),
    "batchnorm with a negative variance": (
        lambda: norm_of("x c0 c1 c1 c1 c2"),
        "a: folding y (BatchNormalization) into it gives NaN or infinite weights.",
    ),
    "division by zero": (
        lambda: chain(
            [node("Conv", ["x", "c0"], "a", name="conv1"), node("Div", ["a", "c1"])],
            PICTURE,
            [ONES, np.zeros((6, 1, 1), np.float32)],
        ),
        "conv1: folding y (Div) into it gives NaN or infinite weights.",
    ),
    "division of a constant": (
        lambda: one_node("Div", PICTURE, [np.ones((), np.float32)], first=False),
        "y (Div): constant of shape () on (1, 4, 7, 9); bdcc handles one value per channel,",
    ),
    "a constant per pixel": (
        lambda: chain(
            [node("Conv", ["x", "c0"], "a"), node("Add", ["a", "c1"])],
            PICTURE,
            [ONES, np.ones((5, 7), np.float32)],
        ),
        "y (Add): constant of shape (5, 7) on (1, 6, 5, 7); bdcc handles one value per channel,",
    ),
    "affine of the picture": (
        lambda: one_node("Mul", PICTURE, [np.full((), 2, np.float32)], name="scale"),
        "scale (Mul): follows 'x'; bdcc folds Mul into a Conv, Gemm or MatMul directly in front",
    ),
    # weights
    "nan in a conv weight": (
        lambda: spoiled(np.nan, at="c0"),
        "conv1 (Conv): tensor 'c0' holds NaN or infinity; bdcc handles finite weights.",
    ),
    "inf in a conv bias": (
        lambda: spoiled(-np.inf, at="c1"),
        "conv1 (Conv): tensor 'c1' holds NaN or infinity; bdcc handles finite weights.",
    ),
    "inf in a gemm weight": (
        lambda: spoiled(np.inf, at="c2"),
        "fc (Gemm): tensor 'c2' holds NaN or infinity; bdcc handles finite weights.",
    ),
    "a weight whose square is none of float32's": (
        lambda: spoiled(1e20, at="c0"),
        "conv1 (Conv): tensor 'c0' holds 1e+20; bdcc handles 1e+15 at most.",
    ),
    "a factor that makes such a weight": (
        lambda: chain(
            [node("Conv", ["x", "c0"], "a", name="conv1"), node("Mul", ["a", "c1"])],
            PICTURE,
            [ONES * np.float32(1e8), np.full((6, 1, 1), 1e8, np.float32)],
        ),
        "conv1: folding y (Mul) into it gives weights of 1e+16; bdcc handles 1e+15 at most.",
    ),
    "double weights": (
        lambda: one_node("Conv", PICTURE, [ONES.astype(np.float64)]),
        "y (Conv): tensor 'c0' is float64; bdcc handles float32. Convert the model to float32.",
    ),
    "half weights": (
        lambda: one_node("Conv", PICTURE, [ONES.astype(np.float16)]),
        "y (Conv): tensor 'c0' is float16; bdcc handles float32. Convert the model to float32.",
    ),
    "empty weights": (
        lambda: one_node("Conv", PICTURE, [ONES[:0]]),
        "y (Conv): tensor 'c0' of shape (0, 4, 3, 3) is empty.",
    ),
    "weights from the picture": (
        lambda: chain([node("Relu", ["x"], "r"), node("Conv", ["x", "r"])], PICTURE),
        "y (Conv): input 'r' depends on the picture; bdcc handles a constant there.",
    ),
    "picture in the weights' place": (
        lambda: one_node("Conv", PICTURE, [ONES], first=False),
        "y (Conv): input 0 is a constant; bdcc handles a tensor there.",
    ),
    # graph
    "dynamic height": (
        lambda: one_node("Relu", ("N", 3, "height", 224)),
        "x: the height (dimension 2) is dynamic 'height'; only the batch may be. Re-export with",
    ),
    "dynamic width": (
        lambda: one_node("Relu", (1, 3, 224, None)),  # type: ignore[arg-type]
        "x: the width (dimension 3) is dynamic; only the batch may be. Re-export with a fixed",
    ),
    "fixed batch": (
        lambda: one_node("Relu", (4, 3, 8, 8)),
        "x: the batch is fixed at 4; bdcc compiles for one picture at a time. Re-export with",
    ),
    "vector input": (
        lambda: one_node("Relu", (1, 10)),
        "x: the input has 2 dimensions; bdcc handles four: batch, channels, height, width.",
    ),
    "no layer": (
        lambda: one_node("Identity", PICTURE),
        "y: the output does not depend on any layer.",
    ),
    "constant output": (
        lambda: chain([node("Shape", ["x"])], PICTURE),
        "y: the output does not depend on any layer.",
    ),
    "order": (
        lambda: chain([node("Relu", ["r"]), node("Relu", ["x"], "r")], PICTURE),
        "y (Relu): reads 'r', which nothing before it writes.",
    ),
    "written twice": (
        lambda: chain([node("Relu", ["x"], "y"), node("LRN", ["x"], "y", size=3)], PICTURE),
        "y (LRN): writes 'y', which is written before.",
    ),
    "opset too old": (
        lambda: one_node("Relu", PICTURE, opset=6),
        f"m.onnx: the model uses opset 6; bdcc handles 7 to {onnx.defs.onnx_opset_version()}.",
    ),
    "opset too new": (
        lambda: one_node("Relu", PICTURE, opset=onnx.defs.onnx_opset_version() + 1),
        f"m.onnx: the model uses opset {onnx.defs.onnx_opset_version() + 1}; bdcc handles 7 to",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, tmp_path: Path) -> None:
    build, expected = REFUSED[what]
    message = of_model(build(), tmp_path / "m.onnx")
    assert message.startswith(expected), message


def test_input_of_another_type(tmp_path: Path) -> None:
    model = one_node("Relu", PICTURE)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    message = of_model(model, tmp_path / "m.onnx")
    assert message == "x: the input is float16; bdcc handles float32. Re-export in float32."


def test_two_inputs_and_two_outputs_are_named(tmp_path: Path) -> None:
    model = one_node("Relu", PICTURE)
    model.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, PICTURE))
    assert of_model(model, tmp_path / "m.onnx") == (
        "m.onnx: the model has 2 inputs ('x', 'x2'); bdcc handles exactly one. "
        "Re-export with one input."
    )
    model = one_node("Relu", PICTURE)
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, PICTURE))
    assert of_model(model, tmp_path / "m.onnx").startswith(
        "m.onnx: the model has 2 outputs ('y', 'x'); bdcc handles exactly one."
    )
    del model.graph.output[:]
    assert "the model has 0 outputs (none)" in of_model(model, tmp_path / "m.onnx")


def test_sparse_initializers(tmp_path: Path) -> None:
    model = one_node("Relu", PICTURE)
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "at")
    sparse = helper.make_sparse_tensor(values, indices, [4])
    model.graph.sparse_initializer.append(sparse)
    assert of_model(model, tmp_path / "m.onnx").startswith("m.onnx: sparse initializers are not")


@pytest.mark.parametrize("content", [b"not a model", b"PK\x03\x04" + bytes(100), b"\x08\x07" * 50])
def test_not_an_onnx_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{path}: is not an ONNX ")
    assert "damaged or truncated. Export the model to ONNX again" in message


def test_empty_missing_and_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    assert refusal(tmp_path / "empty.onnx") == f"{tmp_path / 'empty.onnx'}: the file is empty."
    missing = refusal(tmp_path / "missing.onnx")
    assert missing == f"{tmp_path / 'missing.onnx'}: cannot be read: No such file or directory."
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory."


def test_truncated_at_every_length(tmp_path: Path) -> None:
    """A prefix is never taken for a model, and never anything but one line."""
    whole = zoo.batchnorm_net().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in (*range(1, 200), *range(200, len(whole), 37), len(whole) - 1):
        path.write_bytes(whole[:length])
        refusal(path)


def test_damaged_bytes_give_one_line_or_a_graph(tmp_path: Path) -> None:
    """Bytes overwritten anywhere: a ModelError or a graph, never another exception."""
    rng = np.random.default_rng(5)
    whole = zoo.torchvision_alexnet(exporter="torchscript", pool="global", shrink=64)
    data = np.frombuffer(whole.SerializeToString(), np.uint8)
    path, refused = tmp_path / "m.onnx", 0
    for _ in range(300):
        damaged = data.copy()
        damaged[rng.integers(0, rng.choice([300, 3000, data.size]), 2)] = rng.integers(0, 256, 2)
        path.write_bytes(damaged.tobytes())
        try:
            load_onnx(path)
        except ModelError:
            refused += 1
    assert 50 < refused < 300


def test_a_damaged_initializer_is_named(tmp_path: Path) -> None:
    model = one_node("Conv", PICTURE, [ONES])
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]
    message = of_model(model, tmp_path / "m.onnx")
    assert message == "c0: its data is damaged or does not fill its shape (6, 4, 3, 3)."


def test_missing_or_short_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = one_node("Conv", PICTURE, [ONES])
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:-4])
    short = refusal(path)
    assert "c0" in short
    (tmp_path / "w.bin").unlink()
    assert refusal(path) == (
        f"{path}: the data of tensor 'c0' cannot be read from 'w.bin' (No such file or directory). "
        "Keep the file of external data beside the model."
    )


def test_external_data_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "inner/m.onnx"
    path.parent.mkdir()
    model = one_node("Conv", PICTURE, [ONES])
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (path.parent / "w.bin").rename(tmp_path / "w.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    assert "cannot be read from '../w.bin'" in refusal(path)
