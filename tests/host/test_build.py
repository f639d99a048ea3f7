# SPDX-License-Identifier: 0BSD
"""Building with the project's own Makefile: up to date, other compilers, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bdcc.errors import BuildError, OutputError
from bdcc.host.build import build, check_compiler


def test_builds_once(net: Path) -> None:
    library = build(net)
    assert library == net / "build" / "libnet.so"
    built = library.stat().st_mtime_ns
    assert build(net).stat().st_mtime_ns == built


def test_another_compiler(copy: Path, tool: Callable[[str], str]) -> None:
    (copy / "Makefile").touch()  # everything depends on it
    library = build(copy, make_args=["CFLAGS=-O0"], cc=tool("clang"))
    assert b"clang version" in library.read_bytes()


def test_the_options_of_a_make_above_are_not_handed_down(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKEFLAGS", "n")  # "only say what would be done"
    (copy / "build" / "libnet.so").unlink()
    assert build(copy).is_file()


def test_the_first_error_is_told(copy: Path) -> None:
    source = copy / "src" / "net.c"
    source.write_text("#error this is planted\n" + source.read_text("utf-8"), "utf-8")
    with pytest.raises(BuildError, match="this is planted") as caught:
        build(copy)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert f"make -C {copy}" in str(caught.value)


def test_a_compiler_that_is_not_there(copy: Path) -> None:
    (copy / "src" / "net.c").touch()
    with pytest.raises(BuildError, match="no-such-compiler"):
        build(copy, cc="no-such-compiler")


def test_no_make(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BuildError, match="Install make and a C compiler"):
        build(net)


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": "x", "input": [1, 2]}'])
def test_no_project(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "host").mkdir()
    if content is not None:
        (tmp_path / "host" / "project.json").write_text(content, "utf-8")
    with pytest.raises(OutputError, match="not a project that bdcc wrote"):
        build(tmp_path)


def test_a_broken_compiler_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler()
    for broken in ("/bin/false", "no-such-compiler", "'unmatched"):
        monkeypatch.setenv("CC", broken)
        with pytest.raises(BuildError, match=f"'{broken}' does not work") as caught:
            check_compiler()
        assert caught.value.exit_code == 5


def test_nobody_is_sent_to_a_folder_that_goes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(BuildError, match="the C compiler '/bin/false' does not build") as caught:
        build(copy, passing=True)
    assert "environment variable CC" in str(caught.value)
    assert str(copy) not in str(caught.value)
