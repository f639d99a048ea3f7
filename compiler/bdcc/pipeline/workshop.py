# SPDX-License-Identifier: 0BSD
"""How quantized models become projects: every candidate is written and built once, and the chosen
one is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bdcc.approx.model import QuantizedModel
from bdcc.codegen.binary import Family
from bdcc.codegen.costs import CostTable, KernelChoice, choose_kernels
from bdcc.codegen.emit import emit
from bdcc.codegen.plan import DeploymentPlan, make_plan
from bdcc.codegen.targets import Target
from bdcc.data.generate import generate_pictures
from bdcc.data.preprocess import Preprocess
from bdcc.errors import OptionError

GOLDEN_PICTURES = 2
Counts = tuple[tuple[str, int], ...]  # by name, in order of the names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workshop:
    """folder: where projects are written, each in a folder of its own; cost_table: of the target's
    kernels; family: of all layers, None: each its fastest; written: those, by bits of
    tensors and bases of layers (a layer may have a tensor's name); the rest is the same for all of
    them.
    """

    folder: Path
    name: str
    target: Target
    cost_table: CostTable
    family: Family | None
    preprocess: Preprocess
    class_labels: tuple[str, ...]
    seed: int
    flash_bytes: int | None
    ram_bytes: int | None
    written: dict[tuple[Counts, Counts], Path] = field(default_factory=dict)

    def kernels(self, model: QuantizedModel) -> dict[str, KernelChoice]:
        """Of each decomposed layer, by the table."""
        return choose_kernels(model, self.cost_table, family=self.family)

    def plan(self, model: QuantizedModel) -> DeploymentPlan:
        """Raises OptionError if the weights or the arena take more than they may."""
        plan = make_plan(
            model,
            name=self.name,
            target=self.target,
            preprocess=self.preprocess,
            labels=self.class_labels,
            families={name: one.family for name, one in self.kernels(model).items()},
        )
        for option, what, needed, allowed in (
            ("--flash", "weights of this choice take", plan.blob_bytes, self.flash_bytes),
            ("--ram", "arena of this choice takes", plan.arena_bytes, self.ram_bytes),
        ):
            if allowed is not None and needed > allowed:
                raise OptionError(
                    f"the {what} {needed} bytes, allowed are {allowed}",
                    layer=option,
                )
        return plan

    def fits(self, model: QuantizedModel) -> bool:
        """Whether `plan` takes it."""
        try:
            self.plan(model)
        except OptionError:
            return False
        return True

    def project(self, model: QuantizedModel) -> Path:
        """The folder with the model's sources. Models differ in their bases and bits alone.

        Golden vectors are generated pictures: nobody's photographs are handed on with a project.
        """
        bits = sorted((tensor, quant.bits) for tensor, quant in model.tensors.items())
        bases = sorted((name, one.bases) for name, one in model.decomposed.layers.items())
        choice = tuple(bits), tuple(bases)
        if choice not in self.written:
            folder = self.folder / str(len(self.written))
            folder.mkdir(parents=True)
            golden = generate_pictures(
                GOLDEN_PICTURES,
                shape=model.graph.shapes[model.graph.input],
                preprocess=self.preprocess,
                seed=self.seed,
            )
            emit(self.plan(model), folder, pictures=golden.batch(range(GOLDEN_PICTURES)))
            self.written[choice] = folder
        return self.written[choice]
