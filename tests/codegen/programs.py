# SPDX-License-Identifier: 0BSD
"""Programs that run the kernels of one template on cases from a file: <kernels>_check.c."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.codegen.emit import renderer
from bdcc.codegen.targets import ISAS

ROOT = Path(__file__).resolve().parents[2]
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror")


def build(
    folder: Path,
    cc: str,
    flags: Sequence[str],
    *,
    kernels: str,
    variables: Mapping[str, Any],
    select: Sequence[object],
) -> Path:
    """Render the template of `kernels` and compile its program; select: (bases, bits) pairs, or
    bases, that the program shall find kernels for.
    """
    text = renderer(dict(variables))(f"{kernels}.h.j2")
    (folder / f"{kernels}_kernels.h").write_text(text)
    program = folder / "check"
    selected = " ".join(f"K{one}" if isinstance(one, tuple) else f"K({one})" for one in select)
    command = [
        cc, *STRICT, *flags, f"-DKERNELS={selected}", f"-I{folder}", f"-I{ROOT / 'runtime'}",
        str(Path(__file__).with_name(f"{kernels}_check.c")), "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def usable(program: Path) -> tuple[str, ...]:
    """The instruction sets of this machine that the program was built for."""
    named = subprocess.run([program], capture_output=True, text=True)
    assert named.returncode == 0
    assert set(named.stdout.split()) <= set(ISAS)
    return tuple(named.stdout.split())


def run(program: Path, records: Sequence[bytes]) -> npt.NDArray[np.int32]:
    """Every y_int of all cases."""
    source, target = program.with_name("cases.bin"), program.with_name("sums.bin")
    source.write_bytes(b"".join(records))
    done = subprocess.run([program, source, target], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return np.fromfile(target, "<i4")
