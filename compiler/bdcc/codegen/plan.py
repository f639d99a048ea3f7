# SPDX-License-Identifier: 0BSD
"""From a quantized model to the steps, buffers and weight sections of the C project.

`steps.py` decides what is computed where; here every byte finds its place. `emit.py` only writes
down what stands in the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bdcc.approx.model import QuantizedModel
from bdcc.codegen.binary import Family
from bdcc.codegen.memory import ALIGNMENT, Lifetime, place, round_up
from bdcc.codegen.names import project_name
from bdcc.codegen.steps import Array, Step, StepBuilder
from bdcc.codegen.targets import Target
from bdcc.data.preprocess import Preprocess
from bdcc.ir.graph import op_name

BLOB_HEADER_BYTES = 64
BLOB_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Section:
    """A named array of the weight blob; `offset` in bytes from the blob's start, a multiple of
    64.
    """

    name: str
    array: Array
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeploymentPlan:
    """Everything the emitter writes. offsets: of each buffer and scratch area in the arena, by
    name, in bytes.
    """

    name: str
    model: QuantizedModel
    target: Target
    preprocess: Preprocess | None
    labels: tuple[str, ...]
    steps: tuple[Step, ...]
    offsets: Mapping[str, int]
    arena_bytes: int
    sections: tuple[Section, ...]
    blob_bytes: int
    fingerprint: int

    @property
    def private_bytes(self) -> int:
        """Scratch that each thread but the first brings along."""
        return max(step.private_bytes for step in self.steps)

    @property
    def families(self) -> dict[str, Family]:
        """Of each decomposed layer, by name."""
        return {s.layer: s.values["family"] for s in self.steps if s.kind == "binary"}

    @property
    def neediest_layer(self) -> str:
        """The layer in whose step most bytes of the arena are in use."""
        alive = _lifetimes(self.steps)
        used = [
            sum(b.size for b in alive if b.first <= i <= b.last) for i in range(len(self.steps))
        ]
        return self.steps[used.index(max(used))].layer

    @property
    def heaviest_layer(self) -> str:
        """The layer with most bytes of weights."""
        owners = {name: step.layer for step in self.steps for name in step.sections}
        used = Counter[str]()
        for section in self.sections:
            used[owners[section.name]] += section.array.nbytes
        return used.most_common(1)[0][0]

    def binary_steps(self, family: Family) -> list[Step]:
        return [s for s in self.steps if s.kind == "binary" and s.values["family"] == family]

    @property
    def outputs(self) -> int:
        return int(np.prod(self.model.graph.shapes[self.model.graph.output]))


def make_plan(
    model: QuantizedModel,
    *,
    name: str,
    target: Target,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    families: Mapping[str, Family] | None = None,
) -> DeploymentPlan:
    """Plan the C project of a model. families: of decomposed layers by name, popcount where none
    is given. Raises ModelError where a layer cannot be computed in int32.
    """
    builder = StepBuilder(model, preprocess, families=families or {}, isas=target.isas)
    steps = builder.build()
    offsets, arena_bytes = place(_lifetimes(steps))
    sections, blob_bytes = _lay_out(builder.arrays)
    structure = json.dumps(
        [
            [
                BLOB_FORMAT,
                [(s.name, s.offset, s.array.shape, str(s.array.dtype)) for s in sections],
            ],
            [
                (
                    s.kind,
                    s.name,
                    str(s.input),
                    str(s.output),
                    sorted((k, str(v)) for k, v in s.values.items()),
                )
                for s in steps
            ],
            sorted(offsets.items()),
        ]
    )
    return DeploymentPlan(
        name=project_name(name),
        model=model,
        target=target,
        preprocess=preprocess,
        labels=tuple(labels),
        steps=steps,
        offsets=offsets,
        arena_bytes=arena_bytes,
        sections=sections,
        blob_bytes=blob_bytes,
        fingerprint=int.from_bytes(hashlib.sha256(structure.encode()).digest()[:8], "little"),
    )


def fit_families(
    plan: DeploymentPlan, wanted: Mapping[str, Sequence[Family]], *, arena_bytes: int
) -> dict[str, Family]:
    """Families of the decomposed layers with which the arena takes no more than that: of each layer
    the first of the wanted ones that leaves the others room. Where nothing fits, those with the
    least scratch.
    """
    layers = {step.layer: step for step in plan.steps if step.kind == "binary"}
    families = {
        name: min(wanted[name], key=step.scratch_by_family.__getitem__)
        for name, step in layers.items()
    }

    def fits(name: str, family: Family) -> bool:
        trial = families | {name: family}
        steps = [
            replace(step, scratch_bytes=step.scratch_by_family[trial[step.layer]])
            if step.kind == "binary"
            else step
            for step in plan.steps
        ]
        return place(_lifetimes(steps))[1] <= arena_bytes

    for name, least in families.items():
        families[name] = next((f for f in wanted[name] if fits(name, f)), least)
    return families


def _lifetimes(steps: Sequence[Step]) -> list[Lifetime]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for index, step in enumerate(steps):
        for buffer in (step.input, step.output):
            if buffer is not None:
                first.setdefault(buffer.name, index)
                last[buffer.name] = index
                sizes[buffer.name] = buffer.block_bytes
        if step.scratch_bytes:
            scratch = f"scratch:{step.name}"
            first[scratch] = last[scratch] = index
            sizes[scratch] = step.scratch_bytes
    return [Lifetime(name=n, size=sizes[n], first=first[n], last=last[n]) for n in first]


def _lay_out(arrays: Mapping[str, Array]) -> tuple[tuple[Section, ...], int]:
    offset, sections = BLOB_HEADER_BYTES, []
    for name, array in arrays.items():
        sections.append(Section(name=name, array=array, offset=offset))
        offset = round_up(offset + array.nbytes, ALIGNMENT)
    return tuple(sections), offset


def describe_steps(plan: DeploymentPlan) -> list[dict[str, Any]]:
    """The steps as host/project.json keeps them: what `bdcc verify` needs to compare and name each
    tensor, and to pack the weights again (`family`).
    """
    operators = {node.name: op_name(node) for node in plan.model.graph.nodes}
    return [
        {
            "name": step.name,
            "kind": step.kind,
            "layer": step.layer,
            "tensor": step.tensor,
            "quant": step.quant,
            "shape": step.output.shape if step.output else (plan.outputs, 1, 1),
            "op": operators.get(step.layer, step.kind),
            "family": step.values.get("family"),
        }
        for step in plan.steps
    ]
