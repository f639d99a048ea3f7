# SPDX-License-Identifier: 0BSD
"""What an emitted project says of itself in host/project.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdcc.errors import OutputError

PROJECT_FILE = Path("host", "project.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectFacts:
    """name: prefix of the C names; input: (C, H, W); outputs: number of floats; steps: a record
    per step of the library, in order (`op`, `layer`, `quant`: the tensor whose range its codes
    have).
    """

    name: str
    input: tuple[int, int, int]
    outputs: int
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
            steps=tuple(record["steps"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"is not a project that bdcc wrote ({error})",
            layer=str(project),
            hint="Make one with bdcc compile MODEL.onnx -o OUT",
        ) from None
