# SPDX-License-Identifier: 0BSD
"""Which table of kernel costs a project is planned by, and where measured ones are kept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.costs import (
    CostTable,
    Key,
    Parts,
    choose_kernels,
    parse_cost_table,
    read_cost_table,
    shipped_cost_table,
    write_cost_table,
)
from bdcc.codegen.targets import ISAS, TARGETS, Target, find_target, planned_core, target_of
from bdcc.data.pictures import Progress
from bdcc.errors import DataError, OptionError, one_line
from bdcc.files import check_folder, check_regular, sweep_parts, write_text, writing
from bdcc.host.facts import ORACLE_FILE, REPORT_FILE, read_facts, read_oracle
from bdcc.host.limits import kernel_family
from bdcc.host.machine import machine_name, usable_isas
from bdcc.host.remote import Goal, match_target, probe_board, run_there
from bdcc.host.tune import BUDGET_S, ROUNDS, tune
from bdcc.pipeline.cache import cache_folder, default_folder
from bdcc.pipeline.project import open_project
from bdcc.report.text import table
from bdcc.sealed import Shelf

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where kernels are measured: this machine, or a board. host: as ssh takes it, None: here;
    name: what its processor calls itself; isas: instruction sets that it has, the widest last;
    target: that describes the board.
    """

    name: str
    isas: tuple[str, ...]
    host: str | None = None
    target: Target | None = None


def host_of(target: str) -> str | None:
    """What ssh takes, of a --target like ssh:pi@raspberrypi or ssh://pi@10.0.0.7:2222."""
    if not target.startswith("ssh:"):
        return None
    return target if target.startswith("ssh://") else target.removeprefix("ssh:")


def find_place(host: str | None) -> Place:
    """This machine, or what answers at the host."""
    if host is None:
        return Place(name=machine_name(), isas=usable_isas())
    board = probe_board(host)
    target = match_target(board)
    known = {ISAS[0], target.planned_for, *(board.isas or ())}
    isas = tuple(isa for isa in ISAS if isa in known)
    return Place(name=board.cpu, isas=isas, host=host, target=target)


def find_cost_table(
    target: Target, choice: str, *, cache: Path | None, say: Say | None = None
) -> CostTable:
    """choice: a file, or "default": what was measured on this machine if that is planned for, else
    what is shipped. cache: the folder of the cache, None: the user's; say: is told of one there
    that is damaged, and not used.
    """
    isa = target.planned_for or usable_isas()[-1]
    if choice == "default":
        measured = None
        if target.planned_for is None:
            measured = _read_measured(isa, machine_name(), cache=cache, say=say)
        return measured or shipped_cost_table(target.core or planned_core(isa))
    table = read_cost_table(Path(choice))
    if table.isa != isa:
        raise OptionError(
            f"'{choice}' has the costs of {table.isa}; --target {target.name} needs those of {isa}",
            layer="--cost-table",
        )
    return table


def board_cost_table(
    place: Place,
    choice: str,
    *,
    cache: Path | Literal["off"] | None,
    progress: Progress | None,
    say: Say | None = None,
) -> CostTable:
    """Of a board's target: the file that was chosen, else what was measured on such a board and is
    in the cache, else what is measured now.
    """
    assert place.target is not None
    target, isa = place.target, place.target.planned_for or ISAS[0]
    if choice != "default":
        return find_cost_table(target, choice, cache=None)
    if cache == "off":
        raise OptionError(
            "off keeps no table of the board's kernels", layer="--cache", hint="Give --cost-table"
        )
    found = _read_measured(isa, place.name, cache=cache, say=say)
    if found is None:
        _measure_table(isa, place, None, cache=cache, progress=progress)
        found = _read_measured(isa, place.name, cache=cache)
        assert found is not None, "it has just been written"
    return found


def _read_measured(
    isa: str, machine: str, *, cache: Path | None, say: Say | None = None
) -> CostTable | None:
    """The table in the cache, if there is a sound one."""

    def tell(file: Path) -> None:
        if say is not None:
            say(one_line(f"cache: a table is damaged, and not used; bdcc tune makes one: {file}"))

    folder = cache or default_folder()
    if folder is None:
        return None
    content = replace(_shelf(folder), dropped=tell).read(_name(isa, machine))
    return None if content is None else parse_cost_table(content, "measured")


def _shelf(cache: Path) -> Shelf:
    return Shelf(folder=cache / "cost_tables", name="cost_tables")


def _name(isa: str, machine: str) -> str:
    return f"{isa}-{re.sub(r'[^A-Za-z0-9]+', '-', machine).strip('-').lower()}.json"


def _measure_table(
    isa: str, place: Place, output: Path | None, *, cache: Path | None, progress: Progress | None
) -> Path:
    """Measures the place's kernels with that instruction set, and writes the table to the file, or
    into the cache.
    """
    if output is None:
        shelf = _shelf(cache_folder(cache))
        shelf.prepare()
        sweep_parts(shelf.folder)
    else:
        with writing(output):
            check_regular(output)
            check_folder(output.parent)
    if place.host is None:
        ns = tune(isa, progress=progress)
    else:
        ns = _tune_there(isa, place.host, place.target, progress=progress)
    text = write_cost_table(isa, place.name, ns)
    if output is None:
        return shelf.write(_name(isa, place.name), lambda out: out.write(text.encode()))
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    return output


def _tune_there(
    isa: str, host: str, target: Target | None, *, progress: Progress | None
) -> dict[Key, Parts]:
    goal = Goal(by_step=True, rounds=ROUNDS, seconds=BUDGET_S, isa=isa)
    ours = target if target is not None and target.planned_for == isa else None

    def measure(project: Path, isa: str) -> dict[str, float]:
        outcome = run_there(
            host,
            project,
            goals=(goal,),
            target=ours or find_target("host"),
            selftest=False,
        )
        *steps, nothing = outcome.steps
        facts = read_facts(project).steps
        return {
            fact["layer"]: max(step.least - nothing.least, 1.0)
            for fact, step in zip(facts, steps, strict=True)
        }

    return tune(isa, target=ours, measure=measure, progress=progress)


def tuning_of(
    project: Path,
    isa: str | None,
    *,
    output: Path | None,
    cache: Path | Literal["off"] | None,
    progress: Progress | None,
    host: str | None = None,
) -> dict[str, Any]:
    """Measure the kernels of this machine, or of the board at `host`, with that instruction set
    (None: the one that the project is planned for, or the widest of its target's that the CPU has),
    keep the table in the file or in the cache, and tell what the project's layers would take by it,
    and what to do.
    """
    report, model = open_project(project).report, read_oracle(project)
    target = target_of(report)
    place = find_place(host)
    wanted = target.planned_for or place.isas[-1]
    if isa is None:
        widest = max(set(place.isas) & set(target.isas), key=ISAS.index)
        isa = wanted if wanted in place.isas else widest
    if isa not in place.isas:
        whose = "this CPU" if host is None else f"{host}'s CPU"
        raise OptionError(
            f"'{isa}' is not an instruction set of {whose}; it has {', '.join(place.isas)}",
            layer="--isa",
        )
    if cache == "off":
        if output is None:
            raise OptionError("off keeps no table", layer="--cache", hint="Give -o FILE")
        cache = None
    file = _measure_table(isa, place, output, cache=cache, progress=progress)
    planned = {row["name"]: row["kernel"] for row in report["layers"]}
    if not planned.keys() >= model.decomposed.layers.keys():
        raise DataError(
            f"{REPORT_FILE} and {ORACLE_FILE} tell of different layers",
            layer=str(project),
            hint="Compile the project again",
        )
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
        "isas": list(place.isas),
        "planned_for": wanted,
        "machine": place.name,
        "file": str(file),
        "layers": rows,
        "advice": _advice(
            rows,
            report["options"],
            target=_advised(isa, target, place),
            file=file,
            cached=output is None,
            cache=cache,
        ),
    }


def _advised(isa: str, target: Target, place: Place) -> Target:
    """What to compile for by a table: the project's target if it is planned for what was measured,
    else the board's, or any.
    """
    here = place.host is None and isa == place.isas[-1]
    if target.planned_for == isa or (target.planned_for is None and here):
        return target
    if place.target is not None and place.target.planned_for == isa:
        return place.target
    return next(t for t in TARGETS if t.planned_for == isa)


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
    if options.get("kernel", "auto") != "auto":
        return (
            f"--kernel {options['kernel']} decides for this project, whatever the table says; "
            f"without it {slower} would be faster"
        )
    if all(row["planned"] == row["fastest"] for row in rows):
        return "every layer has its fastest kernel already"
    room = ", where --ram has room" if options.get("ram_bytes") else ""
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
        lacking = "" if planned_for in result["isas"] else ", which this CPU does not have"
        lines.append(f"the project is planned for {planned_for}{lacking}")
    return table(header, rows, left=3) + "\n\n" + "\n".join(map(one_line, lines))
