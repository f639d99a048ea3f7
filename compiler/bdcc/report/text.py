# SPDX-License-Identifier: 0BSD
"""The same report as plain text: the table per layer and the summary on one screen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from bdcc.codegen.escape import CELL_MOST
from bdcc.codegen.targets import target_of
from bdcc.errors import one_line
from bdcc.report.report import is_bound, predicted_loss

JUDGES = {
    "labels": "labels of the pictures",
    "agreement": "agreement with the float model: the pictures have no labels",
    "generated": "agreement with the float model on generated pictures",
}


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: int = 2,
    most: int | None = CELL_MOST,
) -> str:
    """Columns as wide as they need, the first `left` flush left and the others flush right. A row
    is one line, whatever the cells hold, and a cell no wider than `most`.
    """
    rows = [[one_line(cell, most=most) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, rule, *rows)
    )


def targets_text(targets: Sequence[Mapping[str, Any]]) -> str:
    """Targets as `bdcc targets --json` has them, a row each."""
    header = ["target", "what", "core", "kernels", "bits", "memory", "compiler", "flags"]
    rows = [
        [
            t["name"],
            t["description"],
            t["core"] or "any",
            t["planned_for"] or "widest",
            str(t["bits"] or "any"),
            " + ".join(_chip(t[key]) for key in ("flash_bytes", "ram_bytes") if t[key] is not None),
            f"{t['cross']}gcc" if t["cross"] else "cc",
            t["cflags"],
        ]
        for t in targets
    ]
    return table(header, rows, left=len(header), most=None)  # flags are there to be copied


def _chip(count: int) -> str:
    """Bytes as memory is sold: 192 KiB, 512 MiB, 1 GiB."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << shift and count % (1 << shift) == 0:
            return f"{count >> shift} {unit}"
    return f"{count} B"


def size(count: int) -> str:
    """Bytes for a person: 1023 B, 1.0 kB, 29.4 MB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    for unit, scale in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if count < 999.95 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.0f} GB"


def many(count: int) -> str:
    """A large count for a person: 950, 1.2 k, 104.1 M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return str(count)


def layer_table(report: Mapping[str, Any]) -> str:
    """One row per weight layer: op, B, Q, MACs, bytes, weight error, predicted drop."""

    def cell(value: Any, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [
        [
            layer["name"],
            layer["op"],
            cell(layer["bases"], "d"),
            "float" if layer["q"] is None else str(layer["q"]),
            many(layer["macs"]),
            size(layer["weight_bytes"]),
            cell(layer["weight_error"], ".2%"),
            cell(layer["predicted_drop_pp"], "+.2f"),
        ]
        for layer in report["layers"]
    ]
    header = ["layer", "op", "B", "Q", "MACs", "bytes", "weight error", "predicted drop"]
    return table(header, rows)


def summary(report: Mapping[str, Any], timings: Mapping[str, Any], *, project: str) -> str:
    """What came of it: accuracies, size, times, and what to do next."""
    accuracy, sizes = report["accuracy"], report["size"]
    holdout = accuracy["holdout"]
    name = {"top1": "top-1", "top5": "top-5"}[accuracy["metric"]]
    share = 100 * sizes["weight_bytes"] / sizes["float_weight_bytes"]
    met = "met" if report["met"] else "MISSED"
    rows = [
        ("judged by", f"{name}, {JUDGES[accuracy['judge']]}"),
        ("float model", f"{accuracy['float']:.2f} %  ({accuracy['samples']} pictures)"),
        ("decomposed", f"{accuracy['decomposed']:.2f} %  (weights only, float activations)"),
    ]
    loss = predicted_loss(report)
    if loss is not None:
        rows.append(("predicted", f"photographs will lose {loss:.2f} points"))
    elif accuracy["predicted"] is not None:
        rows.append(("predicted", f"{accuracy['predicted']:.2f} %"))
    if accuracy.get("estimated_drop_pp") is not None:
        rows.append(
            (
                "estimated",
                f"photographs will lose {accuracy['estimated_drop_pp']:.2f} points, by how far the "
                "outputs diverge",
            )
        )
    rows += [
        ("measured", f"{accuracy['measured']:.2f} %  {_drop(accuracy)}, in the built library"),
        (
            "on holdout",
            f"{holdout['measured']:.2f} %  {_drop(holdout)}, float {holdout['float']:.2f} %, "
            f"{holdout['samples']} pictures",
        ),
        (
            "tolerance",
            f"{report['max_drop_pp']:g} points: {met}"
            if is_bound(report["search"]["method"], report["options"])
            else "not asked for",
        ),
        (
            "weights",
            f"{size(sizes['weight_bytes'])}, {share:.1f} % of "
            f"{size(sizes['float_weight_bytes'])} in float",
        ),
        ("arena", size(sizes["arena_bytes"])),
    ]
    if sizes["code_bytes"] is not None:
        rows.append(("code", f"{size(sizes['code_bytes'])}, of the library that was measured here"))
    if sizes.get("flash_bytes") is not None:
        rows.append(("flash", f"{size(sizes['flash_bytes'])}: weights, code and constants"))
        stack = size(sizes["stack_bytes"])
        rows.append(("RAM", f"{size(sizes['ram_bytes'])}: arena, handle and {stack} of stack"))
    rows += [
        (f"on {board['target']}", board_text(board))
        for board in report["boards"]
        if board["target"] == report["target"]
    ]
    if bench := timings.get("bench"):
        where = bench.get("host", "this machine")
        rows.append(("one picture", f"{bench['median_ms']:.2f} ms (median, one thread, {where})"))
    spent = [
        f"{stage} {timings[f'{stage}_s']:.1f} s{_source(stage, timings)}"
        for stage in ("decompose", "search", "build")
        if f"{stage}_s" in timings
    ]
    rows.append(("took", f"{timings['total_s']:.1f} s ({', '.join(spent)})"))
    target = target_of(report)
    there = shlex.quote(project)
    make = f"make -C {there}" + (f" CROSS={target.cross}" if target.cross else "")
    deploy = "" if target.bare or not target.cross else f"   bdcc deploy USER@BOARD {there}"
    rows.append(("next", f"{make}   bdcc verify {there}   bdcc run {there} PICTURE{deploy}"))
    width = max(len(key) for key, _ in rows)
    return "\n".join(one_line(f"{key.ljust(width)}  {value}") for key, value in rows)


def board_text(board: Mapping[str, Any]) -> str:
    """What a project would take there, and whether it fits."""
    how = ", modelled" if board["modelled"] else ""
    fits = "fits its memory" if board["fits"] else "DOES NOT FIT its memory"
    return (
        f"about {board['ms']:.4g} ms (one thread of a {board['core']} at {board['clock_mhz']} MHz"
        f"{how}); {fits}"
    )


def _drop(part: Mapping[str, Any]) -> str:
    low, high = part["drop_interval_pp"]
    return f"drop {part['drop_pp']:.2f} [{low:.2f}, {high:.2f}]"


def _source(stage: str, timings: Mapping[str, Any]) -> str:
    if stage in timings.get("from_cache", ()):
        return " (from the cache)"
    if stage in timings.get("partly_from_cache", ()):
        return " (partly from the cache)"
    return ""
