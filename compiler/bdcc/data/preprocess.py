# SPDX-License-Identifier: 0BSD
"""From pixels to the numbers a model wants: (pixel - mean) / std * scale per channel, and how a
picture is resized.

Every pixel is one of 256 values, so the whole of it is a table of 256 floats per channel; the
emitted C uses the same table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bdcc.errors import OptionError
from bdcc.ir.graph import F32, Shape
from bdcc.records import check

U8 = npt.NDArray[np.uint8]
NUMBERS = {"type": "array", "minItems": 1, "items": {"type": "number"}}
# What as_json gives.
SCHEMA = {
    "type": "object",
    "required": ["preset", "mean", "std", "scale", "channels", "resize"],
    "properties": {
        "preset": {"type": "string"},
        "mean": NUMBERS,
        "std": NUMBERS,
        "scale": {"type": "number"},
        "channels": {"enum": ["rgb", "bgr"]},
        "resize": {"type": "string", "pattern": "stretch|crop:[0-9]{1,5}"},
    },
}
LARGEST_CROP = 65536
LUMA = (0.299, 0.587, 0.114)  # what Pillow weighs R, G, B with when it makes a picture gray


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """mean, std: one value per channel in R,G,B order; channels: the model's order of them; resize:
    `stretch` or `crop:SIZE`.

    preset is the name the values started from; single options may have changed them.
    """

    preset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1.0
    channels: str = "rgb"
    resize: str = "stretch"

    @property
    def rgb_index(self) -> tuple[int, ...]:
        """For each model channel, which byte of an R,G,B pixel (or of a gray one) feeds it."""
        order = range(len(self.mean))
        return tuple(reversed(order)) if self.channels == "bgr" else tuple(order)

    @property
    def crop(self) -> int | None:
        """Length of the shorter side before the centre is cropped; None: the whole picture is
        stretched.
        """
        return None if self.resize == "stretch" else int(self.resize.removeprefix("crop:"))

    def table(self) -> F32:
        """float32 [C, 256]: value of pixel p in model channel c, worked out in float64 and rounded
        once.
        """
        index = list(self.rgb_index)
        mean, std = np.array(self.mean)[index, None], np.array(self.std)[index, None]
        with np.errstate(all="ignore"):  # what is no number then is told by `fits`
            values: F32 = ((np.arange(256.0) - mean) / std * self.scale).astype(np.float32)
        return values

    def fits(self, shape: Shape) -> bool:
        """Whether it makes numbers of pictures for an input of shape (C, H, W)."""
        counts = {len(self.mean), len(self.std)}
        if counts != {shape[0]} or (self.channels == "bgr" and shape[0] != 3):
            return False
        covers = self.crop is None or max(shape[1:]) <= self.crop <= LARGEST_CROP
        return covers and bool(np.isfinite(self.table()).all())

    def apply(self, images: U8) -> F32:
        """uint8 [N, H, W, C] in R,G,B (or gray) -> float32 [N, C, H, W] in the model's channel
        order.
        """
        table, index = self.table(), self.rgb_index
        out = np.empty((len(images), len(index), *images.shape[1:3]), np.float32)
        for channel, byte in enumerate(index):
            out[:, channel] = table[channel][images[..., byte]]
        return out

    def fit(self, picture: Image.Image, shape: Shape) -> U8:
        """uint8 [H, W, C] of a picture of any size and mode, for an input of shape (C, H, W)."""
        channels, height, width = shape
        picture = picture.convert("L" if channels == 1 else "RGB")
        if self.crop is None:
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        else:
            short, size = min(picture.size), picture.size
            wide, high = (self.crop * side // short for side in size)
            picture = picture.resize((wide, high), Image.Resampling.BILINEAR)
            left, top = (wide - width) // 2, (high - height) // 2
            picture = picture.crop((left, top, left + width, top + height))
        return np.asarray(picture, np.uint8).reshape(height, width, channels)

    def as_json(self) -> dict[str, Any]:
        """What report.json records; `Preprocess.from_json` reads it back."""
        return {
            "preset": self.preset,
            "mean": list(self.mean),
            "std": list(self.std),
            "scale": self.scale,
            "channels": self.channels,
            "resize": self.resize,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Preprocess:
        """Raises ValueError where the record is not what `as_json` gives."""
        check(record, SCHEMA)
        return Preprocess(
            preset=record["preset"],
            mean=tuple(map(float, record["mean"])),
            std=tuple(map(float, record["std"])),
            scale=float(record["scale"]),
            channels=record["channels"],
            resize=record["resize"],
        )


PRESETS: Mapping[str, Preprocess] = {
    "torchvision": Preprocess(
        preset="torchvision", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    ),
    "caffe": Preprocess(
        preset="caffe", mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0), channels="bgr"
    ),
    "unit": Preprocess(preset="unit", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0 / 255.0),
    "raw": Preprocess(preset="raw", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A preset's three values for a model of another number of channels: their luma-weighted mean
    for each.
    """
    if channels == 3:
        return values
    return (sum(w * v for w, v in zip(LUMA, values, strict=True)),) * channels


def _given(values: tuple[float, ...], channels: int, option: str) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        allowed = "one value" if channels == 1 else f"one value or {channels}, in R,G,B order"
        raise OptionError(f"{len(values)} values; the model's input takes {allowed}", layer=option)
    if not all(math.isfinite(v) for v in values):
        raise OptionError("every value must be a finite number", layer=option)
    return values * channels if len(values) == 1 else values


def check_resize(resize: str, shape: Shape) -> None:
    """Raises OptionError unless `resize` is `stretch`, or `crop:SIZE` with a SIZE that covers the
    input's H and W.
    """
    if resize == "stretch":
        return
    size = resize.removeprefix("crop:")
    if not resize.startswith("crop:") or not (size.isascii() and size.isdigit()):
        raise OptionError(f"'{resize}' is neither stretch nor crop:SIZE", layer="--resize")
    if not max(shape[1:]) <= int(size[:9]) <= LARGEST_CROP:
        raise OptionError(
            f"crop:{size} does not fit: the model's input is {shape[1]}x{shape[2]}",
            layer="--resize",
            hint=f"Use crop:{max(shape[1:])} or more",
        )


def make_preprocess(
    *,
    shape: Shape,
    preset: str = "torchvision",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    scale: float | None = None,
    channels: str | None = None,
    resize: str = "stretch",
) -> Preprocess:
    """The preset with the given options in its place, for a model input of shape (C, H, W); raises
    OptionError.
    """
    if preset not in PRESETS:
        raise OptionError(f"'{preset}' is not one of {', '.join(PRESETS)}", layer="--preset")
    base, count = PRESETS[preset], shape[0]
    if channels not in (None, "rgb", "bgr"):
        raise OptionError(f"'{channels}' is neither rgb nor bgr", layer="--channels")
    if channels == "bgr" and count != 3:
        raise OptionError(f"bgr needs a model of 3 channels, this has {count}", layer="--channels")
    if scale is not None and not (math.isfinite(scale) and scale != 0):
        raise OptionError(f"{scale} is not a finite number other than 0", layer="--scale")
    if std is not None and 0 in std:
        raise OptionError("0 would divide by zero", layer="--std")
    check_resize(resize, shape)
    found = replace(
        base,
        mean=_for_channels(base.mean, count) if mean is None else _given(mean, count, "--mean"),
        std=_for_channels(base.std, count) if std is None else _given(std, count, "--std"),
        scale=base.scale if scale is None else scale,
        channels=(base.channels if count == 3 else "rgb") if channels is None else channels,
        resize=resize,
    )
    if not found.fits(shape):
        raise OptionError("pixels become larger than float32", layer="--mean, --std or --scale")
    return found
