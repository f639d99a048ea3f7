# SPDX-License-Identifier: 0BSD
"""Filters become binary bases with integer coefficients so that the layer's *output* is kept.

The squared error of a layer's output is (w - v) H (w - v), H the second moments of its input. It is
made small in rounds (Babai's nearest plane, also known as GPTQ or OBQ, with levels that move):

    snap      weight by weight to the nearest of the filter's 2^B levels; what that does to the
              output is handed on to the weights not fixed yet, through the Cholesky factor of H
    refit     least squares for the coefficients with H, rounded to integers under their cap
    descend   at the end, weight by weight to the level that is best given all others

Each filter keeps the best of its rounds. Arrays are [K, N] here: one weight of all filters is
contiguous, because all filters of a group take each step together.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import COEFFICIENT_CAP, U8
from bdcc.ir.graph import F32

F64 = npt.NDArray[np.float64]
Seen = tuple[F32, F32]  # [K, N] and what a layer's moments make of it
Block = tuple[int, int, F32, F32]  # start, stop, [b, N], the block's own [b, b]

BLOCK = 64  # weights that are fixed between two matrix products
ROUNDS = 3
SWEEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AwareFit:
    """coefficients: int16 [N, B]; signs: uint8 [N, K]; scale: float32 [N]; error: float64 [N], the
    squared error of the output.
    """

    coefficients: npt.NDArray[np.int16]
    signs: U8
    scale: F32
    error: F64


class FullMoments:
    """Second moments as a matrix, for layers with fewer inputs than there are samples.

    matrix: float64 [K, K], symmetric; damping: this part of the mean diagonal is added to it, but
    at least `floor`, below which the matrix is nothing but rounding errors.
    """

    def __init__(self, matrix: F64, *, damping: float, floor: float = 0.0) -> None:
        heavy = np.diag(matrix)
        self.damping = _damping(float(heavy.mean()), damping, floor)
        self.order = np.argsort(heavy, kind="stable")  # the last is fixed first: heavy ones early
        ordered = matrix[np.ix_(self.order, self.order)]
        ordered[np.diag_indices_from(ordered)] += self.damping
        factor = np.linalg.cholesky(ordered)
        self._matrix = ordered.astype(np.float32)
        self._unit = (factor / np.diag(factor)).astype(np.float32)

    def solve(self, right: F64) -> F64:
        """x of x H = right, float64 [N, K], both in the order of `order`."""
        return np.asarray(np.linalg.solve(self._matrix.astype(np.float64), right.T).T)

    def see(self, x: F32) -> F32:
        """What `inner` needs of x, float32 [K, N], beside itself."""
        return np.asarray(self._matrix @ x)

    def inner(self, x: Seen, y: Seen) -> F64:
        """x' H y, column by column: float64 [N]."""
        return _dot(x[0], y[1])

    def feedback(self, error: F32) -> Iterator[Block]:
        """Block by block from the end: what the errors behind it make of a block's targets."""
        for start in reversed(range(0, len(error), BLOCK)):
            stop = min(start + BLOCK, len(error))
            behind = np.ascontiguousarray(self._unit[stop:, start:stop].T)
            yield start, stop, behind @ error[stop:], self._unit[start:stop, start:stop]

    def pulls(self, error: F32) -> Iterator[Block]:
        """Block by block: the products of its rows of H with all errors."""
        for start in range(0, len(error), BLOCK):
            stop = min(start + BLOCK, len(error))
            own = self._matrix[start:stop, start:stop]
            yield start, stop, self._matrix[start:stop] @ error, own


class SampleMoments:
    """Second moments F'F of a few samples, for layers with more inputs than samples.

    samples: float64 [n, K], F, whose scale has the 1 / sqrt(n). Nothing of [K, K] is ever made:
    what remains to be eliminated enters through the n x n matrix F F'.
    """

    def __init__(self, samples: F64, *, damping: float) -> None:
        heavy = np.einsum("nk,nk->k", samples, samples)
        self.damping = _damping(float(heavy.mean()), damping)
        self.order = np.argsort(heavy, kind="stable")
        self._samples = np.ascontiguousarray(samples[:, self.order])
        self._single = self._samples.astype(np.float32)

    def solve_samples(self, right: F32) -> F32:
        """x of x H = right' F, float32 [N, K] in the order of `order`, for right [n, N]."""
        return np.asarray((self._inverse @ right).astype(np.float32).T @ self._single)

    @functools.cached_property
    def _inverse(self) -> F64:
        inner = np.asarray(self._samples @ self._samples.T, np.float64)
        inner[np.diag_indices_from(inner)] += self.damping
        return np.asarray(np.linalg.inv(inner))

    def see(self, x: F32) -> F32:
        """As of FullMoments."""
        return self._single @ x

    def inner(self, x: Seen, y: Seen) -> F64:
        """As of FullMoments."""
        return _dot(x[1], y[1]) + self.damping * _dot(x[0], y[0])

    @functools.cached_property
    def _eliminated(self) -> tuple[tuple[F32, F32], ...]:
        """For each block, the last first: what it takes from F e of the weights behind it, float32
        [b, n], and its own factor, of unit diagonal.

        By the Schur complement: with S = F F' + d over the weights before a block, which are free
        to make up for it, the block's own moments are d (F_b' S^-1 F_b + 1). S^-1 follows S from
        block to block, by Woodbury's identity.
        """
        samples, damping = self._samples, self.damping
        inverse: F64 = self._inverse.copy()
        found = []
        for start in reversed(range(0, samples.shape[1], BLOCK)):
            block = samples[:, start : start + BLOCK]
            seen = inverse @ block
            left = np.eye(block.shape[1]) - block.T @ seen
            seen = np.linalg.solve(left, seen.T).T.astype(np.float64, copy=False)
            inverse += seen @ (left @ seen.T)
            moments = damping * (block.T @ seen)
            moments[np.diag_indices_from(moments)] += damping
            factor = np.linalg.cholesky(moments)
            diagonal = np.diag(factor)
            gain = np.linalg.solve(factor, damping * seen.T) / diagonal[:, None]
            found.append((gain.astype(np.float32), (factor / diagonal).astype(np.float32)))
        return tuple(found)

    def feedback(self, error: F32) -> Iterator[Block]:
        """As of FullMoments."""
        reached = np.zeros((len(self._samples), error.shape[1]), np.float32)  # F e of what is fixed
        starts = reversed(range(0, len(error), BLOCK))
        for start, (gain, own) in zip(starts, self._eliminated, strict=True):
            stop = min(start + BLOCK, len(error))
            yield start, stop, gain @ reached, own
            reached += self._single[:, start:stop] @ error[start:stop]

    def pulls(self, error: F32) -> Iterator[Block]:
        """As of FullMoments."""
        reached, damping = self._single @ error, np.float32(self.damping)
        for start in range(0, len(error), BLOCK):
            stop = min(start + BLOCK, len(error))
            block, before = self._single[:, start:stop], error[start:stop].copy()
            own = block.T @ block
            own[np.diag_indices_from(own)] += damping
            yield start, stop, block.T @ reached + damping * before, own
            reached += block @ (error[start:stop] - before)


Moments = FullMoments | SampleMoments


def _damping(mean: float, part: float, floor: float = 0.0) -> float:
    found = max(part * mean, floor)
    return found if found > 0 else 1.0


def fit_filters(
    target: F32,
    moments: Moments,
    *,
    levels: F64,
    rounds: int = ROUNDS,
    sweeps: int = SWEEPS,
    uniform: bool = False,
) -> AwareFit:
    """Bases for filters `target` float32 [N, K], whose inputs have these second moments.

    levels: float64 [N, B], real coefficients to start from. uniform: all coefficients are
    1, 2, 4, .. as those of an integer format, to compare with.
    """
    order = moments.order
    if uniform:
        powers = _powers(levels)
        levels = levels.sum(axis=1, keepdims=True) * powers / powers.sum(axis=1, keepdims=True)
    problem = _Problem(
        target=np.ascontiguousarray(target.T[order], dtype=np.float32),
        moments=moments,
        bases=levels.shape[1],
        uniform=uniform,
    )
    best: _State | None = None
    coefficients = levels
    for _ in range(rounds):
        state = problem.refit(problem.snap(coefficients))
        best = state if best is None else best.better(state)
        coefficients = state.coefficients * state.scale[:, None]
    assert best is not None, "at least one round"
    for _ in range(sweeps):
        best = best.better(problem.refit(problem.descend(best)))
    signs = np.empty(best.patterns.shape[::-1], np.uint8)
    signs[:, order] = best.patterns.T
    return AwareFit(
        coefficients=best.coefficients.astype(np.int16),
        signs=signs,
        scale=best.scale.astype(np.float32),
        error=best.error,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _State:
    """patterns: uint8 [K, N]; coefficients: float64 [N, B], integers; scale, error: float64 [N]."""

    patterns: U8
    coefficients: F64
    scale: F64
    error: F64

    def better(self, other: _State) -> _State:
        wins = other.error < self.error
        return _State(
            patterns=np.where(wins, other.patterns, self.patterns),
            coefficients=np.where(wins[:, None], other.coefficients, self.coefficients),
            scale=np.where(wins, other.scale, self.scale),
            error=np.where(wins, other.error, self.error),
        )


class _Levels:
    """The 2^B levels of each filter, ascending, and the nearest one of any value."""

    def __init__(self, coefficients: F64) -> None:
        count, bases = coefficients.shape
        signs = 2.0 * ((np.arange(1 << bases)[:, None] >> np.arange(bases)) & 1) - 1
        values = signs @ coefficients.T  # [P, N]
        order = np.argsort(values, axis=0, kind="stable")
        self.values = np.take_along_axis(values, order, axis=0).astype(np.float32)
        self.bounds = (self.values[1:] + self.values[:-1]) * np.float32(0.5)
        self.patterns = order.astype(np.uint8)
        self._bases, self._columns = bases, np.arange(count)
        self._above = np.empty(self.bounds.shape, np.bool_)

    def nearest(self, value: F32) -> npt.NDArray[np.intp]:
        """Flat positions [N] of the levels nearest to float32 [N]."""
        if self._bases <= 4:
            np.greater(value, self.bounds, out=self._above)
            rank: U8 = np.add.reduce(self._above.view(np.uint8), axis=0, dtype=np.uint8)
            return rank.astype(np.intp) * len(self._columns) + self._columns
        place: npt.NDArray[np.intp] = self._columns.copy()
        flat, count = self.bounds.reshape(-1), len(self._columns)
        for bit in reversed(range(self._bases)):
            step = (1 << bit) * count
            place += step * (value > flat.take(place + (step - count)))
        return place


class _Problem:
    """The filters of one group, float32 [K, N] in the moments' order, to be fitted with B bases."""

    def __init__(self, *, target: F32, moments: Moments, bases: int, uniform: bool) -> None:
        self.target, self.moments, self.bases, self.uniform = target, moments, bases, uniform
        self._seen = target, moments.see(target)
        self._energy = moments.inner(self._seen, self._seen)

    def snap(self, coefficients: F64) -> U8:
        """Patterns [K, N], the heaviest weight first, each making up for those before it."""
        levels = _Levels(coefficients)
        error = np.empty_like(self.target)
        patterns = np.empty(self.target.shape, np.uint8)
        values, names = levels.values.reshape(-1), levels.patterns.reshape(-1)
        for start, stop, shift, own in self.moments.feedback(error):
            shift += self.target[start:stop]
            for row in reversed(range(stop - start)):
                at, value = start + row, shift[row]
                if at + 1 < stop:
                    value = value + own[row + 1 :, row] @ error[at + 1 : stop]
                place = levels.nearest(value)
                names.take(place, out=patterns[at])
                np.subtract(self.target[at], values.take(place), out=error[at])
        return patterns

    def descend(self, state: _State) -> U8:
        """Patterns [K, N] after each weight has moved to its best level given the others."""
        levels = _Levels(state.coefficients * state.scale[:, None])
        values, names = levels.values.reshape(-1), levels.patterns.reshape(-1)
        back = np.argsort(levels.patterns, axis=0)  # pattern -> position among the levels
        patterns = state.patterns.copy()
        known = np.take_along_axis(back, patterns.astype(np.intp), axis=0)
        error = self.target - np.take_along_axis(levels.values, known, axis=0)
        for start, stop, pull, own in self.moments.pulls(error):
            moved = np.zeros_like(pull)
            for row in range(stop - start):
                at, slope = start + row, pull[row]
                if row:
                    slope = slope + own[row, :row] @ moved[:row]
                before = error[at].copy()
                value = self.target[at] + (slope / own[row, row] - before)
                place = levels.nearest(value)
                names.take(place, out=patterns[at])
                np.subtract(self.target[at], values.take(place), out=error[at])
                np.subtract(error[at], before, out=moved[row])
        return patterns

    def refit(self, patterns: U8) -> _State:
        """The integers and scales of least error for given patterns."""
        bases, inner = self.bases, self.moments.inner
        signs = [_signs(patterns, b) for b in range(bases)]
        seen = [(one, self.moments.see(one)) for one in signs]
        right = np.stack([inner(one, self._seen) for one in seen], axis=1)
        gram = np.empty((len(right), bases, bases))
        for a, b in itertools.combinations_with_replacement(range(bases), 2):
            gram[:, a, b] = gram[:, b, a] = inner(seen[a], seen[b])
        if self.uniform:
            integers, scale, gain = _pick_integers(gram, right, _powers(right)[:, None, :])
        else:
            integers, scale, gain = _round_coefficients(gram, right, COEFFICIENT_CAP[bases])
        flipped = ((integers < 0) << np.arange(bases)).sum(1).astype(np.uint8)
        return _State(
            patterns=patterns ^ flipped,
            coefficients=np.abs(integers),
            scale=scale,
            error=self._energy - gain,
        )


def _signs(patterns: U8, base: int) -> F32:
    """float32, 1 where the base's bit is set and else -1."""
    signs = ((patterns >> base) & 1).astype(np.float32)
    signs *= 2
    signs -= 1
    return signs


def _dot(a: F32, b: F32) -> F64:
    """Column by column, float64 [N], of float32 [K, N]; summed in parts, to lose nothing."""
    total = np.zeros(a.shape[1])
    for start in range(0, len(a), BLOCK):
        total += np.einsum("kn,kn->n", a[start : start + BLOCK], b[start : start + BLOCK])
    return total


def _powers(like: F64) -> F64:
    """1, 2, 4, .. in the shape [N, B] of `like`."""
    return np.broadcast_to(2.0 ** np.arange(like.shape[1]), like.shape)


def _round_coefficients(gram: F64, right: F64, cap: int) -> tuple[F64, F64, F64]:
    """Integers [N, B] of sum |c| <= cap near the real solution, rounded at many sizes; as of
    `_pick_integers`.
    """
    bases = right.shape[1]
    ridge = 1e-6 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(bases)
    real = np.linalg.solve(gram + ridge, right[..., None])[..., 0]
    sums = np.linspace(1.0, cap + 1.0, 4 * cap + 1)
    total = np.maximum(np.abs(real).sum(1), 1e-300)
    integers = np.rint((real / total[:, None])[:, None, :] * sums[:, None])  # [N, S, B]
    integers[np.abs(integers).sum(-1) > cap] = 0
    return _pick_integers(gram, right, integers)


def _pick_integers(gram: F64, right: F64, integers: F64) -> tuple[F64, F64, F64]:
    """The best of integers [N, S, B], its scale [N], and by how much it lowers the error [N].

    For integers c the best scale is c r / c G c and the gain (c r)^2 / c G c; those that are all 0
    gain nothing.
    """
    product = (integers @ right[..., None])[..., 0]
    power = ((integers @ gram) * integers).sum(-1)
    alive = np.abs(integers).sum(-1) > 0
    gain = np.where(alive, np.maximum(product, 0) ** 2 / np.maximum(power, 1e-300), -1.0)
    best = np.arange(len(right)), gain.argmax(axis=1)
    scale = np.maximum(product[best], 0) / np.maximum(power[best], 1e-300)
    return integers[best], scale, np.maximum(gain[best], 0)
