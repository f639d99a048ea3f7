# SPDX-License-Identifier: 0BSD
"""What the search makes small: the cost of a layer with B bases and Q bits, by objective."""

from __future__ import annotations

import functools

from bdcc.approx.joint import Cost
from bdcc.codegen.binary import FAMILIES, Family
from bdcc.codegen.costs import CostTable
from bdcc.errors import OptionError
from bdcc.ir.graph import Graph, macs

SCALES_BYTES = 12  # per filter: scale, bias, and room for its coefficients
BYTE_OPS = 1e-9  # what a bit operation weighs beside a byte: it decides between equal sizes
NS_OPS = 1e-9  # and beside a nanosecond


def cost_of(
    graph: Graph, objective: str, table: CostTable, *, family: Family | None = None
) -> Cost:
    """ops: B * Q * MACs. size: bytes of weights. latency: nanoseconds by the table, of the family
    or the best one. Equals are told apart by their bit operations.
    """
    families = FAMILIES if family is None else (family,)
    layers = {layer.name: layer for layer in graph.weight_layers}

    def ops(name: str, bases: int, bits: int) -> float:
        return float(bases * bits * macs(layers[name], graph.shapes))

    def size(name: str, bases: int, bits: int) -> float:
        weight = layers[name].weight
        return weight.size * bases / 8 + SCALES_BYTES * len(weight)

    @functools.cache
    def latency(name: str, bases: int, bits: int) -> float:
        return table.least(layers[name], graph, bases=bases, bits=bits, families=families)

    match objective:
        case "ops":
            return ops
        case "size":
            return lambda name, b, q: size(name, b, q) + BYTE_OPS * ops(name, b, q)
        case "latency":
            return lambda name, b, q: latency(name, b, q) + NS_OPS * ops(name, b, q)
        case _:
            raise OptionError(f"no objective '{objective}'", layer="--objective")
