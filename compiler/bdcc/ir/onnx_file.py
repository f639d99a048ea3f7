# SPDX-License-Identifier: 0BSD
"""From the bytes of an ONNX file to a flat list of operators, constants, one input, one output.

What concerns the file and not the operators is settled here: damage, opset, external data, local
functions, the batch, the number of inputs and outputs. Only what the output needs is looked at.
"""

from __future__ import annotations

import errno
import hashlib
import math
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import checker, helper, inliner, numpy_helper

from bdcc.errors import ModelError
from bdcc.files import read_file, reason
from bdcc.ir.graph import Shape
from bdcc.ir.onnx_limits import MAX_NESTING, MAX_NODES, MAX_RANK, RAISE, Budget

Constant = npt.NDArray[Any]

OLDEST_OPSET = 7
EXPORT = "Export the model to ONNX again, or fetch it again"
AXES = ("batch", "channels", "height", "width")
ELEMENT_TYPES = {
    onnx.TensorProto.DataType.Value(name): name.lower()
    for name in (
        *("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL"),
        *("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxFile:
    """nodes: as stored, functions inlined, those the output needs; constants: the initializers
    that they read; input_shape: (C, H, W), the batch is 1."""

    name: str
    sha256: str
    opset: int
    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Constant]
    input: str
    input_shape: Shape
    output: str


def read_onnx(path: Path, budget: Budget) -> OnnxFile:
    """Read a model and check all but its operators; raises ModelError naming file or tensor."""
    data = _read(path, budget)
    digest = hashlib.sha256(data)
    model = _parse(data, path)
    del data
    opset = _opset(model, path)
    if model.graph.sparse_initializer:
        raise ModelError(
            "sparse initializers are not supported",
            layer=path.name,
            hint="Store the weights as dense tensors",
        )
    stored = [tensor.name for tensor in model.graph.initializer]
    twice = _first_repeated(stored)
    if twice is not None:
        raise ModelError("is stored twice", layer=twice, hint=EXPORT)
    names = set(stored)
    inputs = [value for value in model.graph.input if value.name not in names]
    outputs = [value.name for value in model.graph.output]
    for kind, found in (("input", [value.name for value in inputs]), ("output", outputs)):
        if len(found) != 1:
            listed = ", ".join(f"'{name}'" for name in found[:8]) or "none"
            raise ModelError(
                f"the model has {len(found)} {kind}s ({listed}); bdcc handles exactly one",
                layer=path.name,
                hint=f"Re-export with one {kind}",
            )
    _check_names([*stored, inputs[0].name, *outputs], path)
    shape = _input_shape(inputs[0])
    budget.picture(shape, layer=inputs[0].name)
    nodes = _needed(model.graph.node, outputs[0])
    needed = {name for node in nodes for name in node.input}
    constants = {}
    for tensor in model.graph.initializer:
        if tensor.name in needed or tensor.name == outputs[0]:
            _fetch_external([tensor], path, digest, budget)
            constants[tensor.name] = read_tensor(tensor, budget, layer=tensor.name)
    # The arrays own the weights now; what follows, inlining included, works on a light model.
    del model.graph.initializer[:]
    if model.functions:
        nodes = _needed(_inline(model, nodes, stored, budget, path), outputs[0])
    if len(nodes) > MAX_NODES:
        raise ModelError(f"{len(nodes)} nodes; bdcc handles {MAX_NODES}", layer=path.name)
    for node in nodes:
        given = [a.name for a in node.attribute]
        texts = [node.name, node.op_type, node.domain, *node.input, *node.output, *given]
        _check_names(texts, path)
    tensors = (a.t for n in nodes for a in n.attribute if a.HasField("t"))
    _fetch_external(tensors, path, digest, budget)
    return OnnxFile(
        name=path.stem,
        sha256=digest.hexdigest(),
        opset=opset,
        nodes=nodes,
        constants=constants,
        input=inputs[0].name,
        input_shape=shape,
        output=outputs[0],
    )


def read_tensor(tensor: onnx.TensorProto, budget: Budget, *, layer: str) -> Constant:
    """Its values, read-only; raises ModelError, naming `layer`, before it allocates what is too
    much."""
    shape = tuple(tensor.dims)
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ModelError(
            f"its shape {shape[: MAX_RANK + 1]} is damaged; bdcc handles up to {MAX_RANK} "
            "dimensions, none negative",
            layer=layer,
        )
    if tensor.data_type not in ELEMENT_TYPES:
        raise ModelError(
            f"its type is {_type_name(tensor.data_type)}; bdcc handles "
            f"{', '.join(ELEMENT_TYPES.values())}",
            layer=layer,
            hint="Convert the model to float32",
        )
    size = math.prod(shape) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    budget.store(size, layer=layer)
    try:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != size:
            raise ValueError("of another size")
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(
            f"its data is damaged or does not fill its shape {shape}", layer=layer
        ) from error
    array.setflags(write=False)
    return array


def _read(path: Path, budget: Budget) -> bytes:
    try:
        data = read_file(path, most=budget.max_memory)
    except OSError as error:
        hint = RAISE if error.errno == errno.EFBIG else None
        raise ModelError(f"cannot be read: {reason(error)}", layer=str(path), hint=hint) from error
    if not data:
        raise ModelError("the file is empty", layer=str(path))
    return data


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
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
    return model


def _fetch_external(
    tensors: Iterable[onnx.TensorProto], path: Path, digest: hashlib._Hash, budget: Budget
) -> None:
    """Data that lies beside the model goes into its tensors and, in order, into the digest."""
    for tensor in tensors:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        try:
            data = _external(tensor, entries, path, budget)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
            raise ModelError(
                f"the data of tensor '{tensor.name}' cannot be read from "
                f"'{entries.get('location', '?')}' ({reason(error)})",
                layer=str(path),
                hint="Keep the file of external data beside the model",
            ) from error
        digest.update(data)
        tensor.raw_data = data
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _external(
    tensor: onnx.TensorProto, entries: Mapping[str, str], path: Path, budget: Budget
) -> bytes:
    """As many bytes as the tensor has. Raises OSError, and ValueError where the file is another
    one's or does not hold them.
    """
    if tensor.data_type not in ELEMENT_TYPES or min(tensor.dims, default=0) < 0:
        return b""  # which read_tensor refuses
    size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    _check_names([tensor.name, *entries.values()], path)
    file = (path.parent / entries.get("location", "")).resolve()
    if not file.is_relative_to(path.parent.resolve()):
        raise ValueError("it is outside the model's folder")
    found = file.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise ValueError("it is no regular file, or has several hard links")
    offset = int(entries.get("offset") or 0)
    length = int(entries.get("length") or found.st_size - offset)
    if offset < 0 or length != size or offset + length > found.st_size:
        raise ValueError(
            f"the tensor has {size} bytes, told are {length} at {offset} of {found.st_size}"
        )
    budget.fetch(size, layer=tensor.name or file.name)
    with file.open("rb") as source:
        source.seek(offset)
        return source.read(size)


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


def _inline(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    constants: Iterable[str],
    budget: Budget,
    path: Path,
) -> tuple[onnx.NodeProto, ...]:
    """Bodies for calls of local functions; constants stand as inputs, so no new name is theirs."""
    _check_functions(model.functions, nodes, budget, path)
    listed = {value.name for value in model.graph.input}
    graph = onnx.GraphProto(name="graph", node=nodes, output=model.graph.output)
    graph.input.extend(model.graph.input)
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in constants if name not in listed)
    light = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        graph=graph,
    )
    try:
        return tuple(inliner.inline_local_functions(light).graph.node)
    except (RuntimeError, ValueError, DecodeError, checker.ValidationError) as error:
        raise ModelError(
            "its local functions cannot be inlined: " + first_line(error), layer=path.name
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extent:
    """What calls come to, their callees inlined: nodes; bytes of these as their bodies have them;
    names and attributes in bodies, for which the inliner may write those of a call.
    """

    nodes: int = 0
    bytes: int = 0
    names: int = 0
    attributes: int = 0
    nesting: int = 0


def _check_functions(
    functions: Iterable[onnx.FunctionProto],
    nodes: Iterable[onnx.NodeProto],
    budget: Budget,
    path: Path,
) -> None:
    """Refuses what would not end, or become too much, if it were inlined: by counting alone."""
    bodies = {_key(f.domain, f.name, f.overload): f for f in functions}
    extents: dict[tuple[str, str, str], _Extent] = {}
    called: list[onnx.NodeProto] = []

    def measure(calls: Iterable[onnx.NodeProto], depth: int) -> _Extent:
        if depth > MAX_NESTING:
            raise ModelError(
                f"its local functions call themselves, or are nested deeper than {MAX_NESTING}",
                layer=path.name,
            )
        found = [_Extent()]
        for node in _with_subgraphs(calls):
            key = _call(node)
            found.append(_extent(node) if depth else _Extent(nodes=1))
            if key in bodies:
                called.append(node)
                if key not in extents:
                    extents[key] = measure(bodies[key].node, depth + 1)
                found.append(extents[key])
        return _Extent(
            nodes=sum(one.nodes for one in found),
            bytes=sum(one.bytes for one in found),
            names=sum(one.names for one in found),
            attributes=sum(one.attributes for one in found),
            nesting=1 + max(one.nesting for one in found),
        )

    whole = measure(nodes, 0)
    if whole.nodes > MAX_NODES or whole.nesting > 1 + MAX_NESTING:
        raise ModelError(
            f"{whole.nodes} nodes once its local functions are inlined, {whole.nesting - 1} deep; "
            f"bdcc handles {MAX_NODES}, {MAX_NESTING} deep",
            layer=path.name,
        )
    names = [n for c in called for n in (c.name, c.op_type, *c.input, *c.output)]
    _check_names(names, path)
    given = (a for c in called for a in (*c.attribute, *bodies[_call(c)].attribute_proto))
    budget.fold(
        8 * whole.bytes  # the inliner copies and renames
        + whole.names * max((len(name.encode()) for name in names), default=0)
        + whole.attributes * max((one.ByteSize() for one in given), default=0),
        layer=path.name,
    )


def _extent(node: onnx.NodeProto) -> _Extent:
    return _Extent(
        nodes=1,
        bytes=node.ByteSize(),
        names=1 + len(node.input) + len(node.output),
        attributes=sum(bool(one.ref_attr_name) for one in node.attribute),
    )


def _call(node: onnx.NodeProto) -> tuple[str, str, str]:
    return _key(node.domain, node.op_type, node.overload)


def _key(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _with_subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """All nodes, those in attributes included; protobuf lets them nest some tens deep."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _with_subgraphs(graph.node)


def _input_shape(value: onnx.ValueInfoProto) -> Shape:
    kind = value.type.tensor_type
    if kind.elem_type != onnx.TensorProto.FLOAT:
        raise ModelError(
            f"the input is {_type_name(kind.elem_type)}; bdcc handles float32",
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


def _check_names(names: Iterable[object], path: Path) -> None:
    """Names that are no UTF-8 come from protobuf as bytes, whatever their type says."""
    if not all(isinstance(name, str) for name in names):
        raise ModelError("holds a damaged name", layer=str(path), hint=EXPORT)


def _type_name(number: int) -> str:
    names = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return str(names.get(number, "unknown")).lower()


def _needed(nodes: Sequence[onnx.NodeProto], output: str) -> tuple[onnx.NodeProto, ...]:
    """The nodes that lead to `output`, in order."""
    names, kept = {output}, []
    for node in reversed(nodes):
        if names.intersection(node.output):
            names.update(filter(None, node.input))  # "": an input left out
            kept.append(node)
    return tuple(reversed(kept))


def _first_repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def first_line(error: Exception) -> str:
    """The first line of an error of the onnx package, which may have many."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
