# SPDX-License-Identifier: 0BSD
"""Tensors with several readers, joined again: no tables, shared ranges, the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nets import Noise, miniature_squeezenet

from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import calibrate
from bdcc.approx.model import DecomposedModel, load_oracle, save_oracle
from bdcc.approx.quantize import quantize_model
from bdcc.approx.simulate import run_exact
from bdcc.approx.tables import is_chain, plan_tables
from bdcc.errors import OptionError


@pytest.fixture(scope="module")
def model() -> DecomposedModel:
    graph = miniature_squeezenet()
    return decompose(graph, bases={n.name: 2 for n in graph.weight_layers}, workers=1)


def test_there_are_no_tables_of_neighbours(model: DecomposedModel) -> None:
    assert not is_chain(model.graph)
    with pytest.raises(OptionError, match=r"--search paper: needs a chain.*--search measured"):
        plan_tables(model, stats=calibrate(model, Noise(2)), mode="clip")


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
