# SPDX-License-Identifier: 0BSD
"""Choosing the activation bits of every conv layer under a tolerance, from the measured tables.

`choose_paper` is the paper's Algorithm 1: additive drops along the chain, nothing measured after
the tables. `choose_measured` orders its finalists by the same tables, and measures them.
Costs and predictions add up over the sites, so that no enumeration of 7^I choices is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import DecomposedModel
from bdcc.approx.tables import I64, Tables
from bdcc.errors import OptionError
from bdcc.ir.graph import macs

Bits = tuple[int, ...]  # one per site, in order
Cost = Callable[[str, int], float]  # of a layer at so many bits; costs of layers add up
Measure = Callable[[Mapping[str, int]], float]  # bits by conv layer -> accuracy, percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalist:
    """One choice of bits by conv layer. predicted, measured: accuracy in percent."""

    bits: Mapping[str, int]
    cost: float
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """bits: by conv layer. predicted: accuracy in percent, fixed before the choice was evaluated.

    met: whether the tolerance is kept, by prediction (paper) or by measurement; if not, the best
    that was found. tried: what was measured on the way, in order.
    """

    bits: Mapping[str, int]
    predicted: float
    met: bool
    tried: tuple[Finalist, ...] = ()


def predict(tables: Tables, bits: Bits) -> float:
    """R less the drops along the choice: accuracy in percent."""
    return tables.percent(tables.reference - sum(_drops_along(tables, bits)))


def layer_drops(tables: Tables, bits: Mapping[str, int]) -> Mapping[str, float]:
    """Percentage points that each conv layer costs by the tables, given the bits before it.

    Layers that share a tensor have the same figure, which counts once.
    """
    along = _drops_along(tables, _by_site(tables, bits))
    return {
        name: tables.percent(drop)
        for names, drop in zip(tables.layers, along, strict=True)
        for name in names
    }


def bit_operations(model: DecomposedModel) -> Cost:
    """B * Q * MACs of a decomposed layer: what the popcount kernels' time follows."""
    amounts = {
        node.name: macs(node, model.graph.shapes) * model.layers[node.name].bases
        for node in model.graph.weight_layers
        if node.name in model.layers
    }
    return lambda layer, bits: float(bits * amounts[layer])


def _drops_along(tables: Tables, bits: Bits) -> list[int]:
    positions = [tables.bits.index(count) for count in bits]
    drops = []
    for site, position in enumerate(positions):
        table = tables.drops(site)
        drops.append(int(table[positions[site - 1] if len(table) > 1 else 0, position]))
    return drops


def _by_layer(tables: Tables, bits: Bits) -> dict[str, int]:
    sites = zip(tables.layers, bits, strict=True)
    return {name: count for names, count in sites for name in names}


def _by_site(tables: Tables, bits: Mapping[str, int]) -> Bits:
    return tuple(bits[names[0]] for names in tables.layers)


# --- the paper's search -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaperTables:
    """A and T of Algorithm 1: one table [before, bits] per layer, of one row for the first.

    drops: A, percentage points; stacked: T, the predicted accuracy S where R - S < D, else NaN.
    """

    drops: tuple[npt.NDArray[np.float64], ...]
    stacked: tuple[npt.NDArray[np.float64], ...]

    def as_json(self) -> dict[str, Any]:
        """Nested lists; null where nothing is stacked."""
        return {
            "A": [table.tolist() for table in self.drops],
            "T": [
                [[None if np.isnan(s) else s for s in row] for row in table.tolist()]
                for table in self.stacked
            ],
        }


def stack_paper(tables: Tables, max_drop: float) -> PaperTables:
    """Algorithm 1's first loop. max_drop: D in percentage points.

    S_1[b] = R - A^1[b]; S_i[a, b] = max over surviving S_{i-1}[., a] - A^i[a, b]; an entry survives
    if R - S < D. Raises OptionError where the layers are no chain.
    """
    if not tables.pairs and len(tables.layers) > 1:
        raise OptionError(
            "needs a chain of layers, and this model has branches",
            layer="--search paper",
            hint="Use --search measured",
        )
    stacked: list[npt.NDArray[np.float64]] = []
    best = np.array([float(tables.reference)])
    for site in range(len(tables.layers)):
        hits = best[:, None] - tables.drops(site)
        drop = 100.0 * (tables.reference - hits) / tables.total
        hits = np.where(drop < max_drop, hits, -np.inf)  # also where no predecessor survived
        stacked.append(np.where(np.isinf(hits), np.nan, 100.0 * hits / tables.total))
        best = hits.max(axis=0)
    return PaperTables(
        drops=tuple(100.0 * tables.drops(i) / tables.total for i in range(len(tables.layers))),
        stacked=tuple(stacked),
    )


def choose_paper(tables: Tables, max_drop: float) -> Choice:
    """Algorithm 1: walking back, the smallest surviving bits consistent with those behind.

    If nothing survives to the last layer, the choice of best prediction, with met=False.
    """
    stacked = stack_paper(tables, max_drop).stacked
    survives = [~np.isnan(table) for table in stacked]
    if survives and not survives[-1].any():
        bits = _front(tables, lambda layer, bits: float(bits))[0]
        return Choice(bits=_by_layer(tables, bits), predicted=predict(tables, bits), met=False)
    positions = [int(table.any(axis=0).argmax()) for table in survives[-1:]]
    for table in reversed(survives[1:]):
        positions.insert(0, int(table[:, positions[0]].argmax()))
    bits = tuple(tables.bits[position] for position in positions)
    return Choice(bits=_by_layer(tables, bits), predicted=predict(tables, bits), met=True)


# --- the measured search ------------------------------------------------------------------


def choose_measured(
    tables: Tables,
    max_drop: float,
    *,
    cost: Cost,
    measure: Measure,
    progress: Callable[[str, int, int], None] | None = None,
) -> Choice:
    """The cheapest finalist whose measured drop is at most `max_drop` percentage points.

    The choices that are cheapest for their predicted drop form a front. Where along it D is kept is
    found by measuring: outwards in growing steps from where the prediction says, then by bisection.
    From there layers lose a bit each, one at a time, while D is kept; so every single-step lowering
    of the result has been tried and breaks D. If nothing on the front keeps D, layers gain a bit
    each, one at a time. `measure` is asked once per choice.
    """
    search = _Measuring(tables, max_drop, cost, measure, progress)
    found = search.along_front(_front(tables, cost))
    if found is None:
        best = max(search.tried.values(), key=lambda f: (f.measured, -f.cost))
        return search.choose(best, met=False)
    return search.choose(search.descend(found), met=True)


class _Measuring:
    """The finalists measured so far. Lives for one choose_measured."""

    def __init__(
        self,
        tables: Tables,
        max_drop: float,
        cost: Cost,
        measure: Measure,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        self.tables, self.max_drop, self.cost = tables, max_drop, cost
        self.measure, self.progress = measure, progress
        self.tried: dict[Bits, Finalist] = {}

    def keeps(self, bits: Bits) -> bool:
        """Whether the measured drop is within the tolerance."""
        if bits not in self.tried:
            named = _by_layer(self.tables, bits)
            self.tried[bits] = Finalist(
                bits=named,
                cost=_total(self.tables, self.cost, bits),
                predicted=predict(self.tables, bits),
                measured=self.measure(named),
            )
            if self.progress:
                self.progress("finalists", len(self.tried), 0)
        reference = self.tables.percent(self.tables.reference)
        # A drop of just D must not fail by a rounding of the percentages: hits are integers.
        return reference - self.tried[bits].measured <= self.max_drop + 1e-9

    def along_front(self, front: list[Bits]) -> Bits | None:
        """The cheapest of the front that keeps the tolerance, taking it as monotone.

        front: dearest first, as predicted drops rise.
        """
        allowed = self.tables.percent(self.tables.reference) - self.max_drop
        start = sum(predict(self.tables, bits) >= allowed for bits in front[1:])
        good, bad, step = -1, len(front), 1
        if self.keeps(front[start]):
            good = start
            while good < bad - 1 and bad == len(front):
                position = min(good + step, len(front) - 1)
                kept = self.keeps(front[position])
                good, bad = (position, bad) if kept else (good, position)
                step *= 2
        else:
            bad = start
            while good < 0 < bad:
                position = max(bad - step, 0)
                kept = self.keeps(front[position])
                good, bad = (position, bad) if kept else (good, position)
                step *= 2
        if good < 0:
            return self.step_up(front[0])
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.keeps(front[middle]) else (good, middle)
        return front[good]

    def step_up(self, bits: Bits) -> Bits | None:
        """Raise one layer at a time, the one predicted to gain most, until D is kept."""
        while not self.keeps(bits):
            raised = self._neighbours(bits, +1)
            if not raised:
                return None
            bits = max(raised, key=lambda b: (predict(self.tables, b), -self._cost(b)))
        return bits

    def descend(self, bits: Bits) -> Bits:
        """Lower one layer at a time, the one that saves most, while the tolerance is kept."""
        while True:
            lowered = sorted(self._neighbours(bits, -1), key=self._cost)
            kept = next((b for b in lowered if self.keeps(b)), None)
            if kept is None:
                return bits
            bits = kept

    def choose(self, chosen: Finalist | Bits, *, met: bool) -> Choice:
        finalist = chosen if isinstance(chosen, Finalist) else self.tried[chosen]
        return Choice(
            bits=finalist.bits,
            predicted=finalist.predicted,
            met=met,
            tried=tuple(self.tried.values()),
        )

    def _cost(self, bits: Bits) -> float:
        return _total(self.tables, self.cost, bits)

    def _neighbours(self, bits: Bits, step: int) -> list[Bits]:
        allowed = self.tables.bits
        moved = []
        for site, count in enumerate(bits):
            position = allowed.index(count) + step
            if 0 <= position < len(allowed):
                moved.append((*bits[:site], allowed[position], *bits[site + 1 :]))
        return moved


def _total(tables: Tables, cost: Cost, bits: Bits) -> float:
    return sum(cost(name, count) for name, count in _by_layer(tables, bits).items())


def _front(tables: Tables, cost: Cost) -> list[Bits]:
    """Choices that no other beats in both cost and predicted drop, smallest drop first.

    By dynamic programming over the sites: for each number of bits of the last site, the (drop,
    cost) pairs worth keeping. Drops are whole hits, so the lists stay short.
    """
    # states[b]: (hits lost, cost, bits), of choices for the sites so far that end in bits[b].
    states: list[list[tuple[int, float, Bits]]] = [[(0, 0.0, ())]]
    for site, names in enumerate(tables.layers):
        table: I64 = tables.drops(site)
        if len(table) == 1:
            states = [_undominated([state for kept in states for state in kept])]
        states = [
            _undominated(
                [
                    (lost + int(table[before, position]), spent + own, (*bits, count))
                    for before, kept in enumerate(states)
                    for lost, spent, bits in kept
                ]
            )
            for position, count in enumerate(tables.bits)
            for own in [sum(cost(name, count) for name in names)]
        ]
    return [bits for _, _, bits in _undominated([state for kept in states for state in kept])]


def _undominated(states: list[tuple[int, float, Bits]]) -> list[tuple[int, float, Bits]]:
    """Drops ascending, costs descending."""
    kept: list[tuple[int, float, Bits]] = []
    for state in sorted(states):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    return kept
