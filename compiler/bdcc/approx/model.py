# SPDX-License-Identifier: 0BSD
"""The two values between the float graph and the C: decomposed weights, then quantized activations.

`save_oracle` and `load_oracle` keep a QuantizedModel as host/oracle.npz, the canonical parameters
that `bdcc verify` judges the built library by.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt

from bdcc.arrays import Arrays, open_arrays
from bdcc.errors import BdccError, DataError, ModelError
from bdcc.ir.graph import F32, Conv, Dense, Graph, Node, Pads, Pair, make_graph, reads
from bdcc.records import MOST_BYTES, check, parse_json

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
MOST = 1 << 16  # of a kernel, a stride, a pad, ...
TEXT = {"type": "string"}
WHOLE = {"type": "integer", "minimum": 1, "maximum": MOST}
FLOAT = {"type": "number", "minimum": -3.4e38, "maximum": 3.4e38}
# What the fields of a node are in model.json, by their type.
FIELDS: Mapping[Any, Mapping[str, Any]] = {
    str: TEXT,
    int: WHOLE,
    bool: {"type": "boolean"},
    float: FLOAT,
    Pair: {"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 2},
    Pads: {"type": "array", "items": {**WHOLE, "minimum": 0}, "minItems": 4, "maxItems": 4},
    tuple[str, ...]: {"type": "array", "items": TEXT, "minItems": 1},
}
KINDS = {kind.__name__: kind for kind in get_args(Node)}
EXTENTS = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 2**31}}
DESCRIPTION = {
    "type": "object",
    "required": ["name", "sha256", "input", "input_shape", "output", "nodes", "tensors"],
    "properties": {
        **dict.fromkeys(("name", "sha256", "input", "output"), TEXT),
        "input_shape": {**EXTENTS, "minItems": 1, "maxItems": 3},
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["op", "attributes"],
                "properties": {
                    "op": {"type": "string", "enum": list(KINDS)},
                    "weight_shape": EXTENTS,
                },
            },
        },
        "tensors": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["bits", "delta", "zero_point"],
                "properties": {
                    "bits": {"type": "integer", "minimum": 1, "maximum": MAX_BITS},
                    "delta": {"type": ["number", "null"], "minimum": 1.2e-38, "maximum": 3.4e38},
                    "zero_point": {"type": "integer", "minimum": 0, "maximum": 2**MAX_BITS - 1},
                },
            },
        },
    },
}


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
        with open_arrays(path, compressed=False) as archive:
            description = parse_json(archive.read_bytes("model.json", most=MOST_BYTES))
            check(description, {"type": "object"})
            if (found := description.get("format")) != ORACLE_FORMAT:
                raise ValueError(f"has format {found}, not {ORACLE_FORMAT}")
            check(description, DESCRIPTION)
            return _read_oracle(archive, description)
    except (ValueError, DataError, ModelError) as error:
        text = error.message if isinstance(error, BdccError) else str(error)
        raise DataError(
            f"is not a readable oracle ({text})", layer=path.name, hint="Compile the project again"
        ) from error


def _read_oracle(archive: Arrays, description: Mapping[str, Any]) -> QuantizedModel:
    """Raises ValueError, DataError or ModelError where one part does not fit the others."""
    nodes: list[Node] = []
    layers: dict[str, Decomposition] = {}
    for index, described in enumerate(description["nodes"]):
        kind = KINDS[described["op"]]
        check(described["attributes"], _attributes(kind), where=f"node {index}")
        values = {
            k: tuple(v) if isinstance(v, list) else v for k, v in described["attributes"].items()
        }
        if kind in (Conv, Dense):
            rank = 4 if kind is Conv else 2
            if "weight_shape" in described:
                shape = tuple(described["weight_shape"])
                layer = _read_layer(archive, index, shape)
                layers[str(values["name"])] = layer
                values |= {"weight": layer.weights().reshape(shape), "bias": layer.bias}
            else:
                shape = archive.header(f"{index}.weight").shape
                weight = _read_array(archive, f"{index}.weight", np.float32, shape)
                values |= {
                    "weight": weight,
                    "bias": _read_array(archive, f"{index}.bias", np.float32, shape[:1]),
                }
            if len(shape) != rank or 0 in shape:
                raise ValueError(f"node {index} has weights of shape {shape}")
        nodes.append(kind(**values))
    _check_flow(nodes, description["input"], description["output"])
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
    wanted = {node.input for node in graph.weight_layers if node.name in layers}
    if wanted != set(tensors):
        raise ValueError("the quantized tensors are not what its decomposed layers read")
    if any(quant.zero_point > quant.top for quant in tensors.values()):
        raise ValueError("a zero point is no code")
    return QuantizedModel(decomposed=DecomposedModel(graph=graph, layers=layers), tensors=tensors)


def _attributes(kind: type[Node]) -> Mapping[str, Any]:
    """What model.json must have of a node: its fields but for the arrays."""
    known = {k: FIELDS[hint] for k, hint in get_type_hints(kind).items() if hint in FIELDS}
    if "beta" in known:
        known["beta"] = {"enum": [quarters / 4 for quarters in range(1, 17)]}
    return {
        "type": "object",
        "required": list(known),
        "properties": known,
        "additionalProperties": False,
    }


def _check_flow(nodes: list[Node], source: str, output: str) -> None:
    """Raises ValueError unless every tensor is written once, before it is read, and for some use,
    and no two nodes have one name.
    """
    known, read = {source}, {output}
    for node in nodes:
        if node.output in known or not known.issuperset(reads(node)):
            raise ValueError(f"node '{node.name}' does not follow those before it")
        known.add(node.output)
        read.update(reads(node))
    if read != known or len({node.name for node in nodes}) < len(nodes):
        raise ValueError("its nodes are no network")


def _read_layer(archive: Arrays, index: int, shape: tuple[int, ...]) -> Decomposition:
    filters, positions = shape[0], math.prod(shape[1:])
    bases = (*archive.header(f"{index}.coefficients").shape, 0, 0)[1]
    if not 1 <= bases <= MAX_BASES:
        raise ValueError(f"node {index} has {bases} bases")
    packed = _read_array(archive, f"{index}.signs", np.uint8, (filters, bases, -(-positions // 8)))
    bits = np.unpackbits(packed, axis=2, bitorder="little", count=positions)
    layer = Decomposition(
        coefficients=_read_array(archive, f"{index}.coefficients", np.int16, (filters, bases)),
        signs=np.bitwise_or.reduce(bits << np.arange(bases, dtype=np.uint8)[:, None], axis=1),
        scale=_read_array(archive, f"{index}.scale", np.float32, (filters,)),
        bias=_read_array(archive, f"{index}.bias", np.float32, (filters,)),
    )
    sums = np.abs(layer.coefficients.astype(np.int64)).sum(axis=1)
    if sums.max() > COEFFICIENT_CAP[bases]:
        raise ValueError(f"node {index} has coefficients above {COEFFICIENT_CAP[bases]}")
    return layer


def _read_array(
    archive: Arrays, name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> npt.NDArray[Any]:
    """Raises ValueError unless it is of that type and shape, and its values are numbers."""
    header = archive.header(name)
    if (header.dtype, header.shape) != (np.dtype(dtype), shape):
        raise ValueError(f"{name} is {header.dtype} {header.shape}, not {np.dtype(dtype)} {shape}")
    values = archive.read(name)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinity")
    return values
