# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import numpy as np
import pytest
from PIL import Image
from trained_network import CLASSES, PREPROCESS, Trained

from bdcc import cli
from bdcc.approx.model import load_oracle
from bdcc.approx.simulate import run_exact, run_float
from bdcc.codegen.costs import Key, Parts, shipped_cost_table
from bdcc.codegen.targets import TARGETS, find_target, target_of
from bdcc.errors import BuildError, MismatchError
from bdcc.host.machine import usable_isas
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline import CompileOptions, tables
from bdcc.pipeline.tables import find_cost_table
from bdcc.report.report import load_schema

BDCC = """bdcc() { "$PYTHON" -c 'from bdcc.cli import main; main()' "$@"; }\n"""
Run = Callable[..., tuple[int, str, str]]
SHOWN = {name: one for name, one in cli.cli.commands.items() if not one.hidden}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(arguments...) -> exit code, stdout, stderr of the command, in this process."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def report_of(project: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((project / "report.json").read_text())
    return report


# --- the shell --------------------------------------------------------------------------------


def test_starting_is_quick() -> None:
    heavy = "{'numpy', 'onnx', 'matplotlib', 'rich', 'PIL', 'jinja2', 'cffi'} & set(sys.modules)"
    code = (
        "import sys, bdcc.cli\n"
        "try: bdcc.cli.main(['--version'])\n"
        f"except SystemExit as left: assert left.code == 0 and not {heavy}, {heavy}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"bdcc, version \d+\.\d+\.\d+\n", done.stdout)


def examples_of(command: click.Command) -> list[str]:
    text = command.get_help(click.Context(command, info_name=command.name, max_content_width=200))
    return re.findall(r"^ +(bdcc .*)$", text.partition("Examples:")[2], re.MULTILINE)


# Tuning measures for a minute or two.
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=name, marks=[pytest.mark.slow] if name == "tune" else [])
        for name, command in SHOWN.items()
        if name != "deploy"  # test_deploy.py has a host for it
    ],
)
def test_the_examples_of_each_command_work(
    command: click.Command, trained: Trained, project: Path, tmp_path: Path
) -> None:
    shutil.copy(trained.model, tmp_path / "model.onnx")
    shutil.copy(trained.picture, tmp_path / "picture.jpg")
    shutil.copytree(trained.folders, tmp_path / "pictures")
    if command.name != "compile":
        shutil.copytree(project, tmp_path / "out")
    examples = examples_of(command)
    assert len(examples) == 2
    kept = {"BDCC_CACHE": str(tmp_path / "cache")} if command.name == "tune" else {}  # for itself
    for example in examples:
        done = subprocess.run(
            ["sh", "-c", BDCC + example],
            cwd=tmp_path,
            env={**os.environ, "PYTHON": sys.executable, **kept},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout or ">" in example


def test_usage_errors_are_2(run: Run, trained: Trained, tmp_path: Path) -> None:
    for arguments in (
        ("compile", trained.model, "-o", tmp_path / "o", "--colour"),
        ("compile", trained.model),
        ("compile", "-o", tmp_path / "o"),
        ("polish",),
        (),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("Usage: bdcc")


# --- bad input --------------------------------------------------------------------------------


def bad_model(folder: Path, trained: Trained, kind: str) -> Path:
    whole = trained.model.read_bytes()
    content = {"text": b"hello", "truncated": whole[: len(whole) // 2], "empty": b""}
    path = folder / "bad.onnx"
    path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize("kind", ["text", "truncated", "empty"])
def test_bad_models(run: Run, trained: Trained, tmp_path: Path, kind: str) -> None:
    err = check_refusal(run, tmp_path, bad_model(tmp_path, trained, kind))
    assert ("Export the model to ONNX again" in err) == (kind != "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--D -1", "--D"),
        ("--D nan", "--D"),
        ("--max-drop x", "--D: 'x' is not a number"),
        ("--q 9", "--q: 9"),
        ("--q 0", "--q: 0"),
        ("--q 4,x", "--q: '4,x' is not"),
        ("--q 4,4,4", "--q: 3 values; this model takes 1 or 2 or 4"),
        ("--bases 8", "--bases: 8"),
        ("--bases 1,2,3,4,5", "--bases: 5 values"),
        ("--limit 1.5", "--limit: '1.5' is not a whole number"),
        ("--decompose good", "--decompose"),
        ("--kernel fast", "--kernel"),
        ("--cost-table none.json", "none.json: is no table of kernel costs"),
        ("--workers dask:nowhere", "--workers: no Dask scheduler answers at 'nowhere'"),
        ("--workers two", "--workers: 'two' is not"),
        ("--target moon", "--target"),
        ("--preset imagenet", "--preset"),
        ("--mean 1,2", "--mean: 2 values"),
        ("--resize crop:3", "--resize"),
        ("--keep-float conv9", "--keep-float: there is no layer 'conv9'; the layers are conv1, "),
        ("--data nowhere", "nowhere: there is no such file or folder"),
        ("--data {empty}", "there are no pictures in it"),
        ("--data {broken}", "0.png: is not a readable picture"),
        ("--data {junk}", "0.jpg: is not a readable picture"),
        (
            "--data {file}",
            "is not a readable .npz file of plain arrays (File is not a zip file). Write it",
        ),
        ("--calib {infinite}", "picture 1 holds NaN or infinity"),
        ("--data {few}", "2 class folders, but the model has 20 outputs"),
        ("--data {labels}", "label 20 of picture 1 is out of range, the model's classes are 0..19"),
        ("--data {float64}", "images are float64"),
        ("--classes nowhere", "nowhere: cannot read the classes"),
        ("--flash 10", "--flash: the weights of this choice take"),
        ("--ram 10", "--ram: the arena of this choice takes"),
        ("--cache {file}/x", "cannot be written (Not a directory). Choose another cache"),
    ],
)
def test_bad_values_are_one_line_and_leave_nothing(
    run: Run, trained: Trained, tmp_path: Path, options: str, message: str
) -> None:
    places = {name: tmp_path / name for name in ("empty", "broken", "few", "junk")}
    for folder in places.values():
        folder.mkdir()
    (places["broken"] / "0.png").write_bytes(b"no picture")
    (places["junk"] / "0.jpg").write_bytes(b"no picture")
    for index in (1, 2, 3):
        shutil.copy(trained.picture, places["broken"] / f"{index}.png")
    for name in ("a", "b"):
        (places["few"] / name).mkdir()
        shutil.copy(trained.picture, places["few"] / name / "0.png")
    images = np.zeros((2, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "labels.npz", images=images, labels=np.array([0, CLASSES]))
    np.savez(tmp_path / "float64.npz", images=images.astype(float))
    infinite = np.zeros((2, 3, 12, 12), np.float32)
    infinite[1, 0, 3, 3] = np.inf
    np.savez(tmp_path / "infinite.npz", images=infinite)
    (tmp_path / "file").write_text("x")
    files = {n: f"{n}.npz" for n in ("labels", "float64", "infinite")} | {"file": "file"}
    places |= {name: tmp_path / file for name, file in files.items()}
    err = check_refusal(run, tmp_path, trained.model, *options.format(**places).split())
    assert message in err


def check_refusal(run: Run, folder: Path, model: Path, *options: str) -> str:
    before = sorted(folder.rglob("*"))
    code, out, err = run("compile", model, "-o", folder / "deep" / "out", *options)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"bdcc: .+\.\n", err), err
    assert sorted(folder.rglob("*")) == before
    return err


def test_places_that_cannot_be_written(run: Run, trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for place, force, message in (
        ("file", (), "is a file"),
        ("file/out", (), "cannot be written"),
        ("full", (), "not empty"),
        ("full", ("--force",), "'thesis.tex' was not written by bdcc"),
    ):
        code, out, err = run("compile", trained.model, "-o", tmp_path / place, *force)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert message in err
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


@pytest.mark.parametrize("command", ["verify", "run", "eval", "bench"])
def test_what_is_no_project_is_refused(run: Run, tmp_path: Path, command: str) -> None:
    more = {"run": ["x.png"], "eval": ["--data", "x"]}.get(command, [])
    code, out, err = run(command, tmp_path, *more)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "is not a project that bdcc wrote: host/project.json is not there" in err
    assert "Errno" not in err


@pytest.mark.parametrize("file", ["report.json", "host/oracle.npz"])
def test_damaged_projects_say_what_to_do(
    run: Run, project: Path, tmp_path: Path, file: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(project, out)
    for damage in (b"{", b"{}", b""):
        (out / file).write_bytes(damage)
        code, shown, err = run("verify", out)
        assert (code, shown) == (1, "")
        assert err == (
            f"bdcc: {out}: {file} is not there, is damaged, or is of another version of bdcc. "
            "Compile the project again.\n"
        )


@pytest.mark.parametrize("command", ["verify", "run", "eval", "bench", "deploy", "tune"])
def test_reports_that_were_edited_are_refused_by_every_command(
    run: Run, project: Path, tmp_path: Path, command: str
) -> None:
    """With nothing built, measured or sent."""
    out = tmp_path / "out"
    (out / "host").mkdir(parents=True)
    shutil.copy(project / "host" / "project.json", out / "host")
    before = {"deploy": ["nobody@nowhere"]}.get(command, [])
    after = {"run": ["x.png"], "eval": ["--data", "x"]}.get(command, [])
    report = report_of(project)
    for change in (
        {"target": "../board.toml"},
        {"target_changes": {"cross": "$(touch x)-"}},
        {"target_changes": {"isas": ["generic"]}},
        {"fingerprint": "0" * 16},
        {"preprocess": {**report["preprocess"], "mean": []}},
        {"layers": [*report["layers"], report["layers"][0]]},
        {"layers": [{**report["layers"][0], "kernel": None}]},
        {"options": {**report["options"], "max_memory": None}},
    ):
        (out / "report.json").write_text(json.dumps(report | change))
        code, shown, err = run(command, *before, out, *after)
        assert (code, shown, err.count("\n")) == (1, "", 1)
        assert "report.json is not there, is damaged" in err


def test_names_that_are_no_utf8(trained: Trained, tmp_path: Path) -> None:
    """Of model, pictures, classes and OUT: from compile to the report and the classes that run
    shows, in a process of its own, as only there stdout is one.
    """
    names = [b"caf\xe9", b"a\nb", b"\x1b[2J", b"'\"\\", *(b"%d" % n for n in range(CLASSES - 4))]
    order = sorted(map(os.fsdecode, names))
    data, model = (tmp_path / os.fsdecode(name) for name in (b"d\xe9ta", b"m\xf6del.onnx"))
    out = tmp_path / os.fsdecode(b"o\xfft")
    for index, folder in enumerate(sorted(trained.folders.iterdir())):
        shutil.copytree(folder, data / order[index])
    shutil.copy(trained.model, model)

    def call(*arguments: object) -> str:
        code = "from bdcc.cli import main; main()"
        words = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    given = ("--data", data, "--bases", "2", "--q", "6", "--decompose", "plain", *PREPROCESS)
    assert rf"bdcc verify '{tmp_path}/o\udcfft'" in call("compile", model, *given, "-o", out)
    report = report_of(out)
    assert report["model"]["name"] == r"m\udcf6del.onnx"
    assert report["options"]["data"] == r"d\udce9ta"
    jsonschema.validate(report, load_schema())
    assert r"m\udcf6del.onnx" in (out / "report.html").read_text("utf-8")
    assert json.loads(call("eval", out, "--data", data, "--json"))["samples"] == 80
    picture = next((data / os.fsdecode(b"caf\xe9")).iterdir())
    for line in call("run", out, picture).splitlines():
        assert line.isprintable()
    labels = {one["label"] for one in json.loads(call("run", out, picture, "--json"))["top"]}
    assert r"caf\udce9" in labels


def test_bench_figures_are_round(run: Run, project: Path) -> None:
    result = json.loads(run("bench", project, "--layers", "--json")[1])
    for ms in (result["min_ms"], result["median_ms"], *(s["median_ms"] for s in result["steps"])):
        assert ms == round(ms, 6)


@pytest.mark.parametrize("error", [MismatchError("differs"), BuildError("no compiler")])
def test_exit_codes_follow_the_error(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("bdcc.host.verify.verify", fail)
    code, _, err = run("verify", project)
    assert code == {"MismatchError": 4, "BuildError": 5}[type(error).__name__]
    assert err == f"bdcc: {error}\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bdcc.host.verify.verify", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["verify", str(project)])


def test_an_interruption_is_130_and_says_how_to_go_on(
    run: Run, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bdcc.pipeline.compile.gather", interrupt)
    code, out, err = run("compile", trained.model, "-o", tmp_path / "a b", "--D", "2")
    assert (code, out) == (130, "")
    again = f"bdcc compile {trained.model} -o '{tmp_path}/a b' --D 2 --resume"
    assert err.endswith(f"Go on with: {again}\n")
    assert list(tmp_path.iterdir()) == []


# --- what a person and a script see -----------------------------------------------------------


def test_compile_shows_layers_and_a_summary(run: Run, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, shown, _ = run("compile", trained.model, *trained.data, "--q", "6", "-o", out)
    assert code == 0
    for layer in ("conv1", "conv2", "fc3", "fc4"):
        assert re.search(rf"^{layer} +(Conv|Gemm) +[1-6] +[68] ", shown, re.MULTILINE)
    for row in ("float model", "decomposed", "measured", "on holdout", "weights", "arena"):
        assert re.search(rf"^{row} ", shown, re.MULTILINE)
    assert f"bdcc verify {out}" in shown
    assert len(shown.splitlines()) < 40


def test_json_has_stdout_for_itself(run: Run, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--q", "5", "--D", "0", "--bases", "1", "--json", "--name", "éé", "-o", out)
    options += ("--objective", "size")
    code, shown, err = run("compile", trained.model, *trained.data, *options)
    report = json.loads(shown)
    jsonschema.validate(report, load_schema())
    assert report == report_of(out)
    assert code == 3
    assert "the tolerance of 0 points is missed" in err
    assert "warning: a tolerance of 0 points is below what any number of pictures can tell" in err
    assert not report["met"]
    notes = "\n".join(report["notes"])
    assert "the prefix of the C names is 'model': 'éé' cannot be it" in notes


def test_strict_is_3_where_the_interval_reaches_beyond(
    run: Run, trained: Trained, tmp_path: Path
) -> None:
    """The same project keeps the tolerance without --strict: its drop does, the upper end not."""
    out = tmp_path / "out"
    options = (*trained.data, "--q", "8", "--bases", "5", "--metric", "top1", "-o", out)
    run("compile", trained.model, *options)
    drop = report_of(out)["accuracy"]["drop_pp"]
    given = (*options, "--D", max(drop, 0.0) + 0.1, "--force")
    assert run("compile", trained.model, *given)[0] == 0
    code, _, err = run("compile", trained.model, *given, "--strict")
    assert code == 3
    assert re.search(r"is missed: .*, at most \d+\.\d\d with 95 % confidence", err)
    assert not report_of(out)["met"]


def test_inspect(run: Run, trained: Trained) -> None:
    code, shown, _ = run("inspect", trained.model)
    assert code == 0
    assert "--keep-float takes: conv1, conv2, fc3, fc4" in shown
    _, text, _ = run("inspect", trained.model, "--json")
    found = json.loads(text)
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["conv2"]["macs"] == 16 * 4 * 9 * 6 * 6
    assert rows["conv2"]["parameters"] == 16 * 4 * 9 + 16
    assert rows["conv2"]["stays_float"] is None
    assert rows["pool1"]["stays_float"]
    assert found["macs"] == sum(row["macs"] for row in found["layers"])


def test_max_memory_bounds_what_is_read(run: Run, trained: Trained, tmp_path: Path) -> None:
    for command in (["inspect"], ["compile", "-o", tmp_path / "out"]):
        code, _, err = run(*command, trained.model, "--max-memory", "1000")
        assert code == 1
        assert re.search(r"it has \d+ bytes, and at most 1000 are read\. Raise it with --max-", err)
    assert run("inspect", trained.model, "--max-memory", str(1 << 30))[0] == 0


def test_eval_agrees_with_the_report(run: Run, trained: Trained, project: Path) -> None:
    for data, part in ((trained.search, None), (trained.holdout, "holdout")):
        accuracy = report_of(project)["accuracy"]
        accuracy = accuracy if part is None else accuracy[part]
        code, text, _ = run("eval", project, "--data", data, "--threads", "2", "--json")
        found = json.loads(text)
        assert code == 0
        assert found["top1"] == accuracy["measured"]
        assert found["samples"] == accuracy["samples"]
    code, text, _ = run("eval", project, "--data", trained.folders, "--limit", "40")
    assert re.match(r"40 pictures: top-1 \d+\.\d\d %, top-5 \d+\.\d\d %$", text)
    code, _, err = run("eval", project, "--data", trained.folders / "class00")
    assert (code, "the pictures have no labels" in err) == (1, True)


def test_run_is_the_oracle(run: Run, trained: Trained, project: Path) -> None:
    code, text, _ = run("run", project, trained.picture, "--model", trained.model, "--json")
    assert code == 0
    answer = json.loads(text)
    pixels = np.asarray(Image.open(trained.picture), np.float64)
    x = ((pixels - 120) / 60).astype(np.float32).transpose(2, 0, 1)
    model = load_oracle(project / "host" / "oracle.npz")
    logits = run_exact(model, x).values["y"]
    order = np.argsort(-logits, kind="stable")[:5]
    assert [entry["index"] for entry in answer["top"]] == order.tolist()
    assert [entry["score"] for entry in answer["top"]] == [float(logits[i]) for i in order]
    exact = run_float(load_onnx(trained.model), x)["y"].astype(np.float64)
    ratio = 10 * np.log10((exact**2).sum() / ((exact - logits) ** 2).sum())
    rows = [row for row in answer["sqnr_db"] if row["tensor"] == "y"]
    assert rows[-1]["sqnr_db"] == pytest.approx(ratio, abs=0.01)
    assert {row["layer"] for row in answer["sqnr_db"]} >= {"conv1", "conv2", "fc3", "fc4"}
    _, shown, _ = run("run", project, trained.picture, "--model", trained.model)
    assert re.search(r"^fc4 +Gemm +y +\d+\.\d$", shown, re.MULTILINE)


def test_run_refuses_another_model(
    run: Run, trained: Trained, project: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(trained.model.read_bytes() + b"\x1a\x00")
    code, _, err = run("run", project, trained.picture, "--model", other)
    assert (code, "is not the model that this project was compiled from" in err) == (1, True)


def test_verify_and_its_dump(run: Run, trained: Trained, project: Path, tmp_path: Path) -> None:
    dump = tmp_path / "layers.npz"
    code, text, _ = run("verify", project, "--data", trained.folders, "--dump", dump, "--json")
    found = json.loads(text)
    assert (code, found["differing"]) == (0, 0)
    with np.load(dump) as layers:
        assert any(name.endswith("_y") and layers[name].size == CLASSES for name in layers.files)


def test_bench_ends_with_its_figures(run: Run, project: Path) -> None:
    code, text, _ = run("bench", project)
    assert code == 0
    assert re.fullmatch(r"min=\d+\.\d+ median=\d+\.\d+ ms", text.splitlines()[-1])
    code, _, err = run("bench", project, "--isa", "abacus")
    assert (code, err.count("\n")) == (1, 1)


def test_bench_beside_others(
    run: Run, trained: Trained, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bdcc.host.peers.ROUNDS", 2)
    monkeypatch.setattr("bdcc.host.peers.TURN_MS", 1.0)
    folder = tmp_path / "new" / "figures"
    code, text, err = run(
        *("bench", project, "--layers", "--peers", "--model", trained.model),
        *("--data", trained.folders, "-o", folder),
    )
    assert (code, err) == (0, "")
    assert re.search(r"\nonnxruntime fp32 +1 ", text)
    assert re.fullmatch(r"min=\d+\.\d+ median=\d+\.\d+ ms", text.splitlines()[-1])
    result = json.loads((folder / "bench.json").read_text())
    systems = {one["name"]: one for one in result["systems"]}
    assert systems["bdcc"]["ratio"] == 1
    assert systems["onnxruntime fp32"]["error"] < 1e-3
    assert systems["onnxruntime int8"]["error"] < 0.3
    assert systems["bdcc"]["error"] < 1
    assert "onnxruntime fp32" in (folder / "bench.svg").read_text()
    speeds = [step["speed"] for step in result["steps"] if step["speed"] is not None]
    assert [speed["macs"] for speed in speeds] == [
        layer["macs"] for layer in report_of(project)["layers"]
    ]
    assert all(speed["share"] > 0 for speed in speeds)
    memory = result["memory"]
    assert memory["peak_bytes"] < memory["weight_bytes"] + memory["arena_bytes"] + 4e6


def test_bench_refuses_what_cannot_be(
    run: Run, trained: Trained, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("--peers",), "--peers: other systems run the ONNX model, which is not given"),
        (("--peers", "--model", trained.branched), "is not the model that this project was"),
        (("--threads", "0"), "--threads: 0 is below 1"),
        (("-o", tmp_path / "file"), "file: cannot be written (Not a directory)"),
    ):
        code, out, err = run("bench", project, *arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert message in err


def test_tune_keeps_a_table_and_says_what_it_is_worth(
    run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BDCC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "tune", lambda isa, progress: shipped_cost_table(isa).ns)
    code, text, _ = run("tune", project, "--json")
    result = json.loads(text)
    assert (code, result["isa"]) == (0, usable_isas()[-1])
    assert Path(result["file"]).parent == tmp_path / "cache" / "cost_tables"
    assert [file.name for file in Path(result["file"]).parent.iterdir()] == [
        Path(result["file"]).name
    ]
    file = tmp_path / "table.json"
    code, text, _ = run("tune", project, "--isa", "generic", "-o", file)
    assert code == 0
    assert str(file) in text
    assert file.read_text() == Path(tables.__file__).parents[1].joinpath(
        "codegen", "cost_tables", "generic.json"
    ).read_text().replace(shipped_cost_table("generic").machine, result["machine"])
    code, _, error = run("tune", project, "--isa", "mmx")
    assert code == 1
    assert "--isa: 'mmx'" in error
    code, _, error = run("tune", tmp_path)
    assert code == 1


def test_tune_says_what_to_do(
    run: Run, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which instruction set is measured, and the command that compiles by the table."""
    monkeypatch.setattr(tables, "usable_isas", lambda: ("generic", "popcnt", "avx2"))
    fastest = "popcount"

    def measured(isa: str, *, progress: object) -> dict[Key, Parts]:
        ns = shipped_cost_table(isa).ns
        least = (1e-6, 1e-6, 1e-6, 0.0)  # nothing that is measured has a price of its outputs
        return {k: least[: len(v)] if k[0] == fastest else v for k, v in ns.items()}

    monkeypatch.setattr(tables, "tune", measured)
    out = tmp_path / "out"
    shutil.copytree(project, out)
    report = json.loads((out / "report.json").read_text())
    count = len(report["layers"])
    cache, file = tmp_path / "cache", tmp_path / "table.json"

    def tune_as(target: str, *arguments: object, planned: str = "lut", **options: object) -> str:
        rows = [{**row, "kernel": f"bdcc_{planned}_b1q1"} for row in report["layers"]]
        changed = {"target": target, "layers": rows, "options": {**report["options"], **options}}
        (out / "report.json").write_text(json.dumps({**report, **changed}))
        code, text, _ = run("tune", out, *arguments)
        assert code == 0
        return text.partition("\n\n")[2]

    slower = f"{count} of {count} layers would be faster"
    text = tune_as("host", "--cache", cache)
    assert f"{slower}. Without --cost-table this table is found: " in text
    assert f"bdcc compile ... --cache {cache}\navx2 on " in text
    given = CompileOptions(output=out, cache=cache)
    found = find_cost_table(find_target("host"), given.cost_table, cache=given.cache_folder)
    assert found.ns == measured("avx2", progress=None)
    assert found.source == "measured"
    text = tune_as("host", "-o", file)
    assert f"{slower}: bdcc compile ... --cost-table {file}\n" in text
    text = tune_as("host", "--isa", "popcnt", "-o", file)
    assert f"bdcc compile ... --target x86-64-v2 --cost-table {file}\npopcnt on " in text
    assert text.endswith("the project is planned for avx2\n")
    text = tune_as("x86-64-avx512", "-o", file)
    assert f"bdcc compile ... --target x86-64-v3 --cost-table {file}\navx2 on " in text
    assert text.endswith("the project is planned for avx512, which this CPU does not have\n")
    text = tune_as("generic", "--cache", cache)
    (table,) = cache.glob("cost_tables/generic-*.json")
    assert f"bdcc compile ... --target generic --cost-table {table}\ngeneric on " in text
    assert tune_as("host", "-o", file, planned=fastest).startswith("every layer has its fastest ")
    assert tune_as("host", "-o", file, kernel="lut").startswith("--kernel lut decides ")
    assert f"{slower}, where --ram has room: " in tune_as("host", "-o", file, ram_bytes=99)
    code, _, error = run("tune", out, "--cache", "off")
    assert (code, error) == (1, "bdcc: --cache: off keeps no table. Give -o FILE.\n")


def test_targets_are_listed(run: Run) -> None:
    _, text, _ = run("targets")
    names = [target.name for target in TARGETS]
    assert [line.split()[0] for line in text.splitlines()[2:]] == names
    (row,) = (line for line in text.splitlines() if line.startswith("rpi4 "))
    assert re.split("  +", row) == [
        *("rpi4", "Raspberry Pi 4, 64-bit system", "cortex-a72", "neon", "64", "1 GiB"),
        *("aarch64-linux-gnu-gcc", "-O3 -mcpu=cortex-a72"),
    ]
    assert "1 MiB + 192 KiB" in text
    assert all(target.cflags in text for target in TARGETS)
    _, text, _ = run("targets", "--json")
    found = json.loads(text)["targets"]
    assert [target["name"] for target in found] == names
    assert all(find_target(t["name"]).cflags == t["cflags"] for t in found)
    assert {"host", "generic", "x86-64-v3"} <= set(names)


def test_a_target_of_the_user_s(run: Run, trained: Trained, tmp_path: Path) -> None:
    file, out = tmp_path / "board.toml", tmp_path / "out"
    file.write_text('like = "rpi4"\ncflags = "-O2 -mcpu=cortex-a55"\n')
    given = ("--float", "--limit", 20, "--target", file)
    assert run("compile", trained.model, *trained.data, *given, "-o", out)[0] == 0
    report = report_of(out)
    jsonschema.validate(report, load_schema())
    assert (report["target"], report["options"]["target"]) == ("rpi4", "board.toml")
    file.unlink()
    assert target_of(report).cflags == "-O2 -mcpu=cortex-a55"


def test_classify_agrees_with_run(
    run: Run, trained: Trained, project: Path, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    """The program that is built with a project reads JPEG as Pillow does, from a file or a pipe."""
    tool("make")
    out = tmp_path / "out"
    shutil.copytree(project, out)
    said = subprocess.run(
        ["make", "-s", "-C", out, "JPEG=1"], capture_output=True, text=True, check=False
    )
    if "jpeglib.h" in said.stderr:
        tool("jpeglib.h")  # a skip, or a failure where nothing may be missing
    for number, picture in enumerate(sorted(trained.folders.glob("*/*.png"))[::9]):
        jpeg = tmp_path / f"{number}.jpg"
        with Image.open(picture) as image:
            image.resize((61, 47)).convert("L" if number == 1 else "RGB").save(jpeg, quality=90)
        code, text, _ = run("run", out, jpeg, "--json")
        top = json.loads(text)["top"]
        for feed in (None, jpeg.read_bytes()):
            command = [out / "build/classify", "-" if feed else jpeg]
            done = subprocess.run(command, input=feed, capture_output=True, check=True)
            lines = done.stdout.decode().splitlines()
            found = [re.fullmatch(r"\d\. (.*?) +(-?[\d.]+)", line) for line in lines[:5]]
            assert [m[1] for m in found if m] == [one["label"] for one in top]
            scores = [float(m[2]) for m in found if m]
            assert np.allclose(scores, [one["score"] for one in top], atol=0.05)
            assert re.fullmatch(r"\d+\.\d\d ms \(\w+\)", lines[5])
    assert (code, number) == (0, 8)
    jpeg.write_bytes(b"\xff\xd8\xff nothing of the kind")
    done = subprocess.run([out / "build/classify", jpeg], capture_output=True, check=False)
    assert (done.returncode, done.stderr[:10]) == (1, b"classify: ")
    subprocess.run(["make", "-s", "-C", out, "JPEG=0"], check=True)
    done = subprocess.run([out / "build/classify", jpeg], capture_output=True, check=False)
    wanted = f"classify: {jpeg}: is a JPEG, and this was built without libjpeg: apt install "
    assert (done.returncode, done.stderr.decode().startswith(wanted)) == (1, True)


def test_without_a_terminal_progress_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(cli.time, "monotonic", lambda: now)
    with cli._Watch() as watch:
        for second in range(41):
            now = float(second)
            watch("tables", second, 40)
        for second in range(2):  # too short to be worth a line
            now += second
            watch("verify", second, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "tables: 37 %, about 25 s left",
        "tables: 75 %, about 10 s left",
    ]


def test_on_a_terminal_progress_is_a_bar_that_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(cli.time, "monotonic", lambda: now)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with cli._Watch() as watch:
        for second in range(5):
            now = float(second)
            watch("decompose", second, 5)
        assert watch._bars is not None
        watch("decompose", 0, 5)  # the next of its kind
        assert watch._bars is None
    assert capsys.readouterr().out == ""


def test_sigterm_ends_as_an_interruption(trained: Trained, tmp_path: Path) -> None:
    code = (
        "import os, signal, bdcc.cli, bdcc.pipeline.compile as c\n"
        "c.gather = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM) or signal.pause()\n"
        f"bdcc.cli.main(['compile', {str(trained.model)!r}, '-o', {str(tmp_path / 'out')!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 130
    assert "--resume" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_that_runs_out_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("bdcc.ir.onnx_import.load_onnx", full)
    code, out, err = run("inspect", "model.onnx")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "memory ran out" in err
