# SPDX-License-Identifier: 0BSD
"""Tiny seeded networks and pictures for the tests of the oracle, the evaluator and the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bdcc.approx.model import COEFFICIENT_CAP, Decomposition
from bdcc.ir.graph import (
    F32,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Graph,
    Lrn,
    MaxPool,
    Node,
    Relu,
    Softmax,
    make_graph,
)


def conv(rng: np.random.Generator, name: str, input: str, ci: int, co: int, **options) -> Conv:
    kernel, groups = options.pop("kernel", (3, 3)), options.get("groups", 1)
    weight = rng.normal(size=(co, ci // groups, *kernel)) / np.sqrt(
        ci // groups * np.prod(kernel) / 2
    )
    return Conv(
        name=name,
        input=input,
        output=f"{name}_out",
        weight=weight.astype(np.float32),
        bias=rng.normal(scale=0.02, size=co).astype(np.float32),
        **options,
    )


def dense(rng: np.random.Generator, name: str, input: str, k: int, n: int) -> Dense:
    weight = rng.normal(size=(n, k)) * 3 / np.sqrt(k)
    return Dense(
        name=name,
        input=input,
        output=f"{name}_out",
        weight=weight.astype(np.float32),
        bias=rng.normal(scale=0.02, size=n).astype(np.float32),
    )


def miniature_alexnet(*, convs: int = 3, seed: int = 1) -> Graph:
    """conv-relu-pool-LRN, grouped convs, two dense layers, Softmax: 3x13x13 -> 5 classes."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [
        conv(rng, "conv1", "x", 3, 8, strides=(2, 2), pads=(1, 1, 1, 1)),
        Relu(name="relu1", input="conv1_out", output="a1"),
        MaxPool(name="pool1", input="a1", output="p1", kernel=(3, 3), strides=(1, 1)),
        Lrn(name="norm1", input="p1", output="v1", size=5, alpha=0.1, beta=0.75, bias=2.0),
    ]
    for i in range(2, convs + 1):
        nodes += [
            conv(rng, f"conv{i}", f"v{i - 1}", 8, 8, pads=(1, 1, 1, 1), groups=2),
            Relu(name=f"relu{i}", input=f"conv{i}_out", output=f"v{i}"),
        ]
    nodes += [
        MaxPool(name="pool2", input=f"v{convs}", output="p2", kernel=(2, 2), strides=(2, 2)),
        Flatten(name="flatten", input="p2", output="f"),
        dense(rng, "fc1", "f", 32, 12),
        Relu(name="relu_fc1", input="fc1_out", output="f1"),
        dense(rng, "fc2", "f1", 12, 5),
        Softmax(name="prob", input="fc2_out", output="y"),
    ]
    return make_graph(name="tiny", input_name="x", input_shape=(3, 13, 13), output="y", nodes=nodes)


def miniature_squeezenet(*, seed: int = 3) -> Graph:
    """Two fire modules, the second joined with what it read, average over the map: 5 classes."""
    rng = np.random.default_rng(seed)
    nodes: list[Node] = [
        conv(rng, "conv1", "x", 3, 8, strides=(2, 2)),
        Relu(name="relu1", input="conv1_out", output="a1"),
        MaxPool(name="pool1", input="a1", output="v1", kernel=(3, 3)),
    ]
    for i, depth in ((2, 8), (3, 10)):
        nodes += [
            conv(rng, f"squeeze{i}", f"v{i - 1}", depth, 5, kernel=(1, 1)),
            Relu(name=f"relu_s{i}", input=f"squeeze{i}_out", output=f"s{i}"),
            conv(rng, f"one{i}", f"s{i}", 5, 4, kernel=(1, 1)),
            Relu(name=f"relu_o{i}", input=f"one{i}_out", output=f"o{i}"),
            conv(rng, f"three{i}", f"s{i}", 5, 6, pads=(1, 1, 1, 1)),
            Relu(name=f"relu_t{i}", input=f"three{i}_out", output=f"t{i}"),
            Concat(name=f"fire{i}", inputs=(f"o{i}", f"t{i}"), output=f"v{i}"),
        ]
    nodes += [
        Concat(name="all", inputs=("v3", "s3", "v2", "s3"), output="v4"),
        Flatten(name="flatten", input="v4", output="f"),
        GlobalAveragePool(name="gap", input="v4", output="g"),
        Flatten(name="flatten_g", input="g", output="h"),
        Concat(name="both", inputs=("f", "h"), output="b"),
        dense(rng, "fc", "b", 510, 5),
    ]
    return make_graph(
        name="fire", input_name="x", input_shape=(3, 13, 13), output="fc_out", nodes=nodes
    )


def random_layer(rng: np.random.Generator, shape: Sequence[int], bases: int) -> Decomposition:
    """Any decomposition of a layer of this weight shape: not a good one."""
    n, k = shape[0], int(np.prod(shape[1:]))
    top = COEFFICIENT_CAP[bases] // bases
    return Decomposition(
        coefficients=rng.integers(-top, top + 1, size=(n, bases)).astype(np.int16),
        signs=rng.integers(0, 1 << bases, size=(n, k)).astype(np.uint8),
        scale=rng.uniform(0.01, 0.02, size=n).astype(np.float32),
        bias=rng.normal(size=n).astype(np.float32),
    )


@dataclass(frozen=True)
class Noise:
    """Picklable pictures: float32 [C, H, W] each, made from its index or its own of `seeds`."""

    count: int
    shape: tuple[int, int, int] = (3, 13, 13)
    seeds: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> F32:
        pictures = [
            np.random.default_rng(seed).normal(size=self.shape).astype(np.float32)
            for seed in self._seeds(indices)
        ]
        return np.stack(pictures)

    def portable(self, indices: Sequence[int]) -> Noise:
        return Noise(len(indices), self.shape, tuple(self._seeds(indices)))

    def _seeds(self, indices: Sequence[int]) -> list[int]:
        return [int(i) if self.seeds is None else self.seeds[i] for i in indices]
