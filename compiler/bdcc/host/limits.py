# SPDX-License-Identifier: 0BSD
"""How near a layer's kernel comes to what the core can do.

A layer cannot take less time than its multiplications take at the issue rate of the instructions
that its kernel family is made of, nor less than its weights take to be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bdcc.codegen.lut import is_wide
from bdcc.host.probes import Machine

DIGITS = 6
LEAST_MS = 1e-6  # of what is divided by
BYTE = 255
# Per family and instruction set: the operation of probe.c that its inner loop repeats, and how many
# multiplications of a one-bit weight with a one-bit activation (popcount), of a one-bit weight with
# a code (lut), or of a whole weight with a code (bytedot) or a float one of them does.
OPERATIONS: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "popcount": {
        "generic": ("adder128", 128),
        "popcnt": ("popcnt64", 64),
        "avx2": ("adder256", 256),
        "avxvnni": ("adder256", 256),
        "avx512": ("popcnt512", 512),
        "neon": ("cnt128", 128),
        "neondot": ("cnt128", 128),
        "simd32": ("adder128", 128),
    },
    "lut": {
        "generic": ("table64", 8 * 4),  # 8 inputs of 4 pixels
        "popcnt": ("shuffle128", 4 * 16),  # 4 inputs, 16 filters
        "avx2": ("shuffle256", 4 * 32),
        "avxvnni": ("shuffle256", 4 * 32),
        "avx512": ("permute512", 6 * 64),  # wide: 4 inputs
        "neon": ("tbl128", 4 * 16),
        "neondot": ("tbl128", 4 * 16),
        "simd32": ("table64", 8 * 4),
    },
    "bytedot": {
        "generic": ("madd128", 8),
        "popcnt": ("maddubs128", 16),
        "avx2": ("maddubs256", 32),
        "avxvnni": ("vpdpbusd256", 32),
        "avx512": ("vpdpbusd512", 64),
        "neon": ("smlal128", 8),
        "neondot": ("sdot128", 16),
        "simd32": ("madd128", 8),
    },
    "float": {
        "generic": ("muladd128", 4),
        "popcnt": ("muladd128", 4),
        "avx2": ("muladd256", 8),
        "avxvnni": ("muladd256", 8),
        "avx512": ("muladd512", 16),
        "neon": ("muladd128", 4),
        "neondot": ("muladd128", 4),
        "simd32": ("muladd128", 4),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A weight layer against its limits. kernel: None where it stayed float.

    ms: least of many runs one after the other; cold_ms: least of runs that found nothing in the
    caches. mac_per_cycle in ms, mac_limit and mac_share: what `operation` allows, and the share of
    it, None for a kernel or a CPU that OPERATIONS does not know; gb_s: weights read in ms,
    read_share: of what is possible. share: the larger, by the limit that binds (`limit`: operation,
    or "reads"); cold_share: the same of cold_ms with weights from memory.
    """

    op: str
    kernel: str | None
    bases: int | None
    q: int | None
    macs: int
    weight_bytes: int
    ms: float
    cold_ms: float
    operation: str | None
    mac_per_cycle: float
    mac_limit: float | None
    mac_share: float | None
    gb_s: float
    read_share: float
    limit: str
    share: float
    cold_share: float


def kernel_family(kernel: str | None) -> str:
    """popcount of bdcc_popcount_b4q3; float where there is no kernel."""
    return "float" if kernel is None else kernel.removeprefix("bdcc_").partition("_")[0]


def mac_limit(layer: Mapping[str, Any], isa: str, machine: Machine) -> tuple[str, float] | None:
    """The operation that a layer of report.json is made of, and multiply-accumulates per cycle at
    its issue rate; None if it is not known, or the CPU has not got it.
    """
    family = kernel_family(layer["kernel"])
    operation, macs = OPERATIONS.get(family, {}).get(isa, ("", 0))
    if operation not in machine.rates:
        return None
    times = 1  # that the operation is done for what it says
    if family in ("popcount", "lut"):
        times *= layer["bases"]
    if family == "popcount":
        times *= layer["q"]
    if family == "lut":
        inputs = {"permute512": 6, "table64": 0}.get(operation, 4)
        if is_wide(isa, layer["q"]):
            inputs, macs = 4, 4 * 64
        if inputs * (2 ** layer["q"] - 1) > BYTE:  # sums do not fit: low and high bits apart
            times *= 2
        if operation == "table64" and layer["op"] == "Gemm":  # no four pixels to share it
            times *= 4
    return operation, machine.rates[operation] * macs / times


def layer_speed(
    layer: Mapping[str, Any], *, isa: str, machine: Machine, ms: float, cold_ms: float
) -> Speed:
    """layer: its record in report.json."""
    macs, weight_bytes = layer["macs"], layer["weight_bytes"]
    ms, cold_ms = max(ms, LEAST_MS), max(cold_ms, LEAST_MS)
    mac_per_cycle, cold_mac_per_cycle = (macs / (t * machine.ghz * 1e6) for t in (ms, cold_ms))
    gb_s, cold_gb_s = (weight_bytes / (t * 1e6) for t in (ms, cold_ms))
    operation, most = mac_limit(layer, isa, machine) or (None, None)
    mac_share, cold_mac_share = (
        None if most is None else rate / most for rate in (mac_per_cycle, cold_mac_per_cycle)
    )
    read_share = gb_s / machine.weights_gb_s
    computes = operation is not None and (mac_share or 0.0) >= read_share
    return Speed(
        op=layer["op"],
        kernel=layer["kernel"],
        bases=layer["bases"],
        q=layer["q"],
        macs=macs,
        weight_bytes=weight_bytes,
        ms=ms,
        cold_ms=cold_ms,
        operation=operation,
        mac_per_cycle=round(mac_per_cycle, DIGITS),
        mac_limit=None if most is None else round(most, DIGITS),
        mac_share=None if mac_share is None else round(mac_share, DIGITS),
        gb_s=round(gb_s, DIGITS),
        read_share=round(read_share, DIGITS),
        limit=str(operation) if computes else "reads",
        share=round(max(mac_share or 0.0, read_share), DIGITS),
        cold_share=round(max(cold_mac_share or 0.0, cold_gb_s / machine.memory_gb_s), DIGITS),
    )
