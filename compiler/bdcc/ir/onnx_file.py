# SPDX-License-Identifier: 0BSD
"""From the bytes of an ONNX file to a flat list of operators, constants, one input, one output.

What concerns the file and not the operators is settled here: damage, opset, external data, local
functions, the batch, the number of inputs and outputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import checker, external_data_helper, inliner, numpy_helper

from bdcc.errors import ModelError
from bdcc.ir.graph import Shape

Constant = npt.NDArray[Any]

OLDEST_OPSET = 7
EXPORT = "Export the model to ONNX again, or fetch it again"
AXES = ("batch", "channels", "height", "width")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxFile:
    """nodes: as stored, functions inlined, those the output needs; constants: the initializers;
    input_shape: (C, H, W), the batch is 1."""

    name: str
    sha256: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Constant]
    input: str
    input_shape: Shape
    output: str


def read_onnx(path: Path) -> OnnxFile:
    """Read a model and check all but its operators; raises ModelError naming file or tensor."""
    model, sha256 = _parse(path)
    opset = _opset(model, path)
    constants = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise ModelError(
            "sparse initializers are not supported",
            layer=path.name,
            hint="Store the weights as dense tensors",
        )
    # The arrays own the weights now; what follows, inlining included, works on a light model.
    del model.graph.initializer[:]
    if model.functions:
        model = _inline(model, constants, path)
    inputs = [value for value in model.graph.input if value.name not in constants]
    outputs = [value.name for value in model.graph.output]
    for kind, names in (("input", [value.name for value in inputs]), ("output", outputs)):
        if len(names) != 1:
            listed = ", ".join(f"'{name}'" for name in names) or "none"
            raise ModelError(
                f"the model has {len(names)} {kind}s ({listed}); bdcc handles exactly one",
                layer=path.name,
                hint=f"Re-export with one {kind}",
            )
    return OnnxFile(
        name=path.stem,
        sha256=sha256,
        opset=opset,
        nodes=_needed(model.graph.node, outputs[0]),
        constants=constants,
        input=inputs[0].name,
        input_shape=_input_shape(inputs[0]),
        output=outputs[0],
    )


def _parse(path: Path) -> tuple[onnx.ModelProto, str]:
    """The model, external tensors loaded, and the SHA-256 of the file and then those tensors."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", layer=str(path)) from error
    if not data:
        raise ModelError("the file is empty", layer=str(path))
    digest = hashlib.sha256(data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            "is not an ONNX file, or is damaged or truncated", layer=str(path), hint=EXPORT
        ) from error
    if not model.graph.node or not (model.ir_version and model.opset_import):
        raise ModelError(
            "is not an ONNX model, or is damaged or truncated", layer=str(path), hint=EXPORT
        )
    attributes = (value for node in model.graph.node for value in node.attribute)
    tensors = [*model.graph.initializer, *(value.t for value in attributes if value.HasField("t"))]
    for tensor in filter(external_data_helper.uses_external_data, tensors):
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, checker.ValidationError) as error:
            where = {entry.key: entry.value for entry in tensor.external_data}.get("location", "?")
            raise ModelError(
                f"the data of tensor '{tensor.name}' cannot be read from '{where}'",
                layer=str(path),
                hint="Keep the file of external data beside the model",
            ) from error
        digest.update(tensor.raw_data)
    return model, digest.hexdigest()


def _opset(model: onnx.ModelProto, path: Path) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if not versions or not OLDEST_OPSET <= max(versions) <= newest:
        found = f"opset {max(versions)}" if versions else "no opset of ONNX's own operators"
        raise ModelError(
            f"the model uses {found}; bdcc handles {OLDEST_OPSET} to {newest}",
            layer=path.name,
            hint="Re-export it, or convert it with onnx.version_converter",
        )
    return int(max(versions))


def _array(tensor: onnx.TensorProto) -> Constant:
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        shape = tuple(tensor.dims)
        raise ModelError(
            f"its data is damaged or does not fill its shape {shape}", layer=tensor.name
        ) from error
    array.setflags(write=False)
    return array


def _inline(
    model: onnx.ModelProto, constants: Mapping[str, Constant], path: Path
) -> onnx.ModelProto:
    """Bodies for calls of local functions; constants stand as inputs, so no new name is theirs."""
    try:
        listed = {value.name for value in model.graph.input}
        model.graph.input.extend(
            onnx.ValueInfoProto(name=name) for name in constants if name not in listed
        )
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            "its local functions cannot be inlined: " + first_line(error), layer=path.name
        ) from error


def _input_shape(value: onnx.ValueInfoProto) -> Shape:
    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        names = {number: name for name, number in onnx.TensorProto.DataType.items()}
        raise ModelError(
            f"the input is {names.get(kind.elem_type, 'unknown').lower()}; bdcc handles float32",
            layer=value.name,
            hint="Re-export in float32",
        )
    dims = kind.shape.dim
    if len(dims) != len(AXES):
        raise ModelError(
            f"the input has {len(dims)} dimensions; bdcc handles four: {', '.join(AXES)}",
            layer=value.name,
        )
    if dims[0].dim_value > 1:
        raise ModelError(
            f"the batch is fixed at {dims[0].dim_value}; bdcc compiles for one picture at a time",
            layer=value.name,
            hint="Re-export with a batch of 1 or a dynamic batch",
        )
    for index, (axis, dim) in enumerate(zip(AXES, dims, strict=True)):
        if index and dim.dim_value < 1:
            found = f" '{dim.dim_param}'" if dim.dim_param else ""
            raise ModelError(
                f"the {axis} (dimension {index}) is dynamic{found}; only the batch may be",
                layer=value.name,
                hint=f"Re-export with a fixed {axis}",
            )
    return tuple(int(dim.dim_value) for dim in dims[1:])


def _needed(nodes: Sequence[onnx.NodeProto], output: str) -> tuple[onnx.NodeProto, ...]:
    """The nodes that lead to `output`, in order."""
    names, kept = {output}, []
    for node in reversed(nodes):
        if names.intersection(node.output):
            names.update(node.input)
            kept.append(node)
    return tuple(reversed(kept))


def first_line(error: Exception) -> str:
    """The first line of an error of the onnx package, which may have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
