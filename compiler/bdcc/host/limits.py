# SPDX-License-Identifier: 0BSD
"""How near a layer's kernel comes to what the core can do.

A layer cannot take less time than its multiplications take at the issue rate of the instructions
that its kernel family is made of, nor less than its weights take to be read. The longer of the two
is its limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bdcc.host.probes import Machine

# Per family and instruction set: the operation of probe.c that its inner loop repeats, and how many
# multiplications of a one-bit weight with a one-bit activation (popcount), of a one-bit weight with
# a code (lut), or of a whole weight with a code (bytedot) or a float one of them does.
OPERATIONS: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "popcount": {
        "generic": ("adder64", 64),
        "popcnt": ("popcnt64", 64),
        "avx2": ("adder256", 256),
        "avxvnni": ("adder256", 256),
        "avx512": ("popcnt512", 512),
    },
    "lut": {
        "generic": ("table64", 8 * 4),  # 8 inputs of 4 pixels
        "popcnt": ("shuffle128", 4 * 16),  # 4 inputs, 16 filters
        "avx2": ("shuffle256", 4 * 32),
        "avxvnni": ("shuffle256", 4 * 32),
        "avx512": ("permute512", 6 * 64),
    },
    "bytedot": {
        "generic": ("madd128", 8),
        "popcnt": ("maddubs128", 16),
        "avx2": ("maddubs256", 32),
        "avxvnni": ("vpdpbusd256", 32),
        "avx512": ("vpdpbusd512", 64),
    },
    "float": {
        "generic": ("muladd128", 4),
        "popcnt": ("muladd128", 4),
        "avx2": ("muladd256", 8),
        "avxvnni": ("muladd256", 8),
        "avx512": ("muladd512", 16),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """A weight layer against its limit. kernel: None where it stayed float.

    ms: least of many runs one after the other; cold_ms: least of runs that found nothing in the
    caches; gb_s: its weights in ms; limit: "reads", or the operation that binds; limit_ms: what it
    allows; share: limit_ms / ms; cold_limit_ms, cold_share: the same with weights from memory.
    What cannot be said (a kernel or a CPU unknown to OPERATIONS) is None.
    """

    op: str
    kernel: str | None
    bases: int | None
    q: int | None
    macs: int
    weight_bytes: int
    ms: float
    cold_ms: float
    mac_per_cycle: float
    gb_s: float
    limit: str | None
    limit_ms: float | None
    share: float | None
    cold_limit_ms: float | None
    cold_share: float | None


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
    factor = {"popcount": "bases q", "lut": "bases"}.get(family, "").split()
    for name in factor:
        macs /= layer[name]
    return operation, machine.rates[operation] * macs


def layer_speed(
    layer: Mapping[str, Any], *, isa: str, machine: Machine, ms: float, cold_ms: float
) -> Speed:
    """layer: its record in report.json."""
    macs, weight_bytes = layer["macs"], layer["weight_bytes"]
    found = mac_limit(layer, isa, machine)
    limit: str | None = None
    limit_ms = cold_limit_ms = share = cold_share = None
    if found is not None:
        operation, rate = found
        compute_ms = macs / rate / (machine.ghz * 1e6)
        read_ms, cold_read_ms = (
            weight_bytes / (rate * 1e6) for rate in (machine.weights_gb_s, machine.memory_gb_s)
        )
        limit = operation if compute_ms >= read_ms else "reads"
        limit_ms, cold_limit_ms = max(compute_ms, read_ms), max(compute_ms, cold_read_ms)
        share, cold_share = limit_ms / max(ms, 1e-6), cold_limit_ms / max(cold_ms, 1e-6)

    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 9)

    return Speed(
        op=layer["op"],
        kernel=layer["kernel"],
        bases=layer["bases"],
        q=layer["q"],
        macs=macs,
        weight_bytes=weight_bytes,
        ms=ms,
        cold_ms=cold_ms,
        mac_per_cycle=round(macs / (max(ms, 1e-6) * machine.ghz * 1e6), 3),
        gb_s=round(weight_bytes / (max(ms, 1e-6) * 1e6), 3),
        limit=limit,
        limit_ms=rounded(limit_ms),
        share=rounded(share),
        cold_limit_ms=rounded(cold_limit_ms),
        cold_share=rounded(cold_share),
    )
