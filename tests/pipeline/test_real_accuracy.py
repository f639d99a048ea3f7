# SPDX-License-Identifier: 0BSD
"""What README and docs/aware.md promise of the real AlexNet, measured on all of its pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_real_alexnet import MEAN, compile_alexnet

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("optimised")]


def test_three_bases_by_weights_alone(shared: Path, examples: Path) -> None:
    pictures = shared / "data" / "tiny202"
    said = subprocess.run(
        [
            *(sys.executable, examples / "measure_aware.py", shared / "models" / "alexnet.onnx"),
            *("--data", pictures / "search", "--calib", pictures / "calib"),
            *("--holdout", pictures / "holdout", "--preset", "raw", "--bases", "3"),
            *("--mean", ",".join(map(str, MEAN))),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = re.findall(r"^\| 3 \| (\S.*?) +\| (\S+) / (\S+) +\| (\S+)", said, re.MULTILINE)
    (free, *drops, nats), (uniform, *_, coarser) = rows
    assert (free, uniform) == ("free", "1, 2, 4, ..")
    search, holdout = map(float, drops)
    assert search <= 0.8
    assert holdout <= 1.0
    assert float(nats) < float(coarser) < 0.01


def test_a_tolerance_of_three_points(shared: Path, tmp_path: Path) -> None:
    result = compile_alexnet(shared, tmp_path / "out", max_drop_pp=3.0, objective="ops")
    assert result.missed is None
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    accuracy = report["accuracy"]
    assert accuracy["drop_pp"] <= 3.0
    assert accuracy["holdout"]["drop_pp"] <= 6.0
    assert abs(accuracy["predicted"] - accuracy["measured"]) <= 2.0
    convs = [layer for layer in report["layers"] if layer["op"] == "Conv"]
    operations = sum(layer["bases"] * layer["q"] * layer["macs"] for layer in convs)
    assert operations <= 8 * sum(layer["macs"] for layer in convs)  # 6 * 8 in the paper's setting
    assert report["size"]["weight_bytes"] <= 0.1 * report["size"]["float_weight_bytes"]
