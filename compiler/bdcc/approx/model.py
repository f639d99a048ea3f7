# SPDX-License-Identifier: 0BSD
"""The two values between the float graph and the C: decomposed weights, then quantized activations.

`save_oracle` and `load_oracle` keep a QuantizedModel as host/oracle.npz, the canonical parameters
that `bdcc verify` judges the built library by.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from bdcc.errors import DataError
from bdcc.ir.graph import F32, Conv, Dense, Graph, Node, make_graph

U8 = npt.NDArray[np.uint8]
I8 = npt.NDArray[np.int8]

# Largest sum of |c| over one filter's bases; docs/decomposition.md has what the caps cost.
COEFFICIENT_CAP = {1: 31, 2: 31, 3: 31, 4: 31, 5: 63, 6: 127, 7: 127}
MAX_BASES = 7
MAX_BITS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """w[n] ~ scale[n] * sum_b coefficients[n, b] * m[n, b], m in {-1, +1}.

    coefficients: int16 [N, B], sum |c| at most COEFFICIENT_CAP[B]; signs: uint8 [N, K], K in ONNX
    order (CI/groups, KH, KW), bit b set where m[n, b] is +1; scale: float32 [N], not negative;
    bias: float32 [N], the layer's (corrected by methods that do so).
    """

    coefficients: npt.NDArray[np.int16]
    signs: U8
    scale: F32
    bias: F32

    @property
    def bases(self) -> int:
        return int(self.coefficients.shape[1])

    def integer_weights(self) -> I8:
        """int8 [N, K]: sum_b c[n, b] * m[n, b]."""
        patterns = np.arange(1 << self.bases)
        plus_minus = 2 * ((patterns[:, None] >> np.arange(self.bases)) & 1) - 1  # [2^B, B]
        levels = (self.coefficients.astype(np.int64) @ plus_minus.T).astype(np.int8)  # [N, 2^B]
        weights = np.empty(self.signs.shape, np.int8)
        for row, pattern, out in zip(levels, self.signs, weights, strict=True):
            np.take(row, pattern, out=out)  # row by row: indices as wide as pointers stay in cache
        return weights

    def weights(self) -> F32:
        """float32 [N, K]: scale * integer weights."""
        return self.scale[:, None] * self.integer_weights().astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecomposedModel:
    """layers: decomposition of each weight layer by name; one that is missing stays float."""

    graph: Graph
    layers: Mapping[str, Decomposition]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorQuant:
    """How a tensor becomes codes: q = clamp(rint(x * r) + z, 0, 2^bits - 1), x ~ delta * (q - z).

    r = f32(1 / delta). delta is None for a dynamic range: delta and z then follow from each
    picture's own minimum and maximum.
    """

    bits: int
    delta: np.float32 | None
    zero_point: int = 0

    @property
    def dynamic(self) -> bool:
        return self.delta is None

    @property
    def top(self) -> int:
        """Largest code."""
        return (1 << self.bits) - 1

    @property
    def reciprocal(self) -> np.float32:
        assert self.delta is not None, "a dynamic range has no fixed step"
        return np.float32(1.0) / np.float32(self.delta)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantizedModel:
    """tensors: how the input tensor of every decomposed layer is quantized, by tensor name."""

    decomposed: DecomposedModel
    tensors: Mapping[str, TensorQuant]

    @property
    def graph(self) -> Graph:
        return self.decomposed.graph


ORACLE_FORMAT = 1


def save_oracle(model: QuantizedModel, path: Path) -> None:
    """Write host/oracle.npz: the whole model, not packed for any target, in reproducible bytes.

    `model.json` describes graph, ranges and layers; arrays of node i are named `i.<field>`. Float
    weights are kept only of layers left float; of a decomposed one, uint8 [N, B, ceil(K/8)]
    `i.signs` has the bits of each basis.
    """
    graph, arrays = model.graph, dict[str, npt.NDArray[Any]]()
    nodes = []
    for index, node in enumerate(graph.nodes):
        values = {field.name: getattr(node, field.name) for field in fields(node)}
        described: dict[str, Any] = {
            "op": type(node).__name__,
            "attributes": {k: v for k, v in values.items() if not isinstance(v, np.ndarray)},
        }
        nodes.append(described)
        if not isinstance(node, Conv | Dense):
            continue
        layer = model.decomposed.layers.get(node.name)
        if layer is None:
            arrays |= {f"{index}.weight": node.weight, f"{index}.bias": node.bias}
            continue
        described["weight_shape"] = node.weight.shape
        bits = (layer.signs[:, None, :] >> np.arange(layer.bases, dtype=np.uint8)[:, None]) & 1
        arrays |= {
            f"{index}.signs": np.packbits(bits, axis=2, bitorder="little"),
            f"{index}.coefficients": layer.coefficients,
            f"{index}.scale": layer.scale,
            f"{index}.bias": layer.bias,
        }
    description = {
        "format": ORACLE_FORMAT,
        "name": graph.name,
        "sha256": graph.sha256,
        "input": graph.input,
        "input_shape": graph.shapes[graph.input],
        "output": graph.output,
        "nodes": nodes,
        "tensors": {
            name: {
                "bits": quant.bits,
                "delta": None if quant.delta is None else float(quant.delta),
                "zero_point": quant.zero_point,
            }
            for name, quant in model.tensors.items()
        },
    }
    with zipfile.ZipFile(path, "w") as archive:
        # A ZipInfo made by hand carries the epoch of the format, not the clock.
        archive.writestr(zipfile.ZipInfo("model.json"), json.dumps(description, indent=1))
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def load_oracle(path: Path) -> QuantizedModel:
    """Read what `save_oracle` wrote. The weights of decomposed nodes are the approximated ones.

    Raises DataError if the file is missing, damaged or of another format.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read("model.json"))
            if description["format"] != ORACLE_FORMAT:
                raise DataError(
                    f"has format {description['format']}, not {ORACLE_FORMAT}", layer=path.name
                )
            return _read_oracle(archive, description)
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"is not a readable oracle ({error})", layer=path.name, hint="Compile the project again"
        ) from error


def _read_oracle(archive: zipfile.ZipFile, description: Mapping[str, Any]) -> QuantizedModel:
    def array(name: str) -> npt.NDArray[Any]:
        with archive.open(f"{name}.npy") as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))

    kinds = {kind.__name__: kind for kind in get_args(Node)}
    nodes: list[Node] = []
    layers: dict[str, Decomposition] = {}
    for index, described in enumerate(description["nodes"]):
        kind = kinds[described["op"]]
        values = {
            k: tuple(v) if isinstance(v, list) else v for k, v in described["attributes"].items()
        }
        if "weight_shape" in described:
            shape = tuple(described["weight_shape"])
            bits = np.unpackbits(
                array(f"{index}.signs"), axis=2, bitorder="little", count=int(np.prod(shape[1:]))
            )
            layer = Decomposition(
                coefficients=array(f"{index}.coefficients"),
                signs=np.bitwise_or.reduce(
                    bits << np.arange(bits.shape[1], dtype=np.uint8)[:, None], axis=1
                ),
                scale=array(f"{index}.scale"),
                bias=array(f"{index}.bias"),
            )
            layers[str(values["name"])] = layer
            values |= {"weight": layer.weights().reshape(shape), "bias": layer.bias}
        elif kind in (Conv, Dense):
            values |= {"weight": array(f"{index}.weight"), "bias": array(f"{index}.bias")}
        nodes.append(kind(**values))
    graph = make_graph(
        name=description["name"],
        input_name=description["input"],
        input_shape=tuple(description["input_shape"]),
        output=description["output"],
        nodes=nodes,
        sha256=description["sha256"],
    )
    tensors = {
        name: TensorQuant(
            bits=quant["bits"],
            delta=None if quant["delta"] is None else np.float32(quant["delta"]),
            zero_point=quant["zero_point"],
        )
        for name, quant in description["tensors"].items()
    }
    return QuantizedModel(decomposed=DecomposedModel(graph=graph, layers=layers), tensors=tensors)
