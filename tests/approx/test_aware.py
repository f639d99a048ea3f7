# SPDX-License-Identifier: 0BSD
"""Fits under second moments: against full solves, direct errors, and the plain decomposition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bdcc.approx.aware import BLOCK, AwareFit, FullMoments, Moments, SampleMoments, _Levels
from bdcc.approx.aware import fit_filters as fit
from bdcc.approx.decompose import decompose_filters
from bdcc.approx.model import COEFFICIENT_CAP, Decomposition

DAMPING = 0.02
EDGES = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3)


def samples_of(rng: np.random.Generator, k: int, count: int) -> np.ndarray:
    """float64 [count, k]: correlated inputs of very different variances, as F of F'F."""
    hidden = rng.normal(size=(count, max(1, k // 4))) @ rng.normal(size=(max(1, k // 4), k))
    mixed = hidden + 0.5 * rng.normal(size=(count, k))
    return (mixed - mixed.mean(axis=0)) * rng.uniform(0.2, 2, k) / np.sqrt(count)


def moments_of(samples: np.ndarray, kind: str) -> Moments:
    if kind == "full":
        return FullMoments(samples.T @ samples, damping=DAMPING)
    return SampleMoments(samples, damping=DAMPING)


def damped(samples: np.ndarray) -> np.ndarray:
    matrix = samples.T @ samples
    return matrix + DAMPING * (np.trace(matrix) / len(matrix)) * np.eye(len(matrix))


def weights_of(one: AwareFit) -> np.ndarray:
    zero = np.zeros(len(one.scale), np.float32)
    whole = Decomposition(
        coefficients=one.coefficients, signs=one.signs, scale=one.scale, bias=zero
    )
    return whole.weights().astype(np.float64)


def error_under(matrix: np.ndarray, target: np.ndarray, weights: np.ndarray) -> np.ndarray:
    e = target - weights
    return np.einsum("nk,kj,nj->n", e, matrix, e)


def plain(target: np.ndarray, bases: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and real coefficients of the decomposition that knows nothing of the inputs."""
    coefficients, signs, scale = decompose_filters(target.astype(np.float32), bases=bases)
    one = AwareFit(coefficients=coefficients, signs=signs, scale=scale, error=np.zeros(0))
    return weights_of(one), coefficients * scale[:, None].astype(np.float64)


# --- a slow fit ---------------------------------------------------------------------------


def snap_slowly(target: np.ndarray, matrix: np.ndarray, levels: np.ndarray, order) -> np.ndarray:
    """Patterns [K]: the heaviest weight first to its nearest level, the others solved for anew."""
    k, bases = len(target), len(levels)
    signs = 2.0 * ((np.arange(1 << bases)[:, None] >> np.arange(bases)) & 1) - 1
    values = signs @ levels
    patterns, error, free = np.zeros(k, np.uint8), np.zeros(k), list(order)
    fixed: list[int] = []
    while free:
        wanted = target[free]
        if fixed:  # the free weights as they would best make up for the fixed ones
            pull = matrix[np.ix_(free, fixed)] @ error[fixed]
            wanted = wanted + np.linalg.solve(matrix[np.ix_(free, free)], pull)
        at = free.pop()
        patterns[at] = np.abs(values - wanted[-1]).argmin()
        error[at] = target[at] - values[patterns[at]]
        fixed.append(at)
    return patterns


@pytest.mark.parametrize("kind", ["full", "samples"])
@pytest.mark.parametrize("k", [1, 2, 9, BLOCK, BLOCK + 1])
@pytest.mark.parametrize("bases", [1, 3, 5])
def test_one_round_is_the_nearest_plane(kind: str, k: int, bases: int) -> None:
    rng = np.random.default_rng(k)
    samples = samples_of(rng, k, 40)
    target = rng.normal(size=(3, k))
    moments = moments_of(samples, kind)
    levels = np.abs(target).mean(axis=1)[:, None] * 2.0 ** -np.arange(bases)
    found = fit(target, moments, levels=levels, rounds=1, sweeps=0)
    for row in range(3):
        slow = snap_slowly(target[row], damped(samples), levels[row], moments.order)
        signs = 2.0 * ((slow[:, None] >> np.arange(bases)) & 1) - 1
        rounded = (
            signs
            @ np.linalg.lstsq(
                np.linalg.cholesky(damped(samples)).T @ signs,
                np.linalg.cholesky(damped(samples)).T @ target[row],
            )[0]
        )
        least = error_under(damped(samples), target[row : row + 1], rounded[None])[0]
        energy = error_under(damped(samples), target[row : row + 1], np.zeros((1, k)))[0]
        assert found.error[row] >= least - 1e-6 * energy  # integers are no better than reals,
        assert found.error[row] <= least + 2e-2 * energy  # and nearly as good
        if bases <= k and (found.coefficients[row] > 0).all():
            changed = found.signs[row] ^ slow  # a basis may have been turned round
            assert len(np.unique(changed)) == 1


def test_a_turned_basis_was_compared_too() -> None:
    """The test above compares signs: it must not skip most of them."""
    rng = np.random.default_rng(BLOCK)
    target, samples = rng.normal(size=(3, BLOCK)), samples_of(rng, BLOCK, 40)
    levels = np.abs(target).mean(axis=1)[:, None] * 2.0 ** -np.arange(3)
    found = fit(target, moments_of(samples, "full"), levels=levels, rounds=1, sweeps=0)
    assert (found.coefficients > 0).all()


# --- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("k", EDGES)
@pytest.mark.parametrize("bases", [1, 2, 4, 6])
def test_both_kinds_of_moments_and_the_direct_error(k: int, bases: int) -> None:
    rng = np.random.default_rng(7 * k + bases)
    samples, target = samples_of(rng, k, 50), rng.normal(size=(6, k))
    _, levels = plain(target, bases)
    full, few = (fit(target, moments_of(samples, m), levels=levels) for m in ("full", "samples"))
    energy = error_under(damped(samples), target, np.zeros_like(target))
    for found in (full, few):
        assert (found.coefficients.dtype, found.signs.dtype) == (np.int16, np.uint8)
        assert found.signs.shape == (6, k)
        assert (np.abs(found.coefficients.astype(int)).sum(1) <= COEFFICIENT_CAP[bases]).all()
        assert (found.scale >= 0).all()
        direct = error_under(damped(samples), target, weights_of(found))
        np.testing.assert_allclose(found.error, direct, atol=2e-6 * energy.max())
    np.testing.assert_allclose(full.error / energy, few.error / energy, atol=1e-3)
    close = np.isclose(weights_of(full), weights_of(few), rtol=1e-3, atol=1e-6)
    # By their different roundings one filter may come to another fit, which is as good (above).
    assert close.all(axis=1).sum() >= 5


@pytest.mark.parametrize("bases", range(1, 8))
@pytest.mark.parametrize("seed", range(3))
def test_never_worse_than_the_plain_decomposition(bases: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples, target = samples_of(rng, 100, 300), rng.normal(size=(8, 100))
    weights, levels = plain(target, bases)
    found = fit(target, moments_of(samples, "full"), levels=levels)
    blind = error_under(damped(samples), target, weights)
    assert (found.error <= blind).all()
    assert found.error.sum() < 0.7 * blind.sum()  # what it is for


@pytest.mark.parametrize("kind", ["full", "samples"])
@pytest.mark.parametrize("bases", [1, 2, 4])
def test_uniform_levels_are_those_of_an_integer_format(kind: str, bases: int) -> None:
    rng = np.random.default_rng(bases)
    samples, target = samples_of(rng, 60, 80), rng.normal(size=(8, 60))
    _, levels = plain(target, bases)
    moments = moments_of(samples, kind)
    found = fit(target, moments, levels=levels, uniform=True)
    assert (found.coefficients == 2 ** np.arange(bases)).all()
    direct = error_under(damped(samples), target, weights_of(found))
    energy = error_under(damped(samples), target, np.zeros_like(target))
    np.testing.assert_allclose(found.error, direct, atol=2e-6 * energy.max())
    assert (found.error < energy).all()
    # Better than rounding to the nearest of as many levels, spread as far.
    top, count = levels.sum(axis=1, keepdims=True), 2**bases - 1
    nearest = np.clip(np.rint((target / top + 1) / 2 * count), 0, count) * 2 / count - 1
    assert found.error.sum() < 0.8 * error_under(damped(samples), target, nearest * top).sum()
    free = fit(target, moments, levels=levels)
    if bases > 1:  # one basis has the same levels either way
        assert free.error.sum() < found.error.sum()


def test_more_bases_are_never_worse() -> None:
    rng = np.random.default_rng(1)
    samples, target = samples_of(rng, 150, 400), rng.normal(size=(8, 150))
    moments = moments_of(samples, "full")
    energy = error_under(damped(samples), target, np.zeros_like(target))
    errors = [
        (fit(target, moments, levels=plain(target, bases)[1]).error / energy).mean()
        for bases in range(1, 8)
    ]
    assert all(b < a + 1e-3 for a, b in itertools.pairwise(errors)), errors
    assert errors[6] < 1e-3 < 0.02 < errors[0]


@pytest.mark.parametrize("kind", ["full", "samples"])
def test_dead_inputs_and_constant_filters(kind: str) -> None:
    rng = np.random.default_rng(3)
    samples = samples_of(rng, 70, 40)
    samples[:, 5:30] = 0
    target = rng.normal(size=(4, 70))
    target[0], target[1] = 0, 0.25
    levels = np.tile([0.6, 0.3], (4, 1))
    found = fit(target, moments_of(samples, kind), levels=levels)
    assert np.isfinite(found.scale).all()
    assert np.isfinite(found.error).all()
    assert (weights_of(found)[0] == 0).all()
    np.testing.assert_allclose(weights_of(found)[1], 0.25, rtol=1e-6)
    np.testing.assert_allclose(found.error[:2], 0, atol=1e-6)


@pytest.mark.parametrize("kind", ["full", "samples"])
def test_inputs_that_are_all_dead(kind: str) -> None:
    """Nothing reaches the output: the weights themselves are kept."""
    target = np.random.default_rng(3).normal(size=(2, 20))
    found = fit(target, moments_of(np.zeros((9, 20)), kind), levels=np.ones((2, 3)))
    np.testing.assert_allclose(found.error, ((target - weights_of(found)) ** 2).sum(1), rtol=1e-4)
    assert (found.error < 0.15 * (target**2).sum(1)).all()


# --- levels -------------------------------------------------------------------------------


@pytest.mark.parametrize("bases", range(1, 8))
def test_nearest_is_brute_force_and_ties_go_down(bases: int) -> None:
    rng = np.random.default_rng(bases)
    coefficients = rng.integers(0, 9, size=(30, bases)).astype(np.float64)  # equal levels too
    levels = _Levels(coefficients)
    signs = 2 * ((np.arange(1 << bases)[:, None] >> np.arange(bases)) & 1) - 1
    expected = np.sort(coefficients @ signs.T, axis=1)
    for step in np.arange(-80, 80) / 2:  # halves: every middle between two levels is among them
        value = np.full(30, step, np.float32)
        place = levels.nearest(value)
        found = levels.values.reshape(-1)[place]
        nearest = expected[np.arange(30), np.abs(expected - step).argmin(axis=1)]
        np.testing.assert_array_equal(found, nearest)
        patterns = levels.patterns.reshape(-1)[place]
        np.testing.assert_array_equal((coefficients * signs[patterns]).sum(axis=1), nearest)
