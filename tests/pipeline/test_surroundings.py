# SPDX-License-Identifier: 0BSD
"""`bdcc` where its surroundings are odd: streams that are closed, encodings that lack characters,
folders with any name, variables that are meant for others. The work is done, and said in one line.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from trained_network import Trained

from bdcc import cli

BDCC = [sys.executable, "-c", "from bdcc.cli import main; main()"]
NAMES = (
    "~", "~root", "~~x", "-x", "--help", "a b", "$HOME", "$(touch pwned)", "`touch pwned`", "#x",
    "a:b", "%", "a=b", "it's", '"q"', "back\\slash", "new\nline", "tab\tx", "*", "[x]", "{}", ";",
    "&", "|", "é模", "\x1b[31m", "caf\udce9",
)  # fmt: skip


def run(
    *arguments: object, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BDCC, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
    )


def redirected(how: str, *arguments: object, program: str | None = None) -> tuple[int, str, str]:
    """Status, stdout and stderr of bdcc, or of another program in Python, in a shell that redirects
    it so: `2>&-`.
    """
    command = BDCC if program is None else [sys.executable, "-c", program]
    line = f"{shlex.join([*command, *map(str, arguments)])} {how}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


# --- streams --------------------------------------------------------------------------------------

CLOSED = ("2>&-", ">&-", "<&-", "<&- 2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-")


@pytest.mark.parametrize("how", ["2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_closed_stream_takes_no_work_down(how: str, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = (*trained.data, "--bases", 2, "--q", 4, "--limit", 20, "--workers", 2)
    code, said, error = redirected(how, "compile", trained.model, *given, "-o", out, "--json")
    assert (code, error) == (0, "")
    report = json.loads((out / "report.json").read_text())
    assert report["options"]["bases"] == [2]
    assert (said == "") == (" >&-" in f" {how}")
    if said:
        assert json.loads(said) == report
    assert (out / "manifest.txt").is_file()


@pytest.mark.parametrize("how", [*CLOSED, "2>/dev/full", "2> >(exec 0<&-)", "2>&1 >&- | true"])
def test_without_messages_the_status_tells(how: str, tmp_path: Path) -> None:
    if "true" in how:
        how = f"{how}; exit ${{PIPESTATUS[0]}}"
    for arguments, status in (
        (("verify", tmp_path), 1),
        (("polish",), 2),
        (("--version",), 0),
    ):
        code, _, error = redirected(how, *arguments)
        assert code == status, (how, arguments, error)
        assert "Traceback" not in error


@pytest.mark.parametrize("how", ["2>&-", "<&- >&- 2>&-", "2>/dev/full", "2> >(exec 0<&-; sleep 1)"])
def test_progress_may_have_no_reader(how: str, tmp_path: Path) -> None:
    """Stages that show up draw on stderr: here all do, at once."""
    code = (
        "from bdcc import cli\n"
        "cli._Watch.PATIENCE_S = cli._Watch.LINE_EVERY_S = 0.0\n"
        "import click\n"
        "@cli.cli.command()\n"
        "def watched():\n"
        "    with cli._Watch() as watch:\n"
        "        for i in range(200):\n"
        "            watch('work', i, 200)\n"
        "    cli._tell('x' * 100_000)\n"
        f"    open({str(tmp_path / 'done')!r}, 'w').close()\n"
        "cli.main(['watched'])\n"
    )
    status, said, error = redirected(how, program=code)
    assert (status, said) == (0, "")
    assert "Traceback" not in error
    assert (tmp_path / "done").is_file()


def test_no_file_of_ours_becomes_a_stream(tmp_path: Path) -> None:
    """What is opened first would take a number that is free; and programs that are started inherit
    what is there instead."""
    code = (
        "import os, subprocess\n"
        "from bdcc import cli\n"
        "@cli.cli.command()\n"
        "def first():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "    assert file.fileno() > 2, file.fileno()\n"
        "    for fd in range(3): assert os.readlink(f'/proc/self/fd/{fd}') == os.devnull\n"
        "    subprocess.run(['sh', '-c', 'echo out; echo err >&2'], check=True, close_fds=False)\n"
        "    file.write('whole')\n"
        "cli.main(['first'])\n"
    )
    assert redirected("<&- >&- 2>&-", program=code) == (0, "", "")
    assert (tmp_path / "file").read_text() == "whole"


# --- encodings and terminals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "xx_XX.nothing", "LANG": "?"},
        {"COLUMNS": "0"},
        {"COLUMNS": "-7", "LINES": "x"},
        {"COLUMNS": "many"},
        {"NO_COLOR": "1", "TERM": "dumb"},
        {"TERM": ""},
    ],
    ids=lambda environment: ",".join(f"{k}={v}" for k, v in environment.items()),
)
def test_any_locale_and_terminal(
    environment: dict[str, str], project: Path, trained: Trained, tmp_path: Path
) -> None:
    picture = tmp_path / "模→é.png"
    shutil.copy(trained.picture, picture)
    done = run("run", project, picture, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("run", project, tmp_path / "→ nowhere.png", **environment)
    assert done.returncode == 1
    assert done.stderr.startswith("bdcc: ")
    assert done.stderr.count("\n") == 1


def test_without_a_home_or_a_temporary_folder(project: Path, trained: Trained) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    for more in ({"TMPDIR": ""}, {"TMPDIR": "/dev/null"}):
        done = subprocess.run(
            [*BDCC, "run", project, trained.picture],
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


# --- folders --------------------------------------------------------------------------------------


def renamed(project: Path, place: Path) -> None:
    """A copy of which only the library has to be linked anew."""
    shutil.copytree(project, place, symlinks=True)
    for library in (place / "build").glob("lib*"):
        library.unlink()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_project_s_folder_has_any_name(
    name: str,
    project: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    renamed(project, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "--", name, str(trained.picture)])
    said, error = capsys.readouterr()
    assert (left.value.code, error) == (0, "")
    assert said.startswith("rank ")
    assert [one.name for one in tmp_path.iterdir()] == [name]
    (tmp_path / name / "Makefile").write_text("$(error planted)\n")
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "--", name, str(trained.picture)])
    said, error = capsys.readouterr()
    assert (left.value.code, said) == (5, "")
    assert "planted" in error
    assert error.count("\n") == 1
    assert error[:-1].isprintable()


@pytest.mark.parametrize("name", ["-x", "~ $(touch pwned) #:%\"' \n"], ids=ascii)
def test_every_command_takes_such_a_folder(
    name: str, project: Path, trained: Trained, tmp_path: Path
) -> None:
    given = (*trained.data, "--bases", 2, "--q", 4, "--limit", 20)
    done = run("compile", trained.model, *given, f"--output={name}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for arguments in (("verify",), ("bench",)):
        done = run(*arguments, "--", name, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert [one.name for one in tmp_path.iterdir()] == [name]


# --- the environment ------------------------------------------------------------------------------


def test_a_cross_compiler_s_prefix_is_not_for_this_machine(
    trained: Trained, tmp_path: Path
) -> None:
    """Whoever cross-compiles may have it exported."""
    others = {"CROSS": "no-such-machine-", "GNUMAKEFLAGS": "-n", "THREADS": "1", "BUILD": "x"}
    given = (*trained.data, "--bases", 2, "--q", 4, "--limit", 20, "-o", tmp_path / "out")
    for arguments in (("compile", trained.model, *given), ("verify", tmp_path / "out")):
        done = run(*arguments, **others)
        assert done.returncode == 0, done.stderr
    assert "0 differing values" in done.stdout


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ({"cc": "exit 1"}, "the C compiler 'cc' does not work"),
        ({"cc": "head -c 30000000 /dev/zero; exit 1"}, "the C compiler 'cc' does not work"),
        ({"make": "exit 1"}, "make does not work"),
        ({"make": None}, "make does not work"),
    ],
)
def test_tools_that_fail_are_found_before_the_work(
    tools: dict[str, str | None],
    message: str,
    trained: Trained,
    tmp_path: Path,
    tool: Callable[[str], str],
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    needed: Sequence[str] = ("cc", "make", "sh", "bash", "head", "as", "ld")
    for name in needed:
        if name not in tools:
            (folder / name).symlink_to(tool(name))
        elif (script := tools[name]) is not None:
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
    out = tmp_path / "out"
    done = run("compile", trained.model, *trained.data, "-o", out, PATH=str(folder))
    assert done.returncode == 5
    assert done.stderr.startswith(f"bdcc: {message}")
    assert done.stderr.count("\n") == 1
    assert not out.exists()
