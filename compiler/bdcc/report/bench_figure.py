# SPDX-License-Identifier: 0BSD
"""The picture of `bdcc bench`: the systems that were timed, and the layers against their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdcc.report.html import BLUE, LITERAL, ORANGE, label, svg_figure

GRAY = "#aaaaaa"


def draw_bench(result: Mapping[str, Any]) -> str:
    """SVG text: the systems that were timed, the weight layers; equal for equal figures."""
    systems = [one for one in result["systems"] if one["problem"] is None] or [
        {"name": f"bdcc {result['isa']}", **result}
    ]
    layers = [step for step in result["steps"] if step["speed"] is not None]
    rows = [len(systems), *([len(layers)] if layers else [])]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=rows)[:, 0]
        _draw_systems(panels[0], systems)
        if layers:
            _draw_layers(panels[1], layers)

    return svg_figure(draw, size=(8.0, 1.2 * len(rows) + 0.35 * sum(rows)))


def _draw_systems(axes: Axes, systems: Sequence[Mapping[str, Any]]) -> None:
    place = range(len(systems))
    bars = axes.barh(
        place,
        [one["min_ms"] for one in systems],
        color=[ORANGE if one["name"].startswith("bdcc") else BLUE for one in systems],
    )
    axes.set_yticks(place, [_name(one) for one in systems], **LITERAL)
    axes.bar_label(bars, [f"{one['min_ms']:.3g}" for one in systems], padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(one["min_ms"] for one in systems))
    axes.set_xlabel("one picture, ms (least)")


def _name(system: Mapping[str, Any]) -> str:
    count = system["threads"]
    return f"{label(system['name'])}, {count} thread{'s' if count > 1 else ''}"


def _draw_layers(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    """The part of each bar that the limit explains, and the rest."""
    place = range(len(layers))
    limits = [min(1.0, step["speed"]["share"]) * step["min_ms"] for step in layers]
    rest = [step["min_ms"] - limit for step, limit in zip(layers, limits, strict=True)]
    axes.barh(place, limits, color=ORANGE, label="what the core needs at least")
    bars = axes.barh(place, rest, left=limits, color=GRAY, label="the rest")
    axes.set_yticks(place, [label(step["layer"]) for step in layers], **LITERAL)
    labels = [
        f"{step['min_ms']:.3f}, {step['speed']['share']:.0%} of {step['speed']['limit']}"
        for step in layers
    ]
    axes.bar_label(bars, labels, padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(step["min_ms"] for step in layers))
    axes.set_xlabel("layer, ms (least)")
    axes.legend(loc="lower right", frameon=False)
