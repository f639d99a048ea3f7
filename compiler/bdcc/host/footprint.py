# SPDX-License-Identifier: 0BSD
"""What a project takes of a microcontroller's flash and stack: its own Makefile builds it with the
target's compiler, and nothing is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bdcc.codegen.targets import Target
from bdcc.errors import BuildError
from bdcc.files import temporary_folder
from bdcc.host.build import JOBS, first_error
from bdcc.host.facts import read_facts

HANDLE_BYTES = 12  # of <m>_t on 32 bits: a pointer and two words
LEAF_BYTES = 64  # memcpy and its kin, and what libgcc has for 64-bit integers, call nothing
INDIRECT = "__indirect_call"
# What a program seldom calls; it does not link then what they alone need, like float64.
SELDOM = ("resize", "resize_scratch_bytes", "info", "init_isa")
NODE = re.compile(r'node: \{ title: "([^"]+)" label: "[^"]*?(\d+) bytes \(([a-z,]+)\)')
EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Of all that a program links which calls neither of SELDOM, without what the C library has
    (memcpy, memset).

    code_bytes: machine code and constants beside the weights; flash_bytes: both; stack_bytes: at
    the deepest, interrupts aside; ram_bytes: arena, handle and stack.
    """

    flash_bytes: int
    code_bytes: int
    stack_bytes: int
    ram_bytes: int


def measure_footprint(project: Path, target: Target) -> Footprint | None:
    """None where the target's compiler is not installed; raises BuildError if it does not build the
    project.
    """
    compiler = f"{target.cross}gcc"
    if shutil.which(compiler) is None:
        return None
    facts = read_facts(project)
    name = facts.name
    with temporary_folder() as folder:
        library, image = Path(folder) / f"lib{name}.a", Path(folder) / "image"
        _run(
            ["make", "-C", str(project), f"-j{JOBS}", f"CROSS={target.cross}", f"BUILD={folder}",
             "CPPFLAGS=-fcallgraph-info=su", str(library)]
        )  # fmt: skip
        graphs = [file.read_text("utf-8") for file in Path(folder).glob("*.ci")]
        frames, calls = _call_graph("\n".join(graphs))
        seldom = {f"{name}_{function}" for function in SELDOM}
        entries = [f for f in frames if f.startswith(f"{name}_") and f not in seldom]
        # As a program links it: what nothing needs is dropped.
        roots = [f"-Wl,-u,{entry}" for entry in entries]
        _run(
            [compiler, *target.cflags.split(), "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,0", *roots,
             "-Wl,--unresolved-symbols=ignore-all", str(library), "-o", str(image)]
        )  # fmt: skip
        text, data, bss = _run([f"{target.cross}size", str(image)]).splitlines()[1].split()[:3]
    flash, stack = int(text) + int(data), _deepest(frames, calls, entries)
    return Footprint(
        flash_bytes=flash,
        code_bytes=flash - facts.weight_bytes,
        stack_bytes=stack,
        ram_bytes=facts.arena_bytes + HANDLE_BYTES + stack + int(data) + int(bss),
    )


def _call_graph(text: str) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Frames in bytes and whom each function calls, from gcc's -fcallgraph-info=su. A call through
    a pointer may reach any function that is not called by its name.
    """
    frames: dict[str, int] = {}
    for function, size, kind in NODE.findall(text):
        if "dynamic" in kind.split(","):
            raise BuildError(f"the stack of {function} has no bound")
        frames[function] = int(size)
    calls: dict[str, set[str]] = {function: set() for function in frames}
    for caller, callee in EDGE.findall(text):
        calls[caller].add(callee)
    named = set().union(*calls.values())
    # Titles of functions that are not external start with their file's name.
    calls[INDIRECT] = {f for f in frames if f not in named and ":" in f}
    frames[INDIRECT] = 0
    return frames, calls


def _deepest(
    frames: Mapping[str, int], calls: Mapping[str, set[str]], entries: Sequence[str]
) -> int:
    depths: dict[str, int] = {}

    def depth(function: str, above: tuple[str, ...]) -> int:
        if function in above:
            raise BuildError(f"the stack has no bound: {function} calls itself")
        if function not in frames:
            return LEAF_BYTES
        if function not in depths:
            inside = (*above, function)
            below = (depth(callee, inside) for callee in calls[function])
            depths[function] = frames[function] + max(below, default=0)
        return depths[function]

    return max(depth(entry, ()) for entry in entries)


def _run(command: Sequence[str]) -> str:
    """The Makefile's flags, whatever the environment has for other compilers."""
    ours = ("CC", "AR", "CFLAGS", "CPPFLAGS", "LDFLAGS", "MAKEFLAGS", "MFLAGS", "CROSS")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    done = subprocess.run(
        command,
        env={**environment, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(
            f"{command[0]} does not build it for the target "
            f"({first_error(done.stdout + done.stderr)})",
            hint="On Debian its compiler is gcc-arm-none-eabi and libnewlib-arm-none-eabi",
        )
    return done.stdout
