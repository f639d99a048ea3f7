# SPDX-License-Identifier: 0BSD
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdcc.approx.tables import SEARCHED_BITS
from bdcc.errors import OptionError
from bdcc.ir.graph import Conv, Dense, Flatten, Graph, make_graph
from bdcc.pipeline.options import (
    CONV_BASES,
    DENSE_BASES,
    CompileOptions,
    choose_layers,
    default_metric,
)


def options(**given: Any) -> CompileOptions:
    return CompileOptions(output=Path("out"), **given)


def graph(*, convs: int = 2, dense: int = 2, outputs: int = 4) -> Graph:
    nodes: list[Any] = []
    tensor = "x"
    for i in range(convs):
        weight = np.ones((2, 2, 1, 1), np.float32)
        bias = np.zeros(2, np.float32)
        nodes.append(Conv(name=f"c{i}", input=tensor, output=f"t{i}", weight=weight, bias=bias))
        tensor = f"t{i}"
    nodes.append(Flatten(name="flat", input=tensor, output="v"))
    tensor, width = "v", 2
    for i in range(dense):
        count = outputs if i == dense - 1 else 3
        weight = np.ones((count, width), np.float32)
        nodes.append(
            Dense(
                name=f"d{i}",
                input=tensor,
                output=f"u{i}",
                weight=weight,
                bias=np.zeros(count, np.float32),
            )
        )
        tensor, width = f"u{i}", count
    return make_graph(name="g", input_name="x", input_shape=(2, 1, 1), output=tensor, nodes=nodes)


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"max_drop_pp": -0.5}, "--D"),
        ({"max_drop_pp": float("nan")}, "--D"),
        ({"max_drop_pp": float("inf")}, "--D"),
        ({"q": (9,)}, "--q"),
        ({"q": (0,)}, "--q"),
        ({"q": (4, 4, 9)}, "--q"),
        ({"bases": (8,)}, "--bases"),
        ({"bases": (0,)}, "--bases"),
        ({"bases": ()}, "--bases"),
        ({"limit": -1}, "--limit"),
        ({"seed": -1}, "--seed"),
        ({"workers": 0}, "--workers"),
        ({"workers": "two"}, "--workers"),
        ({"workers": "dask:"}, "--workers"),
        ({"decompose": "good"}, "--decompose"),
        ({"kernel": "fast"}, "--kernel"),
        ({"range": "wide"}, "--range"),
        ({"search": "random"}, "--search"),
        ({"objective": "beauty"}, "--objective"),
        ({"metric": "top2"}, "--metric"),
        ({"flash_bytes": 0}, "--flash"),
        ({"ram_bytes": -4}, "--ram"),
        ({"max_memory": 0}, "--max-memory"),
        ({"float_only": True, "keep_float": ("c0",)}, "--float"),
        ({"float_only": True, "q": (8,)}, "--float"),
        ({"float_only": True, "bases": (2,)}, "--float"),
        ({"name": ""}, "--name"),
        ({"name": "  "}, "--name"),
    ],
)
def test_refuses_in_one_line(given: dict[str, Any], where: str) -> None:
    with pytest.raises(OptionError, match=f"^{where}: ") as caught:
        options(**given)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_one_value_is_for_the_convs_and_dense_layers_follow() -> None:
    layers = choose_layers(graph(), options(bases=(3,), q=(5,)))
    assert layers.fixed_bases == {"c0": 3, "c1": 3, "d0": 3, "d1": 3}
    assert layers.fixed_bits == {"c0": 5, "c1": 5, "d0": 8, "d1": 8}


def test_one_value_per_conv() -> None:
    layers = choose_layers(graph(), options(bases=(3, 2), q=(5, 6)))
    assert layers.fixed_bases == {"c0": 3, "c1": 2, "d0": 2, "d1": 2}
    assert layers.fixed_bits == {"c0": 5, "c1": 6, "d0": 8, "d1": 8}


def test_one_value_per_decomposed_layer() -> None:
    layers = choose_layers(graph(), options(bases=(1, 2, 3, 4), q=(5, 6, 7, 8)))
    assert layers.fixed_bases == {"c0": 1, "c1": 2, "d0": 3, "d1": 4}
    assert layers.fixed_bits == {"c0": 5, "c1": 6, "d0": 7, "d1": 8}


def test_layers_kept_float_do_not_count() -> None:
    layers = choose_layers(graph(), options(bases=(1, 2, 3), keep_float=("c1",)))
    assert layers.fixed_bases == {"c0": 1, "d0": 2, "d1": 3}
    assert layers.convs == ("c0",)
    assert choose_layers(graph(), options(float_only=True)).names == ()


def test_without_convs_one_value_is_for_every_layer() -> None:
    assert choose_layers(graph(convs=0), options(q=(3,))).fixed_bits == {"d0": 3, "d1": 3}


def test_auto_bases_and_bits_are_searched() -> None:
    layers = choose_layers(graph(), options())
    assert (layers.names, layers.convs) == (("c0", "c1", "d0", "d1"), ("c0", "c1"))
    assert (layers.fixed_bases, layers.fixed_bits) == (None, None)
    assert layers.bases_choices == {
        **dict.fromkeys(("c0", "c1"), CONV_BASES),
        **dict.fromkeys(("d0", "d1"), DENSE_BASES),
    }
    assert layers.bits_choices(graph()) == dict.fromkeys(("x", "t0", "v", "u0"), SEARCHED_BITS)


def test_what_is_given_is_not_searched() -> None:
    layers = choose_layers(graph(), options(bases=(3,)))
    assert set(layers.bases_choices.values()) == {(3,)}
    assert set(layers.bits_choices(graph()).values()) == {SEARCHED_BITS}
    layers = choose_layers(graph(), options(q=(5,), keep_float=("c1",)))
    assert list(layers.bases_choices) == ["c0", "d0", "d1"]
    assert layers.bits_choices(graph()) == {"x": (5,), "v": (8,), "u0": (8,)}


def test_the_papers_search_keeps_its_ways() -> None:
    paper = options(search="paper")
    layers = choose_layers(graph(), paper)
    assert set((layers.fixed_bases or {}).values()) == {4}
    assert layers.fixed_bits is None
    assert layers.dense_bits == {"d0": 8, "d1": 8}
    given = choose_layers(graph(), options(search="paper", q=(6,)))
    assert set((given.fixed_bases or {}).values()) == {4}
    assert (paper.method, options().method) == ("plain", "aware")
    assert options(search="paper", decompose="aware").method == "aware"
    assert options(decompose="plain").method == "plain"


@pytest.mark.parametrize("count", [3, 5])
def test_a_list_of_the_wrong_length_names_what_fits(count: int) -> None:
    with pytest.raises(OptionError, match=f"{count} values; this model takes 1 or 2 or 4"):
        choose_layers(graph(), options(q=(4,) * count))


def test_an_unknown_layer_is_refused_with_the_list() -> None:
    with pytest.raises(OptionError, match="no layer 'conv9'; the layers are c0, c1, d0, d1"):
        choose_layers(graph(), options(keep_float=("conv9",)))


def test_metric_follows_the_number_of_outputs() -> None:
    assert default_metric(graph(outputs=19)) == "top1"
    assert default_metric(graph(outputs=20)) == "top5"


def test_the_record_has_no_paths_of_the_machine() -> None:
    record = options(
        data=Path("/home/somebody/pictures"), cache=Path("/tmp/c"), workers=3
    ).as_json()
    assert record["data"] == "pictures"
    assert not {"output", "cache", "workers"} & set(record)
