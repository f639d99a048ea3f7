# SPDX-License-Identifier: 0BSD
"""What an emitted project says of itself: host/project.json and the oracle beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdcc.approx.model import QuantizedModel, load_oracle
from bdcc.errors import DataError, OutputError

PROJECT_FILE = Path("host", "project.json")
REPORT_FILE = "report.json"
ORACLE_FILE = Path("host", "oracle.npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectFacts:
    """name: prefix of the C names; input: (C, H, W); outputs: number of floats; weight_bytes: of
    the blob; steps: a record per step of the library, in order (`op`, `layer`, `quant`: the tensor
    whose range its codes have, `family`: of a decomposed layer's kernel).
    """

    name: str
    input: tuple[int, int, int]
    outputs: int
    weight_bytes: int
    arena_bytes: int
    steps: tuple[Mapping[str, Any], ...]


def read_facts(project: Path) -> ProjectFacts:
    """Raises OutputError unless `project` is a folder that bdcc wrote."""
    try:
        record = json.loads((project / PROJECT_FILE).read_text("utf-8"))
        channels, height, width = record["input"]
        return ProjectFacts(
            name=record["name"],
            input=(channels, height, width),
            outputs=record["outputs"],
            weight_bytes=record["weight_bytes"],
            arena_bytes=record["arena_bytes"],
            steps=tuple(record["steps"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"is not a project that bdcc wrote: {PROJECT_FILE} is not there or is damaged",
            layer=str(project),
            hint="Make one with bdcc compile MODEL.onnx -o OUT",
        ) from None


def read_layers(project: Path) -> Mapping[str, Mapping[str, Any]]:
    """The weight layers of report.json by name; none where it does not tell of any."""
    try:
        report = json.loads((project / REPORT_FILE).read_text("utf-8"))
        return {layer["name"]: layer for layer in report["layers"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_oracle(project: Path) -> QuantizedModel:
    """The model that the project's library must agree with. Raises DataError if it is damaged."""
    try:
        return load_oracle(project / ORACLE_FILE)
    except DataError:
        raise DataError(
            f"{ORACLE_FILE} is not there, is damaged, or is of another version of bdcc",
            layer=str(project),
            hint="Compile the project again",
        ) from None
