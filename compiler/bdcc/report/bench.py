# SPDX-License-Identifier: 0BSD
"""What `bdcc bench` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bdcc.errors import one_line
from bdcc.report.text import size, table

STEP_HEADER = (
    *("layer", "op", "kernel", "min ms", "median ms", "MAC/cycle", "of it", "GB/s", "of it"),
    *("cold ms", "of limit", "operation"),
)


def bench_text(result: Mapping[str, Any]) -> str:
    """result: what `bdcc bench --json` gives. The last line is for scripts."""
    parts = []
    if result["steps"]:
        parts.append(_steps_table(result["steps"]) + "\n" + _machine_lines(result["machine"]))
    if result["systems"]:
        parts.append(_systems_table(result["systems"]))
    if result["memory"] is not None:
        parts.append(_memory_line(result["memory"]))
    digits = 2 if result["min_ms"] >= 0.1 else 5
    parts.append(
        f"{result['isa']}, threads: {result['threads']}, rounds: {result['rounds']}\n"
        f"min={result['min_ms']:.{digits}f} median={result['median_ms']:.{digits}f} ms"
    )
    return "\n\n".join(parts)


def _steps_table(steps: Sequence[Mapping[str, Any]]) -> str:
    def cell(value: Any, form: str = "") -> str:
        return "-" if value is None else format(value, form)

    rows = []
    for step in steps:
        row = [step["layer"], "", "", f"{step['min_ms']:.4f}", f"{step['median_ms']:.4f}"]
        if (speed := step["speed"]) is not None:
            row[1] = speed["op"]
            row[2] = "float" if speed["kernel"] is None else speed["kernel"].removeprefix("bdcc_")
            row += [
                f"{speed['mac_per_cycle']:.1f}",
                cell(speed["mac_share"], ".0%"),
                f"{speed['gb_s']:.1f}",
                f"{speed['read_share']:.0%}",
                f"{speed['cold_ms']:.4f}",
                f"{speed['cold_share']:.0%}",
                cell(speed["operation"]),
            ]
        rows.append(row + [""] * (len(STEP_HEADER) - len(row)))
    return table(STEP_HEADER, rows, left=3)


def _machine_lines(machine: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate:.2f}" for name, rate in machine["rates"].items())
    return (
        f"clock {machine['ghz']:.2f} GHz; reads {machine['memory_gb_s']:.1f} GB/s from memory, "
        f"{machine['cache_gb_s']:.1f} in the last cache of {size(machine['cache_bytes'])}, "
        f"{machine['weights_gb_s']:.1f} over as much as the weights\n"
        f"operations per cycle: {rates}"
    )


def _systems_table(systems: Sequence[Mapping[str, Any]]) -> str:
    header = ["system", "threads", "median ms", "min ms", "ours / its", "CPU ms", "ours / its"]
    header.append("off float")
    rows = [
        [
            one["name"],
            str(one["threads"]),
            f"{one['median_ms']:.3f}",
            f"{one['min_ms']:.3f}",
            f"{one['ratio']:.2f}",
            f"{one['cpu_ms']:.3f}",
            f"{one['cpu_ratio']:.2f}",
            f"{one['error']:.4f}",
        ]
        for one in systems
        if one["problem"] is None
    ]
    problems = [
        one_line(f"{one['name']}: {one['problem']}")
        for one in systems
        if one["problem"] is not None
    ]
    return "\n".join([table(header, rows, left=1), *problems])


def _memory_line(memory: Mapping[str, Any]) -> str:
    more = memory["peak_bytes"] - memory["weight_bytes"] - memory["arena_bytes"]
    return (
        f"resident memory: {size(memory['peak_bytes'])} at most, {size(memory['steady_bytes'])} "
        f"steadily, beyond an empty process: weights {size(memory['weight_bytes'])}, arena "
        f"{size(memory['arena_bytes'])}, {more / 1e6:.1f} MB more"
    )
