# SPDX-License-Identifier: 0BSD
"""How large each tensor can get: a max-pool may run on codes where no NaN can arise."""

from __future__ import annotations

from typing import assert_never

import numpy as np

from bdcc.approx.model import QuantizedModel
from bdcc.approx.simulate import layer_constants
from bdcc.ir.graph import (
    AveragePool,
    Concat,
    Conv,
    Dense,
    Flatten,
    GlobalAveragePool,
    Lrn,
    MaxPool,
    Relu,
    Softmax,
    reads,
)


def magnitude_bounds(model: QuantizedModel) -> dict[str, float]:
    """Largest |value| that each tensor can take, inf where a NaN or an overflow cannot be
    excluded.
    """
    graph = model.graph
    bounds = {graph.input: np.inf}
    for node in graph.nodes:
        before = max(bounds[tensor] for tensor in reads(node))
        bound: float = np.inf
        match node:
            case Conv() | Dense():
                layer, quant = model.decomposed.layers.get(node.name), model.tensors.get(node.input)
                if layer is not None and quant is not None and not quant.dynamic:
                    scale, bias, _ = layer_constants(layer, quant)
                    bound = float(np.max(np.abs(scale).astype(np.float64) * 2.0**31 + np.abs(bias)))
            case Relu() | MaxPool() | Flatten() | Concat():
                bound = before
            case AveragePool() | GlobalAveragePool():
                bound = before * 2.0**20
            case Lrn():
                if node.bias > 0 and node.alpha >= 0:
                    bound = before * max(1.0, node.bias**-node.beta) * 2
            case Softmax():
                pass
            case _:
                assert_never(node)
        bounds[node.output] = bound if bound < 1e15 else np.inf
    return bounds
