# SPDX-License-Identifier: 0BSD
"""What the search makes small: the cost of a layer with B bases and Q bits, by objective."""

from __future__ import annotations

from bdcc.approx.joint import Cost
from bdcc.errors import OptionError
from bdcc.ir.graph import Graph, macs

# Of the popcount kernels on one core with AVX-512; only their ratio matters to a choice.
BIT_MACS_PER_S = 0.9e12
READ_BYTES_PER_S = 12e9
SCALES_BYTES = 12  # per filter: scale, bias, and room for its coefficients
BYTE_OPS = 1e-9  # what a bit operation weighs beside a byte: it decides between equal sizes


def cost_of(graph: Graph, objective: str) -> Cost:
    """ops: B * Q * MACs. size: bytes of weights. latency: seconds, the longer of computing and of
    reading the weights once.
    """
    layers = {layer.name: layer for layer in graph.weight_layers}

    def ops(name: str, bases: int, bits: int) -> float:
        return float(bases * bits * macs(layers[name], graph.shapes))

    def size(name: str, bases: int, bits: int) -> float:
        weight = layers[name].weight
        return weight.size * bases / 8 + SCALES_BYTES * len(weight)

    match objective:
        case "ops":
            return ops
        case "size":
            return lambda name, b, q: size(name, b, q) + BYTE_OPS * ops(name, b, q)
        case "latency":
            return lambda name, b, q: max(
                ops(name, b, q) / BIT_MACS_PER_S, size(name, b, q) / READ_BYTES_PER_S
            )
        case _:
            raise OptionError(f"no objective '{objective}'", layer="--objective")
