# SPDX-License-Identifier: 0BSD
"""Boards that tests build for with Debian's cross compilers and run under QEMU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bdcc.codegen.costs import choose_kernels, shipped_cost_table
from bdcc.codegen.emit import emit
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import Target, find_target
from bdcc.data.preprocess import Preprocess
from bdcc.host.facts import read_oracle


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
        soft = ["-mfloat-abi=softfp"] if self.target.cross == "arm-linux-gnueabi-" else []
        return [*self.target.cflags.split(), *soft, "-static"]

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


def check_on_board(
    project: Path, board: Board, folder: Path, *, pictures: int, tool: Callable[[str], str]
) -> None:
    """Plan the model of a project anew for the board, with all that its target says, and compare
    every layer of so many random pictures, on every instruction set that it has.
    """
    model = read_oracle(project)
    preprocess = json.loads((project / "report.json").read_text())["preprocess"]
    choices = choose_kernels(model, shipped_cost_table(str(board.target.core)), family=None)
    plan = make_plan(
        model,
        name="net",
        target=board.target,
        preprocess=Preprocess.from_json(preprocess),
        families={name: choice.family for name, choice in choices.items()},
    )
    folder.mkdir()
    shape = (pictures, *model.graph.shapes[model.graph.input])
    random = np.random.default_rng(1).uniform(-120, 130, shape).astype(np.float32)
    emit(plan, folder, pictures=random)
    board.compiler(tool)
    command = ["make", "-s", "selftest", f"CROSS={board.target.cross}", "STATIC=1"]
    built = subprocess.run(
        [*command, "CFLAGS=-O3 -Werror"], cwd=folder, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    command = [*board.emulator(tool), "./selftest"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout + ran.stderr
    assert f"{board.target.planned_for}: {pictures} pictures" in ran.stdout
    assert "every layer equals the oracle" in ran.stdout
