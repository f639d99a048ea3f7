# SPDX-License-Identifier: 0BSD
"""`bdcc deploy` as people run it, against a real sshd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bdcc import cli
from bdcc.host.facts import read_facts
from bdcc.host.machine import usable_isas
from sshd import Sshd

PI = "pi@raspberrypi"


def bdcc(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from bdcc.cli import main; main()", *map(str, arguments)]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(bdcc(*arguments), cwd=cwd, capture_output=True, text=True, check=False)


def test_the_examples_of_deploy(board: Sshd, project: Path, tmp_path: Path) -> None:
    board.start()
    shutil.copytree(project, tmp_path / "out")
    epilog = cli.deploy.epilog or ""
    examples = [line.split()[1:] for line in epilog.splitlines() if "bdcc deploy" in line]
    assert len(examples) == 2
    plain, as_json = (run(*example, cwd=tmp_path) for example in examples)
    assert (plain.returncode, plain.stderr) == (0, "")
    facts = read_facts(project)
    table, text = plain.stdout.split("\n\n")
    assert len(table.splitlines()) == 2 + len(facts.steps)
    assert "selftest: every layer equals the oracle" in text
    assert text.splitlines()[-1].startswith("min=")
    assert (as_json.returncode, as_json.stderr) == (0, "")
    result = json.loads(as_json.stdout)
    assert json.loads((tmp_path / "board.json").read_text()) == result
    assert (result["isa"], result["threads"]) == (usable_isas()[-1], 2)
    assert [step["layer"] for step in result["steps"]] == [step["layer"] for step in facts.steps]
    assert 0 < result["min_ms"] <= result["median_ms"]
    assert result["board"]["cpus"] == os.cpu_count()
    assert result["folder"] is None


def test_keeping_the_folder(board: Sshd, project: Path) -> None:
    board.program("vcgencmd", "echo throttled=0x50005")
    board.start()
    done = run("deploy", PI, project, "--keep")
    assert done.returncode == 0
    (folder,) = board.tmp.iterdir()
    assert f"left there: {folder}\n" in done.stdout
    assert "THROTTLED" in done.stdout
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interruption_leaves_nothing_there(
    board: Sshd, project: Path, tool: Callable[[str], str], tmp_path: Path, name: signal.Signals
) -> None:
    marker = tmp_path / "compiling"
    board.program(
        "cc",
        f"""case "$*" in *dumpmachine*) exec {tool("cc")} "$@" ;; esac
echo $$ >>'{marker}'
exec sleep 60""",
    )
    board.start()
    with subprocess.Popen(
        bdcc("deploy", PI, project), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(600):
            if marker.exists():
                break
            time.sleep(0.05)
        assert len(list(board.tmp.iterdir())) == 1
        process.send_signal(name)
        said, error = process.communicate(timeout=30)
    assert said == ""
    if name == signal.SIGKILL:
        assert (process.returncode, error) == (-9, "")
    else:
        assert process.returncode == 130
        assert error.strip() == "bdcc: interrupted; what was finished is kept."
        assert list(board.tmp.iterdir()) == []  # at once: it has waited for that
    assert board.left() == []


def test_failures_have_one_line_and_a_code(board: Sshd, project: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        ((PI, project), 5, f"bdcc: {PI}: cannot be reached (ssh: connect to host "),
        ((PI, tmp_path), 1, "is not a project that bdcc wrote"),
        (("--", "-oProxyCommand=id", project), 1, "'-oProxyCommand=id' is not a host"),
        (("a b", project), 1, "'a b' is not a host"),
        ((PI, project, "--threads", 0), 1, "--threads: 0 is below 1"),
        ((PI, project, "-o", tmp_path), 1, "cannot be written"),
    ):
        done = run("deploy", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
