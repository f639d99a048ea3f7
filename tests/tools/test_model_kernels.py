# SPDX-License-Identifier: 0BSD
"""A small network on an emulated core, counted and weighed (tools/model_kernels.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
from cycles import CORES, Core
from model_kernels import one_isa, reference, step_cycles

from bdcc.codegen.plan import make_plan
from codegen.nets import alexnet_like, quantized

CROSS = {"cortex-a53": "qemu-aarch64", "cortex-m4": "qemu-arm"}


@pytest.mark.parametrize("core", CROSS)
def test_every_step_of_a_small_network(core: str, tmp_path: Path, tool) -> None:
    target = one_isa(reference(core))
    for needed in (f"{target.cross}gcc", CROSS[core], "llvm-mca", "llvm-objdump"):
        tool(needed)
    model = quantized(alexnet_like(), bases=[2, 1, 2, 5, 1], bits=[5, 3, 2, 8, 7])
    plan = make_plan(model, name="net", target=target)
    found = []
    for index, way in enumerate((Core(note="", weigh=lambda _: 1.0), CORES[core])):
        folder = tmp_path / str(index)
        folder.mkdir()
        found.append(step_cycles(plan, folder, way))
    instructions, cycles = found
    assert len(cycles) == len(plan.steps)
    for step, count, time in zip(plan.steps, instructions, cycles, strict=True):
        assert count == int(count) > 0
        assert count / 2.01 < time < 6 * count, step.name  # both cores issue two at most
