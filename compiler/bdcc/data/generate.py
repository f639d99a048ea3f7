# SPDX-License-Identifier: 0BSD
"""Pictures made up when none are given: heaps of things that occlude each other, as in photographs.

"Dead leaves": ellipses, diamonds and boxes of all sizes, the small ones being the most, lie over a
1/f field. Each has a colour, shading, a texture and maybe stripes; some stand in rows; half of the
pictures are mirror images of themselves. Sharpness, brightness, contrast, saturation and the number
of things vary from picture to picture. No class is in them: they can say how far two networks
differ, never whether either is right.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bdcc.data.pictures import Pictures, hold_pixels
from bdcc.data.preprocess import U8, Preprocess
from bdcc.ir.graph import F32, Shape
from bdcc.sealed import Shelf

F64 = npt.NDArray[np.float64]

TEXTURES = 2  # fields that the things of a picture have their textures from
PALETTE = 6  # colours that they have, roughly
LONGEST_ROW = 12


def generate_images(count: int, *, shape: Shape, seed: int) -> U8:
    """uint8 [count, H, W, C] for an input of shape (C, H, W); picture i depends on seed and i
    alone.
    """
    channels, height, width = shape
    out = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        out[index] = _draw_picture(np.random.default_rng([seed, index]), shape)
    return out


def _draw_picture(rng: np.random.Generator, shape: Shape) -> U8:
    """uint8 [H, W, C]"""
    channels, height, width = shape
    fields = _draw_fields(rng, channels + 2, height, width, slope=rng.uniform(1.0, 2.0))
    brightness, light, tints = fields[0], fields[1], fields[2:]
    textures = _draw_fields(rng, TEXTURES, height, width, slope=rng.uniform(0.5, 1.5))
    saturation = rng.uniform(0, 0.5)
    picture = rng.uniform(0.2, 1) * (brightness + saturation * tints)
    palette = rng.normal(0, 1, (PALETTE, 1)) + saturation * rng.normal(0, 1, (PALETTE, channels))
    size = np.sqrt(height * width)
    # How many there are falls with the cube of the radius: 1 / radius^2 is uniform.
    smallest, largest = rng.uniform(0.01, 0.05), rng.uniform(0.2, 0.6)
    things = int(_draw_log(rng, 10, 200))
    radii = rng.uniform(largest**-2, smallest**-2, things) ** -0.5 * size
    while len(radii):
        row = int(rng.integers(1, LONGEST_ROW + 1)) if rng.random() < 0.5 else 1
        _draw_row(rng, picture, radii[0], row, palette[rng.integers(PALETTE)], textures)
        radii = radii[row:]
    if rng.random() < 0.5:
        half = width // 2
        picture[..., width - half :] = picture[..., :half][..., ::-1]
    picture += rng.uniform(0, 0.3) * light
    picture = _blur(picture, _draw_log(rng, 0.002, 0.013) * size)
    picture -= picture.mean()
    spread = picture.std()
    # One draw of brightness for the picture and a smaller one for each channel: the colour cast.
    level = rng.uniform(70, 180) + rng.normal(0, 12, channels)
    contrast = rng.uniform(30, 110) / spread if spread > 0 else 0.0
    pixels = level[:, None, None] + contrast * picture
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _draw_row(
    rng: np.random.Generator,
    picture: F32,
    radius: float,
    count: int,
    colour: F64,
    textures: F32,
) -> None:
    """Put `count` equal things in a row over the picture, [C, H, W]. colour: [C]."""
    _, height, width = picture.shape
    aspect, angle = np.exp(rng.normal(0, 0.5)), rng.uniform(0, np.pi)
    power = rng.choice([1, 2, 2, 2, 6])  # |u|^p + |v|^p < 1: a diamond, an ellipse, about a box
    colour = colour + rng.normal(0, 0.2)
    lean = rng.normal(0, 0.4, 2)
    rough = _draw_log(rng, 0.01, 0.3)
    texture = textures[rng.integers(TEXTURES)]
    stripes = rng.uniform(0.1, 0.8) if rng.random() < 0.25 else 0.0
    frequency, phase, along = rng.uniform(2, 25), rng.uniform(0, 2 * np.pi), rng.random() < 0.5
    heading, pace = rng.uniform(0, 2 * np.pi), radius * rng.uniform(1.5, 4)
    y, x = rng.uniform(0, height), rng.uniform(0, width)
    reach = 1.2 * radius * max(aspect, 1 / aspect) + 1
    for _ in range(count):
        rows = slice(max(0, int(y - reach)), max(0, int(y + reach) + 1))
        columns = slice(max(0, int(x - reach)), max(0, int(x + reach) + 1))
        part = picture[:, rows, columns]
        dy = (rows.start + np.arange(part.shape[1]) - y)[:, None]
        dx = (columns.start + np.arange(part.shape[2]) - x)[None, :]
        u = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * aspect)
        v = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius / aspect)
        shade = lean[0] * u + lean[1] * v + rough * texture[rows, columns]
        if stripes:
            shade += stripes * np.sin(frequency * (u if along else v) + phase)
        inside = np.abs(u) ** power + np.abs(v) ** power < 1
        np.copyto(part, colour[:, None, None] + shade, where=inside, casting="same_kind")
        y, x = y + pace * np.sin(heading), x + pace * np.cos(heading)


def _draw_log(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _draw_fields(
    rng: np.random.Generator, count: int, height: int, width: int, *, slope: float
) -> F32:
    """float32 [count, H, W], random fields of spread 1 with amplitudes that fall as f^-slope."""
    frequencies = _frequencies(height, width)
    frequencies[0, 0] = np.inf  # no mean
    noise = np.fft.rfft2(rng.standard_normal((count, *_fast(height, width)), np.float32))
    field = np.fft.irfft2(noise / frequencies**slope, s=_fast(height, width))[:, :height, :width]
    spread = field.std(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(field, spread, out=np.zeros_like(field), where=spread > 0))


def _blur(picture: F32, sigma: float) -> F32:
    """By a Gaussian of `sigma` pixels."""
    height, width = picture.shape[1:]
    tall, wide = _fast(height, width)
    padded = np.pad(picture, ((0, 0), (0, tall - height), (0, wide - width)), mode="edge")
    passed = np.exp(-2 * (np.pi * sigma * _frequencies(height, width)) ** 2)
    blurred = np.fft.irfft2(np.fft.rfft2(padded) * passed, s=(tall, wide))
    return np.asarray(blurred[:, :height, :width], np.float32)


def _fast(height: int, width: int) -> tuple[int, int]:
    """Powers of two, of which Fourier transforms are fast; at least 2, as real ones need."""
    return 1 << max(1, (height - 1).bit_length()), 1 << max(1, (width - 1).bit_length())


def _frequencies(height: int, width: int) -> F32:
    """Of rfft2's coefficients at the fast size, in cycles per pixel."""
    tall, wide = _fast(height, width)
    vertical, horizontal = np.fft.fftfreq(tall)[:, None], np.fft.rfftfreq(wide)[None, :]
    return np.asarray(np.hypot(vertical, horizontal), np.float32)


def generate_pictures(
    count: int, *, shape: Shape, preprocess: Preprocess, seed: int, store: Shelf | None = None
) -> Pictures:
    """`count` generated pictures without labels, in memory or kept in `store`."""
    data, digest = hold_pixels(generate_images(count, shape=shape, seed=seed), store)
    return Pictures(
        data=data,
        rows=np.arange(count, dtype=np.int64),
        names=tuple(f"generated[{i}]" for i in range(count)),
        labels=None,
        preprocess=preprocess,
        digest=digest,
    )
