# SPDX-License-Identifier: 0BSD
"""Decomposition, judged by enumeration, by textbook least squares and by the uniform grid."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from bdcc.approx import decompose as module
from bdcc.approx.decompose import decompose, decompose_filters, weight_error
from bdcc.approx.model import COEFFICIENT_CAP, MAX_BASES, Decomposition
from bdcc.errors import ModelError, OptionError
from bdcc.ir.graph import F32, Conv, Dense, Flatten, Graph, Relu, make_graph

ALL_BASES = range(1, MAX_BASES + 1)


def _decomposed(weight: F32, bases: int) -> Decomposition:
    coefficients, signs, scale = decompose_filters(weight, bases=bases)
    return Decomposition(
        coefficients=coefficients, signs=signs, scale=scale, bias=np.zeros(len(weight), np.float32)
    )


def _lost(weight: F32, decomposition: Decomposition) -> np.ndarray:
    """Squared error per filter, float64 [N], from the definition."""
    approximation = np.zeros(weight.shape)
    for basis in range(decomposition.bases):
        sign = np.where((decomposition.signs >> basis) & 1, 1.0, -1.0)
        approximation += decomposition.coefficients[:, basis, None] * sign
    approximation *= decomposition.scale.astype(np.float64)[:, None]
    return ((weight.astype(np.float64) - approximation) ** 2).sum(axis=1)


def _families() -> dict[str, F32]:
    """Filters [N, K] of many kinds; K at word edges and odd."""
    rng = np.random.default_rng(5)
    laplace = rng.laplace(size=(5, 363)).astype(np.float32)
    return {
        "normal": rng.normal(size=(6, 128)).astype(np.float32),
        "laplace": laplace,
        "uniform": rng.uniform(-1, 1, size=(4, 65)).astype(np.float32),
        "shifted": rng.normal(3.0, 0.5, size=(4, 63)).astype(np.float32),
        "sparse": np.where(rng.random((4, 200)) < 0.8, 0, rng.normal(size=(4, 200))).astype(
            np.float32
        ),
        "outlier": np.concatenate([laplace, np.full((5, 1), 200)], axis=1).astype(np.float32),
        "coarse": (np.rint(rng.normal(size=(5, 300)) * 4) / 8).astype(np.float32),
        "short": rng.normal(size=(8, 3)).astype(np.float32),
        "single": rng.normal(size=(9, 1)).astype(np.float32),
        "mixed scales": (
            rng.normal(size=(5, 100)) * 10.0 ** np.arange(-30, 20, 10)[:, None]
        ).astype(np.float32),
    }


FAMILIES = _families()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bases", ALL_BASES)
def test_signs_are_those_of_the_nearest_level(family: str, bases: int) -> None:
    weight = FAMILIES[family]
    found = _decomposed(weight, bases)
    assert (found.coefficients.dtype, found.signs.dtype) == (np.int16, np.uint8)
    assert found.scale.dtype == np.float32
    assert found.coefficients.shape == (len(weight), bases)
    assert (np.abs(found.coefficients).sum(axis=1) <= COEFFICIENT_CAP[bases]).all()
    assert (found.scale >= 0).all()
    assert found.signs.max() < 1 << bases
    for row, coefficients, scale, integers in zip(
        weight, found.coefficients, found.scale, found.integer_weights(), strict=True
    ):
        levels = np.unique(
            [np.dot(signs, coefficients) for signs in product((-1, 1), repeat=bases)]
        )
        distance = np.abs(row.astype(np.float64)[:, None] - np.float64(scale) * levels)
        assert np.array_equal(integers, levels[distance.argmin(axis=1)])  # first: the lower one


@pytest.mark.parametrize("family", FAMILIES)
def test_error_never_rises_with_bases(family: str) -> None:
    weight = FAMILIES[family]
    energy = (weight.astype(np.float64) ** 2).sum(axis=1)
    errors = [_lost(weight, _decomposed(weight, bases)) / energy for bases in ALL_BASES]
    for fewer, more in pairwise(errors):
        assert (more <= fewer + 1e-14).all()
    assert (errors[-1] < 0.05 * errors[0] + 1e-12).all()


def _uniform_grid_error(row: F32, bases: int) -> float:
    """Least error of s * (odd numbers up to 2^B - 1), over 3,000 scales, each refitted."""
    levels = np.arange(-(2**bases) + 1, 2**bases, 2).astype(np.float64)
    least = np.inf
    exact = row.astype(np.float64)
    for scale in np.abs(exact).max() / (2**bases - 1) * np.linspace(0.02, 1.1, 3000):
        nearest = levels[np.searchsorted(scale * (levels[1:] + levels[:-1]) / 2, exact)]
        best = np.float64(np.float32((nearest @ exact) / (nearest @ nearest)))
        least = min(least, float(((exact - best * nearest) ** 2).sum()))
    return least


@pytest.mark.parametrize("bases", [1, 2, 4, 6, 7])
@pytest.mark.parametrize("family", ["normal", "laplace", "uniform", "shifted", "coarse"])
def test_not_worse_than_the_clipped_uniform_grid(family: str, bases: int) -> None:
    weight = FAMILIES[family][:2]
    lost = _lost(weight, _decomposed(weight, bases))
    for row, error in zip(weight, lost, strict=True):
        assert error <= _uniform_grid_error(row, bases) * 1.001


def test_two_bases_reach_the_optimum_found_by_enumeration() -> None:
    """Every integer pair within the cap, every scale at which its assignment can change."""
    rng = np.random.default_rng(11)
    weight = rng.normal(size=(12, 9)).astype(np.float32)
    lost = _lost(weight, _decomposed(weight, 2))
    pairs = [(a, b) for a in range(1, 16) for b in range(a, 32) if a + b <= 31]
    for row, error in zip(weight.astype(np.float64), lost, strict=True):
        optimum = np.inf
        for small, large in pairs:
            levels = np.array([-large - small, small - large, large - small, large + small])
            middles = (levels[1:] + levels[:-1]) / 2
            edges = np.abs(row[:, None] / middles[middles != 0])
            for scale in np.concatenate([edges.ravel() * 0.9999, edges.ravel() * 1.0001]):
                nearest = levels[np.searchsorted(scale * middles, row)]
                if nearest.any():
                    refit = max(nearest @ row, 0) / (nearest @ nearest)
                    optimum = min(optimum, ((row - refit * nearest) ** 2).sum())
        assert error <= 1.05 * optimum + 1e-9
        assert error >= optimum * (1 - 1e-5)


def _real_least_squares(row: np.ndarray, bases: int, starts: int) -> float:
    """The textbook method: exhaustive nearest level, float coefficients, random restarts."""
    rng = np.random.default_rng(3)
    patterns = np.array(list(product((-1.0, 1.0), repeat=bases)))
    least = np.inf
    for _ in range(starts):
        coefficients = np.abs(rng.normal(size=bases)) * row.std()
        for _ in range(60):
            signs = patterns[np.abs(row[:, None] - patterns @ coefficients).argmin(axis=1)]
            coefficients = np.linalg.lstsq(signs, row, rcond=None)[0]
        least = min(least, float(((row - signs @ coefficients) ** 2).sum()))
    return least


@pytest.mark.parametrize(("bases", "slack"), [(2, 1.01), (3, 1.03), (4, 1.08)])
def test_integers_cost_little_against_real_coefficients(bases: int, slack: float) -> None:
    weight = np.random.default_rng(8).laplace(size=(4, 300)).astype(np.float32)
    lost = _lost(weight, _decomposed(weight, bases))
    for row, error in zip(weight, lost, strict=True):
        assert error <= slack * _real_least_squares(row.astype(np.float64), bases, starts=12)


@pytest.mark.parametrize("bases", ALL_BASES)
def test_constant_magnitude_is_exact(bases: int) -> None:
    value = np.array([[0.3], [-0.3], [1.0], [-7.1e-3], [1e-44], [2.9e38]], np.float32)
    constant = np.repeat(value, 77, axis=1)
    two_signed = constant.copy()
    two_signed[:, ::3] *= -1
    for weight in (constant, two_signed):
        assert np.array_equal(_decomposed(weight, bases).weights(), weight)


@pytest.mark.parametrize("bases", ALL_BASES)
def test_zero_filters(bases: int) -> None:
    weight = np.zeros((3, 20), np.float32)
    weight[1] = np.linspace(-1, 1, 20)  # a neighbour that is not zero
    found = _decomposed(weight, bases)
    assert not found.weights()[[0, 2]].any()
    assert found.weights()[1].any()
    assert weight_error(weight[:1], _decomposed(weight[:1], bases)) == 0.0


@pytest.mark.parametrize("magnitude", [1e-44, 1e-40, 1e-30, 1e30, 1e38])
@pytest.mark.parametrize("bases", [1, 4, 7])
def test_denormal_and_huge_weights(magnitude: float, bases: int) -> None:
    shape = np.random.default_rng(2).uniform(-1, 1, size=(3, 90))
    weight = (shape * magnitude).astype(np.float32)
    found = _decomposed(weight, bases)
    assert np.isfinite(found.weights()).all()
    error = weight_error(weight, found)
    if magnitude >= 1e-30:  # a power-of-two change of scale changes nothing
        expected = _decomposed(np.ldexp(weight, -np.frexp(magnitude)[1]).astype(np.float32), bases)
        assert error == pytest.approx(
            weight_error(np.ldexp(weight, -np.frexp(magnitude)[1]), expected), rel=1e-6
        )
    else:  # the scale has few bits left
        assert error <= 1.0


@pytest.mark.parametrize("levels", [2, 4, 8])
def test_weights_on_a_binary_grid_are_exact(levels: int) -> None:
    rng = np.random.default_rng(levels)
    weight = ((2 * rng.integers(0, levels, (3, 100)) - levels + 1) * 0.25).astype(np.float32)
    assert np.array_equal(_decomposed(weight, levels.bit_length() - 1).weights(), weight)


def test_weight_error_is_the_relative_squared_error() -> None:
    weight = FAMILIES["laplace"]
    found = _decomposed(weight, 3)
    expected = _lost(weight, found).sum() / (weight.astype(np.float64) ** 2).sum()
    assert weight_error(weight, found) == pytest.approx(expected, rel=1e-12)
    kernels = weight[:, :360].reshape(5, 10, 6, 6)
    assert weight_error(kernels, _decomposed(weight[:, :360], 3)) > 0


def _graph() -> Graph:
    rng = np.random.default_rng(1)
    nodes = (
        Conv(
            name="conv",
            input="x",
            output="a",
            weight=rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
            bias=rng.normal(size=8).astype(np.float32),
        ),
        Relu(name="relu", input="a", output="b"),
        Flatten(name="flatten", input="b", output="c"),
        Dense(
            name="dense",
            input="c",
            output="y",
            weight=rng.normal(size=(10, 128)).astype(np.float32),
            bias=rng.normal(size=10).astype(np.float32),
        ),
    )
    return make_graph(name="g", input_name="x", input_shape=(3, 6, 6), output="y", nodes=nodes)


def test_model_does_not_depend_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_WEIGHTS", 300)
    graph = _graph()
    calls: list[tuple[str, int, int]] = []
    one = decompose(graph, bases={"conv": 2, "dense": 5}, workers=1)
    three = decompose(
        graph, bases={"conv": 2, "dense": 5}, workers=3, progress=lambda *call: calls.append(call)
    )
    assert list(three.layers) == ["conv", "dense"]
    for name, layer in one.layers.items():
        other = three.layers[name]
        assert np.array_equal(layer.coefficients, other.coefficients)
        assert np.array_equal(layer.signs, other.signs)
        assert np.array_equal(layer.scale, other.scale)
    total = 8 * 27 + 10 * 128
    assert three.layers["dense"].signs.shape == (10, 128)
    assert three.layers["conv"].bias is graph.weight_layers[0].bias
    assert calls[0] == ("decompose", 0, total)
    assert calls[-1] == ("decompose", total, total)
    done = [call[1] for call in calls]
    assert done == sorted(set(done))
    assert len(done) == 1 + 1 + 5  # start, conv in one block, dense in blocks of two filters


def test_layers_that_are_not_named_stay_float() -> None:
    graph = _graph()
    model = decompose(graph, bases={"dense": 3})
    assert list(model.layers) == ["dense"]
    assert model.graph is graph
    assert not decompose(graph, bases={}).layers


def test_same_seed_same_result() -> None:
    weight = FAMILIES["laplace"]
    first, again = (decompose_filters(weight, bases=4, seed=7) for _ in range(2))
    for left, right in zip(first, again, strict=True):
        assert np.array_equal(left, right)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ({"dense": 0}, "dense: 0 bases; 1..7 are allowed"),
        ({"conv": 8}, "conv: 8 bases; 1..7 are allowed"),
        ({"fc9": 4}, "fc9: no weight layer of this name; the model has conv, dense"),
    ],
)
def test_bad_options(bases: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        decompose(_graph(), bases=bases)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float) -> None:
    graph = _graph()
    layer = graph.weight_layers[1]
    layer.weight[3, 5] = value
    with pytest.raises(ModelError, match="dense: weights are not all finite"):
        decompose(graph, bases={"dense": 4})


@pytest.mark.real
def test_real_filters(shared: Path) -> None:
    """A slice of every AlexNet layer: monotone in B, not above the grid, close to known errors."""
    from bdcc.ir.onnx_import import load_onnx

    for layer in load_onnx(shared / "models" / "alexnet.onnx").weight_layers:
        weight = layer.weight.reshape(len(layer.weight), -1)[:8]
        energy = (weight.astype(np.float64) ** 2).sum(axis=1)
        errors = [_lost(weight, _decomposed(weight, bases)) / energy for bases in range(1, 6)]
        for fewer, more in pairwise(errors):
            assert (more <= fewer + 1e-14).all()
        assert errors[3].mean() < 0.025
        grid = _uniform_grid_error(weight[0], 4) / energy[0]
        assert errors[3][0] <= grid
