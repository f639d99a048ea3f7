# SPDX-License-Identifier: 0BSD
"""Which table of kernel costs a project is planned by, and where measured ones are kept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.costs import (
    CostTable,
    choose_kernels,
    read_cost_table,
    shipped_cost_table,
    write_cost_table,
)
from bdcc.codegen.targets import ISAS, TARGETS, Target, planned_core, target_of
from bdcc.data.pictures import Progress
from bdcc.errors import OptionError, OutputError
from bdcc.host.facts import read_oracle
from bdcc.host.limits import kernel_family
from bdcc.host.machine import machine_name, usable_isas
from bdcc.host.tune import tune
from bdcc.pipeline.cache import default_folder
from bdcc.report.report import read_report
from bdcc.report.text import table


def find_cost_table(target: Target, choice: str, *, cache: Path | None) -> CostTable:
    """choice: a file, or "default": what was measured on this machine if that is planned for, else
    what is shipped. cache: the folder of the cache, None: the user's.
    """
    isa = target.planned_for or usable_isas()[-1]
    if choice == "default":
        measured = measured_file(isa, cache=cache)
        if target.planned_for is None and measured.is_file():
            return read_cost_table(measured, source="measured")
        return shipped_cost_table(target.core or planned_core(isa))
    table = read_cost_table(Path(choice))
    if table.isa != isa:
        raise OptionError(
            f"'{choice}' has the costs of {table.isa}; --target {target.name} needs those of {isa}",
            layer="--cost-table",
        )
    return table


def measured_file(isa: str, *, cache: Path | None) -> Path:
    """Where the table of this machine is kept."""
    machine = re.sub(r"[^A-Za-z0-9]+", "-", machine_name()).strip("-").lower()
    return (cache or default_folder()) / "cost_tables" / f"{isa}-{machine}.json"


def tuning_of(
    project: Path,
    isa: str | None,
    *,
    output: Path | None,
    cache: Path | Literal["off"] | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Measure this machine's kernels with that instruction set (None: the one that the project is
    planned for, or the widest of its target's that this CPU has), keep the table in the file or in
    the cache, and tell what the project's layers would take by it, and what to do.
    """
    model, report = read_oracle(project), read_report(project)
    target = target_of(report)
    wanted = target.planned_for or usable_isas()[-1]
    isa = isa or max(set(usable_isas()) & set(target.isas), key=ISAS.index)
    if isa not in usable_isas():
        raise OptionError(
            f"'{isa}' is not an instruction set of this CPU; it has {', '.join(usable_isas())}",
            layer="--isa",
        )
    if cache == "off":
        if output is None:
            raise OptionError("off keeps no table", layer="--cache", hint="Give -o FILE")
        cache = None
    file = output or measured_file(isa, cache=cache)
    if file.is_dir():
        raise OutputError("is a folder", layer=str(file), hint="Give the name of a file")
    text = write_cost_table(isa, machine_name(), tune(isa, progress=progress))
    part = file.with_name(f"{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, "utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot be written ({error.strerror})", layer=str(file)) from None
    planned = {row["name"]: row["kernel"] for row in report["layers"]}
    rows = [
        {
            "name": name,
            "planned": kernel_family(planned[name]),
            "fastest": choice.family,
            "us": {family: round(ns / 1e3, 2) for family, ns in choice.ns.items()},
        }
        for name, choice in choose_kernels(model, read_cost_table(file), family=None).items()
    ]
    return {
        "isa": isa,
        "planned_for": wanted,
        "machine": machine_name(),
        "file": str(file),
        "layers": rows,
        "advice": _advice(
            rows,
            report["options"],
            target=target if isa == wanted else next(t for t in TARGETS if t.planned_for == isa),
            file=file,
            cached=output is None,
            cache=cache,
        ),
    }


def _advice(
    rows: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    target: Target,
    file: Path,
    cached: bool,
    cache: Path | None,
) -> str:
    """What to do about layers that the table in `file` has faster kernels for. options: as in
    report.json; target: planned for what was measured; cached: whether the file is in the cache.
    """
    slower = f"{sum(row['planned'] != row['fastest'] for row in rows)} of {len(rows)} layers"
    if options["kernel"] != "auto":
        return (
            f"--kernel {options['kernel']} decides for this project, whatever the table says; "
            f"without it {slower} would be faster"
        )
    if all(row["planned"] == row["fastest"] for row in rows):
        return "every layer has its fastest kernel already"
    room = ", where --ram has room" if options["ram_bytes"] else ""
    again = ["bdcc", "compile", "..."]
    if target.planned_for is not None:
        again += ["--target", target.name]
    elif cached:
        again += [] if cache is None else ["--cache", str(cache)]
        room += ". Without --cost-table this table is found"
    if not cached or target.planned_for is not None:
        again += ["--cost-table", str(file)]
    return f"{slower} would be faster{room}: {shlex.join(again)}"


def tuning_text(result: Mapping[str, Any]) -> str:
    rows = [
        [
            row["name"],
            row["planned"],
            row["fastest"],
            *(f"{row['us'][family]:.1f}" for family in FAMILIES),
        ]
        for row in result["layers"]
    ]
    header = ["layer", "planned", "fastest", *(f"{family} us" for family in FAMILIES)]
    lines = [result["advice"], f"{result['isa']} on {result['machine']}: {result['file']}"]
    if (planned_for := result["planned_for"]) != result["isa"]:
        lacking = "" if planned_for in usable_isas() else ", which this CPU does not have"
        lines.append(f"the project is planned for {planned_for}{lacking}")
    return table(header, rows, left=3) + "\n\n" + "\n".join(lines)
