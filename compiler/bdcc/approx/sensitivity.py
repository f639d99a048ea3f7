# SPDX-License-Identifier: 0BSD
"""What single choices cost: one layer decomposed, or one tensor quantized, in the float network.

The measure is the KL divergence of the outputs from the float network's, which needs no labels and
has far less noise than a count of hits, so that a few pictures do. Errors of different layers add
up; where neighbours, or the first tensor and the others, are correlated, pairs tell how much.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.evaluate import (
    PICTURES,
    Network,
    Progress,
    forward,
    inputs_of,
    logits_of,
    nhwc,
    prepare,
    ranks_of,
    split_at_dense,
)
from bdcc.approx.model import DecomposedModel, Decomposition, TensorQuant
from bdcc.ir.graph import F32, Flatten, Graph, Node, Softmax, WeightLayer, reads
from bdcc.sealed import Shelf

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

PAIR_BITS = 3  # at which the correlation of two tensors' errors is measured
SMALLEST = 1e-12  # of a probability, and of a divergence that others are compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Mean KL divergences, in nats. bases: by layer and B; bits: by tensor and Q; correlations: of
    two tensors' errors, where measured; drop_per_nat: percentage points of the metric that one nat
    went with; samples: pictures.
    """

    bases: Mapping[str, Mapping[int, float]]
    bits: Mapping[str, Mapping[int, float]]
    correlations: Mapping[tuple[str, str], float]
    drop_per_nat: float
    samples: int

    def as_json(self) -> dict[str, object]:
        return {
            "samples": self.samples,
            "drop_per_nat": self.drop_per_nat,
            "bases": {name: list(map(list, kl.items())) for name, kl in self.bases.items()},
            "bits": {name: list(map(list, kl.items())) for name, kl in self.bits.items()},
            "correlations": [[*pair, rho] for pair, rho in self.correlations.items()],
        }

    @staticmethod
    def from_json(value: dict[str, object]) -> Sensitivity:
        def table(rows: object) -> dict[str, dict[int, float]]:
            assert isinstance(rows, dict)
            return {name: {int(k): float(kl) for k, kl in kls} for name, kls in rows.items()}

        pairs = value["correlations"]
        assert isinstance(pairs, list)
        return Sensitivity(
            bases=table(value["bases"]),
            bits=table(value["bits"]),
            correlations={(a, b): rho for a, b, rho in pairs},
            drop_per_nat=float(str(value["drop_per_nat"])),
            samples=int(str(value["samples"])),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """layers: those whose weights are the model's, all others being float; quants: by tensor."""

    layers: tuple[str, ...] = ()
    quants: Mapping[str, TensorQuant]


def measure_sensitivity(
    runner: ChunkRunner,
    graph: Graph,
    *,
    bases: Mapping[str, Sequence[int]],
    bits: Mapping[str, Sequence[int]],
    decomposed: Callable[[WeightLayer, int], Decomposition],
    quantized: Callable[[str, int], TensorQuant],
    labels: I64,
    rows: I64,
    top: int,
    store: Shelf | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Measure every choice alone on the runner's pictures `rows`, and pairs of tensors.

    bases, bits: what may be chosen for each layer and tensor; labels: int64, of all pictures;
    store: a shelf that belongs to these very arguments, where finished chunks are found again.
    """
    layers = [layer for layer in graph.weight_layers if layer.name in bases]
    values: dict[tuple[str, int], float] = {}
    hits: list[tuple[float, float]] = []  # (nats, points lost) of every entry

    def run(model: DecomposedModel, entries: list[Entry], stage: str) -> F64:
        work = functools.partial(
            judge_entries, entries=tuple(entries), labels=labels, decomposable=frozenset(bases)
        )
        place = None if store is None else store.inside(stage.replace(" ", "-"))
        found = np.concatenate(
            runner.run(model, work, stage=stage, store=place, rows=rows, progress=progress), axis=2
        )
        ranks = found[1] < top
        kl: F64 = found[0].mean(axis=1)
        lost = 100 * (float(ranks[0].mean()) - ranks[1:].mean(axis=1))
        hits.extend(zip(kl[1:].tolist(), lost.tolist(), strict=True))
        return kl[1:]

    pairs = _pairs(graph, list(bits))
    alone = [(tensor, count) for tensor, counts in bits.items() for count in counts]
    at = {tensor: min(counts, key=lambda c: abs(c - PAIR_BITS)) for tensor, counts in bits.items()}
    entries = [Entry(quants={tensor: quantized(tensor, count)}) for tensor, count in alone]
    entries += [
        Entry(quants={tensor: quantized(tensor, at[tensor]) for tensor in p}) for p in pairs
    ]
    kl = run(DecomposedModel(graph=graph, layers={}), entries, "tables of bits")
    single = dict(zip(alone, kl.tolist(), strict=False))
    correlations = {}
    for pair, both in zip(pairs, kl[len(alone) :].tolist(), strict=True):
        a, b = (max(single[tensor, at[tensor]], SMALLEST) for tensor in pair)
        correlations[pair] = float(np.clip((both - a - b) / (2 * np.sqrt(a * b)), -0.9, 0.9))
    for count in sorted({count for counts in bases.values() for count in counts}):
        some = [layer for layer in layers if count in bases[layer.name]]
        model = DecomposedModel(
            graph=graph, layers={layer.name: decomposed(layer, count) for layer in some}
        )
        entries = [Entry(layers=(layer.name,), quants={}) for layer in some]
        kl = run(model, entries, f"tables of bases, B = {count}")
        values.update({(one.name, count): x for one, x in zip(some, kl.tolist(), strict=True)})
    return Sensitivity(
        bases=_monotone({n: {c: values[n, c] for c in counts} for n, counts in bases.items()}),
        bits=_monotone({t: {c: single[t, c] for c in counts} for t, counts in bits.items()}),
        correlations=correlations,
        drop_per_nat=_slope(hits),
        samples=len(rows),
    )


def _pairs(graph: Graph, tensors: Sequence[str]) -> list[tuple[str, str]]:
    """Neighbours, and the first with each of the others, in graph order."""
    neighbours = list(itertools.pairwise(tensors))
    return neighbours + [(tensors[0], other) for other in tensors[2:]]


def _monotone(table: Mapping[str, Mapping[int, float]]) -> dict[str, dict[int, float]]:
    """More bases or bits never cost more: what noise says else is taken back."""
    out: dict[str, dict[int, float]] = {}
    for name, row in table.items():
        counts = sorted(row)
        least = np.minimum.accumulate([max(row[count], 0.0) for count in counts])
        out[name] = dict(zip(counts, least.tolist(), strict=True))
    return out


def _slope(hits: Sequence[tuple[float, float]]) -> float:
    """Points per nat over the entries where the metric moves and is not yet lost."""
    some = [(kl, lost) for kl, lost in hits if 0.01 < kl < 0.5]
    nats = sum(kl for kl, _ in some)
    return max(5.0, sum(lost for _, lost in some) / nats) if nats > 0 else 30.0


# --- one chunk of pictures ----------------------------------------------------------------


def judge_entries(
    network: Network,
    pictures: F32,
    indices: I64,
    *,
    entries: Sequence[Entry],
    labels: I64,
    decomposable: frozenset[str],
) -> F64:
    """float64 [2, 1 + entries, n]: divergence and rank of the label; first of the float network.

    decomposable: the layers whose input may be quantized.
    """
    graph = network.graph
    plain = prepare(DecomposedModel(graph=graph, layers={}))
    plain = replace(plain, quantized=decomposable)
    networks = [plain, *(_mixed(plain, network, entry) for entry in entries)]
    head, tail = split_at_dense(graph)
    wanted = inputs_of(graph, tail)
    reached: list[list[Mapping[str, F32]]] = [[] for _ in networks]
    for start in range(0, len(pictures), PICTURES):
        x = {graph.input: nhwc(pictures[start : start + PICTURES])}
        base = forward(plain, head, x, {})
        reached[0].append({name: base[name] for name in wanted})
        for entry, mixed, parts in zip(entries, networks[1:], reached[1:], strict=True):
            nodes = _touched(head, entry)
            made = forward(mixed, nodes, base, entry.quants)
            parts.append({name: made[name] for name in wanted})
    out = np.empty((2, len(networks), len(pictures)))
    reference: F64 | None = None
    for index, (one, parts) in enumerate(zip(networks, reached, strict=True)):
        joined = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
        quants = {} if index == 0 else entries[index - 1].quants
        outputs = logits_of(graph, forward(one, tail, joined, quants))
        out[1, index] = ranks_of(outputs, labels[indices])
        logs = log_probabilities(graph, outputs)
        reference = logs if reference is None else reference
        out[0, index] = divergence(reference, logs)
    return out


def _mixed(plain: Network, model: Network, entry: Entry) -> Network:
    if not entry.layers:
        return plain
    return replace(
        plain,
        weights={**plain.weights, **{name: model.weights[name] for name in entry.layers}},
        biases={**plain.biases, **{name: model.biases[name] for name in entry.layers}},
    )


def _touched(nodes: Sequence[Node], entry: Entry) -> tuple[Node, ...]:
    """Those of `nodes` whose result the entry changes."""
    changed, found = set(entry.quants), []
    for node in nodes:
        if node.name in entry.layers or not changed.isdisjoint(reads(node)):
            changed.add(node.output)
            found.append(node)
    return tuple(found)


def log_probabilities(graph: Graph, outputs: F32) -> F64:
    """float64 [n, outputs]: log of the softmax of a network's outputs, which may be one already."""
    wide = outputs.astype(np.float64)
    last = graph.producer(graph.output)
    while isinstance(last, Flatten):
        last = graph.producer(last.input)
    if isinstance(last, Softmax):
        return np.asarray(np.log(np.maximum(wide, SMALLEST)))
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def divergence(reference: F64, other: F64) -> F64:
    """KL divergence [n], in nats, of log probabilities [n, outputs] from the reference."""
    return np.asarray((np.exp(reference) * (reference - other)).sum(axis=1))
