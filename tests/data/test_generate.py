# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from bdcc.data.generate import generate_images


def describe(image: np.ndarray) -> tuple[float, ...]:
    """Contrast, correlation of neighbours and of colours, and the kurtosis of differences: 3 of
    Gaussian fields, much more where edges part smooth areas.
    """
    wide = image.astype(float)
    grey = wide.mean(axis=2)
    steps = np.diff(grey, axis=1)
    steps -= steps.mean()
    return (
        grey.std(),
        np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1],
        np.corrcoef(wide[..., 0].ravel(), wide[..., 1].ravel())[0, 1],
        (steps**4).mean() / (steps**2).mean() ** 2,
    )


def test_generated_pictures_have_the_statistics_of_photographs() -> None:
    made = np.array([describe(image) for image in generate_images(60, shape=(3, 96, 96), seed=0)])
    for photograph in load_sample_images().images:
        for left in (0, 213):
            part = Image.fromarray(photograph).crop((left, 0, left + 427, 427)).resize((96, 96))
            rank = (made < describe(np.asarray(part))).mean(axis=0)
            assert np.all((rank > 0) & (rank < 1)), rank


def test_half_of_the_generated_pictures_are_symmetric() -> None:
    images = generate_images(60, shape=(1, 32, 32), seed=0)[..., 0].astype(float)
    alike = [np.corrcoef(one.ravel(), one[:, ::-1].ravel())[0, 1] for one in images]
    assert 0.3 < np.mean(np.array(alike) > 0.9) < 0.7


def test_generated_pictures_look_alike_at_every_size() -> None:
    """Shrunk to a quarter, large pictures have about the contrast between neighbours of small."""
    large = generate_images(40, shape=(1, 128, 128), seed=0)[..., 0].astype(float)
    small = generate_images(40, shape=(1, 32, 32), seed=1)[..., 0].astype(float)
    shrunk = large.reshape(40, 32, 4, 32, 4).mean(axis=(2, 4))
    one, other = (np.median(np.abs(np.diff(x, axis=2)).mean(axis=(1, 2))) for x in (shrunk, small))
    assert 0.6 < one / other < 1.6
