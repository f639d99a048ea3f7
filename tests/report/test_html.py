# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from copy import deepcopy
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from test_report import example

from bdcc.errors import one_line
from bdcc.report.html import render_html
from bdcc.report.text import layer_table
from hostile import HOSTILE


def searched(layers: int) -> dict[str, Any]:
    report = deepcopy(example().as_json())
    rng = np.random.default_rng(0)
    report["search"]["table"] = {
        "layers": [[f"conv{i}"] for i in range(layers)],
        "bits": [2, 3, 4],
        "A": [rng.normal(0, 2, (1 if i == 0 else 3, 3)).tolist() for i in range(layers)],
    }
    return report


class Text(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.open = "", []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href") or value.startswith("#"), value

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("layers", [0, 1, 3, 8, 9, 40])
def test_the_page_shows_the_report(layers: int) -> None:
    report = searched(layers)
    report["model"]["name"] = "a<b>.onnx"
    page = Text(render_html(report))
    for part in ("a<b>.onnx", "60.00 %", "57.00 %", "missed", "Warning: careful", "1.23%"):
        assert part in page.text
    assert page.open.count("svg") == 2


def test_a_prediction_of_photographs_is_no_accuracy_on_generated_pictures() -> None:
    report = searched(2)
    assert "58.50 %" in Text(render_html(report)).text
    report["accuracy"]["judge"], report["search"]["method"] = "generated", "measured"
    shown = Text(render_html(report)).text
    assert "1.50 points lost on photographs" in shown
    assert "58.50 %" not in shown


def test_without_a_search_there_is_one_figure() -> None:
    report = example().as_json()
    report["search"] = {"method": "fixed", "evaluations": 0, "table": None}
    assert Text(render_html(report)).open.count("svg") == 1


def test_the_page_is_repeatable_and_its_figures_are_xml() -> None:
    page = render_html(searched(2))
    assert page == render_html(searched(2))
    for piece in page.split("<svg")[1:]:
        ET.fromstring("<svg" + piece[: piece.index("</svg>")] + "</svg>")


def test_names_of_any_kind_are_texts() -> None:
    """Neither tags nor formulas nor warnings (which are errors here), whatever a font lacks."""
    report = searched(2)
    report["layers"] = [{**report["layers"][0], "name": name} for name in HOSTILE]
    report["search"]["table"]["layers"] = [["$$"], ["\\frac{ 模型 \x1b<b>"]]
    report["model"]["name"] = HOSTILE[0]
    report["notes"] = report["warnings"] = list(HOSTILE)
    plain = Text(render_html(searched(2)))
    page = Text(render_html(report))
    assert set(page.open) == set(plain.open) | {"ul", "li", "p"}
    for name in HOSTILE:
        assert one_line(name) in page.text
    assert "\x1b" not in page.text
    for piece in render_html(report).split("<svg")[1:]:
        ET.fromstring("<svg" + piece[: piece.index("</svg>")] + "</svg>")


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 3e38, 1e-45])
def test_figures_of_any_size_are_drawn(odd: float) -> None:
    report = searched(2)
    report["search"]["table"]["A"][0][0][0] = odd
    report["layers"][0]["weight_error"] = odd
    report["layers"][0]["predicted_drop_pp"] = odd
    report["accuracy"]["estimated_drop_pp"] = odd
    assert Text(render_html(report)).open.count("svg") == 2
    assert layer_table(report)
