# SPDX-License-Identifier: 0BSD
"""Building with the project's own Makefile: up to date, other compilers, and what goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bdcc.errors import BuildError, OutputError
from bdcc.host import machine, tools
from bdcc.host.build import build, check_compiler, run_make
from bdcc.host.library import Library
from bdcc.host.machine import usable_isas
from processes import is_gone


def test_builds_once(net: Path) -> None:
    library = build(net)
    assert library == net / "build" / "libnet.so"
    built = library.stat().st_mtime_ns
    assert build(net).stat().st_mtime_ns == built


def test_another_compiler(copy: Path, tool: Callable[[str], str]) -> None:
    (copy / "Makefile").touch()  # everything depends on it
    library = build(copy, make_args=["CFLAGS=-O0"], cc=tool("clang"))
    assert b"clang version" in library.read_bytes()


FOREIGN = {  # to other programs they mean other things
    "CROSS": "aarch64-linux-gnu-",
    "BUILD": "elsewhere",
    "THREADS": "1",
    "STATIC": "1",
    "WEIGHTS": "none",
    "PORTABLE": "1",
    "PREFIX": "/nowhere",
    "JPEG": "0",
    "CPU_FLAGS": "-mno-such-flag",
    "EXACT": "-fno-such-flag",
    "HOSTCC": "false",
    "MAKEFLAGS": "n",  # "only say what would be done"
    "MFLAGS": "-n",
    "GNUMAKEFLAGS": "-n",
    "MAKEFILES": "/etc/passwd",
    "MAKEOVERRIDES": "CC=false",
    "MAKELEVEL": "7",
    "VPATH": "/etc",
    "SHELL": "/bin/false",
    "MAKE": "false",
    "CC": "",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_variables_of_others_change_nothing(
    net: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project is up to date; what the Makefile takes notice of would build it anew."""
    monkeypatch.setenv("CFLAGS", "-O1")  # for all of these tests: the first one may build it
    built = build(net).stat().st_mtime_ns
    flags = (net / "build" / "flags").read_bytes()
    monkeypatch.setenv(name, FOREIGN[name])
    assert build(net).stat().st_mtime_ns == built
    assert (net / "build" / "flags").read_bytes() == flags


def test_variables_of_others_change_no_build(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CFLAGS", "-O0")
    shutil.rmtree(copy / "build")
    with Library.open(copy) as library:
        assert library.isas == usable_isas()
    assert b"-O0" in (copy / "build" / "flags").read_bytes()
    assert not (copy / "elsewhere").exists()


def test_another_makefile_in_the_folder_is_not_taken(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-O0")
    (copy / "GNUmakefile").write_text("$(error not mine)\n")
    assert build(copy).is_file()


@pytest.mark.parametrize("name", ["~", "-f", "a b", "$(x)", "#", ":", "%", "'\"", "new\nline"])
def test_make_works_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    (Path(name) / "Makefile").write_text("all:\n\t@touch made\n")
    assert run_make(Path(name), ()).problem is None
    assert (tmp_path / name / "made").exists()


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


def program(folder: Path, name: str, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("sleep 60", "it has not ended after 1 seconds, and was stopped"),
        ("sleep 60 & sleep 60", "it has not ended after 1 seconds, and was stopped"),
        ("yes", "it has not ended after 1 seconds, and was stopped"),
        ("head -c 9000000 /dev/zero | tr '\\0' x; exit 1", "xxx"),
        ("head -c 100 /dev/urandom >&2; echo; echo 'fatal error: tired'; exit 1", "tired"),
        ("kill -SEGV $$", "it was ended by SIGSEGV"),
        ("exit 0", "it has made no program"),
        ("exit 9", "it ended with status 9, saying nothing"),
    ],
)
def test_compilers_that_do_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    monkeypatch.setenv("CC", str(program(tmp_path / "bin", "cc", script)))
    began = time.monotonic()
    with pytest.raises(BuildError, match="does not work") as caught:
        check_compiler(seconds=1)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500
    assert time.monotonic() - began < 10


def test_a_compiler_that_never_returns_to_make(copy: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hanging = program(tmp_path / "bin", "cc", f"echo $$ >'{pid}'; exec sleep 60")
    with pytest.raises(BuildError, match="has not ended after 1 seconds") as caught:
        build(copy, cc=str(hanging), seconds=1)
    assert str(caught.value).startswith(f"{copy}: ")
    assert is_gone(int(pid.read_text()))


def test_a_compiler_with_words_and_spaces(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Callable[[str], str]
) -> None:
    place = program(tmp_path / "a b", "my cc", f'exec {tool("gcc")} "$@"')
    monkeypatch.setenv("CC", f"'{place}' -DNOTHING")
    monkeypatch.setenv("CFLAGS", "-O0")
    check_compiler()
    (copy / "src" / "net.c").touch()
    assert build(copy).is_file()


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo usage: make", "it is not GNU make"),
        ("sleep 60", "it has not ended after 2 seconds"),
        ("exit 1", "it ended with status 1"),
    ],
)
def test_a_make_that_does_not_work_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    folder = program(tmp_path / "bin", "make", script).parent
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(BuildError, match=r"make does not work .*Install GNU make") as caught:
        check_compiler(seconds=2)
    assert problem in str(caught.value)


def test_a_folder_without_programs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noexec TMPDIR does not pass for a CPU that has nothing."""
    refused = tools.Ran(problem="Permission denied", refused=errno.EACCES)
    monkeypatch.setattr(machine, "run_program", lambda program: refused)
    with pytest.raises(BuildError, match="name another folder by TMPDIR"):
        machine.usable_isas.__wrapped__()
    other = tools.Ran(problem="Exec format error", refused=errno.ENOEXEC)
    monkeypatch.setattr(machine, "run_program", lambda program: other)
    assert machine.usable_isas.__wrapped__() == ("generic",)


def test_a_broken_compiler_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check_compiler()
    for broken in ("/bin/false", "no-such-compiler", "'unmatched", "/"):
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
