# SPDX-License-Identifier: 0BSD
"""How much memory a program holds because of the model in it, as the kernel counts it."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from bdcc.errors import BuildError
from bdcc.files import temporary_folder
from bdcc.host.build import build, compile_program
from bdcc.host.facts import read_facts

SOURCE = Path(__file__).with_name("resident.c")
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Bytes of a C program with the model beyond those of one without: after a few inferences, and
    the most ever; beside them what they have to be: weights and arena.
    """

    steady_bytes: int
    peak_bytes: int
    weight_bytes: int
    arena_bytes: int

    @property
    def more_bytes(self) -> int:
        """What is neither weights nor arena: code, stack, pages that are not full."""
        return self.peak_bytes - self.weight_bytes - self.arena_bytes


def measure_resident(project: Path) -> Resident | None:
    """Links the project's static library into a small program and runs it; None where the system
    does not tell. Raises BuildError.
    """
    if not STATUS.exists():
        return None
    library = build(project)
    facts = read_facts(project)
    sizes = (f"-DINPUTS={prod(facts.input)}", f"-DOUTPUTS={facts.outputs}")
    model = (
        f"-DMODEL={facts.name}",
        f'-DHEADER="{facts.name}.h"',
        f"-I{project / 'include'}",
        str(library.with_suffix(".a")),
    )
    with temporary_folder() as folder:
        program = Path(folder, "resident")
        nothing = _run(program, sizes)
        found = _run(program, (*sizes, *model))
    steady, peak = (found[key] - nothing[key] for key in ("steady_kib", "peak_kib"))
    return Resident(
        steady_bytes=steady,
        peak_bytes=max(steady, peak),  # a process without the model has a peak of its own
        weight_bytes=facts.weight_bytes,
        arena_bytes=facts.arena_bytes,
    )


def _run(program: Path, arguments: Sequence[str]) -> dict[str, int]:
    """Bytes by name."""
    # Flags that make was given by the environment (a sanitizer's) are needed to link as well.
    given = [
        flag for name in ("CFLAGS", "LDFLAGS") for flag in shlex.split(os.environ.get(name, ""))
    ]
    libraries = ("-lm", "-pthread")
    compile_program(SOURCE, program, arguments=[*given, *arguments, *libraries])
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{SOURCE.name} ended with status {done.returncode}")
    words = done.stdout.split()
    return {key: 1024 * int(kib) for key, kib in zip(words[::2], words[1::2], strict=True)}
