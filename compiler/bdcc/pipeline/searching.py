# SPDX-License-Identifier: 0BSD
"""How bases and bits are chosen: as given, by the paper's search, or by the joint one; with
everything that takes long kept in the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from bdcc.approx.chunks import ChunkRunner, chunk_bounds
from bdcc.approx.evaluate import I32
from bdcc.approx.joint import Cost, Finalist, Measured, Setting, Space, choose_jointly
from bdcc.approx.model import DecomposedModel, QuantizedModel, TensorQuant
from bdcc.approx.quantize import TensorStats, quantize_model
from bdcc.approx.search import choose_paper, layer_drops, stack_paper
from bdcc.approx.sensitivity import Sensitivity, measure_sensitivity
from bdcc.approx.tables import Tables, check_chain, measure_logits, measure_tables, plan_tables
from bdcc.codegen.costs import CostTable
from bdcc.data.listing import I64
from bdcc.data.pictures import Progress
from bdcc.errors import OptionError
from bdcc.ir.graph import Graph
from bdcc.pipeline.cache import Arrays, Cache, emission_digest
from bdcc.pipeline.costs import cost_of
from bdcc.pipeline.decomposing import model_key
from bdcc.pipeline.material import (
    TOP,
    Judged,
    evaluation_workers,
    evenly,
    outcome_of,
    outputs_of,
)
from bdcc.pipeline.models import Models
from bdcc.pipeline.options import CompileOptions, Layers
from bdcc.report.report import compare, percent

TABLE_PICTURES = 200  # that the divergences of single choices are measured on
LOWERED_PICTURES = 400  # that a lowered choice is tried on
# Of drop on photographs for a nat of divergence on generated pictures, as far as that can be known
# (docs/without_labels.md).
GENERATED_PP_PER_NAT = 100.0
MeasureCandidate = Callable[[QuantizedModel], Arrays]  # the search pictures by its built library


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The chosen model, and how it was found.

    method: measured, paper, fixed or none; predicted: accuracy in per cent, fixed before the choice
    was measured; predicted_drops: by layer, percentage points; evaluations: how many choices were
    evaluated, tables included; table: for report.json.
    """

    method: str
    model: QuantizedModel
    predicted: float | None = None
    predicted_drops: Mapping[str, float]
    evaluations: int = 0
    table: Any = None


class Evaluator:
    """Fast evaluations of models on the search pictures, through the cache.

    A context manager: it holds worker processes.
    """

    def __init__(
        self,
        *,
        graph: Graph,
        judged: Judged,
        top: int,
        options: CompileOptions,
        cache: Cache,
        progress: Progress | None,
    ) -> None:
        self.graph, self.judged, self.top = graph, judged, top
        self._options, self._cache, self._progress = options, cache, progress
        workers = evaluation_workers(graph, len(judged.pictures), options)
        self._runner = ChunkRunner(judged.pictures, workers=workers)
        self._key = (
            graph.sha256,
            judged.pictures.key,
            hashlib.sha256(judged.labels.tobytes()).hexdigest(),
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

    def decomposed_percent(self, model: DecomposedModel) -> float:
        """Accuracy with the decomposed weights and float activations, in per cent."""
        if not model.layers:
            return self.percent_of(self.judged.float_ranks)

        def make() -> Arrays:
            return self._judge(model, {}, "decomposed model")

        key = (*self._key, model_key(model))
        return self.percent_of(self._cache.arrays("evaluations", *key, make=make)["ranks"])

    def percent_of(self, ranks: I32) -> float:
        return percent(ranks < self.top)

    def _judge(
        self,
        model: DecomposedModel,
        quants: Mapping[str, TensorQuant],
        stage: str,
        rows: I64 | None = None,
    ) -> Arrays:
        outputs = measure_logits(
            self._runner, model, quants, stage=stage, rows=rows, progress=self._progress
        )
        return outcome_of(self.graph, self.judged, outputs, rows)

    # --- the paper's tables ---------------------------------------------------------------

    def tables(
        self, model: DecomposedModel, stats: Mapping[str, TensorStats], dense: Mapping[str, int]
    ) -> Tables:
        """The accuracy tables, chunk by chunk through the cache; they do not depend on D."""
        mode = self._options.range
        plan = plan_tables(model, stats=stats, mode=mode, dense_bits=dense)
        ranges = hashlib.sha256()
        for tensor in sorted(stats):
            one = stats[tensor]
            ranges.update(f"{tensor} {one.minimum} {one.maximum}".encode() + one.sample.tobytes())
        key = (*self._key, model_key(model), ranges.hexdigest(), mode, sorted(dense.items()))
        before = self._runner.computed
        tables = measure_tables(
            self._runner,
            model,
            plan,
            labels=self.judged.labels,
            reference=self.judged.float_ranks,
            top=self.top,
            store=self._cache.shelf("tables", *key),
            progress=self._progress,
        )
        made = self._runner.computed - before
        found = len(chunk_bounds(len(self.judged.pictures))) - made
        self._cache.count("chunks of the tables", found=found, made=made)
        return tables

    # --- the joint search's measurements --------------------------------------------------

    def sensitivity(self, models: Models, space: Space) -> Sensitivity:
        """What single choices cost; does not depend on D."""
        rows = evenly(len(self.judged.pictures), TABLE_PICTURES)
        choices = [
            (name, list(counts)) for name, counts in (*space.bases.items(), *space.bits.items())
        ]
        key = (*self._key, models.key, self.top, choices)

        def make() -> dict[str, object]:
            return measure_sensitivity(
                self._runner,
                self.graph,
                bases=space.bases,
                bits=space.bits,
                decomposed=models.single,
                quantized=models.range_of,
                labels=self.judged.labels,
                rows=rows,
                top=self.top,
                store=self._cache.shelf("tables", *key),
                progress=self._progress,
            ).as_json()

        return Sensitivity.from_json(self._cache.record("sensitivities", *key, make=make))

    def measure(
        self, models: Models, setting: Setting, measure_candidate: MeasureCandidate
    ) -> Arrays:
        """The outcome of a setting, decomposed in sequence and built."""

        def make() -> Arrays:
            return measure_candidate(models.build(setting))

        key = (*self._key, models.key, setting, emission_digest())
        return self._cache.arrays("finalists", *key, make=make)

    def measure_lowered(
        self, models: Models, setting: Setting, lowered: Setting, rows: I64
    ) -> Arrays:
        """The outcome of a setting changed in place, on the pictures `rows`."""

        def make() -> Arrays:
            model = models.lowered(setting, lowered)
            return self._judge(model.decomposed, model.tensors, "lowered choice", rows)

        key = (*self._key, models.key, setting, lowered, len(rows))
        return self._cache.arrays("lowered", *key, make=make)


def check_search(graph: Graph, layers: Layers, options: CompileOptions, *, metric: str) -> None:
    """Refuses, before anything is measured, a search that cannot be made: by a metric that nothing
    fails, or the paper's on a graph with branches. Raises OptionError.
    """
    if not layers.are_searched:
        return
    outputs, top = outputs_of(graph), TOP[metric]
    if outputs <= top:
        other = "" if outputs == 1 else "Use --metric top1, or give"
        raise OptionError(
            f"{metric} takes a model of more than {top} output{'s' * (top > 1)} to search by, and "
            f"this one has {outputs}: whatever it answers counts as right",
            layer="--metric",
            hint=f"{other or 'Give'} --bases and --q",
        )
    if options.search == "paper":
        check_chain(graph)


def estimate_drop(agreement_pp: float, nats: float) -> float:
    """Percentage points that photographs will lose, from what generated pictures do."""
    return max(agreement_pp, GENERATED_PP_PER_NAT * nats)


def choose(
    evaluator: Evaluator,
    models: Models,
    *,
    layers: Layers,
    options: CompileOptions,
    max_drop_pp: float,
    cost_table: CostTable,
    measure_candidate: MeasureCandidate,
    fits: Callable[[Setting], bool],
) -> Choice:
    """B and Q of every decomposed layer, as the options say.

    cost_table: of the target's kernels; fits: whether the target has room for a setting.
    """
    if not layers.names:
        empty = DecomposedModel(graph=models.graph, layers={})
        return Choice(
            method="none",
            model=QuantizedModel(decomposed=empty, tensors={}),
            predicted_drops={},
        )
    bases, bits = layers.fixed_bases, layers.fixed_bits
    if bases is not None and bits is not None:
        return Choice(method="fixed", model=models.fixed(bases, bits), predicted_drops={})
    if options.search == "paper" and bases is not None and bits is None:
        model = models.weights(bases)
        return search_paper(
            evaluator,
            model,
            stats=models.stats(model),
            layers=layers,
            options=options,
            max_drop_pp=max_drop_pp,
        )
    return search_jointly(
        evaluator,
        models,
        layers=layers,
        cost=cost_of(models.graph, options.objective, cost_table, family=options.family),
        options=options,
        max_drop_pp=max_drop_pp,
        measure_candidate=measure_candidate,
        fits=fits,
    )


# --- the paper's search -------------------------------------------------------------------


def search_paper(
    evaluator: Evaluator,
    model: DecomposedModel,
    *,
    stats: Mapping[str, TensorStats],
    layers: Layers,
    options: CompileOptions,
    max_drop_pp: float,
) -> Choice:
    """Algorithm 1: Q of the conv layers, from tables over all pairs of neighbours."""
    tables = evaluator.tables(model, stats, layers.dense_bits)
    found = choose_paper(tables, max_drop_pp)
    bits = {**layers.dense_bits, **found.bits}
    return Choice(
        method="paper",
        model=quantize_model(model, stats=stats, bits=bits, mode=options.range),
        predicted=round(found.predicted, 6),
        predicted_drops=layer_drops(tables, found.bits),
        evaluations=_entries(tables) + 1,
        table={
            "layers": [list(names) for names in tables.layers],
            "bits": list(tables.bits),
            **stack_paper(tables, max_drop_pp).as_json(),
        },
    )


def _entries(tables: Tables) -> int:
    """How many combinations of bits the tables have measured, that of none included."""
    count = len(tables.bits)
    return 1 + len(tables.singles) * count + len(tables.pairs) * count**2


# --- the joint search ---------------------------------------------------------------------


def search_jointly(
    evaluator: Evaluator,
    models: Models,
    *,
    layers: Layers,
    cost: Cost,
    options: CompileOptions,
    max_drop_pp: float,
    measure_candidate: MeasureCandidate,
    fits: Callable[[Setting], bool],
) -> Choice:
    """B and Q of all layers: the cheapest setting found whose drop, measured in the library that is
    built from it, keeps the tolerance.
    """
    graph, judged, top = models.graph, evaluator.judged, evaluator.top
    space = Space(
        tensors={
            layer.name: layer.input for layer in graph.weight_layers if layer.name in layers.names
        },
        bases=layers.bases_choices,
        bits=layers.bits_choices(graph),
        cost=cost,
        fits=fits,
    )
    sensitivity = evaluator.sensitivity(models, space)
    float_hits = judged.float_ranks < top
    some = evenly(len(float_hits), LOWERED_PICTURES)

    def measured(nats: float, drop_pp: float, upper_pp: float, samples: int) -> Measured:
        if options.data is None:
            drop_pp = upper_pp = estimate_drop(upper_pp, nats)
        return Measured(nats=nats, drop_pp=drop_pp, upper_pp=upper_pp, samples=samples)

    def summary(found: Arrays) -> Measured:
        drop = compare(float_hits, found["ranks"] < top)
        return measured(
            nats=float(found["nats"].mean()),
            drop_pp=drop.drop_pp,
            upper_pp=drop.interval_pp[1] if options.strict else drop.drop_pp,
            samples=len(float_hits),
        )

    def measure(setting: Setting) -> Measured:
        return summary(evaluator.measure(models, setting, measure_candidate))

    def measure_lowered(whole: Setting, lowered: Setting) -> Measured:
        """By how much more is lost on some of the pictures than by the whole."""
        known = evaluator.measure(models, whole, measure_candidate)
        before = summary(known)
        part = evaluator.measure_lowered(models, whole, lowered, some)
        lost = (known["ranks"][some] < top).mean() - (part["ranks"] < top).mean()
        more = 100 * float(lost)
        return measured(
            nats=before.nats + float((part["nats"] - known["nats"][some]).mean()),
            drop_pp=before.drop_pp + more,
            upper_pp=before.upper_pp + more,
            samples=len(some),
        )

    found = choose_jointly(
        space, sensitivity, max_drop_pp, measure=measure, measure_lowered=measure_lowered
    )
    finalist = next(one for one in found.tried if one.setting == found.setting and one.whole)
    return Choice(
        method="measured",
        model=models.build(finalist.setting),
        predicted=round(evaluator.percent_of(judged.float_ranks) - finalist.predicted_pp, 6),
        predicted_drops=_shares(space, sensitivity, finalist),
        evaluations=_choices(space, sensitivity) + len(found.tried),
        table={**sensitivity.as_json(), "finalists": [_as_json(one) for one in found.tried]},
    )


def _shares(space: Space, sensitivity: Sensitivity, finalist: Finalist) -> dict[str, float]:
    """The predicted drop shared out over the layers by the divergences of the tables."""
    bits = dict(finalist.setting.bits)
    readers = list(space.tensors.values())
    own = {
        name: sensitivity.bases[name][b]
        + sensitivity.bits[space.tensors[name]][bits[space.tensors[name]]]
        / readers.count(space.tensors[name])
        for name, b in finalist.setting.bases
    }
    total = max(sum(own.values()), 1e-12)
    return {name: round(finalist.predicted_pp * nats / total, 6) for name, nats in own.items()}


def _choices(space: Space, sensitivity: Sensitivity) -> int:
    counts: Sequence[Sequence[int]] = (*space.bases.values(), *space.bits.values())
    return sum(map(len, counts)) + len(sensitivity.correlations)


def _as_json(one: Finalist) -> dict[str, Any]:
    return {
        "bases": [count for _, count in one.setting.bases],
        "bits": [count for _, count in one.setting.bits],
        "cost": one.cost,
        "predicted_drop_pp": round(one.predicted_pp, 4),
        "expected_drop_pp": round(one.expected_pp, 4),
        "drop_pp": round(one.measured.drop_pp, 4),
        "nats": round(one.measured.nats, 6),
        "samples": one.measured.samples,
        "in_sequence": one.whole,
        "kept": one.kept,
    }
