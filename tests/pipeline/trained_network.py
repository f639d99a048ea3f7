# SPDX-License-Identifier: 0BSD
"""A small network that can tell its twenty classes apart, and pictures of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bdcc.approx.evaluate import forward, nhwc, prepare
from bdcc.approx.model import DecomposedModel
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.options import CompileOptions

CLASSES, SIZE = 20, 12
POOL: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
PREPROCESS = ("--preset", "raw", "--mean", "120", "--std", "60")


@dataclass(frozen=True)
class Trained:
    """model, branched: ONNX; search, calib, holdout: .npz; folders: a folder per class."""

    model: Path
    branched: Path
    search: Path
    calib: Path
    holdout: Path
    folders: Path
    picture: Path

    @property
    def data(self) -> tuple[str, ...]:
        """Options that name the pictures and how they are preprocessed."""
        return (
            *("--data", str(self.search), "--calib", str(self.calib)),
            *("--holdout", str(self.holdout), *PREPROCESS),
        )


def draw_pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, 12, 12, 3] and labels: a pattern per class under noise."""
    patterns = np.random.default_rng(99).uniform(40, 200, (CLASSES, 3, 3, 3))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    images = np.kron(patterns[labels], np.ones((1, 4, 4, 1)))
    noisy = images * rng.uniform(0.8, 1.2, (count, 1, 1, 1)) + rng.normal(0, 60, images.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def write_model(path: Path, last: np.ndarray | None = None) -> None:
    """Two convs with pools (one grouped), two dense layers; last: as in `save`."""
    rng = np.random.default_rng(5)
    weights = [
        *(normal(rng, "w1", 8, 3, 3, 3), normal(rng, "b1", 8)),
        *(normal(rng, "w2", 16, 4, 3, 3), normal(rng, "b2", 16)),
        *(normal(rng, "w3", 96, 144), normal(rng, "b3", 96)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", **POOL),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], name="conv2", pads=[1] * 4, group=2),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], name="pool2", **POOL),
    ]
    save(path, nodes, weights, last)


def write_branched(path: Path, last: np.ndarray | None = None) -> None:
    """A map that two convs and a Concat read, which joins it with what they make of it; last: as in
    `save`.
    """
    rng = np.random.default_rng(6)
    weights = [
        *(normal(rng, "w1", 8, 3, 3, 3), normal(rng, "wa", 4, 8, 1, 1)),
        *(normal(rng, "wb", 4, 8, 3, 3), normal(rng, "w3", 96, 144), normal(rng, "b3", 96)),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], name="stem", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool1", **POOL),
        helper.make_node("Conv", ["p1", "wa"], ["ca"], name="one"),
        helper.make_node("Relu", ["ca"], ["ra"], name="relu_one"),
        helper.make_node("Conv", ["p1", "wb"], ["cb"], name="three", pads=[1] * 4),
        helper.make_node("Relu", ["cb"], ["rb"], name="relu_three"),
        helper.make_node("Concat", ["ra", "p1", "rb"], ["j"], name="join", axis=1),
        helper.make_node("MaxPool", ["j"], ["p2"], name="pool2", **POOL),
    ]
    save(path, nodes, weights, last)


def normal(rng: np.random.Generator, name: str, *shape: int) -> onnx.TensorProto:
    scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.05
    return numpy_helper.from_array(rng.normal(0, scale, shape).astype(np.float32), name)


def save(
    path: Path, nodes: list[Any], weights: list[onnx.TensorProto], last: np.ndarray | None
) -> None:
    """The nodes, and two dense layers that read their map p2; last: [97, outputs], the weights of
    the last one over its biases.
    """
    last = np.zeros((97, CLASSES)) if last is None else last
    nodes = [
        *nodes,
        helper.make_node("Flatten", ["p2"], ["v"], name="flatten"),
        helper.make_node("Gemm", ["v", "w3", "b3"], ["d3"], name="fc3", transB=1),
        helper.make_node("Relu", ["d3"], ["r3"], name="relu3"),
        helper.make_node("Gemm", ["r3", "w4", "b4"], ["y"], name="fc4", transB=1),
    ]
    weights = [
        *weights,
        numpy_helper.from_array(last[:-1].T.astype(np.float32).copy(), "w4"),
        numpy_helper.from_array(last[-1].astype(np.float32), "b4"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, last.shape[1]])],
        weights,
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def train(path: Path, write: Callable[..., None] = write_model) -> None:
    """Random features of all layers but the last, which is made by ridge regression."""
    write(path)
    graph = load_onnx(path)
    images, labels = draw_pictures(1200, seed=0)
    x = ((images.transpose(0, 3, 1, 2) - 120.0) / 60.0).astype(np.float32)
    network = prepare(DecomposedModel(graph=graph, layers={}))
    features = forward(network, graph.nodes[:-1], {"x": nhwc(x)}, {})["r3"]
    features = np.hstack([features, np.ones((len(features), 1), np.float32)]).astype(np.float64)
    target = 4.0 * np.eye(CLASSES)[labels]
    gram = features.T @ features + 20.0 * np.eye(features.shape[1])
    write(path, np.linalg.solve(gram, features.T @ target))


def options_for(trained: Trained, output: Path, **given: Any) -> CompileOptions:
    """As `Trained.data` has them."""
    defaults: dict[str, Any] = {
        "data": trained.search,
        "calib": trained.calib,
        "holdout": trained.holdout,
        "preset": "raw",
        "mean": (120.0,),
        "std": (60.0,),
        "metric": "top1",
    }
    return CompileOptions(output=output, **{**defaults, **given})
