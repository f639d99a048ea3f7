# SPDX-License-Identifier: 0BSD
"""The main job on the real AlexNet: a sample by default, everything in `make test-full`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import bdcc
from bdcc.host.verify import verify
from bdcc.report.report import load_schema
from boards import BOARDS, Board, check_on_board

pytestmark = pytest.mark.usefixtures("optimised")
MEAN = (122.2259, 116.2092, 103.5655)


def one_of_each_class(source: Path, target: Path) -> Path:
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        (target / folder.name).mkdir(parents=True)
        shutil.copy(min(folder.iterdir()), target / folder.name)
    return target


def every_sixth(source: Path, target: Path) -> Path:
    target.mkdir()
    for picture in sorted(source.iterdir())[::6]:
        shutil.copy(picture, target)
    return target


def compile_alexnet(
    shared: Path,
    output: Path,
    *,
    calib: Path | None = None,
    holdout: Path | None = None,
    max_drop_pp: float = 8.0,
    **options: object,
) -> bdcc.CompileResult:
    pictures = shared / "data" / "tiny202"
    return bdcc.compile_model(
        shared / "models" / "alexnet.onnx",
        bdcc.CompileOptions(
            output=output,
            data=pictures / "search",
            calib=calib or pictures / "calib",
            holdout=holdout or pictures / "holdout",
            preset="raw",
            mean=MEAN,
            max_drop_pp=max_drop_pp,
            **options,  # type: ignore[arg-type]
        ),
    )


@pytest.fixture(scope="module")
def project(shared: Path, optimised: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few pictures: the tables' entries and the project's bits are as many with 16 as with all."""
    folder, pictures = tmp_path_factory.mktemp("real"), shared / "data" / "tiny202"
    return compile_alexnet(
        shared,
        folder / "out",
        calib=every_sixth(pictures / "calib", folder / "calib"),
        holdout=one_of_each_class(pictures / "holdout", folder / "holdout"),
        search="paper",
        limit=16,
    ).project


@pytest.mark.real
def test_the_paper_s_search_on_a_sample(project: Path) -> None:
    report = json.loads((project / "report.json").read_text())
    jsonschema.validate(report, load_schema())
    accuracy, search = report["accuracy"], report["search"]
    assert (accuracy["samples"], accuracy["holdout"]["samples"]) == (16, 202)
    assert sum(np.asarray(table).size for table in search["table"]["A"]) == 203
    assert search["method"] == "paper"
    assert accuracy["predicted"] is not None
    chosen = [layer["q"] for layer in report["layers"]]
    assert all(2 <= q <= 8 for q in chosen)
    assert chosen[5:] == [8, 8, 8]
    assert abs(accuracy["float"] - accuracy["measured"]) < 40
    assert report["size"]["weight_bytes"] <= 0.14 * report["size"]["float_weight_bytes"]
    assert sum(f.stat().st_size for f in project.glob("src/*")) < 1_000_000


@pytest.mark.real
def test_every_layer_equals_the_oracle(project: Path, shared: Path) -> None:
    images = np.random.default_rng(0).uniform(-120, 130, (1, 3, 227, 227)).astype(np.float32)
    checked = verify(project, images=images)
    assert sum(step.differing for step in checked.steps) == 0
    assert {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"} <= {
        step.layer for step in checked.steps
    }


@pytest.mark.real
@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_layer_on_emulated_boards(
    project: Path, board: Board, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    check_on_board(project, board, tmp_path / "net", pictures=2, tool=tool)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("gcc", "-O0"),
        ("gcc", "-O3 -march=native"),
        ("gcc", "-std=gnu11 -O3 -mfma -flto"),
        ("gcc", "-O2 -DBDCC_PORTABLE"),
        ("gcc", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"),
        ("clang", "-O2"),
        ("clang", "-O3 -march=native"),
        ("clang", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"),
    ],
)
def test_every_compiler(
    project: Path, compiler: str, flags: str, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    copy = tmp_path / "out"
    shutil.copytree(project, copy)
    command = ["make", "-s", "selftest", f"CC={tool(compiler)}", f"CFLAGS={flags}"]
    subprocess.run([*command, "LDFLAGS="], cwd=copy, check=True, capture_output=True)
    said = subprocess.run(["./selftest"], cwd=copy, check=True, capture_output=True, text=True)
    assert "every layer equals the oracle" in said.stdout


@pytest.mark.real
@pytest.mark.slow
def test_the_measured_search_keeps_the_tolerance(shared: Path, tmp_path: Path) -> None:
    result = compile_alexnet(shared, tmp_path / "out", limit=300)
    assert result.missed is None
    accuracy = json.loads((tmp_path / "out" / "report.json").read_text())["accuracy"]
    assert accuracy["float"] - accuracy["measured"] <= 8.0
    assert accuracy["holdout"]["float"] == pytest.approx(73.37, abs=0.01)  # the models' README
    assert accuracy["holdout"]["samples"] == 1010
