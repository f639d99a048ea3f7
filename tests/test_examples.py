# SPDX-License-Identifier: 0BSD
"""What examples/ promises: the network and its pictures, and `make demo` on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
DATA = (("data", "search"), ("calib", "calib"), ("holdout", "holdout"))
PARTS = {"search": 397, "calib": 150, "holdout": 400}


def part(examples: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(examples / f"digits_{name}.npz") as arrays:
        return arrays["images"], arrays["labels"]


def test_all_of_it_is_under_a_megabyte(examples: Path) -> None:
    digits = [path for path in examples.iterdir() if "digit" in path.name]
    assert len(digits) == 6
    assert sum(path.stat().st_size for path in digits) < 1_000_000


def test_the_network_is_an_alexnet(examples: Path) -> None:
    model = onnx.load(examples / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    ops = [node.op_type for node in model.graph.node]
    assert set(ops) == {
        "Conv", "Relu", "MaxPool", "LRN", "Flatten", "Gemm", "Dropout", "Softmax"
    }  # fmt: skip
    assert (ops.count("Conv"), ops.count("Gemm"), ops.count("LRN")) == (5, 3, 2)
    groups = [
        attribute.i
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "group"
    ]
    assert groups == [1, 2, 1, 2, 1]


@pytest.mark.parametrize("name", PARTS)
def test_the_parts(examples: Path, name: str) -> None:
    """Right shapes, every class, and at least 97 % of them recognised."""
    images, labels = part(examples, name)
    assert images.shape == (PARTS[name], 16, 16, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(labels, minlength=10).min() >= 8
    session = onnxruntime.InferenceSession(examples / "digits.onnx")
    inputs = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    found = [int(np.argmax(session.run(None, {"data": x[None]})[0])) for x in inputs]
    assert np.mean(np.array(found) == labels) >= 0.97


def test_the_parts_share_no_picture_and_come_from_the_data_set(examples: Path) -> None:
    """Shrunk again by averaging, each picture's label is that of the nearest original."""
    seen = {name: {image.tobytes() for image in part(examples, name)[0]} for name in PARTS}
    assert all(not seen[a] & seen[b] for a, b in combinations(PARTS, 2))
    originals = load_digits()
    for name in PARTS:
        images, labels = part(examples, name)
        small = images.reshape(-1, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(-1, 64) * (16 / 255)
        distances = ((small**2).sum(axis=1)[:, None] + (originals.data**2).sum(axis=1)
                     - 2 * small @ originals.data.T)  # fmt: skip
        assert np.array_equal(originals.target[distances.argmin(axis=1)], labels)


def test_the_single_picture(examples: Path) -> None:
    images, _ = part(examples, "holdout")
    assert np.array_equal(np.asarray(Image.open(examples / "digit.png")), images[0, :, :, 0])


def test_the_licence_of_the_data_is_told(examples: Path) -> None:
    for file in ("README.md", "train_digits.py"):
        text = (examples / file).read_text("utf-8")
        assert "CC BY 4.0" in text
        assert "10.24432/C50P49" in text


def test_make_demo(tmp_path: Path) -> None:
    """As typed, but in this environment instead of one of its own."""
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "bin").symlink_to(Path(sys.executable).parent)
    (venv / "installed").touch()
    done = subprocess.run(
        ["make", "demo", f"VENV={venv}", f"DEMO_OUT={tmp_path / 'out'}"],
        cwd=ROOT,
        env={
            **os.environ,
            "BDCC_CACHE": str(tmp_path / "cache"),
            "CFLAGS": "-O0",  # builds faster; its answers are the same
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 45  # one screen
    layers = [line.split() for line in lines if re.match(r"(conv|fc)\d ", line)]
    assert [row[0] for row in layers] == [f"conv{n}" for n in range(1, 6)] + ["fc6", "fc7", "fc8"]
    for said in ("float model", "predicted", "measured", "on holdout", "weights", "one picture"):
        assert any(line.startswith(said) for line in lines), said
    assert any(line.startswith("0 differing values among ") for line in lines)
    accuracy = next(m for line in lines if (m := re.match(r"400 pictures: top-1 ([\d.]+) %", line)))
    assert float(accuracy[1]) > 95
    assert any(re.match(r"1 +2 class 2", line) for line in lines)


def test_measuring_what_bases_cost(tmp_path: Path) -> None:
    """The table of docs/aware.md, of a small network."""
    given = [f"--{name}={EXAMPLES / f'digits_{kind}.npz'}" for name, kind in DATA]
    done = subprocess.run(
        [
            *(sys.executable, EXAMPLES / "measure_aware.py", EXAMPLES / "digits.onnx"),
            *(*given, "--preset=unit", "--bases=4,1"),
        ],
        env={**os.environ, "BDCC_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    found = {(row[0].strip(), row[1].strip()): row[2:] for row in rows[1:]}
    assert list(found) == list(product("41", ("free", "1, 2, 4, ..")))
    nats = {key: float(row[1]) for key, row in found.items()}
    assert nats["4", "free"] < nats["4", "1, 2, 4, .."] < nats["1", "free"]
    lost = [float(x) for x in found["4", "free"][0].split("/")]
    assert max(map(abs, lost)) < 3


def test_the_documents_are_finished() -> None:
    root = Path(__file__).resolve().parents[1]
    for document in [*root.glob("*.md"), *root.glob("docs/*.md")]:
        assert "@@" not in document.read_text("utf-8"), document
