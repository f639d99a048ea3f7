# SPDX-License-Identifier: 0BSD
"""What each step of a project takes on an ARM core without the hardware: its model is planned and
emitted anew for the target, run under QEMU and its basic blocks weighed (cycles.py).

    python tools/model_project.py OUT --target rpi4

OUT: a project of `bdcc compile`, for any target; its bases and bits are kept, its kernels are
chosen anew by the target's table. Beside it: a float and an int8 network that do no more than
multiply, at the rates that the core can reach at most.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cycles import CORES
from model_kernels import one_isa, step_cycles

from bdcc.approx.model import load_oracle
from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.costs import choose_kernels, read_cost_table, shipped_cost_table
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import find_target
from bdcc.ir.graph import Conv, macs
from bdcc.report.text import table

# Multiply-accumulates in a cycle: float without, and int8 by SMLAL, at their limits.
RIVALS = {"fp32 (4 MAC/cycle)": 4, "int8 (8 MAC/cycle)": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("project", type=Path, metavar="OUT")
    parser.add_argument("--target", default="rpi4")
    parser.add_argument("--kernel", choices=("auto", *FAMILIES), default="auto")
    parser.add_argument("--cost-table", type=Path)
    options = parser.parse_args()
    target = find_target(options.target)
    if target.core not in CORES or target.mhz is None or target.planned_for is None:
        raise SystemExit(f"{target.name} is none of the targets that are modelled")
    costs = (
        read_cost_table(options.cost_table)
        if options.cost_table
        else shipped_cost_table(target.core)
    )
    model = load_oracle(options.project / "host" / "oracle.npz")
    graph = model.graph
    chosen = choose_kernels(
        model, costs, family=None if options.kernel == "auto" else options.kernel
    )
    plan = make_plan(
        model, name="modelled", target=one_isa(target),
        families={name: choice.family for name, choice in chosen.items()},
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bdcc-model-") as folder:
        cycles = step_cycles(plan, Path(folder), CORES[target.core])
    layers = {layer.name: layer for layer in graph.weight_layers}
    rows, conv_ms, conv_macs = [], 0.0, 0
    for step, count in zip(plan.steps, cycles, strict=True):
        layer, ms = layers.get(step.layer), count / target.mhz / 1e3
        work = macs(layer, graph.shapes) if layer else 0
        v = step.values
        if isinstance(layer, Conv):
            conv_ms, conv_macs = conv_ms + ms, conv_macs + work
        rows.append(
            [
                step.name,
                f"{v['family']} b{v['bases']}q{v['bits']}" if step.kind == "binary" else step.kind,
                f"{work / count:.2f}" if work else "-",
                f"{ms:.3f}",
                f"{chosen[step.layer].ns[v['family']] / 1e6:.3f}" if step.kind == "binary" else "-",
            ]
        )
    print(table(["step", "kernel", "MAC/cycle", "ms", "ms by the table"], rows))
    total = sum(cycles) / target.mhz / 1e3
    print(f"\n{target.name}, {target.core} at {target.mhz} MHz: {total:.2f} ms in all")
    print(f"convolutions: {conv_ms:.2f} ms, {conv_macs / 1e3 / target.mhz / conv_ms:.2f} MAC/cycle")
    for rival, rate in RIVALS.items():
        ms = conv_macs / rate / 1e3 / target.mhz
        print(f"  {rival}: {ms:.2f} ms, {ms / conv_ms:.2f} times as long")


if __name__ == "__main__":
    main()
