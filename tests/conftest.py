# SPDX-License-Identifier: 0BSD
"""What tests share: the real models and pictures, and the tools that a test may not do without."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from required import miss
from sshd import Sshd

ROOT = Path(__file__).resolve().parents[1]

# `make test` would make every make of a test its part: one that says which folder it is in, and is
# given its options. Tests expect what a person sees who types the command.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: with two processes nothing is left to wait for at the end."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and pictures beside the checkout."""
    folder = ROOT / "../shared"
    if not (folder / "models").is_dir():
        miss("there is no ../shared with the real models and pictures")
    return folder


@pytest.fixture(scope="session")
def examples() -> Path:
    """The small trained network that is shipped, and its pictures."""
    return ROOT / "examples"


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """tool("clang"): the path of a program, or a skip (a failure under BDCC_REQUIRE_REAL=1)."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            miss(f"{name} is not installed")
        return str(path)

    return find


@pytest.fixture
def board(
    tmp_path: Path, tool: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sshd]:
    """To be started; the `ssh` that is found goes there, and it must end without anything left."""
    board = Sshd(tmp_path / "board", tool)
    monkeypatch.setenv("PATH", f"{board.near}:{os.environ['PATH']}")
    yield board
    left = board.left()
    board.stop()
    assert left == []


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the user's cache."""
    os.environ["BDCC_CACHE"] = str(tmp_path_factory.mktemp("cache"))
