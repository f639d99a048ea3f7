# SPDX-License-Identifier: 0BSD
"""ONNX's own backend tests of our operators: computed right, or refused; nothing in between.

The cases come with the onnx package. To fit a picture compiler they are adapted, never their
operator: weights that are inputs become constants; a vector gets a Flatten in front, a
BatchNormalization a Conv that passes its input on, vectors to be joined each a Conv that picks it
out of one picture; a batch is run picture by picture.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter

from bdcc.approx.simulate import run_float
from bdcc.errors import ModelError
from bdcc.ir.onnx_import import load_onnx

OPERATORS = frozenset(
    [
        "AveragePool",
        "BatchNormalization",
        "Concat",
        "Conv",
        "Dropout",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "Identity",
        "LRN",
        "MatMul",
        "MaxPool",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Softmax",
        "Squeeze",
        "Unsqueeze",
    ]
)

DATA = Path(onnx.__file__).parent / "backend/test/data"

COMPUTED = {
    "node": {
        *("test_averagepool_2d_ceil", "test_averagepool_2d_ceil_last_window_starts_on_pad"),
        *("test_averagepool_2d_default", "test_averagepool_2d_dilations"),
        *("test_averagepool_2d_pads", "test_averagepool_2d_pads_count_include_pad"),
        "test_averagepool_2d_precomputed_pads",
        "test_averagepool_2d_precomputed_pads_count_include_pad",
        "test_averagepool_2d_precomputed_same_upper",
        *("test_averagepool_2d_precomputed_strides", "test_averagepool_2d_same_lower"),
        *("test_averagepool_2d_same_upper", "test_averagepool_2d_strides"),
        *("test_basic_conv_with_padding", "test_basic_conv_without_padding"),
        *("test_batchnorm_epsilon", "test_batchnorm_example"),
        *("test_concat_2d_axis_1", "test_concat_2d_axis_negative_1", "test_conv_with_autopad_same"),
        *("test_conv_with_strides_and_asymmetric_padding", "test_conv_with_strides_no_padding"),
        *("test_conv_with_strides_padding", "test_flatten_axis1", "test_flatten_default_axis"),
        *("test_flatten_negative_axis3", "test_gemm_alpha", "test_gemm_beta"),
        *("test_gemm_default_no_bias", "test_gemm_default_scalar_bias"),
        *("test_gemm_default_single_elem_vector_bias", "test_gemm_default_vector_bias"),
        *("test_gemm_default_zero_bias", "test_gemm_transposeB", "test_globalaveragepool"),
        *("test_globalaveragepool_precomputed", "test_lrn", "test_lrn_default"),
        *("test_matmul_2d", "test_maxpool_2d_ceil"),
        *("test_maxpool_2d_ceil_output_size_reduce_by_one", "test_maxpool_2d_default"),
        *("test_maxpool_2d_dilations", "test_maxpool_2d_pads", "test_maxpool_2d_precomputed_pads"),
        *("test_maxpool_2d_precomputed_same_upper", "test_maxpool_2d_precomputed_strides"),
        *("test_maxpool_2d_same_lower", "test_maxpool_2d_same_upper", "test_maxpool_2d_strides"),
        *("test_softmax_example", "test_softmax_large_number"),
    },
    "converted": {
        *("test_AvgPool2d", "test_AvgPool2d_stride", "test_BatchNorm2d_eval"),
        *("test_BatchNorm2d_momentum_eval", "test_Conv2d", "test_Conv2d_depthwise"),
        *("test_Conv2d_depthwise_padded", "test_Conv2d_depthwise_strided"),
        *("test_Conv2d_depthwise_with_multiplier", "test_Conv2d_dilated", "test_Conv2d_groups"),
        *("test_Conv2d_groups_thnn", "test_Conv2d_no_bias", "test_Conv2d_padding"),
        *("test_Conv2d_strided", "test_Linear", "test_MaxPool2d"),
        *("test_MaxPool2d_stride_padding_dilation", "test_ReLU", "test_Softmax"),
        "test_softmax_lastdim",
    },
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """inputs, outputs: of the first data set, in the model's order."""

    name: str
    model: onnx.ModelProto
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


def official_cases() -> Iterator[Case]:
    """The single-node cases of our operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    for case in cases:
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS and not nodes[0].domain:
            inputs, outputs = (list(values) for values in case.data_sets[0])
            if inputs and isinstance(inputs[0], np.ndarray):  # neither a sequence nor an optional
                yield Case(name=case.name, model=case.model, inputs=inputs, outputs=outputs)


def converted_cases() -> Iterator[Case]:
    """Models that PyTorch wrote, of opset 6: brought to opset 9 by onnx's converter."""
    for folder in sorted((DATA / "pytorch-converted").iterdir()):
        model = onnx.load(folder / "model.onnx")
        if not {node.op_type for node in model.graph.node} <= OPERATORS:
            continue
        data = folder / "test_data_set_0"
        inputs = [read(data / f"input_{i}.pb") for i in range(len(list(data.glob("input*"))))]
        if model.opset_import[0].version < 7:
            model = version_converter.convert_version(model, 9)
        yield Case(
            name=folder.name, model=model, inputs=inputs, outputs=[read(data / "output_0.pb")]
        )


def read(path: Path) -> np.ndarray:
    tensor = TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)


def adapted(case: Case) -> tuple[onnx.ModelProto, np.ndarray]:
    """The model with one picture input, and its pictures [N, C, H, W].

    The batch becomes dynamic if the output has one row per picture.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    picture, *weights = [value for value in graph.input if value.name not in initializers]
    x = np.asarray(case.inputs[0])
    if graph.node[0].op_type == "Concat" and x.ndim == 2:
        x = np.concatenate(case.inputs, axis=1)[:, :, None, None]
        picking, picture = np.eye(x.shape[1], dtype=np.float32), onnx.ValueInfoProto(name="picture")
        for value in (graph.input[0], *weights):
            rows, picking = np.split(picking, [case.inputs[0].shape[1]])
            graph.initializer.append(numpy_helper.from_array(rows[..., None, None], value.name))
            picked = f"{value.name}_picked"
            graph.node.insert(0, helper.make_node("Flatten", [picked], [f"{value.name}_flat"]))
            graph.node.insert(0, helper.make_node("Conv", ["picture", value.name], [picked]))
        graph.node[-1].input[:] = [f"{name}_flat" for name in graph.node[-1].input]
        weights = []
    for value, array in zip(weights, case.inputs[1:], strict=False):
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    del graph.input[:]
    name, shape = picture.name, x.shape
    if x.ndim == 2:
        name, shape = "picture", (*x.shape, 1, 1)
        graph.node.insert(0, helper.make_node("Flatten", [name], [picture.name], name="adapter"))
    if x.ndim == 4 and graph.node[0].op_type == "BatchNormalization":
        name = "picture"
        ones = np.ones((x.shape[1], 1, 1, 1), np.float32)
        graph.initializer.append(numpy_helper.from_array(ones, "ones"))
        inputs, attributes = [name, "ones"], {"group": x.shape[1], "name": "adapter"}
        graph.node.insert(0, helper.make_node("Conv", inputs, [picture.name], **attributes))
    separate = bool(shape) and np.shape(case.outputs[0])[:1] == shape[:1]
    dynamic = ("N", *shape[1:]) if separate else shape
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph.input.append(helper.make_tensor_value_info(name, element, dynamic))
    return model, x.reshape(shape)


def is_computed(case: Case, path: Path) -> bool:
    """Whether bdcc takes the case; asserts that it then computes what the case says."""
    model, pictures = adapted(case)
    onnx.save(model, path)
    try:
        graph = load_onnx(path)
    except ModelError:
        return False
    expected = np.asarray(case.outputs[0])
    for x, y in zip(pictures, expected, strict=True):
        found = run_float(graph, x)[graph.output]
        np.testing.assert_allclose(found, y, rtol=1e-3, atol=1e-6, err_msg=case.name)
    return True


@pytest.mark.parametrize("source", ["node", "converted"])
def test_official_cases(source: str, tmp_path: Path) -> None:
    cases = official_cases() if source == "node" else converted_cases()
    computed = {case.name for case in cases if is_computed(case, tmp_path / "m.onnx")}
    assert computed == COMPUTED[source]
