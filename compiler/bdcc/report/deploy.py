# SPDX-License-Identifier: 0BSD
"""What `bdcc deploy` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bdcc.errors import one_line
from bdcc.report.text import table


def deploy_text(result: Mapping[str, Any]) -> str:
    """result: what `bdcc deploy --json` gives. The last line is for scripts, as that of bench."""
    rows = [
        [step["layer"], step["op"], f"{step['min_ms']:.4f}", f"{step['median_ms']:.4f}"]
        for step in result["steps"]
    ]
    board = result["board"]
    facts = [board["cpu"], board["kernel"], board["machine"]]
    if board["celsius"] is not None:
        facts.append(f"{board['celsius']:.1f} degrees Celsius")
    if board["throttled"] is not None:
        facts.append(_throttled(int(board["throttled"], 16)))
    lines = [f"{result['host']}: {', '.join(facts)}"]
    lines += [result["selftest"][-1]] if result["selftest"] else []
    if result["folder"] is not None:
        lines.append(f"left there: {result['folder']}")
    digits = 2 if result["min_ms"] >= 0.1 else 5
    return (
        table(["layer", "op", "min ms", "median ms"], rows)
        + "\n\n"
        + "\n".join(map(one_line, lines))
        + f"\n{result['isa']}, threads: {result['threads']}, rounds: {result['rounds']}\n"
        f"min={result['min_ms']:.{digits}f} median={result['median_ms']:.{digits}f} ms"
    )


def _throttled(bits: int) -> str:
    """Of `vcgencmd get_throttled`: bits 0 to 3 are what is, 16 to 19 what has been since the start
    (too little voltage, the clock capped, throttled, the soft limit of temperature).
    """
    if bits & 0xF:
        return "THROTTLED: see its power supply and cooling"
    return "was throttled before" if bits & 0xF0000 else "not throttled"
