# SPDX-License-Identifier: 0BSD
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from nets import conv

from bdcc.codegen.binary import FAMILIES, Family
from bdcc.codegen.costs import shipped_cost_table
from bdcc.codegen.targets import find_target
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import OptionError
from bdcc.ir.graph import Graph, make_graph
from bdcc.pipeline.models import outline
from bdcc.pipeline.workshop import Workshop

SHAPE = (3, 5, 5)


def workshop_in(folder: Path) -> Workshop:
    return Workshop(
        folder=folder / "candidates",
        name="net",
        target=find_target("generic"),
        cost_table=shipped_cost_table("generic"),
        family=None,
        preprocess=make_preprocess(shape=SHAPE),
        class_labels=(),
        seed=0,
        flash_bytes=None,
        ram_bytes=None,
    )


def test_a_layer_named_like_its_tensor_is_no_other_choice(tmp_path: Path) -> None:
    """Two bases at 3 bits and three at 2 bits are two models; each is written once."""
    node = conv(np.random.default_rng(0), "x", "x", 3, 8)
    graph = make_graph(
        name="g", input_name="x", input_shape=SHAPE, output=node.output, nodes=[node]
    )
    workshop = workshop_in(tmp_path)
    one, other = (
        outline(graph, {"x": bases}, {"x": bits}, dynamic=False) for bases, bits in ((2, 3), (3, 2))
    )
    folders = [workshop.project(model) for model in (one, other, one)]
    assert folders[0] == folders[2] != folders[1]
    assert sorted(tmp_path.glob("candidates/*")) == sorted(set(folders))
    sources = [(folder / "src" / "net_steps.h").read_text() for folder in folders]
    assert "2 bases, 3 bits" in sources[0]
    assert "3 bases, 2 bits" in sources[1]


def two_layers() -> Graph:
    rng = np.random.default_rng(0)
    nodes = [conv(rng, "one", "x", 3, 64), conv(rng, "two", "one_out", 64, 16)]
    return make_graph(
        name="g", input_name="x", input_shape=SHAPE, output=nodes[-1].output, nodes=nodes
    )


def test_ram_decides_between_kernels(tmp_path: Path) -> None:
    """Of each layer the fastest kernels with which the arena still fits, the other layers taking
    theirs with the least scratch; to the byte.
    """
    graph, workshop = two_layers(), workshop_in(tmp_path)
    names = [layer.name for layer in graph.weight_layers]
    model = outline(graph, dict.fromkeys(names, 3), {"x": 4, "one_out": 4}, dynamic=False)
    ns = {name: choice.ns for name, choice in workshop.kernels(model).items()}

    def arena(families: Mapping[str, Family]) -> int:
        return workshop._plan(model, families).arena_bytes

    all_arenas = {
        pair: arena(dict(zip(names, pair, strict=True))) for pair in product(FAMILIES, repeat=2)
    }
    least = min(all_arenas.values())
    smallest = dict(zip(names, min(all_arenas, key=all_arenas.__getitem__), strict=True))
    assert len(set(all_arenas.values())) > 2
    for ram in sorted({size + more for size in all_arenas.values() for more in (0, 63)}):
        plan = replace(workshop, ram_bytes=ram).plan(model)
        assert plan.arena_bytes <= ram
        assert plan.families == {
            name: min((f for f in FAMILIES if arena(smallest | {name: f}) <= ram), key=ns[name].get)
            for name in names
        }
    small = replace(workshop, ram_bytes=least - 1)
    with pytest.raises(OptionError, match=f"at least {least} bytes with any kernels, most in "):
        small.plan(model)
    assert not small.fits(model)


def test_ram_does_not_change_kernels_that_were_told(tmp_path: Path) -> None:
    graph = two_layers()
    names = [layer.name for layer in graph.weight_layers]
    model = outline(graph, dict.fromkeys(names, 3), {"x": 4, "one_out": 4}, dynamic=False)
    told = replace(workshop_in(tmp_path), family="lut")
    arena = told.plan(model).arena_bytes
    assert set(replace(told, ram_bytes=arena).plan(model).families.values()) == {"lut"}
    with pytest.raises(OptionError, match=f"{arena} bytes with --kernel lut, most in one; allowed"):
        replace(told, ram_bytes=arena - 1).plan(model)


def test_code_and_stack_count(tmp_path: Path) -> None:
    """To the byte; and what they leave of RAM decides between kernels."""
    graph = two_layers()
    names = [layer.name for layer in graph.weight_layers]
    model = outline(graph, dict.fromkeys(names, 3), {"x": 4, "one_out": 4}, dynamic=False)
    workshop = workshop_in(tmp_path)
    roomy = workshop.plan(model)
    flash = roomy.blob_bytes + 1000
    replace(workshop, flash_bytes=flash, code_bytes=1000).plan(model)
    said = f"{roomy.blob_bytes} bytes, most of them in two, and its code 1001; allowed are {flash}"
    with pytest.raises(OptionError, match=said):
        replace(workshop, flash_bytes=flash, code_bytes=1001).plan(model)
    tight = replace(workshop, ram_bytes=roomy.arena_bytes + 99, stack_bytes=100)
    assert replace(tight, stack_bytes=99).plan(model).families == roomy.families
    plan = tight.plan(model)
    assert plan.arena_bytes + 100 <= roomy.arena_bytes + 99
    with pytest.raises(OptionError, match="and its stack and handle 100; allowed are"):
        replace(tight, ram_bytes=1000).plan(model)
