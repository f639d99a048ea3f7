# SPDX-License-Identifier: 0BSD
"""What can be built for. A target fixes the default compiler flags of the emitted project, never
its results.
"""

from __future__ import annotations

from dataclasses import dataclass

from bdcc.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """name: as --target takes it; cflags: the Makefile's default CFLAGS; portable: plain C11 only
    (BDCC_PORTABLE).
    """

    name: str
    description: str
    cflags: str
    portable: bool = False


TARGETS = (
    Target(
        name="host",
        description="this machine; on x86-64 the widest instruction set is picked at start",
        cflags="-O3",
    ),
    Target(
        name="generic",
        description="plain C11 for any little-endian CPU: no vector code, no popcount instruction",
        cflags="-O2",
        portable=True,
    ),
)


def find_target(name: str) -> Target:
    """The target of that name, or an OptionError that lists them."""
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    raise OptionError(f"'{name}' is not a target; bdcc builds for {known}", layer="--target")
