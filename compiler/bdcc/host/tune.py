# SPDX-License-Identifier: 0BSD
"""Measures what kernels cost, here or on a board: a network of small layers, one for each (bases,
bits), is emitted, built and timed step by step, once with each family.

Convolutions have three shapes, in which products, weights and codes weigh differently; three costs
that are not negative and fit their times best become the table's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from bdcc.approx.model import (
    COEFFICIENT_CAP,
    DecomposedModel,
    Decomposition,
    QuantizedModel,
    TensorQuant,
)
from bdcc.codegen.binary import FAMILIES, Family
from bdcc.codegen.costs import Key, Kind, Parts, work_of
from bdcc.codegen.emit import emit_sources
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import ISAS, Target
from bdcc.files import temporary_folder
from bdcc.host.library import Library
from bdcc.host.probes import pinned
from bdcc.ir.graph import (
    Conv,
    Dense,
    Flatten,
    Graph,
    MaxPool,
    Node,
    WeightLayer,
    make_graph,
    output_shape,
)

Progress = Callable[[str, int, int], None]
Measure = Callable[[Path, str], Mapping[str, float]]
PAIRS = tuple(itertools.product(range(1, 8), range(1, 9)))  # (bases, bits)
ROUNDS = (3, 15)  # of the whole network: at least, at most
BUDGET_S = 6.0
FILTERS, SIDE, SHORT = 128, 13, 3  # of the convolutions; most products, most weights
WIDE = 64, 28  # filters and side where the codes weigh most
DENSE = 1536  # inputs and outputs; all dense layers together are larger than caches are


def tune(
    isa: str,
    *,
    target: Target | None = None,
    measure: Measure | None = None,
    progress: Progress | None = None,
) -> dict[Key, Parts]:
    """Costs of all kernels with an instruction set, in nanoseconds. target: that is tuned for,
    None: this machine; measure: builds a project and tells the least nanoseconds of each of its
    steps by layer, None: here.
    """
    graph = _network()
    model = _quantized(graph)
    ns: dict[Key, Parts] = {}
    isas = ISAS[:1] if isa == ISAS[0] else (ISAS[0], isa)
    name = f"tune-{isa}"
    if target is None:
        cflags = "-O2" if isa == ISAS[0] else "-O3"
        target = Target(name=name, description="", cflags=cflags, isas=isas)
    else:
        target = replace(target, name=name, isas=isas)
    for index, family in enumerate(FAMILIES):
        with temporary_folder() as folder:
            if progress is not None:
                progress(f"kernels on {isa}", index, len(FAMILIES))
            plan = make_plan(
                model,
                name="kernels",
                target=target,
                families=dict.fromkeys(model.decomposed.layers, family),
            )
            emit_sources(plan, Path(folder))
            times = (measure or _measure_here)(Path(folder), isa)
        ns |= _costs(graph, family, isa, times)
    return ns


def _measure_here(project: Path, isa: str) -> dict[str, float]:
    with Library.open(project, isa=isa) as library, pinned():
        return _times(library)


def _network() -> Graph:
    """Chains of layers named <kind><shape>_b<bases>q<bits>."""
    nodes: list[Node] = []
    shape: tuple[int, ...] = (WIDE[0], WIDE[1], WIDE[1])
    tensor = "x"

    def add(node: Node) -> None:
        nonlocal tensor, shape
        nodes.append(node)
        tensor, shape = node.output, output_shape(node, shape)

    def convs(name: str, filters: int, kernel: int) -> None:
        for bases, bits in PAIRS:
            layer = f"{name}_b{bases}q{bits}"
            pads = (kernel // 2,) * 4
            weight = np.broadcast_to(np.float32(0), (filters, shape[0], kernel, kernel))
            add(
                Conv(
                    name=layer, input=tensor, output=f"{layer}.out", weight=weight,
                    bias=np.zeros(filters, np.float32), pads=pads,
                )
            )  # fmt: skip

    def shrink(side: int) -> None:
        name = f"to{side}"
        step = shape[1] - side + 1
        add(MaxPool(name=name, input=tensor, output=f"{name}.out", kernel=(step, step)))

    convs("conv_codes", WIDE[0], 1)
    shrink(SIDE)
    convs("conv_products", FILTERS, 3)
    shrink(SHORT)
    convs("conv_weights", FILTERS, 3)
    add(Flatten(name="flat", input=tensor, output="flat.out"))
    for bases, bits in PAIRS:
        layer = f"dense_b{bases}q{bits}"
        weight = np.broadcast_to(np.float32(0), (DENSE, shape[0]))
        bias = np.zeros(DENSE, np.float32)
        add(Dense(name=layer, input=tensor, output=f"{layer}.out", weight=weight, bias=bias))
    return make_graph(
        name="kernels", input_name="x", input_shape=(WIDE[0], WIDE[1], WIDE[1]), output=tensor,
        nodes=nodes,
    )  # fmt: skip


def _pair(layer: str) -> tuple[int, int]:
    bases, bits = layer.rpartition("_b")[2].split("q")
    return int(bases), int(bits)


def _quantized(graph: Graph) -> QuantizedModel:
    """Random signs, coefficients as large as they may be, codes of all sizes."""
    rng = np.random.default_rng(0)
    layers, tensors = {}, {}
    for layer in graph.weight_layers:
        bases, bits = _pair(layer.name)
        filters = layer.weight.shape[0]
        fan_in = layer.weight[0].size
        each = COEFFICIENT_CAP[bases] // bases
        layers[layer.name] = Decomposition(
            coefficients=np.full((filters, bases), each, np.int16),
            signs=rng.integers(0, 1 << bases, (filters, fan_in), dtype=np.uint8),
            scale=np.full(filters, 1 / (each * np.sqrt(fan_in * bases)), np.float32),
            bias=np.ones(filters, np.float32),
        )
        tensors[layer.input] = TensorQuant(bits=bits, delta=np.float32(4 / (1 << bits)))
    return QuantizedModel(decomposed=DecomposedModel(graph=graph, layers=layers), tensors=tensors)


def _times(library: Library) -> dict[str, float]:
    """The least nanoseconds of each step, by layer, less what a call of no step takes."""
    x = np.random.default_rng(0).normal(size=library.facts.input).astype(np.float32)
    output, arena = np.empty(library.facts.outputs, np.float32), library.new_arena()
    count = library.step_count
    pieces = [*((i, i + 1) for i in range(count)), (0, 0)]
    least = np.full(count + 1, np.inf)
    began = time.perf_counter()
    for done in range(ROUNDS[1]):
        if done >= ROUNDS[0] and time.perf_counter() - began > BUDGET_S:
            break
        for index, (first, last) in enumerate(pieces):
            start = time.perf_counter_ns()
            library.run_steps(x, output, first, last, arena=arena)
            least[index] = min(least[index], time.perf_counter_ns() - start)
    return {
        library.step_name(index): max(float(least[index] - least[count]), 1.0)
        for index in range(count)
    }


def _costs(graph: Graph, family: Family, isa: str, times: Mapping[str, float]) -> dict[Key, Parts]:
    by_pair: dict[tuple[Kind, int, int], list[WeightLayer]] = {}
    for layer in graph.weight_layers:
        kind: Kind = "conv" if isinstance(layer, Conv) else "dense"
        by_pair.setdefault((kind, *_pair(layer.name)), []).append(layer)
    return {
        (family, kind, bases, bits): _fit(
            np.array(
                [work_of(layer, graph, family=family, isa=isa, bits=bits)[:3] for layer in layers]
            ),
            np.array([times[layer.name] for layer in layers]),
        )
        for (kind, bases, bits), layers in by_pair.items()
    }


def _fit(work: np.ndarray, times: np.ndarray) -> Parts:
    """Costs c >= 0 with the least relative error of work @ c: of every subset of parts, whose least
    squares have no negative cost, the best one."""
    scaled = work / times[:, None]
    best, found = np.inf, np.zeros(work.shape[1])
    for parts in itertools.product((False, True), repeat=work.shape[1]):
        chosen = np.flatnonzero(parts)
        if not len(chosen):
            continue
        costs = np.linalg.lstsq(scaled[:, chosen], np.ones(len(times)), rcond=None)[0]
        error = float(np.square(scaled[:, chosen] @ costs - 1).sum())
        if (costs >= 0).all() and error < best - 1e-12:
            best, found = error, np.zeros(work.shape[1])
            found[chosen] = costs
    return tuple(float(cost) for cost in found)
