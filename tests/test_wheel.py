# SPDX-License-Identifier: 0BSD
"""The wheel, installed where there is no checkout: the command, the API, templates and runtime."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; the checkout and this environment's settings are out of its sight."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment = {**kept, "BDCC_CACHE": str(cwd / "cache"), "CFLAGS": "-O1"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that has the wheel, and bdcc's dependencies from this one."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))",
                    cwd=folder).strip())  # fmt: skip
    # addsitedir is not used: it would run this environment's .pth files, the editable bdcc's too.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*install, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return python


def test_the_wheel_has_everything_that_is_emitted(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, suffixes in (("runtime", (".h", ".c")), ("templates", (".j2",))):
        files = [p for p in (ROOT / folder).iterdir() if p.suffix in suffixes]
        assert files
        assert {f"bdcc/_{folder}/{p.name}" for p in files} <= names
    assert {"bdcc/report/schema.json", "bdcc/host/probe.c", "bdcc/host/resident.c"} <= names
    assert {f"bdcc/host/board.{kind}" for kind in ("sh", "mk", "c")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "examples")) for name in names)


def test_it_is_the_wheel_that_runs(python: Path, tmp_path: Path) -> None:
    home = run(python, "-c", "import bdcc; print(bdcc.__file__)", cwd=tmp_path)
    assert python.parents[1] in Path(home.strip()).parents


def test_the_command(python: Path, tmp_path: Path) -> None:
    command = python.parent / "bdcc"
    assert run(command, "--version", cwd=tmp_path).startswith("bdcc, version 0.")
    digits, out = ROOT / "examples" / "digits", tmp_path / "out"
    run(
        command, "compile", f"{digits}.onnx", "--data", f"{digits}_search.npz", "--limit", "40",
        "--preset", "unit", "--bases", "2", "--q", "4", "-o", out, cwd=tmp_path,
    )  # fmt: skip
    assert "0 differing values" in run(command, "verify", out, cwd=tmp_path)
    assert "class 2" in run(command, "run", out, ROOT / "examples" / "digit.png", cwd=tmp_path)


def test_the_documented_names(python: Path, tmp_path: Path) -> None:
    program = "import bdcc; print(*(getattr(bdcc, name).__name__ for name in bdcc.__all__))"
    assert "compile_model" in run(python, "-c", program, cwd=tmp_path).split()
