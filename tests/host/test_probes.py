# SPDX-License-Identifier: 0BSD
"""What the core can do: sane figures, and the limits that follow from them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bdcc.errors import BuildError
from bdcc.host import probes
from bdcc.host.library import ISAS
from bdcc.host.limits import OPERATIONS, kernel_family, layer_speed, mac_limit
from bdcc.host.probes import Machine, fastest_cpus, measure_machine, pinned
from strict import strict


@pytest.fixture(scope="module")
def machine() -> Machine:
    return measure_machine(weight_bytes=3_000_000)


def test_the_figures_are_sane(machine: Machine) -> None:
    assert 0.3 < machine.ghz < 8
    assert 1 << 16 <= machine.cache_bytes < 1 << 31
    for rate in (machine.cache_gb_s, machine.memory_gb_s, machine.weights_gb_s):
        assert 0.1 < rate < 5000
    assert machine.rates
    # A pair of operations never takes less than a sixth of a cycle.
    assert all(0.005 < rate < 6 for rate in machine.rates.values())
    if "vpdpbusd512" in machine.rates:
        assert 64 * machine.rates["vpdpbusd512"] <= 512
    if "popcnt512" in machine.rates:  # and, popcnt and add: of four units at most
        assert machine.rates["popcnt512"] <= 2


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86-64")
def test_what_the_cpu_has_is_measured(machine: Machine) -> None:
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    for flag, operation in (
        ("avx2", "maddubs256"),
        ("ssse3", "shuffle128"),
        ("avx512_vpopcntdq", "popcnt512"),
        ("avx512_vnni", "vpdpbusd512"),
        ("avx512vbmi", "permute512"),
    ):
        assert (flag in flags) == (operation in machine.rates)


@pytest.mark.parametrize("weight_bytes", [0, 1, 777, 300_000])
def test_any_size_is_read(weight_bytes: int) -> None:
    assert 1 < measure_machine(weight_bytes=weight_bytes).weights_gb_s < 5000


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("portable", [False, True])
def test_it_compiles_without_a_warning(
    tmp_path: Path, tool: Callable[[str], str], compiler: str, portable: bool
) -> None:
    source = probes.SOURCE.read_text("utf-8")
    if portable:  # what other processors get
        source = source.replace("__x86_64__", "__no_such_processor__")
    (tmp_path / "probe.c").write_text(source)
    command = [tool(compiler), *probes.ARGUMENTS, *strict(compiler), "probe.c", "-o", "probe"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = subprocess.run(
        [tmp_path / "probe", "100000"], capture_output=True, text=True, check=True
    ).stdout
    assert "rate muladd128 " in out
    assert out.count("\nread ") == 3


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nowhere/cc")
    with pytest.raises(BuildError, match="'/nowhere/cc' does not work"):
        measure_machine(weight_bytes=1)


def test_one_cpu_and_back() -> None:
    before = os.sched_getaffinity(0)
    with pinned():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
    assert fastest_cpus(99) == sorted(before)


def test_the_fastest_cpus_and_then_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    monkeypatch.setattr(probes, "_capacity", lambda cpu: (1000, 1000, 1000, 400, 400)[cpu])
    assert [fastest_cpus(n) for n in (1, 2, 4)] == [[2], [1, 2], [0, 1, 2, 4]]


# --- limits ---------------------------------------------------------------------------------------

MACHINE = Machine(
    ghz=2.0,
    rates={"popcnt512": 1.0, "vpdpbusd512": 2.0, "permute512": 2.0, "muladd512": 2.0},
    cache_bytes=1 << 20,
    cache_gb_s=100.0,
    memory_gb_s=10.0,
    weights_gb_s=50.0,
)


def layer(family: str | None, **values: Any) -> dict[str, Any]:
    kernel = None if family is None else f"bdcc_{family}_b4q3"
    return {"op": "Conv", "bases": 4, "q": 3, "macs": 10**6, "weight_bytes": 1000, **values} | {
        "kernel": kernel
    }


@pytest.mark.parametrize(
    ("family", "operation", "macs"),
    [
        ("popcount", "popcnt512", 512 / 12),
        ("bytedot", "vpdpbusd512", 128),
        ("lut", "permute512", 768 / 4),
        (None, "muladd512", 32),
    ],
)
def test_multiplications_per_cycle(family: str | None, operation: str, macs: float) -> None:
    assert mac_limit(layer(family), "avx512", MACHINE) == (operation, pytest.approx(macs))


@pytest.mark.parametrize(
    ("isa", "op", "bits", "macs"),
    [
        ("avx512", "Conv", 3, 6 * 64 / 4),
        ("avx512", "Conv", 6, 4 * 64 / 4),
        ("avx512", "Conv", 7, 4 * 64 / 8),  # 4 * 127 is no byte
        ("avx2", "Conv", 6, 4 * 32 / 4),
        ("avx2", "Conv", 7, 4 * 32 / 8),
        ("generic", "Conv", 8, 8 * 4 / 4),
        ("generic", "Gemm", 8, 8 / 4),
    ],
)
def test_look_ups(isa: str, op: str, bits: int, macs: float) -> None:
    rates = dict.fromkeys(("permute512", "shuffle256", "table64"), 1.0)
    found = mac_limit(layer("lut", op=op, q=bits), isa, replace(MACHINE, rates=rates))
    assert found is not None
    assert found[1] == pytest.approx(macs)


@pytest.mark.parametrize("family", ["popcount", "bytedot", "lut", "float"])
def test_every_instruction_set_has_a_limit(family: str) -> None:
    assert set(ISAS) <= set(OPERATIONS[family])


def test_what_is_unknown_has_no_limit() -> None:
    assert mac_limit(layer("origami"), "avx512", MACHINE) is None
    assert mac_limit(layer("popcount"), "sse9", MACHINE) is None
    assert mac_limit(layer("popcount"), "avx2", MACHINE) is None  # not measured
    speed = layer_speed(layer("origami"), isa="avx512", machine=MACHINE, ms=1.0, cold_ms=2.0)
    assert (speed.operation, speed.mac_limit, speed.mac_share, speed.limit) == (None,) * 3 + (
        "reads",
    )
    assert speed.share == speed.read_share
    assert speed.mac_per_cycle == 0.5


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("bdcc_popcount_b4q3", "popcount"),
        ("bdcc_lut_gemm_b2q2_6x1", "lut"),
        ("bdcc_bytedot_conv_b4q8", "bytedot"),
        (None, "float"),
    ],
)
def test_families_by_name(kernel: str | None, family: str) -> None:
    assert kernel_family(kernel) == family


def test_the_longer_of_two_limits() -> None:
    """10^6 MACs at 128 a cycle of 0.5 ns: 3.9 us. 10 kB take 0.2 us, 1 MB 20 us or, cold, 100."""
    small = layer_speed(
        layer("bytedot", weight_bytes=10_000), isa="avx512", machine=MACHINE, ms=0.01, cold_ms=0.02
    )
    assert (small.limit, small.operation, small.mac_limit) == ("vpdpbusd512", "vpdpbusd512", 128)
    assert (small.share, small.cold_share) == (0.390625, 0.195312)
    assert (small.mac_share, small.read_share) == (0.390625, 0.02)
    large = layer_speed(
        layer("bytedot", weight_bytes=10**6), isa="avx512", machine=MACHINE, ms=0.04, cold_ms=0.2
    )
    assert (large.limit, large.operation) == ("reads", "vpdpbusd512")
    assert (large.share, large.cold_share) == (0.5, 0.5)
    assert (large.gb_s, large.read_share, large.mac_share) == (25.0, 0.5, 0.097656)
