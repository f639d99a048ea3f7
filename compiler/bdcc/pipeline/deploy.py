# SPDX-License-Identifier: 0BSD
"""`bdcc deploy`: a project on the board that it is for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bdcc.codegen.targets import target_of
from bdcc.data.pictures import Progress
from bdcc.errors import OptionError
from bdcc.files import check_file
from bdcc.host.facts import read_facts
from bdcc.host.remote import Goal, Times, run_there
from bdcc.pipeline.project import Project
from bdcc.report.report import write_json

WHOLE = Goal(by_step=False, rounds=(7, 1000), seconds=2.0)
STEPS = Goal(by_step=True, rounds=(7, 100), seconds=2.0)
DIGITS = 6  # of milliseconds: nanoseconds


def deploy_project(
    host: str,
    project: Project,
    *,
    threads: int = 1,
    keep: bool = False,
    output: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Builds and tests the project on the host, and times it: whole pictures and each step.

    host: as ssh takes it; keep: leave the folder there; output: a file for what is returned.
    """
    if threads < 1:
        raise OptionError(f"{threads} is below 1", layer="--threads")
    if output is not None:
        check_file(output)
    outcome = run_there(
        host,
        project.folder,
        goals=(WHOLE, STEPS),
        target=target_of(project.report),
        threads=threads,
        keep=keep,
        progress=progress,
    )
    (whole,), (*steps, nothing) = outcome.whole, outcome.steps
    result = {
        "host": host,
        "folder": outcome.folder,
        "board": {key: v for key, v in asdict(outcome.board).items() if key != "isas"}
        | {"celsius": outcome.celsius, "throttled": outcome.throttled},
        "selftest": list(outcome.selftest),
        "isa": outcome.isa,
        "threads": threads,
        "rounds": whole.rounds,
        **_ms(whole),
        "steps": [
            {"layer": fact["layer"], "op": fact["op"], **_ms(step, beyond=nothing)}
            for fact, step in zip(read_facts(project.folder).steps, steps, strict=True)
        ],
    }
    if output is not None:
        write_json(result, output)
    return result


def _ms(times: Times, *, beyond: Times | None = None) -> dict[str, float]:
    """Milliseconds, beyond those of a call that runs no step."""
    least, median = times.least, times.median
    if beyond is not None:
        least = max(least - beyond.least, 0.0)
        median = max(median - beyond.median, least)
    return {"min_ms": round(least / 1e6, DIGITS), "median_ms": round(median / 1e6, DIGITS)}
