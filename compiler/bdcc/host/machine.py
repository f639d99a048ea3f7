# SPDX-License-Identifier: 0BSD
"""This machine: its name, and the instruction sets that emitted projects can use here."""

from __future__ import annotations

import functools
import platform
import subprocess
import tempfile
from pathlib import Path

from bdcc.codegen.emit import shipped
from bdcc.codegen.targets import ISAS
from bdcc.host.build import compile_program

_PROBE = """#include <stdio.h>
#include "bdcc_isa.h"
int main(void) {
    for (int isa = 0; isa < BDCC_ISA_COUNT; isa++) {
        if (bdcc_isa_usable(isa)) puts(bdcc_isa_name(isa));
    }
    return 0;
}
"""


@functools.cache
def usable_isas() -> tuple[str, ...]:
    """Instruction sets of this machine, the widest last. Raises BuildError without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "isas.c", Path(folder) / "isas"
        source.write_text(_PROBE)
        compile_program(source, program, arguments=["-std=c11", f"-I{shipped('runtime')}"])
        try:
            ran = subprocess.run([program], capture_output=True, text=True, check=False)
        except OSError:  # a program for another machine
            return ISAS[:1]
    names = ran.stdout.split()
    return tuple(isa for isa in ISAS if isa in names or isa == ISAS[0])


def machine_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
