# SPDX-License-Identifier: 0BSD
"""The paper's figure for one model: time against accuracy, for fixed bits, for the paper's search,
and for what `compile_model` chooses, over a range of tolerances.

Every point is a compilation of its own. Its figures are kept as soon as they are known, so that an
interrupted sweep goes on where it was; times are taken at the end, all projects in turn.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bdcc
from bdcc.approx.model import MAX_BITS
from bdcc.approx.tables import SEARCHED_BITS, is_chain
from bdcc.data.pictures import Progress
from bdcc.errors import OptionError, one_line
from bdcc.files import write_text
from bdcc.host.bench import bench
from bdcc.host.build import build
from bdcc.host.limits import kernel_family
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.cache import open_cache
from bdcc.pipeline.commands import arguments_of, compile_command
from bdcc.pipeline.compile import CompileResult, compile_model
from bdcc.pipeline.options import CompileOptions
from bdcc.pipeline.reporting import draw_or_warn
from bdcc.pipeline.sweep_folder import SweepFolder, Times, digest, point_key
from bdcc.pipeline.tables import host_of
from bdcc.report.report import predicted_loss, write_json
from bdcc.report.sweep import SCHEMA_VERSION, sweep_csv, sweep_html
from bdcc.report.sweep_figure import draw_sweep

PAPER_SETTING_BASES = 6  # of the paper's own experiments
# What the paper's setting has in common with the user's: the question, and not the answer.
TAKEN_OVER = (
    *("data", "calib", "holdout", "classes", "limit", "metric", "seed"),
    *("preset", "mean", "std", "scale", "channels", "resize"),
    *("target", "cost_table", "workers", "cache", "max_memory"),
)
TURNS = 9  # in each of which every project is timed once
TURN_MS, ROUNDS = 250.0, (3, 100)  # how long that takes, and how many runs it is at least, at most
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """compile: those of bdcc's own points; its `output` is the sweep's folder, its max_drop_pp is
    not used; drops: the tolerances, percentage points; fixed_bits: of the points without a search;
    without_paper: neither those nor the paper's search; keep: leave the projects of all points.
    Raises OptionError.
    """

    compile: CompileOptions
    drops: tuple[float, ...]
    fixed_bits: tuple[int, ...] = SEARCHED_BITS
    without_paper: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.drops:
            raise OptionError("an empty list", layer="--D", hint="Give tolerances like 1,2,4")
        if host_of(self.compile.target) is not None:
            raise OptionError(
                "a sweep takes its times on this machine",
                layer="--target",
                hint="Name the board's target, and give --cost-table FILE of bdcc tune --ssh",
            )
        for drop in self.drops:
            replace(self.compile, max_drop_pp=drop)  # refuses what no compilation takes
        wrong = next((q for q in self.fixed_bits if not 1 <= q <= MAX_BITS), None)
        if wrong is not None:
            raise OptionError(f"{wrong} is outside 1..{MAX_BITS}", layer="--fixed-q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One compilation. series: fixed, paper or bdcc."""

    name: str
    series: str
    options: CompileOptions


def list_points(options: SweepOptions, *, chain: bool) -> tuple[Point, ...]:
    """All points, series by series. chain: whether the paper's search is there for the model."""
    own = replace(options.compile, force=True, resume=False)
    projects = options.compile.output / "projects"
    shared = {name: getattr(own, name) for name in TAKEN_OVER}
    paper = CompileOptions(
        output=projects,
        force=True,
        decompose="plain",
        bases=(PAPER_SETTING_BASES,),
        range="dynamic",
        **shared,
    )
    drops = sorted(set(options.drops))
    found: list[tuple[str, str, CompileOptions]] = []
    if not options.without_paper:
        found += [
            (f"fixed-q{q}", "fixed", replace(paper, q=(q,)))
            for q in sorted(set(options.fixed_bits))
        ]
        found += [
            (f"paper-D{drop:g}", "paper", replace(paper, search="paper", max_drop_pp=drop))
            for drop in drops
            if chain
        ]
    found += [(f"bdcc-D{drop:g}", "bdcc", replace(own, max_drop_pp=drop)) for drop in drops]
    return tuple(
        Point(name=name, series=series, options=replace(chosen, output=projects / name))
        for name, series, chosen in found
    )


def sweep(
    model: Path,
    options: SweepOptions,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> dict[str, Any]:
    """Compile every point, time all of them, and write sweep.json, .csv, .svg and .html into
    options.compile.output. Returns what sweep.json holds.

    progress, say: as for compile_model. Raises BdccError as it does; what was finished is kept then
    and found again. A missed tolerance is a point like any other.
    """
    graph = load_onnx(model, max_memory=options.compile.max_memory)
    chain = is_chain(graph)
    points = list_points(options, chain=chain)
    own = options.compile
    keys = {point.name: point_key(graph.sha256, point.options) for point in points}
    folder = SweepFolder(root=own.output)
    folder.open(keys, force=own.force)
    # "off": one for all points, as they share most work.
    with open_cache(own.cache, output=own.output) as cache:
        points = tuple(
            replace(point, options=replace(point.options, cache=cache.folder)) for point in points
        )
        rows = _compile_points(
            model, points, keys, folder, keep=options.keep, progress=progress, say=say or _nothing
        )
        timed = _time_points(
            model, points, keys, rows, folder, progress=progress, say=say or _nothing
        )
    result = {
        "schema": SCHEMA_VERSION,
        "bdcc_version": bdcc.__version__,
        "model": {"name": one_line(model.name), "sha256": graph.sha256},
        "target": own.target,
        **{key: rows[points[-1].name][key] for key in ("judge", "metric", "samples")},
        "float": rows[points[-1].name]["float"],
        "holdout_samples": rows[points[-1].name]["holdout_samples"],
        "holdout_float": rows[points[-1].name]["holdout_float"],
        "isa": timed.isa,
        "turns": TURNS,
        "command": sweep_command(model, options),
        "notes": _notes(options, chain=chain),
        "warnings": list(
            dict.fromkeys(w for point in points for w in rows[point.name]["warnings"])
        ),
        "points": [
            {
                **rows[point.name],
                **timed.of(rows[point.name]["fingerprint"]),
                "command": compile_command(model, point.options, output=Path(point.name)),
            }
            for point in points
        ],
    }
    drawn = {
        "sweep.svg": draw_or_warn(lambda: draw_sweep(result), name="sweep.svg"),
        "sweep.html": draw_or_warn(lambda: sweep_html(result), name="sweep.html"),
    }
    result["warnings"] += [warning for _, lacking in drawn.values() for warning in lacking]
    write_json(result, folder.root / "sweep.json")
    write_text(folder.root / "sweep.csv", sweep_csv(result))
    for name, (text, _) in drawn.items():
        if text is not None:
            write_text(folder.root / name, text)
    folder.clear_projects([point.name for point in points], keep=options.keep)
    return result


def _nothing(line: str) -> None:
    pass


def _notes(options: SweepOptions, *, chain: bool) -> list[str]:
    if options.without_paper:
        return ["without the paper's setting (--without-paper)"]
    setting = (
        f"the paper's setting: {PAPER_SETTING_BASES} bases by least squares on the weights, "
        "dynamic ranges, dense layers at 8 bits"
    )
    if chain:
        return [setting]
    return [
        setting,
        "the paper's search needs a chain of layers, and this model has branches: of the paper's "
        "setting there are only the points of fixed bits",
    ]


# --- the points -----------------------------------------------------------------------------------


def _compile_points(
    model: Path,
    points: Sequence[Point],
    keys: Mapping[str, str],
    folder: SweepFolder,
    *,
    keep: bool,
    progress: Progress | None,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """The row of every point by name, found or made."""
    rows: dict[str, dict[str, Any]] = {}
    for point in points:
        row = folder.read_row(point.name, keys[point.name])
        told = (point.name, point.series, point.options.max_drop_pp)
        if row is None or (row["name"], row["series"], row["D"]) != told:
            continue
        if not keep or point.options.output.is_dir():
            rows[point.name] = row
    if rows:
        say(f"found finished: {len(rows)} of {len(points)} points")
    # bdcc's own come first: bad options show before the paper's tables have taken their time.
    missing = [p for p in points if p.name not in rows]
    missing.sort(key=lambda point: ("bdcc", "fixed", "paper").index(point.series))
    began = time.monotonic()
    for done, point in enumerate(missing):
        left = (time.monotonic() - began) * (len(missing) - done) / max(done, 1)
        say(
            f"point {len(rows) + 1} of {len(points)}: {point.name}"
            + (f", about {left / 60:.0f} min left" if left >= 60 else "")
        )
        where = f"{len(rows) + 1}/{len(points)} {point.name}"
        row = _compile(model, point, progress=progress, say=say, where=where)
        if not keep and _held(folder, rows, row["fingerprint"]) is not None:
            shutil.rmtree(point.options.output)  # the same project, which is there already
        folder.write_row(point.name, keys[point.name], row)
        rows[point.name] = row
    return rows


def _compile(
    model: Path, point: Point, *, progress: Progress | None, say: Say, where: str
) -> dict[str, Any]:
    def around(stage: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"{where}: {stage}", done, total)

    return point_row(point, compile_model(model, point.options, progress=around, say=say))


def point_row(point: Point, result: CompileResult) -> dict[str, Any]:
    """What sweep.json keeps of a point: CSV's columns (report/sweep.py) and what tells points
    apart. bases, q, kernel: by conv layer, or by decomposed layer where no conv is decomposed.
    """
    report = result.report.as_json()
    accuracy, holdout = report["accuracy"], report["accuracy"]["holdout"]
    decomposed = [layer for layer in report["layers"] if layer["q"] is not None]
    layers = [layer for layer in decomposed if layer["op"] == "Conv"] or decomposed
    total = sum(layer["macs"] for layer in layers)
    operations = sum(layer["bases"] * layer["q"] * layer["macs"] for layer in layers)
    low, high = accuracy["drop_interval_pp"]
    return {
        "name": point.name,
        "series": point.series,
        "D": point.options.max_drop_pp,
        "layers": [layer["name"] for layer in layers],
        "bases": [layer["bases"] for layer in layers],
        "q": [layer["q"] for layer in layers],
        "kernel": [kernel_family(layer["kernel"]) for layer in layers],
        "ms_min": result.timings["bench"]["min_ms"],
        "ms_median": result.timings["bench"]["median_ms"],
        # Predicted for photographs and measured on generated pictures is no pair to look at.
        "predicted": accuracy["predicted"] if predicted_loss(report) is None else None,
        "measured": accuracy["measured"],
        "drop_pp": accuracy["drop_pp"],
        "drop_low": low,
        "drop_high": high,
        "holdout_measured": holdout["measured"],
        "holdout_drop_pp": holdout["drop_pp"],
        "float": accuracy["float"],
        "holdout_float": holdout["float"],
        "mean_bq": round(operations / total, 4) if total else None,
        "weight_bytes": report["size"]["weight_bytes"],
        "met": None if point.series == "fixed" else result.missed is None,
        "judge": accuracy["judge"],
        "metric": accuracy["metric"],
        "samples": accuracy["samples"],
        "holdout_samples": holdout["samples"],
        "fingerprint": report["fingerprint"],
        "warnings": report["warnings"],
    }


# --- times ----------------------------------------------------------------------------------------


def _time_points(
    model: Path,
    points: Sequence[Point],
    keys: Mapping[str, str],
    rows: Mapping[str, Mapping[str, Any]],
    folder: SweepFolder,
    *,
    progress: Progress | None,
    say: Say,
) -> Times:
    """Every distinct project, in turns, so that whatever else the machine does meets all of them.

    Turns that an interrupted sweep has finished count; they are void when the projects differ.
    """
    distinct = {rows[point.name]["fingerprint"]: point for point in reversed(points)}
    key = digest(sorted((mark, keys[point.name]) for mark, point in distinct.items()))
    times = folder.read_times(key, distinct) or Times(isa="")
    if len(times.turns) >= TURNS:
        return times
    projects: dict[str, tuple[Path, int]] = {}
    for number, (mark, point) in enumerate(distinct.items()):
        if progress is not None:
            progress("building all projects", number, len(distinct))
        held = _held(folder, rows, mark)
        if held is None:  # deleted when an earlier sweep, of fewer points, was finished
            where = f"{point.name} again, to be timed"
            _compile(model, point, progress=progress, say=say, where=where)
            held = point.options.output
        build(held)
        rounds = TURN_MS / max(rows[point.name]["ms_median"], 1e-6)
        projects[mark] = held, int(min(max(rounds, ROUNDS[0]), ROUNDS[1]))
    while len(times.turns) < TURNS:
        turn: dict[str, tuple[float, float]] = {}
        for mark, (project, rounds) in projects.items():
            if progress is not None:
                done = len(times.turns) * len(projects) + len(turn)
                progress("timing all projects", done, TURNS * len(projects))
            one = bench(project, rounds=rounds)
            turn[mark] = (one.min_ms, one.median_ms)
        times = Times(isa=one.isa, turns=(*times.turns, turn))
        folder.write_times(key, times)
    return times


def _held(folder: SweepFolder, rows: Mapping[str, Mapping[str, Any]], mark: str) -> Path | None:
    """The project of some point with that fingerprint, if one is there."""
    places = (folder.projects / name for name, row in rows.items() if row["fingerprint"] == mark)
    return next((place for place in places if place.is_dir()), None)


def sweep_command(model: Path, options: SweepOptions) -> str:
    """The `bdcc sweep` of these options, for a shell."""
    more = ["--D", ",".join(f"{drop:g}" for drop in options.drops)]
    if options.fixed_bits != SEARCHED_BITS:
        more += ["--fixed-q", ",".join(str(q) for q in options.fixed_bits)]
    more += ["--without-paper"] * options.without_paper
    own = arguments_of(replace(options.compile, max_drop_pp=None))
    output = str(options.compile.output)
    return shlex.join(["bdcc", "sweep", str(model), *more, *own, "-o", output])
