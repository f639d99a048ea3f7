# SPDX-License-Identifier: 0BSD
"""A node held against its operator's definition, once, before anything reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx
from onnx import AttributeProto, helper
from onnx.defs import OpSchema, SchemaError

from bdcc.errors import ModelError

TYPES: Mapping[int, str] = {
    AttributeProto.FLOAT: "a number",
    AttributeProto.INT: "an integer",
    AttributeProto.STRING: "a text",
    AttributeProto.TENSOR: "a tensor",
    AttributeProto.FLOATS: "a list of numbers",
    AttributeProto.INTS: "a list of integers",
    AttributeProto.STRINGS: "a list of texts",
}
AFFINE = ("alpha", "beta", "bias", "epsilon")  # of which no other value than a finite one serves


def label(proto: onnx.NodeProto) -> str:
    """'conv1 (Conv)': how messages name a node."""
    return f"{proto.name or (proto.output[0] if proto.output else '?')} ({operator_type(proto)})"


def operator_type(proto: onnx.NodeProto) -> str:
    return proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"


def read_attributes(proto: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """A node's attributes by name, each of the type that its operator has in that opset; all
    inputs that it must have are there, and no more inputs and outputs than it has.

    The values are those of helper.get_attribute_value: int, float, bytes, TensorProto, or lists.
    Raises ModelError.
    """
    name = label(proto)
    try:
        schema = onnx.defs.get_schema(proto.op_type, opset, "")
    except SchemaError:
        raise ModelError(f"opset {opset} has no such operator", layer=name) from None
    _check_inputs(proto, schema, name)
    values: dict[str, Any] = {}
    for attribute in proto.attribute:
        found = attribute.name
        if found not in schema.attributes:
            raise ModelError(
                f"attribute '{found}' is not one of {proto.op_type} in opset {opset}", layer=name
            )
        if found in values:
            raise ModelError(f"attribute '{found}' is there twice", layer=name)
        if attribute.ref_attr_name:
            raise ModelError(
                f"attribute '{found}' refers to '{attribute.ref_attr_name}' of a function, and is "
                "in none",
                layer=name,
            )
        wanted = int(schema.attributes[found].type.value)  # type: ignore[attr-defined]
        if attribute.type != wanted or wanted not in TYPES:
            raise ModelError(
                f"attribute '{found}' is not {TYPES.get(wanted, 'one that bdcc handles')}",
                layer=name,
            )
        values[found] = helper.get_attribute_value(attribute)
        if found in AFFINE and not math.isfinite(values[found]):
            raise ModelError(f"{found} is {values[found]}; bdcc handles finite numbers", layer=name)
    missing = next((a for a, d in schema.attributes.items() if d.required and a not in values), "")
    if missing:
        raise ModelError(f"its attribute '{missing}' is missing", layer=name)
    return values


def _check_inputs(proto: onnx.NodeProto, schema: OpSchema, name: str) -> None:
    for kind, found, most in (
        ("inputs", len(proto.input), schema.max_input),
        ("outputs", len(proto.output), schema.max_output),
    ):
        if found > most:
            raise ModelError(f"it has {found} {kind}; {proto.op_type} has {most}", layer=name)
    for index, formal in enumerate(schema.inputs):
        required = formal.option == OpSchema.FormalParameterOption.Single
        if required and not (index < len(proto.input) and proto.input[index]):
            raise ModelError(f"its input {index}, {formal.name}, is missing", layer=name)
    if len(proto.input) < schema.min_input:
        raise ModelError(
            f"it has {len(proto.input)} inputs; {proto.op_type} has {schema.min_input} or more",
            layer=name,
        )
