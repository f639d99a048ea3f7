# SPDX-License-Identifier: 0BSD
"""Float filters become a few binary bases with integer coefficients: least squares on the weights.

The squared error does not depend on the order of a filter's weights. Sorted once, with prefix sums,
any set of coefficients costs O(2^B log K): its 2^B levels cut the sorted filter into segments (each
weight takes its nearest level), and counts and sums of the segments are all that least squares
needs. Starts and rounds are then nearly free.

    B = 1, 2, .. (each starts from the one before, so the error never rises with B)
      real coefficients   alternate nearest level and least squares, from several starts
      integers            round at many scales, judge by the quadratic form, then exactly
      polish              steps of one, single and paired, while the exact error falls
      borrow              try the integers that serve other filters best, and polish again
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import COEFFICIENT_CAP, MAX_BASES, U8, DecomposedModel, Decomposition
from bdcc.errors import ModelError, OptionError
from bdcc.ir.graph import F32, Graph, WeightLayer

Progress = Callable[[str, int, int], None]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

BLOCK_WEIGHTS = 1 << 20  # of one unit of work; sorted copy and prefix sums: 12 bytes each
BLOCK_LEVELS = 1 << 13  # of its filters together; each is tried at some hundred scales at once
RANDOM_STARTS = 10
OVERSHOOT = 1.9  # of each least-squares step: alternation creeps, this is several times faster
SHARED = 24  # coefficient vectors that the filters of a block try from each other
# A candidate wins only if it is better by this part of |w|^2, more than prefix sums can be wrong.
MARGIN = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Filters:
    """Filters scaled by a power of two (exact) so that max |w| is in [0.5, 1), and sorted.

    values: float32 [N, K] ascending; prefix: float64 [N, K + 1]; energy: float64 [N], the sum of
    squares; exponent: int32 [N], w = values * 2^exponent.
    """

    values: F32
    prefix: F64
    energy: F64
    exponent: npt.NDArray[np.int32]

    def take(self, rows: I64) -> _Filters:
        return _Filters(
            values=self.values[rows],
            prefix=self.prefix[rows],
            energy=self.energy[rows],
            exponent=self.exponent[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Fit:
    """Integer coefficients [N, B], scale [N], squared error [N]; scaled as the filters are."""

    coefficients: F64
    scale: F64
    error: F64


def decompose(
    graph: Graph,
    *,
    bases: Mapping[str, int],
    seed: int = 0,
    workers: int = 2,
    progress: Progress | None = None,
) -> DecomposedModel:
    """Decompose the weight layers named in `bases` (B per layer); the others stay float.

    The result does not depend on `workers`. progress(stage, done, total) counts weights.
    Raises OptionError for an unknown layer and for a B outside 1..7, ModelError for weights that
    are not finite.
    """
    progress = progress or _silent
    layers = {layer.name: layer for layer in graph.weight_layers}
    for name, count in bases.items():
        if name not in layers:
            raise OptionError(
                f"no weight layer of this name; the model has {', '.join(layers)}", layer=name
            )
        if not 1 <= count <= MAX_BASES:
            raise OptionError(f"{count} bases; 1..{MAX_BASES} are allowed", layer=name)
    chosen = [layer for name, layer in layers.items() if name in bases]
    for layer in chosen:
        if not (np.isfinite(layer.weight.min()) and np.isfinite(layer.weight.max())):
            raise ModelError("weights are not all finite", layer=layer.name)
    empty = {layer.name: _empty_decomposition(layer, bases[layer.name]) for layer in chosen}
    total, done = sum(layer.weight.size for layer in chosen), 0
    progress("decompose", done, total)

    def work(layer: WeightLayer, rows: slice) -> int:
        weight, out = layer.weight.reshape(len(layer.weight), -1)[rows], empty[layer.name]
        out.coefficients[rows], out.signs[rows], out.scale[rows] = decompose_filters(
            weight, bases=out.bases, seed=seed
        )
        return weight.size

    pool = ThreadPoolExecutor(max_workers=max(1, workers))
    try:
        futures = [
            pool.submit(work, layer, rows)
            for layer in chosen
            for rows in _blocks(layer, bases[layer.name])
        ]
        for future in as_completed(futures):
            done += future.result()
            progress("decompose", done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    return DecomposedModel(graph=graph, layers=empty)


def decompose_filters(
    weight: F32, *, bases: int, seed: int = 0
) -> tuple[npt.NDArray[np.int16], U8, F32]:
    """Coefficients int16 [N, B], signs uint8 [N, K], scale float32 [N] of finite float32 [N, K].

    Signs are those of the nearest level, at a tie the lower one. Filters help each other: all of
    them are in memory at once, and one alone may come out a little different.
    """
    filters = _sort_filters(weight)
    fit = _first_fit(filters)
    for count in range(2, bases + 1):
        fit = _next_fit(filters, fit, count, seed)
    scale = np.ldexp(fit.scale, filters.exponent).astype(np.float32)
    return fit.coefficients.astype(np.int16), _nearest_signs(weight, fit.coefficients, scale), scale


def weight_error(weight: F32, decomposition: Decomposition) -> float:
    """|w - w_hat|^2 / |w|^2 over a layer's weights float32 [N, ...]; 0 where all are zero."""
    flat = weight.reshape(len(weight), -1)
    lost = total = 0.0
    scale = decomposition.scale.astype(np.float64)
    for row, factor, integers in zip(flat, scale, decomposition.integer_weights(), strict=True):
        difference = row.astype(np.float64) - factor * integers
        lost += float(difference @ difference)
        total += float(np.square(row, dtype=np.float64).sum())
    return lost / total if total else 0.0


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


def _empty_decomposition(layer: WeightLayer, bases: int) -> Decomposition:
    """Room that the workers fill, block by block, before anybody sees it."""
    count, size = len(layer.weight), layer.weight[0].size
    return Decomposition(
        coefficients=np.zeros((count, bases), np.int16),
        signs=np.zeros((count, size), np.uint8),
        scale=np.zeros(count, np.float32),
        bias=layer.bias,
    )


def _blocks(layer: WeightLayer, bases: int) -> Iterator[slice]:
    step = max(1, min(BLOCK_WEIGHTS // layer.weight[0].size, BLOCK_LEVELS >> bases))
    return (slice(start, start + step) for start in range(0, len(layer.weight), step))


def _sort_filters(weight: F32) -> _Filters:
    _, exponent = np.frexp(np.abs(weight).max(axis=1))
    values = np.sort(np.ldexp(weight, -exponent[:, None]), axis=1)
    prefix = np.zeros((len(weight), weight.shape[1] + 1))
    np.cumsum(values, axis=1, dtype=np.float64, out=prefix[:, 1:])
    energy = np.einsum("nk,nk->n", values, values, dtype=np.float64)
    return _Filters(values=values, prefix=prefix, energy=energy, exponent=exponent)


def _patterns(bases: int) -> F64:
    """float64 [2^B, B]: the signs of pattern p, bit b of p set where basis b is +1."""
    bits = (np.arange(1 << bases)[:, None] >> np.arange(bases)) & 1
    return np.where(bits == 1, 1.0, -1.0)


def _bounds(levels: F64) -> F32:
    """float32 [..., P - 1] between levels float64 [..., P]: a weight above takes the level above.

    A weight on the bound is at a tie and takes the lower level. The midpoint is rounded down, which
    no float32 weight notices.
    """
    middle = (levels[..., 1:] + levels[..., :-1]) * 0.5
    near: F32 = middle.astype(np.float32)
    return np.nextafter(near, np.float32(-np.inf), out=near, where=near > middle)


def _segments(filters: _Filters, levels: F64) -> tuple[F64, F64]:
    """Counts and sums, float64 [N, R, P], of the weights nearest to ascending levels [N, R, P]."""
    bounds = _bounds(levels)
    ends = np.empty((*levels.shape[:2], levels.shape[2] + 1), np.intp)
    ends[..., 0], ends[..., -1] = 0, filters.values.shape[1]
    for row, bound, end in zip(filters.values, bounds, ends, strict=True):
        end[:, 1:-1] = row.searchsorted(bound, side="right")
    sums = np.take_along_axis(filters.prefix, ends.reshape(len(ends), -1), axis=1)
    return np.diff(ends).astype(np.float64), np.diff(sums.reshape(ends.shape))


def _normal_equations(filters: _Filters, coefficients: F64) -> tuple[F64, F64, F64]:
    """Least squares at the nearest levels of real coefficients [N, R, B].

    Returns the Gram matrix of the bases [N, R, B, B], their products with the filter [N, R, B], and
    the squared error of `coefficients` [N, R].
    """
    bases = coefficients.shape[-1]
    patterns = _patterns(bases)
    products = (patterns[:, :, None] * patterns[:, None, :]).reshape(-1, bases * bases)
    levels = coefficients @ patterns.T
    order = np.argsort(levels, axis=-1, kind="stable")
    counts, sums = _segments(filters, np.take_along_axis(levels, order, axis=-1))
    by_pattern = np.empty_like(levels)
    np.put_along_axis(by_pattern, order, counts, axis=-1)
    gram = (by_pattern @ products).reshape(*coefficients.shape, bases)
    np.put_along_axis(by_pattern, order, sums, axis=-1)
    target = by_pattern @ patterns
    error = filters.energy[:, None] + _quadratic(gram, target, coefficients)
    return gram, target, error


def _quadratic(gram: F64, target: F64, coefficients: F64) -> F64:
    """c G c - 2 c t over the last axis: the squared error less |w|^2."""
    slope: F64 = (gram @ coefficients[..., None])[..., 0] - 2 * target
    total: F64 = (slope * coefficients).sum(-1)
    return total


def _alternate(filters: _Filters, coefficients: F64, *, rounds: int, keep: int) -> F64:
    """Nearest level, least squares, `rounds` times from each start [N, R, B]; the best `keep`."""
    best, least = coefficients, np.full(coefficients.shape[:2], np.inf)
    # Bases that no weight tells apart make G singular; the ridge then takes the smallest solution.
    ridge = np.eye(coefficients.shape[-1]) * (1e-9 * filters.values.shape[1])
    for _ in range(rounds):
        gram, target, error = _normal_equations(filters, coefficients)
        better = error < least
        best = np.where(better[..., None], coefficients, best)
        least = np.where(better, error, least)
        solved = np.linalg.solve(gram + ridge, target[..., None])[..., 0]
        coefficients = coefficients + OVERSHOOT * (solved - coefficients)
    return _keep_best(best, least, keep)[0]


def _keep_best(candidates: F64, error: F64, keep: int) -> tuple[F64, F64]:
    """The `keep` candidates [N, keep, B] of least error, best first."""
    order = np.argsort(error, axis=1, kind="stable")[:, :keep]
    kept = np.take_along_axis(candidates, order[..., None], axis=1)
    return kept, np.take_along_axis(error, order, axis=1)


def _fit_scale(filters: _Filters, integers: F64, scale: F64, *, rounds: int = 2) -> tuple[F64, F64]:
    """Scale and squared error [N, R] of integers [N, R, B] after `rounds` of level and refit."""
    levels = np.sort(integers @ _patterns(integers.shape[-1]).T, axis=-1)
    error = np.empty_like(scale)
    for _ in range(rounds):
        counts, sums = _segments(filters, levels * scale[..., None])
        power, product = (counts * levels**2).sum(-1), (sums * levels).sum(-1)
        scale = np.maximum(product, 0) / np.maximum(power, 1)  # power is a whole number
        error = filters.energy[:, None] - scale * product
    return scale, error


def _settle(filters: _Filters, integers: F64, scale: F64) -> _Fit:
    """The fit that float32 scales give; integers ascending, not negative, no common factor."""
    integers = np.sort(np.abs(integers), axis=-1)
    factor = np.maximum(np.gcd.reduce(integers.astype(np.int64), axis=-1), 1)
    integers, scale = integers / factor[:, None], scale * factor
    scale = np.ldexp(
        np.ldexp(scale, filters.exponent).astype(np.float32).astype(np.float64), -filters.exponent
    )
    _, _, error = _normal_equations(filters, (integers * scale[:, None])[:, None])
    return _Fit(coefficients=integers, scale=scale, error=error[:, 0])


def _better(filters: _Filters, old: _Fit, new: _Fit) -> _Fit:
    wins = new.error < old.error - MARGIN * filters.energy
    return _Fit(
        coefficients=np.where(wins[:, None], new.coefficients, old.coefficients),
        scale=np.where(wins, new.scale, old.scale),
        error=np.where(wins, new.error, old.error),
    )


def _first_fit(filters: _Filters) -> _Fit:
    """One basis: the scale is mean |w|, and |w| itself where it is constant, to be exact there."""
    magnitude = np.abs(filters.values)
    least, mean = magnitude.min(axis=1), magnitude.mean(axis=1, dtype=np.float64)
    scale = np.where(least == magnitude.max(axis=1), least, mean)
    return _settle(filters, np.ones((len(scale), 1)), scale)


def _next_fit(filters: _Filters, fit: _Fit, bases: int, seed: int) -> _Fit:
    """From B - 1 bases to B: never worse than before, nor than the best clipped uniform grid."""
    cap = COEFFICIENT_CAP[bases]
    padded = np.pad(fit.coefficients, ((0, 0), (0, 1)))
    fit = _Fit(coefficients=padded, scale=fit.scale, error=fit.error)
    grid = _best_uniform(filters, bases)
    fit = _better(filters, fit, grid)
    starts = _starts(filters, fit, grid, seed)
    rounds = bases**2 // 2 + 2  # more bases converge more slowly
    starts = _alternate(filters, starts, rounds=rounds, keep=6)
    reals = _alternate(filters, starts, rounds=2 * rounds, keep=4)
    integers, scale = _round_coefficients(filters, reals, cap)
    fit = _better(filters, fit, _settle(filters, integers, scale))
    fit = _polish(filters, fit, cap)
    return _polish(filters, _borrow(filters, fit), cap)


def _borrow(filters: _Filters, fit: _Fit) -> _Fit:
    """Each filter tries the integer vectors that serve the other filters of the block best."""
    spread = np.sqrt(filters.energy / filters.values.shape[1])
    vectors, owner, count = np.unique(
        fit.coefficients, axis=0, return_inverse=True, return_counts=True
    )
    ratio = np.where(spread > 0, fit.scale / np.where(spread > 0, spread, 1), 0)
    mean = np.bincount(owner.ravel(), weights=ratio) / count
    chosen = np.argsort(-count, kind="stable")[:SHARED]
    integers = np.broadcast_to(vectors[chosen], (len(spread), len(chosen), vectors.shape[1]))
    scale, error = _fit_scale(filters, integers, spread[:, None] * mean[chosen], rounds=4)
    best = error.argmin(axis=1)
    scale = np.take_along_axis(scale, best[:, None], axis=1)[:, 0]
    return _better(filters, fit, _settle(filters, vectors[chosen][best], scale))


def _best_uniform(filters: _Filters, bases: int) -> _Fit:
    """The clipped uniform grid, c = 1, 2, 4, ..: the best of many clips, coarse to fine, refit."""
    integers = 2.0 ** np.arange(bases)
    peak = np.abs(filters.values[:, [0, -1]]).max(axis=1)
    # The error is rugged in the clip, the more so the more levels there are: step by half a level.
    step = min(0.02, 0.5 / (1 << bases))
    clips = np.exp(np.arange(np.log(1.1), np.log(0.04), -step))  # of max |w|
    scale = peak[:, None] * clips / ((1 << bases) - 1)
    near = np.exp(step * np.arange(-3, 4) / 4)
    for rounds, around in ((1, near), (1, np.ones(1)), (8, np.ones(1))):
        grid = np.broadcast_to(integers, (*scale.shape, bases))
        fitted, error = _fit_scale(filters, grid, scale, rounds=rounds)
        order = np.argsort(error, axis=1, kind="stable")[:, :4]
        scale, fitted = (np.take_along_axis(each, order, axis=1) for each in (scale, fitted))
        scale = (scale[:, :, None] * around).reshape(len(peak), -1)
    return _settle(filters, np.tile(integers, (len(peak), 1)), fitted[:, 0])


def _starts(filters: _Filters, fit: _Fit, grid: _Fit, seed: int) -> F64:
    """Real coefficients [N, R, B] to start from: the fit at hand, its last basis grown, the grid,
    and random ones, which are the same for all filters up to their scale.
    """
    bases = grid.coefficients.shape[1]
    known = fit.coefficients * fit.scale[:, None]
    residual = np.sqrt(np.maximum(fit.error, 0) / filters.values.shape[1])
    grown = known.copy()
    grown[:, -1] += residual
    uniform = grid.coefficients * grid.scale[:, None]
    draws = np.random.default_rng([seed, bases]).uniform(0.0, 1.0, (RANDOM_STARTS, bases))
    draws = 2.0 ** (-bases * draws)
    spread = np.sqrt(filters.energy / filters.values.shape[1])
    random = spread[:, None, None] * draws / np.linalg.norm(draws, axis=1, keepdims=True)
    return np.concatenate([known[:, None], grown[:, None], uniform[:, None], random], axis=1)


def _round_coefficients(filters: _Filters, reals: F64, cap: int) -> tuple[F64, F64]:
    """The best integers [N, B], sum |c| <= cap, near real ones [N, R, B], and their scale [N]."""
    gram, target, _ = _normal_equations(filters, reals)
    total = np.abs(reals).sum(-1, keepdims=True)
    sums = np.linspace(2.0, cap + 1.0, 4 * cap)
    direction = reals / np.maximum(total, 1e-300)
    integers = np.rint(direction[:, :, None, :] * sums[:, None])  # [N, R, S, B]
    # At fixed signs the best scale and its error are closed forms of G and t.
    product = (integers @ target[..., None])[..., 0]
    power = ((integers @ gram) * integers).sum(-1)
    gain = np.maximum(product, 0) ** 2 / np.maximum(power, 1)
    count = np.abs(integers).sum(-1)
    gain[(count > cap) | (count == 0)] = -1.0
    candidates = np.concatenate([integers, (product / np.maximum(power, 1))[..., None]], -1)
    flat = candidates.reshape(len(reals), -1, candidates.shape[-1])
    kept, _ = _keep_best(flat, -gain.reshape(len(reals), -1), 8)
    scale, error = _fit_scale(filters, kept[..., :-1], kept[..., -1])
    kept[..., -1] = scale
    best, _ = _keep_best(kept, error, 1)
    return best[:, 0, :-1], best[:, 0, -1]


def _steps(bases: int) -> F64:
    """float64 [V, B]: one coefficient up or down; up to five bases also one up and another down."""
    unit = np.eye(bases)
    pairs = [unit[a] - unit[b] for a, b in permutations(range(bases), 2)] if bases <= 5 else []
    return np.array([*unit, *-unit, *pairs])


def _polish(filters: _Filters, fit: _Fit, cap: int) -> _Fit:
    """Take the best step of one, filter by filter, while the error falls."""
    steps = _steps(fit.coefficients.shape[1])
    coefficients, scale, error = fit.coefficients.copy(), fit.scale.copy(), fit.error.copy()
    rows: I64 = np.arange(len(scale))
    for _ in range(12):
        if not len(rows):
            break
        part = filters.take(rows)
        here = coefficients[rows]
        gram, target, _ = _normal_equations(part, (here * scale[rows, None])[:, None])
        moved = here[:, None] + steps
        product, power = moved @ target[:, 0, :, None], ((moved @ gram[:, 0]) * moved).sum(-1)
        start = np.maximum(product[..., 0], 0) / np.maximum(power, 1)
        fitted, lost = _fit_scale(part, moved, start, rounds=1)
        count = np.abs(moved).sum(-1)
        lost[(count > cap) | (count == 0)] = np.inf
        best = lost.argmin(axis=1)
        pick = np.arange(len(rows)), best
        improved = lost[pick] < error[rows] - MARGIN * part.energy
        winners = rows[improved]
        coefficients[winners] = moved[pick][improved]
        scale[winners], error[winners] = fitted[pick][improved], lost[pick][improved]
        rows = winners
    return _better(filters, fit, _settle(filters, coefficients, scale))


def _nearest_signs(weight: F32, coefficients: F64, scale: F32) -> U8:
    """uint8 [N, K]: for each weight the pattern of the nearest level, the lower one at a tie."""
    signs = np.empty(weight.shape, np.uint8)
    integers = coefficients @ _patterns(coefficients.shape[1]).T
    order = np.argsort(integers, axis=1, kind="stable")
    levels = np.take_along_axis(integers, order, axis=1) * scale.astype(np.float64)[:, None]
    for row, bound, pattern, out in zip(
        weight, _bounds(levels), order.astype(np.uint8), signs, strict=True
    ):
        np.take(pattern, bound.searchsorted(row, side="left"), out=out)
    return signs
