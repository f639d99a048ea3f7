# SPDX-License-Identifier: 0BSD
"""Which tensors live as codes, which nodes one step covers, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bdcc.codegen.plan import DeploymentPlan, _lifetimes, make_plan
from bdcc.codegen.targets import find_target
from bdcc.errors import ModelError, OptionError
from bdcc.ir.graph import (
    AveragePool,
    Flatten,
    GlobalAveragePool,
    Graph,
    Lrn,
    MaxPool,
    Relu,
    Softmax,
    make_graph,
)
from codegen.nets import Chain, alexnet_like, fire, quantized, squeezenet_like


def planned(graph, **options) -> DeploymentPlan:
    return make_plan(quantized(graph, **options), name="net", target=find_target("host"))


def kinds(plan: DeploymentPlan) -> list[str]:
    return [step.kind for step in plan.steps]


def test_codes_pass_between_decomposed_layers() -> None:
    plan = planned(alexnet_like(), bases=2, bits=3)
    assert kinds(plan) == [
        "input", "binary", "max_pool_float", "lrn",  # reads floats, leaves codes
        "binary", "binary", "max_pool_codes", "binary", "binary", "softmax", "output",
    ]  # fmt: skip
    assert plan.steps[0].output.bits == plan.steps[3].output.bits == 3


def test_lrn_before_the_pool_is_quantized_before_it() -> None:
    plan = planned(alexnet_like(lrn_first=True), bases=2, bits=3)
    assert kinds(plan)[1:4] == ["binary", "lrn", "max_pool_codes"]


def test_dynamic_layers_receive_floats() -> None:
    plan = planned(alexnet_like(), bases=2, bits=3, mode="dynamic")
    assert "quantize" not in kinds(plan)
    assert "max_pool_codes" not in kinds(plan)


def test_a_float_first_layer_keeps_its_pool_in_float() -> None:
    """It may hand on a NaN, which a max-pool spreads and a quantizer maps to z: the two do not
    commute there.
    """
    graph = (
        Chain((3, 9, 9), 0)
        .conv(8, (3, 3))
        .add(Relu)
        .add(MaxPool, kernel=(2, 2))
        .conv(4, (3, 3))
        .graph()
    )
    plan = planned(graph, bases=[0, 2], bits=[0, 3])
    assert kinds(plan) == ["input", "conv_float", "max_pool_float", "quantize", "binary", "output"]


def test_a_branch_that_leads_nowhere_costs_no_step() -> None:
    chain = Chain((3, 9, 9), 0).conv(8, (3, 3)).add(Relu)
    shared = chain.tensor
    chain.add(Lrn, size=3)
    other = chain.tensor
    chain.tensor = shared
    chain.conv(4, (3, 3))
    assert other not in chain.graph().shapes
    assert kinds(planned(chain.graph(), bases=2, bits=3)) == [
        "input",
        "binary",
        "binary",
        "output",
    ]


# --- joined maps ----------------------------------------------------------------------------------


def slices(plan: DeploymentPlan) -> dict[str, tuple[str, int, int]]:
    """Block, first channel and values per pixel of every tensor that is a slice of something."""
    return {
        step.tensor: (step.output.name, step.output.start, step.output.pitch)
        for step in plan.steps
        if step.output and step.output.pitch != step.output.shape[0]
    }


def test_layers_write_their_slices_and_nothing_is_copied() -> None:
    plan = planned(squeezenet_like(), bases=2, bits=3)
    assert kinds(plan) == [
        "input", "binary", "max_pool_codes", *["binary"] * 6, "max_pool_codes",
        *["binary"] * 4, "global_average_pool", "softmax", "output",
    ]  # fmt: skip
    (first, block) = list(slices(plan).values())[:2]
    assert first == (block[0], 0, 16)
    assert block == (first[0], 9, 16)
    lifetimes = {lifetime.name: lifetime for lifetime in _lifetimes(plan.steps)}
    assert (lifetimes[first[0]].first, lifetimes[first[0]].last) == (4, 6)  # first writer to reader


def test_floats_are_joined_in_place_too() -> None:
    for options in ({"bases": 2, "mode": "dynamic"}, {"bases": 0}):
        plan = planned(squeezenet_like(), bits=3, **options)
        assert not {"quantize", "concat"} & set(kinds(plan))
        assert len(slices(plan)) == 6


def test_a_map_with_another_reader_is_copied() -> None:
    """The squeezed map is read by two layers, and by the Concat behind them."""
    chain = Chain((3, 7, 6), 0).conv(5, (1, 1)).add(Relu)
    squeezed = chain.tensor
    left = chain.conv(4, (1, 1)).tensor
    right = chain.at(squeezed).conv(6, (3, 3), pads=(1, 1, 1, 1)).tensor
    graph = chain.concat(left, squeezed, right, squeezed).conv(3, (1, 1)).graph()
    plan = planned(graph, bases=2, bits=[4, 3, 3, 5])
    made = [step for step in plan.steps if step.layer == "concat4"]
    assert [(s.kind, s.tensor, s.output.start) for s in made if s.output] == [
        ("quantize", squeezed, 4),  # one range for the layers' codes, another for the Concat's
        ("quantize", squeezed, 15),
    ]
    assert slices(plan)[right] == (f"{graph.nodes[4].output}#5", 9, 20)


def test_a_joined_map_that_is_read_as_codes_and_as_floats() -> None:
    chain = Chain((3, 7, 6), 0)
    left = chain.conv(5, (1, 1)).tensor
    joined = fire(chain.at(left), 3, 4, 4).tensor
    mean = chain.add(AveragePool, kernel=(3, 3), pads=(1, 1, 1, 1)).tensor
    coded = chain.at(joined).conv(6, (1, 1)).tensor
    plan = planned(chain.concat(mean, coded).graph(), bases=2, bits=3)
    assert kinds(plan)[-6:] == [
        "binary", "binary", "quantize", "average_pool", "binary", "output"
    ]  # fmt: skip


def test_the_picture_may_be_all_that_is_joined() -> None:
    plan = planned(Chain((3, 7, 6), 0).concat("x", "x").graph(), bases=[], bits=[])
    assert kinds(plan) == ["input", "concat", "concat", "output"]


def test_joins_of_joins_are_one_block() -> None:
    chain = Chain((3, 7, 6), 0)
    leaves = [chain.at("x").conv(width, (1, 1)).tensor for width in (2, 3, 4)]
    inner = chain.concat(*leaves[:2]).tensor
    plan = planned(chain.concat(leaves[2], inner).conv(5, (1, 1)).graph(), bases=2, bits=3)
    assert "concat" not in kinds(plan)
    assert [(start, pitch) for _, start, pitch in slices(plan).values()] == [(4, 9), (6, 9), (0, 9)]


def test_a_relu_on_codes_is_free_where_zero_is_the_lowest() -> None:
    def graph(kind: type) -> Graph:
        chain = Chain((3, 7, 6), 0)
        sides = [chain.at("x").conv(width, (1, 1)).tensor for width in (4, 5)]
        return (
            chain.concat(*sides)
            .add(kind, **({} if kind is Relu else {"kernel": (1, 1)}))
            .conv(3, (1, 1))
            .graph()
        )

    assert kinds(planned(graph(Relu), bases=2, bits=3)) == [
        "input", "binary", "binary", "binary", "output"
    ]  # fmt: skip
    model = quantized(graph(Relu), bases=2, bits=3)
    (tensor,) = (t for t in model.tensors if t != "x")
    signed = {**model.tensors, tensor: replace(model.tensors[tensor], zero_point=3)}
    plan = make_plan(replace(model, tensors=signed), name="net", target=find_target("host"))
    assert kinds(plan)[1:5] == ["binary", "binary", "relu", "quantize"]


def test_a_flattened_map_regains_its_order_before_it_is_joined() -> None:
    chain = Chain((3, 5, 4), 0)
    mean = chain.add(GlobalAveragePool).add(Flatten).tensor
    flat = chain.at("x").add(Flatten).tensor
    plan = planned(chain.concat(mean, flat).graph(), bases=[], bits=[])
    assert kinds(plan) == ["input", "global_average_pool", "concat", "reorder", "concat", "output"]


def test_a_flattened_map_regains_its_order_before_softmax() -> None:
    graph = Chain((3, 5, 4), 0).add(Flatten).add(Softmax).graph()
    assert "reorder" in kinds(planned(graph, bases=[], bits=[]))


def test_sums_that_pass_int32_are_refused() -> None:
    wide = Chain((70_000, 1, 1), 0).add(Flatten)
    wide.dense(1)
    model = quantized(wide.graph(), bases=7, bits=8)
    (name, layer), *_ = model.decomposed.layers.items()
    for total, fits in (
        (120, True),
        (121, False),
    ):  # 70,000 * 255 * 120 < 2^31 < 70,000 * 255 * 121
        coefficients = np.array([[total - 6, 1, 1, 1, 1, 1, 1]], dtype=np.int16)
        layers = {name: replace(layer, coefficients=coefficients)}
        changed = replace(model, decomposed=replace(model.decomposed, layers=layers))
        if fits:
            make_plan(changed, name="net", target=find_target("host"))
        else:
            with pytest.raises(ModelError, match="pass 32-bit sums"):
                make_plan(changed, name="net", target=find_target("host"))


def test_unknown_target() -> None:
    with pytest.raises(OptionError, match="host, generic"):
        find_target("rpi9")


def test_equal_names_of_layers_give_distinct_functions() -> None:
    chain = Chain((2, 5, 5), 0).conv(3, (2, 2)).conv(3, (2, 2))
    a, b = chain.nodes
    graph = make_graph(
        name="n", input_name="x", input_shape=(2, 5, 5), output=b.output,
        nodes=[replace(a, name="conv.1"), replace(b, name="conv_1")],
    )  # fmt: skip
    names = [s.name for s in planned(graph, bases=2, bits=2).steps]
    assert len(names) == len(set(names))
