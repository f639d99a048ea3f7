# SPDX-License-Identifier: 0BSD
"""This machine: its name, and the instruction sets that emitted projects can use here."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path

from bdcc.codegen.emit import shipped
from bdcc.codegen.targets import ISAS
from bdcc.files import temporary_folder
from bdcc.host.build import compile_program

ISA_PROBE = """#include <stdio.h>
#include "bdcc_isa.h"
int main(void) {
    for (int isa = 0; isa < BDCC_ISA_COUNT; isa++) {
        if (bdcc_isa_usable(isa)) puts(bdcc_isa_name(isa));
    }
    return 0;
}
"""


# Parts of Arm's own (implementer 0x41) that there are targets for.
_CORES = {
    0xB76: "arm1176jzf-s",
    0xC07: "cortex-a7",
    0xD03: "cortex-a53",
    0xD08: "cortex-a72",
    0xD0B: "cortex-a76",
}


@functools.cache
def usable_isas() -> tuple[str, ...]:
    """Instruction sets of this machine, the widest last. Raises BuildError without a compiler."""
    with temporary_folder() as folder:
        source, program = Path(folder) / "isas.c", Path(folder) / "isas"
        source.write_text(ISA_PROBE)
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
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    return cpu_name(text) or platform.machine()


def cpu_name(cpuinfo: str) -> str:
    """Of the last CPU in the text of /proc/cpuinfo, with the board's name where ARM's kernel tells
    it; "" if there is none.
    """
    found = _fields(cpuinfo)
    name = arm_core(cpuinfo) or found.get("model name") or found.get("CPU part", "")
    board = found.get("Model", "")
    return f"{name} ({board})" if name and board else name or board


def arm_core(cpuinfo: str) -> str | None:
    """The last CPU's core, as targets name it, or None if it is none that there are targets for."""
    found = _fields(cpuinfo)
    try:
        ours = int(found["CPU implementer"], 16) == 0x41
        return _CORES.get(int(found["CPU part"], 16)) if ours else None
    except (KeyError, ValueError):
        return None


def _fields(cpuinfo: str) -> dict[str, str]:
    parts = (line.partition(":") for line in cpuinfo.splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}
