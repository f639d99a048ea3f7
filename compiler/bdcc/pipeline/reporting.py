# SPDX-License-Identifier: 0BSD
"""What a compilation says of its result: rows per layer, warnings, notes, and whether the tolerance
is missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal

import bdcc
from bdcc.approx.decompose import weight_error
from bdcc.codegen.boards import estimate_boards
from bdcc.codegen.costs import CostTable, KernelChoice
from bdcc.codegen.plan import DeploymentPlan
from bdcc.codegen.targets import Target, changes_of
from bdcc.errors import one_line
from bdcc.files import reason
from bdcc.host.footprint import Footprint
from bdcc.ir.graph import macs, op_name
from bdcc.pipeline.material import Material
from bdcc.pipeline.options import PAPER_AUTO_BASES, CompileOptions
from bdcc.pipeline.searching import Choice, estimate_drop
from bdcc.report.report import Drop, LayerRow, Report, is_bound


def make_report(
    plan: DeploymentPlan,
    choice: Choice,
    *,
    kernels: Mapping[str, KernelChoice],
    cost_table: CostTable,
    model_name: str,
    options: CompileOptions,
    material: Material,
    metric: str,
    max_drop_pp: float,
    decomposed: float,
    drops: tuple[Drop, Drop],
    nats: tuple[float, float],
    code_bytes: int | None,
    footprint: Footprint | None,
    warnings: Sequence[str],
) -> Report:
    """drops, nats: accuracy lost and divergence, on the search and on the holdout pictures;
    code_bytes: of the library that was measured; footprint: on bare metal.
    """
    graph = plan.model.graph
    search, holdout = drops
    if options.data is None:
        search = _estimate(search, nats[0], strict=options.strict)
        if options.holdout is None:  # pictures that were given can be measured
            holdout = _estimate(holdout, nats[1])
    elif is_bound(choice.method, options.as_json()):
        warnings = (*warnings, *_tolerance_warning(search, max_drop_pp))
    return Report(
        bdcc_version=bdcc.__version__,
        fingerprint=f"{plan.fingerprint:016x}",
        target=plan.target.like or plan.target.name,
        target_changes=changes_of(plan.target),
        model_name=model_name,
        model_sha256=graph.sha256,
        options=options.as_json(),
        preprocess=material.search.preprocess.as_json(),
        max_drop_pp=max_drop_pp,
        met=_missed_on(search, holdout, max_drop_pp, strict=options.strict) is None,
        warnings=tuple(warnings),
        notes=(
            *_notes(options, plan.name, material),
            *_slower_kernels(plan, kernels),
            *_unknown_footprint(plan.target, footprint),
        ),
        layers=_layer_rows(plan, choice, kernels),
        boards=tuple(
            asdict(board)
            for board in estimate_boards(
                plan,
                cost_table=cost_table,
                code_bytes=footprint.code_bytes if footprint else code_bytes,
            )
        ),
        cost_table={
            "isa": cost_table.isa,
            "machine": cost_table.machine,
            "sha256": cost_table.sha256,
            "source": cost_table.source,
        },
        judge=material.judge,
        metric=metric,
        decomposed=decomposed,
        predicted=choice.predicted,
        search_drop=search,
        holdout_drop=holdout,
        calib_samples=len(material.calib),
        weight_bytes=plan.blob_bytes,
        float_weight_bytes=sum(
            4 * (layer.weight.size + layer.bias.size) for layer in graph.weight_layers
        ),
        arena_bytes=plan.arena_bytes,
        code_bytes=footprint.code_bytes if footprint else code_bytes,
        flash_bytes=footprint.flash_bytes if footprint else None,
        ram_bytes=footprint.ram_bytes if footprint else None,
        stack_bytes=footprint.stack_bytes if footprint else None,
        search_method=choice.method,
        evaluations=choice.evaluations,
        table=choice.table,
    )


def draw_or_warn(draw: Callable[[], str], *, name: str) -> tuple[str | None, tuple[str, ...]]:
    """The text of a page or figure, or None and a warning that says why there is none."""
    try:
        return draw(), ()
    except Exception as error:
        # Whatever a drawing library makes of names and numbers that are not ours: hours of search
        # are worth more than a picture of them.
        why = one_line(f"{type(error).__name__}: {reason(error)}")
        return None, (f"{name} could not be drawn ({why}); everything else is there",)


def _layer_rows(
    plan: DeploymentPlan, choice: Choice, kernels: Mapping[str, KernelChoice]
) -> tuple[LayerRow, ...]:
    graph, model = plan.model.graph, plan.model
    owners = {name: step.layer for step in plan.steps for name in step.sections}
    rows = []
    for layer in graph.weight_layers:
        one = model.decomposed.layers.get(layer.name)
        bits = None if one is None else model.tensors[layer.input].bits
        kernel, family = kernels.get(layer.name), plan.families.get(layer.name)
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
                kernel=None
                if one is None or family is None
                else f"bdcc_{family}_b{one.bases}q{bits}",
                kernel_us=None
                if kernel is None
                else {family: float(f"{ns / 1e3:.4g}") for family, ns in kernel.ns.items()},
                weight_error=None if one is None else round(weight_error(layer.weight, one), 9),
                predicted_drop_pp=choice.predicted_drops.get(layer.name),
            )
        )
    return tuple(rows)


def _estimate(drop: Drop, nats: float, *, strict: bool = False) -> Drop:
    """With what photographs will lose, for generated pictures."""
    estimated = estimate_drop(drop.decisive_pp(strict=strict), nats)
    return replace(drop, estimated_pp=round(estimated, 4))


def _missed_on(
    search: Drop, holdout: Drop, max_drop_pp: float, *, strict: bool
) -> Literal["search", "holdout"] | None:
    """The pictures that break the tolerance; only --strict looks at those of the holdout."""
    if search.decisive_pp(strict=strict) > max_drop_pp:
        return "search"
    if strict and holdout.decisive_pp() > max_drop_pp:
        return "holdout"
    return None


def _tolerance_warning(drop: Drop, max_drop_pp: float) -> tuple[str, ...]:
    if max_drop_pp >= 2 * drop.error_pp:
        return ()
    if max_drop_pp == 0:
        return ("a tolerance of 0 points is below what any number of pictures can tell",)
    needed = math.ceil(drop.samples * (2 * drop.error_pp / max_drop_pp) ** 2)
    return (
        f"the tolerance of {max_drop_pp:g} points is under two standard errors of the drop "
        f"({drop.error_pp:.2f} on {drop.samples} pictures): it would take about {needed} pictures "
        "to tell such a drop from chance",
    )


def _notes(options: CompileOptions, name: str, material: Material) -> tuple[str, ...]:
    notes = []
    if options.search == "paper" and options.bases == "auto":
        notes.append(f"--search paper takes --bases auto as {PAPER_AUTO_BASES}")
    if options.name not in (None, name):
        notes.append(f"the prefix of the C names is '{name}': '{options.name}' cannot be it")
    held = [
        f"{len(pictures)} for {purpose}"
        for given, pictures, purpose in (
            (options.calib, material.calib, "calibration"),
            (options.holdout, material.holdout, "the holdout"),
        )
        if given is None and options.data is not None
    ]
    if held:
        notes.append(f"of the pictures of --data {' and '.join(held)} are held back")
    if material.judge == "generated":
        notes.append(
            f"judged on {len(material.search)} generated pictures: accuracy is agreement with the "
            "float model, and the tolerance an estimate from how far the outputs diverge; give "
            "--data to measure"
        )
    if options.target == "host":
        notes.append(
            "built for this machine (--target host); a Raspberry Pi 4's is rpi4, and bdcc targets "
            "lists all"
        )
    return tuple(notes)


def _slower_kernels(plan: DeploymentPlan, kernels: Mapping[str, KernelChoice]) -> tuple[str, ...]:
    slower = [name for name, family in plan.families.items() if family != kernels[name].family]
    if not slower:
        return ()
    return (f"--ram leaves no room for the fastest kernels of {', '.join(slower)}",)


def _unknown_footprint(target: Target, footprint: Footprint | None) -> tuple[str, ...]:
    if footprint or not target.bare:
        return ()
    return (
        f"flash and RAM are unknown but for weights and arena: {target.cross}gcc, which builds for "
        f"{target.name}, is not installed",
    )


def find_missed(report: Report, options: CompileOptions) -> str | None:
    """Why the tolerance counts as missed (exit code 3), or None: where it binds, as report.met."""
    search, holdout = report.search_drop, report.holdout_drop
    missed = _missed_on(search, holdout, report.max_drop_pp, strict=options.strict)
    if missed is None or not is_bound(report.search_method, options.as_json()):
        return None
    if missed == "holdout":
        return (
            f"the holdout pictures miss the tolerance of {report.max_drop_pp:g} points: they drop "
            f"{_amount(holdout, whose='the')}; the project is in {options.output}"
        )
    best = ", ".join(
        f"{row.name} {row.bases}/{row.q}" for row in report.layers if row.q is not None
    )
    return (
        f"the tolerance of {report.max_drop_pp:g} points is missed: the best found drops "
        f"{_amount(search, whose='its', strict=options.strict)} (B/Q: {best or 'all float'}); its "
        f"project is in {options.output}"
    )


def _amount(drop: Drop, *, whose: str, strict: bool = False) -> str:
    if drop.estimated_pp is not None:
        return f"{drop.estimated_pp:.2f} as estimated from how far {whose} outputs diverge"
    upper = f", at most {drop.interval_pp[1]:.2f} with 95 % confidence" if strict else ""
    return f"{drop.drop_pp:.2f}{upper}"
