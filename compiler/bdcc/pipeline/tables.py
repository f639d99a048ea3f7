# SPDX-License-Identifier: 0BSD
"""Which table of kernel costs a project is planned by, and where measured ones are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.costs import (
    CostTable,
    choose_kernels,
    read_cost_table,
    shipped_cost_table,
    write_cost_table,
)
from bdcc.codegen.targets import Target
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
            return read_cost_table(measured)
        return shipped_cost_table(isa)
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
    project: Path, isa: str | None, *, output: Path | None, progress: Progress | None
) -> dict[str, Any]:
    """Measure this machine's kernels with that instruction set (None: its widest), keep the table,
    and tell what the layers of the project would take by it."""
    model, report = read_oracle(project), read_report(project)
    isa = isa or usable_isas()[-1]
    if isa not in usable_isas():
        raise OptionError(
            f"'{isa}' is not an instruction set of this CPU; it has {', '.join(usable_isas())}",
            layer="--isa",
        )
    file = output or measured_file(isa, cache=None)
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
    return {
        "isa": isa,
        "machine": machine_name(),
        "file": str(file),
        "layers": [
            {
                "name": name,
                "planned": kernel_family(planned[name]),
                "fastest": choice.family,
                "us": {family: round(ns / 1e3, 2) for family, ns in choice.ns.items()},
            }
            for name, choice in choose_kernels(model, read_cost_table(file), family=None).items()
        ],
    }


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
    changed = sum(row["planned"] != row["fastest"] for row in result["layers"])
    advice = (
        "every layer has its fastest kernel already"
        if not changed
        else f"{changed} of {len(rows)} layers have a faster kernel by this table"
    )
    return (
        table(header, rows, left=3)
        + f"\n\n{advice}\n{result['isa']} on {result['machine']}: {result['file']}"
    )
