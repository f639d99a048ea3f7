# SPDX-License-Identifier: 0BSD
"""The walls of docs/design.md: rooms import only leftwards; outside libraries have one home."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "compiler" / "bdcc"
ROOMS = (
    "errors",
    "files",
    "sealed",
    "records",
    "arrays",
    "ir",
    "approx",
    "data",
    "codegen",
    "host",
    "report",
    "pipeline",
    "streams",
    "cli",
)
HOMES = {
    "onnx": "ir/onnx_*.py",
    "cffi": "host/library.py",
    "jinja2": "codegen/emit.py",
    "click": "cli.py",
    "rich": "cli.py",
    "onnxruntime": "host/peer.py",
    "openvino": "host/peer.py",
    "nncf": "host/peer.py",
    "ncnn": "host/peer.py",
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imports(source: str, file: str) -> Iterator[str]:
    """Absolute dotted names that a file of the package imports, wherever in it."""
    package = ("bdcc", *Path(file).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else ())))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def breaches(source: str, file: str) -> list[str]:
    """What a file imports and may not."""
    room = Path(file).parts[0].removesuffix(".py")
    found = []
    for name in imports(source, file):
        top, *rest = name.split(".")
        if top in HOMES and not fnmatch(file, HOMES[top]):
            found.append(name)
        if top == "bdcc" and rest and rest[0] in ROOMS and room in ROOMS:
            found += [name] * (ROOMS.index(rest[0]) > ROOMS.index(room))
    return found


@pytest.mark.parametrize("file", FILES)
def test_imports_go_leftwards(file: str) -> None:
    assert breaches((PACKAGE / file).read_text("utf-8"), file) == []


def test_every_file_is_in_a_room() -> None:
    assert {Path(file).parts[0].removesuffix(".py") for file in FILES} == {*ROOMS, "__init__"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ir/graph.py", "from bdcc.approx.model import TensorQuant"),
        ("ir/graph.py", "from bdcc import cli"),
        ("ir/graph.py", "import onnx"),
        ("approx/model.py", "from ..codegen import plan"),
        ("approx/model.py", "def late():\n    import bdcc.host.build"),
        ("host/verify.py", "from cffi import FFI"),
        ("pipeline/project.py", "import rich.console"),
        ("report/text.py", "import click"),
        ("codegen/plan.py", "import jinja2"),
        ("host/bench.py", "def late():\n    import onnxruntime"),
        ("errors.py", "from bdcc.ir import graph"),
    ],
)
def test_a_breach_is_seen(file: str, source: str) -> None:
    assert len(breaches(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ir/onnx_file.py", "import onnx.helper"),
        ("approx/model.py", "from bdcc.ir.graph import Graph"),
        ("approx/model.py", "from .quantize import choose_range"),
        ("cli.py", "import click\nfrom bdcc.pipeline import compile_model"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str) -> None:
    assert breaches(source, file) == []
