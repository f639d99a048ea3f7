# SPDX-License-Identifier: 0BSD
"""What can be built for. A target fixes the default compiler flags of the emitted project, which
instruction sets it has code for and whose kernel costs it is planned by, never its results.
"""

from __future__ import annotations

from dataclasses import dataclass

from bdcc.errors import OptionError

ISAS = ("generic", "popcnt", "avx2", "avxvnni", "avx512", "neon", "neondot")  # as in runtime/bdcc_isa.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """name: as --target takes it; cflags: the Makefile's default CFLAGS; isas: instruction sets
    that the project has code for, and chooses from at start; planned_for: the one whose kernel
    costs decide, None: the widest of the machine that compiles.
    """

    name: str
    description: str
    cflags: str
    isas: tuple[str, ...]
    planned_for: str | None = None

    @property
    def portable(self) -> bool:
        """Whether it is plain C11 only (BDCC_PORTABLE)."""
        return self.isas == ISAS[:1]


def _x86(name: str, description: str, isa: str) -> Target:
    isas = ISAS[: ISAS.index(isa) + 1]
    return Target(name=name, description=description, cflags="-O3", isas=isas, planned_for=isa)


TARGETS = (
    Target(
        name="host",
        description="this machine; on x86-64 the widest instruction set is picked at start",
        cflags="-O3",
        isas=ISAS,
    ),
    Target(
        name="generic",
        description="plain C11 for any little-endian CPU: no vector code, no popcount instruction",
        cflags="-O2",
        isas=ISAS[:1],
        planned_for="generic",
    ),
    _x86("x86-64-v2", "x86-64 with SSE4.2 and POPCNT (Nehalem), and nothing wider", "popcnt"),
    _x86("x86-64-v3", "x86-64 with AVX2 (Haswell, Zen), and nothing wider", "avx2"),
    _x86("x86-64-vnni", "x86-64 with AVX-VNNI (Alder Lake and its kin)", "avxvnni"),
    _x86("x86-64-avx512", "x86-64 with AVX-512 as of Ice Lake and Zen 4", "avx512"),
)


def find_target(name: str) -> Target:
    """The target of that name, or an OptionError that lists them."""
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    raise OptionError(f"'{name}' is not a target; bdcc builds for {known}", layer="--target")
