# SPDX-License-Identifier: 0BSD
"""What a compilation may be told, checked as early as it can be: alone, then against the model."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from bdcc.approx.model import MAX_BASES, MAX_BITS
from bdcc.approx.quantize import RangeMode
from bdcc.approx.tables import SEARCHED_BITS
from bdcc.codegen.binary import Family
from bdcc.codegen.names import NAME_MOST
from bdcc.data.preprocess import Preprocess, make_preprocess
from bdcc.errors import OptionError, one_line
from bdcc.ir.graph import Conv, Graph
from bdcc.ir.onnx_limits import MAX_MEMORY

PAPER_AUTO_BASES = 4  # what `--bases auto` means to the paper's search
CONV_BASES = (1, 2, 3, 4, 5, 6)  # that the joint search chooses from
DENSE_BASES = (1, 2, 3, 4)
DENSE_BITS = 8
DEFAULT_MAX_DROP_PP = 1.0
CHOICES: Mapping[str, tuple[str, ...]] = {
    "decompose": ("plain", "aware"),
    "range": ("clip", "minmax", "dynamic"),
    "search": ("measured", "paper"),
    "objective": ("latency", "size", "ops"),
    "kernel": ("auto", "popcount", "lut", "bytedot"),
    "metric": ("top1", "top5"),
}
DASK = re.compile("dask:.+")
NOT_GIVEN = ("decompose", "metric")  # those of the choices that may be left to bdcc
Auto = Literal["auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """The options of `bdcc compile` under the same names (docs: `bdcc compile --help`).

    output: folder of the project; max_drop_pp: percentage points of the metric below the float
    model, None means 1 and that missing it is not an error when bits are given; bases, q: one value
    for all conv layers, one per conv layer, one per decomposed layer, or "auto"; limit: search
    pictures, 0 for all; flash_bytes, ram_bytes: the most that weights and arena may take, on bare
    metal with code and stack, None there: what the target has; max_memory: bytes that bound what
    the model takes (docs/operators.md); workers: processes and threads of this host, or
    "dask:ADDRESS" of the cluster that evaluates models instead (docs/workers.md); cache: folder,
    "off", or None for the user's own.
    Raises OptionError for a value that no model allows.
    """

    output: Path
    data: Path | None = None
    calib: Path | None = None
    holdout: Path | None = None
    max_drop_pp: float | None = None
    strict: bool = False
    force: bool = False
    name: str | None = None
    bases: tuple[int, ...] | Auto = "auto"
    q: tuple[int, ...] | Auto = "auto"
    decompose: str | None = None
    range: RangeMode = "clip"
    search: str = "measured"
    objective: str = "latency"
    kernel: str = "auto"
    target: str = "host"
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    metric: str | None = None
    keep_float: tuple[str, ...] = ()
    float_only: bool = False
    classes: Path | None = None
    preset: str = "torchvision"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    channels: str | None = None
    resize: str = "stretch"
    limit: int = 5000
    seed: int = 0
    workers: int | str | None = None
    cache: Path | Literal["off"] | None = None
    cost_table: str = "default"
    resume: bool = False
    max_memory: int = MAX_MEMORY

    def __post_init__(self) -> None:
        for option, allowed in CHOICES.items():
            value = getattr(self, option)
            if value not in allowed and not (option in NOT_GIVEN and value is None):
                raise OptionError(
                    f"'{value}' is not one of {', '.join(allowed)}", layer=f"--{option}"
                )
        drop = self.max_drop_pp
        if drop is not None and not (math.isfinite(drop) and drop >= 0):
            raise OptionError(
                f"{drop:g} is not a number of percentage points, 0 or more",
                layer="--D",
                hint="--D 2 allows the accuracy to be 2 points below the float model's",
            )
        for option, least, most in (("bases", 1, MAX_BASES), ("q", 1, MAX_BITS)):
            values = getattr(self, option)
            if values == "auto":
                continue
            wrong = next((v for v in values if not least <= v <= most), None)
            if wrong is not None or not values:
                found = "an empty list" if wrong is None else wrong
                raise OptionError(
                    f"{found} is outside {least}..{most}",
                    layer=f"--{option}",
                    hint="Give one number, one per conv layer, one per decomposed layer, or auto",
                )
        for option, least in (
            *(("limit", 0), ("seed", 0)),
            *(("flash_bytes", 1), ("ram_bytes", 1), ("max_memory", 1)),
        ):
            number = getattr(self, option)
            if number is not None and number < least:
                name = option.removesuffix("_bytes").replace("_", "-")
                raise OptionError(f"{number} is below {least}", layer=f"--{name}")
        if isinstance(self.workers, int) and self.workers < 1:
            raise OptionError(f"{self.workers} is below 1", layer="--workers")
        if isinstance(self.workers, str) and not DASK.fullmatch(self.workers):
            raise OptionError(
                f"'{self.workers}' is neither a number nor dask:ADDRESS",
                layer="--workers",
                hint="ADDRESS is what `dask scheduler` prints, like tcp://10.0.0.1:8786",
            )
        if self.float_only and self.keep_float:
            raise OptionError("already keeps every layer float; drop --keep-float", layer="--float")
        if self.float_only and (self.bases, self.q) != ("auto", "auto"):
            raise OptionError(
                "keeps every layer float, so there are no bases or bits to give",
                layer="--float",
                hint="Drop --bases and --q, or keep only some layers float with --keep-float",
            )
        if self.name is not None and not self.name.strip():
            raise OptionError("the name is empty", layer="--name", hint="Drop it or name a prefix")
        if self.name is not None and len(self.name) > NAME_MOST:
            raise OptionError(
                f"the name has {len(self.name)} characters; at most {NAME_MOST} are allowed",
                layer="--name",
            )

    @property
    def family(self) -> Family | None:
        """The kernel family of all layers; None: each its fastest."""
        return None if self.kernel == "auto" else cast(Family, self.kernel)

    @property
    def cache_folder(self) -> Path | None:
        """Where tables of kernel costs are looked for; None: in the user's cache."""
        return self.cache if isinstance(self.cache, Path) else None

    @property
    def method(self) -> str:
        """How weights are decomposed; not told, the paper's search takes the paper's way."""
        return self.decompose or ("plain" if self.search == "paper" else "aware")

    @property
    def worker_count(self) -> int:
        """Processes and threads of this host."""
        return self.workers if isinstance(self.workers, int) else available_cpus()

    def preprocess(self, graph: Graph) -> Preprocess:
        """How pictures become the graph's input; raises OptionError."""
        return make_preprocess(
            shape=graph.shapes[graph.input],
            preset=self.preset,
            mean=self.mean,
            std=self.std,
            scale=self.scale,
            channels=self.channels,
            resize=self.resize,
        )

    def as_json(self) -> dict[str, Any]:
        """For report.json: what decides the result, and neither paths nor the machine's means."""
        left_out = ("output", "force", "workers", "cache", "cost_table", "resume")
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        record["target"] = Path(self.target).name  # it may be a file
        return {
            key: one_line(value.name)
            if isinstance(value, Path)
            else list(value)
            if isinstance(value, tuple)
            else value
            for key, value in record.items()
        }


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """Which weight layers are decomposed, and what was given for them.

    names: in graph order; convs: those of them that are Conv; fixed_bases, fixed_bits: B and Q of
    each layer, None where they are searched; dense_bits: Q of the dense layers while the paper's
    search chooses the others'; least_bits: Q that a search may choose, for kernels of fewer bits
    may work in more memory than there is.
    """

    names: tuple[str, ...]
    convs: tuple[str, ...]
    fixed_bases: Mapping[str, int] | None
    fixed_bits: Mapping[str, int] | None
    dense_bits: Mapping[str, int]
    least_bits: int = 1

    @property
    def are_searched(self) -> bool:
        """Whether any layer's bases or bits are left to a search."""
        return bool(self.names) and None in (self.fixed_bases, self.fixed_bits)

    @property
    def bases_choices(self) -> Mapping[str, tuple[int, ...]]:
        """By layer, for the joint search."""
        if self.fixed_bases is not None:
            return {name: (count,) for name, count in self.fixed_bases.items()}
        return {name: CONV_BASES if name in self.convs else DENSE_BASES for name in self.names}

    def bits_choices(self, graph: Graph) -> Mapping[str, tuple[int, ...]]:
        """By tensor; one that several layers read takes the most that any of them was given."""
        choices: dict[str, tuple[int, ...]] = {}
        searched = tuple(bits for bits in SEARCHED_BITS if bits >= self.least_bits)
        for layer in graph.weight_layers:
            if layer.name not in self.names:
                continue
            given = None if self.fixed_bits is None else (self.fixed_bits[layer.name],)
            choices[layer.input] = max(choices.get(layer.input, ()), given or searched)
        return choices


def choose_layers(graph: Graph, options: CompileOptions) -> Layers:
    """The decomposed layers of a graph under the options; raises OptionError for names and list
    lengths.
    """
    names = [layer.name for layer in graph.weight_layers]
    unknown = next((name for name in options.keep_float if name not in names), None)
    if unknown is not None:
        raise OptionError(
            f"there is no layer '{unknown}'; the layers are {', '.join(names)}",
            layer="--keep-float",
        )
    kept = set(names if options.float_only else options.keep_float)
    decomposed = [layer for layer in graph.weight_layers if layer.name not in kept]
    convs = tuple(layer.name for layer in decomposed if isinstance(layer, Conv))
    order = tuple(layer.name for layer in decomposed)
    paper = options.search == "paper"
    bases = (PAPER_AUTO_BASES,) if options.bases == "auto" and paper else options.bases
    return Layers(
        names=order,
        convs=convs,
        fixed_bases=None if bases == "auto" else _spread(bases, order, convs, "bases", dense=None),
        fixed_bits=None
        if options.q == "auto"
        else _spread(options.q, order, convs, "q", dense=DENSE_BITS),
        dense_bits={name: DENSE_BITS for name in order if name not in convs},
    )


def _spread(
    values: tuple[int, ...],
    order: tuple[str, ...],
    convs: tuple[str, ...],
    option: str,
    *,
    dense: int | None,
) -> dict[str, int]:
    """One value for all, one per conv, or one per decomposed layer; `dense`: for dense layers,
    None: the last conv's.
    """
    if not order:
        return {}
    if len(values) == len(order):
        return dict(zip(order, values, strict=True))
    if len(values) not in (1, len(convs)):
        allowed = sorted({1, len(convs), len(order)} - {0})
        raise OptionError(
            f"{len(values)} values; this model takes "
            f"{' or '.join(str(n) for n in allowed)} (conv layers: {', '.join(convs) or 'none'}; "
            f"all decomposed: {', '.join(order)})",
            layer=f"--{option}",
        )
    if not convs:
        return dict.fromkeys(order, values[0])
    per_conv = values * len(convs) if len(values) == 1 else values
    chosen = dict(zip(convs, per_conv, strict=True))
    return {name: chosen.get(name, dense or per_conv[-1]) for name in order}


def default_metric(graph: Graph) -> str:
    return "top5" if int(np.prod(graph.shapes[graph.output])) >= 20 else "top1"
