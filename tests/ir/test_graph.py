# SPDX-License-Identifier: 0BSD
"""Shapes, layout and pruning of a graph built in memory, against counting by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from bdcc.errors import ModelError
from bdcc.ir.graph import (
    Concat,
    Conv,
    Dense,
    Flatten,
    Graph,
    MaxPool,
    Relu,
    extent,
    macs,
    make_graph,
    reads,
)


def count_windows(
    size: int, kernel: int, stride: int, begin: int, end: int, dilation: int, *, ceil_mode: bool
) -> int:
    """Walk along the axis: windows inside the padded input, then one that reaches past its end."""
    span, count, start = dilation * (kernel - 1) + 1, 0, 0
    while start + span <= begin + size + end:
        count, start = count + 1, start + stride
    past = count > 0 and start - stride + span < begin + size + end
    return count + int(ceil_mode and past and start < begin + size)


def test_extent_counts_windows() -> None:
    edges = product(range(1, 9), (1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 3), (0, 1, 2), (1, 2))
    for size, kernel, stride, begin, end, dilation in edges:
        if end > dilation * (kernel - 1):
            continue  # a window of nothing but padding: refused at import
        for ceil_mode in (False, True):
            expected = count_windows(
                size, kernel, stride, begin, end, dilation, ceil_mode=ceil_mode
            )
            found = extent(
                size, kernel, stride, begin + end, dilation, ceil_mode=ceil_mode, begin=begin
            )
            assert found == expected, (size, kernel, stride, begin, end, dilation, ceil_mode)


def small_graph() -> Graph:
    weight = np.ones((6, 2, 3, 3), np.float32)
    conv = {"weight": weight, "bias": np.zeros(6, np.float32), "groups": 2}
    rows = np.ones((5, 24), np.float32)
    return make_graph(
        name="small",
        input_name="x",
        input_shape=(4, 6, 6),
        output="y",
        nodes=[
            Conv(name="conv", input="x", output="a", **conv),
            Relu(name="dead", input="a", output="unread"),
            MaxPool(name="pool", input="a", output="p", kernel=(2, 2), strides=(2, 2)),
            Flatten(name="flat", input="p", output="f"),
            Relu(name="relu", input="f", output="r"),
            Dense(name="fc", input="r", output="d", weight=rows, bias=np.zeros(5, np.float32)),
            Relu(name="last", input="d", output="y"),
        ],
    )


def test_a_join_reads_all_its_inputs() -> None:
    names = {"name": "n", "input": "x"}
    graph = make_graph(
        name="fork",
        input_name="x",
        input_shape=(3, 4, 5),
        output="z",
        nodes=[
            MaxPool(**names, output="a", kernel=(1, 1)),
            Relu(**names, output="b"),
            Relu(**names, output="dead"),
            Concat(name="ab", inputs=("b", "a", "b"), output="y"),
            Concat(name="all", inputs=("y", "x"), output="z"),
        ],
    )
    assert [node.output for node in graph.nodes] == ["a", "b", "y", "z"]
    assert graph.shapes["y"] == (9, 4, 5)
    assert graph.shapes["z"] == (12, 4, 5)
    assert [node.output for node in graph.consumers("b")] == ["y"]
    assert [node.output for node in graph.consumers("x")] == ["a", "b", "z"]
    assert reads(graph.nodes[-2]) == ("b", "a", "b")


def test_shapes_layout_and_pruning() -> None:
    graph = small_graph()
    assert [node.name for node in graph.nodes] == ["conv", "pool", "flat", "relu", "fc", "last"]
    assert graph.shapes == {
        "x": (4, 6, 6),
        "a": (6, 4, 4),
        "p": (6, 2, 2),
        "f": (24,),
        "r": (24,),
        "d": (5,),
        "y": (5,),
    }
    assert graph.map_shape("r") == (6, 2, 2)  # lies as [H][W][C]
    assert graph.map_shape("y") == (5, 1, 1)
    assert [layer.name for layer in graph.weight_layers] == ["conv", "fc"]
    assert [macs(layer, graph.shapes) for layer in graph.weight_layers] == [6 * 2 * 9 * 16, 120]
    assert graph.producer("x") is None
    assert [node.name for node in graph.consumers("p")] == ["flat"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 6, 6), "conv: weight (6, 2, 3, 3) with 2 groups does not fit 3 input channels."),
        ((4, 2, 6), "conv: kernel (3, 3) does not fit its padded input of 2x6."),
        ((4, 8, 6), "fc: expects a vector of 24 features, got shape (36,)."),
        ((144,), "conv: needs a feature map (C, H, W), got shape (144,)."),
    ],
)
def test_nodes_that_do_not_fit_are_named(shape: tuple[int, ...], message: str) -> None:
    graph = small_graph()
    with pytest.raises(ModelError) as caught:
        make_graph(name="g", input_name="x", input_shape=shape, output="y", nodes=graph.nodes)
    assert str(caught.value) == message
