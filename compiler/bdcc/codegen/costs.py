# SPDX-License-Identifier: 0BSD
"""What kernels cost, and which family a layer takes.

A table has, for one instruction set and each family and (bases, bits), the nanoseconds of
- a convolution: per product (output pixel x filter x position), per weight that is read and
  unpacked, per code that is laid out for the kernels, and, if it was modelled, per output (which
  measured tables have among the codes: a fourth price is too much for what can be measured);
- a dense layer: per weight.
`bdcc tune` measures tables; those in cost_tables/ are what it measured on a Zen 5 core that was
held to each instruction set (dense layers by bytes: docs/design.md), and what
tools/model_kernels.py modelled of ARM cores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

from bdcc.approx.model import MAX_BASES, MAX_BITS, QuantizedModel
from bdcc.codegen.binary import FAMILIES, Family
from bdcc.codegen.geometry import form_of
from bdcc.codegen.lut import filters_together
from bdcc.codegen.memory import round_up
from bdcc.codegen.packing import LANES, run_shape
from bdcc.codegen.targets import ISAS
from bdcc.errors import DataError
from bdcc.files import read_file
from bdcc.ir.graph import Conv, Graph, WeightLayer
from bdcc.records import MOST_BYTES, check, parse_json
from bdcc.sealed import without_seal

SCHEMA = 1
ROWS = {
    "type": "array",
    "items": {
        "type": "array",
        "minItems": 3,
        "items": {"type": "number", "minimum": 0, "maximum": 1e6},
    },
}
KINDS = {
    "type": "object",
    "required": ["conv", "dense"],
    "properties": {"conv": ROWS, "dense": ROWS},
}
TABLE = {
    "type": "object",
    "required": ["schema", "isa", "machine", "ns"],
    "properties": {
        "schema": {"const": SCHEMA},
        "isa": {"enum": ISAS},
        "machine": {"type": "string"},
        "ns": {
            "type": "object",
            "required": FAMILIES,
            "properties": dict.fromkeys(FAMILIES, KINDS),
        },
        "modelled": {"type": "boolean"},
        "mhz": {"type": "integer", "minimum": 1, "maximum": 10**6},
    },
    "anyOf": [{"properties": {"modelled": {"const": False}}}, {"required": ["modelled", "mhz"]}],
}
Kind = Literal["conv", "dense"]
Key = tuple[Family, Kind, int, int]  # family, kind, bases, bits
Parts = tuple[float, ...]
Source = Literal["shipped", "measured", "file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """isa: instruction set; machine: where it was measured; ns: nanoseconds per product, weight,
    code and output of a convolution, per weight of a dense layer; sha256: of its file; source:
    shipped with bdcc, measured here and found in the cache, or a file that was named;
    modelled_mhz: None, or the clock of a core that was modelled instead of measured.
    """

    isa: str
    machine: str
    ns: Mapping[Key, Parts]
    sha256: str
    source: Source
    modelled_mhz: int | None = None

    @property
    def modelled(self) -> bool:
        return self.modelled_mhz is not None

    def predict(
        self, family: Family, layer: WeightLayer, graph: Graph, *, bases: int, bits: int
    ) -> float:
        """Nanoseconds of one inference through the layer."""
        kind: Kind = "conv" if isinstance(layer, Conv) else "dense"
        work = work_of(layer, graph, family=family, isa=self.isa, bits=bits)
        return sum(a * b for a, b in zip(self.ns[family, kind, bases, bits], work, strict=True))

    def least(
        self,
        layer: WeightLayer,
        graph: Graph,
        *,
        bases: int,
        bits: int,
        families: Sequence[Family] = FAMILIES,
    ) -> float:
        """Nanoseconds with the best of the families; never less than with fewer bases or bits,
        however the measurements scatter.
        """
        return max(
            min(self.predict(f, layer, graph, bases=b, bits=q) for f in families)
            for b in range(1, bases + 1)
            for q in range(1, bits + 1)
        )

    def by_family(
        self, layer: WeightLayer, graph: Graph, *, bases: int, bits: int
    ) -> dict[Family, float]:
        """Nanoseconds with each family."""
        return {
            family: self.predict(family, layer, graph, bases=bases, bits=bits)
            for family in FAMILIES
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelChoice:
    """The families that a layer may have, the fastest first, and the nanoseconds that each would
    take by the table.
    """

    families: tuple[Family, ...]
    ns: Mapping[Family, float]

    @property
    def family(self) -> Family:
        return self.families[0]


def choose_kernels(
    model: QuantizedModel, table: CostTable, *, family: Family | None
) -> dict[str, KernelChoice]:
    """Of each decomposed layer: the fastest family, or the one that is told."""
    choices = {}
    for layer in model.graph.weight_layers:
        one = model.decomposed.layers.get(layer.name)
        if one is not None:
            bits = model.tensors[layer.input].bits
            ns = table.by_family(layer, model.graph, bases=one.bases, bits=bits)
            families = (family,) if family else tuple(sorted(ns, key=ns.__getitem__))
            choices[layer.name] = KernelChoice(families=families, ns=ns)
    return choices


def work_of(layer: WeightLayer, graph: Graph, *, family: Family, isa: str, bits: int) -> Parts:
    """What the nanoseconds of a table are multiplied with: filters and positions as the family has
    them, rounded up.
    """
    unit = filters_together(isa, bits) if family == "lut" else LANES
    if not isinstance(layer, Conv):
        return (float(round_up(layer.weight.shape[0], LANES) * layer.weight.shape[1]),)
    channels, in_h, in_w = graph.map_shape(layer.input)
    _, out_h, out_w = graph.map_shape(layer.output)
    pixels, inputs = out_h * out_w, channels // layer.groups
    filters = layer.groups * round_up(layer.weight.shape[0] // layer.groups, unit)
    form = form_of(layer)
    if form == "direct":
        top, left, bottom, right = layer.pads
        deep = round_up(inputs, 8)
        positions = layer.kernel[0] * layer.kernel[1] * deep
        codes = layer.groups * (top + in_h + bottom) * (left + in_w + right) * deep
    else:
        positions = round_up(inputs * layer.kernel[0] * layer.kernel[1], 8)
        codes = layer.groups * pixels * positions
    if family == "popcount":
        rows, words = run_shape((inputs, *layer.kernel), form)
        positions = rows * words * 64
    counts = pixels * filters * positions, filters * positions, codes, pixels * filters
    return tuple(map(float, counts))


def read_cost_table(file: Path, *, source: Source = "file") -> CostTable:
    """Of a file, which may be one of the cache with its seal. Raises DataError unless it is a table
    that `bdcc tune` wrote.
    """
    try:
        return parse_cost_table(without_seal(read_file(file, most=MOST_BYTES)), source)
    except (OSError, ValueError):
        raise DataError(
            "is no table of kernel costs, or of another version",
            layer=str(file),
            hint="Make one with bdcc tune OUT",
        ) from None


def shipped_cost_table(core: str) -> CostTable:
    """The table of a target's `core`."""
    file = resources.files("bdcc.codegen") / "cost_tables" / f"{core}.json"
    return parse_cost_table(file.read_bytes(), "shipped")


def parse_cost_table(data: bytes, source: Source) -> CostTable:
    """Raises ValueError of what is no table."""
    record = parse_json(data)
    check(record, TABLE)
    ns: dict[Key, Parts] = {}
    for family in FAMILIES:
        for kind, count in (("conv", 4), ("dense", 1)):
            for bases, bits, *parts in record["ns"][family][kind]:
                if kind == "conv" and len(parts) == count - 1:
                    parts.append(0.0)
                if len(parts) != count:
                    raise ValueError("not a cost")
                ns[family, cast(Kind, kind), bases, bits] = tuple(map(float, parts))
    wanted = product(FAMILIES, ("conv", "dense"), range(1, MAX_BASES + 1), range(1, MAX_BITS + 1))
    if set(ns) != set(wanted):
        raise ValueError("not of all kernels")
    return CostTable(
        isa=record["isa"],
        machine=record["machine"],
        ns=ns,
        sha256=hashlib.sha256(data).hexdigest(),
        source=source,
        modelled_mhz=record["mhz"] if record.get("modelled", False) else None,
    )


def write_cost_table(
    isa: str, machine: str, ns: Mapping[Key, Parts], *, modelled_mhz: int | None = None
) -> str:
    """The text of a table, as `read_cost_table` takes it: numbers of 4 digits, and the price of an
    output only where it was modelled.
    """
    prices = 4 if modelled_mhz is not None else 3

    def rows(family: Family, kind: Kind) -> list[str]:
        return [
            json.dumps([b, q, *(float(f"{part:.4g}") for part in parts[:prices])])
            for (f, k, b, q), parts in sorted(ns.items())
            if (f, k) == (family, kind)
        ]

    families = []
    for family in FAMILIES:
        kinds = ",\n   ".join(
            f'"{kind}": [\n    ' + ",\n    ".join(rows(family, kind)) + "]"
            for kind in cast(tuple[Kind, ...], ("conv", "dense"))
        )
        families.append(f'  "{family}": {{\n   {kinds}}}')
    head: dict[str, Any] = {"schema": SCHEMA, "isa": isa, "machine": machine}
    if modelled_mhz is not None:
        head |= {"modelled": True, "mhz": modelled_mhz}
    start = json.dumps(head)[:-1]
    return start + ',\n "ns": {\n' + ",\n".join(families) + "}}\n"
