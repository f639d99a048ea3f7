# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from trained_network import Trained, draw_pictures, options_for, write_model

import bdcc
from bdcc.approx.model import load_oracle
from bdcc.approx.simulate import run_exact, run_float
from bdcc.errors import BuildError, OptionError
from bdcc.pipeline import tables
from bdcc.pipeline.reporting import find_missed
from bdcc.report.report import compare, load_schema
from clusters import running_scheduler, running_workers


def files_of(project: Path) -> dict[str, bytes]:
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file()
        and path.name != "timings.json"
        and path.relative_to(project).parts[0] != "build"
    }


def differing(one: Path, other: Path) -> list[str]:
    """Names of the files that differ, or that only one has; times and build/ aside."""
    left, right = files_of(one), files_of(other)
    return [name for name in sorted({*left, *right}) if left.get(name) != right.get(name)]


def slow_hits(project: Path, file: Path) -> list[bool]:
    """The oracle, picture by picture."""
    model = load_oracle(project / "host" / "oracle.npz")
    with np.load(file) as archive:
        images, labels = archive["images"], archive["labels"]
    x = ((images.astype(np.float64) - 120) / 60).astype(np.float32).transpose(0, 3, 1, 2)
    output = model.graph.output
    return [int(run_exact(model, p).values[output].argmax()) == n for p, n in zip(x, labels)]  # noqa: B905


def test_what_is_measured_is_what_the_oracle_says(trained: Trained, project: Path) -> None:
    report = json.loads((project / "report.json").read_text())
    jsonschema.validate(report, load_schema())
    accuracy = report["accuracy"]
    for part, file in ((accuracy, trained.search), (accuracy["holdout"], trained.holdout)):
        hits = slow_hits(project, file)
        assert part["samples"] == len(hits)
        assert part["measured"] == pytest.approx(100 * np.mean(hits))
        assert part["drop_pp"] == pytest.approx(part["float"] - part["measured"])
    assert report["met"]
    assert accuracy["drop_pp"] <= 12
    assert report["search"]["method"] == "measured"
    tried = report["search"]["table"]["finalists"]
    chosen = [[row["bases"], row["q"]] for row in report["layers"]]
    (own,) = [f for f in tried if f["in_sequence"] and counts_of(f) == chosen]
    assert own["kept"]
    assert own["drop_pp"] == pytest.approx(accuracy["drop_pp"], abs=1e-4)  # the same library
    assert own["cost"] == min(f["cost"] for f in tried if f["in_sequence"] and f["kept"])


def counts_of(finalist: dict[str, Any]) -> list[list[int]]:
    """[B, Q] by layer: each reads a tensor of its own here."""
    return [list(pair) for pair in zip(finalist["bases"], finalist["bits"], strict=True)]


def test_a_project_lists_its_files_and_times(project: Path) -> None:
    listed = (project / "manifest.txt").read_text().split()
    assert set(listed) == set(files_of(project)) - {"manifest.txt"} | {"timings.json"}
    timings = json.loads((project / "timings.json").read_text())
    assert {"decompose_s", "search_s", "build_s", "bench"} <= set(timings)
    assert 0 < timings["decompose_s"] < timings["total_s"]


def test_the_papers_search_and_its_tables(trained: Trained, tmp_path: Path) -> None:
    given = options_for(trained, tmp_path / "out", max_drop_pp=15.0, search="paper")
    report = bdcc.compile_model(trained.model, given).report.as_json()
    jsonschema.validate(report, load_schema())
    search, (first, second) = report["search"], report["layers"][:2]
    assert search["table"]["bits"] == [2, 3, 4, 5, 6, 7, 8]
    drops = search["table"]["A"]
    assert [np.shape(table) for table in drops] == [(1, 7), (7, 7)]
    assert search["evaluations"] == 1 + 7 + 49 + 1
    a, b = first["q"] - 2, second["q"] - 2
    assert first["predicted_drop_pp"] == pytest.approx(drops[0][0][a])
    assert second["predicted_drop_pp"] == pytest.approx(drops[1][a][b])
    total = first["predicted_drop_pp"] + second["predicted_drop_pp"]
    assert report["accuracy"]["predicted"] == pytest.approx(report["accuracy"]["float"] - total)


def test_two_compiles_are_equal_byte_for_byte(
    trained: Trained, project: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "er"
    given = options_for(trained, out, max_drop_pp=12.0, workers=1, cache="off")
    start = time.monotonic()
    result = bdcc.compile_model(trained.model, given)
    spent = time.monotonic() - start
    times = {k: v for k, v in result.timings.items() if k.endswith("_s") and k != "total_s"}
    assert {"search_s", "build_s", "verify_s"} <= set(times)
    assert sum(times.values()) <= result.timings["total_s"] <= spent
    assert result.timings["from_cache"] == result.timings["partly_from_cache"] == []
    assert differing(out, project) == []
    assert result.report.as_json() == json.loads((out / "report.json").read_text())
    assert (result.missed, result.project) == (None, out)


def test_the_holdout_is_never_chosen_by(trained: Trained, project: Path, tmp_path: Path) -> None:
    """Other pictures there change what is reported, and nothing else."""
    images, labels = draw_pictures(30, seed=33)
    np.savez(tmp_path / "other.npz", images=images, labels=labels)
    given = options_for(
        trained, tmp_path / "out", max_drop_pp=12.0, holdout=tmp_path / "other.npz", cache="off"
    )
    report = bdcc.compile_model(trained.model, given).report
    assert report.holdout_drop.samples == 30
    assert differing(tmp_path / "out", project) == ["report.html", "report.json"]


def test_a_cluster_makes_the_same_project(
    trained: Trained, project: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import distributed

    def transitions(scheduler: str) -> int:
        with distributed.Client(scheduler, set_as_default=False) as client:
            return client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)

    given = options_for(trained, tmp_path / "out", max_drop_pp=12.0, cache="off")
    with (
        running_scheduler(tmp_path_factory.mktemp("dask")) as scheduler,
        running_workers(scheduler) as workers,
    ):
        before = transitions(scheduler)
        bdcc.compile_model(trained.model, replace(given, workers=workers))
        assert transitions(scheduler) > before + 100  # it is not this process that has evaluated
    assert differing(tmp_path / "out", project) == []


def test_branches_are_searched_too(trained: Trained, tmp_path: Path) -> None:
    """A tensor with three readers, two of them layers; the project is verified on the way."""
    given = options_for(trained, tmp_path / "out", max_drop_pp=6.0)
    report = bdcc.compile_model(trained.branched, given).report
    assert report.met
    assert report.search_drop.drop_pp <= 6.0 < report.search_drop.float_percent - 50
    assert report.search_method == "measured"
    rows = {row.name: row for row in report.layers}
    assert list(rows) == ["stem", "one", "three", "fc3", "fc4"]
    assert rows["one"].q == rows["three"].q  # the bits of the tensor that both read
    assert {row.bases for row in report.layers} != {1}


def test_the_papers_search_on_branches_is_refused_before_anything_is_read(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("bdcc.pipeline.compile.gather")
    given = options_for(trained, tmp_path / "out", search="paper")
    with pytest.raises(OptionError, match="--search paper: needs a chain"):
        bdcc.compile_model(trained.branched, given)


def test_one_output_takes_given_bases_and_bits(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "one.onnx"
    write_model(model, np.random.default_rng(0).normal(0, 0.1, (97, 1)))
    given = options_for(
        trained, tmp_path / "out", data=None, calib=None, holdout=None, limit=10, metric=None
    )
    result = bdcc.compile_model(model, replace(given, bases=(2,), q=(4,)))
    assert (result.report.search_method, result.report.metric) == ("fixed", "top1")
    monkeypatch.delattr("bdcc.pipeline.compile.gather")
    with pytest.raises(OptionError, match="--metric: top1 takes a model of more than 1 output"):
        bdcc.compile_model(model, replace(given, output=tmp_path / "searched"))


def test_a_project_may_be_called_what_bdcc_calls_its_own(trained: Trained, tmp_path: Path) -> None:
    given = options_for(trained, tmp_path / "candidate0", bases=(2,), q=(4,), limit=20)
    assert bdcc.compile_model(trained.model, given).project == tmp_path / "candidate0"


def test_an_interrupted_run_goes_on(trained: Trained, project: Path, tmp_path: Path) -> None:
    """Killed at one stage after the other; the last finds what was finished, and ends the same."""
    cache = tmp_path / "cache"
    given = options_for(trained, tmp_path / "out", max_drop_pp=12.0, cache=cache, resume=True)
    ahead = ["verify", "measure the library", "tables of bits", "observe"]

    def interrupt(stage: str, done: int, total: int) -> None:
        if ahead and stage == ahead[-1] and done == total:
            ahead.pop()
            raise KeyboardInterrupt

    said: list[str] = []
    for _ in range(5):
        try:
            bdcc.compile_model(trained.model, given, progress=interrupt, say=said.append)
            break
        except KeyboardInterrupt:
            assert [p.name for p in tmp_path.iterdir()] == ["cache"]
    assert ahead == []
    assert "1 of 1 sensitivities" in said[0]
    assert "finalists" in said[0]
    assert differing(tmp_path / "out", project) == []


def test_another_tolerance_measures_no_table_again(
    trained: Trained, project: Path, tmp_path: Path
) -> None:
    busy: set[str] = set()

    def watch(stage: str, done: int, total: int) -> None:
        if done < total:
            busy.add(stage)

    given = options_for(trained, tmp_path / "out", max_drop_pp=20.0)
    timings = bdcc.compile_model(trained.model, given, progress=watch).timings
    assert timings["from_cache"] == ["float"]
    assert "search" in timings["partly_from_cache"]  # its tables, but not its finalists
    assert not {stage for stage in busy if stage.startswith(("pictures", "float", "tables"))}
    assert busy


def test_size_is_what_the_objective_size_makes_small(trained: Trained, tmp_path: Path) -> None:
    sizes = {}
    operations = {}
    for objective in ("ops", "size"):
        out = tmp_path / objective
        given = options_for(trained, out, max_drop_pp=6.0, objective=objective)
        report = bdcc.compile_model(trained.model, given).report
        sizes[objective] = report.weight_bytes
        operations[objective] = sum(row.bases * row.q * row.macs for row in report.layers)
    assert sizes["size"] < sizes["ops"]
    assert operations["ops"] < operations["size"]


def test_report_names_the_kernels_that_ram_has_room_for(trained: Trained, tmp_path: Path) -> None:
    given = options_for(
        trained, tmp_path / "out", bases=(3,), q=(5,), limit=20, target="generic", force=True
    )
    roomy = bdcc.compile_model(trained.model, given).report
    table = Path(tables.__file__).parents[1].joinpath("codegen", "cost_tables", "generic.json")
    tight = bdcc.compile_model(
        trained.model,
        replace(given, ram_bytes=roomy.arena_bytes - 1, cost_table=str(table)),
    ).report
    assert {**roomy.cost_table, "source": "file"} == tight.cost_table
    assert roomy.cost_table["source"] == "shipped"
    assert tight.arena_bytes < roomy.arena_bytes
    slower = [
        row.name
        for row, other in zip(tight.layers, roomy.layers, strict=True)
        if row.kernel != other.kernel
    ]
    assert slower
    note = f"--ram leaves no room for the fastest kernels of {', '.join(slower)}"
    assert set(tight.notes) - set(roomy.notes) == {note}
    assert tight.search_drop == roomy.search_drop  # the same bits


def test_the_search_stays_within_ram_where_fewer_bits_take_more(
    trained: Trained, tmp_path: Path
) -> None:
    """Tables of three bits are for six codes on AVX-512, of four for four: much smaller."""
    given = options_for(
        trained, tmp_path / "out", max_drop_pp=12.0, limit=20, force=True,
        target="x86-64-avx512", kernel="lut",
    )  # fmt: skip

    def arena(bits: int) -> int:
        return bdcc.compile_model(trained.model, replace(given, q=(bits,))).report.arena_bytes

    allowed = arena(4)
    assert arena(3) > allowed
    report = bdcc.compile_model(trained.model, replace(given, ram_bytes=allowed)).report
    assert report.arena_bytes <= allowed


def test_the_search_stays_within_flash(trained: Trained, project: Path, tmp_path: Path) -> None:
    free = json.loads((project / "report.json").read_text())
    allowed = free["size"]["weight_bytes"] - 1
    given = options_for(trained, tmp_path / "out", max_drop_pp=12.0, flash_bytes=allowed)
    report = bdcc.compile_model(trained.model, given).report.as_json()
    assert report["size"]["weight_bytes"] <= allowed


def test_warnings_of_repeated_pictures_and_of_a_tolerance_too_fine(
    trained: Trained, tmp_path: Path
) -> None:
    given = options_for(
        trained, tmp_path / "out", calib=trained.search, q=(8,), bases=(4,), max_drop_pp=0.1
    )
    report = bdcc.compile_model(trained.model, given).report
    repeated, tolerance = report.warnings
    assert repeated.startswith("200 of the 200 calibration pictures are also search pictures: ")
    drop = report.search_drop
    found = re.search(r"it would take about (\d+) pictures", tolerance)
    assert found is not None
    # With so many pictures two standard errors are just the tolerance.
    assert 2 * drop.error_pp * np.sqrt(200 / int(found[1])) == pytest.approx(0.1, rel=1e-3)


def test_float_mode_is_the_float_model(trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = options_for(trained, out, float_only=True, max_drop_pp=0.0)
    report = bdcc.compile_model(trained.model, given).report.as_json()
    jsonschema.validate(report, load_schema())
    assert report["accuracy"]["drop_pp"] == 0
    assert report["search"] == {"method": "none", "evaluations": 0, "table": None}
    assert all(row["q"] is None and row["kernel"] is None for row in report["layers"])
    images, _ = draw_pictures(1, seed=12)
    x = ((images[0].transpose(2, 0, 1) - 120.0) / 60.0).astype(np.float32)
    with bdcc.Library.open(out) as library:
        exact = run_float(bdcc.load_onnx(trained.model), x)
        assert np.array_equal(library.run(x), exact["y"])


@pytest.mark.parametrize("mode", ["minmax", "dynamic"])
def test_other_ranges_and_layers_kept_float(trained: Trained, tmp_path: Path, mode: Any) -> None:
    given = options_for(
        trained, tmp_path / "out", q=(5, 8, 6), bases=(6,), range=mode, keep_float=("conv1",)
    )
    report = bdcc.compile_model(trained.model, given).report.as_json()
    assert [row["q"] for row in report["layers"]] == [None, 5, 8, 6]
    assert [row["bases"] for row in report["layers"]] == [None, 6, 6, 6]
    hits = slow_hits(tmp_path / "out", trained.search)
    assert report["accuracy"]["measured"] == pytest.approx(100 * np.mean(hits))


def test_data_alone_is_shared_out(trained: Trained, tmp_path: Path) -> None:
    given = options_for(
        trained, tmp_path / "out", data=trained.folders, calib=None, holdout=None, q=(6,), limit=40
    )
    report = bdcc.compile_model(trained.model, given).report.as_json()
    accuracy = report["accuracy"]
    assert (accuracy["samples"], accuracy["calib_samples"]) == (40, 8)
    assert accuracy["holdout"]["samples"] == 20
    assert accuracy["judge"] == "labels"
    assert accuracy["estimated_drop_pp"] is None
    held = "of the pictures of --data 8 for calibration and 20 for the holdout are held back"
    assert held in report["notes"]
    text = (tmp_path / "out" / "src" / "model.c").read_text()
    assert "class07" in text


def test_unlabelled_pictures_are_judged_by_agreement(trained: Trained, tmp_path: Path) -> None:
    with np.load(trained.search) as archive:
        np.savez(tmp_path / "unlabelled.npz", images=archive["images"][:60])
    # One basis and two bits: coarse enough that some classes differ on any CPU, whatever it rounds.
    unlabelled = tmp_path / "unlabelled.npz"
    given = options_for(trained, tmp_path / "out", data=unlabelled, bases=(1,), q=(2,))
    accuracy = bdcc.compile_model(trained.model, given).report.as_json()["accuracy"]
    assert (accuracy["judge"], accuracy["float"], accuracy["samples"]) == ("agreement", 100.0, 60)
    assert accuracy["holdout"]["float"] == 100.0
    assert 50 < accuracy["measured"] < 100


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_without_pictures_the_estimate_decides(
    trained: Trained, tmp_path: Path, strict: bool, held: bool
) -> None:
    """Given bases and bits are judged by it too, and so is a holdout that is generated: the classes
    agree on all of these pictures, and what photographs will lose shows in the outputs alone.
    """
    given = options_for(
        trained,
        tmp_path / "out",
        data=None,
        calib=None,
        holdout=trained.holdout if held else None,
        bases=(6,),
        q=(8,),
        metric="top5",
        max_drop_pp=0.05,
        strict=strict,
    )
    result = bdcc.compile_model(trained.model, given)
    report = result.report.as_json()
    jsonschema.validate(report, load_schema())
    accuracy, holdout = report["accuracy"], report["accuracy"]["holdout"]
    assert accuracy["drop_pp"] == 0 < 0.05 < accuracy["estimated_drop_pp"]
    if held:
        assert holdout["estimated_drop_pp"] is None
    else:
        assert holdout["drop_pp"] == 0 < 0.05 < holdout["estimated_drop_pp"]
    assert not report["met"]
    assert "as estimated" in str(result.missed)
    assert not report["warnings"]


def test_strict_is_met_where_the_holdout_keeps_the_tolerance_too(
    trained: Trained, tmp_path: Path
) -> None:
    """A holdout of what the library gets wrong: what the exit code says is what the report says."""
    given = options_for(trained, tmp_path / "out", bases=(3,), q=(5,), max_drop_pp=20.0)
    bdcc.compile_model(trained.model, given)
    images, labels = draw_pictures(400, seed=21)
    x = ((images.transpose(0, 3, 1, 2) - 120.0) / 60.0).astype(np.float32)
    with bdcc.Library.open(tmp_path / "out") as library:
        wrong = library.run(x).reshape(400, -1).argmax(axis=1) != labels
    np.savez(tmp_path / "wrong.npz", images=images[wrong], labels=labels[wrong])
    given = replace(given, holdout=tmp_path / "wrong.npz", force=True)
    for strict in (False, True):
        result = bdcc.compile_model(trained.model, replace(given, strict=strict))
        assert result.report.search_drop.interval_pp[1] <= 20 < result.report.holdout_drop.drop_pp
        assert result.report.met == (result.missed is None) == (not strict)
    assert str(result.missed).startswith("the holdout pictures miss the tolerance of 20 points")


@pytest.mark.parametrize(("preset", "warned"), [("torchvision", False), ("unit", True)])
def test_a_better_preset_is_named(
    trained: Trained, tmp_path: Path, preset: str, warned: bool
) -> None:
    given = options_for(
        trained, tmp_path / "out", preset=preset, mean=None, std=None, float_only=True
    )
    report = bdcc.compile_model(trained.model, given).report
    assert any("--preset torchvision" in warning for warning in report.warnings) == warned


def test_a_failed_build_leaves_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFLAGS", "-fno-such-flag")  # the compiler itself works
    given = options_for(trained, tmp_path / "new" / "out", q=(4,))
    with pytest.raises(BuildError, match=r"C compiler .*no-such-flag") as caught:
        bdcc.compile_model(trained.model, given)
    assert "make -C" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_when_the_tolerance_counts_as_missed(trained: Trained, tmp_path: Path) -> None:
    given = options_for(trained, tmp_path / "out", float_only=True)
    report = bdcc.compile_model(trained.model, given).report
    yes, no = np.ones(50, bool), np.arange(50) < 40
    kept, broken = compare(yes, yes), compare(yes, no)
    missed = replace(report, met=False, search_drop=broken, search_method="fixed")
    assert find_missed(missed, given) is None
    assert "drops 20.00" in str(find_missed(missed, replace(given, max_drop_pp=1.0)))
    searched = replace(missed, search_method="measured")
    assert "drops 20.00" in str(find_missed(searched, given))
    guessed = replace(searched, search_drop=replace(broken, estimated_pp=30.0))
    assert "drops 30.00 as estimated" in str(find_missed(guessed, given))
    strict = replace(given, strict=True, max_drop_pp=25.0)
    assert "at most " in str(find_missed(replace(searched, max_drop_pp=25.0), strict))
    kept = replace(kept, interval_pp=(0.0, 0.0))
    held = replace(report, met=True, search_drop=kept, holdout_drop=broken)
    assert find_missed(held, given) is None
    assert "holdout" in str(find_missed(held, replace(given, strict=True)))
    guessed = replace(held, holdout_drop=replace(kept, estimated_pp=30.0))
    text = str(find_missed(guessed, replace(given, strict=True)))
    assert "holdout pictures miss the tolerance of 1 points: they drop 30.00 as estimated" in text
    assert find_missed(guessed, given) is None


def test_the_python_api_is_what_the_commands_do(trained: Trained, project: Path) -> None:
    report = json.loads((project / "report.json").read_text())
    opened = bdcc.open_project(project)
    found = bdcc.evaluate_project(
        opened, trained.holdout, classes=None, limit=0, threads=2, progress=None
    )
    assert found["top1"] == report["accuracy"]["holdout"]["measured"]
    assert len(bdcc.classify(opened, trained.picture, model=None)["top"]) == 5
    assert bdcc.bench(project, rounds=1).min_ms > 0
    assert bdcc.verify(project, images=np.zeros((0, 3, 12, 12), np.float32)).steps
    assert all(callable(getattr(bdcc, name)) for name in bdcc.__all__)
