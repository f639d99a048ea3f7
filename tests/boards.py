# SPDX-License-Identifier: 0BSD
"""Boards that tests build for with Debian's cross compilers and run under QEMU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bdcc.codegen.targets import Target, find_target


@dataclass(frozen=True, kw_only=True)
class Board:
    """A core under user-mode emulation, and the target whose compiler and flags build for it."""

    cpu: str
    target: Target

    @property
    def name(self) -> str:
        return f"{self.target.name} on {self.cpu}"

    def compiler(self, tool: Callable[[str], str]) -> str:
        return tool(f"{self.target.cross}gcc")

    @property
    def flags(self) -> list[str]:
        # Static: the board's libraries are not asked for.
        return [*self.target.cflags.split(), "-static"]

    def emulator(self, tool: Callable[[str], str]) -> list[str]:
        program = "qemu-aarch64" if self.target.bits == 64 else "qemu-arm"
        return [tool(program), "-cpu", self.cpu]


def _board(target: str, cpu: str) -> Board:
    return Board(cpu=cpu, target=find_target(target))


# One of each core. QEMU's 32-bit program has no cortex-a53.
CORES = (
    _board("rpi-zero", "arm1176"),
    _board("rpi2", "cortex-a7"),
    _board("rpi3", "cortex-a53"),
    _board("rpi4", "cortex-a72"),
    _board("rpi5", "cortex-a76"),
)
BOARDS = (
    *CORES,
    _board("rpi3-32", "cortex-a7"),
    _board("rpi3-32", "max"),
    _board("rpi4-32", "max"),
)
