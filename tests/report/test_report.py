# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from bdcc.report.html import render_html
from bdcc.report.report import (
    LayerRow,
    Report,
    compare,
    dump_json,
    load_schema,
    percent,
    read_report,
    write_json,
)
from bdcc.report.text import layer_table, many, size, summary, table


def bits(count: int, total: int) -> np.ndarray:
    return np.arange(total) < count


def example() -> Report:
    drop = compare(bits(60, 100), bits(57, 100))
    row = LayerRow(
        name="conv1",
        op="Conv",
        bases=4,
        q=5,
        macs=1000,
        weight_bytes=99,
        kernel="bdcc_popcount_b4q5",
        kernel_us={"popcount": 9.5, "lut": 8.0, "bytedot": 7.0},
        weight_error=0.0123,
        predicted_drop_pp=-0.5,
    )
    kept = replace(
        row,
        name="fc",
        op="Gemm",
        bases=None,
        q=None,
        kernel=None,
        weight_error=None,
        predicted_drop_pp=None,
    )
    return Report(
        bdcc_version="0.1.0",
        fingerprint="00ff",
        target="host",
        target_changes={},
        model_name="m.onnx",
        model_sha256="0" * 64,
        options={"seed": 0},
        cost_table={"isa": "avx2", "machine": "some CPU", "sha256": "0" * 64, "source": "shipped"},
        preprocess={
            "preset": "raw",
            "mean": [0.0],
            "std": [1.0],
            "scale": 1.0,
            "channels": "rgb",
            "resize": "stretch",
        },
        max_drop_pp=1.0,
        met=False,
        warnings=("careful",),
        notes=(),
        layers=(row, kept),
        judge="labels",
        metric="top5",
        decomposed=60.0,
        predicted=58.5,
        search_drop=drop,
        holdout_drop=drop,
        calib_samples=10,
        weight_bytes=99,
        float_weight_bytes=400,
        arena_bytes=64,
        code_bytes=None,
        flash_bytes=None,
        ram_bytes=None,
        stack_bytes=None,
        search_method="paper",
        evaluations=224,
        table={"A": []},
    )


def test_the_report_validates_and_the_schema_bites() -> None:
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    report = example().as_json()
    jsonschema.validate(report, schema)
    for damage in ("met", "layers", "accuracy", "size", "search"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in report.items() if k != damage}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report | {"model": {"name": "/home/x/m.onnx", "sha256": ""}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report | {"extra": 1}, schema)


def test_json_is_what_json_says_it_is() -> None:
    value = example().as_json() | {"table": [[list(range(40))] * 3, "é", None, {}]}
    assert json.loads(dump_json(value)) == json.loads(json.dumps(value))
    assert max(len(line) for line in dump_json(example().as_json()).splitlines()) < 120
    assert json.loads(dump_json({"x": [math.nan, (1.5, -math.inf)]})) == {"x": [None, [1.5, None]]}


def test_reports_are_read_back_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        read_report(tmp_path)
    report = example().as_json()
    write_json(report, tmp_path / "report.json")
    assert read_report(tmp_path) == json.loads(json.dumps(report))
    for content in ("{", "[]", '{"schema": 2}'):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(ValueError, match=r"schema 1|Expecting"):
            read_report(tmp_path)


def test_percent_keeps_what_pictures_can_tell() -> None:
    assert percent(bits(1, 3)) == pytest.approx(100 / 3, abs=1e-6)
    assert percent(bits(1377, 2020)) == pytest.approx(68.1683, abs=1e-4)


def test_the_drop_is_paired() -> None:
    floats, measured = bits(60, 100), np.roll(bits(60, 100), 10)
    drop = compare(floats, measured)
    assert drop.drop_pp == 0
    same = compare(floats, floats)
    assert same.interval_pp[1] < drop.interval_pp[1]
    assert same.interval_pp[0] == -same.interval_pp[1]
    assert same.interval_pp[1] > 0  # 100 equal pictures do not prove that all are


@pytest.mark.parametrize("lost", [0.02, 0.10])
def test_the_interval_covers_the_truth_19_times_in_20(lost: float) -> None:
    rng = np.random.default_rng(0)
    covered, trials, samples, won = 0, 2000, 500, 0.01
    for _ in range(trials):
        kind = rng.random(samples)
        floats = (kind < lost) | (kind > 0.5)
        measured = ((kind >= lost) & (kind < lost + won)) | (kind > 0.5)
        low, high = compare(floats, measured).interval_pp
        covered += low <= 100 * (lost - won) <= high
    assert 0.93 < covered / trials < 0.985


def test_the_table_lines_up() -> None:
    text = table(["a", "bb", "n"], [["x", "y", "1"], ["long", "z", "1000"]])
    assert text.splitlines() == [
        "a     bb     n",
        "----  --  ----",
        "x     y      1",
        "long  z   1000",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (29_400_000, "29.4 MB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_large_counts() -> None:
    assert [many(n) for n in (7, 1500, 720_000_000)] == ["7", "1.5 k", "720.0 M"]


def test_a_person_sees_layers_and_figures() -> None:
    report = example().as_json()
    text = layer_table(report)
    assert text.splitlines()[2].split() == [
        "conv1",
        "Conv",
        "4",
        "5",
        "1.0",
        "k",
        "99",
        "B",
        "1.23%",
        "-0.50",
    ]
    assert text.splitlines()[3].split() == [
        "fc",
        "Gemm",
        "-",
        "float",
        "1.0",
        "k",
        "99",
        "B",
        "-",
        "-",
    ]
    times: dict[str, Any] = {
        "decompose_s": 1.0,
        "search_s": 2.0,
        "build_s": 3.0,
        "total_s": 9.0,
        "bench": {"min_ms": 1.0, "median_ms": 1.25},
    }
    shown = summary(report, times, project="out")
    for part in ("60.00 %", "57.00 %", "58.50 %", "drop 3.00", "MISSED", "1.25 ms", "24.8 %"):
        assert part in shown
    assert len(shown.splitlines()) < 24
    assert "photographs" not in shown
    report["accuracy"]["estimated_drop_pp"] = 1.5
    assert "photographs will lose 1.50 points" in summary(report, times, project="out")
    assert "58.50 %" in summary(report, times, project="out")
    report["accuracy"]["judge"] = (
        "generated"  # which has no photographs to hold a prediction against
    )
    assert "58.50 %" in summary(report, times, project="out")  # the paper's is of what it measures
    report["search"]["method"] = "measured"
    shown = summary(report, times, project="out")
    assert re.search(r"^predicted +photographs will lose 1\.50 points$", shown, re.MULTILINE)
    assert "58.50 %" not in shown
    cached = times | {"from_cache": ["decompose"], "partly_from_cache": ["search"]}
    took = "decompose 1.0 s (from the cache), search 2.0 s (partly from the cache), build 3.0 s)"
    assert took in summary(report, cached, project="out")


def test_boards_are_in_the_summary_of_their_target_and_on_the_page() -> None:
    board = {
        **{"target": "rpi4", "core": "cortex-a72", "clock_mhz": 1500, "ms": 41.23},
        **{"modelled": True, "fits": True},
    }
    small = {**board, "target": "rpi-zero", "modelled": False, "fits": False}
    report = replace(example(), target="rpi4", boards=(small, board), table=None).as_json()
    jsonschema.validate(report, load_schema())
    timings = {"total_s": 1.0}
    assert (
        "on rpi4      about 41.23 ms (one thread of a cortex-a72 at 1500 MHz, modelled); fits its"
        in (text := summary(report, timings, project="out"))
    )
    assert "rpi-zero" not in text
    assert " on " not in summary(example().as_json(), timings, project="out").replace("on hold", "")
    page = render_html(report)
    assert "<td>rpi4</td><td>cortex-a72</td><td>1500</td><td>41.23</td><td>modelled</td>" in page
    assert "<td>measured</td><td>too small</td>" in page
    assert "Boards" not in render_html(report | {"boards": []})


@pytest.mark.parametrize(
    ("method", "options", "shown"),
    [
        ("fixed", {"max_drop_pp": None}, "not asked for"),
        ("fixed", {"max_drop_pp": 1.0}, "1 points: MISSED"),
        ("none", {"strict": True}, "1 points: MISSED"),
        ("paper", {}, "1 points: MISSED"),
    ],
)
def test_a_tolerance_that_nobody_asked_for(
    method: str, options: dict[str, Any], shown: str
) -> None:
    report = example().as_json()
    report["search"]["method"], report["options"] = method, options
    text = summary(report, {"total_s": 1.0}, project="out")
    assert re.search(rf"^tolerance +{shown}$", text, re.MULTILINE)
