# SPDX-License-Identifier: 0BSD
"""Tensors with several readers, joined again: tables entry by entry, shared ranges, the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import Noise, miniature_squeezenet

from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import calibrate, prepare, ranks_of
from bdcc.approx.model import DecomposedModel, load_oracle, save_oracle
from bdcc.approx.quantize import quantize_model
from bdcc.approx.simulate import run_exact
from bdcc.approx.tables import compute_logits, is_chain, plan_tables, rank_entries


@pytest.fixture(scope="module")
def model() -> DecomposedModel:
    graph = miniature_squeezenet()
    return decompose(graph, bases={n.name: 2 for n in graph.weight_layers}, workers=1)


def test_every_entry_is_what_evaluating_it_alone_gives(model: DecomposedModel) -> None:
    """A site is a tensor: the two layers that read it are quantized together."""
    bits, count = (2, 3, 5), 30
    plan = plan_tables(model, stats=calibrate(model, Noise(16)), mode="clip", bits=bits)
    assert not is_chain(model.graph)
    assert not plan.pairs
    assert plan.sites == ("x", "v1", "s2", "v2", "s3")
    assert plan.layers[1:4] == (("squeeze2",), ("one2", "three2"), ("squeeze3",))
    assert set(plan.fixed) == {"b"}
    network, pictures = prepare(model), Noise(count).batch(range(count))
    indices, labels = np.arange(count), np.arange(count) % 5
    ranks = rank_entries(network, pictures, indices, plan=plan, labels=labels)
    assert len(ranks) == 1 + 5 * len(bits)
    quants = [plan.fixed] + [
        {**plan.fixed, tensor: plan.ranges[tensor][b]} for tensor in plan.sites for b in bits
    ]
    logits = [compute_logits(network, pictures, indices, quants=each) for each in quants]
    for found, alone in zip(ranks, logits, strict=True):
        np.testing.assert_array_equal(found, ranks_of(alone, labels))
    assert len({each.tobytes() for each in logits}) == len(logits)


def test_layers_that_share_a_tensor_share_its_codes(model: DecomposedModel, tmp_path: Path) -> None:
    """The larger of their bits; and the oracle's file keeps what a Concat reads, in order."""
    bits = {n.name: 3 for n in model.graph.weight_layers} | {"three2": 6}
    quantized = quantize_model(model, stats=calibrate(model, Noise(8)), bits=bits, mode="clip")
    assert quantized.tensors["s2"].bits == 6
    save_oracle(quantized, tmp_path / "oracle.npz")
    again = load_oracle(tmp_path / "oracle.npz")
    assert [type(n) for n in again.graph.nodes] == [type(n) for n in model.graph.nodes]
    x = Noise(1).batch([0])[0]
    before, after = run_exact(quantized, x), run_exact(again, x)
    assert before.codes["s2"].max() > 7
    for tensor in model.graph.shapes:
        np.testing.assert_array_equal(before.values[tensor], after.values[tensor])
