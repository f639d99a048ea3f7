# SPDX-License-Identifier: 0BSD
"""Pictures made up when none are given: smooth random fields that share the plainest statistics of
photographs.

Amplitudes fall as 1/f over the spatial frequencies, colours are strongly correlated, brightness and
contrast vary from picture to picture. No class is in them: they can say whether two networks agree,
never whether either is right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdcc.data.pictures import Pictures, hold_pixels
from bdcc.data.preprocess import U8, Preprocess
from bdcc.ir.graph import Shape

# Rows mix independent fields into R, G, B: mostly brightness, then blue-yellow, then red-green, as
# in photographs.
COLOUR = np.array([[0.95, 0.25, 0.15], [0.97, 0.0, -0.2], [0.93, -0.3, 0.1]])


def generate_images(count: int, *, shape: Shape, seed: int) -> U8:
    """uint8 [count, H, W, C] for an input of shape (C, H, W); picture i depends on seed and i
    alone.
    """
    channels, height, width = shape
    fy = np.fft.fftfreq(height)[:, None] * height
    fx = np.fft.rfftfreq(width)[None, :] * width
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf  # no mean: brightness is drawn separately
    out = np.empty((count, height, width, channels), np.uint8)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        fields = max(channels, 3)
        noise = np.fft.rfft2(rng.standard_normal((fields, height, width)))
        slope = rng.uniform(1.0, 1.7)
        field = np.fft.irfft2(noise / frequency**slope, s=(height, width))
        spread = field.std(axis=(1, 2), keepdims=True)
        field = np.divide(field, spread, out=np.zeros_like(field), where=spread > 0)
        if channels == 3:
            field = np.tensordot(COLOUR, field, 1)
        # One draw of brightness for the picture and a smaller one for each channel: the colour
        # cast.
        level = rng.uniform(80, 170) + rng.normal(0, 18, channels)
        pixels = level[:, None, None] + rng.uniform(25, 75) * field[:channels]
        out[index] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return out


def generate_pictures(
    count: int, *, shape: Shape, preprocess: Preprocess, seed: int, store: Path | None = None
) -> Pictures:
    """`count` generated pictures without labels, in memory or in a file of the folder `store`."""
    data, digest = hold_pixels(generate_images(count, shape=shape, seed=seed), store)
    return Pictures(
        data=data,
        rows=np.arange(count, dtype=np.int64),
        names=tuple(f"generated[{i}]" for i in range(count)),
        labels=None,
        preprocess=preprocess,
        digest=digest,
    )
