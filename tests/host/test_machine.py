# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import pytest

from bdcc.host.machine import arm_core, cpu_name

X86 = "processor\t: 0\nmodel name\t: AMD EPYC\nmodel\t: 2\n"
PI4 = (
    "processor\t: 3\nBogoMIPS\t: 108.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n"
    "Revision\t: c03114\nSerial\t: 10000000\nModel\t: Raspberry Pi 4 Model B Rev 1.4\n"
)
BIG = "".join(
    f"processor\t: {i}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
    for i, part in enumerate(("0xd05", "0xd0b"))
)
OTHER = "model name\t: ARMv8 (v8l)\nCPU implementer\t: 0x61\nCPU part\t: 0xd08\n"


@pytest.mark.parametrize(
    ("text", "core", "name"),
    [
        (X86, None, "AMD EPYC"),
        (PI4, "cortex-a72", "cortex-a72 (Raspberry Pi 4 Model B Rev 1.4)"),
        (BIG, "cortex-a76", "cortex-a76"),
        (OTHER, None, "ARMv8 (v8l)"),
        ("", None, ""),
        ("CPU implementer\t: ?\nCPU part\t: 0x1\n", None, "0x1"),
    ],
)
def test_what_cpuinfo_says(text: str, core: str | None, name: str) -> None:
    assert (arm_core(text), cpu_name(text)) == (core, name)
