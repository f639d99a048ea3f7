# SPDX-License-Identifier: 0BSD
"""Programs that run the kernels of one template on cases from a file: <kernels>_check.c."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.codegen.emit import renderer
from bdcc.codegen.targets import ISAS
from strict import strict

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Program:
    """emulator: the command that runs it, empty on the machine that it is built for."""

    path: Path
    emulator: tuple[str, ...]


def build(
    folder: Path,
    cc: str,
    flags: Sequence[str],
    *,
    emulator: Sequence[str] = (),
    kernels: str,
    variables: Mapping[str, Any],
    select: Sequence[object],
) -> Program:
    """Render the template of `kernels` and compile its program; select: (bases, bits) pairs, or
    bases, that the program shall find kernels for.
    """
    text = renderer(dict(variables))(f"{kernels}.h.j2")
    (folder / f"{kernels}_kernels.h").write_text(text)
    program = folder / "check"
    selected = " ".join(f"K{one}" if isinstance(one, tuple) else f"K({one})" for one in select)
    command = [
        cc, "-std=c11", *strict(cc), *flags,
        f"-DKERNELS={selected}", f"-I{folder}", f"-I{ROOT / 'runtime'}",
        str(Path(__file__).with_name(f"{kernels}_check.c")), "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Program(path=program, emulator=tuple(emulator))


def build_pairs(
    kernels: str,
    variables_of: Callable[[Sequence[Any]], Mapping[str, Any]],
    folder: Path,
    cc: str,
    flags: Sequence[str],
    pairs: Sequence[Any],
    emulator: Sequence[str] = (),
) -> Program:
    """`build` with the variables that a family's `template_variables` gives."""
    variables = variables_of(pairs)
    return build(
        folder, cc, flags, emulator=emulator, kernels=kernels, variables=variables, select=pairs
    )


@cache
def usable(program: Program) -> tuple[str, ...]:
    """The instruction sets of its machine that the program was built for."""
    command = [*program.emulator, str(program.path)]
    named = subprocess.run(command, capture_output=True, text=True)
    assert named.returncode == 0, named.stderr
    assert set(named.stdout.split()) <= set(ISAS)
    return tuple(named.stdout.split())


def run(program: Program, records: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """Every y_int of all cases."""
    source, target = (program.path.with_name(f"{name}.bin") for name in ("cases", "sums"))
    source.write_bytes(b"".join(records))
    done = subprocess.run(
        [*program.emulator, program.path, source, target], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return np.fromfile(target, "<i4")
