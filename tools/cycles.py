# SPDX-License-Identifier: 0BSD
"""Cycles of what a program ran: executions of its basic blocks, times what a block costs on a core.

A block that jumps back to itself costs what an iteration of the loop takes. Any other costs, on a
core that runs in order, what it takes over and over; on one that does not, what its instructions
occupy, since it overlaps with what is before and behind it. Caches always hit, branches are always
predicted, calls cost a jump.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Counts = Mapping[int, int]  # executions of the instruction at an address
_LINE = re.compile(r"^ *([0-9a-f]+): \s*(\S.*?)\s*$")
_COMMENT = re.compile(r"\s+(//|@|<).*")
_BRANCH = re.compile(
    r"(b|bl|blr|br|bx|blx|ret|cbn?z|tbn?z|tb[bh])(\.?(eq|ne|[ch]s|[cl]o|mi|pl|v[sc]|hi|l[se]|g[et]|lt|al))?(\.[nw])?"
)
ITERATIONS = 100
LEAST = 1e-3  # of the instructions of a stretch, in a block that is worth weighing


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after another. loops: whether its end may jump to its start."""

    first: int
    instructions: tuple[str, ...]
    loops: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What a block costs: llvm-mca's model of `cpu` for a `triple`, or `weigh`, cycles of one
    instruction. in_order: whether it runs instructions in their order; note: what it stands on.
    """

    note: str
    triple: str = ""
    cpu: str = ""
    attributes: str = ""
    in_order: bool = True
    weigh: Callable[[str], float] | None = None


def parse_disassembly(text: str) -> dict[int, str]:
    """Instructions by address, from llvm-objdump -d --no-show-raw-insn."""
    found = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            found[int(match[1], 16)] = " ".join(_COMMENT.sub("", match[2]).split())
    return found


def parse_counts(text: str, addresses: Sequence[int]) -> list[dict[int, int]]:
    """Executions of every instruction in each stretch that ends with "mark"; addresses: of all
    instructions, ascending.
    """
    stretches: list[dict[int, int]] = []
    counts: dict[int, int] = {}
    for line in text.splitlines():
        if line == "mark":
            stretches.append(counts)
            counts = {}
            continue
        first, last, count = line.split()
        at, end = (bisect_right(addresses, int(address, 16)) for address in (first, last))
        for address in addresses[at - 1 : end]:
            counts[address] = counts.get(address, 0) + int(count)
    return stretches


def _target(instruction: str) -> int | None:
    """Where a direct branch goes."""
    operand = instruction.rpartition(" ")[2]
    return int(operand, 16) if is_branch(instruction) and operand.startswith("0x") else None


def is_branch(instruction: str) -> bool:
    name, _, operands = instruction.partition(" ")
    loaded = "{" in operands and "pc" in operands and not name.startswith(("st", "push"))
    return loaded or operands.startswith("pc,") or _BRANCH.fullmatch(name) is not None


def find_blocks(code: Mapping[int, str], total: Counts) -> list[Block]:
    """The basic blocks of everything that ran."""
    ran = sorted(total)
    following = dict(zip(sorted(code), [*sorted(code)[1:], -1], strict=True))
    targets = {_target(code[address]) for address in ran}
    blocks: list[list[int]] = []
    previous = -1
    for address in ran:
        new = (
            previous < 0
            or following[previous] != address
            or is_branch(code[previous])
            or address in targets
            or total[address] != total[previous]
        )
        if new:
            blocks.append([])
        blocks[-1].append(address)
        previous = address
    return [
        Block(
            first=block[0],
            instructions=tuple(code[address] for address in block),
            loops=_target(code[block[-1]]) == block[0],
        )
        for block in blocks
    ]


def _plain(instruction: str) -> str:
    """As llvm-mca takes it: a branch goes to a label, a call is a jump, and a comparison of floats,
    which the model of a Cortex-M7 lacks, is a subtraction.
    """
    if not is_branch(instruction):
        return re.sub(r"^vcmpe?(\w*)\.f32 (s\d+), .*", r"vsub\1.f32 s31, \2, \2", instruction)
    name, _, operands = instruction.partition(" ")
    if _target(instruction) is not None:
        operands = operands.rpartition("0x")[0] + "here"
    if name.startswith("bl") and name.partition(".")[0] not in ("ble", "blt", "blo", "bls"):
        name = "b" + name[2:] if operands == "here" else "br" if name == "blr" else "bx"
    return f"{name} {operands}".strip()


def _unconditional(instructions: Iterable[str]) -> list[str]:
    """Without Thumb's `it`, which not every model knows: what it makes conditional always runs."""
    plain, left = [], 0
    for instruction in instructions:
        name, blank, operands = instruction.partition(" ")
        if re.fullmatch(r"it[te]{0,3}", name):
            plain.append("nop")
            left = len(name) - 1
            continue
        if left > 0:
            name = re.sub(r"(eq|ne|[ch]s|[cl]o|mi|pl|v[sc]|hi|l[se]|g[et]|lt)(?=\.|$)", "", name)
            left -= 1
        plain.append(f"{name}{blank}{operands}")
    return plain


def mca_input(blocks: Sequence[Block], comment: str) -> str:
    lines = ["here:"]
    for index, block in enumerate(blocks):
        plain = _unconditional(map(_plain, block.instructions))
        lines += [f"{comment} LLVM-MCA-BEGIN {index}", *plain]
        lines += [f"{comment} LLVM-MCA-END {index}"]
    return "\n".join(lines) + "\n"


def parse_mca(text: str) -> dict[int, tuple[float, float]]:
    """Of each region: cycles of an iteration, and what its instructions occupy: the decoder, or the
    unit that has most to do, which Block RThroughput does not see where units share work."""
    found = {}
    for region in re.split(r"\[\d+\] Code Region - ", text)[1:]:
        cycles = float(re.search(r"Total Cycles: +(\d+)", region)[1])  # type: ignore[index]
        occupied = float(re.search(r"Block RThroughput: +([\d.]+)", region)[1])  # type: ignore[index]
        units = re.search(r"Resource pressure per iteration:\n.*\n(.*)", region)[1]  # type: ignore[index]
        busy = max((float(one) for one in units.split() if one != "-"), default=0.0)
        found[int(region.split()[0])] = (cycles / ITERATIONS, max(occupied, busy))
    return found


def block_costs(core: Core, blocks: Sequence[Block]) -> list[float]:
    """Cycles of each block on the core."""
    if core.weigh is not None:
        return [sum(map(core.weigh, block.instructions)) for block in blocks]
    text = mca_input(blocks, "#" if core.triple.startswith("aarch64") else "@")
    command = [
        "llvm-mca", f"-mtriple={core.triple}", f"-mcpu={core.cpu}", f"-mattr={core.attributes}",
        f"-iterations={ITERATIONS}", "-instruction-info=0", "-",
    ]  # fmt: skip
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    found = parse_mca(done.stdout)
    return [
        found[index][0 if block.loops or core.in_order else 1] for index, block in enumerate(blocks)
    ]


def cycles_of(core: Core, code: Mapping[int, str], stretches: Sequence[Counts]) -> list[float]:
    """Cycles of each stretch. An instruction of a block that has too little part in any of them to
    be weighed counts for a cycle.
    """
    total: dict[int, int] = {}
    for counts in stretches:
        for address, count in counts.items():
            total[address] = total.get(address, 0) + count
    blocks = {block.first: block for block in find_blocks(code, total)}
    ran = [
        {first: count * len(blocks[first].instructions) for first, count in counts.items()}
        for counts in ({a: c for a, c in counts.items() if a in blocks} for counts in stretches)
    ]
    heavy = {
        first
        for counts in ran
        for first, count in counts.items()
        if count > LEAST * sum(counts.values())
    }
    weighed = [blocks[first] for first in sorted(heavy)]
    costs = {
        block.first: cost / len(block.instructions)
        for block, cost in zip(weighed, block_costs(core, weighed), strict=True)
    }
    return [sum(count * costs.get(first, 1.0) for first, count in counts.items()) for counts in ran]


def _registers(operands: str) -> int:
    """How many registers a list in braces has."""
    listed = re.search(r"\{(.*?)\}", operands)
    return len(listed[1].split(",")) if listed else 1


def weigh_arm1176(instruction: str) -> float:
    """One instruction a cycle; two registers of a list, two cycles a multiplication but those of
    half words; no wait for what was loaded.
    """
    name, _, operands = instruction.partition(" ")
    if re.match(r"(ldm|stm|push|pop|vldm|vstm|vpush|vpop)", name):
        return float((_registers(operands) + 1) // 2)
    if re.match(r"[us]m(ul|la)l", name):
        return 3.0
    if re.match(r"(mul|mla)", name):
        return 2.0
    if re.match(r"v(div|sqrt)", name):
        return 15.0
    return 1.0


def weigh_cortex_a7(instruction: str) -> float:
    """One instruction a cycle, 64 bits of vectors: an operation of 128 bits takes two, but a
    widening multiplication of 64.
    """
    name, _, operands = instruction.partition(" ")
    if re.match(r"(ldm|stm|push|pop|vldm|vstm|vpush|vpop|vld|vst|vtb)", name):
        wide = 1 if name.startswith("v") else 2
        return float((_registers(operands) + wide - 1) // wide)
    if re.match(r"vm(ul|la|ls)l", name):
        return 1.0
    if re.match(r"([us]div|v(div|sqrt))", name):
        return 10.0
    return 2.0 if name.startswith("v") and re.search(r"\bq\d", operands) else 1.0


A57 = "llvm-mca's cortex-a57"
CORES = {
    "arm1176jzf-s": Core(note="an instruction a cycle", weigh=weigh_arm1176),
    "cortex-a7": Core(note="an instruction a cycle, 128 bits two", weigh=weigh_cortex_a7),
    "cortex-a53": Core(note="llvm-mca", triple="aarch64", cpu="cortex-a53"),
    "cortex-a72": Core(note="llvm-mca", triple="aarch64", cpu="cortex-a72", in_order=False),
    "cortex-a76": Core(
        note=A57, triple="aarch64", cpu="cortex-a76", attributes="+dotprod", in_order=False
    ),
    "cortex-m4": Core(note="llvm-mca", triple="thumbv7em", cpu="cortex-m4"),
    "cortex-m7": Core(note="llvm-mca", triple="thumbv7em", cpu="cortex-m7"),
}
