# SPDX-License-Identifier: 0BSD
"""Writes the C project of a plan. The only user of jinja2: loops and substitution, no decisions."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

import bdcc
from bdcc.approx.model import save_oracle
from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.bytedot import WIDE_BELOW, signed_offset
from bdcc.codegen.bytedot import template_variables as bytedot_variables
from bdcc.codegen.bytedot_dense import template_variables as dense_variables
from bdcc.codegen.checksum import checksum
from bdcc.codegen.escape import FILTERS, LIBRARY_MOST, LITERAL_MOST, library_text, opaque
from bdcc.codegen.golden import golden_vectors
from bdcc.codegen.lut import template_variables as lut_variables
from bdcc.codegen.memory import ALIGNMENT
from bdcc.codegen.plan import (
    BLOB_FORMAT,
    BLOB_HEADER_BYTES,
    DeploymentPlan,
    describe_steps,
)
from bdcc.codegen.popcount import template_variables as popcount_variables
from bdcc.codegen.steps import Buffer, Step
from bdcc.ir.graph import F32, op_name

ARRAY_LIMIT = 128 * 1024  # bytes of weights that still go into C text (about 2.6 characters a byte)


def emit(plan: DeploymentPlan, folder: Path, *, pictures: F32) -> None:
    """Write the whole project but its report into an existing, empty folder.

    pictures: float32 [n, C, H, W], preprocessed; they become the golden vectors that `selftest`
    runs.
    """
    emit_sources(plan, folder)
    save_oracle(plan.model, folder / "host" / "oracle.npz")
    steps = describe_steps(plan)
    (folder / "host" / "golden.bin").write_bytes(golden_vectors(plan.model, steps, pictures))


def emit_sources(plan: DeploymentPlan, folder: Path) -> None:
    """Write what is built and loaded: everything but the golden vectors and the oracle."""
    name, blob = plan.name, _blob(plan)
    variables = _variables(plan, blob)
    render = renderer(opaque(variables))
    for sub in ("include", "src", "weights", "host"):
        (folder / sub).mkdir()
    for header in sorted(shipped("runtime").iterdir(), key=lambda p: p.name):
        if header.name.endswith(".h") or header.name == "bin2c.c":
            (folder / "src" / header.name).write_bytes(header.read_bytes())
    texts = {
        f"include/{name}.h": "model.h.j2",
        f"src/{name}.c": "model.c.j2",
        f"src/{name}_steps.h": "steps.h.j2",
        f"src/{name}_weights.c": "weights.c.j2",
        f"src/{name}_weights.h": "weights.h.j2",
        f"src/{name}-config.cmake": "config.cmake.j2",
        "src/main.c": "main.c.j2",
        "src/selftest.c": "selftest.c.j2",
        "src/selftest.h": "selftest.h.j2",
        "Makefile": "Makefile.j2",
        "CMakeLists.txt": "CMakeLists.txt.j2",
        "README.md": "README.md.j2",
        "LICENSE": "LICENSE.j2",
    }
    if not variables["has_pixels"]:
        del texts["src/main.c"]
    if variables["emulator"]:
        texts["toolchain.cmake"] = "toolchain.cmake.j2"
    if variables["array_by_default"]:
        texts[f"src/{name}_weights_array.h"] = "array.h.j2"
    for target, template in texts.items():
        (folder / target).write_text(render(template), encoding="utf-8")
    for kernels, numbers in _kernels(plan).items():
        text = renderer(numbers)(f"{kernels}.h.j2")  # made from bases and bits: nobody's texts
        (folder / "src" / f"{kernels}_kernels.h").write_text(text, encoding="utf-8")
    (folder / "weights" / f"{name}.bin").write_bytes(blob)
    project = {
        "name": name,
        "input": list(plan.model.graph.shapes[plan.model.graph.input]),
        "outputs": plan.outputs,
        "arena_bytes": plan.arena_bytes,
        "weight_bytes": len(blob),
        "fingerprint": f"{plan.fingerprint:016x}",
        "steps": describe_steps(plan),
    }
    (folder / "host" / "project.json").write_text(json.dumps(project, indent=1) + "\n")


def shipped(what: str) -> Any:
    """runtime/ or templates/: inside the installed package, or at the top of the checkout."""
    packaged = resources.files("bdcc") / f"_{what}"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / what


def _blob(plan: DeploymentPlan) -> bytes:
    """Header (64 bytes: "BDCC", format, fingerprint, size, checksum of what is behind the header,
    zeros) and the sections, little-endian.
    """
    body = np.zeros(plan.blob_bytes, dtype=np.uint8)
    for section in plan.sections:
        data = np.ascontiguousarray(section.array, dtype=section.array.dtype.newbyteorder("<"))
        body[section.offset : section.offset + data.nbytes] = data.reshape(-1).view(np.uint8)
    body[:4] = np.frombuffer(b"BDCC", dtype=np.uint8)
    body[4:8] = np.array([BLOB_FORMAT], "<u4").view(np.uint8)
    guard = [plan.fingerprint, plan.blob_bytes, checksum(body[BLOB_HEADER_BYTES:])]
    body[8:32] = np.array(guard, "<u8").view(np.uint8)
    return body.tobytes()


def renderer(variables: Mapping[str, Any]) -> Callable[[str], str]:
    """Renders templates by name with these variables; the filters are those of codegen/escape.py.
    Variables that hold a text of the model's or the user's are to be `opaque`.
    """
    loader = jinja2.FunctionLoader(lambda name: (shipped("templates") / name).read_text("utf-8"))
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # escape.opaque is stricter, and knows the languages
    )
    environment.filters |= FILTERS
    return lambda template: environment.get_template(template).render(variables)


def _variables(plan: DeploymentPlan, blob: bytes) -> dict[str, Any]:
    graph = plan.model.graph
    input_shape = graph.shapes[graph.input]
    output_shape = graph.shapes[graph.output]
    has_pixels = plan.preprocess is not None and input_shape[0] <= 4
    small = len(blob) <= ARRAY_LIMIT
    offsets = {section.name: section.offset for section in plan.sections}
    arena = [plan.arena_bytes, plan.private_bytes]
    interface = json.dumps([input_shape, plan.outputs, *arena, BLOB_FORMAT])
    layers = [_layer(plan, node.name, op_name(node)) for node in graph.weight_layers]
    steps = [_step(plan, step, offsets) for step in plan.steps]
    flags, machine = plan.target.cflags.split(), plan.target.machine or ""
    cross = plan.target.cross
    words = np.frombuffer(blob, "<u8") if small else np.zeros(0, "<u8")
    return {
        "name": plan.name,
        "NAME": plan.name.upper(),
        "version": bdcc.__version__,
        "input": input_shape,
        "outputs": plan.outputs,
        "output_shape": output_shape,
        "arena_bytes": plan.arena_bytes,
        "part_bytes": plan.private_bytes,
        "alignment": ALIGNMENT,
        "arena_align": ALIGNMENT,
        "abi": zlib.crc32(interface.encode()) & 0x7FFFFFFF,
        "isas": plan.target.isas,
        "has_pixels": has_pixels,
        "kernels": list(_kernels(plan)),
        "has_float_convs": any(step.kind == "conv_float" for step in plan.steps),
        "order": plan.preprocess.rgb_index if plan.preprocess else (),
        "crop": plan.preprocess.crop if plan.preprocess else None,
        "fingerprint": f"{plan.fingerprint:016x}",
        "blob_bytes": len(blob),
        "blob_format": BLOB_FORMAT,
        "header_bytes": BLOB_HEADER_BYTES,
        "steps": steps,
        "slice_bytes": max(
            s["runs"] * s["run_bytes"] if s["run_bytes"] < s["pitch_bytes"] else 1 for s in steps
        ),
        "labels": _labels(plan),
        "info": _info(plan, layers),
        "layers": layers,
        "array_by_default": small,
        "default_weights": "array" if small else "incbin",
        "words": [f"0x{int(word):x}u" for word in words],
        "target": plan.target.name,
        "cflags": " ".join(flag for flag in flags if flag.startswith("-O")) or "-O3",
        "cpu_flags": " ".join(flag for flag in flags if not flag.startswith("-O")),
        "machine": machine,
        "arm32": machine == "arm",
        "armv6": plan.target.armv6,
        "cross": cross,
        "bare": plan.target.bare,
        "emulator": f"qemu-{machine}" if cross and not plan.target.bare else "",
        "libraries": f"/usr/{cross[:-1]}" if re.fullmatch(r"\w+-linux-gnu\w*-", cross) else "",
        "portable": int(plan.target.portable),
    }


def _info(plan: DeploymentPlan, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of <m>_info(): texts, one for each layer, to be joined. Byte by byte where they are
    longer than C11 promises of a string literal.
    """
    named = [json.dumps(layer | {"name": library_text(layer["name"])}) for layer in layers]
    head = f'{{"name": {json.dumps(plan.name)}, "layers": ['
    texts = [head, *(f"{one}, " for one in named[:-1]), *named[-1:], "]}"]
    short = max(map(len, texts)) <= LIBRARY_MOST and sum(map(len, texts)) <= LITERAL_MOST
    return {"texts": texts if short else (), "bytes": list("".join(texts).encode())}


def _kernels(plan: DeploymentPlan) -> dict[str, dict[str, Any]]:
    """Templates of the kernels that the project has, and what each is rendered with."""
    steps = {family: plan.binary_steps(family) for family in FAMILIES}
    dense, convs = (
        [s for s in steps["bytedot"] if (s.values["form"] == "vector") == vector]
        for vector in (True, False)
    )

    def pairs(of: list[Step]) -> set[tuple[int, int]]:
        return {(s.values["bases"], s.values["bits"]) for s in of}

    found: dict[str, dict[str, Any]] = {}
    if steps["popcount"]:
        found["popcount"] = popcount_variables(pairs(steps["popcount"]))
    if steps["lut"]:
        found["lut"] = lut_variables(pairs(steps["lut"]))
    if convs:
        found["bytedot"] = bytedot_variables(
            {s.values["bases"] for s in convs},
            wide=any(s.values["flush"] < WIDE_BELOW for s in convs),
            offset=any(signed_offset(s.values["bits"]) for s in convs),
        )
    if dense:
        found["bytedot_dense"] = dense_variables(pairs(dense))
    return found


def _labels(plan: DeploymentPlan) -> list[str]:
    return list(plan.labels) or [f"class {index}" for index in range(plan.outputs)]


def _layer(plan: DeploymentPlan, name: str, op: str) -> dict[str, Any]:
    step = next(
        s
        for s in plan.steps
        if s.layer == name and s.kind in ("binary", "conv_float", "dense_float")
    )
    return {
        "name": name,
        "op": op,
        "bases": step.values.get("bases", "float"),
        "bits": step.values.get("bits", "float"),
    }


def _step(plan: DeploymentPlan, step: Step, offsets: dict[str, int]) -> dict[str, Any]:
    arena, source, output = plan.offsets, step.input, step.output
    shape = output.shape if output else (plan.outputs, 1, 1)
    bits = output.bits if output else 0
    pitch = output.pitch if output else plan.outputs
    runs, run = output.runs if output else (1, plan.outputs)
    value_bytes = output.value_bytes if output else 4

    def offset(buffer: Buffer | None) -> int:
        return arena[buffer.name] + buffer.start * buffer.value_bytes if buffer else 0

    return {
        "name": step.name,
        "kind": step.kind,
        "layer": step.layer,
        "tensor": step.tensor,
        "comment": _comment(step),
        "in_offset": offset(source),
        "out_offset": offset(output),
        "scratch_offset": arena.get(f"scratch:{step.name}", 0),
        "scratch_bytes": step.scratch_bytes,
        "count": (source or output).count if (source or output) else 0,  # type: ignore[union-attr]
        "shape": shape,
        "bits": bits,
        "pitch": pitch,
        "runs": runs,
        "run": run,
        "run_bytes": run * value_bytes,
        "pitch_bytes": pitch * value_bytes,
        "row": pitch * shape[2],
        "in_shape": source.shape if source else shape,
        "v": step.values,
        "s": {section.rpartition(".")[2]: offsets[section] for section in step.sections},
    }


def _comment(step: Step) -> str:
    def text(buffer: Any) -> str:
        if buffer is None:
            return "the caller's floats"
        channels, height, width = buffer.shape
        values = f"codes of {buffer.bits} bits" if buffer.bits else "floats"
        return f"{height}x{width}x{channels} {values}"

    detail = ""
    if step.kind == "binary":
        v = step.values
        detail = f", {v['family']}, {v['bases']} bases, {v['bits']} bits, {v['form']}"
    return f"{step.layer} ({step.kind}{detail}): {text(step.input)} -> {text(step.output)}"
