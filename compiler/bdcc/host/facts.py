# SPDX-License-Identifier: 0BSD
"""What an emitted project says of itself: host/project.json and the oracle beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from bdcc.approx.model import MAX_BASES, MAX_BITS, QuantizedModel, load_oracle
from bdcc.codegen.binary import FAMILIES
from bdcc.errors import DataError, OutputError
from bdcc.ir.onnx_limits import MAX_ELEMENTS
from bdcc.records import read_record

PROJECT_FILE = Path("host", "project.json")
REPORT_FILE = "report.json"
ORACLE_FILE = Path("host", "oracle.npz")
TEXT = {"type": "string"}
BYTES = {"type": "integer", "minimum": 1, "maximum": 2**48}
SHAPE = {
    "type": "array",
    "minItems": 3,
    "maxItems": 3,
    "items": {"type": "integer", "minimum": 1, "maximum": 2**31},
}
SCHEMA = {
    "type": "object",
    "required": ["name", "input", "outputs", "weight_bytes", "arena_bytes", "fingerprint", "steps"],
    "properties": {
        "name": {"type": "string", "pattern": "[A-Za-z_][A-Za-z0-9_]*"},
        "input": SHAPE,
        "outputs": BYTES,
        "weight_bytes": BYTES,
        "arena_bytes": BYTES,
        "fingerprint": {"type": "string", "pattern": "[0-9a-f]{16}"},
        "steps": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["layer", "tensor", "quant", "shape", "op", "family"],
                "properties": {
                    **dict.fromkeys(("name", "kind", "layer", "tensor", "op"), TEXT),
                    "quant": {"type": ["string", "null"]},
                    "family": {"enum": [*FAMILIES, None]},
                    "shape": SHAPE,
                },
            },
        },
    },
}
# Of report.json, what timing by layer reads.
LAYERS = {
    "type": "object",
    "required": ["layers"],
    "properties": {
        "layers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "op", "bases", "q", "macs", "weight_bytes", "kernel"],
                "properties": {
                    "name": TEXT,
                    "op": TEXT,
                    "bases": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_BASES},
                    "q": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_BITS},
                    "macs": BYTES,
                    "weight_bytes": BYTES,
                    "kernel": {"type": ["string", "null"]},
                },
                "anyOf": [
                    {"properties": {"bases": {"type": "integer"}, "q": {"type": "integer"}}},
                    {"properties": {"kernel": {"type": "null"}}},
                ],
            },
        }
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectFacts:
    """name: prefix of the C names; input: (C, H, W); outputs: number of floats; weight_bytes: of
    the blob; fingerprint: in hex; steps: a record per step of the library, in order (`op`, `layer`,
    `tensor`, `shape`: what it leaves, `quant`: the tensor whose range its codes have, `family`: of
    a decomposed layer's kernel).
    """

    name: str
    input: tuple[int, int, int]
    outputs: int
    weight_bytes: int
    arena_bytes: int
    fingerprint: str
    steps: tuple[Mapping[str, Any], ...]


def read_facts(project: Path) -> ProjectFacts:
    """Raises OutputError unless `project` is a folder that bdcc wrote."""
    try:
        record = read_record(project / PROJECT_FILE, SCHEMA)
        steps = record["steps"]
        if (steps[0]["shape"], prod(steps[-1]["shape"])) != (record["input"], record["outputs"]):
            raise ValueError("its steps are of another input, or of other outputs")
        most = min(record["arena_bytes"], MAX_ELEMENTS)  # where all but the last leave what they do
        if any(prod(step["shape"]) > most for step in steps[:-1]):
            raise ValueError("a step leaves more than its arena holds")
    except (OSError, ValueError):
        raise OutputError(
            f"is not a project that bdcc wrote: {PROJECT_FILE} is not there or is damaged",
            layer=str(project),
            hint="Make one with bdcc compile MODEL.onnx -o OUT",
        ) from None
    channels, height, width = record["input"]
    return ProjectFacts(
        name=record["name"],
        input=(channels, height, width),
        outputs=record["outputs"],
        weight_bytes=record["weight_bytes"],
        arena_bytes=record["arena_bytes"],
        fingerprint=record["fingerprint"],
        steps=tuple(steps),
    )


def read_layers(project: Path) -> Mapping[str, Mapping[str, Any]]:
    """The weight layers of report.json by name; none where it does not tell of any."""
    try:
        report = read_record(project / REPORT_FILE, LAYERS)
        return {layer["name"]: layer for layer in report["layers"]}
    except (OSError, ValueError):
        return {}


def read_oracle(project: Path) -> QuantizedModel:
    """The model that the project's library must agree with. Raises DataError if it is damaged, or
    is not of the steps that the project tells of.
    """
    facts = read_facts(project)
    try:
        model = load_oracle(project / ORACLE_FILE)
    except DataError:
        raise DataError(
            f"{ORACLE_FILE} is not there, is damaged, or is of another version of bdcc",
            layer=str(project),
            hint="Compile the project again",
        ) from None
    for step in facts.steps:
        if not _tells_of(model, step):
            raise DataError(
                f"{ORACLE_FILE} and {PROJECT_FILE} do not fit: they tell differently of the step "
                f"'{step['layer']}'",
                layer=str(project),
                hint="Compile the project again",
            )
    return model


def _tells_of(model: QuantizedModel, step: Mapping[str, Any]) -> bool:
    """Whether the model has the tensor that a step leaves, in that shape and with a fixed range."""
    tensor, quant = step["tensor"], step["quant"]
    if tensor not in model.graph.shapes:
        return False
    if prod(model.graph.shapes[tensor]) != prod(step["shape"]):
        return False
    return quant is None or (quant in model.tensors and not model.tensors[quant].dynamic)
