# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np

from bdcc.data.pictures import Pictures
from bdcc.data.preprocess import make_preprocess
from bdcc.pipeline.material import Material, warn_of_repeats

SHAPE = (3, 64, 64)


def test_repeated_pictures_are_counted_without_holding_all_of_them(tmp_path: Path) -> None:
    """A file of 12 MB is read through in less than one."""
    count = 1000
    file = tmp_path / "pixels.npy"
    pixels = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, 64, 64, 3))
    pixels[:, 0, 0, :2] = np.stack(np.divmod(np.arange(count), 256), axis=1)
    pixels.flush()

    def pictures(first: int, last: int) -> Pictures:
        return Pictures(
            data=file,
            rows=np.arange(first, last),
            names=(),
            labels=None,
            preprocess=make_preprocess(shape=SHAPE),
            digest="",
        )

    material = Material(
        search=pictures(0, 900),
        calib=pictures(890, 910),
        holdout=pictures(899, count),
        judge="agreement",
        class_labels=(),
    )
    tracemalloc.start()
    try:
        warnings = warn_of_repeats(material)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [warning.partition(":")[0] for warning in warnings] == [
        "10 of the 20 calibration pictures are also search pictures",
        "11 of the 20 calibration pictures are also holdout pictures",
        "1 of the 900 search pictures are also holdout pictures",
    ]
    assert peak < 1e6
