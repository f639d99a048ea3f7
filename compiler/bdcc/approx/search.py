# SPDX-License-Identifier: 0BSD
"""The paper's Algorithm 1: the activation bits of every conv layer, from the measured tables.

Drops add up along the chain, and nothing is measured after the tables. joint.py has the other
search, which chooses bases too and measures what it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.approx.tables import Tables

Bits = tuple[int, ...]  # one per site, in order


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """bits: by conv layer; predicted: accuracy in percent; met: whether the prediction keeps the
    tolerance.
    """

    bits: Mapping[str, int]
    predicted: float
    met: bool


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
    if R - S < D.
    """
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
        bits = _best_predicted(tables)
        return Choice(bits=_by_layer(tables, bits), predicted=predict(tables, bits), met=False)
    positions = [int(table.any(axis=0).argmax()) for table in survives[-1:]]
    for table in reversed(survives[1:]):
        positions.insert(0, int(table[:, positions[0]].argmax()))
    bits = tuple(tables.bits[position] for position in positions)
    return Choice(bits=_by_layer(tables, bits), predicted=predict(tables, bits), met=True)


def _best_predicted(tables: Tables) -> Bits:
    """The choice of least predicted drop, of several that with the fewest bits."""
    # best[b]: (hits lost, bits together, bits) of the best choice so far that ends in bits[b].
    best: list[tuple[int, int, Bits]] = [(0, 0, ())]
    for site in range(len(tables.layers)):
        table = tables.drops(site)
        best = [
            min(
                (lost + int(table[before, position]), spent + count, (*bits, count))
                for before, (lost, spent, bits) in enumerate(best)
            )
            for position, count in enumerate(tables.bits)
        ]
    return min(best)[2]
