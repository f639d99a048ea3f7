# SPDX-License-Identifier: 0BSD
"""The quantizer against scalar arithmetic (docs/design.md), ranges against exhaustive search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bdcc.approx import quantize as module
from bdcc.approx.model import DecomposedModel, Decomposition, TensorQuant
from bdcc.approx.quantize import (
    RangeMode,
    RangeObserver,
    TensorStats,
    choose_range,
    dequantize,
    dynamic_range,
    encode,
    quantize_array,
    quantize_model,
    squared_error,
)
from bdcc.errors import OptionError
from bdcc.ir.graph import F32, Conv, Relu, make_graph

ALL_BITS = range(1, 9)


def _f32(value: float) -> np.float32:
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)


def _code(x: np.float32, reciprocal: np.float32, zero: int, bits: int) -> int:
    """One value: float32 product, clamp, round half to even, add z."""
    if math.isnan(x):
        return zero
    # a product of two float32 is exact in float64, so this rounds once
    product = _f32(float(x) * float(reciprocal)) if math.isfinite(x) else x
    low, high = -zero, (1 << bits) - 1 - zero
    return round(min(max(float(product), low), high)) + zero


def _scalar_range(values: F32, bits: int) -> tuple[np.float32, int, np.float32]:
    lo = hi = np.float32(0)
    for value in values.ravel():
        lo = value if value < lo else lo  # false for NaN
        hi = value if value > hi else hi
    top = np.float32(2**bits - 1)
    delta = _f32(float(_f32(float(hi) / float(top))) - float(_f32(float(lo) / float(top))))
    zero = 0
    if not delta >= 2.0**-100:
        return np.float32(1), 0, np.float32(1)
    if delta > 2.0**100:
        delta = np.float32(2.0**100)
    reciprocal = _f32(1.0 / float(delta))
    zero = round(min(max(float(_f32(-float(lo) * float(reciprocal))), 0.0), float(top)))
    return delta, zero, reciprocal


RNG = np.random.default_rng(4)
MAPS: dict[str, F32] = {
    "mixed": RNG.normal(size=(3, 7, 5)).astype(np.float32),
    "after relu": np.maximum(RNG.normal(size=(2, 9, 9)), 0).astype(np.float32),
    "constant": np.full((4, 3, 3), 2.5, np.float32),
    "negative constant": np.full((4, 3, 3), -0.7, np.float32),
    "zero": np.zeros((2, 4, 4), np.float32),
    "minus zero": np.full((2, 2, 2), -0.0, np.float32),
    "all negative": -RNG.uniform(1, 9, size=(3, 5, 5)).astype(np.float32),
    "all positive": RNG.uniform(1, 9, size=(3, 5, 5)).astype(np.float32),
    "with nan": np.where(RNG.random((3, 6, 6)) < 0.3, np.nan, RNG.normal(size=(3, 6, 6))).astype(
        np.float32
    ),
    "only nan": np.full((1, 2, 2), np.nan, np.float32),
    "inf": np.array([-1, 0, 3, np.inf], np.float32),
    "both inf": np.array([-np.inf, -1, 0, 3, np.inf, np.nan], np.float32),
    "huge": np.array([-3e38, 1e38, 3e38, 1, 0], np.float32),
    "tiny": np.array([-1e-44, 3e-42, 0], np.float32),
    "near the smallest step": np.float32(2.0**-99) * np.arange(-3, 9, dtype=np.float32),
    "one value": np.array([0.125], np.float32),
    "vector": RNG.normal(size=1000).astype(np.float32),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("bits", ALL_BITS)
def test_dynamic_range_and_codes_equal_the_scalar_definition(name: str, bits: int) -> None:
    x = MAPS[name]
    delta, zero, reciprocal = dynamic_range(x, bits)
    expected = _scalar_range(x, bits)
    assert (delta, zero, reciprocal) == expected
    assert delta.dtype == reciprocal.dtype == np.float32
    assert isinstance(zero, int)
    codes = quantize_array(x, TensorQuant(bits=bits, delta=None))
    assert codes.dtype == np.uint8
    assert codes.shape == x.shape
    assert codes.ravel().tolist() == [_code(v, reciprocal, zero, bits) for v in x.ravel()]
    assert codes[np.isnan(x)].tolist() == [zero] * int(np.isnan(x).sum())


@pytest.mark.parametrize("mode", ["clip", "minmax"])
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_static_ranges_and_codes(name: str, bits: int, mode: RangeMode) -> None:
    x = MAPS[name]
    observer = RangeObserver()
    observer.observe(x)
    quant = choose_range(observer.stats(), bits=bits, mode=mode)
    assert quant.bits == bits
    assert isinstance(quant.delta, np.float32)
    assert 2.0**-100 <= quant.delta <= 2.0**100
    assert isinstance(quant.zero_point, int)
    assert 0 <= quant.zero_point <= quant.top
    if not (x < 0).any():
        assert quant.zero_point == 0
    codes = quantize_array(x, quant)
    expected = [_code(v, quant.reciprocal, quant.zero_point, bits) for v in x.ravel()]
    assert codes.ravel().tolist() == expected
    at_zero = quantize_array(np.zeros(1, np.float32), quant)
    assert dequantize(at_zero, quant.delta, quant.zero_point).tolist() == [0.0]
    values = dequantize(codes, quant.delta, quant.zero_point)
    assert values.dtype == np.float32
    for code, value in zip(codes.ravel().tolist(), values.ravel(), strict=True):
        assert value == quant.delta * np.float32(code - quant.zero_point)


@pytest.mark.parametrize(("bits", "zero"), [(1, 0), (1, 1), (3, 2), (8, 0), (8, 255), (8, 100)])
def test_halves_round_to_even_and_the_ends_clamp(bits: int, zero: int) -> None:
    x = (np.arange(-1200, 1201, dtype=np.float32)) / 2
    codes = encode(x, reciprocal=np.float32(1), zero_point=zero, bits=bits)
    assert codes.tolist() == [_code(v, np.float32(1), zero, bits) for v in x]
    assert codes.min() == 0
    assert codes.max() == (1 << bits) - 1


def test_known_codes() -> None:
    quant = TensorQuant(bits=3, delta=np.float32(0.5), zero_point=2)
    x = np.array([-9, -1, -0.75, -0.25, 0, 0.25, 0.26, 0.75, 1, 2.5, 99, np.nan], np.float32)
    assert quantize_array(x, quant).tolist() == [0, 0, 0, 2, 2, 2, 3, 4, 4, 7, 7, 2]
    infinite = np.array([-np.inf, np.inf], np.float32)
    assert quantize_array(infinite, quant).tolist() == [0, 7]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("name", ["constant", "negative constant", "one value"])
@pytest.mark.parametrize("mode", ["clip", "minmax"])
def test_a_constant_map_keeps_its_value(name: str, bits: int, mode: RangeMode) -> None:
    x = MAPS[name].ravel()
    quant = choose_range(_stats(x), bits=bits, mode=mode)
    assert quant.delta is not None
    values = dequantize(quantize_array(x, quant), quant.delta, quant.zero_point)
    np.testing.assert_allclose(values, x, rtol=2e-7)


@pytest.mark.parametrize("mode", ["clip", "minmax", "dynamic"])
def test_nothing_seen(mode: RangeMode) -> None:
    quant = choose_range(RangeObserver().stats(), bits=4, mode=mode)
    assert (quant.delta, quant.zero_point) == ((None, 0) if mode == "dynamic" else (1.0, 0))


def _stats(values: F32) -> TensorStats:
    observer = RangeObserver(limit=max(values.size, 1))
    observer.observe(values)
    return observer.stats()


def _exhaustive(sample: F32, bits: int) -> float:
    """Least squared error over every zero point and 1,500 steps, by the real quantizer."""
    top = (1 << bits) - 1
    peak = float(np.abs(sample).max())
    least = math.inf
    for zero in range(top + 1):
        for delta in peak / top * np.geomspace(0.02, 2.1, 1500 if bits < 3 else 300):
            quant = TensorQuant(bits=bits, delta=np.float32(delta), zero_point=zero)
            least = min(least, squared_error(sample, quant))
    return least


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "shifted", "outlier"])
def test_clip_reaches_the_exhaustive_optimum(kind: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    normal = rng.normal(size=400)
    sample = {
        "normal": normal,
        "laplace": rng.laplace(size=400),
        "relu": np.maximum(normal, 0),
        "shifted": normal - 1.3,
        "outlier": np.append(normal, 25),
    }[kind].astype(np.float32)
    stats = _stats(sample)
    clipped = squared_error(stats.sample, choose_range(stats, bits=bits, mode="clip"))
    assert clipped <= 1.01 * _exhaustive(stats.sample, bits)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("name", MAPS)
def test_clip_is_not_worse_than_minmax(name: str, bits: int) -> None:
    x = MAPS[name]
    stats = _stats(x[np.isfinite(x)])
    clip, minmax = (choose_range(stats, bits=bits, mode=mode) for mode in ("clip", "minmax"))
    assert squared_error(stats.sample, clip) <= squared_error(stats.sample, minmax)


def test_clip_pays_at_few_bits() -> None:
    stats = _stats(np.random.default_rng(1).laplace(size=20000).astype(np.float32))
    clip, minmax = (choose_range(stats, bits=3, mode=mode) for mode in ("clip", "minmax"))
    assert squared_error(stats.sample, clip) < 0.3 * squared_error(stats.sample, minmax)


def test_squared_error_is_the_sum_of_squares() -> None:
    x = MAPS["vector"]
    quant = TensorQuant(bits=4, delta=np.float32(0.3), zero_point=5)
    total = 0.0
    for value in x:
        code = _code(value, quant.reciprocal, 5, 4)
        total += (float(value) - float(np.float32(0.3) * np.float32(code - 5))) ** 2
    assert squared_error(x, quant) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("limit", [1, 100, 1000])
def test_observer_does_not_depend_on_batches(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=(40, 7, 31)).astype(np.float32)
    values[3, 2, :5] = np.nan
    whole = RangeObserver(limit=limit)
    whole.observe(values)
    monkeypatch.setattr(module, "CHUNK", 97)
    pieces = RangeObserver(limit=limit)
    for cut in np.split(values.ravel(), [1, 2, 50, 51, 3000, 8000]):
        pieces.observe(cut)
    one, other = whole.stats(), pieces.stats()
    assert np.array_equal(one.sample, other.sample)
    assert one.minimum == other.minimum == float(np.nanmin(values))
    assert one.maximum == other.maximum == float(np.nanmax(values))
    assert limit / 4 <= len(one.sample) <= limit
    assert np.array_equal(one.sample, np.sort(one.sample))
    assert np.isin(one.sample, values).all()


def test_observer_keeps_all_of_little_and_spreads_over_much() -> None:
    few = np.arange(10, dtype=np.float32)[::-1]
    assert np.array_equal(_stats(few).sample, np.arange(10))
    # every position of a map whose size is a power of two is seen about equally often
    observer = RangeObserver(limit=4096)
    positions = np.tile(np.arange(64, dtype=np.float32), 4096)
    observer.observe(positions)
    sample = observer.stats().sample
    counts = np.bincount(sample.astype(np.int64), minlength=64)
    assert counts.min() >= 0.9 * counts.mean()
    assert counts.max() <= 1.1 * counts.mean()


def _two_readers() -> DecomposedModel:
    """x -> a (float), a -> relu -> r; two decomposed convs read r, one of them leads to y."""
    weight = np.ones((2, 2, 1, 1), np.float32)
    bias = np.zeros(2, np.float32)

    def conv(name: str, source: str, output: str) -> Conv:
        return Conv(name=name, input=source, output=output, weight=weight, bias=bias)

    nodes = (
        conv("first", "x", "a"),
        Relu(name="relu", input="a", output="r"),
        conv("left", "r", "l"),
        conv("right", "r", "y"),
    )
    graph = make_graph(name="g", input_name="x", input_shape=(2, 3, 3), output="y", nodes=nodes)
    graph = type(graph)(
        name="g",
        input="x",
        output="y",
        nodes=nodes,
        shapes={**graph.shapes, "l": (2, 3, 3)},
    )
    layer = Decomposition(
        coefficients=np.ones((2, 1), np.int16),
        signs=np.ones((2, 2), np.uint8),
        scale=np.ones(2, np.float32),
        bias=bias,
    )
    return DecomposedModel(graph=graph, layers={"left": layer, "right": layer})


def test_a_shared_tensor_takes_the_largest_bits() -> None:
    stats = {"r": _stats(MAPS["after relu"])}
    model = quantize_model(_two_readers(), stats=stats, bits={"left": 3, "right": 5}, mode="clip")
    assert list(model.tensors) == ["r"]
    assert model.tensors["r"] == choose_range(stats["r"], bits=5, mode="clip")
    dynamic = quantize_model(_two_readers(), stats={}, bits={"left": 6, "right": 2}, mode="dynamic")
    assert dynamic.tensors == {"r": TensorQuant(bits=6, delta=None)}
    assert dynamic.tensors["r"].dynamic


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"left": 0, "right": 4}, "left: 0 activation bits given; 1..8 are allowed"),
        ({"left": 4, "right": 9}, "right: 9 activation bits given; 1..8 are allowed"),
        ({"left": 4}, "right: no activation bits given; 1..8 are allowed"),
    ],
)
def test_bits_outside(bits: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quantize_model(_two_readers(), stats={}, bits=bits, mode="dynamic")
