# SPDX-License-Identifier: 0BSD
"""The search for bits, with everything that takes long kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from bdcc.approx.chunks import ChunkRunner, chunk_bounds
from bdcc.approx.evaluate import I32, ranks_of
from bdcc.approx.model import DecomposedModel, QuantizedModel
from bdcc.approx.quantize import TensorStats, quantize_model
from bdcc.approx.search import Choice as SearchChoice
from bdcc.approx.search import (
    bit_operations,
    choose_measured,
    choose_paper,
    layer_drops,
    stack_paper,
)
from bdcc.approx.tables import Tables, measure_logits, measure_tables, plan_tables
from bdcc.data.pictures import Progress
from bdcc.pipeline.cache import Cache
from bdcc.pipeline.decomposing import model_key
from bdcc.pipeline.material import Judged, evaluation_workers
from bdcc.pipeline.options import CompileOptions, Layers
from bdcc.report.report import percent

Measure = Callable[[QuantizedModel], I32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The bits of every decomposed layer, and how they were found.

    method: measured, paper, fixed or none; predicted: accuracy in per cent, fixed before the choice
    was measured; predicted_drops: by layer, percentage points; evaluations: how many choices were
    evaluated, tables included; table: for report.json.
    """

    method: str
    bits: Mapping[str, int]
    predicted: float | None
    predicted_drops: Mapping[str, float]
    evaluations: int
    table: Any


class Evaluator:
    """Fast evaluations of one decomposed model on the search pictures, through the cache.

    A context manager: it holds worker processes.
    """

    def __init__(
        self,
        *,
        model: DecomposedModel,
        stats: Mapping[str, TensorStats],
        judged: Judged,
        top: int,
        options: CompileOptions,
        cache: Cache,
        progress: Progress | None,
    ) -> None:
        self.model, self.judged, self.top = model, judged, top
        self._stats, self._options, self._cache, self._progress = stats, options, cache, progress
        workers = evaluation_workers(model.graph, len(judged.pictures), options)
        self._runner = ChunkRunner(judged.pictures, workers=workers)
        ranges = hashlib.sha256()
        for tensor in sorted(stats):
            one = stats[tensor]
            ranges.update(f"{tensor} {one.minimum} {one.maximum}".encode() + one.sample.tobytes())
        self._key = (
            model_key(model),
            judged.pictures.key,
            hashlib.sha256(judged.labels.tobytes()).hexdigest(),
            ranges.hexdigest(),
            options.range,
        )

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.__exit__(kind, error, trace)

    def quantized(self, bits: Mapping[str, int]) -> QuantizedModel:
        return quantize_model(self.model, stats=self._stats, bits=bits, mode=self._options.range)

    def percent_of(self, ranks: I32) -> float:
        return percent(ranks < self.top)

    def decomposed_percent(self) -> float:
        """Accuracy with the decomposed weights and float activations."""
        if not self.model.layers:
            return self.percent_of(self.judged.float_ranks)
        return self.percent_of(self._ranks({}, "decomposed model"))

    def fast_percent(self, bits: Mapping[str, int]) -> float:
        """Accuracy of a choice of bits by the fast evaluator."""
        return self.percent_of(self._ranks(bits, "finalists"))

    def _ranks(self, bits: Mapping[str, int], stage: str) -> I32:
        def make() -> dict[str, npt.NDArray[Any]]:
            quants = self.quantized(bits).tensors if bits else {}
            logits = measure_logits(
                self._runner, self.model, quants, stage=stage, progress=self._progress
            )
            return {"ranks": ranks_of(logits, self.judged.labels)}

        chosen = sorted(bits.items())
        return self._cache.arrays("evaluations", *self._key, chosen, make=make)["ranks"]

    def tables(self, dense_bits: Mapping[str, int]) -> Tables:
        """The accuracy tables, chunk by chunk through the cache; they do not depend on D."""
        plan = plan_tables(
            self.model, stats=self._stats, mode=self._options.range, dense_bits=dense_bits
        )
        store = self._cache.path("tables", *self._key, sorted(dense_bits.items()))
        before = self._runner.computed
        tables = measure_tables(
            self._runner,
            self.model,
            plan,
            labels=self.judged.labels,
            reference=self.judged.float_ranks,
            top=self.top,
            store=store,
            progress=self._progress,
        )
        made = self._runner.computed - before
        found = len(chunk_bounds(len(self.judged.pictures))) - made
        self._cache.count("chunks of the tables", found=found, made=made)
        return tables


def choose_bits(
    evaluator: Evaluator, *, layers: Layers, search: str, max_drop_pp: float, measure: Measure
) -> Choice:
    """Q of every decomposed layer: as given, or by the paper's search or the measured one.

    measure: ranks of a candidate's search pictures by the library built from it.
    """
    if not layers.bases or layers.fixed_bits is not None:
        return Choice(
            method="fixed" if layers.bases else "none",
            bits=layers.fixed_bits or {},
            predicted=None,
            predicted_drops={},
            evaluations=0,
            table=None,
        )
    tables = evaluator.tables(layers.dense_bits)
    record: dict[str, Any] = {"layers": [list(n) for n in tables.layers], "bits": list(tables.bits)}
    match search:
        case "paper":
            stacked = stack_paper(tables, max_drop_pp)
            found = choose_paper(tables, max_drop_pp)
            record |= stacked.as_json()
        case "measured":
            found = _confirmed_choice(evaluator, tables, layers, max_drop_pp, measure)
            drops = [tables.drops(site) for site in range(len(tables.layers))]
            record["A"] = [(100.0 * drop / tables.total).tolist() for drop in drops]
            record["finalists"] = [
                {
                    "bits": list(one.bits.values()),
                    "predicted": one.predicted,
                    "measured": one.measured,
                }
                for one in found.tried
            ]
        case _:
            raise ValueError(f"no search of the name {search}")
    return Choice(
        method=search,
        bits={**layers.dense_bits, **found.bits},
        predicted=round(found.predicted, 6),
        predicted_drops=layer_drops(tables, found.bits),
        evaluations=_entries(tables) + max(1, len(found.tried)),
        table=record,
    )


def _confirmed_choice(
    evaluator: Evaluator, tables: Tables, layers: Layers, max_drop_pp: float, measure: Measure
) -> SearchChoice:
    """The measured search by the fast evaluator, until the built library confirms what it chose.

    A finalist that the library puts beyond the tolerance counts with the library's figure from then
    on, and the search steps on from there; what was evaluated before is not evaluated again.
    """
    built: dict[tuple[int, ...], float] = {}

    def accuracy(bits: Mapping[str, int]) -> float:
        known = built.get(tuple(bits.values()))
        return evaluator.fast_percent({**layers.dense_bits, **bits}) if known is None else known

    while True:
        found = choose_measured(
            tables, max_drop_pp, cost=bit_operations(evaluator.model), measure=accuracy
        )
        key = tuple(found.bits.values())
        if key in built or not found.met:
            return found
        candidate = evaluator.quantized({**layers.dense_bits, **found.bits})
        built[key] = evaluator.percent_of(measure(candidate))


def _entries(tables: Tables) -> int:
    """How many combinations of bits the tables have measured, that of none included."""
    count = len(tables.bits)
    return 1 + len(tables.singles) * count + len(tables.pairs) * count**2
