# SPDX-License-Identifier: 0BSD
"""The accuracy tables that the paper's search chooses from, measured for every pair of neighbours.

A *site* is the input tensor of decomposed conv layers, whose bits are searched. "Unquantized" means
decomposed weights, float activations, and dense layers at their fixed bits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.evaluate import (
    I32,
    PICTURES,
    Network,
    Progress,
    forward,
    forward_all,
    inputs_of,
    logits_of,
    nhwc,
    ranks_of,
    split_at_dense,
)
from bdcc.approx.model import DecomposedModel, TensorQuant
from bdcc.approx.quantize import RangeMode, TensorStats, choose_range
from bdcc.approx.workers import Indices
from bdcc.errors import OptionError
from bdcc.ir.graph import F32, Conv, Graph, Node, reads
from bdcc.sealed import Shelf

I64 = npt.NDArray[np.int64]
SEARCHED_BITS = (2, 3, 4, 5, 6, 7, 8)
DENSE_ROWS = 512  # pictures that go through the dense layers together: their weights are read once


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TablePlan:
    """What is measured.

    sites: tensors, in graph order; layers: the conv layers that read each; ranges: by tensor and
    bits; fixed: tensors quantized in every entry.
    """

    sites: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]
    bits: tuple[int, ...]
    ranges: Mapping[str, Mapping[int, TensorQuant]]
    fixed: Mapping[str, TensorQuant]

    @property
    def singles(self) -> int:
        """Sites that are measured alone: those that have a successor, and the first."""
        return min(len(self.sites), max(1, self.pairs))

    @property
    def pairs(self) -> int:
        """Sites that are measured together with the one before."""
        return max(0, len(self.sites) - 1)

    @property
    def entries(self) -> int:
        """1 (nothing quantized), then sites alone, then pairs."""
        return 1 + self.singles * len(self.bits) + self.pairs * len(self.bits) ** 2

    def single(self, site: int, bits: int) -> int:
        """Entry of a site alone; `bits` is a position in self.bits."""
        return 1 + site * len(self.bits) + bits

    def pair(self, site: int, before: int, bits: int) -> int:
        """Entry of a site together with the one before it."""
        count = len(self.bits)
        return 1 + self.singles * count + ((site - 1) * count + before) * count + bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Hits out of `total` pictures, as integers, so that sums are exact and do not depend on order.

    reference: the float model's; base: with nothing quantized but the fixed; singles[i][b]: site i
    alone; pairs[i - 1][a][b]: site i - 1 at bits[a] and site i at bits[b].
    """

    layers: tuple[tuple[str, ...], ...]
    bits: tuple[int, ...]
    total: int
    reference: int
    base: int
    singles: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[tuple[int, ...], ...], ...]

    def percent(self, hits: int) -> float:
        return 100.0 * hits / self.total

    def drops(self, site: int) -> I64:
        """int64 [before, bits]: hits lost by quantizing a site, whatever the site before has.

        One row for the first site. Added up over the sites they predict the hits that a choice
        loses, from the float model's.
        """
        singles = np.array(self.singles, np.int64).reshape(-1, len(self.bits))
        if site == 0:
            return self.reference - singles[:1]
        return np.asarray(singles[site - 1][:, None] - np.array(self.pairs[site - 1], np.int64))


def is_chain(graph: Graph) -> bool:
    """Whether every tensor has one reader: the paper's search needs neighbours."""
    return all(len(graph.consumers(t)) == 1 for node in graph.nodes for t in reads(node))


def check_chain(graph: Graph) -> None:
    """Raises OptionError where the paper's search has no neighbours to measure."""
    if not is_chain(graph):
        raise OptionError(
            "needs a chain of layers, and this model has branches",
            layer="--search paper",
            hint="Use --search measured",
        )


def plan_tables(
    model: DecomposedModel,
    *,
    stats: Mapping[str, TensorStats],
    mode: RangeMode,
    dense_bits: Mapping[str, int] | int = 8,
    bits: Sequence[int] = SEARCHED_BITS,
) -> TablePlan:
    """What to measure for a model. dense_bits: of every decomposed dense layer, or by name.

    Raises OptionError where the layers are no chain.
    """
    graph = model.graph
    check_chain(graph)
    sites: dict[str, list[str]] = {}
    fixed: dict[str, int] = {}
    for node in graph.weight_layers:
        if node.name not in model.layers:
            continue
        if isinstance(node, Conv):
            sites.setdefault(node.input, []).append(node.name)
        else:
            wanted = dense_bits if isinstance(dense_bits, int) else dense_bits[node.name]
            fixed[node.input] = max(wanted, fixed.get(node.input, 1))

    def ranges(tensor: str, count: int) -> TensorQuant:
        if mode == "dynamic":
            return TensorQuant(bits=count, delta=None)
        return choose_range(stats[tensor], bits=count, mode=mode)

    return TablePlan(
        sites=tuple(sites),
        layers=tuple(tuple(names) for names in sites.values()),
        bits=tuple(bits),
        ranges={tensor: {count: ranges(tensor, count) for count in bits} for tensor in sites},
        fixed={tensor: ranges(tensor, count) for tensor, count in fixed.items()},
    )


def measure_tables(
    runner: ChunkRunner,
    model: DecomposedModel,
    plan: TablePlan,
    *,
    labels: I64,
    reference: I32,
    top: int,
    store: Shelf | None = None,
    progress: Progress | None = None,
) -> Tables:
    """Measure every entry of the plan on the runner's pictures.

    labels: int64 [N], true classes or the float model's first ones; reference: int32 [N], the
    float model's ranks of them; top: a picture counts if its label is among the first `top`.
    store: see ChunkRunner.run; what is kept there serves every `top`.
    """
    work = functools.partial(rank_entries, plan=plan, labels=labels)
    chunks = runner.run(model, work, stage="tables", store=store, progress=progress)
    hits = (np.concatenate(chunks, axis=1) < top).sum(axis=1)
    count = len(plan.bits)
    alone = hits[1 : 1 + plan.singles * count].reshape(-1, count)
    pairs = hits[1 + plan.singles * count :].reshape(-1, count, count)
    return Tables(
        layers=plan.layers,
        bits=plan.bits,
        total=len(labels),
        reference=int((reference < top).sum()),
        base=int(hits[0]),
        singles=tuple(tuple(row) for row in alone.tolist()),
        pairs=tuple(tuple(tuple(row) for row in table) for table in pairs.tolist()),
    )


def measure_logits(
    runner: ChunkRunner,
    model: DecomposedModel,
    quants: Mapping[str, TensorQuant],
    *,
    stage: str,
    store: Shelf | None = None,
    progress: Progress | None = None,
    rows: I64 | None = None,
) -> F32:
    """The model's outputs, float32 [N, outputs], with these tensors quantized (none: all float).

    store, rows: see ChunkRunner.run.
    """
    work = functools.partial(compute_logits, quants=quants)
    return np.concatenate(
        runner.run(model, work, stage=stage, store=store, progress=progress, rows=rows)
    )


# --- one chunk of pictures ----------------------------------------------------------------


def compute_logits(
    network: Network, pictures: F32, indices: Indices, *, quants: Mapping[str, TensorQuant]
) -> F32:
    """float32 [n, outputs] of the pictures [n, C, H, W]."""
    output = network.graph.output
    values = forward_all(network, pictures, quants, keep=(output,))
    return logits_of(network.graph, values)


def rank_entries(
    network: Network, pictures: F32, indices: Indices, *, plan: TablePlan, labels: I64
) -> I32:
    """Rank of each picture's label in every entry of the plan: int32 [entries, n].

    Nothing is computed twice: a few pictures at a time walk the tree of (site, bits of the one
    before, bits), each node of which starts from the map that its parent has reached. The dense
    layers then take many rows of different entries together.
    """
    head, tail = split_at_dense(network.graph)
    wanted = inputs_of(network.graph, tail)
    ranks = np.empty((plan.entries, len(pictures)), np.int32)
    waiting: list[tuple[int, slice, Mapping[str, F32]]] = []

    def finish() -> None:
        joined = {
            name: np.concatenate([reached[name] for _, _, reached in waiting])
            for name in waiting[0][2]
        }
        logits = logits_of(network.graph, forward(network, tail, joined, plan.fixed))
        own = np.concatenate([labels[indices[place]] for _, place, _ in waiting])
        row, ranked = 0, ranks_of(logits, own)
        for entry, place, _ in waiting:
            size = place.stop - place.start
            ranks[entry, place] = ranked[row : row + size]
            row += size
        waiting.clear()

    for start in range(0, len(pictures), PICTURES):
        place = slice(start, min(start + PICTURES, len(pictures)))
        x = {network.graph.input: nhwc(pictures[place])}
        for entry, values in _walk(network, head, x, plan):
            waiting.append((entry, place, {name: values[name] for name in wanted}))
            if len(waiting) * PICTURES >= DENSE_ROWS:
                finish()
    if waiting:
        finish()
    return ranks


def _walk(
    network: Network, head: Sequence[Node], x: Mapping[str, F32], plan: TablePlan
) -> Iterator[tuple[int, Mapping[str, F32]]]:
    """(entry, values at the end of `head`) of every entry for a few pictures."""
    graph, fixed = network.graph, plan.fixed

    base = forward(network, head, x, fixed)
    yield 0, base
    for site in range(plan.singles):
        tensor, after = plan.sites[site], _downstream(graph, head, plan.sites[site])
        if site + 1 == len(plan.sites):  # the only one
            for position, bits in enumerate(plan.bits):
                quants = {**fixed, tensor: plan.ranges[tensor][bits]}
                yield plan.single(site, position), forward(network, after, base, quants)
            continue
        following = plan.sites[site + 1]
        rest = _downstream(graph, head, following)
        middle = after[: len(after) - len(rest)]
        for before, bits in enumerate(plan.bits):
            quants = {**fixed, tensor: plan.ranges[tensor][bits]}
            reached = forward(network, middle, base, quants)
            yield plan.single(site, before), forward(network, rest, reached, fixed)
            for position, own in enumerate(plan.bits):
                quants = {**fixed, following: plan.ranges[following][own]}
                yield (
                    plan.pair(site + 1, before, position),
                    forward(network, rest, reached, quants),
                )


def _downstream(graph: Graph, nodes: Sequence[Node], tensor: str) -> tuple[Node, ...]:
    """Those of `nodes` (in graph order) that depend on the tensor."""
    reached, found = {tensor}, []
    for node in nodes:
        if reached.intersection(reads(node)):
            reached.add(node.output)
            found.append(node)
    return tuple(found)
