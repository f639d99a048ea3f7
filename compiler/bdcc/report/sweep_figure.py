# SPDX-License-Identifier: 0BSD
"""The picture of a sweep: milliseconds of one inference against accuracy.

Every marker is a group of its own in the SVG, with an id like search-paper-D4-measured, so that
programs find what people see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import cos, pi, sin
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter
from matplotlib.transforms import Bbox

from bdcc.codegen.escape import Html
from bdcc.errors import one_line
from bdcc.report.html import LITERAL, svg_figure

Part = Literal["search", "holdout"]
METRICS = {"top1": "top-1", "top5": "top-5"}
# Okabe and Ito's colours, which colour-blind people tell apart; the shapes differ as well.
LOOKS = {
    "fixed": ("#555555", "s", "fixed Q"),
    "paper": ("#d55e00", "^", "paper's search"),
    "bdcc": ("#0072b2", "o", "bdcc"),
}
KEYS = {"search": ("measured", "float"), "holdout": ("holdout_measured", "holdout_float")}
TITLES = {"search": "search pictures", "holdout": "pictures that no search saw"}
ROOM_PP = 12.0  # below the largest tolerance
FONT = 9.0
MARKER = 7.0  # points across
STAR = MarkerStyle((6, 2, 0))  # six rays: an asterisk
# Where a label may lie, in points from its marker: nearest first, and above rather than below.
ANGLES = (4, 12, 0, 8, 2, 6, 14, 10)  # sixteenths of a turn
PLACES = tuple(
    (radius * cos(angle * pi / 8), radius * sin(angle * pi / 8))
    for radius, angle in product((11.0, 16.0, 22.0, 30.0, 40.0, 52.0, 66.0), ANGLES)
)
LABEL: Mapping[str, Any] = {
    "textcoords": "offset points",
    "ha": "center",
    "va": "center",
    "fontsize": FONT - 1,
    "zorder": 3,  # over lines, under markers
}


def draw_sweep(sweep: Mapping[str, Any]) -> Html:
    """SVG text: the search pictures beside those held back, with one legend."""
    return svg_figure(lambda figure: _draw(figure, sweep, ("search", "holdout")), size=(12.0, 6.2))


def draw_panel(sweep: Mapping[str, Any], part: Part) -> Html:
    """SVG text of one of the two panels."""
    return svg_figure(lambda figure: _draw(figure, sweep, (part,)), size=(8.0, 5.4))


def _draw(figure: Figure, sweep: Mapping[str, Any], parts: Sequence[Part]) -> None:
    figure.set_dpi(72)  # SVG's: what is measured for the labels is what is written
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    figure.suptitle(one_line(sweep["model"]["name"], most=60), fontsize=FONT + 2, **LITERAL)
    for axes, part in zip(panels, parts, strict=True):
        _draw_points(axes, sweep, part)
    figure.legend(
        handles=list(_legend(sweep, parts)),
        loc="outside lower center",
        ncols=4,
        fontsize=FONT,
        frameon=False,
    )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are placed in the layout that was found
    for axes, part in zip(panels, parts, strict=True):
        _label(axes, sweep, part)


def _floor(sweep: Mapping[str, Any], part: Part) -> float:
    """The least accuracy that is drawn to scale. A choice that ruins the model would flatten all
    others; it lies on the lower edge, with its figure beside it.
    """
    most = max(point["D"] for point in sweep["points"] if point["D"] is not None)
    reference: float = sweep[KEYS[part][1]]
    return float(reference - most - ROOM_PP)


def _draw_points(axes: Axes, sweep: Mapping[str, Any], part: Part) -> None:
    points, (measured, float_) = sweep["points"], KEYS[part]
    floor = _floor(sweep, part)
    axes.axhline(sweep[float_], color="black", linestyle="--", linewidth=1, gid=f"{part}-float")
    for series, (color, shape, _) in LOOKS.items():
        own = sorted((p for p in points if p["series"] == series), key=lambda p: p["ms_median"])
        axes.plot(
            [p["ms_median"] for p in own],
            [max(p[measured], floor) for p in own],
            color=color,
            linewidth=0.8,
            alpha=0.5,
            zorder=2,
        )
        for point in own:
            missed, ms = point["met"] is False, point["ms_median"]
            predicted = point["predicted"] if part == "search" else None
            below = point[measured] < floor
            axes.plot(
                [ms],
                [max(point[measured], floor)],
                linestyle="none",
                marker="v" if below else shape,
                markersize=MARKER + 3 * missed,  # a ring around what is met by the same choice
                markerfacecolor="none" if missed else color,
                markeredgecolor=color,
                zorder=4,
                gid=f"{part}-{point['name']}-{'below' if below else 'measured'}",
            )
            if predicted is not None and predicted >= floor:
                axes.plot(
                    [ms, ms],
                    [predicted, max(point[measured], floor)],
                    color=color,
                    linewidth=0.8,
                    linestyle=":",
                )
                axes.plot(
                    [ms],
                    [predicted],
                    linestyle="none",
                    marker=STAR,
                    markersize=MARKER + 4,
                    markeredgecolor=color,
                    zorder=4,
                    gid=f"{part}-{point['name']}-predicted",
                )
    times = [point["ms_median"] for point in points]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.2, max(times) * 1.2)
    wide = max(times) > 3 * min(times)
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 5, 7)) if wide else MaxNLocator(6, steps=[1, 2, 5, 10])
    )
    axes.xaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.1)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONT)
    axes.set_title(TITLES[part], fontsize=FONT + 1)
    axes.set_xlabel("one inference, ms (log scale, one thread)", fontsize=FONT)
    axes.set_ylabel(f"{METRICS[sweep['metric']]} accuracy, %", fontsize=FONT)


def _legend(sweep: Mapping[str, Any], parts: Sequence[Part]) -> Iterator[Line2D]:
    points = sweep["points"]
    for series, (color, shape, name) in LOOKS.items():
        own = [point for point in points if point["series"] == series]
        if own:
            yield Line2D(
                [],
                [],
                color=color,
                marker=shape,
                markersize=MARKER,
                linewidth=0.8,
                label=f"{name}, measured",
            )
        if "search" in parts and any(point["predicted"] is not None for point in own):
            yield Line2D(
                [],
                [],
                color=color,
                marker=STAR,
                markersize=MARKER + 4,
                linestyle=":",
                linewidth=0.8,
                label=f"{name}, predicted",
            )
    if any(point["met"] is False for point in points):
        yield Line2D(
            [],
            [],
            color="#555555",
            marker="o",
            markersize=MARKER + 3,
            markerfacecolor="none",
            linestyle="none",
            label="open: D missed",
        )
    shares = " and ".join(f"{sweep[KEYS[part][1]]:.2f} %" for part in parts)
    yield Line2D([], [], color="black", linestyle="--", linewidth=1, label=f"float: {shares}")


# --- labels ---------------------------------------------------------------------------------------


def _label(axes: Axes, sweep: Mapping[str, Any], part: Part) -> None:
    """Writes Q or D beside the measured points, each where it covers no marker and no other label:
    the first such place, or the one that covers least.
    """
    points, (measured, _), floor = sweep["points"], KEYS[part], _floor(sweep, part)
    taken = [
        _around(axes, point["ms_median"], max(point[column], floor))
        for point in points
        for column in (measured, *(("predicted",) if part == "search" else ()))
        if point[column] is not None
    ]
    inside = axes.get_window_extent()
    for (series, ms, figure), names in _groups(points, measured).items():
        accuracy = max(figure, floor)
        if figure < floor:
            names += f" ({figure:.1f} %)"
        color = LOOKS[series][0]
        trial = axes.annotate(names, (ms, accuracy), (0, 0), **LABEL)
        box = trial.get_window_extent()
        trial.remove()

        def cost(at: tuple[float, float], box: Bbox = box) -> float:
            moved = box.translated(*at)
            outside = moved.width * moved.height - _overlap(moved, inside)
            return round(10 * outside + sum(_overlap(moved, other) for other in taken))

        # A label beside its marker has half its width to get out of the way.
        places = [(x + x / (abs(x) + abs(y)) * box.width / 2, y) for x, y in PLACES]
        best = min(places, key=cost)
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            names,
            (ms, accuracy),
            best,
            **LABEL,
            color=color,
            arrowprops=None if best in places[: len(ANGLES)] else leader,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.2},
        )
        taken.append(box.translated(*best))


def _around(axes: Axes, ms: float, accuracy: float) -> Bbox:
    x, y = axes.transData.transform((ms, accuracy))
    half = MARKER / 2 + 1
    return Bbox.from_extents(x - half, y - half, x + half, y + half)


def _overlap(one: Bbox, other: Bbox) -> float:
    """The area that both cover."""
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else float(common.width * common.height)


def _groups(
    points: Sequence[Mapping[str, Any]], measured: str
) -> dict[tuple[str, float, float], str]:
    """Labels by series and place: points in one place share theirs, and three or more tolerances in
    a row are written 2..8.
    """
    drops = sorted({point["D"] for point in points if point["D"] is not None})
    found: dict[tuple[str, float, float], list[str]] = {}
    runs: dict[tuple[str, float, float], list[list[int]]] = {}
    for point in points:
        place = (point["series"], point["ms_median"], point[measured])
        if point["D"] is None:
            bits = "/".join(str(q) for q in dict.fromkeys(point["q"]))
            found.setdefault(place, []).append(bits)
            continue
        index = drops.index(point["D"])
        own = runs.setdefault(place, [])
        if own and own[-1][-1] == index - 1:
            own[-1].append(index)
        else:
            own.append([index])
    for place, own in runs.items():
        for run in own:
            names = [f"{drops[index]:g}" for index in run]
            joined = [f"{names[0]}..{names[-1]}"] if len(names) > 2 else names
            found.setdefault(place, []).extend(joined)
    return {
        place: ("Q=" if place[0] == "fixed" else "D=") + ",".join(names)
        for place, names in found.items()
    }
