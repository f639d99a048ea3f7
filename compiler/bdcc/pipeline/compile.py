# SPDX-License-Identifier: 0BSD
"""The story: a model and pictures in, a measured C project out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import bdcc
from bdcc.approx.decompose import weight_error
from bdcc.approx.model import QuantizedModel
from bdcc.codegen.emit import emit
from bdcc.codegen.plan import DeploymentPlan, make_plan
from bdcc.codegen.targets import Target, find_target
from bdcc.data.generate import generate_pictures
from bdcc.data.pictures import Progress
from bdcc.data.preprocess import Preprocess
from bdcc.errors import OptionError
from bdcc.host.bench import bench
from bdcc.host.build import build
from bdcc.host.verify import verify
from bdcc.ir.graph import Graph, macs, op_name
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.cache import Cache, open_cache
from bdcc.pipeline.decomposing import calibrate_cached, decompose_cached
from bdcc.pipeline.material import TOP, Judged, gather, judge
from bdcc.pipeline.measure import built_ranks, code_bytes
from bdcc.pipeline.options import (
    AUTO_BASES,
    DEFAULT_MAX_DROP_PP,
    CompileOptions,
    choose_layers,
    default_metric,
)
from bdcc.pipeline.output import staged, write_manifest
from bdcc.pipeline.searching import Choice, Evaluator, choose_bits
from bdcc.report.report import Drop, LayerRow, Report, compare, percent, write_json

GOLDEN_PICTURES = 2
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """project: the folder; timings: seconds and milliseconds, as in timings.json; missed: why the exit code is 3, or None."""

    project: Path
    report: Report
    timings: Mapping[str, Any]
    missed: str | None


@dataclass(slots=True)
class Clock:
    """Seconds by stage."""

    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - start
            self.seconds[f"{name}_s"] = round(self.seconds.get(f"{name}_s", 0.0) + spent, 3)

    def total(self) -> float:
        return round(time.monotonic() - self.began, 3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployment:
    """How a quantized model becomes a project; the same for every candidate of the search."""

    name: str
    target: Target
    preprocess: Preprocess
    class_labels: tuple[str, ...]
    seed: int

    def plan(self, model: QuantizedModel) -> DeploymentPlan:
        return make_plan(
            model,
            name=self.name,
            target=self.target,
            preprocess=self.preprocess,
            labels=self.class_labels,
        )

    def write(self, plan: DeploymentPlan, folder: Path) -> None:
        """The project's sources. Its golden vectors are generated pictures: nobody's photographs are handed on."""
        graph = plan.model.graph
        golden = generate_pictures(
            GOLDEN_PICTURES,
            shape=graph.shapes[graph.input],
            preprocess=self.preprocess,
            seed=self.seed,
        )
        emit(plan, folder, pictures=golden.batch(range(GOLDEN_PICTURES)))


def compile_model(
    model: Path,
    options: CompileOptions,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
) -> CompileResult:
    """Compile an ONNX file to a project in options.output, as `bdcc compile` does.

    progress(stage, done, total) is called while something takes long; say(line) tells what is
    worth knowing on the way. Raises BdccError for what the user can act on; nothing is left behind
    then. Larger models start worker processes, so that a script needs `if __name__ == "__main__":`.
    """
    clock, say = Clock(), say or (lambda _: None)
    target = find_target(options.target)
    graph = load_onnx(model)
    layers = choose_layers(graph, options)
    preprocess = options.preprocess(graph)
    metric = options.metric or default_metric(graph)
    max_drop = DEFAULT_MAX_DROP_PP if options.max_drop_pp is None else options.max_drop_pp
    with staged(options.output, force=options.force) as project, open_cache(options.cache) as cache:
        with clock.stage("pictures"):
            material = gather(graph, options, preprocess=preprocess, cache=cache, progress=progress)
        with clock.stage("float"):
            search, holdout, warnings = judge(
                graph, material, options, metric=metric, cache=cache, progress=progress
            )
        with clock.stage("decompose"):
            decomposed = decompose_cached(
                graph, layers.bases, options, cache=cache, progress=progress
            )
        deployment = Deployment(
            name=options.name or model.stem,
            target=target,
            preprocess=preprocess,
            class_labels=material.class_labels,
            seed=options.seed,
        )

        def measure(candidate: QuantizedModel) -> np.ndarray:
            """Ranks on the search pictures, by the library built from a candidate."""
            folder = project.parent / "candidate"
            folder.mkdir()
            try:
                deployment.write(deployment.plan(candidate), folder)
                return built_ranks(
                    folder,
                    search.pictures,
                    search.labels,
                    cache=cache,
                    threads=options.worker_count,
                    progress=progress,
                )
            finally:
                shutil.rmtree(folder)

        with clock.stage("search"):
            stats = calibrate_cached(decomposed, material.calib, cache=cache, progress=progress)
            with Evaluator(
                model=decomposed,
                stats=stats,
                judged=search,
                top=TOP[metric],
                options=options,
                cache=cache,
                progress=progress,
            ) as evaluator:
                choice = choose_bits(
                    evaluator,
                    layers=layers,
                    search=options.search,
                    max_drop_pp=max_drop,
                    measure=measure,
                )
                decomposed_percent = evaluator.decomposed_percent()

        plan = deployment.plan(evaluator.quantized(choice.bits))
        _check_limits(plan, options)
        deployment.write(plan, project)
        with clock.stage("build"):
            library = build(project)
        with clock.stage("measure"):
            drops = [
                compare(
                    part.float_ranks < TOP[metric],
                    built_ranks(
                        project,
                        part.pictures,
                        part.labels,
                        cache=cache,
                        threads=options.worker_count,
                        progress=progress,
                    )
                    < TOP[metric],
                )
                for part in (search, holdout)
            ]
        with clock.stage("verify"):
            verify(project, images=search.pictures.batch([0]), progress=progress)
        speed = bench(project)
        met = drops[0].drop_pp <= max_drop
        report = Report(
            bdcc_version=bdcc.__version__,
            fingerprint=f"{plan.fingerprint:016x}",
            target=target.name,
            model_name=model.name,
            model_sha256=graph.sha256,
            options=options.as_json(),
            preprocess=preprocess.as_json(),
            max_drop_pp=max_drop,
            met=met,
            warnings=(*warnings, *_tolerance_warning(drops[0], max_drop)),
            notes=_notes(options, judge=material.judge, metric=metric, samples=drops[0].samples),
            layers=_layer_rows(plan, choice),
            judge=material.judge,
            metric=metric,
            decomposed=decomposed_percent,
            predicted=choice.predicted,
            search_drop=drops[0],
            holdout_drop=drops[1],
            calib_samples=len(material.calib),
            weight_bytes=plan.blob_bytes,
            float_weight_bytes=sum(
                4 * (layer.weight.size + layer.bias.size) for layer in graph.weight_layers
            ),
            arena_bytes=plan.arena_bytes,
            code_bytes=code_bytes(library),
            search_method=choice.method,
            evaluations=choice.evaluations,
            table=choice.table,
        )
        timings = {
            **clock.seconds,
            "bench": {"min_ms": speed.min_ms, "median_ms": speed.median_ms},
            "total_s": clock.total(),
        }
        shutil.rmtree(project / "build", ignore_errors=True)
        write_json(report.as_json(), project / "report.json")
        write_json(timings, project / "timings.json")
        write_manifest(project)
        if options.resume:
            say(_found(cache))
    return CompileResult(
        project=options.output,
        report=report,
        timings=timings,
        missed=_missed(report, options, searched=choice.method in ("measured", "paper")),
    )


def _check_limits(plan: DeploymentPlan, options: CompileOptions) -> None:
    for option, needed, allowed in (
        ("--flash", plan.blob_bytes, options.flash_bytes),
        ("--ram", plan.arena_bytes, options.ram_bytes),
    ):
        if allowed is not None and needed > allowed:
            what = "weights" if option == "--flash" else "arena"
            raise OptionError(
                f"the {what} take {needed} bytes, allowed are {allowed}", layer=option
            )


def _layer_rows(plan: DeploymentPlan, choice: Choice) -> tuple[LayerRow, ...]:
    graph, model = plan.model.graph, plan.model
    owners = {name: step.layer for step in plan.steps for name in step.sections}
    rows = []
    for layer in graph.weight_layers:
        one = model.decomposed.layers.get(layer.name)
        bits = None if one is None else model.tensors[layer.input].bits
        rows.append(
            LayerRow(
                name=layer.name,
                op=op_name(layer),
                bases=None if one is None else one.bases,
                q=bits,
                macs=macs(layer, graph.shapes),
                weight_bytes=sum(
                    section.array.nbytes
                    for section in plan.sections
                    if owners.get(section.name) == layer.name
                ),
                kernel=None if one is None else f"popcount_b{one.bases}q{bits}",
                weight_error=None if one is None else round(weight_error(layer.weight, one), 9),
                predicted_drop_pp=choice.predicted_drops.get(layer.name),
            )
        )
    return tuple(rows)


def _tolerance_warning(drop: Drop, max_drop: float) -> tuple[str, ...]:
    if max_drop >= 2 * drop.error_pp:
        return ()
    return (
        f"the tolerance of {max_drop:g} points is under two standard errors of the drop "
        f"({drop.error_pp:.2f} on {drop.samples} pictures): more pictures would tell more",
    )


def _notes(options: CompileOptions, *, judge: str, metric: str, samples: int) -> tuple[str, ...]:
    notes = []
    if options.bases == "auto" and not options.float_only:
        notes.append(f"--bases auto means {AUTO_BASES} in this version")
    if judge == "generated":
        notes.append(
            f"Judged on {samples} generated pictures by agreement with the float model's first "
            "class: that tells how closely the compiled network follows the float one, not how "
            "often either is right; give --data for that."
        )
    if options.target == "host":
        notes.append("Built for this machine (--target host); bdcc targets lists the others.")
    return tuple(notes)


def _missed(report: Report, options: CompileOptions, *, searched: bool) -> str | None:
    drop, held = report.search_drop.drop_pp, report.holdout_drop.drop_pp
    binding = searched or options.max_drop_pp is not None or options.strict
    if not report.met and binding:
        best = ", ".join(f"{row.name} {row.q}" for row in report.layers if row.q is not None)
        return (
            f"the tolerance of {report.max_drop_pp:g} points is missed: the best found drops "
            f"{drop:.2f} (bits: {best or 'all float'}); its project is in {options.output}"
        )
    if options.strict and held > report.max_drop_pp:
        return (
            f"the holdout pictures miss the tolerance of {report.max_drop_pp:g} points: they drop "
            f"{held:.2f}; the project is in {options.output}"
        )
    return None


def _found(cache: Cache) -> str:
    parts = [
        f"{counts.found} of {counts.found + counts.made} {kind}"
        for kind, counts in sorted(cache.counts.items())
    ]
    return "found finished: " + (", ".join(parts) or "nothing")
