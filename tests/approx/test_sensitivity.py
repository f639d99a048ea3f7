# SPDX-License-Identifier: 0BSD
"""Every entry of the tables against evaluating it alone, and the divergence against its formula."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nets import Noise, conv, miniature_alexnet, miniature_squeezenet

from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import (
    calibrate,
    first_classes,
    forward_all,
    logits_of,
    prepare,
    ranks_of,
)
from bdcc.approx.model import DecomposedModel, Decomposition, TensorQuant
from bdcc.approx.quantize import choose_range
from bdcc.approx.sensitivity import (
    PAIR_BITS,
    Sensitivity,
    divergence,
    log_probabilities,
    measure_sensitivity,
)
from bdcc.ir.graph import Flatten, Graph, Softmax, WeightLayer, make_graph
from bdcc.sealed import Shelf

PICTURES = 70
ROWS = np.arange(0, PICTURES, 2)
BASES, BITS = (1, 2, 4), (2, 3, 5)


class Table:
    """A network's sensitivity, and what evaluating a choice alone gives."""

    def __init__(self, graph: Graph, *, workers: int = 0) -> None:
        self.graph, self.pictures = graph, Noise(PICTURES)
        self.models = {
            b: decompose(graph, bases={n.name: b for n in graph.weight_layers}, workers=1)
            for b in BASES
        }
        self.stats = calibrate(self.models[1], Noise(16))
        self.tensors = list(dict.fromkeys(layer.input for layer in graph.weight_layers))
        self.reference = self.outputs({}, {})
        self.labels = first_classes(self.reference)
        with ChunkRunner(self.pictures, workers=workers) as runner:
            self.found = measure_sensitivity(
                runner,
                graph,
                bases={layer.name: BASES for layer in graph.weight_layers},
                bits=dict.fromkeys(self.tensors, BITS),
                decomposed=self.decomposed,
                quantized=self.quantized,
                labels=self.labels,
                rows=ROWS,
                top=1,
            )

    def decomposed(self, layer: WeightLayer, bases: int) -> Decomposition:
        return self.models[bases].layers[layer.name]

    def quantized(self, tensor: str, bits: int) -> TensorQuant:
        return choose_range(self.stats[tensor], bits=bits, mode="clip")

    def outputs(self, layers: dict[str, int], bits: dict[str, int]) -> np.ndarray:
        decomposed = {n: self.models[b].layers[n] for n, b in layers.items()}
        network = replace(
            prepare(DecomposedModel(graph=self.graph, layers=decomposed)),
            quantized=frozenset(layer.name for layer in self.graph.weight_layers),
        )
        quants = {tensor: self.quantized(tensor, q) for tensor, q in bits.items()}
        batch, output = self.pictures.batch(range(PICTURES)), self.graph.output
        return logits_of(self.graph, forward_all(network, batch, quants, keep=[output]))

    def alone(self, layers: dict[str, int], bits: dict[str, int]) -> tuple[float, float]:
        """Mean divergence, and points lost, on ROWS."""
        outputs = self.outputs(layers, bits)[ROWS]
        p, q = (log_probabilities(self.graph, y) for y in (self.reference[ROWS], outputs))
        lost = 100 * float((ranks_of(outputs, self.labels[ROWS]) > 0).mean())
        return float(divergence(p, q).mean()), lost


@pytest.fixture(scope="module", params=["chain ending in Softmax", "branches"])
def table(request: pytest.FixtureRequest) -> Table:
    return Table(miniature_squeezenet() if request.param == "branches" else miniature_alexnet())


def test_every_entry_is_what_evaluating_it_alone_gives(table: Table) -> None:
    """Up to what is monotone: more never costs more."""
    seen: list[tuple[float, float]] = []
    for name, row in table.found.bases.items():
        alone = [table.alone({name: b}, {}) for b in BASES]
        seen += alone
        least = np.minimum.accumulate([nats for nats, _ in alone])
        np.testing.assert_allclose([row[b] for b in BASES], least, rtol=1e-3, atol=1e-6)
    for tensor, row in table.found.bits.items():
        alone = [table.alone({}, {tensor: q}) for q in BITS]
        seen += alone
        least = np.minimum.accumulate([nats for nats, _ in alone])
        np.testing.assert_allclose([row[q] for q in BITS], least, rtol=1e-3, atol=1e-6)
    assert len(seen) == 3 * (len(table.graph.weight_layers) + len(table.tensors))
    assert len({round(nats, 9) for nats, _ in seen}) > len(seen) / 2
    assert list(table.found.bits) == table.tensors
    assert table.found.samples == len(ROWS)
    # Pairs count for the slope as well.
    seen += [table.alone({}, dict.fromkeys(pair, PAIR_BITS)) for pair in table.found.correlations]
    telling = [(nats, lost) for nats, lost in seen if 0.01 < nats < 0.5]
    slope = sum(lost for _, lost in telling) / sum(nats for nats, _ in telling)
    assert table.found.drop_per_nat == pytest.approx(slope, rel=1e-3)


def test_pairs_are_neighbours_and_the_first_with_all(table: Table) -> None:
    tensors, pairs = table.tensors, table.found.correlations
    assert set(pairs) == {
        *itertools.pairwise(tensors),
        *((tensors[0], other) for other in tensors[1:]),
    }
    for pair, rho in pairs.items():
        a, b = (table.alone({}, {tensor: PAIR_BITS})[0] for tensor in pair)
        both = table.alone({}, dict.fromkeys(pair, PAIR_BITS))[0]
        expected = np.clip((both - a - b) / (2 * math.sqrt(a * b)), -0.9, 0.9)
        assert rho == pytest.approx(expected, abs=1e-2)


def test_the_sign_of_a_correlation() -> None:
    """What is rounded already loses nothing by the same rounding: both together are one."""
    rng = np.random.default_rng(0)
    first = conv(rng, "one", "x", 3, 3, kernel=(1, 1))
    first.weight[:] = np.eye(3).reshape(3, 3, 1, 1)
    first.bias[:] = 0
    nodes = (
        first,
        conv(rng, "two", "one_out", 3, 4, kernel=(13, 13)),
        Flatten(name="flat", input="two_out", output="y"),
    )
    graph = make_graph(name="g", input_name="x", input_shape=(3, 13, 13), output="y", nodes=nodes)
    with ChunkRunner(Noise(PICTURES), workers=0) as runner:
        found = measure_sensitivity(
            runner,
            graph,
            bases={"one": (), "two": ()},
            bits={"x": (3,), "one_out": (3,)},
            decomposed=lambda *_: pytest.fail("no bases were asked for"),
            quantized=lambda _, bits: TensorQuant(bits=bits, delta=np.float32(1), zero_point=4),
            labels=np.zeros(PICTURES, np.int64),
            rows=ROWS,
            top=1,
        )
    assert found.bits["x"] == pytest.approx(found.bits["one_out"])
    assert found.correlations == {("x", "one_out"): pytest.approx(-0.5)}
    assert found.bases == {"one": {}, "two": {}}


def test_divergence_from_the_definition() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 4)).astype(np.float32) * 3
    graph, ending = miniature_squeezenet(), miniature_alexnet()
    probabilities = [
        [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in some]
        for some in logits.astype(float).tolist()
    ]
    expected = [
        sum(p * math.log(p / q) for p, q in zip(*rows, strict=True))
        for rows in zip(*probabilities, strict=True)
    ]
    for last, outputs in ((graph, logits), (ending, np.array(probabilities, np.float32))):
        p, q = (log_probabilities(last, y) for y in outputs)
        np.testing.assert_allclose(divergence(p, q), expected, rtol=1e-5)
        assert (divergence(p, p) == 0).all()


def test_probabilities_may_be_flattened_behind_the_softmax() -> None:
    graph = miniature_alexnet()
    assert isinstance(graph.nodes[-1], Softmax)
    flat = make_graph(
        name="g",
        input_name=graph.input,
        input_shape=graph.shapes[graph.input],
        output="y",
        nodes=(*graph.nodes, Flatten(name="f", input=graph.output, output="y")),
    )
    outputs = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]], np.float32)
    p, q = log_probabilities(flat, outputs)[:, None]
    assert divergence(p, q) == pytest.approx(0.85 * math.log(18))


def test_finished_chunks_are_found_again(tmp_path: Path) -> None:
    graph = miniature_alexnet()
    stats = calibrate(
        decompose(graph, bases={n.name: 1 for n in graph.weight_layers}, workers=1), Noise(16)
    )

    def measure(runner: ChunkRunner) -> Sensitivity:
        return measure_sensitivity(
            runner,
            graph,
            bases={layer.name: () for layer in graph.weight_layers},
            bits=dict.fromkeys(stats, BITS),
            decomposed=lambda *_: pytest.fail("no bases were asked for"),
            quantized=lambda tensor, bits: choose_range(stats[tensor], bits=bits, mode="clip"),
            labels=np.zeros(PICTURES, np.int64),
            rows=ROWS,
            top=1,
            store=Shelf(folder=tmp_path / "store", name="test"),
        )

    with ChunkRunner(Noise(PICTURES), workers=0) as runner:
        first = measure(runner)
        made = runner.computed
        kept = sorted((tmp_path / "store").rglob("*.npy"))
        kept[0].unlink()
        again = measure(runner)
    assert (made, runner.computed) == (len(kept), len(kept) + 1)
    assert again == first


def test_impossible_classes_and_huge_logits_stay_finite() -> None:
    certain = np.array([[1, 0, 0]], np.float32)
    p, q = (log_probabilities(miniature_alexnet(), y) for y in (certain, certain[:, ::-1]))
    assert 20 < float(divergence(p, q)[0]) < 100
    far = np.array([[1e30, -1e30, 0]], np.float32)
    assert np.isfinite(divergence(*[log_probabilities(miniature_squeezenet(), far)] * 2)).all()


def test_json_keeps_everything(table: Table) -> None:
    text = json.dumps(table.found.as_json(), allow_nan=False)
    assert Sensitivity.from_json(json.loads(text)) == table.found
    assert len(table.found.correlations) >= 4


def test_workers_change_nothing(table: Table) -> None:
    again = Table(table.graph, workers=2).found
    assert again == table.found
