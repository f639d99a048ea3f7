# SPDX-License-Identifier: 0BSD
"""How quantized models become projects: every candidate is written and built once, and the chosen
one is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bdcc.approx.model import QuantizedModel
from bdcc.codegen.binary import Family
from bdcc.codegen.costs import CostTable, KernelChoice, choose_kernels
from bdcc.codegen.emit import emit, emit_sources
from bdcc.codegen.plan import DeploymentPlan, fit_families, make_plan
from bdcc.codegen.targets import Target
from bdcc.data.generate import generate_pictures
from bdcc.data.preprocess import Preprocess
from bdcc.errors import OptionError
from bdcc.files import temporary_folder
from bdcc.host.footprint import HANDLE_BYTES, Footprint, measure_footprint

GOLDEN_PICTURES = 2
Counts = tuple[tuple[str, int], ...]  # by name, in order of the names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workshop:
    """folder: where projects are written, each in a folder of its own; cost_table: of the target's
    kernels; family: of all layers, None: each its fastest that fits; flash_bytes, ram_bytes: the
    most that they may take, None: plenty; code_bytes, stack_bytes: of that beside weights and
    arena, 0: not counted; written: those, by bits of tensors and bases of layers (a layer may have
    a tensor's name); the rest is the same for all of them.
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
    code_bytes: int = 0
    stack_bytes: int = 0
    written: dict[tuple[Counts, Counts], Path] = field(default_factory=dict)

    def kernels(self, model: QuantizedModel) -> dict[str, KernelChoice]:
        """Of each decomposed layer, by the table."""
        return choose_kernels(model, self.cost_table, family=self.family)

    def plan(self, model: QuantizedModel) -> DeploymentPlan:
        """With the fastest kernels that the arena has room for. Raises OptionError as `check`
        does.
        """
        wanted = {name: one.families for name, one in self.kernels(model).items()}
        plan = self._plan(model, {name: families[0] for name, families in wanted.items()})
        if self.ram_bytes is not None and plan.arena_bytes + self.stack_bytes > self.ram_bytes:
            room = self.ram_bytes - self.stack_bytes
            plan = self._plan(model, fit_families(plan, wanted, arena_bytes=room))
        self.check(plan)
        return plan

    def check(self, plan: DeploymentPlan) -> None:
        """Raises OptionError if weights or arena take more than they may."""
        flash, ram, code, stack = (
            self.flash_bytes, self.ram_bytes, self.code_bytes, self.stack_bytes
        )  # fmt: skip
        if flash is not None and plan.blob_bytes + code > flash:
            beside = f", and its code {code}" if code else ""
            raise OptionError(
                f"the weights of this choice take {plan.blob_bytes} bytes, most of them in "
                f"{plan.heaviest_layer}{beside}; allowed are {flash}",
                layer="--flash",
            )
        if ram is not None and plan.arena_bytes + stack > ram:
            kernels = f"with --kernel {self.family}" if self.family else "with any kernels"
            beside = f", and its stack and handle {stack}" if stack else ""
            raise OptionError(
                f"the arena of this choice takes at least {plan.arena_bytes} bytes {kernels}, most "
                f"in {plan.neediest_layer}{beside}; allowed are {ram}",
                layer="--ram",
            )

    def counting(self, model: QuantizedModel) -> Workshop:
        """Itself, that leaves room for code and stack as this model has them, where the target is
        bare metal and its compiler installed.
        """
        if not self.target.bare:
            return self
        families = {name: one.families[0] for name, one in self.kernels(model).items()}
        with temporary_folder() as folder:
            emit_sources(self._plan(model, families), folder)
            found = measure_footprint(folder, self.target)
        return self if found is None else self.with_footprint(found)

    def with_footprint(self, found: Footprint) -> Workshop:
        """Itself, that leaves room for that code and stack."""
        stack = HANDLE_BYTES + found.stack_bytes
        return replace(self, code_bytes=found.code_bytes, stack_bytes=stack)

    def _plan(self, model: QuantizedModel, families: Mapping[str, Family]) -> DeploymentPlan:
        return make_plan(
            model,
            name=self.name,
            target=self.target,
            preprocess=self.preprocess,
            labels=self.class_labels,
            families=families,
        )

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
