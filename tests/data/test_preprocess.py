# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bdcc.data.preprocess import PRESETS, Preprocess, make_preprocess
from bdcc.errors import OptionError

RGB = (3, 5, 7)


def slow_apply(pre: Preprocess, images: np.ndarray) -> np.ndarray:
    """The definition, pixel by pixel: in R,G,B order, then in the model's."""
    n, h, w, c = images.shape
    out = np.empty((n, c, h, w), np.float32)
    for index in np.ndindex(n, h, w):
        values = [
            (float(images[index][k]) - pre.mean[k]) / pre.std[k] * pre.scale for k in range(c)
        ]
        out[index[0], :, index[1], index[2]] = values[::-1] if pre.channels == "bgr" else values
    return out


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 4, 5)])
def test_apply_is_the_definition(preset: str, shape: tuple[int, int, int]) -> None:
    pre = make_preprocess(shape=shape, preset=preset)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape[1:], shape[0]), dtype=np.uint8)
    pixels.flat[:2] = 0, 255
    got = pre.apply(pixels)
    assert got.dtype == np.float32
    assert np.array_equal(got, slow_apply(pre, pixels))


def test_table_and_index_describe_apply() -> None:
    pre = make_preprocess(shape=RGB, preset="caffe", std=(2.0, 3.0, 4.0))
    assert pre.rgb_index == (2, 1, 0)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 5, 7, 3), dtype=np.uint8)
    table, values = pre.table(), pre.apply(pixels)
    for model_channel, byte in enumerate(pre.rgb_index):
        assert np.array_equal(values[0, model_channel], table[model_channel][pixels[0, :, :, byte]])


def test_single_options_override_the_preset() -> None:
    pre = make_preprocess(
        shape=RGB, preset="caffe", mean=(1.0, 2.0, 3.0), scale=0.5, channels="rgb"
    )
    assert (pre.mean, pre.std) == ((1.0, 2.0, 3.0), (1.0, 1.0, 1.0))
    assert (pre.scale, pre.channels, pre.rgb_index) == (0.5, "rgb", (0, 1, 2))


def test_gray_models_take_single_values_and_presets_become_luma() -> None:
    assert make_preprocess(shape=(1, 8, 8), mean=(33.0,), std=(78.0,)).mean == (33.0,)
    assert make_preprocess(shape=RGB, mean=(33.0,)).mean == (33.0, 33.0, 33.0)
    gray = make_preprocess(shape=(1, 8, 8), preset="torchvision").mean
    assert gray == pytest.approx((0.299 * 123.675 + 0.587 * 116.28 + 0.114 * 103.53,))


def test_survives_json_exactly() -> None:
    pre = make_preprocess(shape=RGB, preset="unit", mean=(0.1, 1 / 3, 7.0), resize="crop:9")
    assert Preprocess.from_json(json.loads(json.dumps(pre.as_json()))) == pre


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "1", "I;16", "LA"])
def test_fit_takes_every_mode(mode: str) -> None:
    picture = Image.new(mode, (11, 13))
    assert make_preprocess(shape=RGB).fit(picture, RGB).shape == (5, 7, 3)
    assert make_preprocess(shape=(1, 5, 7)).fit(picture, (1, 5, 7)).shape == (5, 7, 1)


def test_fit_stretches_the_whole_picture() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pre = make_preprocess(shape=RGB)
    assert np.array_equal(pre.fit(Image.fromarray(pixels), RGB), pixels)
    wide = np.repeat(np.repeat(pixels, 4, axis=0), 6, axis=1)
    inner = pre.fit(Image.fromarray(wide), RGB).astype(int)
    # A box of equal pixels shrunk by a triangle filter leans towards its neighbours but keeps its
    # place.
    assert abs(inner.mean() - pixels.mean()) < 4


@pytest.mark.parametrize(("size", "crop"), [((64, 48), 8), ((48, 64), 9), ((8, 8), 8)])
def test_fit_crops_the_centre(size: tuple[int, int], crop: int) -> None:
    picture = Image.fromarray(
        np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )
    short = min(size)
    scaled = picture.resize(
        (size[0] * crop // short, size[1] * crop // short), Image.Resampling.BILINEAR
    )
    got = make_preprocess(shape=RGB, resize=f"crop:{crop}").fit(picture, RGB)
    whole = np.asarray(scaled)
    top, left = (whole.shape[0] - 5) // 2, (whole.shape[1] - 7) // 2
    assert np.array_equal(got, whole[top : top + 5, left : left + 7])


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"preset": "imagenet"}, "--preset"),
        ({"mean": (1.0, 2.0)}, "--mean"),
        ({"mean": (float("nan"),)}, "--mean"),
        ({"std": (1.0, 0.0, 1.0)}, "--std"),
        ({"std": (1.0, 1.0)}, "--std"),
        ({"scale": 0.0}, "--scale"),
        ({"scale": float("inf")}, "--scale"),
        ({"channels": "gbr"}, "--channels"),
        ({"resize": "crop:6"}, "--resize"),
        ({"resize": "crop:"}, "--resize"),
        ({"resize": "crop:-9"}, "--resize"),
        ({"resize": "fit"}, "--resize"),
    ],
)
def test_refuses(options: dict[str, object], where: str) -> None:
    with pytest.raises(OptionError, match=f"^{where}: "):
        make_preprocess(shape=RGB, **options)  # type: ignore[arg-type]


def test_refuses_three_values_and_bgr_for_a_gray_model() -> None:
    with pytest.raises(OptionError, match="3 values"):
        make_preprocess(shape=(1, 5, 7), mean=(1.0, 2.0, 3.0))
    with pytest.raises(OptionError, match="3 channels"):
        make_preprocess(shape=(1, 5, 7), channels="bgr")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("mean", []), ("mean", [1, 2]), ("mean", 5), ("mean", ["1", "2", "3"]),
        ("mean", [1e300] * 3), ("std", [0, 1, 1]), ("std", [1e-320] * 3), ("std", None),
        ("scale", "1"), ("scale", True),
        ("scale", 1e308), ("channels", "gbr"), ("resize", "crop:"), ("resize", "crop:6"),
        ("resize", "crop:99999"), ("resize", "crop:" + "9" * 5000), ("resize", 7), ("preset", None),
    ],
)  # fmt: skip
def test_what_was_edited_does_not_fit(change: str, value: object) -> None:
    record = json.loads(json.dumps(make_preprocess(shape=RGB, channels="bgr").as_json()))
    assert Preprocess.from_json(record).fits(RGB)
    try:
        fits = Preprocess.from_json({**record, change: value}).fits(RGB)
    except ValueError:
        return
    assert not fits


def test_what_does_not_fit_another_input() -> None:
    assert not make_preprocess(shape=RGB).fits((1, 5, 7))
    assert not make_preprocess(shape=RGB, resize="crop:7").fits((3, 5, 8))
    for options in ({"scale": 1e300}, {"mean": (1e41,)}, {"std": (1e-300,)}):
        with pytest.raises(OptionError, match="pixels become larger than float32"):
            make_preprocess(shape=RGB, **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="does not fit"):
        make_preprocess(shape=RGB, resize="crop:" + "9" * 5000)
