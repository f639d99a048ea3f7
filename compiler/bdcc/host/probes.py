# SPDX-License-Identifier: 0BSD
"""What one core of this machine can do at most, measured by probe.c."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bdcc.codegen.emit import shipped
from bdcc.errors import BuildError
from bdcc.files import temporary_folder
from bdcc.host.build import compile_program

SOURCE = Path(__file__).with_name("probe.c")
ARGUMENTS = ("-std=gnu11", "-O2", "-ffp-contract=off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One core. rates: operations per cycle by name, of those that it has; cache_bytes: of the
    largest cache; the rest: GB/s when what is read fits in that cache, when it comes from memory,
    and when as much as the weights is read again and again.
    """

    ghz: float
    rates: Mapping[str, float]
    cache_bytes: int
    cache_gb_s: float
    memory_gb_s: float
    weights_gb_s: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_machine(*, weight_bytes: int) -> Machine:
    """Compiles and runs probe.c, which takes less than a second. Raises BuildError."""
    with temporary_folder() as folder:
        program = Path(folder, "probe")
        compile_program(SOURCE, program, arguments=[*ARGUMENTS, f"-I{shipped('runtime')}"])
        command = [str(program), str(max(weight_bytes, 1))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{SOURCE.name} ended with status {done.returncode}")
    lines = [line.split() for line in done.stdout.splitlines()]
    single = {line[0]: line[1] for line in lines if len(line) == 2}
    cache, memory, weights = (float(line[2]) for line in lines if line[0] == "read")
    return Machine(
        ghz=float(single["ghz"]),
        rates={line[1]: float(line[2]) for line in lines if line[0] == "rate"},
        cache_bytes=int(single["cache_bytes"]),
        cache_gb_s=cache,
        memory_gb_s=memory,
        weights_gb_s=weights,
    )


def fastest_cpus(count: int) -> list[int]:
    """So many of the CPUs that this process may use: the fastest where they differ, and then the
    last (the first have most other work). None where that cannot be said.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(sorted(os.sched_getaffinity(0), key=lambda cpu: (_capacity(cpu), cpu))[-count:])


def _capacity(cpu: int) -> int:
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        try:
            return int(Path(f"/sys/devices/system/cpu/cpu{cpu}", name).read_text("ascii"))
        except (OSError, ValueError):
            continue
    return 0


@contextmanager
def pinned() -> Iterator[None]:
    """Stays on one CPU, and so do processes started meanwhile: a clock that is measured is then
    that of what is timed.
    """
    cpus = fastest_cpus(1)
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
