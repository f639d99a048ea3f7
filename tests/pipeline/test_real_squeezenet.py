# SPDX-License-Identifier: 0BSD
"""A trained network with branches: a few pictures through everything, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import bdcc


def some(source: Path, target: Path, *, first: int, count: int) -> Path:
    """A folder of `count` pictures, in the order of their names, and their labels if any."""
    target.mkdir()
    for picture in sorted(source.glob("*.jpg"))[first : first + count]:
        shutil.copy(picture, target)
    labels = source / "labels.csv"
    if labels.is_file():
        header, *rows = labels.read_text().splitlines()
        kept = [row for row in rows if (target / row.split(",")[0]).is_file()]
        (target / "labels.csv").write_text("\n".join([header, *kept]) + "\n")
    return target


@pytest.mark.real
@pytest.mark.usefixtures("optimised")
def test_squeezenet(shared: Path, tmp_path: Path) -> None:
    pictures = shared / "data" / "imagenet1000"
    result = bdcc.compile_model(
        shared / "models" / "squeezenet1_0.onnx",
        bdcc.CompileOptions(
            output=tmp_path / "out",
            data=some(pictures / "eval", tmp_path / "search", first=0, count=24),
            holdout=some(pictures / "eval", tmp_path / "holdout", first=24, count=12),
            calib=some(pictures / "calib", tmp_path / "calib", first=0, count=12),
            preset="caffe",
            resize="crop:256",
            bases=(5,),
            q=(8,),
            cache="off",
        ),
    )
    report = json.loads((result.project / "report.json").read_text())
    accuracy = report["accuracy"]
    assert accuracy["float"] >= 70  # 83 on all 700
    assert abs(accuracy["drop_pp"]) <= 100 * 3 / 24
    assert [layer["q"] for layer in report["layers"]] == [8] * 26
    assert report["size"]["weight_bytes"] <= 0.2 * report["size"]["float_weight_bytes"]
    steps = json.loads((result.project / "host" / "project.json").read_text())["steps"]
    assert not [step for step in steps if step["op"] == "Concat"]  # each layer writes its slice
    assert sum(step["op"] == "Conv" for step in steps) == 26
