# SPDX-License-Identifier: 0BSD
"""Cycles from counted basic blocks (tools/cycles.py)."""

from __future__ import annotations

import pytest
from cycles import (
    CORES,
    Block,
    Core,
    block_costs,
    cycles_of,
    find_blocks,
    is_branch,
    mca_input,
    parse_counts,
    parse_disassembly,
    parse_mca,
    weigh_arm1176,
    weigh_cortex_a7,
)

LISTING = """
0000000000400280 <sum>:
  400280:      \tmov\tw2, #0
  400284:      \tadd\tx1, x1, #6, lsl #12    // =24576
  400288:      \tldr\tw3, [x0], #4
  40028c:      \tcbz\tw3, 0x400294 <sum+0x14>
  400290:      \tadd\tw2, w2, w3
  400294:      \tsubs\tx1, x1, #1
  400298:      \tb.ne\t0x400288 <sum+0x8>
  40029c:      \tbl\t0x400300 <other>
  4002a0:      \tret
"""
COUNTS = """400280 40028c 9
mark
400280 40028c 1
400288 40028c 3
400290 400298 2
400294 400298 2
40029c 40029c 1
4002a0 4002a0 1
mark
"""


def test_blocks_begin_behind_branches_and_where_they_go() -> None:
    code = parse_disassembly(LISTING)
    assert code[0x400284] == "add x1, x1, #6, lsl #12"
    assert code[0x400298] == "b.ne 0x400288"
    before, counts = parse_counts(COUNTS, sorted(code))
    assert before[0x400280] == 9
    assert [counts[address] for address in sorted(code)] == [1, 1, 4, 4, 2, 4, 4, 1, 1]
    blocks = find_blocks(code, counts)
    assert [block.first for block in blocks] == [
        *(0x400280, 0x400288, 0x400290, 0x400294, 0x40029C, 0x4002A0)
    ]
    assert not any(block.loops for block in blocks)
    slow = Core(note="", weigh=lambda instruction: 10.0 if instruction.startswith("ld") else 1.0)
    assert cycles_of(slow, code, [before, counts]) == [9 * 13, 2 + 4 * 11 + 2 + 2 * 4 + 2]


def test_a_block_that_jumps_to_its_start_loops() -> None:
    code = {0: "mov w2, #0", 4: "subs x1, x1, #1", 8: "b.ne 0x4", 12: "ret"}
    blocks = find_blocks(code, {0: 1, 4: 7, 8: 7, 12: 1})
    assert [(block.first, block.loops) for block in blocks] == [(0, False), (4, True), (12, False)]


@pytest.mark.parametrize(
    ("instruction", "branch", "plain"),
    [
        ("b.ne 0x400288", True, "b.ne here"),
        ("cbz w0, 0x1234", True, "cbz w0, here"),
        ("tbnz w0, #3, 0x20", True, "tbnz w0, #3, here"),
        ("bl 0x44", True, "b here"),
        ("bls 0x20", True, "bls here"),
        ("bllt 0x20", True, "blt here"),
        ("bleq 0x20", True, "beq here"),
        ("blr x3", True, "br x3"),
        ("blx r3", True, "bx r3"),
        ("bne.w 0x10", True, "bne.w here"),
        ("ret", True, "ret"),
        ("pop.w {r4, r5, pc}", True, "pop.w {r4, r5, pc}"),
        ("ldmeq sp!, {r4, pc}", True, "ldmeq sp!, {r4, pc}"),
        ("ldr r0, [pc, #16]", False, "ldr r0, [pc, #16]"),
        ("bic r0, r0, r1", False, "bic r0, r0, r1"),
        ("vst1.8 {d16, d17}, [r1]", False, "vst1.8 {d16, d17}, [r1]"),
        ("vcmpe.f32 s13, #0", False, "vsub.f32 s31, s13, s13"),
    ],
)
def test_branches_go_to_a_label(instruction: str, branch: bool, plain: str) -> None:
    assert is_branch(instruction) == branch
    text = mca_input([Block(first=0, instructions=(instruction,), loops=False)], "#")
    assert text.splitlines()[2] == plain


def test_nothing_is_conditional_for_llvm_mca() -> None:
    thumb = ("cmp r0, r1", "itte ge", "movge r0, #1", "vmovge.f32 s0, s1", "ldrblt.w r0, [r1]")
    text = mca_input([Block(0, (*thumb, "movs r2, #0"), False)], "@")
    assert text.splitlines()[2:-1] == [
        *("cmp r0, r1", "nop", "mov r0, #1", "vmov.f32 s0, s1", "ldrb.w r0, [r1]", "movs r2, #0")
    ]


def test_what_llvm_mca_prints_is_read() -> None:
    text = """
[0] Code Region - 7

Iterations:        100
Instructions:      200
Total Cycles:      203
Total uOps:        200

Dispatch Width:    2
Block RThroughput: 1.5

Resources:
[0.0] - A57UnitI
[0.1] - A57UnitI
[1]   - A57UnitW

Resource pressure per iteration:
[0.0]  [0.1]  [1]
 -     1.00   1.25

Resource pressure by instruction:
[0.0]  [0.1]  [1]    Instructions:
 -      -     2.00   tbl

[1] Code Region - 9

Total Cycles:      100
Block RThroughput: 1.0

Resource pressure per iteration:
[0.0]  [0.1]  [1]
 -     2.00    -
"""
    assert parse_mca(text) == {7: (2.03, 1.5), 9: (1.0, 2.0)}


def test_cores_without_a_model_count_instructions() -> None:
    assert weigh_arm1176("add r0, r0, r1") == weigh_arm1176("smlad r0, r1, r2, r3") == 1
    assert weigh_arm1176("pop {r4, r5, r6, pc}") == weigh_arm1176("mul r0, r1, r2") == 2
    assert weigh_cortex_a7("vadd.i8 d0, d1, d2") == weigh_cortex_a7("vmlal.s8 q8, d0, d1") == 1
    assert weigh_cortex_a7("vadd.i8 q0, q1, q2") == 2
    assert weigh_cortex_a7("vtbl.8 d0, {d2, d3}, d4") == 2
    assert weigh_cortex_a7("vld1.8 {d16, d17}, [r1]!") == 2


@pytest.mark.parametrize("core", ["cortex-a53", "cortex-a72", "cortex-m4"])
def test_a_loop_of_additions_takes_its_latency(core: str, tool) -> None:
    """Sixteen additions into one register: a cycle each, whatever the core could do at once."""
    tool("llvm-mca")
    wide = CORES[core].triple == "aarch64"
    one = "add x0, x0, x1" if wide else "add r0, r1"
    chain = (*[one] * 16, "b.ne 0x0" if wide else "bne 0x0")
    apart = tuple(f"add x{i}, x1, x2" if wide else f"add.w r{i % 8}, r9, r10" for i in range(16))
    loop, straight = block_costs(
        CORES[core],
        [Block(first=0, instructions=chain, loops=True), Block(8, apart, loops=False)],
    )
    assert 16 <= loop <= 18
    assert straight <= 17
    assert (straight < 12) == (core != "cortex-m4")
