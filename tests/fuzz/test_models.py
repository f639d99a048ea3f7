# SPDX-License-Identifier: 0BSD
"""Damaged models end in a graph that everything behind it can take, or in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_reference import chain

from bdcc.approx.simulate import run_exact
from bdcc.codegen.emit import emit
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import find_target
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import ModelError
from bdcc.ir.graph import Graph, macs
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.models import outline
from bdcc.report.inspection import inspect_graph, inspection_text
from codegen.nets import quantized
from fuzz.driver import run_mutants
from fuzz.mutate_onnx import EXTERNAL, bases, external_data, mutant

SMALL = 1 << 20  # elements and multiply-adds of what is also quantized and emitted
EMITTED = 5  # one in so many: it takes longest


def through(path: Path, folder: Path | None) -> None:
    """As far as `bdcc inspect` and the first plan of a compilation go; small ones are quantized and
    emitted into `folder`.
    """
    graph = load_onnx(path)
    shown = inspect_graph(graph)
    json.dumps(shown)
    inspection_text(shown)
    layers = {layer.name: 1 for layer in graph.weight_layers}
    bits = {layer.input: 2 for layer in graph.weight_layers}
    plan_of(graph, layers, bits)
    size = sum(math.prod(shape) for shape in graph.shapes.values())
    if folder and max(size, sum(macs(node, graph.shapes) for node in graph.nodes)) < SMALL:
        emit_small(graph, folder)


def plan_of(graph: Graph, layers: dict[str, int], bits: dict[str, int]) -> None:
    model = outline(graph, layers, bits, dynamic=False)
    make_plan(model, name="net", target=find_target("host"))


def emit_small(graph: Graph, folder: Path) -> None:
    model = quantized(graph, bases=1, bits=2)
    shape = graph.shapes[graph.input]
    x = np.linspace(-1, 1, math.prod(shape), dtype=np.float32).reshape(shape)
    run_exact(model, x)
    preprocess = make_preprocess(shape=shape, preset="unit") if shape[0] in (1, 3) else None
    plan = make_plan(model, name="net", target=find_target("host"), preprocess=preprocess)
    folder.mkdir()
    emit(plan, folder, pictures=x[None])


def mutants(seeds: range, folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    (folder / EXTERNAL).write_bytes(external_data())
    for seed in seeds:
        path = folder / "m.onnx"
        path.write_bytes(mutant(seed))
        out = folder / str(seed) if seed % EMITTED == 0 else None
        yield f"mutant({seed})", partial(through, path, out)


@pytest.mark.parametrize("index", range(7))
def test_what_is_damaged_is_whole_before(index: int, tmp_path: Path) -> None:
    (tmp_path / EXTERNAL).write_bytes(external_data())
    onnx.save(bases()[index], tmp_path / "m.onnx")
    through(tmp_path / "m.onnx", tmp_path / "out")
    assert (tmp_path / "out" / "host" / "golden.bin").is_file()


def test_mutants_differ_and_some_are_taken(tmp_path: Path) -> None:
    (tmp_path / EXTERNAL).write_bytes(external_data())
    files = [mutant(seed) for seed in range(100)]
    assert len(set(files)) > 90
    assert files == [mutant(seed) for seed in range(100)]
    taken = 0
    for file in files:
        (tmp_path / "m.onnx").write_bytes(file)
        try:
            load_onnx(tmp_path / "m.onnx")
            taken += 1
        except ModelError:
            pass
    assert 15 < taken < 80


def test_150_mutants(tmp_path: Path) -> None:
    assert run_mutants(mutants(range(150), tmp_path)) == []


@pytest.mark.slow
def test_3000_mutants(tmp_path: Path) -> None:
    assert run_mutants(mutants(range(150, 3150), tmp_path)) == []


def test_powers_of_negative_numbers_are_nan_and_no_warning(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "c0"], ["a"]),
        helper.make_node("LRN", ["a"], ["y"], size=3, bias=-1.0),
    ]
    model = chain(nodes, (1, 3, 5, 5), [np.ones((2, 3, 1, 1), np.float32)])
    onnx.save(model, tmp_path / "m.onnx")
    through(tmp_path / "m.onnx", tmp_path / "out")
    assert (tmp_path / "out" / "host" / "golden.bin").is_file()
