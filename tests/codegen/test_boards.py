# SPDX-License-Identifier: 0BSD
"""What projects would take on boards: whose costs count, clocks, and what fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdcc.codegen.boards import FLOAT_MACS, BoardEstimate, estimate_boards
from bdcc.codegen.costs import CostTable, shipped_cost_table
from bdcc.codegen.plan import DeploymentPlan, make_plan
from bdcc.codegen.targets import TARGETS, find_target
from bdcc.ir.graph import Conv, macs
from codegen.nets import alexnet_like, quantized

PIS = {target.name for target in TARGETS if target.name.startswith("rpi")}


def planned(target: str, *, bases: int | None = 2) -> DeploymentPlan:
    graph = alexnet_like()
    model = quantized(graph, bases=[2, 1, 2, 5, 1], bits=[5, 3, 2, 8, 7])
    if bases is None:
        model = replace(model, decomposed=replace(model.decomposed, layers={}), tensors={})
    return make_plan(model, name="net", target=find_target(target))


def estimated(plan: DeploymentPlan, table: CostTable | None = None) -> dict[str, BoardEstimate]:
    table = table or shipped_cost_table(plan.target.core or "avx512")
    boards = estimate_boards(plan, cost_table=table, code_bytes=None)
    return {board.target: board for board in boards}


@pytest.mark.parametrize(
    ("target", "boards"),
    [
        ("host", PIS),
        ("rpi4", PIS),
        ("generic", set()),
        ("x86-64-v3", set()),
        ("cortex-m4", {"rpi-zero", "cortex-m4"}),
    ],
)
def test_boards_that_a_project_has_code_for(target: str, boards: set[str]) -> None:
    assert set(estimated(planned(target))) == boards


def test_clocks_count_and_so_does_the_table_of_the_target() -> None:
    plan = planned("rpi3")
    boards = estimated(plan)
    assert all(board.modelled and board.fits and board.ms > 0 for board in boards.values())
    slow, fast = boards["rpi-zero2"], boards["rpi3"]
    assert slow.ms * slow.clock_mhz == pytest.approx(fast.ms * fast.clock_mhz, rel=1e-3)
    shipped = shipped_cost_table("cortex-a53")
    twice = {key: tuple(2 * part for part in parts) for key, parts in shipped.ns.items()}
    measured = replace(shipped, ns=twice, modelled_mhz=None)
    own = estimated(plan, measured)
    assert not own["rpi3"].modelled
    assert own["rpi3"].ms == pytest.approx(  # its clock is the board's
        2 * boards["rpi3"].ms * fast.clock_mhz / (shipped.modelled_mhz or 1), rel=1e-3
    )
    assert {name: one for name, one in own.items() if name != "rpi3"} == {
        name: one for name, one in boards.items() if name != "rpi3"
    }


def test_a_target_of_ones_own_counts_as_it_is_described() -> None:
    plan = planned("rpi4")
    slower = replace(plan.target, name="mine.toml", like="rpi4", mhz=750, ram_bytes=1)
    boards = estimated(replace(plan, target=slower))
    one, usual = boards.pop("rpi4"), estimated(plan).pop("rpi4")
    assert (one.clock_mhz, one.fits, usual.fits) == (750, False, True)
    assert one.ms == pytest.approx(2 * usual.ms, rel=1e-3)
    assert set(boards) == PIS - {"rpi4"}


def test_float_layers_go_at_a_rate_of_their_core() -> None:
    plan = planned("rpi4", bases=None)
    graph = plan.model.graph
    convs = sum(macs(one, graph.shapes) for one in graph.weight_layers if isinstance(one, Conv))
    ms = estimated(plan)["rpi4"].ms
    assert convs / FLOAT_MACS["cortex-a72"] / 1500e3 < ms
    assert {target.core for target in TARGETS if target.mhz} == set(FLOAT_MACS)


def test_memory_is_held_against_arena_and_weights() -> None:
    plan = planned("rpi4")
    assert estimated(plan)["rpi-zero"].fits
    assert not estimated(replace(plan, arena_bytes=600 << 20))["rpi-zero"].fits
    assert estimated(replace(plan, arena_bytes=600 << 20))["rpi2"].fits
    micro = planned("cortex-m4")
    assert estimated(micro)["cortex-m4"].fits
    assert not estimated(replace(micro, blob_bytes=1025 << 10))["cortex-m4"].fits  # flash
    assert not estimated(replace(micro, arena_bytes=193 << 10))["cortex-m4"].fits
