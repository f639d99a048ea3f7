# SPDX-License-Identifier: 0BSD
from __future__ import annotations

from typing import Any

import pytest
from nets import miniature_squeezenet
from test_options import graph, options

from bdcc.errors import OptionError
from bdcc.ir.graph import Graph
from bdcc.pipeline.options import choose_layers
from bdcc.pipeline.searching import check_search


def check(model: Graph, metric: str, **given: Any) -> None:
    chosen = options(**given)
    check_search(model, choose_layers(model, chosen), chosen, metric=metric)


@pytest.mark.parametrize(
    ("outputs", "metric", "given", "message"),
    [
        (1, "top1", {}, "--metric: top1 takes a model of more than 1 output .* Give --bases"),
        (5, "top5", {}, "--metric: top5 .* more than 5 outputs .* has 5: .* Use --metric top1, or"),
        (3, "top5", {"q": (8,)}, "--metric: top5 .* has 3: "),
        (3, "top5", {"bases": (2,)}, "--metric: top5 .* has 3: "),
        (3, "top5", {"search": "paper"}, "--metric: top5 .* has 3: "),
    ],
)
def test_a_metric_that_nothing_fails_is_nothing_to_search_by(
    outputs: int, metric: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=f"^{message}") as caught:
        check(graph(outputs=outputs), metric, **given)
    assert "\n" not in str(caught.value)


def test_what_searches_nothing_takes_any_metric() -> None:
    for outputs, metric in ((1, "top1"), (5, "top5")):
        check(graph(outputs=outputs), metric, bases=(2,), q=(4,))
        check(graph(outputs=outputs), metric, search="paper", q=(4,))
        check(graph(outputs=outputs), metric, float_only=True)
        check(graph(outputs=outputs + 1), metric)


def test_the_papers_search_needs_a_chain() -> None:
    check(graph(), "top1", search="paper")
    with pytest.raises(OptionError, match=r"^--search paper: .*branches\. Use --search measured"):
        check(miniature_squeezenet(), "top1", search="paper")
    check(miniature_squeezenet(), "top1", search="paper", q=(4,))
    check(miniature_squeezenet(), "top1")
