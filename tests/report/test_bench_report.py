# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from bdcc.report.bench import bench_text
from bdcc.report.bench_figure import draw_bench
from hostile import HOSTILE


def step(layer: str, ms: float, kernel: str | None, share: float | None) -> dict[str, Any]:
    speed = {
        **{"op": "Conv", "kernel": kernel, "bases": 4, "q": 3, "macs": 1000, "weight_bytes": 100},
        **{"ms": ms, "cold_ms": 2 * ms, "mac_per_cycle": 52.71, "mac_limit": 60.0, "gb_s": 0.66},
        **{"operation": share and "popcnt512", "mac_share": share, "read_share": 0.02},
        **{"limit": "popcnt512" if share else "reads", "share": share or 0.02, "cold_share": 0.35},
    }
    return {"layer": layer, "min_ms": ms, "median_ms": 1.1 * ms, "speed": speed}


def system(name: str, ms: float, problem: str | None = None) -> dict[str, Any]:
    return {
        **{"name": name, "threads": 1, "runs": 9, "min_ms": ms, "median_ms": ms + 1},
        **{
            "cpu_ms": ms,
            "ratio": 5 / ms if ms else 0.0,
            "cpu_ratio": 0.25,
            "error": 0.0123,
            "problem": problem,
        },
    }


def example() -> dict[str, Any]:
    machine = {
        **{"ghz": 4.04, "rates": {"popcnt512": 1.33}, "cache_bytes": 33554432},
        **{"cache_gb_s": 101.0, "memory_gb_s": 38.0, "weights_gb_s": 82.0},
    }
    pool = {"layer": "pool1", "min_ms": 0.01, "median_ms": 0.02, "speed": None}
    return {
        **{"isa": "avx512", "threads": 1, "rounds": 9, "min_ms": 2.41, "median_ms": 2.5},
        "steps": [step("conv1", 1.0, "bdcc_popcount_b4q3", 0.7), pool, step("fc", 0.2, None, None)],
        "machine": machine,
        "memory": {
            **{"steady_bytes": 30_700_000, "peak_bytes": 30_800_000},
            **{"weight_bytes": 29_100_000, "arena_bytes": 1_400_000},
        },
        "systems": [system("bdcc", 5.0), system("x fp32", 10.0), system("y", 0.0, "not installed")],
    }


def test_all_of_it() -> None:
    lines = bench_text(example()).splitlines()
    assert lines[-1] == "min=2.41 median=2.50 ms"
    assert lines[-2] == "avx512, threads: 1, rounds: 9"
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "conv1 Conv popcount_b4q3 1.0000 1.1000 52.7 70% 0.7 2% 2.0000 35% popcnt512" in text
    assert "\npool1 0.0100 0.0200\n" in text
    assert "fc Conv float 0.2000 0.2200 52.7 - 0.7 2% 0.4000 35% -" in text
    assert "clock 4.04 GHz; reads 38.0 GB/s from memory, 101.0 in the last cache" in text
    assert "\nx fp32 1 11.000 10.000 0.50 10.000 0.25 0.0123\n" in text
    assert "\ny: not installed\n" in text
    assert "30.8 MB at most, 30.7 MB steadily" in text
    assert "weights 29.1 MB, arena 1.4 MB, 0.3 MB more" in text


@pytest.mark.parametrize("ms", [0.00012, 0.0999, 0.1, 3.0, 1234.0])
def test_the_last_line_is_for_scripts(ms: float) -> None:
    result = {**example(), "steps": [], "systems": [], "memory": None, "min_ms": ms}
    text = bench_text({**result, "median_ms": ms})
    assert text.count("\n") == 1
    found = re.fullmatch(r"min=(\d+\.\d+) median=(\d+\.\d+) ms", text.splitlines()[-1])
    assert found
    assert float(found[1]) == pytest.approx(ms, rel=0.1)


@pytest.mark.parametrize("without", [(), ("steps",), ("systems",), ("steps", "systems")])
def test_pictures_are_the_same_for_the_same_figures(without: tuple[str, ...]) -> None:
    result = {**example(), **{key: [] for key in without}}
    svg = draw_bench(result)
    assert svg == draw_bench(result)
    ET.fromstring(svg)
    assert ("x fp32" in svg) == ("systems" not in without)
    assert ("70% of popcnt512" in svg) == ("steps" not in without)
    assert "bdcc" in svg
    assert "not installed" not in svg
    assert "pool1" not in svg
    assert draw_bench({**result, "systems": [system("bdcc", 7.0)]}) != svg


def test_names_of_any_kind_take_a_row_each() -> None:
    result = example()
    result["steps"] = [step(name, 1.0, None, None) for name in HOSTILE]
    result["systems"] = [system(HOSTILE[0], 1.0), system("y", 0.0, "no\nway\x1b")]
    table = bench_text(result).split("\n\n")[0].splitlines()
    assert all(line.isprintable() for line in bench_text(result).split("\n"))
    assert len(table) == 2 + len(HOSTILE) + 2
    assert max(map(len, table)) < 250
    svg = ET.fromstring(draw_bench(result))
    texts = ["".join(one.itertext()) for one in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"$$", "new\\nline", "\\frac{1}{2}"} <= set(texts)
