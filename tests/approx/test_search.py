# SPDX-License-Identifier: 0BSD
"""The tables against evaluation entry by entry, the paper's search against enumeration."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from nets import Noise, conv, miniature_alexnet

from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import calibrate, first_classes, ranks_of
from bdcc.approx.model import DecomposedModel
from bdcc.approx.search import (
    choose_paper,
    layer_drops,
    predict,
    stack_paper,
)
from bdcc.approx.tables import (
    Tables,
    is_chain,
    measure_logits,
    measure_tables,
    plan_tables,
)
from bdcc.ir.graph import Flatten, Graph, Relu, infer_shapes
from bdcc.sealed import Shelf

BITS = (2, 3, 4, 5, 6, 7, 8)

# --- measuring ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> DecomposedModel:
    graph = miniature_alexnet(convs=3)
    return decompose(graph, bases={n.name: 2 for n in graph.weight_layers}, workers=1)


@pytest.fixture(scope="module")
def stats(model: DecomposedModel):
    return calibrate(model, Noise(16))


def float_judge(model: DecomposedModel, pictures: Noise):
    """Labels by agreement, and the float model's ranks of them."""
    with ChunkRunner(pictures, workers=0) as runner:
        float_model = DecomposedModel(graph=model.graph, layers={})
        logits = measure_logits(runner, float_model, {}, stage="float")
    return first_classes(logits), ranks_of(logits, first_classes(logits))


@pytest.mark.parametrize("mode", ["clip", "dynamic"])
def test_every_entry_is_what_evaluating_it_alone_gives(model, stats, mode) -> None:
    pictures, bits = Noise(70), (2, 3, 5)
    plan = plan_tables(model, stats=stats, mode=mode, bits=bits)
    labels, reference = float_judge(model, pictures)
    assert (reference == 0).all()
    with ChunkRunner(pictures, workers=0) as runner:
        tables = measure_tables(runner, model, plan, labels=labels, reference=reference, top=1)

        def alone(**bits_of: int) -> int:
            quants = {**plan.fixed, **{t: plan.ranges[t][b] for t, b in bits_of.items()}}
            logits = measure_logits(runner, model, quants, stage="alone")
            return int((ranks_of(logits, labels) < 1).sum())

        assert plan.sites == ("x", "v1", "v2")
        assert plan.layers == (("conv1",), ("conv2",), ("conv3",))
        assert set(plan.fixed) == {"f", "f1"}
        assert (tables.total, tables.reference, tables.base) == (70, 70, alone())
        assert len({tables.base, *itertools.chain(*tables.singles)}) > 2
        assert len(tables.singles) == 2
        for site, row in enumerate(tables.singles):
            assert list(row) == [alone(**{plan.sites[site]: b}) for b in bits]
        for site, table in enumerate(tables.pairs, start=1):
            before, own = plan.sites[site - 1], plan.sites[site]
            for a, row in zip(bits, table, strict=True):
                assert list(row) == [alone(**{before: a, own: b}) for b in bits]


def test_the_papers_table_has_203_entries() -> None:
    graph = miniature_alexnet(convs=5)
    model = decompose(graph, bases={n.name: 1 for n in graph.weight_layers}, workers=1)
    plan = plan_tables(model, stats=calibrate(model, Noise(4)), mode="minmax", dense_bits=6)
    assert {quant.bits for quant in plan.fixed.values()} == {6}
    labels, reference = float_judge(model, Noise(4))
    with ChunkRunner(Noise(4), workers=0) as runner:
        tables = measure_tables(runner, model, plan, labels=labels, reference=reference, top=5)
    paper = stack_paper(tables, 10.0)
    assert [table.shape for table in paper.drops] == [(1, 7)] + [(7, 7)] * 4
    assert sum(table.size for table in paper.drops) == 203
    assert plan.entries == 203 + 3 * 7 + 1  # and the minuends: layers 2..4 alone, none
    for i in range(1, 5):
        for a, b in np.ndindex(7, 7):
            drop = tables.singles[i - 1][a] - tables.pairs[i - 1][a][b]
            assert paper.drops[i][a, b] == 100.0 * drop / 4
    json.dumps(paper.as_json(), allow_nan=False)


def test_tables_do_not_depend_on_workers_and_are_taken_up_again(model, stats, tmp_path) -> None:
    pictures = Noise(130)
    plan = plan_tables(model, stats=stats, mode="clip", bits=(2, 3))
    labels, reference = float_judge(model, pictures)
    given = {"labels": labels, "reference": reference}
    with ChunkRunner(pictures, workers=2) as runner:
        first = measure_tables(
            runner, model, plan, top=1, store=Shelf(folder=tmp_path, name="test"), **given
        )
        assert runner.computed == 4
    for missing in list(tmp_path.iterdir())[:3]:
        missing.unlink()
    with ChunkRunner(pictures, workers=0) as runner:
        assert (
            measure_tables(
                runner, model, plan, top=1, store=Shelf(folder=tmp_path, name="test"), **given
            )
            == first
        )
        assert runner.computed == 3
        # What is kept serves another metric too.
        top2 = measure_tables(
            runner, model, plan, top=2, store=Shelf(folder=tmp_path, name="test"), **given
        )
        assert runner.computed == 3
    assert top2.base >= first.base
    assert all(np.greater_equal(top2.pairs, first.pairs).flat)


def test_chains_are_told_from_forks() -> None:
    rng = np.random.default_rng(0)
    graph = miniature_alexnet()
    assert is_chain(graph)
    nodes = (
        conv(rng, "c", "x", 3, 4),
        Relu(name="r", input="c_out", output="y"),
        Flatten(name="f", input="c_out", output="f"),
    )
    shapes = infer_shapes(nodes, "x", (3, 13, 13))
    assert not is_chain(Graph(name="g", input="x", output="y", nodes=nodes, shapes=shapes))


# --- choosing -----------------------------------------------------------------------------


def made_up(rng: np.random.Generator, layers: int, *, total=200) -> Tables:
    """Tables with more hits for more bits, on the whole."""
    harm = np.array([60, 25, 10, 4, 2, 1, 0])

    def hits(*shape: int) -> np.ndarray:
        return 150 - rng.poisson(np.broadcast_to(harm * rng.uniform(0.1, 1), shape))

    singles = np.array([hits(7) for _ in range(max(1, layers - 1))])
    tables = [singles[i][:, None] - rng.poisson(harm, (7, 7)) + 1 for i in range(layers - 1)]
    return Tables(
        layers=tuple((f"conv{i + 1}",) for i in range(layers)),
        bits=BITS,
        total=total,
        reference=152,
        base=150,
        singles=tuple(map(tuple, singles.tolist())),
        pairs=tuple(tuple(map(tuple, t.tolist())) for t in tables),
    )


def lost(tables: Tables, bits: tuple[int, ...]) -> int:
    """Predicted lost hits, from the definition."""
    at = [BITS.index(b) for b in bits]
    drop = tables.reference - tables.singles[0][at[0]]
    for i in range(1, len(at)):
        drop += tables.singles[i - 1][at[i - 1]] - tables.pairs[i - 1][at[i - 1]][at[i]]
    return drop


def choices(layers: int):
    return itertools.product(BITS, repeat=layers)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_drop", [0.0, 3.0, 8.0, 12.5, 30.0, 100.0])
def test_paper_search_is_what_enumeration_finds(layers: int, seed: int, max_drop: float) -> None:
    tables = made_up(np.random.default_rng(seed), layers)
    r, n = tables.reference, tables.total

    def survives(hits: float) -> bool:
        return 100.0 * (r - hits) / n < max_drop

    # T by the recursion as it is written, one entry at a time.
    t = [{(None, b): tables.singles[0][b] for b in range(7)}]
    t[0] = {key: s for key, s in t[0].items() if survives(s)}
    for i in range(1, layers):
        stacked = {}
        for a, b in np.ndindex(7, 7):
            before = [s for (_, q), s in t[-1].items() if q == a]
            if before:
                s = max(before) - (tables.singles[i - 1][a] - tables.pairs[i - 1][a][b])
                if survives(s):
                    stacked[a, b] = s
        t.append(stacked)
    consistent = [
        bits
        for bits in itertools.product(range(7), repeat=layers)
        if (None, bits[0]) in t[0] and all((bits[i - 1], bits[i]) in t[i] for i in range(1, layers))
    ]

    paper = stack_paper(tables, max_drop)
    for i, table in enumerate(paper.stacked):
        for a, b in np.ndindex(*table.shape):
            expected = t[i].get((a if i else None, b))
            if expected is None:
                assert np.isnan(table[a, b])
            else:
                assert table[a, b] == 100.0 * expected / n
    choice = choose_paper(tables, max_drop)
    bits = tuple(choice.bits.values())
    assert choice.predicted == 100.0 * (r - lost(tables, bits)) / n == predict(tables, bits)
    assert choice.met == bool(consistent)
    if consistent:
        best = min(consistent, key=lambda chosen: chosen[::-1])  # q_I first, then backwards
        assert bits == tuple(BITS[b] for b in best)
    else:
        assert lost(tables, bits) == min(lost(tables, other) for other in choices(layers))
    drops = layer_drops(tables, choice.bits)
    assert sum(drops.values()) == pytest.approx(100.0 * r / n - choice.predicted)


def test_nothing_to_choose() -> None:
    """Dense layers only: their bits are fixed, and the one choice is the empty one."""
    tables = Tables(layers=(), bits=BITS, total=10, reference=9, base=8, singles=(), pairs=())
    paper = choose_paper(tables, 5.0)
    assert (paper.bits, paper.predicted, paper.met) == ({}, 90.0, True)
