# SPDX-License-Identifier: 0BSD
"""How long one inference takes, as a whole and step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.host.facts import read_layers
from bdcc.host.library import Library, Pool
from bdcc.host.limits import Speed, layer_speed
from bdcc.host.probes import Machine, measure_machine, pinned
from bdcc.ir.graph import F32

F64 = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]
BUDGET_S = 2.0  # rounds go on for so long, unless their number is given
ROUNDS = (7, 1000)  # and are at least, at most so many
DIGITS = 6  # of milliseconds: nanoseconds
COLD_CACHES = 2  # as many times what the caches hold is read before a step that shall find nothing
COLD_ROUNDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """speed: of a weight layer, else None."""

    layer: str
    min_ms: float
    median_ms: float
    speed: Speed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Milliseconds per picture, which all threads work on. steps, machine: absent unless asked
    for.
    """

    isa: str
    threads: int
    rounds: int
    min_ms: float
    median_ms: float
    steps: tuple[StepTime, ...] = ()
    machine: Machine | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


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
    step too, and what the core could do at most. Raises OptionError for an instruction set that
    this CPU has not.
    """
    with Library.open(project, isa=isa, threads=threads > 1) as library, ExitStack() as stack:
        x = np.random.default_rng(0).normal(size=library.facts.input).astype(np.float32)
        pool = stack.enter_context(library.pool(threads)) if threads > 1 else None
        run = one_picture(library, x, pool=pool)
        run()  # touches arena and weights
        times = _time(run, rounds, progress)
        steps: tuple[StepTime, ...] = ()
        machine = None
        if layers:
            with pinned() if pool is None else nullcontext():
                machine = measure_machine(weight_bytes=library.facts.weight_bytes)
                steps = _time_steps(
                    library,
                    x,
                    pool=pool,
                    rounds=min(len(times), 100),
                    layers=read_layers(project),
                    machine=machine,
                )
        return BenchResult(
            isa=library.isa,
            threads=threads,
            rounds=len(times),
            min_ms=round(min(times), DIGITS),
            median_ms=round(median(times), DIGITS),
            steps=steps,
            machine=machine,
        )


def one_picture(library: Library, x: F32, *, pool: Pool | None) -> Callable[[], F32]:
    """What runs the picture x, float32 [C, H, W], on all threads of the pool or on this one."""
    if pool is None:
        return lambda: library.run(x)
    return lambda: library.run_mt(x, pool)


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


def _time_steps(
    library: Library,
    x: F32,
    *,
    pool: Pool | None,
    rounds: int,
    layers: Mapping[str, Mapping[str, Any]],
    machine: Machine,
) -> tuple[StepTime, ...]:
    """layers: of report.json, by name."""
    ran_warm = _step_times(library, x, pool=pool, rounds=rounds)
    lines = np.ones(COLD_CACHES * machine.cache_bytes // 8, np.uint64)  # reading it evicts the rest
    ran_cold = _step_times(library, x, pool=pool, rounds=min(rounds, COLD_ROUNDS), before=lines.max)
    least, usual = _beyond_nothing(ran_warm.min(axis=0)), _beyond_nothing(np.median(ran_warm, 0))
    cold = np.maximum(_beyond_nothing(ran_cold.min(axis=0)), least)
    steps = []
    for index, fact in enumerate(library.facts.steps):
        layer = layers.get(fact["layer"])
        speed = None
        if layer is not None and layer["op"] == fact["op"]:
            speed = layer_speed(
                layer,
                isa=library.isa,
                machine=machine,
                ms=round(float(least[index]), DIGITS),
                cold_ms=round(float(cold[index]), DIGITS),
            )
        steps.append(
            StepTime(
                layer=library.step_name(index),
                min_ms=round(float(least[index]), DIGITS),
                median_ms=round(max(float(usual[index]), float(least[index])), DIGITS),
                speed=speed,
            )
        )
    return tuple(steps)


def _step_times(
    library: Library,
    x: F32,
    *,
    pool: Pool | None,
    rounds: int,
    before: Callable[[], object] | None = None,
) -> F64:
    """Milliseconds, float64 [rounds, steps + 1]: the last of a call that runs no step. before: done
    ahead of every step, untimed.
    """
    count = library.step_count
    output, arena = np.empty(library.facts.outputs, np.float32), library.new_arena()
    times = np.empty((rounds, count + 1))
    for row in times:
        for index, (first, last) in enumerate([*((i, i + 1) for i in range(count)), (0, 0)]):
            if before is not None:
                before()
            start = time.perf_counter_ns()
            library.run_steps(x, output, first, last, arena=arena, pool=pool)
            row[index] = (time.perf_counter_ns() - start) / 1e6
    return times


def _beyond_nothing(times: F64) -> F64:
    """float64 [steps]: without what a call that runs no step takes, which is the last of times."""
    beyond: F64 = np.maximum(times[:-1] - times[-1], 0.0)
    return beyond
