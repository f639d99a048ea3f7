# SPDX-License-Identifier: 0BSD
"""report.html: the report as one self-contained page with two figures, the same bytes for the same
report.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bdcc.report.report import is_bound, predicted_loss
from bdcc.report.text import JUDGES, many, size

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .8em; text-align: right; }
th { border-bottom: 1px solid #888; }
td:first-child, th:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
.missed, .warning { color: #a00; }
"""
BLUE, ORANGE = "#2f6db5", "#d9772b"


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report.json object."""
    accuracy, sizes = report["accuracy"], report["size"]
    title = html.escape(report["model"]["name"])
    met = "met" if report["met"] else '<span class="missed">missed</span>'
    share = 100 * sizes["weight_bytes"] / sizes["float_weight_bytes"]
    loss = predicted_loss(report)
    facts = [
        ("judged by", f"{accuracy['metric']}, {JUDGES[accuracy['judge']]}"),
        ("float", f"{accuracy['float']:.2f} % on {accuracy['samples']} pictures"),
        ("decomposed", f"{accuracy['decomposed']:.2f} %"),
        *(
            [
                (
                    "predicted",
                    f"{accuracy['predicted']:.2f} %"
                    if loss is None
                    else f"{loss:.2f} points lost on photographs",
                )
            ]
            if accuracy["predicted"] is not None
            else []
        ),
        *(
            [("estimated", f"{accuracy['estimated_drop_pp']:.2f} points lost on photographs")]
            if accuracy.get("estimated_drop_pp") is not None
            else []
        ),
        ("measured", _measured(accuracy)),
        (
            "holdout",
            f"{_measured(accuracy['holdout'])}, float {accuracy['holdout']['float']:.2f} %",
        ),
        (
            "tolerance",
            f"{report['max_drop_pp']:g} points: {met}"
            if is_bound(report["search"]["method"], report["options"])
            else "not asked for",
        ),
        ("weights", f"{size(sizes['weight_bytes'])}, {share:.1f} % of float"),
        ("arena", size(sizes["arena_bytes"])),
        *(
            [("flash, RAM", f"{size(sizes['flash_bytes'])}, {size(sizes['ram_bytes'])}")]
            if sizes.get("flash_bytes") is not None
            else []
        ),
    ]
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f"<title>bdcc: {title}</title>",
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        *(f'<p class="warning">Warning: {html.escape(line)}</p>' for line in report["warnings"]),
        _rows([(name, value) for name, value in facts]),
        _layers(report["layers"]),
        svg_figure(lambda figure: _draw_bits(figure, report["layers"])),
        *([_boards(report["boards"])] if report["boards"] else []),
    ]
    search = report["search"]
    if search["table"] is not None:
        parts.append(f"<h2>Search ({search['method']}, {search['evaluations']} evaluations)</h2>")
        if "A" in search["table"]:  # the joint search has no tables of neighbours
            parts.append(svg_figure(lambda figure: _draw_drops(figure, search["table"])))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report["notes"])
    return "\n".join((*parts, f"<ul>{notes}</ul></body></html>\n"))


def _measured(part: Mapping[str, Any]) -> str:
    low, high = part["drop_interval_pp"]
    return f"{part['measured']:.2f} %, drop {part['drop_pp']:.2f} [{low:.2f}, {high:.2f}]"


def _rows(rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>"


def _layers(layers: list[Mapping[str, Any]]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("layer", "op", "B", "Q", "MACs", "bytes", "error")
    )
    body = ""
    for row in layers:
        error = row["weight_error"]
        cells = (
            html.escape(row["name"]),
            row["op"],
            "-" if row["bases"] is None else str(row["bases"]),
            "float" if row["q"] is None else str(row["q"]),
            many(row["macs"]),
            size(row["weight_bytes"]),
            "-" if error is None else f"{error:.2%}",
        )
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _boards(boards: list[Mapping[str, Any]]) -> str:
    names = ("target", "core", "MHz", "ms, one thread", "costs", "memory")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = ""
    for board in boards:
        cells = (
            board["target"],
            board["core"],
            str(board["clock_mhz"]),
            f"{board['ms']:.4g}",
            "modelled" if board["modelled"] else "measured",
            "fits" if board["fits"] else "too small",
        )
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return (
        "<h2>Boards</h2><p>Estimates; input, pools, normalisations and Softmax are left out.</p>"
        f"<table><tr>{head}</tr>{body}</table>"
    )


def svg_figure(draw: Callable[[Figure], None], *, size: tuple[float, float] = (8, 3)) -> str:
    """SVG text of size inches; ids come from a fixed salt and nothing says when or by what it was
    drawn, so that equal figures are equal bytes.
    """
    with mpl.rc_context({"svg.hashsalt": "bdcc", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=unsaid)
    text = out.getvalue()
    return text[text.index("<svg") :]


def _draw_bits(figure: Figure, layers: list[Mapping[str, Any]]) -> None:
    """Activation bits and share of the MACs of each layer."""
    axes = figure.subplots()
    place = np.arange(len(layers))
    total = sum(row["macs"] for row in layers)
    axes.bar(place - 0.2, [row["q"] or 0 for row in layers], 0.4, color=BLUE)
    axes.set_xticks(place, [row["name"] for row in layers], rotation=30 if len(layers) > 8 else 0)
    axes.set_ylabel("activation bits Q", color=BLUE)
    axes.set_ylim(0, 8.5)
    right = axes.twinx()
    shares = [100 * row["macs"] / total for row in layers]
    right.bar(place + 0.2, shares, 0.4, color=ORANGE)
    right.set_ylabel("% of the MACs", color=ORANGE)


def _draw_drops(figure: Figure, table: Mapping[str, Any]) -> None:
    """The tables A: what each layer loses at so many bits, given those of the layer before."""
    tables = [np.array(one, np.float64) for one in table["A"]]
    high = max((float(np.abs(one).max()) for one in tables if one.size), default=1.0) or 1.0
    count = max(len(tables), 1)
    axes = np.atleast_1d(figure.subplots(1, count))
    image = None
    for panel, one, names in zip(axes, tables, table["layers"], strict=False):
        image = panel.imshow(one, cmap="RdBu_r", vmin=-high, vmax=high, aspect="auto")
        panel.set_title(names[0], fontsize=9)
        panel.set_xticks(range(len(table["bits"])), table["bits"], fontsize=7)
        rows = table["bits"] if len(one) > 1 else ["any"]
        panel.set_yticks(range(len(one)), rows, fontsize=7)
        panel.set_xlabel("Q", fontsize=8)
    axes[0].set_ylabel("Q of the layer before", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="points lost")
