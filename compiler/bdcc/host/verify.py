# SPDX-License-Identifier: 0BSD
"""The built library against the oracle: weights and every tensor in memory, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.approx.model import QuantizedModel
from bdcc.approx.simulate import Trace, run_exact
from bdcc.codegen.escape import CELL_MOST
from bdcc.codegen.golden import expected_tensor
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import TARGETS
from bdcc.data.preprocess import Preprocess
from bdcc.errors import MismatchError, OutputError, one_line
from bdcc.host.build import build
from bdcc.host.facts import REPORT_FILE, ProjectFacts, read_facts, read_oracle
from bdcc.host.library import Library, StepOutput
from bdcc.ir.graph import F32, Shape
from bdcc.records import read_record

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCheck:
    """One step of the library. bits: of its codes, 0 for float32; values: how many were compared,
    over all inputs and instruction sets; differing: how many of them differ."""

    layer: str
    tensor: str
    op: str
    bits: int
    values: int
    differing: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationReport:
    """A verification that found no difference (else there is a MismatchError in its place)."""

    inputs: tuple[str, ...]
    isas: tuple[str, ...]
    steps: tuple[StepCheck, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"differing": sum(step.differing for step in self.steps)}

    def text(self) -> str:
        rows = [("layer", "tensor", "op", "format", "values", "differing")]
        rows += [
            (
                one_line(s.layer, most=CELL_MOST),
                one_line(s.tensor, most=CELL_MOST),
                *(s.op, f"{s.bits} bits" if s.bits else "float32"),
                *(f"{s.values:,}", f"{s.differing:,}"),
            )
            for s in self.steps
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 4 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        values, differing = sum(s.values for s in self.steps), sum(s.differing for s in self.steps)
        return "\n".join(
            [
                *lines,
                f"inputs: {', '.join(self.inputs)}",
                f"instruction sets: {', '.join(self.isas)}",
                f"{differing} differing values among {values:,} in {len(self.steps)} steps",
            ]
        )


def verify(
    project: Path,
    *,
    images: F32,
    isas: Sequence[str] | None = None,
    seed: int = 0,
    make_args: Sequence[str] = (),
    progress: Progress | None = None,
) -> VerificationReport:
    """Builds the project with its own make and compares each step with host/oracle.npz.

    images: float32 [n, C, H, W], to which `adversarial_inputs` are added; isas: instruction sets by
    name, None: all that this CPU has. Raises MismatchError at the first tensor that differs.
    """
    facts, model = read_facts(project), read_oracle(project)
    shared_object = build(project, make_args=make_args)
    inputs = [(f"picture {i}", x) for i, x in enumerate(images, 1)]
    inputs += adversarial_inputs(facts.input, seed=seed)
    with ExitStack() as stack:
        first = stack.enter_context(Library(shared_object, facts))
        names = tuple(first.isas if isas is None else isas)
        libraries = [stack.enter_context(Library(shared_object, facts, isa=name)) for name in names]
        _check_steps(first, facts, model)
        preprocess = _preprocess(project, facts.input)
        _check_weights(first.linked_weights(), facts, model, preprocess)
        for done, (name, x) in enumerate(inputs, 1):
            trace = run_exact(model, x)
            for library in libraries:
                where = f"input '{name}', {library.isa}"
                for found, record in zip(library.trace(x), facts.steps, strict=True):
                    _compare(found, _expected(found, record["quant"], model, trace), where)
                _compare_output(library.run(x), model, trace, f"{where}, in one piece")
            if progress is not None:
                progress("verify", done, len(inputs))
        if preprocess is not None and first.takes_pixels:
            pixels = _random_pixels(facts, seed=seed)
            trace = run_exact(model, preprocess.apply(pixels[None])[0])
            for library in libraries:
                _compare_output(library.run_u8(pixels), model, trace, f"pixels, {library.isa}")
        steps = _describe(first.trace(inputs[0][1]), facts, times=len(inputs) * len(libraries))
    return VerificationReport(inputs=tuple(name for name, _ in inputs), isas=names, steps=steps)


def adversarial_inputs(shape: Shape, *, seed: int) -> list[tuple[str, F32]]:
    """Named inputs, float32 of `shape`, that reach clamps, overflows, infinities and NaN."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=50, size=shape).astype(np.float32)
    special = noise.copy()
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e38], np.float32)
    chosen = rng.random(shape) < 0.02
    special[chosen] = rng.choice(odd, int(chosen.sum()))
    return [
        ("zero", np.zeros(shape, np.float32)),
        ("saturated high", np.full(shape, 1e6, np.float32)),
        ("saturated low", np.full(shape, -1e6, np.float32)),
        ("huge", np.where(rng.random(shape) < 0.5, np.float32(-1e30), np.float32(1e30))),
        ("noise", noise),
        ("special", special),
    ]


def _random_pixels(facts: ProjectFacts, *, seed: int) -> npt.NDArray[np.uint8]:
    channels, height, width = facts.input
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), np.uint8)


def _check_steps(library: Library, facts: ProjectFacts, model: QuantizedModel) -> None:
    """There must be a step for each decomposed layer."""
    found = [library.step_name(index) for index in range(library.step_count)]
    missing = set(model.decomposed.layers) - set(found)
    if missing:
        raise MismatchError(
            f"the library's steps are {', '.join(found)}, and none is '{min(missing)}'",
            layer=facts.name,
        )


def _check_weights(
    blob: npt.NDArray[np.uint8],
    facts: ProjectFacts,
    model: QuantizedModel,
    preprocess: Preprocess | None,
) -> None:
    """The linked weights must be the oracle's, packed again: no input may show a wrong bit.

    What the packing itself is worth, the layers' results tell.
    """
    families = {step["layer"]: step["family"] for step in facts.steps if step.get("family")}
    plan = make_plan(
        model, name=facts.name, target=TARGETS[0], preprocess=preprocess, families=families
    )
    if len(blob) != plan.blob_bytes:
        raise MismatchError(
            f"{len(blob)} bytes of weights in the library, {plan.blob_bytes} from the oracle",
            layer=facts.name,
        )
    for section in plan.sections:
        expected = section.array.astype(section.array.dtype.newbyteorder("<"), order="C")
        part = blob[section.offset : section.offset + expected.nbytes]
        found = part.view(expected.dtype).reshape(expected.shape)
        wrong = np.argwhere(found.view(np.uint8) != expected.view(np.uint8))
        if len(wrong):
            layer, _, table = section.name.rpartition(".")
            last = int(wrong[0][-1]) // expected.itemsize
            at = (*(int(i) for i in wrong[0][:-1]), last)
            raise MismatchError(
                f"{table} at {at} is {found[at]} in the library's weights and {expected[at]} in "
                f"the oracle's; {len(wrong)} of {expected.nbytes} bytes differ",
                layer=layer or facts.name,
            )


def _expected(
    found: StepOutput, quant: str | None, model: QuantizedModel, trace: Trace
) -> npt.NDArray[Any]:
    """The oracle's values of a step's tensor in the shape that the library tells, (C, H, W)."""
    expected = expected_tensor(model, trace, tensor=found.tensor, quant=quant)
    if (expected.size, expected.dtype) != (found.array.size, found.array.dtype):
        raise MismatchError(
            f"tensor '{found.tensor}' has {found.array.size} values of {found.array.dtype} in the "
            f"library, {expected.size} of {expected.dtype} in the oracle",
            layer=found.layer,
        )
    return expected.reshape(found.array.shape)


def _compare(found: StepOutput, expected: npt.NDArray[Any], where: str) -> None:
    bits = [a if a.dtype == np.uint8 else a.view(np.uint32) for a in (found.array, expected)]
    wrong = np.argwhere(bits[0] != bits[1])
    if len(wrong):
        at = tuple(wrong[0])
        values = [_show(array[at]) for array in (found.array, expected)]
        raise MismatchError(
            f"tensor '{found.tensor}' at (c={at[0]}, h={at[1]}, w={at[2]}) is {values[0]} in the "
            f"library and {values[1]} in the oracle; {len(wrong)} of {expected.size} values differ "
            f"({where})",
            layer=found.layer,
        )


def _show(value: Any) -> str:
    """A code as a number, a float with its bits."""
    if value.dtype == np.uint8:
        return str(value)
    return f"{value:.9g} (0x{value.view(np.uint32):08x})"


def _compare_output(output: F32, model: QuantizedModel, trace: Trace, where: str) -> None:
    name = model.graph.output
    found = StepOutput(layer="output", tensor=name, bits=0, array=output.reshape(-1, 1, 1))
    _compare(found, trace.values[name].reshape(-1, 1, 1), where)


def _preprocess(project: Path, shape: Shape) -> Preprocess | None:
    """What the library does to pixels, as report.json records it; None: it takes none."""
    report = project / REPORT_FILE
    if not report.is_file():
        return None
    try:
        record = read_record(report, {"type": "object", "required": ["preprocess"]})
        preprocess = Preprocess.from_json(record["preprocess"])
        if not preprocess.fits(shape):
            raise ValueError("it is of another input")
        return preprocess
    except (OSError, ValueError):
        raise OutputError(
            "report.json is damaged", layer=str(project), hint="Compile the project again"
        ) from None


def _describe(
    steps: Sequence[StepOutput], facts: ProjectFacts, *, times: int
) -> tuple[StepCheck, ...]:
    return tuple(
        StepCheck(
            layer=step.layer,
            tensor=step.tensor,
            op=record["op"],
            bits=step.bits,
            values=step.array.size * times,
        )
        for step, record in zip(steps, facts.steps, strict=True)
    )
