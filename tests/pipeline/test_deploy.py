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
from typing import Any

import pytest
from trained_network import Trained

from bdcc import cli
from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.costs import Key, Parts, read_cost_table, shipped_cost_table
from bdcc.codegen.targets import find_target, planned_core
from bdcc.host import tune
from bdcc.host.facts import read_facts
from bdcc.host.machine import machine_name, usable_isas
from bdcc.host.remote import match_target, probe_board
from bdcc.pipeline import tables
from bdcc.pipeline.tables import find_cost_table
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
        bdcc("deploy", PI, project),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in its background would hand down that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for _ in range(600):
            if marker.exists():
                break
            time.sleep(0.05)
        assert len(list(board.tmp.iterdir())) == 1
        process.send_signal(name)
        said, error = process.communicate(timeout=120)
    assert said == ""
    if name == signal.SIGKILL:
        assert (process.returncode, error) == (-9, "")
    else:
        assert process.returncode == 130
        assert error.strip() == "bdcc: interrupted; what was finished is kept."
        assert list(board.tmp.iterdir()) == []  # at once: it has waited for that
    assert board.left() == []


@pytest.fixture
def few_kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tuning measures two kernels of each family; the others cost what is shipped. Lists what was
    tuned.
    """
    tuned = []
    real = tables.tune

    def tune_few(isa: str, **options: Any) -> dict[Key, Parts]:
        tuned.append(isa)
        measured = real(isa, **options)
        assert len(measured) == 2 * len(FAMILIES) * 2
        return {**shipped_cost_table(planned_core(isa)).ns, **measured}

    monkeypatch.setattr(tune, "PAIRS", ((1, 1), (2, 3)))
    monkeypatch.setattr(tables, "tune", tune_few)
    return tuned


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_kernels_are_tuned_there(
    board: Sshd,
    project: Path,
    few_kernels: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    board.start()
    isa, cache = usable_isas()[-1], tmp_path / "cache"
    assert call("tune", "--ssh", PI, project, "--cache", cache) == 0
    (file,) = (cache / "cost_tables").iterdir()
    said = capsys.readouterr().out
    assert f"{isa} on {machine_name()}: {file}\n" in said
    assert few_kernels == [isa]
    found = read_cost_table(file)
    shipped = shipped_cost_table(planned_core(isa))
    different = {key[2:] for key, parts in found.ns.items() if parts != shipped.ns[key]}
    assert different == {(1, 1), (2, 3)}
    target = match_target(probe_board(PI))
    if "every layer has" not in said:
        assert f"bdcc compile ... --target {target.name} --cost-table {file}\n" in said
    assert find_cost_table(target, str(file), cache=None).isa == isa
    assert call("tune", "--ssh", PI, project, "--isa", "neon", "--cache", cache) == 1
    assert f"is not an instruction set of {PI}'s CPU; it has generic" in capsys.readouterr().err


def test_compiling_for_a_board(
    board: Sshd,
    trained: Trained,
    few_kernels: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    board.start()
    out, cache = tmp_path / "out", tmp_path / "cache"
    fixed = (*trained.data, "--bases", 2, "--q", 4, "--limit", 20, "-o", out, "--force")
    given = (trained.model, "--target", f"ssh:{PI}", "--cache", cache, *fixed)
    assert call("compile", *given) == 0
    assert f"ms (median, one thread, {PI})" in capsys.readouterr().out
    report, timings = (
        json.loads((out / f"{name}.json").read_text()) for name in ("report", "timings")
    )
    target = match_target(probe_board(PI))
    assert report["target"] == report["options"]["target"] == target.name
    assert report["cost_table"]["source"] == "measured"
    assert report["cost_table"]["machine"] == machine_name()
    assert timings["bench"]["host"] == PI
    assert len(timings["bench"]["steps"]) == len(read_facts(out).steps)
    assert call("compile", *given) == 0  # by the table that is there
    assert few_kernels == [target.planned_for]
    (file,) = (cache / "cost_tables").iterdir()
    assert call("compile", *given[:3], "--cost-table", file, "--cache", "off", *fixed) == 0
    assert json.loads((out / "report.json").read_text())["cost_table"]["source"] == "file"
    capsys.readouterr()
    assert call("compile", *given[:3], "--cache", "off", *fixed) == 1
    error = capsys.readouterr().err
    assert "--cache: off keeps no table of the board's kernels. Give --cost-table." in error
    assert call("sweep", *given, "--D", "1") == 1
    assert "--target: a sweep takes its times on this machine" in capsys.readouterr().err


@pytest.mark.slow
def test_compiling_for_an_emulated_board(
    board: Sshd,
    trained: Trained,
    few_kernels: list[str],
    tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    board.emulate(tool)
    board.start()
    out = tmp_path / "out"
    fixed = (*trained.data, "--bases", 2, "--q", 4, "--limit", 20, "-o", out)
    given = (trained.model, "--target", f"ssh:{PI}", "--cache", tmp_path / "cache", *fixed)
    assert call("compile", *given) == 0
    report, timings = (
        json.loads((out / f"{name}.json").read_text()) for name in ("report", "timings")
    )
    target = find_target(report["target"])
    assert (target.machine, target.planned_for) == ("aarch64", "neon")
    assert (few_kernels, report["cost_table"]["isa"]) == (["neon"], "neon")
    assert timings["bench"]["isa"] == "neon"
    assert timings["bench"]["board"]["machine"] == "aarch64-linux-gnu"


def test_a_target_s_host() -> None:
    assert tables.host_of("host") is None
    assert tables.host_of("ssh:pi@raspberrypi") == "pi@raspberrypi"
    assert tables.host_of("ssh://pi@10.0.0.7:2222") == "ssh://pi@10.0.0.7:2222"


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
