# SPDX-License-Identifier: 0BSD
from __future__ import annotations

from pathlib import Path

import numpy as np
from nets import conv

from bdcc.codegen.costs import shipped_cost_table
from bdcc.codegen.targets import find_target
from bdcc.data.preprocess import make_preprocess
from bdcc.ir.graph import make_graph
from bdcc.pipeline.models import outline
from bdcc.pipeline.workshop import Workshop

SHAPE = (3, 5, 5)


def test_a_layer_named_like_its_tensor_is_no_other_choice(tmp_path: Path) -> None:
    """Two bases at 3 bits and three at 2 bits are two models; each is written once."""
    node = conv(np.random.default_rng(0), "x", "x", 3, 8)
    graph = make_graph(
        name="g", input_name="x", input_shape=SHAPE, output=node.output, nodes=[node]
    )
    workshop = Workshop(
        folder=tmp_path / "candidates",
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
    one, other = (
        outline(graph, {"x": bases}, {"x": bits}, dynamic=False) for bases, bits in ((2, 3), (3, 2))
    )
    folders = [workshop.project(model) for model in (one, other, one)]
    assert folders[0] == folders[2] != folders[1]
    assert sorted(tmp_path.glob("candidates/*")) == sorted(set(folders))
    sources = [(folder / "src" / "net_steps.h").read_text() for folder in folders]
    assert "2 bases, 3 bits" in sources[0]
    assert "3 bases, 2 bits" in sources[1]
