# SPDX-License-Identifier: 0BSD
"""What a sweep keeps in its folder, so that an interrupted one goes on: rows, times, projects."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import bdcc
from bdcc.approx.workers import sources_digest
from bdcc.codegen.targets import changes_of, find_target
from bdcc.errors import OutputError
from bdcc.files import PART, TEMPORARY_NAME, check_folder, sweep, sweep_parts, writing
from bdcc.pipeline.cache import emission_digest
from bdcc.pipeline.options import CompileOptions
from bdcc.pipeline.output import check_output
from bdcc.pipeline.tables import find_cost_table
from bdcc.records import check, read_record
from bdcc.report.report import write_json
from bdcc.report.sweep import SERIES
from bdcc.report.sweep_figure import METRICS
from bdcc.report.text import JUDGES

TEXT, MAYBE = {"type": "string"}, {"type": ["number", "null"]}
NUMBER = {"type": "number", "minimum": -1e18, "maximum": 1e18}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**48}
TEXTS, COUNTS = ({"type": "array", "items": one} for one in (TEXT, COUNT))
TIME = {**NUMBER, "minimum": 0}
# A point's row (pipeline/sweep.py).
ROW_FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("name", "fingerprint"), TEXT),
    "series": {"enum": list(SERIES)},
    "judge": {"enum": list(JUDGES)},
    "metric": {"enum": list(METRICS)},
    **dict.fromkeys(("layers", "kernel", "warnings"), TEXTS),
    **dict.fromkeys(("bases", "q"), COUNTS),
    **dict.fromkeys(("D", "predicted", "mean_bq"), MAYBE),
    **dict.fromkeys(("ms_min", "ms_median"), TIME),
    **dict.fromkeys(("measured", "drop_pp", "drop_low", "drop_high"), NUMBER),
    **dict.fromkeys(("holdout_measured", "holdout_drop_pp", "float", "holdout_float"), NUMBER),
    **dict.fromkeys(("weight_bytes", "samples", "holdout_samples"), COUNT),
    "met": {"type": ["boolean", "null"]},
}
ROW = {"type": "object", "required": list(ROW_FIELDS), "properties": ROW_FIELDS}
TURN = {
    "type": "object",
    "additionalProperties": {"type": "array", "minItems": 2, "maxItems": 2, "items": TIME},
}
TIMES = {
    "type": "object",
    "required": ["isa", "turns"],
    "properties": {"isa": TEXT, "turns": {"type": "array", "minItems": 1, "items": TURN}},
}
WRITTEN = ("sweep.json", "sweep.csv", "sweep.svg", "sweep.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """turns: of each, by fingerprint, the least and the median milliseconds of one inference."""

    isa: str
    turns: tuple[Mapping[str, tuple[float, float]], ...] = ()

    def of(self, fingerprint: str) -> dict[str, float]:
        """The least of all turns, and the median of their medians."""
        least, medians = zip(*(turn[fingerprint] for turn in self.turns), strict=True)
        return {"ms_min": min(least), "ms_median": round(median(medians), 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFolder:
    """The results, points/NAME.json (the rows), points/times.json, and projects/NAME while they are
    needed.
    """

    root: Path

    @property
    def points(self) -> Path:
        return self.root / "points"

    @property
    def projects(self) -> Path:
        return self.root / "projects"

    def open(self, keys: Mapping[str, str], *, force: bool) -> None:
        """Raises OutputError if it cannot be written, holds what is not a sweep's, or, without
        force, points that are not what `keys` says of their names; with force these are removed.
        """
        with writing(self.root):
            check_folder(self.root)
            self._refuse_others()
            sweep_parts(self.points)
        kept = {name: self._kept(name) for name in keys}
        stale = [name for name, one in kept.items() if one and one["key"] != keys[name]]
        if stale and not force:
            raise OutputError(
                f"holds a sweep of another model, data, options or bdcc ('{stale[0]}')",
                layer=str(self.root),
                hint="Add --force to replace it, or choose another folder",
            )
        for name in stale:
            (self.points / f"{name}.json").unlink()
            shutil.rmtree(self.projects / name, ignore_errors=True)

    def _refuse_others(self) -> None:
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise OutputError("is a file, not a folder", layer=str(self.root))
        for path in sorted(self.root.iterdir()):
            match path.name:
                case "points" if path.is_dir():
                    known = (".json", PART)
                    others = [one for one in sorted(path.iterdir()) if one.suffix not in known]
                case "projects" if path.is_dir():
                    for project in sorted(path.iterdir()):
                        if TEMPORARY_NAME.fullmatch(project.name):  # of a killed compilation
                            sweep(project)
                        else:
                            check_output(project, force=True)
                    continue
                case _:
                    ours = path.name in WRITTEN or path.suffix == PART
                    others = [] if ours else [path]
            if others:
                raise OutputError(
                    f"'{others[0].relative_to(self.root)}' was not written by a sweep",
                    layer=str(self.root),
                    hint="Move it away, or choose another folder",
                )

    def read_row(self, name: str, key: str) -> dict[str, Any] | None:
        """The row of a point, None unless it is there and has that key."""
        found: dict[str, Any] | None = self._read(name, key, ROW)
        return found

    def write_row(self, name: str, key: str, row: Mapping[str, Any]) -> None:
        self._write(name, key, row)

    def read_times(self, key: str, marks: Collection[str]) -> Times | None:
        """Of the projects with these fingerprints."""
        found = self._read("times", key, TIMES)
        if found is None or any(turn.keys() != set(marks) for turn in found["turns"]):
            return None
        turns = ({mark: (a, b) for mark, (a, b) in turn.items()} for turn in found["turns"])
        return Times(isa=found["isa"], turns=tuple(turns))

    def write_times(self, key: str, times: Times) -> None:
        turns = [{mark: list(one) for mark, one in turn.items()} for turn in times.turns]
        self._write("times", key, {"isa": times.isa, "turns": turns})

    def _read(self, name: str, key: str, schema: Mapping[str, Any]) -> Any:
        """None where it is not there, has another key, or is damaged."""
        record = self._kept(name)
        if record is None or record["key"] != key:
            return None
        try:
            check(record["value"], schema)
        except ValueError:
            return None
        return record["value"]

    def _kept(self, name: str) -> Mapping[str, Any] | None:
        """What `_write` wrote, None where it is not there or is damaged."""
        kept = {"type": "object", "required": ["key", "value"]}
        try:
            record: Mapping[str, Any] = read_record(self.points / f"{name}.json", kept)
        except (OSError, ValueError):
            return None
        return record

    def _write(self, name: str, key: str, value: Mapping[str, Any]) -> None:
        with writing(self.points):
            self.points.mkdir(parents=True, exist_ok=True)
        write_json({"key": key, "value": value}, self.points / f"{name}.json")

    def clear_projects(self, names: Sequence[str], *, keep: bool) -> None:
        """Removes the points' projects, or what was built of them when they are to be kept."""
        for name in names:
            project = self.projects / name
            shutil.rmtree(project / "build" if keep else project, ignore_errors=True)
        if self.projects.is_dir() and not any(self.projects.iterdir()):
            self.projects.rmdir()


def point_key(model_sha256: str, options: CompileOptions) -> str:
    """Of all that a point depends on: the model, the options, the files that they name, what
    kernels cost, and bdcc's own sources.
    """
    places = (options.data, options.calib, options.holdout, options.classes)
    files = [None if place is None else _stamp(place) for place in places]
    sources = [sources_digest(), emission_digest()]
    target = find_target(options.target)
    costs = find_cost_table(target, options.cost_table, cache=options.cache_folder).sha256
    versions = [bdcc.__version__, *sources, costs, changes_of(target)]
    return digest([*versions, model_sha256, options.as_json(), files])


def _stamp(place: Path) -> str:
    """Names, sizes and dates of a file or of all files in a folder."""
    found = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    states = [(path, path.stat()) for path in found]
    return digest([[str(path.relative_to(place)), s.st_size, s.st_mtime_ns] for path, s in states])


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
