# SPDX-License-Identifier: 0BSD
"""What a compilation found, as report.json (schema 1) has it: decisions and accuracies, never times
or places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.files import write_text

SCHEMA_VERSION = 1
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """A weight layer; bases, q, kernel, kernel_us, weight_error and predicted_drop_pp are None
    where it stayed float.

    op: ONNX's name; macs: of one inference; kernel_us: what each kernel family would take by the
    cost table, in microseconds; weight_error: |w - w_hat|^2 / |w|^2.
    """

    name: str
    op: str
    bases: int | None
    q: int | None
    macs: int
    weight_bytes: int
    kernel: str | None
    kernel_us: Mapping[str, float] | None
    weight_error: float | None
    predicted_drop_pp: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Accuracy of the float model and of the built library on the same pictures, in per cent.

    error_pp: standard error of the drop; interval_pp: its 95 % interval; estimated_pp: what
    photographs will lose, where the pictures are generated and cannot tell.
    """

    samples: int
    float_percent: float
    measured: float
    drop_pp: float
    error_pp: float
    interval_pp: tuple[float, float]
    estimated_pp: float | None = None

    def decisive_pp(self, *, strict: bool = False) -> float:
        """What a tolerance is held against: the estimate where there is one, else the drop, or the
        upper end of its interval.
        """
        if self.estimated_pp is not None:
            return self.estimated_pp
        return self.interval_pp[1] if strict else self.drop_pp

    def as_json(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "float": self.float_percent,
            "measured": self.measured,
            "drop_pp": self.drop_pp,
            "drop_interval_pp": list(self.interval_pp),
            "estimated_drop_pp": self.estimated_pp,
        }


def percent(hits: Hits) -> float:
    """Share of true entries, in per cent; 0 decimals are lost for up to 10^8 pictures."""
    return round(100.0 * int(hits.sum()) / len(hits), 6)


def compare(float_hits: Hits, measured_hits: Hits) -> Drop:
    """The drop from the same pictures' hits, bool [N] each, with a paired interval.

    b pictures were lost and c won; the interval is that of the difference of paired shares with
    half a picture added to each of the four cells (Agresti and Min, 2005), which stays honest when
    b and c are 0.
    """
    samples = len(float_hits)
    lost = int((float_hits & ~measured_hits).sum()) + 0.5
    won = int((~float_hits & measured_hits).sum()) + 0.5
    count = samples + 2
    centre = (lost - won) / count
    error = math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    low, high = (100 * (centre + sign * 1.959964 * error) for sign in (-1, 1))
    return Drop(
        samples=samples,
        float_percent=percent(float_hits),
        measured=percent(measured_hits),
        drop_pp=round(100.0 * (int(float_hits.sum()) - int(measured_hits.sum())) / samples, 6),
        error_pp=round(100 * error, 4),
        interval_pp=(round(max(low, -100.0), 4), round(min(high, 100.0), 4)),
    )


def is_bound(method: str, options: Mapping[str, Any]) -> bool:
    """Whether the tolerance counts: a search always keeps one, given bits only one that was given.

    method: as in Report.search_method; options: as in Report.options.
    """
    if method in ("measured", "paper"):
        return True
    return options.get("max_drop_pp") is not None or bool(options.get("strict"))


def predicted_loss(report: Mapping[str, Any]) -> float | None:
    """Percentage points that photographs were predicted to lose, of a report.json object whose
    measured accuracy is of generated pictures: the prediction is not on its scale then. None where
    the two can be compared, or nothing was predicted. (The paper's search predicts on the pictures
    that it has.)
    """
    accuracy = report["accuracy"]
    if accuracy["judge"] != "generated" or report["search"]["method"] != "measured":
        return None
    return float(accuracy["float"] - accuracy["predicted"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of report.json. model_sha256: of the ONNX file; judge: labels, agreement or generated;
    accuracies in per cent.

    met: as the exit code says it, so with --strict the holdout counts; decomposed: with the chosen
    weights and float activations; predicted: fixed before the choice was measured, None where
    nothing was searched; code_bytes: beside the weights; flash_bytes, ram_bytes, stack_bytes: on
    bare metal, weights and code, arena and handle and stack, the stack of it. target_changes: the
    fields in which a target of the user's differs from `target`, by name. target, options,
    cost_table (which one: instruction set, machine, SHA-256, source: shipped, measured or a file),
    preprocess, search, boards (what the project would take on each: bdcc/codegen/boards.py): JSON
    values.
    """

    bdcc_version: str
    fingerprint: str
    target: str
    target_changes: Mapping[str, Any]
    model_name: str
    model_sha256: str
    options: Mapping[str, Any]
    cost_table: Mapping[str, str]
    preprocess: Mapping[str, Any]
    max_drop_pp: float
    met: bool
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    layers: tuple[LayerRow, ...]
    boards: tuple[Mapping[str, Any], ...] = ()
    judge: str
    metric: str
    decomposed: float
    predicted: float | None
    search_drop: Drop
    holdout_drop: Drop
    calib_samples: int
    weight_bytes: int
    float_weight_bytes: int
    arena_bytes: int
    code_bytes: int | None
    flash_bytes: int | None
    ram_bytes: int | None
    stack_bytes: int | None
    search_method: str
    evaluations: int
    table: Any

    def as_json(self) -> dict[str, Any]:
        """The object that report.json holds."""
        search = self.search_drop.as_json()
        found = {
            "schema": SCHEMA_VERSION,
            "bdcc_version": self.bdcc_version,
            "fingerprint": self.fingerprint,
            "target": self.target,
            "target_changes": dict(self.target_changes),
            "model": {"name": self.model_name, "sha256": self.model_sha256},
            "options": dict(self.options),
            "cost_table": dict(self.cost_table),
            "preprocess": dict(self.preprocess),
            "max_drop_pp": self.max_drop_pp,
            "met": self.met,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "layers": [asdict(layer) for layer in self.layers],
            "boards": [dict(board) for board in self.boards],
            "accuracy": {
                "judge": self.judge,
                "metric": self.metric,
                "samples": search.pop("samples"),
                "float": search.pop("float"),
                "decomposed": self.decomposed,
                "predicted": self.predicted,
                **search,
                "calib_samples": self.calib_samples,
                "holdout": self.holdout_drop.as_json(),
            },
            "size": {
                "weight_bytes": self.weight_bytes,
                "float_weight_bytes": self.float_weight_bytes,
                "arena_bytes": self.arena_bytes,
                "code_bytes": self.code_bytes,
                "flash_bytes": self.flash_bytes,
                "ram_bytes": self.ram_bytes,
                "stack_bytes": self.stack_bytes,
            },
            "search": {
                "method": self.search_method,
                "evaluations": self.evaluations,
                "table": self.table,
            },
        }
        return {key: _finite(value) for key, value in found.items()}


def write_json(value: Mapping[str, Any], file: Path) -> None:
    """Raises OutputError as write_file does."""
    write_text(file, dump_json(value))


def dump_json(value: Mapping[str, Any]) -> str:
    """Indented where a person looks, the innermost lists on one line. JSON knows neither NaN nor
    infinity: they become null.
    """
    return _dump(_finite(value), 0) + "\n"


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
    return value


def _dump(value: Any, depth: int) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(flat) + 2 * depth <= 100:
        return flat
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_dump(item, depth + 1)}" for key, item in value.items()]
    else:
        items = [_dump(item, depth + 1) for item in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    pad = "  " * (depth + 1)
    return f"{left}\n{pad}" + f",\n{pad}".join(items) + f"\n{pad[2:]}{right}"


def read_report(project: Path) -> dict[str, Any]:
    """report.json of a project. Raises ValueError (with OSError's text) when there is none or it is
    damaged.
    """
    try:
        report = json.loads((project / "report.json").read_text("utf-8"))
    except OSError as error:
        raise ValueError(str(error.strerror)) from None
    if not isinstance(report, dict) or report.get("schema") != SCHEMA_VERSION:
        raise ValueError(f"it is not of schema {SCHEMA_VERSION}")
    return report


def load_schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    schema: dict[str, Any] = json.loads((files(__package__) / "schema.json").read_text("utf-8"))
    return schema
