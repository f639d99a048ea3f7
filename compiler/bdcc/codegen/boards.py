# SPDX-License-Identifier: 0BSD
"""What a project would take on the boards that it has code for: estimates, by tables of costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bdcc.codegen.costs import CostTable, shipped_cost_table
from bdcc.codegen.plan import DeploymentPlan
from bdcc.codegen.targets import TARGETS, Target
from bdcc.ir.graph import Conv, macs

# Multiply-accumulates of float convolutions in a cycle of each core: tools/model_kernels.py --float
FLOAT_MACS = {
    "arm1176jzf-s": 0.43,
    "cortex-a7": 0.24,
    "cortex-a53": 1.11,
    "cortex-a72": 1.73,
    "cortex-a76": 1.66,
    "cortex-m4": 0.3,
    "cortex-m7": 0.28,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardEstimate:
    """A project on the board of a target, by one thread.

    ms: of one inference, pools, normalisations and the input left out; modelled: whether by costs
    that nobody measured; fits: whether arena and weights have room in its memory.
    """

    target: str
    core: str
    clock_mhz: int
    ms: float
    modelled: bool
    fits: bool


def estimate_boards(
    plan: DeploymentPlan, *, cost_table: CostTable, code_bytes: int | None
) -> tuple[BoardEstimate, ...]:
    """Of all boards under Linux that the project has instruction sets of, and of its own target,
    as its user describes it.

    cost_table: of the project's own target; code_bytes: of its library, None: unknown.
    """
    found = []
    name = plan.target.like or plan.target.name
    for board in TARGETS:
        own = board.name == name
        target = plan.target if own else board
        if target.mhz is None or target.core is None or (target.bare and not own):
            continue
        if target.planned_for not in plan.target.isas:
            continue
        table = cost_table if own else shipped_cost_table(target.core)
        found.append(
            BoardEstimate(
                target=board.name,
                core=target.core,
                clock_mhz=target.mhz,
                ms=float(f"{_milliseconds(plan, target, target.core, target.mhz, table):.4g}"),
                modelled=table.modelled,
                fits=_fits(plan, target, code_bytes or 0),
            )
        )
    return tuple(found)


def _milliseconds(
    plan: DeploymentPlan, target: Target, core: str, mhz: int, table: CostTable
) -> float:
    graph, model, families = plan.model.graph, plan.model, plan.families
    faster = (table.modelled_mhz or mhz) / mhz  # a modelled table is of one clock
    us = 0.0
    for layer in graph.weight_layers:
        one = model.decomposed.layers.get(layer.name)
        if one is None:
            count = macs(layer, graph.shapes)
            us += max(
                count / FLOAT_MACS[core] / mhz,
                # A dense layer's weights are read from memory, 4 bytes each.
                0 if isinstance(layer, Conv) else 4 * count / (target.memory_mbs or math.inf),
            )
        else:
            bits = model.tensors[layer.input].bits
            ns = table.predict(families[layer.name], layer, graph, bases=one.bases, bits=bits)
            us += ns / 1e3 * faster
    return us / 1e3


def _fits(plan: DeploymentPlan, target: Target, code_bytes: int) -> bool:
    stored = plan.blob_bytes + code_bytes
    if target.flash_bytes is not None and stored > target.flash_bytes:
        return False
    read = 0 if target.flash_bytes is not None else stored
    return target.ram_bytes is None or plan.arena_bytes + read <= target.ram_bytes
