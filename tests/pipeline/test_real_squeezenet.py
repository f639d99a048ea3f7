# SPDX-License-Identifier: 0BSD
"""A trained network with branches: a few pictures through everything, to the last bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import bdcc
from boards import BOARDS, Board, check_on_board


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


@pytest.fixture(scope="module")
def project(shared: Path, optimised: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures, folder = shared / "data" / "imagenet1000", tmp_path_factory.mktemp("real")
    return bdcc.compile_model(
        shared / "models" / "squeezenet1_0.onnx",
        bdcc.CompileOptions(
            output=folder / "out",
            data=some(pictures / "eval", folder / "search", first=0, count=24),
            holdout=some(pictures / "eval", folder / "holdout", first=24, count=12),
            calib=some(pictures / "calib", folder / "calib", first=0, count=12),
            preset="caffe",
            resize="crop:256",
            bases=(5,),
            q=(8,),
            cache="off",
        ),
    ).project


@pytest.mark.real
def test_squeezenet(project: Path) -> None:
    report = json.loads((project / "report.json").read_text())
    accuracy = report["accuracy"]
    assert accuracy["float"] >= 70  # 83 on all 700
    assert abs(accuracy["drop_pp"]) <= 100 * 3 / 24
    assert [layer["q"] for layer in report["layers"]] == [8] * 26
    assert report["size"]["weight_bytes"] <= 0.2 * report["size"]["float_weight_bytes"]
    steps = json.loads((project / "host" / "project.json").read_text())["steps"]
    assert not [step for step in steps if step["op"] == "Concat"]  # each layer writes its slice
    assert sum(step["op"] == "Conv" for step in steps) == 26


@pytest.mark.real
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_layer_on_emulated_boards(
    project: Path, board: Board, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    check_on_board(project, board, tmp_path / "net", pictures=2, tool=tool)
