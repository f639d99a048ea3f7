# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import example
from test_sweep_report import check_places
from trained_network import Trained, options_for

from bdcc import cli
from bdcc.errors import OptionError, OutputError
from bdcc.pipeline import sweep as module
from bdcc.pipeline.compile import CompileResult
from bdcc.pipeline.options import CompileOptions
from bdcc.pipeline.sweep import Point, SweepOptions, list_points, point_row, sweep
from bdcc.pipeline.sweep_folder import WRITTEN, SweepFolder


def options_of(trained: Trained, output: Path, **given: Any) -> SweepOptions:
    own = options_for(trained, output, name="net", search="paper", bases=(4,))
    return SweepOptions(**{"compile": own, "drops": (0.0, 12.0), "fixed_bits": (2, 3), **given})


@pytest.fixture(scope="module")
def swept(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swept") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TURN_MS", 1.0)
        patch.setattr(module, "TURNS", 3)
        sweep(trained.model, options_of(trained, out))
    return out


def test_files_agree_with_each_other(swept: Path) -> None:
    assert {path.name for path in swept.iterdir()} == {*WRITTEN, "points"}
    points = json.loads((swept / "sweep.json").read_text())["points"]
    assert [p["name"] for p in points] == [
        *("fixed-q2", "fixed-q3", "paper-D0", "paper-D12", "bdcc-D0", "bdcc-D12")
    ]
    with (swept / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, point in zip(rows, points, strict=True):
        assert float(row["measured"]) == point["measured"]
    named = [{**row, "name": point["name"]} for row, point in zip(rows, points, strict=True)]
    check_places((swept / "sweep.svg").read_text(), named)
    assert (swept / "sweep.html").read_text().count("<svg") == 2


def test_points_are_what_their_series_says(swept: Path) -> None:
    points = {p["name"]: p for p in json.loads((swept / "sweep.json").read_text())["points"]}
    assert points["fixed-q3"]["q"] == [3, 3]
    assert points["fixed-q3"]["mean_bq"] == 18
    for name, point in points.items():
        assert point["bases"] == ([4, 4] if name.startswith("bdcc") else [6, 6])
        assert (point["predicted"] is None) == name.startswith("fixed")
        assert 0 < point["ms_min"] <= point["ms_median"]
        met = None if point["D"] is None else point["drop_pp"] <= point["D"]
        assert point["met"] == met  # a missed tolerance is a point too
    assert {False, True} <= {point["met"] for point in points.values()}


@pytest.mark.parametrize(
    ("judge", "method", "kept"),
    [
        ("labels", "measured", True),
        ("agreement", "measured", True),
        ("generated", "measured", False),  # it is of photographs, and they are not
        ("generated", "paper", True),
    ],
)
def test_a_prediction_is_kept_beside_what_it_predicts(
    trained: Trained, judge: str, method: str, kept: bool
) -> None:
    report = replace(example(), judge=judge, search_method=method)
    bench = {"min_ms": 1.0, "median_ms": 1.0}
    result = CompileResult(project=Path(), report=report, timings={"bench": bench}, missed=None)
    options = options_for(trained, Path("out"), max_drop_pp=1.0)
    row = point_row(Point(name="bdcc-D1", series="bdcc", options=options), result)
    assert row["predicted"] == (report.predicted if kept else None)


def test_one_choice_has_one_time(swept: Path) -> None:
    points = json.loads((swept / "sweep.json").read_text())["points"]
    times: dict[str, set[float]] = {}
    for point in points:
        times.setdefault(point["fingerprint"], set()).add(point["ms_median"])
    assert all(len(found) == 1 for found in times.values())


def test_commands_mean_the_points(swept: Path, trained: Trained) -> None:
    found = json.loads((swept / "sweep.json").read_text())
    listed = list_points(options_of(trained, swept), chain=True)
    for point, record in zip(listed, found["points"], strict=True):
        _, command, *arguments = shlex.split(record["command"])
        given = cli.cli.commands[command].make_context(command, arguments).params
        del given["model"], given["as_json"]
        parsed = CompileOptions(**{k: v for k, v in given.items() if v is not None})
        assert parsed == replace(point.options, output=Path(point.name), force=False)


def test_a_finished_sweep_computes_nothing_again(
    swept: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    before = {p: p.read_bytes() for p in out.iterdir() if p.suffix in (".csv", ".svg")}
    monkeypatch.delattr(module, "compile_model")
    monkeypatch.delattr(module, "bench")
    monkeypatch.setattr(module, "TURNS", 3)
    said: list[str] = []
    sweep(trained.model, options_of(trained, out), say=said.append)
    assert said == ["found finished: 6 of 6 points"]
    assert {p: p.read_bytes() for p in before} == before
    options = options_of(trained, out)
    other = replace(options, compile=replace(options.compile, bases=(3,)))
    with pytest.raises(OutputError, match=r"options or bdcc \('bdcc-D0'\).*--force"):
        sweep(trained.model, other)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda record: [],
    "another type": lambda record: record["value"].update(ms_median="1"),
    "a key less": lambda record: record["value"].pop("holdout_float"),
    "another series": lambda record: record["value"].update(series="bdcc"),
    "another tolerance": lambda record: record["value"].update(D=7.0),
    "a judge of its own": lambda record: record["value"].update(judge="me"),
    "no number": lambda record: record["value"].update(drop_pp=float("nan")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_made_again(
    swept: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """And a damaged one alone; the others are found."""
    out = shutil.copytree(swept, tmp_path / "out")
    file = out / "points" / "fixed-q2.json"
    record = json.loads(file.read_text())
    changed = DAMAGES[damage](record)
    file.write_text(json.dumps(changed if isinstance(changed, list) else record))

    def stop(model: Path, options: CompileOptions, **_: Any) -> None:
        raise KeyboardInterrupt(options.output.name)

    monkeypatch.setattr(module, "compile_model", stop)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt, match="fixed-q2"):
        sweep(trained.model, options_of(trained, out), say=said.append)
    assert said[0] == "found finished: 5 of 6 points"


def test_damaged_times_are_taken_again(swept: Path, tmp_path: Path) -> None:
    folder = SweepFolder(root=shutil.copytree(swept, tmp_path / "out"))
    file = folder.points / "times.json"
    record = json.loads(file.read_text())
    turn = record["value"]["turns"][0]
    assert folder.read_times(record["key"], turn) is not None
    assert folder.read_times(record["key"], [*turn, "ff"]) is None
    for wrong in ([], [{**turn, "ff": [1, 2]}], [{mark: [1] for mark in turn}], [[1, 2]], "x"):
        file.write_text(json.dumps({**record, "value": {"isa": "avx2", "turns": wrong}}))
        assert folder.read_times(record["key"], turn) is None


def test_an_interrupted_sweep_goes_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_MS", 1.0)
    monkeypatch.setattr(module, "TURNS", 4)
    options = options_of(trained, tmp_path / "out", drops=(12.0,), fixed_bits=(3,))
    compiled: list[str] = []
    timed: list[str] = []
    compile_model, bench = module.compile_model, module.bench

    def compile_some(model: Path, chosen: CompileOptions, **more: Any) -> Any:
        if len(compiled) == 2 and "interrupted" not in compiled:
            compiled.append("interrupted")
            raise KeyboardInterrupt
        compiled.append(chosen.output.name)
        return compile_model(model, chosen, **more)

    def bench_some(project: Path, **more: Any) -> Any:
        if len(timed) == 4 and "interrupted" not in timed:
            timed.append("interrupted")
            raise KeyboardInterrupt
        timed.append(project.name)
        return bench(project, **more)

    monkeypatch.setattr(module, "compile_model", compile_some)
    monkeypatch.setattr(module, "bench", bench_some)
    for found in ([], ["found finished: 2 of 3 points"], ["found finished: 3 of 3 points"]):
        said: list[str] = []
        with suppress(KeyboardInterrupt):
            sweep(trained.model, options, say=said.append)
        assert [line for line in said if line.startswith("found")] == found
    assert compiled == ["bdcc-D12", "fixed-q3", "interrupted", "paper-D12"]
    turns = json.loads((tmp_path / "out" / "points" / "times.json").read_text())["value"]["turns"]
    assert len(turns) == module.TURNS
    finished = len(timed) - 1 - 4 % len(turns[0])  # the turn that broke off is timed anew
    assert finished == module.TURNS * len(turns[0])
    assert not (tmp_path / "out" / "projects").exists()


@pytest.mark.parametrize("place", ["thesis.tex", "points/notes.txt", "projects/mine/x.c"])
def test_what_a_sweep_has_not_written_is_refused(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match=f"'{file.name}'|'{place}'"):
            SweepFolder(root=tmp_path).open({}, force=force)
    assert file.read_text() == "mine"


def test_without_a_chain_there_is_no_paper_search(trained: Trained, tmp_path: Path) -> None:
    options = options_of(trained, tmp_path)
    assert [p.name for p in list_points(options, chain=False)] == [
        *("fixed-q2", "fixed-q3", "bdcc-D0", "bdcc-D12")
    ]
    alone = list_points(replace(options, without_paper=True), chain=True)
    assert [p.name for p in alone] == ["bdcc-D0", "bdcc-D12"]


def test_bad_values_are_refused(trained: Trained, tmp_path: Path) -> None:
    for given, match in (
        ({"drops": ()}, "--D: an empty list"),
        ({"drops": (1.0, -1.0)}, "--D: -1"),
        ({"fixed_bits": (2, 9)}, "--fixed-q: 9 is outside 1..8"),
    ):
        with pytest.raises(OptionError, match=match):
            options_of(trained, tmp_path, **given)


def test_a_range_of_tolerances_is_written_short() -> None:
    assert cli._range("1,2,..,5") == (1, 2, 3, 4, 5)
    assert cli._range("0.5,1,..,2.2") == (0.5, 1, 1.5, 2)
    for text in ("1,..,5", "2,1,..,5", "1,2,..,nan", "1,2,..,1", "1,2,..,4,5", "x"):
        with pytest.raises(ValueError, match=r".*"):
            cli._range(text)
