# SPDX-License-Identifier: 0BSD
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trained_network import Trained, draw_pictures, train, write_branched

from bdcc.cli import main
from bdcc.host.build import build


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    train(folder / "model.onnx")
    train(folder / "branched.onnx", write_branched)
    for number, (part, count) in enumerate((("search", 200), ("calib", 60), ("holdout", 100)), 1):
        images, labels = draw_pictures(count, seed=number)
        np.savez(folder / f"{part}.npz", images=images, labels=labels)
    images, labels = draw_pictures(80, seed=7)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        where = folder / "pictures" / f"class{label:02d}"
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(where / f"{i}.png")
    Image.fromarray(images[0]).save(folder / "picture.png")
    return Trained(
        model=folder / "model.onnx",
        branched=folder / "branched.onnx",
        search=folder / "search.npz",
        calib=folder / "calib.npz",
        holdout=folder / "holdout.npz",
        folders=folder / "pictures",
        picture=folder / "picture.png",
    )


@pytest.fixture(scope="session", autouse=True)
def quick_builds() -> Iterator[None]:
    """The results are the same at any optimisation, and here it is the compiler that takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", "-O0")
        yield


@pytest.fixture(scope="module")
def optimised(quick_builds: None) -> Iterator[None]:
    """For networks of full size: here it is the pictures that take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", "-O2")
        yield


@pytest.fixture(scope="session")
def project(trained: Trained, quick_builds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What options_for(trained, out, max_drop_pp=12.0) makes by `bdcc compile`, with its build/."""
    out = tmp_path_factory.mktemp("project") / "out"
    given = (*trained.data, "--D", "12", "--metric", "top1")
    with pytest.raises(SystemExit) as left:
        main(["compile", str(trained.model), *given, "-o", str(out)])
    assert left.value.code == 0
    build(out)
    return out
