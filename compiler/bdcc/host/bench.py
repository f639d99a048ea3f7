# SPDX-License-Identifier: 0BSD
"""How long one inference takes, as a whole and step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bdcc.host.library import Library
from bdcc.ir.graph import F32

Progress = Callable[[str, int, int], None]
BUDGET_S = 2.0  # rounds go on for so long, unless their number is given
ROUNDS = (7, 1000)  # and are at least, at most so many
SHARE_MS = 5.0  # what a thread gets to do in a round, where pictures are quick
MOST_PICTURES = 500
DIGITS = 6  # of milliseconds: nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    layer: str
    median_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Milliseconds per picture; with several threads each runs pictures of its own, and the time of
    a round is divided by the number of all. steps: empty unless asked for."""

    isa: str
    threads: int
    rounds: int
    min_ms: float
    median_ms: float
    steps: tuple[StepTime, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        width = max((len(step.layer) for step in self.steps), default=0)
        lines = [f"{step.layer:<{width}}  {step.median_ms:9.4f} ms" for step in self.steps]
        lines.append(f"{self.isa}, threads: {self.threads}, rounds: {self.rounds}")
        digits = 2 if self.min_ms >= 0.1 else 5
        return "\n".join(
            [*lines, f"min={self.min_ms:.{digits}f} median={self.median_ms:.{digits}f} ms"]
        )


def bench(
    project: Path,
    *,
    isa: str | None = None,
    threads: int = 1,
    rounds: int | None = None,
    layers: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Times the library built from `project`. rounds: None for two seconds' worth; layers: each
    step too. Raises OptionError for an instruction set that this CPU has not."""
    with Library.open(project, isa=isa) as library, ThreadPoolExecutor(threads) as pool:
        x = np.random.default_rng(0).normal(size=library.facts.input).astype(np.float32)
        library.run(x)  # touches arena and weights
        share = 1
        if threads > 1:  # enough for each thread to make handing over the work small beside it
            once = _time(lambda: library.run(x), 3, None)
            share = math.ceil(SHARE_MS / max(median(once), SHARE_MS / MOST_PICTURES))
        pictures = np.repeat(x[None], share, axis=0)

        def one_round() -> None:
            if threads == 1:
                library.run(x)
            else:
                list(pool.map(library.run, [pictures] * threads))

        times = _time(one_round, rounds, progress)
        steps = _time_steps(library, x, rounds=min(len(times), 100)) if layers else ()
        return BenchResult(
            isa=library.isa,
            threads=threads,
            rounds=len(times),
            min_ms=round(min(times) / (threads * share), DIGITS),
            median_ms=round(median(times) / (threads * share), DIGITS),
            steps=steps,
        )


def _time(
    one_round: Callable[[], object], rounds: int | None, progress: Progress | None
) -> list[float]:
    """Milliseconds of each round."""
    times: list[float] = []
    least, most = ROUNDS if rounds is None else (rounds, rounds)
    began = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - began < BUDGET_S):
        start = time.perf_counter_ns()
        one_round()
        times.append((time.perf_counter_ns() - start) / 1e6)
        if progress is not None:
            progress("bench", len(times), most)
    return times


def _time_steps(library: Library, x: F32, *, rounds: int) -> tuple[StepTime, ...]:
    """Medians, without what a call that runs no step takes."""
    count = library.step_count
    output, arena = np.empty(library.facts.outputs, np.float32), library.new_arena()
    times = np.empty((rounds, count + 1))
    for row in times:
        for index, (first, last) in enumerate([*((i, i + 1) for i in range(count)), (0, 0)]):
            start = time.perf_counter_ns()
            library.run_steps(x, output, first, last, arena=arena)
            row[index] = (time.perf_counter_ns() - start) / 1e6
    *medians, nothing = np.median(times, axis=0)
    return tuple(
        StepTime(
            layer=library.step_name(index), median_ms=round(max(0.0, float(ms - nothing)), DIGITS)
        )
        for index, ms in enumerate(medians)
    )
