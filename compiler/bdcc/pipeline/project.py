# SPDX-License-Identifier: 0BSD
"""Work on a project that is already there: classify a picture, measure accuracy, look into its
layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bdcc.approx.evaluate import ranks_of
from bdcc.approx.quantize import dequantize
from bdcc.approx.simulate import run_float
from bdcc.data.generate import generate_pictures
from bdcc.data.listing import draw, list_pictures, read_classes
from bdcc.data.pictures import Progress, read_picture, read_pictures
from bdcc.data.preprocess import Preprocess
from bdcc.errors import DataError, ModelError, OutputError
from bdcc.files import write_file
from bdcc.host.facts import read_facts, read_oracle
from bdcc.host.library import Library, StepOutput
from bdcc.ir.graph import F32, Graph, Shape
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.measure import library_logits
from bdcc.pipeline.options import available_cpus
from bdcc.report.report import percent, read_report
from bdcc.report.text import table

TOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A project folder and what it says of itself. shape: of the input, (C, H, W)."""

    folder: Path
    report: Mapping[str, Any]
    preprocess: Preprocess
    shape: Shape
    outputs: int


def open_project(folder: Path) -> Project:
    """Raises OutputError unless `folder` holds a project of this version of bdcc."""
    facts = read_facts(folder)
    try:
        report = read_report(folder)
        preprocess = Preprocess.from_json(report["preprocess"])
    except (ValueError, KeyError, TypeError):
        raise OutputError(
            "report.json is not there, is damaged, or is of another version of bdcc",
            layer=str(folder),
            hint="Compile the project again",
        ) from None
    return Project(
        folder=folder,
        report=report,
        preprocess=preprocess,
        shape=facts.input,
        outputs=facts.outputs,
    )


def load_model(project: Project, model: Path) -> Graph:
    """The float network. Raises ModelError if it is not the one that became the project."""
    graph = load_onnx(model)
    if graph.sha256 != project.report["model"]["sha256"]:
        raise ModelError("is not the model that this project was compiled from", layer=str(model))
    return graph


def sample_pictures(project: Project, data: Path | None, *, count: int) -> F32:
    """float32 [count, C, H, W] as the model takes them, from `data` or generated."""
    if data is None:
        pictures = generate_pictures(
            count, shape=project.shape, preprocess=project.preprocess, seed=0
        )
        return pictures.batch(range(count))
    listing = list_pictures(data, shape=project.shape, outputs=project.outputs, labelled=False)
    rows = draw(None, np.arange(len(listing)), count=count, seed=0)
    read = read_pictures(listing, rows=rows, shape=project.shape, preprocess=project.preprocess)
    return read.batch(range(len(read)))


def dump_layers(project: Path, x: F32, file: Path) -> None:
    """Every layer's output for the picture x, float32 [C, H, W], as .npz: arrays named step_tensor,
    in (C, H, W).
    """
    with Library.open(project) as library:
        steps = library.trace(x)
    arrays = {f"{i:02d}_{step.tensor}": step.array for i, step in enumerate(steps)}
    write_file(file, lambda out: np.savez(out, **arrays))  # type: ignore[arg-type]


def classify(project: Project, picture: Path, *, model: Path | None) -> dict[str, Any]:
    """The first classes of a picture file by the built library; with the ONNX model also the float
    answer and the signal-to-noise ratio of each layer."""
    pixels = read_picture(picture, shape=project.shape, preprocess=project.preprocess)
    graph = None if model is None else load_model(project, model)
    with Library.open(project.folder) as library:
        logits = library.run_u8(pixels)
        answer: dict[str, Any] = {"picture": picture.name, "top": _top(logits, library)}
        if graph is not None:
            x = project.preprocess.apply(pixels[None])[0]
            floats = run_float(graph, x)
            answer["float_top"] = _top(floats[graph.output].reshape(-1), library)
            answer["sqnr_db"] = _layer_ratios(project.folder, floats, library.trace(x))
    return answer


def _top(logits: F32, library: Library) -> list[dict[str, Any]]:
    order = np.argsort(-np.where(np.isnan(logits), -np.inf, logits), kind="stable")[:TOP]
    return [
        {"index": int(i), "label": library.label(int(i)), "score": float(logits[i])} for i in order
    ]


def _layer_ratios(
    folder: Path, floats: Mapping[str, F32], steps: Sequence[StepOutput]
) -> list[dict[str, Any]]:
    """The ratio of every step whose tensor the float model has; codes stand for delta * (q - z)."""
    tensors = read_oracle(folder).tensors
    rows = []
    for step, fact in zip(steps, read_facts(folder).steps, strict=True):
        if step.tensor not in floats:
            continue
        found = step.array
        if step.bits:
            quant = tensors[fact["quant"]]
            assert quant.delta is not None, "codes in memory have a static range"
            found = dequantize(found, quant.delta, quant.zero_point)
        ratio, exactly = _sqnr_db(floats[step.tensor].reshape(found.shape), found)
        rows.append(
            {
                "layer": step.layer,
                "op": fact["op"],
                "tensor": step.tensor,
                "sqnr_db": ratio,
                "exact": exactly,
            }
        )
    return rows


def _sqnr_db(exact: F32, found: F32) -> tuple[float | None, bool]:
    """Signal-to-noise ratio in dB, None without signal or noise; and whether there is no noise."""
    signal = float(np.square(exact, dtype=np.float64).sum())
    noise = float(np.square(exact.astype(np.float64) - found).sum())
    if not (noise > 0 and signal > 0):
        return None, noise == 0
    return round(10 * float(np.log10(signal / noise)), 2), False


def answer_text(answer: Mapping[str, Any]) -> str:
    header, rows = ["rank", "class", "score"], []
    sides = [answer["top"]] + ([answer["float_top"]] if "float_top" in answer else [])
    if len(sides) == 2:
        header += ["float class", "score"]
    for rank, entries in enumerate(zip(*sides, strict=True), 1):
        cells = [str(rank)]
        for entry in entries:
            cells += [f"{entry['index']} {entry['label'] or ''}".strip(), f"{entry['score']:.4f}"]
        rows.append(cells)
    text = table(header, rows, left=2)
    if "sqnr_db" not in answer:
        return text
    ratios = [
        [
            item["layer"],
            item["op"],
            item["tensor"],
            "exact"
            if item["exact"]
            else "-"
            if item["sqnr_db"] is None
            else f"{item['sqnr_db']:.1f}",
        ]
        for item in answer["sqnr_db"]
    ]
    return text + "\n\n" + table(["layer", "op", "tensor", "SQNR dB"], ratios, left=3)


def evaluate_project(
    project: Project,
    data: Path,
    *,
    classes: Path | None,
    limit: int,
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Accuracy of the built library on labelled pictures, in per cent."""
    named = None if classes is None else read_classes(classes, outputs=project.outputs)
    listing = list_pictures(data, shape=project.shape, outputs=project.outputs, classes=named)
    if listing.labels is None:
        raise DataError(
            "the pictures have no labels", layer=str(data), hint="Give a folder per class"
        )
    rows = draw(listing.labels, np.arange(len(listing)), count=limit, seed=0)
    pictures = read_pictures(
        listing, rows=rows, shape=project.shape, preprocess=project.preprocess, progress=progress
    )
    assert pictures.labels is not None
    with Library.open(project.folder) as library:
        logits = library_logits(
            library, pictures, threads=threads or available_cpus(), progress=progress
        )
    ranks = ranks_of(logits, pictures.labels)
    return {
        "samples": len(pictures),
        "top1": percent(ranks < 1),
        "top5": percent(ranks < TOP),
        "metric": project.report["accuracy"]["metric"],
    }


def evaluation_text(result: Mapping[str, Any]) -> str:
    return (
        f"{result['samples']} pictures: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %"
    )
