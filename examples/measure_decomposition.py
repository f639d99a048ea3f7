# SPDX-License-Identifier: 0BSD
"""How well do integer coefficients approximate a model's weights?

    python examples/measure_decomposition.py MODEL.onnx [FILTERS]

For evenly spaced FILTERS (16) of each layer and B = 2..6: the relative squared error in percent of
the clipped uniform grid, of bdcc, and of real coefficients by plain alternating least squares (40
random starts of 200 rounds), as a Markdown table; then the time for the whole model at B = 4.
"""

from __future__ import annotations

import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bdcc.approx.decompose import decompose, decompose_filters, weight_error
from bdcc.approx.model import Decomposition
from bdcc.ir.graph import F32
from bdcc.ir.onnx_import import load_onnx

F64 = npt.NDArray[np.float64]


def uniform_error(row: F64, bases: int) -> float:
    """Least squared error of the levels s * (odd numbers), over 400 scales, each refitted."""
    levels = np.arange(-(2**bases) + 1, 2**bases, 2).astype(np.float64)
    nearest = (
        levels[np.searchsorted(scale * (levels[1:] + levels[:-1]) / 2, row)]
        for scale in np.abs(row).max() / (2**bases - 1) * np.geomspace(0.05, 1.1, 400)
    )
    return float(row @ row) - max(float(near @ row) ** 2 / float(near @ near) for near in nearest)


def real_error(row: F64, bases: int) -> float:
    """Least squared error with real coefficients: nearest level and least squares in turn."""
    rng = np.random.default_rng(1)
    signs = np.array(list(product((-1.0, 1.0), repeat=bases)))
    values = np.sort(row)
    prefix = np.concatenate([[0.0], np.cumsum(values)])
    least = np.inf
    for _ in range(40):
        coefficients = 2.0 ** -rng.uniform(0, bases, bases)
        coefficients *= values.std() / np.linalg.norm(coefficients)
        for _ in range(200):
            order = np.argsort(signs @ coefficients)
            levels = (signs @ coefficients)[order]
            inner = np.searchsorted(values, (levels[1:] + levels[:-1]) / 2, side="right")
            ends = np.concatenate([[0], inner, [len(values)]])
            chosen = signs[order]
            gram = (chosen * np.diff(ends)[:, None]).T @ chosen
            target = np.diff(prefix[ends]) @ chosen
            coefficients = np.linalg.lstsq(gram, target, rcond=None)[0]
        least = min(least, float(values @ values) - float(target @ coefficients))
    return least


def measure(weight: F32, bases: int) -> str:
    coefficients, signs, scale = decompose_filters(weight, bases=bases)
    found = Decomposition(coefficients=coefficients, signs=signs, scale=scale, bias=scale)
    rows = weight.astype(np.float64)
    energy = float((rows**2).sum())
    uniform, real = (
        sum(method(row, bases) for row in rows) / energy for method in (uniform_error, real_error)
    )
    return f"{100 * uniform:.3f} / {100 * weight_error(weight, found):.3f} / {100 * real:.3f}"


def main() -> None:
    graph = load_onnx(Path(sys.argv[1]))
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    print("| layer | " + " | ".join(f"B = {bases}" for bases in range(2, 7)) + " |")
    print("|---" * 6 + "|")
    for layer in graph.weight_layers:
        rows = np.linspace(0, len(layer.weight) - 1, min(count, len(layer.weight))).astype(int)
        weight = layer.weight.reshape(len(layer.weight), -1)[rows]
        cells = (measure(weight, bases) for bases in range(2, 7))
        print(f"| {layer.name} | " + " | ".join(cells) + " |", flush=True)
    begun, cpu = time.perf_counter(), time.process_time()
    model = decompose(graph, bases={layer.name: 4 for layer in graph.weight_layers})
    elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(f"\nwhole model, B = 4, 2 threads: {elapsed:.1f} s, {cpu:.1f} s of processor time")
    for layer in graph.weight_layers:
        error = weight_error(layer.weight, model.layers[layer.name])
        print(f"{layer.name}: {100 * error:.3f} %")


if __name__ == "__main__":
    main()
