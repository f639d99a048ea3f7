# SPDX-License-Identifier: 0BSD
"""The story: a model and pictures in, a measured C project out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bdcc.approx.joint import Setting
from bdcc.approx.model import QuantizedModel
from bdcc.approx.tables import SEARCHED_BITS
from bdcc.approx.workers import check_cluster
from bdcc.codegen.targets import find_target
from bdcc.data.pictures import Progress
from bdcc.errors import BdccError
from bdcc.files import write_text
from bdcc.host.bench import bench
from bdcc.host.build import build, check_compiler
from bdcc.host.footprint import measure_footprint
from bdcc.host.verify import verify
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.cache import Arrays, Cache, Counts, default_folder, open_cache
from bdcc.pipeline.deploy import deploy_project
from bdcc.pipeline.material import TOP, Judged, gather, judge, warn_of_repeats
from bdcc.pipeline.measure import code_bytes, measure_built
from bdcc.pipeline.models import Models, outline
from bdcc.pipeline.options import (
    DEFAULT_MAX_DROP_PP,
    CompileOptions,
    Layers,
    choose_layers,
    default_metric,
)
from bdcc.pipeline.output import staged
from bdcc.pipeline.project import open_project
from bdcc.pipeline.reporting import draw_or_warn, find_missed, make_report
from bdcc.pipeline.searching import Evaluator, check_search, choose
from bdcc.pipeline.tables import board_cost_table, find_cost_table, find_place, host_of
from bdcc.pipeline.workshop import Workshop
from bdcc.report.html import render_html
from bdcc.report.report import Report, compare, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileResult:
    """project: the folder; timings: as in timings.json; missed: why the tolerance counts as missed,
    or None.
    """

    project: Path
    report: Report
    timings: Mapping[str, Any]
    missed: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Seconds by stage, and how many entries of the cache each found and made."""

    cache: Cache
    seconds: dict[str, float] = field(default_factory=lambda: {"decompose": 0.0})
    entries: dict[str, Counts] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds up over the stages of a name; a stage inside another counts for itself alone."""
        start, before = time.monotonic(), sum(self.seconds.values())
        had = self.cache.totals()
        yield
        inside, has = sum(self.seconds.values()) - before, self.cache.totals()
        spent = self.seconds.get(name, 0.0) + time.monotonic() - start - inside
        self.seconds[name] = round(spent, 3)
        entries = self.entries.setdefault(name, Counts())
        entries.found += has.found - had.found
        entries.made += has.made - had.made

    def as_json(self) -> dict[str, Any]:
        """For timings.json: what came from the cache, all of it or in part, took no time here."""
        found = [name for name, entries in self.entries.items() if entries.found]
        return {
            **{f"{name}_s": seconds for name, seconds in self.seconds.items()},
            "from_cache": [name for name in found if not self.entries[name].made],
            "partly_from_cache": [name for name in found if self.entries[name].made],
        }


def compile_model(
    model: Path,
    options: CompileOptions,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> CompileResult:
    """Compile an ONNX file to a project in options.output, as `bdcc compile` does.

    A target like ssh:pi@raspberrypi is the one that describes the board there; kernels, unless they
    were before, and the project are timed on it.
    progress(stage, done, total) is called while something takes long; say(line) tells what was
    found damaged in the cache, and finished when options.resume is set. Raises BdccError for what
    the user can act on, and leaves nothing behind then. Larger models start worker processes, so
    that a script needs `if __name__ == "__main__":`.
    """
    began = time.monotonic()
    host = host_of(options.target)
    place = None if host is None else find_place(host)
    if place is not None and place.target is not None:
        options = replace(options, target=place.target.name)
    target = find_target(options.target)
    check_compiler()
    graph = load_onnx(model, max_memory=options.max_memory)
    layers = choose_layers(graph, options)
    preprocess = options.preprocess(graph)
    metric = options.metric or default_metric(graph)
    check_search(graph, layers, options, metric=metric)
    top = TOP[metric]
    max_drop = DEFAULT_MAX_DROP_PP if options.max_drop_pp is None else options.max_drop_pp
    check_cluster(options.workers)
    with (
        staged(
            options.output,
            force=options.force,
            elsewhere=tuple(filter(None, (options.cache_folder or default_folder(),))),
        ) as stage,
        open_cache(options.cache, output=options.output, say=say) as cache,
    ):
        project = stage.project
        clock = Clock(cache=cache)
        cost_table = (
            find_cost_table(target, options.cost_table, cache=options.cache_folder, say=say)
            if place is None
            else board_cost_table(
                place, options.cost_table, cache=options.cache, progress=progress, say=say
            )
        )
        with clock.stage("pictures"):
            material = gather(graph, options, preprocess=preprocess, cache=cache, progress=progress)
        workshop = Workshop(
            folder=stage.folder / "candidates",
            name=options.name or model.stem,
            target=target,
            cost_table=cost_table,
            family=options.family,
            preprocess=preprocess,
            class_labels=material.class_labels,
            seed=options.seed,
            flash_bytes=options.flash_bytes or (target.flash_bytes if target.bare else None),
            ram_bytes=options.ram_bytes or (target.ram_bytes if target.bare else None),
        )
        dynamic = options.range == "dynamic"

        def smallest(some: Layers) -> QuantizedModel:
            bases = {name: min(counts) for name, counts in some.bases_choices.items()}
            bits = {tensor: min(counts) for tensor, counts in some.bits_choices(graph).items()}
            return outline(graph, bases, bits, dynamic=dynamic)

        workshop = workshop.counting(smallest(layers))
        more_bits = (replace(layers, least_bits=bits) for bits in SEARCHED_BITS)
        layers = next((one for one in more_bits if workshop.fits(smallest(one))), layers)
        workshop.plan(smallest(layers))  # what cannot fit fails here
        with clock.stage("float"):
            search, holdout, warnings = judge(
                graph, material, options, metric=metric, cache=cache, progress=progress
            )
            warnings = (*warnings, *warn_of_repeats(material))

        def measure(folder: Path, part: Judged) -> Arrays:
            return measure_built(
                folder,
                graph,
                part,
                cache=cache,
                threads=options.worker_count,
                progress=progress,
            )

        def measure_candidate(candidate: QuantizedModel) -> Arrays:
            folder = workshop.project(candidate)
            with clock.stage("build"):
                build(folder, passing=True)
            return measure(folder, search)

        def fits(setting: Setting) -> bool:
            if workshop.flash_bytes is None and workshop.ram_bytes is None:
                return True
            bases, bits = dict(setting.bases), dict(setting.bits)
            return workshop.fits(outline(graph, bases, bits, dynamic=dynamic))

        models = Models(
            graph=graph,
            calib=material.calib,
            options=options,
            cache=cache,
            progress=progress,
            timed=lambda: clock.stage("decompose"),
        )
        with (
            clock.stage("search"),
            Evaluator(
                graph=graph,
                judged=search,
                top=top,
                options=options,
                cache=cache,
                progress=progress,
            ) as evaluator,
        ):
            choice = choose(
                evaluator,
                models,
                layers=layers,
                options=options,
                max_drop_pp=max_drop,
                cost_table=cost_table,
                measure_candidate=measure_candidate,
                fits=fits,
            )
            decomposed_percent = evaluator.decomposed_percent(choice.model.decomposed)
        chosen = choice.model
        plan = workshop.plan(chosen)
        workshop.project(chosen).rename(project)
        with clock.stage("build"):
            library = build(project, passing=True)
            footprint = measure_footprint(project, target) if target.bare else None
        if footprint is not None:
            workshop.with_footprint(footprint).check(plan)
        with clock.stage("measure"):
            found = measure(project, search)
            drop = compare(search.float_ranks < top, found["ranks"] < top)
            held = measure(project, holdout)
            holdout_drop = compare(holdout.float_ranks < top, held["ranks"] < top)
        report = make_report(
            plan,
            choice,
            kernels=workshop.kernels(chosen),
            cost_table=cost_table,
            model_name=model.name,
            options=options,
            material=material,
            metric=metric,
            max_drop_pp=max_drop,
            decomposed=decomposed_percent,
            drops=(drop, holdout_drop),
            nats=(float(found["nats"].mean()), float(held["nats"].mean())),
            code_bytes=None if target.bare else code_bytes(library),
            footprint=footprint,
            warnings=warnings,
        )
        page, lacking = draw_or_warn(lambda: render_html(report.as_json()), name="report.html")
        report = replace(report, warnings=(*report.warnings, *lacking))
        write_json(report.as_json(), project / "report.json")
        if page is not None:
            write_text(project / "report.html", page)
        with clock.stage("verify"):
            verify(project, images=search.pictures.batch([0]), progress=progress)
        stage.finished = True
        timings = clock.as_json() | {"bench": _time(project, options, host, progress=progress)}
        timings["total_s"] = round(time.monotonic() - began, 3)
        write_json(timings, project / "timings.json")
    if options.resume and say is not None:
        say(_found(cache))
    return CompileResult(
        project=options.output,
        report=report,
        timings=timings,
        missed=find_missed(report, options),
    )


def _time(
    project: Path, options: CompileOptions, host: str | None, *, progress: Progress | None
) -> dict[str, Any]:
    """What timings.json has of the finished project's times, here or on the board at `host`."""
    if host is None:
        speed = bench(project)
        return {"min_ms": speed.min_ms, "median_ms": speed.median_ms}
    try:
        return deploy_project(host, open_project(project), progress=progress)
    except BdccError as error:  # the board was there when kernels were measured
        raise type(error)(
            error.message,
            layer=error.layer,
            hint=f"The project is in {options.output}; time it by bdcc deploy",
        ) from error


def _found(cache: Cache) -> str:
    parts = [
        f"{counts.found} of {counts.found + counts.made} {kind}"
        for kind, counts in sorted(cache.counts.items())
    ]
    return "found finished: " + (", ".join(parts) or "nothing")
