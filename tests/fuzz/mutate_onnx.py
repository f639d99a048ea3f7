# SPDX-License-Identifier: 0BSD
"""Damaged ONNX models: fields of any message, or bytes, changed at random, by a seed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

import zoo

T = TypeVar("T")

EDGES = (0, 1, -1, 2, 3, 7, 8, 255, 65535, 65536, 65537, 2**24, 2**31 - 1, 2**31, -(2**31))
INTEGERS = (*EDGES, 10**9, 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.75, 1e-45, 3e38, np.inf, -np.inf, np.nan)
TEXTS = (
    *("", "x", "y", "a\nb", "\x1b[2J", "$$", "é" * 300, "../../etc/passwd", "/dev/zero"),
    *("SAME_UPPER", "SAME_LOWER", "VALID", "axis", "axes", "value", "to", "perm", "ai.onnx", "d"),
    *("w.bin", "If", "Loop", "Scan", "RegexFullMatch", "StringConcat", "SequenceEmpty", "Einsum"),
    *("Conv", "Gemm", "MatMul", "MaxPool", "AveragePool", "LRN", "Softmax", "Concat", "Flatten"),
    *("Reshape", "Squeeze", "Unsqueeze", "Add", "Mul", "Cast", "Shape", "Identity", "Dropout"),
    *("Constant", "ConstantOfShape", "Expand", "Gather", "Slice", "Transpose", "Tile", "Range"),
)
INT_TYPES = (
    *(FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64),
    *(FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_UINT32),
)
TELLING = ("i", "ints", "f", "dims", "ref_attr_name", "input", "op_type")
EXTERNAL = "w.bin"  # beside every model: the data of the second base


def bases() -> list[onnx.ModelProto]:
    """Small models with every operator, functions, branches, folded constants, external data."""
    return [
        everything(),
        with_external_data(),
        with_functions(),
        branches(),
        zoo.batchnorm_net(),
        folded_shapes(),
        zoo.random_branches(seed=1),
    ]


def everything() -> onnx.ModelProto:
    b = zoo.Builder(seed=1)
    w, bias = b.weights("w1", 4, 3, 3, 3), b.weights("b1", 4)
    pads = {"pads": [1, 1, 1, 1], "strides": [1, 1], "kernel_shape": [3, 3]}
    b.node("Conv", ["x", w, bias], "c1", name="conv1", group=1, dilations=[1, 1], **pads)
    norm = [b.constant(n, np.full(4, 0.5, np.float32)) for n in ("gamma", "beta", "mean", "var")]
    b.node("BatchNormalization", ["c1", *norm], "n1", name="norm1", epsilon=1e-3)
    b.node("Relu", ["n1"], "r1", name="relu1")
    b.node("LRN", ["r1"], "l1", name="lrn1", size=3, alpha=1e-4, beta=0.75, bias=1.0)
    b.node("MaxPool", ["l1"], "p1", name="pool1", ceil_mode=1, **pads)
    b.node("Conv", ["p1", b.weights("w2", 4, 2, 2, 2)], "c2", group=2, auto_pad=b"SAME_UPPER")
    b.node("AveragePool", ["c2"], "p2", kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1)
    b.node("Flatten", ["p2"], "f", axis=1)
    fc = b.weights("w3", 5, 36)
    b.node("Gemm", ["f", fc, b.weights("b3", 5)], "g", name="fc", transB=1, alpha=1.5, beta=0.5)
    b.node("Dropout", ["g"], "d")
    b.node("Softmax", ["d"], "y", axis=-1)
    return b.model(input="x", shape=("N", 3, 6, 6), output="y")


def with_external_data() -> onnx.ModelProto:
    model, offset = everything(), 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        entries = {"location": EXTERNAL, "offset": offset, "length": size}
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.extend(
            onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in entries.items()
        )
        offset += size
    return model


def external_data() -> bytes:
    """What `with_external_data` has in its file."""
    return b"".join(tensor.raw_data for tensor in everything().graph.initializer)


def with_functions() -> onnx.ModelProto:
    """Functions that call functions, with attributes of their own and constants in their bodies."""
    b, opsets = zoo.Builder(seed=2), [helper.make_opsetid("", 13), helper.make_opsetid("d", 1)]
    value = numpy_helper.from_array(np.full((4, 1, 1), 0.5, np.float32))
    inner = [
        helper.make_node("Constant", [], ["k"], value=value),
        helper.make_node("Mul", ["a", "k"], ["b"]),
    ]
    pool = helper.make_node("MaxPool", ["m"], ["b"])
    for name, kind in (("kernel_shape", onnx.AttributeProto.INTS),):
        pool.attribute.add(name=name, type=kind, ref_attr_name="size")
    outer = [helper.make_node("half", ["a"], ["m"], domain="d"), pool]
    b.node("Conv", ["x", b.weights("w", 4, 3, 1, 1)], "c", name="conv")
    b.node("block", ["c"], "p", domain="d", size=[2, 2])
    b.node("Relu", ["p"], "y", name="relu")
    return b.model(
        input="x",
        shape=(1, 3, 6, 6),
        output="y",
        opset=13,
        opsets=opsets[1:],
        functions=[
            helper.make_function("d", "half", ["a"], ["b"], inner, opsets),
            helper.make_function("d", "block", ["a"], ["b"], outer, opsets, ["size"]),
        ],
    )


def branches() -> onnx.ModelProto:
    b = zoo.Builder(seed=3)
    b.node("Conv", ["x", b.weights("w1", 2, 3, 1, 1)], "a", name="one")
    b.node("Conv", ["x", b.weights("w2", 3, 3, 3, 3)], "b", name="three", pads=[1, 1, 1, 1])
    b.node("Concat", ["a", "b"], "j", name="join", axis=1)
    b.node("Relu", ["j"], "r")
    b.node("Concat", ["r", "j", "x"], "k", axis=1)
    b.node("ReduceMean", ["k"], "m", axes=[2, 3], keepdims=1)
    b.node("Squeeze", ["m", b.constant("axes", np.array([2, 3]))], "y")
    return b.model(input="x", shape=(1, 3, 5, 5), output="y")


def folded_shapes() -> onnx.ModelProto:
    """Weights made of constants, and a Reshape to a computed shape."""
    b = zoo.Builder(seed=4)
    one = numpy_helper.from_array(np.array([0.25], np.float32))
    b.node("ConstantOfShape", [b.constant("s", np.array([4, 3, 2, 2]))], "w0", value=one)
    b.node("Add", ["w0", b.weights("v", 2, 2)], "w1")
    b.node("Conv", ["x", "w1"], "c", name="conv")
    b.node("Shape", ["c"], "shape")
    index = b.constant("i", np.array([0]))
    b.node("Gather", ["shape", index], "batch", axis=0)
    b.node("Concat", ["batch", b.constant("rest", np.array([-1]))], "target", axis=0)
    b.node("Reshape", ["c", "target"], "f")
    ends = [b.constant(f"e{n}", np.array(v)) for n, v in enumerate(([0], [100], [0]))]
    b.node("Slice", [b.weights("wide", 120, 3), *ends], "cut")
    b.node("MatMul", ["f", "cut"], "y")
    return b.model(input="x", shape=(1, 3, 6, 6), output="y")


def mutant(seed: int) -> bytes:
    """The file of one damaged model."""
    rng = np.random.default_rng(seed)
    models = bases()
    model = copy.deepcopy(models[rng.integers(len(models))])
    if seed % 6:
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            change_field(model, rng)
        return bytes(model.SerializeToString())
    data = bytearray(model.SerializeToString())
    for _ in range(int(rng.integers(1, 3))):
        change_bytes(data, rng)
    return bytes(data)


def change_bytes(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data) + 1))
    size = int(rng.integers(1, 4))
    match rng.integers(4):
        case 0:
            data[at : at + size] = rng.bytes(size)
        case 1:
            data[at:at] = rng.bytes(size)
        case 2:
            del data[at : at + size]
        case _:
            start = int(rng.integers(len(data) + 1))
            data[at:at] = data[start : start + 40]


def messages(message: Message) -> Iterator[Message]:
    """The message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for one in value if field.is_repeated else (value,):
                yield from messages(one)


def change_field(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """One field of one message, each kind of message as likely as another, but for some."""
    kinds: dict[str, list[Message]] = {}
    for message in messages(model):
        kinds.setdefault(message.DESCRIPTOR.name, []).append(message)
    names = [*sorted(kinds), *("NodeProto", "AttributeProto", "TensorProto") * 6]
    message = pick(kinds[pick([name for name in names if name in kinds], rng)], rng)
    present = [field for field, _ in message.ListFields()]
    fields = present if present and rng.integers(4) else list(message.DESCRIPTOR.fields)
    fields += [field for field in message.DESCRIPTOR.fields if field.name in TELLING] * 2
    field = pick(fields, rng)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        others = [m for m in messages(model) if field.message_type == m.DESCRIPTOR]
        other = copy.deepcopy(pick(others, rng)) if others else None
        change_message(message, field, other, rng)
    elif field.is_repeated:
        change_list(getattr(message, field.name), field, rng, model)
    elif rng.integers(6) == 0:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, value_for(field, getattr(message, field.name), rng, model))


def change_message(
    message: Message, field: FieldDescriptor, other: Message | None, rng: np.random.Generator
) -> None:
    """Left out, repeated, put elsewhere, or replaced by one of its kind from anywhere."""
    if not field.is_repeated:
        message.ClearField(field.name)
        if other is not None and rng.integers(2):
            getattr(message, field.name).CopyFrom(other)
        return
    items = getattr(message, field.name)
    kept = [copy.deepcopy(item) for item in items]
    at = int(rng.integers(len(kept) + 1))
    match rng.integers(4):
        case 0:
            kept[at : at + 1] = []
        case 1:
            kept[at:at] = [copy.deepcopy(one) for one in kept[at : at + 1]]
        case 2:
            kept = [kept[i] for i in rng.permutation(len(kept))]
        case _:
            kept[at:at] = [other] if other is not None else []
    del items[:]
    items.extend(kept)


def change_list(
    items: list[object], field: FieldDescriptor, rng: np.random.Generator, model: onnx.ModelProto
) -> None:
    kept = list(items)
    at = int(rng.integers(len(kept) + 1))
    match rng.integers(5):
        case 0:
            del kept[at : at + 1]
        case 1:
            kept = kept[:at]
        case 2:
            kept[at:at] = kept * int(rng.integers(1, 4))
        case _:
            old = kept[at] if at < len(kept) else None
            kept[at : at + 1] = [value_for(field, old, rng, model)]
    del items[:]
    items.extend(kept)


def value_for(
    field: FieldDescriptor, old: object, rng: np.random.Generator, model: onnx.ModelProto
) -> object:
    """Another value of the field's type: at an edge, near the old one, or one of the model's."""
    if field.type == FieldDescriptor.TYPE_STRING:
        found = [m.name for m in messages(model) if hasattr(m, "name")]
        return str(pick(found if found and rng.integers(2) else TEXTS, rng))
    if field.type == FieldDescriptor.TYPE_BYTES:
        data = bytearray(old if isinstance(old, bytes) else b"")
        change_bytes(data, rng)
        return bytes(data)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return int(pick([value.number for value in field.enum_type.values], rng))
    if field.type in INT_TYPES:
        near = int(old) + int(rng.integers(-2, 3)) if isinstance(old, int) else 1
        value = near if rng.integers(3) == 0 else int(pick(INTEGERS, rng))
        if field.type == FieldDescriptor.TYPE_UINT64:
            return value % 2**64
        if field.type == FieldDescriptor.TYPE_INT32:
            return (value + 2**31) % 2**32 - 2**31
        return min(max(value, -(2**63)), 2**63 - 1)
    return float(np.float32(pick(FLOATS, rng)))


def pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]
