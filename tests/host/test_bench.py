# SPDX-License-Identifier: 0BSD
"""Timing: what is reported, and that it is time at all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bdcc.errors import OptionError
from bdcc.host import bench as module
from bdcc.host.bench import bench
from bdcc.host.library import Library
from bdcc.host.probes import Machine

MACHINE = Machine(
    ghz=4.0,
    rates={"adder128": 0.5, "muladd128": 2.0},
    cache_bytes=1 << 16,
    cache_gb_s=100.0,
    memory_gb_s=10.0,
    weights_gb_s=50.0,
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not measured: test_probes.py does that."""
    monkeypatch.setattr(module, "measure_machine", lambda **_: MACHINE)


def test_what_is_found(net: Path) -> None:
    result = bench(net, rounds=5)
    assert 0 < result.min_ms <= result.median_ms
    assert (result.threads, result.rounds, result.steps, result.machine) == (1, 5, (), None)
    assert json.loads(json.dumps(result.as_json()))["min_ms"] == result.min_ms


def test_rounds_stop_at_the_budget(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET_S", 0.0)
    assert bench(net).rounds == module.ROUNDS[0]


def test_the_steps_make_up_the_whole(net: Path) -> None:
    result = bench(net, isa="generic", rounds=20, layers=True)
    with Library.open(net, isa="generic") as library:
        names = [library.step_name(index) for index in range(library.step_count)]
    assert [step.layer for step in result.steps] == names
    assert all(0 <= step.min_ms <= step.median_ms for step in result.steps)
    # Up to the noise of a busy machine.
    assert 0.2 < sum(step.median_ms for step in result.steps) / result.median_ms < 5


def test_layers_of_the_report_have_a_speed(copy: Path) -> None:
    """Every weight layer once, decomposed or not, on the step that multiplies."""
    facts = json.loads((copy / "host" / "project.json").read_text())["steps"]
    weighted = [step for step in facts if step["op"] in ("Conv", "Gemm")]
    layers: list[dict[str, Any]] = []
    for step in weighted:
        kernel = "bdcc_popcount_b2q4" if step["kind"] == "binary" else None
        layer = {"name": step["layer"], "op": step["op"], "bases": 2, "q": 4, "macs": 1000}
        layers.append({**layer, "weight_bytes": 400, "kernel": kernel})
    report = json.loads((copy / "report.json").read_text())
    (copy / "report.json").write_text(json.dumps({**report, "layers": layers}))
    result = bench(copy, isa="generic", rounds=3, layers=True)
    assert result.machine == MACHINE
    found = [(step, step.speed) for step in result.steps if step.speed is not None]
    assert [step.layer for step, _ in found] == [layer["name"] for layer in layers]
    assert {speed.kernel for _, speed in found} == {"bdcc_popcount_b2q4", None}
    for step, speed in found:
        assert speed.ms == step.min_ms
        assert speed.mac_per_cycle == round(1000 / (step.min_ms * 4e6), 6)
        assert speed.operation == ("muladd128" if speed.kernel is None else "adder128")
        assert speed.mac_limit == (8 if speed.kernel is None else 0.5 * 128 / 8)
        assert speed.gb_s == round(400 / (step.min_ms * 1e6), 6)


def test_layers_are_timed_apart(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step made slow is the one that stands out, by just what it was slowed."""
    original = Library.run_steps

    def slow(
        self: Library, x: object, output: object, first: int, last: int, **rest: object
    ) -> None:
        original(self, x, output, first, last, **rest)  # type: ignore[arg-type]
        if first <= 3 < last:
            time.sleep(0.02)

    monkeypatch.setattr(Library, "run_steps", slow)
    steps = bench(net, rounds=3, layers=True).steps
    slowest = max(range(len(steps)), key=lambda i: steps[i].median_ms)
    assert slowest == 3
    assert steps[3].median_ms >= 20


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(net: Path, threads: int) -> None:
    result = bench(net, threads=threads, rounds=3)
    assert (result.threads, result.rounds, result.steps) == (threads, 3, ())
    assert 0 < result.min_ms <= result.median_ms


def test_an_unknown_instruction_set(net: Path) -> None:
    with pytest.raises(OptionError, match="it has generic"):
        bench(net, isa="mmx")
