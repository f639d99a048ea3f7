# SPDX-License-Identifier: 0BSD
"""report.html: the report as one self-contained page with two figures, the same bytes for the same
report.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from warnings import catch_warnings, filterwarnings

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bdcc.codegen.escape import Html, element, html
from bdcc.errors import one_line
from bdcc.report.report import is_bound, predicted_loss
from bdcc.report.text import JUDGES, many, size

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .2em .8em; text-align: right; }
th { border-bottom: 1px solid #888; }
td:first-child, th:first-child { text-align: left; }
td, h1, li, p { overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; }
.missed, .warning { color: #a00; }
"""
PANELS = 8  # tables side by side
LABEL_MOST = 24  # characters of a name in a figure
LITERAL: Mapping[str, Any] = {"parse_math": False}  # a $ is a $
BLUE, ORANGE = "#2f6db5", "#d9772b"


def render_html(report: Mapping[str, Any]) -> str:
    """The page of a report.json object."""
    accuracy, sizes, search = report["accuracy"], report["size"], report["search"]
    met = "met" if report["met"] else element("span", "missed", kind="missed")
    share = 100 * sizes["weight_bytes"] / sizes["float_weight_bytes"]
    loss = predicted_loss(report)
    facts: list[tuple[str, str]] = [
        ("judged by", f"{accuracy['metric']}, {JUDGES[accuracy['judge']]}"),
        ("float", f"{accuracy['float']:.2f} % on {accuracy['samples']} pictures"),
        ("decomposed", f"{accuracy['decomposed']:.2f} %"),
    ]
    if loss is not None:
        facts.append(("predicted", f"{loss:.2f} points lost on photographs"))
    elif accuracy["predicted"] is not None:
        facts.append(("predicted", f"{accuracy['predicted']:.2f} %"))
    if accuracy.get("estimated_drop_pp") is not None:
        estimated = f"{accuracy['estimated_drop_pp']:.2f} points lost on photographs"
        facts.append(("estimated", estimated))
    holdout = accuracy["holdout"]
    facts += [
        ("measured", _measured(accuracy)),
        ("holdout", f"{_measured(holdout)}, float {holdout['float']:.2f} %"),
        (
            "tolerance",
            Html(f"{report['max_drop_pp']:g} points: {html(met)}")
            if is_bound(search["method"], report["options"])
            else "not asked for",
        ),
        ("weights", f"{size(sizes['weight_bytes'])}, {share:.1f} % of float"),
        ("arena", size(sizes["arena_bytes"])),
    ]
    if sizes.get("flash_bytes") is not None:
        both = f"{size(sizes['flash_bytes'])}, {size(sizes['ram_bytes'])}"
        facts.append(("flash, RAM", both))
    parts = [
        *(element("p", f"Warning: {line}", kind="warning") for line in report["warnings"]),
        element("table", *(_row("td", name, value) for name, value in facts)),
        _layers(report["layers"]),
        svg_figure(lambda figure: _draw_bits(figure, report["layers"])),
        *([_boards(report["boards"])] if report["boards"] else []),
    ]
    if search["table"] is not None:
        how = f"Search ({search['method']}, {search['evaluations']} evaluations)"
        parts.append(element("h2", how))
        if "A" in search["table"]:  # the joint search has no tables of neighbours
            rows = -(-len(search["table"]["A"]) // PANELS) or 1
            drops = svg_figure(
                lambda figure: _draw_drops(figure, search["table"], rows), size=(8, 3 * rows)
            )
            parts.append(drops)
    parts.append(element("ul", *(element("li", note) for note in report["notes"])))
    return page(report["model"]["name"], *parts)


def page(title: str, *body: str, style: str = "") -> Html:
    """A whole page, with its title on top; whatever is no Html becomes a text."""
    head = element("title", f"bdcc: {title}") + element("style", Html(STYLE + style))
    lines = (element("h1", title), *body)
    return Html(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{head}</head><body>\n'
        + "\n".join(map(html, lines))
        + "\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    return element("table", _row("th", *header), *(_row("td", *row) for row in rows))


def _row(cell: str, *cells: str) -> Html:
    return element("tr", *(element(cell, one) for one in cells))


def _measured(part: Mapping[str, Any]) -> str:
    low, high = part["drop_interval_pp"]
    return f"{part['measured']:.2f} %, drop {part['drop_pp']:.2f} [{low:.2f}, {high:.2f}]"


def _layers(layers: Sequence[Mapping[str, Any]]) -> Html:
    rows = []
    for row in layers:
        error = row["weight_error"]
        rows.append(
            (
                row["name"],
                row["op"],
                "-" if row["bases"] is None else str(row["bases"]),
                "float" if row["q"] is None else str(row["q"]),
                many(row["macs"]),
                size(row["weight_bytes"]),
                "-" if error is None else f"{error:.2%}",
            )
        )
    return table(("layer", "op", "B", "Q", "MACs", "bytes", "error"), rows)


def _boards(boards: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        (
            board["target"],
            board["core"],
            str(board["clock_mhz"]),
            f"{board['ms']:.4g}",
            "modelled" if board["modelled"] else "measured",
            "fits" if board["fits"] else "too small",
        )
        for board in boards
    ]
    unsaid = "Estimates; input, pools, normalisations and Softmax are left out."
    header = ("target", "core", "MHz", "ms, one thread", "costs", "memory")
    return Html(element("h2", "Boards") + element("p", unsaid) + table(header, rows))


def svg_figure(draw: Callable[[Figure], None], *, size: tuple[float, float] = (8, 3)) -> Html:
    """SVG text of size inches; ids come from a fixed salt and nothing says when or by what it was
    drawn, so that equal figures are equal bytes.
    """
    with mpl.rc_context({"svg.hashsalt": "bdcc", "svg.fonttype": "none"}), catch_warnings():
        # Letters stay letters, and whoever shows them has the fonts.
        filterwarnings("ignore", "Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        out = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=unsaid)
    text = out.getvalue()
    return Html(text[text.index("<svg") :])


def label(text: str) -> str:
    """A name as a figure has room for it; its Text takes `**LITERAL` with it."""
    return one_line(text, most=LABEL_MOST)


def _draw_bits(figure: Figure, layers: Sequence[Mapping[str, Any]]) -> None:
    """Activation bits and share of the MACs of each layer."""
    axes = figure.subplots()
    place = np.arange(len(layers))
    total = sum(row["macs"] for row in layers)
    axes.bar(place - 0.2, [row["q"] or 0 for row in layers], 0.4, color=BLUE)
    turn = 30 if len(layers) > 8 else 0
    axes.set_xticks(place, [label(row["name"]) for row in layers], rotation=turn, **LITERAL)
    axes.set_ylabel("activation bits Q", color=BLUE)
    axes.set_ylim(0, 8.5)
    right = axes.twinx()
    shares = [100 * row["macs"] / total for row in layers]
    right.bar(place + 0.2, shares, 0.4, color=ORANGE)
    right.set_ylabel("% of the MACs", color=ORANGE)


def _draw_drops(figure: Figure, table: Mapping[str, Any], rows: int) -> None:
    """The tables A: what each layer loses at so many bits, given those of the layer before."""
    tables = [np.array(one, np.float64) for one in table["A"]]
    found = [one[np.isfinite(one)] for one in tables]
    high = max((float(np.abs(one).max()) for one in found if one.size), default=1.0) or 1.0
    across = min(max(len(tables), 1), PANELS)
    axes = figure.subplots(rows, across, squeeze=False).reshape(-1)
    for empty in axes[max(len(tables), 1) :]:
        empty.set_axis_off()
    image = None
    for panel, one, names in zip(axes, tables, table["layers"], strict=False):
        image = panel.imshow(one, cmap="RdBu_r", vmin=-high, vmax=high, aspect="auto")
        panel.set_title(label(names[0]), fontsize=9, **LITERAL)
        panel.set_xticks(range(len(table["bits"])), table["bits"], fontsize=7)
        before = table["bits"] if len(one) > 1 else ["any"]
        panel.set_yticks(range(len(one)), before, fontsize=7)
        panel.set_xlabel("Q", fontsize=8)
    axes[0].set_ylabel("Q of the layer before", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="points lost")
