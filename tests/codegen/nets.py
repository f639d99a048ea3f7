# SPDX-License-Identifier: 0BSD
"""Small seeded networks, as quantized models, for tests of the emitted C."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from bdcc.approx.decompose import decompose
from bdcc.approx.evaluate import calibrate
from bdcc.approx.model import QuantizedModel
from bdcc.approx.quantize import quantize_model
from bdcc.codegen.binary import Family
from bdcc.codegen.emit import emit
from bdcc.codegen.plan import DeploymentPlan, make_plan
from bdcc.codegen.targets import find_target
from bdcc.data.preprocess import make_preprocess
from bdcc.ir.graph import (
    F32,
    AveragePool,
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
    Shape,
    Softmax,
    make_graph,
    output_shape,
)


class Chain:
    """Appends nodes one behind the other; `at` goes on from an earlier tensor."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.start = shape
        self.shapes: dict[str, Shape] = {"x": shape}
        self.tensor = "x"
        self.nodes: list[Node] = []

    @property
    def shape(self) -> Shape:
        return self.shapes[self.tensor]

    def add(self, kind: type, **values: object) -> Chain:
        name = f"{kind.__name__.lower()}{len(self.nodes)}"
        node = kind(name=name, input=self.tensor, output=f"{name}.out", **values)
        self.shapes[node.output] = output_shape(node, self.shape)
        self.nodes.append(node)
        self.tensor = node.output
        return self

    def at(self, tensor: str) -> Chain:
        self.tensor = tensor
        return self

    def concat(self, *tensors: str) -> Chain:
        name = f"concat{len(self.nodes)}"
        node = Concat(name=name, inputs=tensors, output=f"{name}.out")
        self.shapes[node.output] = output_shape(node, *(self.shapes[t] for t in tensors))
        self.nodes.append(node)
        return self.at(node.output)

    def normal(self, *shape: int) -> F32:
        spread = np.sqrt(2.0 / max(1, int(np.prod(shape[1:]))))
        return (self.rng.standard_normal(shape) * spread).astype(np.float32)

    def conv(
        self, channels: int, kernel: tuple[int, int], *, groups: int = 1, **rest: object
    ) -> Chain:
        weight = self.normal(channels, self.shape[0] // groups, *kernel)
        bias = self.normal(channels) * np.float32(0.1)
        return self.add(Conv, weight=weight, bias=bias, groups=groups, **rest)

    def dense(self, outputs: int) -> Chain:
        weight, bias = self.normal(outputs, self.shape[0]), self.normal(outputs)
        return self.add(Dense, weight=weight, bias=bias)

    def graph(self, name: str = "net") -> Graph:
        return make_graph(
            name=name, input_name="x", input_shape=self.start, output=self.tensor, nodes=self.nodes
        )


def alexnet_like(*, lrn_first: bool = False, seed: int = 0) -> Graph:
    """Every step kind of a decomposed AlexNet in a few thousand weights."""
    chain = Chain((3, 23, 21), seed).conv(16, (5, 3), strides=(2, 1)).add(Relu)
    pool = {"kernel": (3, 3), "strides": (2, 2)}
    if lrn_first:
        chain.add(Lrn, size=5, alpha=1e-2).add(MaxPool, **pool, ceil_mode=True)
    else:
        chain.add(MaxPool, **pool).add(Lrn, size=4, alpha=1e-2, bias=2.0)
    chain.conv(24, (3, 3), groups=2, pads=(1, 1, 1, 1)).add(Relu)
    chain.conv(20, (3, 2), groups=2, pads=(1, 0, 2, 1), dilations=(1, 2)).add(Relu)
    chain.add(MaxPool, kernel=(2, 2), pads=(0, 0, 1, 1)).add(Flatten)
    return chain.dense(33).add(Relu).dense(11).add(Softmax).graph()


def every_float_step(*, seed: int = 0) -> Graph:
    chain = Chain((2, 13, 12), seed).add(
        AveragePool, kernel=(2, 3), pads=(1, 1, 0, 1), count_include_pad=True
    )
    chain.conv(6, (3, 3), groups=2, strides=(1, 2), pads=(1, 1, 1, 1)).add(Relu).add(Relu)
    chain.add(Lrn, size=3, beta=1.25, bias=1.0).add(
        MaxPool, kernel=(3, 2), ceil_mode=True, strides=(2, 2)
    )
    chain.add(Softmax).conv(9, (1, 1)).add(
        AveragePool, kernel=(2, 2), ceil_mode=True, strides=(2, 1)
    )
    return chain.add(Flatten).add(Relu).add(Softmax).dense(7).graph()


def random_chain(seed: int, *, layers: int = 6) -> tuple[Graph, list[int], list[int]]:
    """A chain of random convolutions and pools, with random bases and bits for each weight
    layer.
    """
    rng = np.random.default_rng(seed)
    chain = Chain(
        (int(rng.integers(1, 5)), int(rng.integers(9, 24)), int(rng.integers(9, 24))), seed
    )
    for _ in range(layers):
        depth, height, width = chain.shape
        kernel = (int(rng.integers(1, min(5, height) + 1)), int(rng.integers(1, min(5, width) + 1)))
        dilations = tuple(int(rng.integers(1, 3)) if (k - 1) * 2 < side else 1
                          for k, side in zip(kernel, (height, width), strict=True))  # fmt: skip
        groups = int(rng.choice([g for g in (1, 1, 2, 3) if depth % g == 0]))
        pads = tuple(int(p) for p in rng.integers(0, 3, 4))
        strides = (
            (int(rng.integers(1, 3)), int(rng.integers(1, 3))) if min(height, width) > 8 else (1, 1)
        )
        chain.conv(groups * int(rng.integers(1, 14)), kernel, groups=groups, pads=pads,
        strides=strides,
                   dilations=dilations)  # fmt: skip
        if rng.random() < 0.7:
            chain.add(Relu)
        if rng.random() < 0.4 and min(chain.shape[1:]) > 5:
            chain.add(MaxPool, kernel=(2, 3), strides=(1, 2), pads=(0, 1, 1, 0))
        if rng.random() < 0.3:
            chain.add(Lrn, size=int(rng.integers(1, 6)), alpha=0.1)
    chain.add(GlobalAveragePool) if rng.random() < 0.3 else None
    chain.add(Flatten).dense(int(rng.integers(1, 20)))
    count = len(chain.graph().weight_layers)
    bases = [int(b) for b in rng.integers(1, 8, count)]
    bits = [int(q) for q in rng.integers(1, 9, count)]
    return chain.graph(), bases, bits


def fire(chain: Chain, squeeze: int, one: int, three: int) -> Chain:
    """SqueezeNet's module: two layers read the squeezed map, and are joined."""
    chain.conv(squeeze, (1, 1)).add(Relu)
    squeezed = chain.tensor
    left = chain.conv(one, (1, 1)).add(Relu).tensor
    right = chain.at(squeezed).conv(three, (3, 3), pads=(1, 1, 1, 1)).add(Relu).tensor
    return chain.concat(left, right)


def squeezenet_like(*, seed: int = 0) -> Graph:
    """Channel counts that fill no word or byte; ceil_mode; a padded 1x1 layer; average; Softmax."""
    pool = {"kernel": (3, 3), "strides": (2, 2), "ceil_mode": True}
    chain = Chain((3, 27, 25), seed).conv(13, (5, 5), strides=(2, 2)).add(Relu).add(MaxPool, **pool)
    fire(chain, 5, 9, 7)
    fire(chain, 6, 12, 11).add(MaxPool, **pool)
    fire(chain, 7, 33, 31).conv(10, (1, 1), pads=(1, 1, 1, 1)).add(Relu)
    return chain.add(GlobalAveragePool).add(Flatten).add(Softmax).graph()


def random_branches(seed: int, *, joins: int = 4) -> tuple[Graph, list[int], list[int]]:
    """Random maps of one size joined in any way: layers, pools, maps with other readers, joined
    maps, the picture, the same twice. Random bases (0: float) and bits for each weight layer.

    Even seeds: all layers are decomposed, and nothing but a Relu or a pool is between them.
    """
    rng, coded = np.random.default_rng(seed), seed % 2 == 0
    shape = (int(rng.integers(1, 5)), int(rng.integers(6, 12)), int(rng.integers(6, 12)))
    chain, alike = Chain(shape, seed), ["x"]
    kinds = ["conv", "conv", "conv pool", "pair"]
    if not coded:
        kinds += ["conv", "pool", "mean", "relu", "lrn", "softmax", "as is"]

    def branch(tensor: str, kind: str) -> str:
        chain.at(tensor)
        match kind:
            case "conv" | "conv pool":
                groups = int(rng.choice([g for g in (1, 1, 2, 3) if chain.shape[0] % g == 0]))
                side, depth = int(rng.choice([1, 3])), groups * int(rng.integers(1, 12))
                chain.conv(depth, (side, side), groups=groups, pads=(side // 2,) * 4)
                if rng.random() < 0.7:
                    chain.add(Relu)
                if kind == "conv pool":
                    chain.add(MaxPool, kernel=(3, 3), pads=(1, 1, 1, 1))
            case "pair":
                chain.concat(branch(tensor, "conv"), branch(tensor, "conv pool"))
            case "pool":
                chain.add(MaxPool, kernel=(3, 3), pads=(1, 1, 1, 1))
            case "mean":
                chain.add(AveragePool, kernel=(3, 1), pads=(1, 0, 1, 0))
            case "relu":
                chain.add(Relu)
            case "lrn":
                chain.add(Lrn, size=3, alpha=0.1)
            case "softmax":
                chain.add(Softmax)
        return chain.tensor

    for _ in range(joins):
        start = alike[-1]
        joined = [branch(start, str(rng.choice(kinds))) for _ in range(int(rng.integers(2, 4)))]
        if rng.random() < (0.1 if coded else 0.4):
            joined.append(str(rng.choice([*alike, *joined])))
        chain.concat(*joined)
        alike += [*joined, chain.tensor]
        if rng.random() < 0.3:
            alike.append(chain.add(Relu).tensor)
        if rng.random() < 0.3 and min(chain.shape[1:]) > 3:
            alike = [chain.add(MaxPool, kernel=(2, 2), strides=(2, 1), ceil_mode=True).tensor]
    end = rng.random()
    if end < 0.3:
        joined_map, mean = chain.tensor, chain.add(GlobalAveragePool).add(Flatten).tensor
        flat = chain.at(joined_map).add(Flatten).tensor
        chain.concat(*(mean, flat, mean)[: int(rng.integers(2, 4))])
    elif end < 0.8:
        chain.add(Flatten)
    if len(chain.shape) == 1:
        chain.dense(int(rng.integers(1, 20)))
    count = len(chain.graph().weight_layers)
    bases = [int(b) for b in rng.integers(int(coded), 8, count)]
    bits = [int(q) for q in rng.integers(1, 9, count)]
    return chain.graph(), bases, bits


class Noise:
    """Seeded pictures: a PictureSource."""

    def __init__(self, shape: Shape, count: int, seed: int) -> None:
        self.images = (
            np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
        )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> F32:
        return self.images[np.asarray(indices, dtype=np.intp)]


def quantized(
    graph: Graph, *, bases: Sequence[int] | int, bits: Sequence[int] | int, mode: str = "clip"
) -> QuantizedModel:
    names = [node.name for node in graph.weight_layers]
    count = len(names)
    chosen = [bases] * count if isinstance(bases, int) else list(bases)
    levels = [bits] * count if isinstance(bits, int) else list(bits)
    layers = {name: b for name, b in zip(names, chosen, strict=True) if b}  # 0 bases: stays float
    model = decompose(graph, bases=layers)
    stats = calibrate(model, Noise(graph.shapes[graph.input], 6, 1))
    wanted = {name: q for name, q in zip(names, levels, strict=True) if name in layers}
    return quantize_model(model, stats=stats, bits=wanted, mode=mode)  # type: ignore[arg-type]


def write_project(
    model: QuantizedModel,
    folder: Path,
    *,
    name: str = "net",
    target: str = "host",
    families: Sequence[Family] = ("bytedot", "lut", "popcount"),
) -> DeploymentPlan:
    """Plan and emit into a new folder, with adversarial golden pictures among random ones.
    families: of the decomposed layers, taken in turn.
    """
    shape = model.graph.shapes[model.graph.input]
    preprocess = make_preprocess(shape=shape, preset="unit")
    plan = make_plan(
        model,
        name=name,
        target=find_target(target),
        preprocess=preprocess,
        families=dict(zip(model.decomposed.layers, cycle(families), strict=False)),
    )
    folder.mkdir(parents=True)
    noise = Noise(shape, 3, 2).images
    strange = noise[0].copy()
    strange.reshape(-1)[::7] = np.nan
    strange.reshape(-1)[::11] = np.inf
    strange.reshape(-1)[::13] = -3e38
    emit(
        plan, folder, pictures=np.stack([*noise, np.zeros_like(strange), strange, noise[0] * 1e30])
    )
    return plan
