# SPDX-License-Identifier: 0BSD
"""A sweep as a table: for programs (CSV), on a terminal, and as one self-contained page.

All take the object that sweep.json holds (pipeline/sweep.py makes it); equal objects give equal
bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from bdcc.codegen.escape import element
from bdcc.report.html import page
from bdcc.report.html import table as html_table
from bdcc.report.sweep_figure import METRICS, draw_panel
from bdcc.report.text import JUDGES, size, table

SCHEMA_VERSION = 1
# ms: milliseconds of one inference, one thread; accuracies and drops in per cent and percentage
# points; mean_bq: B * Q averaged over the conv MACs.
COLUMNS = (
    *("series", "D", "bases", "q", "kernel", "ms_min", "ms_median", "predicted", "measured"),
    *("drop_pp", "drop_low", "drop_high", "holdout_measured", "holdout_drop_pp"),
    *("float", "holdout_float", "mean_bq", "weight_bytes", "met"),
)
SERIES = {"fixed": "fixed Q", "paper": "paper's search", "bdcc": "bdcc"}


def sweep_csv(sweep: Mapping[str, Any]) -> str:
    """One line per point. Values of several layers are joined by slashes; what there is not (D of
    fixed bits, predictions where there are none for these pictures) is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in sweep["points"]:
        writer.writerow(_plain(point[column]) for column in COLUMNS)
    return out.getvalue()


def _plain(value: Any) -> Any:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.10g}"
        case list():
            return "/".join(str(one) for one in value)
        case _:
            return value


def sweep_text(sweep: Mapping[str, Any]) -> str:
    """The points, and the float model's accuracy, on a terminal."""
    return f"{table(*_table(sweep), left=1)}\n\n{_judged(sweep)}"


def sweep_html(sweep: Mapping[str, Any]) -> str:
    """One page with both pictures, all points, and the commands that make them."""
    star = (
        "A star is what the search predicted before it measured. "
        if any(point["predicted"] is not None for point in sweep["points"])
        else ""
    )
    lines = [*sweep["notes"], *(f"Warning: {line}" for line in sweep["warnings"])]
    return page(
        f"{sweep['model']['name']}: time against accuracy",
        element(
            "p",
            f"{_judged(sweep)} Times: medians of one inference of the emitted C, one thread "
            f"({sweep['isa']}), over {sweep['turns']} turns in which every project ran once. "
            f"{star}An open marker is a tolerance that was missed.",
        ),
        draw_panel(sweep, "search"),
        draw_panel(sweep, "holdout"),
        html_table(*_table(sweep)),
        element("ul", *(element("li", line) for line in lines)),
        element("h2", "To reproduce"),
        element("pre", sweep["command"]),
        element("p", "Each point alone:"),
        *(element("pre", point["command"]) for point in sweep["points"]),
        style="pre { white-space: pre-wrap; overflow-wrap: anywhere; }\n",
    )


def _judged(sweep: Mapping[str, Any]) -> str:
    return (
        f"{METRICS[sweep['metric']]} accuracy, {JUDGES[sweep['judge']]}; float model "
        f"{sweep['float']:.2f} % on {sweep['samples']} search pictures, "
        f"{sweep['holdout_float']:.2f} % on {sweep['holdout_samples']} held back."
    )


def _table(sweep: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    def number(value: float | None, form: str = ".2f") -> str:
        return "-" if value is None else format(value, form)

    digits = 2 if all(point["ms_median"] >= 0.1 for point in sweep["points"]) else 5
    rows = [
        [
            SERIES[point["series"]],
            number(point["D"], "g"),
            _short(point["bases"]),
            _short(point["q"]),
            _short(point["kernel"]),
            number(point["ms_median"], f".{digits}f"),
            number(point["predicted"]),
            number(point["measured"]),
            f"{point['drop_pp']:.2f} [{point['drop_low']:.2f}, {point['drop_high']:.2f}]",
            number(point["holdout_measured"]),
            number(point["holdout_drop_pp"]),
            number(point["mean_bq"], ".1f"),
            size(point["weight_bytes"]),
            {None: "-", True: "met", False: "missed"}[point["met"]],
        ]
        for point in sweep["points"]
    ]
    header = (
        *("series", "D", "B", "Q", "kernel", "ms", "predicted %", "measured %", "drop [95 %]"),
        *("holdout %", "drop", "mean BQ", "weights", "D is"),
    )
    return header, rows


def _short(values: Sequence[Any]) -> str:
    """One value where all layers have the same."""
    found = values[:1] if len(set(values)) == 1 else values
    return "/".join(str(value) for value in found) or "-"
