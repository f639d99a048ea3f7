# SPDX-License-Identifier: 0BSD
"""Activations become Q-bit codes: the quantizer, its ranges, and what calibration has to remember.

docs/design.md has the arithmetic. Everything that reaches a code is float32, one rounding at a
time, in the order written there, so that C gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import MAX_BITS, U8, DecomposedModel, QuantizedModel, TensorQuant
from bdcc.errors import OptionError
from bdcc.ir.graph import F32

RangeMode = Literal["clip", "minmax", "dynamic"]
F64 = npt.NDArray[np.float64]
U64 = npt.NDArray[np.uint64]

SAMPLE_LIMIT = 1 << 17  # values that a RangeObserver keeps
CHUNK = 1 << 20  # values that it looks at in one go
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd
SMALLEST_STEP, LARGEST_STEP = np.float32(2.0**-100), np.float32(2.0**100)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorStats:
    """What calibration saw of a tensor: exact extremes, and a sample, float32, ascending, no NaN.

    A tensor that had no values has extremes 0 and an empty sample.
    """

    minimum: float
    maximum: float
    sample: F32


class RangeObserver:
    """Streams the values of one tensor into TensorStats, in bounded memory.

    Value i of the stream is kept if i * 2^64/phi mod 2^64 lies under a threshold, which is halved
    when too many are kept. Such indices are evenly spaced at every scale, unlike those of a fixed
    stride they favour no channel or pixel, and how the stream is cut into batches does not matter.
    """

    def __init__(self, *, limit: int = SAMPLE_LIMIT) -> None:
        self._limit = limit
        self._shift = np.uint64(0)
        self._seen = 0
        self._minimum, self._maximum = np.float32(np.inf), np.float32(-np.inf)
        self._keys: U64 = np.empty(0, np.uint64)
        self._values: F32 = np.empty(0, np.float32)

    def observe(self, values: F32) -> None:
        """values: float32 of any shape; NaN is ignored."""
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        for start in range(0, len(flat), CHUNK):
            self._observe_chunk(flat[start : start + CHUNK])

    def _observe_chunk(self, chunk: F32) -> None:
        keys = np.arange(self._seen, self._seen + len(chunk), dtype=np.uint64) * GOLDEN
        self._seen += len(chunk)
        self._minimum = np.fmin(self._minimum, np.fmin.reduce(chunk))
        self._maximum = np.fmax(self._maximum, np.fmax.reduce(chunk))
        kept = self._under_threshold(keys)
        self._keys = np.concatenate([self._keys, keys[kept]])
        self._values = np.concatenate([self._values, chunk[kept]])
        while len(self._keys) > self._limit:
            self._shift += np.uint64(1)
            kept = self._under_threshold(self._keys)
            self._keys, self._values = self._keys[kept], self._values[kept]

    def _under_threshold(self, keys: U64) -> npt.NDArray[np.bool_]:
        return keys <= np.uint64(2**64 - 1) >> self._shift

    def stats(self) -> TensorStats:
        sample = np.sort(self._values[~np.isnan(self._values)])
        if self._minimum > self._maximum:
            return TensorStats(minimum=0.0, maximum=0.0, sample=sample)
        return TensorStats(
            minimum=float(self._minimum), maximum=float(self._maximum), sample=sample
        )


def encode(x: F32, *, reciprocal: np.float32, zero_point: int, bits: int) -> U8:
    """Codes, uint8 of x's shape: clamp(rint(x * r), -z, 2^bits - 1 - z) + z; a NaN gives z."""
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.rint(x * reciprocal)
    np.clip(steps, -zero_point, (1 << bits) - 1 - zero_point, out=steps)
    np.copyto(steps, 0, where=np.isnan(steps))
    codes: U8 = (steps + np.float32(zero_point)).astype(np.uint8)
    return codes


def quantize_array(x: F32, quant: TensorQuant) -> U8:
    """Codes, uint8 of x's shape, of float32 x; a dynamic range is that of x, one picture's map."""
    if quant.delta is None:
        _, zero_point, reciprocal = dynamic_range(x, quant.bits)
        return encode(x, reciprocal=reciprocal, zero_point=zero_point, bits=quant.bits)
    return encode(x, reciprocal=quant.reciprocal, zero_point=quant.zero_point, bits=quant.bits)


def dequantize(codes: U8, delta: np.float32, zero_point: int) -> F32:
    """float32 of the codes' shape: delta * (q - z)."""
    steps: F32 = codes.astype(np.float32) - np.float32(zero_point)
    return steps * np.float32(delta)


def dynamic_range(x: F32, bits: int) -> tuple[np.float32, int, np.float32]:
    """delta, z and r = 1 / delta of x, one picture's map: float32, any shape; NaN is ignored."""
    lo = np.fmin.reduce(x, axis=None, initial=np.float32(0))
    hi = np.fmax.reduce(x, axis=None, initial=np.float32(0))
    return _range(np.float32(lo), np.float32(hi), bits)


def _range(lo: np.float32, hi: np.float32, bits: int) -> tuple[np.float32, int, np.float32]:
    """delta, z and r for lo <= 0 <= hi, in float32 and in the order of docs/design.md."""
    top = np.float32((1 << bits) - 1)
    one = np.float32(1)
    with np.errstate(over="ignore", under="ignore"):
        delta = hi / top - lo / top
        if not delta >= SMALLEST_STEP:
            return one, 0, one
        delta = min(delta, LARGEST_STEP)
        reciprocal = one / delta
        zero = np.rint(-lo * reciprocal)
    return delta, int(min(max(zero, np.float32(0)), top)), reciprocal


def choose_range(stats: TensorStats, *, bits: int, mode: RangeMode) -> TensorQuant:
    """How to quantize a tensor of these statistics with 1..8 bits.

    clip: least squared error over the sample; minmax: the extremes; dynamic: picture by picture.
    Zero always has an exact code; z = 0 where nothing is negative.
    """
    match mode:
        case "dynamic":
            return TensorQuant(bits=bits, delta=None)
        case "minmax":
            return _minmax_range(stats.minimum, stats.maximum, bits)
        case "clip":
            return _clip_range(stats, bits)
        case _:
            assert_never(mode)


def _minmax_range(minimum: float, maximum: float, bits: int) -> TensorQuant:
    delta, zero_point, _ = _range(
        np.float32(min(minimum, 0.0)), np.float32(max(maximum, 0.0)), bits
    )
    return TensorQuant(bits=bits, delta=delta, zero_point=zero_point)


def squared_error(sample: F32, quant: TensorQuant) -> float:
    """Sum over the sample of (x - dequantized x)^2 with the real quantizer, added up in float64."""
    assert quant.delta is not None, "the error of a dynamic range depends on the picture"
    rounded = dequantize(quantize_array(sample, quant), quant.delta, quant.zero_point)
    difference = sample.astype(np.float64) - rounded
    return float(difference @ difference)


def _clip_range(stats: TensorStats, bits: int) -> TensorQuant:
    """The best of the two minmax ranges and a search, judged by the real quantizer."""
    sample = stats.sample[np.isfinite(stats.sample)]
    candidates = [_minmax_range(stats.minimum, stats.maximum, bits)]
    if len(sample):
        candidates.append(_minmax_range(float(sample[0]), float(sample[-1]), bits))
        if np.abs(sample[[0, -1]]).max() >= SMALLEST_STEP * (1 << bits):
            candidates.append(_search_clip(sample, bits))
    return min(candidates, key=lambda quant: squared_error(sample, quant))


def _search_clip(sample: F32, bits: int) -> TensorQuant:
    top = (1 << bits) - 1
    peak = float(np.abs(sample[[0, -1]]).max())
    prefix = np.concatenate([[0.0], np.cumsum(sample, dtype=np.float64)])
    # The longer side of zero has at least top / 2 steps. Down to 1 / 5000 of the peak, then finer.
    deltas = 2 * peak / top * 1.1 ** -np.arange(96.0)
    stride = max(1, (top + 1) // 16)
    zeros = np.arange(0, top + 1, stride) if sample[0] < 0 else np.zeros(1, np.int64)
    if sample[0] < 0:
        zeros = np.union1d(zeros, [top])
    ratio = 1.1
    while True:
        delta, zero = _best_step(sample, prefix, deltas, zeros, top)
        if ratio < 1.001 and stride == 1:
            return TensorQuant(bits=bits, delta=np.float32(delta), zero_point=zero)
        # Around the best: steps a quarter as far apart, zero points half as far.
        ratio **= 0.25
        deltas = delta * ratio ** np.arange(-6.0, 7.0)
        stride = max(1, stride // 2)
        if sample[0] < 0:
            zeros = np.unique(np.clip(zero + stride * np.arange(-3, 4), 0, top))


def _best_step(
    sample: F32, prefix: F64, deltas: F64, zeros: npt.NDArray[np.int64], top: int
) -> tuple[float, int]:
    """The pair of least squared error, by counts and sums of the sample between thresholds."""
    deltas = np.clip(deltas, SMALLEST_STEP, LARGEST_STEP).astype(np.float32).astype(np.float64)
    steps = np.arange(top + 1.0) - zeros[:, None]  # [Z, top + 1]
    thresholds = deltas[:, None, None] * (steps[:, :-1] + 0.5)
    ends = np.empty((*thresholds.shape[:2], top + 2), np.intp)
    ends[..., 0], ends[..., -1] = 0, len(sample)
    ends[..., 1:-1] = sample.searchsorted(thresholds.astype(np.float32))
    levels = deltas[:, None, None] * steps
    error = (np.diff(ends) * levels**2 - 2 * np.diff(prefix[ends]) * levels).sum(-1)
    best = np.unravel_index(int(error.argmin()), error.shape)
    return float(deltas[best[0]]), int(zeros[best[1]])


def quantize_model(
    decomposed: DecomposedModel,
    *,
    stats: Mapping[str, TensorStats],
    bits: Mapping[str, int],
    mode: RangeMode,
) -> QuantizedModel:
    """Choose the range of the input tensor of every decomposed layer.

    stats: by tensor name (not used for dynamic ranges); bits: by layer name, 1..8. A tensor that
    several decomposed layers read takes the largest of their bits. Raises OptionError, naming the
    layer, for bits that are missing or outside.
    """
    wanted: dict[str, int] = {}
    for layer in decomposed.graph.weight_layers:
        if layer.name not in decomposed.layers:
            continue
        count = bits.get(layer.name)
        if count is None or not 1 <= count <= MAX_BITS:
            found = "no activation bits" if count is None else f"{count} activation bits"
            raise OptionError(f"{found} given; 1..{MAX_BITS} are allowed", layer=layer.name)
        wanted[layer.input] = max(wanted.get(layer.input, 1), count)
    empty = TensorStats(minimum=0.0, maximum=0.0, sample=np.empty(0, np.float32))
    tensors = {
        tensor: choose_range(empty if mode == "dynamic" else stats[tensor], bits=count, mode=mode)
        for tensor, count in wanted.items()
    }
    return QuantizedModel(decomposed=decomposed, tensors=tensors)
