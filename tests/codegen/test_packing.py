# SPDX-License-Identifier: 0BSD
"""The physical weight order, against one bit at a time, and there and back again."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from bdcc.approx.model import Decomposition
from bdcc.codegen.packing import (
    Form,
    Kernel,
    pack_filters,
    run_shape,
    side_by_side,
    unpack_filters,
    words_of,
)


def random_decomposition(filters: int, fan_in: int, bases: int) -> Decomposition:
    rng = np.random.default_rng(filters * fan_in + bases)
    return Decomposition(
        coefficients=rng.integers(-9, 10, (filters, bases), dtype=np.int16),
        signs=rng.integers(0, 1 << bases, (filters, fan_in), dtype=np.uint8),
        scale=np.ones(filters, np.float32),
        bias=np.zeros(filters, np.float32),
    )


CASES: list[tuple[Form, Kernel, int, int, int]] = [
    # form, kernel (channels of a group, height, width), groups, filters, bases
    ("direct", (1, 1, 1), 1, 1, 1),
    ("direct", (8, 3, 3), 1, 8, 4),
    ("direct", (9, 2, 5), 2, 10, 3),
    ("direct", (48, 5, 5), 2, 32, 2),
    ("direct", (64, 1, 1), 1, 9, 7),
    ("gathered", (3, 11, 11), 1, 5, 4),  # K = 363
    ("gathered", (5, 3, 2), 3, 27, 5),
    *(("vector", (k, 1, 1), 1, 7, 2) for k in (1, 63, 64, 65, 128)),
    ("vector", (4, 3, 3), 1, 130, 6),
]


@pytest.mark.parametrize(("form", "kernel", "groups", "filters", "bases"), CASES)
def test_every_bit_lies_where_it_should(
    form: Form, kernel: Kernel, groups: int, filters: int, bases: int
) -> None:
    channels, height, width = kernel
    layer = random_decomposition(filters, channels * height * width, bases)
    packed = pack_filters(layer, kernel=kernel, groups=groups, form=form)
    per_group = filters // groups
    blocks = (per_group + 7) // 8
    deep = (channels + 7) // 8 * 8 if form == "direct" else channels
    expected = np.zeros((groups, blocks, *run_shape(kernel, form), bases, 8), np.uint64)
    valid = np.zeros(run_shape(kernel, form), np.uint64)
    for c, y, x in np.ndindex(kernel):
        run, bit = (y, x * deep + c) if form == "direct" else (0, (y * width + x) * deep + c)
        one = np.uint64(1) << np.uint64(bit % 64)
        valid[run, bit // 64] |= one
        column = layer.signs[:, (c * height + y) * width + x]
        for n, b in np.ndindex(filters, bases):
            if column[n] >> b & 1:
                lane = n % per_group
                expected[n // per_group, lane // 8, run, bit // 64, b, lane % 8] |= one
    np.testing.assert_array_equal(packed.weights, expected)
    np.testing.assert_array_equal(packed.valid, valid.reshape(-1))
    assert packed.valid.size == words_of(kernel, form)
    assert packed.weights.dtype.str == "<u8"


@pytest.mark.parametrize(("form", "kernel", "groups", "filters", "bases"), CASES)
def test_unpacking_gives_back_what_was_packed(
    form: Form, kernel: Kernel, groups: int, filters: int, bases: int
) -> None:
    layer = random_decomposition(filters, int(np.prod(kernel)), bases)
    packed = pack_filters(layer, kernel=kernel, groups=groups, form=form)
    signs, coefficients = unpack_filters(packed, kernel=kernel, filters=filters)
    np.testing.assert_array_equal(signs, layer.signs)
    np.testing.assert_array_equal(coefficients, layer.coefficients)
    per_group = filters // groups
    fill = packed.coefficients.transpose(0, 1, 3, 2).reshape(groups, -1, bases)[:, per_group:]
    assert not fill.any()


@pytest.mark.parametrize("bases", range(1, 9))
def test_bits_of_a_position_side_by_side(bases: int) -> None:
    """Bit by bit: in word b of `of` bases, field i holds position of * i + b, its bases upwards."""
    planes = np.random.default_rng(bases).integers(0, 1 << 63, (2, 3, bases, 8), dtype=np.uint64)
    found = side_by_side(planes)
    assert found.dtype.str == "<u8"
    flat = found.reshape(2, 3, -1)
    first = 0
    while first < bases:
        of = next(n for n in (4, 2, 1) if first + n <= bases)
        for filter_, word in np.ndindex(8, of):
            two = 8 * (first + word - word % 2) + filter_ % 2 * 8 + filter_ // 2 * 2 + word % 2
            at = flat[..., two if of > 1 else 8 * first + filter_]
            for field, basis in np.ndindex(64 // of, of):
                bit = at >> np.uint64(of * field + basis) & np.uint64(1)
                plane = planes[..., first + basis, filter_]
                np.testing.assert_array_equal(
                    bit, plane >> np.uint64(of * field + word) & np.uint64(1)
                )
        first += of


def test_words_of_the_forms() -> None:
    """By hand, for AlexNet: conv1 wastes most of a direct run, conv3 nothing at all."""
    assert run_shape((3, 11, 11), "direct") == (11, 2)
    assert run_shape((3, 11, 11), "gathered") == (1, 6)
    assert run_shape((256, 3, 3), "direct") == (3, 12)
    assert words_of((256, 3, 3), "gathered") == words_of((256, 3, 3), "direct") == 36
    assert run_shape((256, 6, 6), "vector") == (1, 144)


def test_memory_beside_the_result_is_bounded() -> None:
    """A dense layer of 9216 x 512: beside the packed arrays at most 2 MB, the signs being 4.5."""
    layer = random_decomposition(512, 9216, 2)
    tracemalloc.start()
    try:
        packed = pack_filters(layer, kernel=(256, 6, 6), groups=1, form="vector")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - packed.weights.nbytes - packed.coefficients.nbytes < 2**21
