# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import pytest
from nets import miniature_alexnet

from bdcc.codegen.costs import shipped_cost_table
from bdcc.errors import OptionError
from bdcc.pipeline.costs import cost_of

# conv2: 8 filters of 4 x 3 x 3 (two groups), on a map of 5 x 5; fc1: 12 filters of 32.
MACS = {"conv2": 8 * 36 * 5 * 5, "fc1": 12 * 32}
TABLE = shipped_cost_table("avx512")
WEIGHTS = {"conv2": 8 * 36, "fc1": 12 * 32}


@pytest.mark.parametrize("name", ["conv2", "fc1"])
def test_ops_are_bit_operations(name: str) -> None:
    assert cost_of(miniature_alexnet(), "ops", TABLE)(name, 3, 5) == 3 * 5 * MACS[name]


@pytest.mark.parametrize("name", ["conv2", "fc1"])
def test_size_follows_the_bases_and_bits_only_decide_between_equals(name: str) -> None:
    size = cost_of(miniature_alexnet(), "size", TABLE)
    assert size(name, 4, 5) - size(name, 3, 5) == pytest.approx(WEIGHTS[name] / 8, rel=1e-2)
    assert 0 < size(name, 3, 6) - size(name, 3, 5) < 0.01


@pytest.mark.parametrize("objective", ["ops", "size", "latency"])
@pytest.mark.parametrize("name", ["conv1", "conv2", "fc1", "fc2"])
def test_more_never_costs_less(objective: str, name: str) -> None:
    cost = cost_of(miniature_alexnet(), objective, TABLE)
    for bases in range(1, 7):
        for bits in range(2, 8):
            assert cost(name, bases, bits) <= cost(name, bases + 1, bits)
            assert cost(name, bases, bits) <= cost(name, bases, bits + 1)
            assert cost(name, bases, bits) > 0


def test_latency_is_the_fastest_family_s_by_the_table() -> None:
    graph = miniature_alexnet()
    layers = {layer.name: layer for layer in graph.weight_layers}
    latency = cost_of(graph, "latency", TABLE)
    for name in ("conv1", "conv2", "fc1"):
        ns = TABLE.by_family(layers[name], graph, bases=1, bits=1)
        assert latency(name, 1, 1) == pytest.approx(min(ns.values()))
        assert latency(name, 6, 8) > latency(name, 1, 1)


def test_another_objective_is_refused() -> None:
    with pytest.raises(OptionError, match="--objective"):
        cost_of(miniature_alexnet(), "beauty", TABLE)
