# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import csv
import io
import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from test_html import Text

from bdcc.report.sweep import COLUMNS, sweep_csv, sweep_html, sweep_text
from bdcc.report.sweep_figure import draw_sweep

SVG = "{http://www.w3.org/2000/svg}"


def point(series: str, drop: float | None, bits: int, ms: float, measured: float) -> dict[str, Any]:
    name = f"fixed-q{bits}" if drop is None else f"{series}-D{drop:g}"
    return {
        **{"name": name, "series": series, "D": drop, "layers": ["a", "b"]},
        **{"bases": [6, 6], "q": [bits, bits], "kernel": ["popcount", "popcount"]},
        **{"ms_min": ms * 0.9, "ms_median": ms, "measured": measured},
        "predicted": None if drop is None else measured + 0.5,
        **{"drop_pp": 68.0 - measured, "drop_low": 67.0 - measured, "drop_high": 69.0 - measured},
        **{"holdout_measured": measured - 1.25, "holdout_drop_pp": 69.0 - measured},
        **{"float": 68.0, "holdout_float": 67.75, "mean_bq": 6.0 * bits, "weight_bytes": 1234},
        "met": None if drop is None else 68.0 - measured <= drop,
        "command": f"bdcc compile 'a<b>.onnx' -o {name}",
    }


def example() -> dict[str, Any]:
    """Two tolerances with one choice, one that is missed, and fixed bits that ruin the model."""
    return {
        **{"schema": 1, "model": {"name": "a<b>.onnx"}, "judge": "labels", "metric": "top5"},
        **{"samples": 2000, "float": 68.0, "holdout_samples": 900, "holdout_float": 67.75},
        **{"isa": "avx2", "turns": 9, "command": "bdcc sweep 'a<b>.onnx' -o x"},
        **{"notes": ["a note"], "warnings": ["careful"]},
        "points": [
            *(point("fixed", None, q, 5.0 * q, a) for q, a in ((2, 3.0), (3, 60.0), (4, 66.0))),
            *(point("paper", d, 3, ms, a) for d, ms, a in ((1.0, 14.0, 65.0), (4.0, 13.0, 64.0))),
            *(point("bdcc", d, 3, ms, a) for d, ms, a in ((0.5, 7.0, 67.5), (4.0, 5.0, 65.0))),
            point("bdcc", 5.0, 3, 5.0, 65.0),
        ],
    }


def markers(svg: str) -> dict[str, tuple[float, float]]:
    """Where each marker lies in the picture, by its group's id."""
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if re.match("(search|holdout)-.*-(measured|predicted|below)$", group.get("id", "")):
            (use,) = group.iter(f"{SVG}use")
            found[group.get("id", "")] = float(use.get("x", "")), float(use.get("y", ""))
    return found


def check_places(svg: str, points: list[dict[str, Any]]) -> None:
    """x is linear in the logarithm of the time, y in the accuracy, in each of the panels."""
    places = markers(svg)
    for part, column in (("search", "measured"), ("holdout", "holdout_measured")):
        want, got = [], []
        for one in points:
            kinds = {"measured": one[column]}
            if part == "search" and one["predicted"] not in (None, ""):
                kinds["predicted"] = one["predicted"]
            for kind, accuracy in kinds.items():
                place = places.pop(f"{part}-{one['name']}-{kind}", None)
                if place is None:  # too far below
                    assert places.pop(f"{part}-{one['name']}-below")
                    continue
                want.append((math.log(float(one["ms_median"])), float(accuracy)))
                got.append(place)
        for axis, sign in ((0, 1), (1, -1)):
            x, y = (np.array(one)[:, axis] for one in (want, got))
            slope, offset = np.polyfit(x, y, 1)
            assert sign * slope > 0
            assert np.abs(slope * x + offset - y).max() < 0.01
    assert places == {}


def test_markers_lie_where_the_figures_are() -> None:
    sweep = example()
    svg = draw_sweep(sweep)
    check_places(svg, sweep["points"])
    found = markers(svg)
    assert {name for name in found if name.endswith("below")} == {
        "search-fixed-q2-below",
        "holdout-fixed-q2-below",
    }


def test_labels_name_the_points() -> None:
    texts = [
        "".join(one.itertext()) for one in ET.fromstring(draw_sweep(example())).iter(f"{SVG}text")
    ]
    labels = [text for text in texts if re.match("[QD]=", text)]
    assert sorted(labels) == sorted(
        ["Q=2 (3.0 %)", "Q=2 (1.8 %)", *["Q=3", "Q=4", "D=1", "D=4", "D=0.5", "D=4,5"] * 2]
    )


def test_three_tolerances_in_a_row_share_a_label() -> None:
    sweep = example()
    sweep["points"].append(point("bdcc", 6.0, 3, 5.0, 65.0))
    assert "D=4..6" in draw_sweep(sweep)


def test_equal_sweeps_are_equal_bytes() -> None:
    assert draw_sweep(example()) == draw_sweep(example())
    assert sweep_html(example()) == sweep_html(example())
    assert not re.search("Matplotlib|dc:date", draw_sweep(example()))


def test_csv_has_a_line_per_point() -> None:
    sweep = example()
    rows = list(csv.DictReader(io.StringIO(sweep_csv(sweep))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["q"] for row in rows[:3]] == ["2/2", "3/3", "4/4"]
    assert [row["met"] for row in rows] == ["", "", "", "no", "yes", "yes", "yes", "yes"]
    for row, one in zip(rows, sweep["points"], strict=True):
        for column in ("D", "ms_min", "ms_median", "predicted", "measured", "drop_low", "mean_bq"):
            assert (float(row[column]) if row[column] else None) == pytest.approx(one[column])


def test_the_page_is_complete_and_refers_to_nothing() -> None:
    sweep = example()
    page = sweep_html(sweep)
    shown = Text(page)  # fails at a src or href that is not inside the page
    assert shown.open.count("svg") == 2
    assert shown.open.count("tr") == 1 + len(sweep["points"])
    for part in ("a<b>.onnx", "a note", "Warning: careful", sweep["command"]):
        assert part in shown.text
    for one in sweep["points"]:
        assert one["command"] in shown.text
    assert not {"script", "link", "img", "iframe"} & set(shown.open)
    assert not re.search(r"@import|url\((?!#)", page)


def test_without_predictions_there_is_no_star() -> None:
    sweep = example()
    assert "A star is" in sweep_html(sweep)
    for one in sweep["points"]:
        one["predicted"] = None
    assert "A star is" not in sweep_html(sweep)
    assert "predicted" not in draw_sweep(sweep)


def test_the_table_names_what_is_missed() -> None:
    lines = sweep_text(example()).splitlines()
    assert [line.split()[-1] for line in lines[2:10]] == ["-"] * 3 + ["missed"] + ["met"] * 4
