# SPDX-License-Identifier: 0BSD
"""`bdcc bench`: how long a project takes, beside what the core could do and what others take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bdcc.approx.simulate import run_float
from bdcc.data.pictures import Progress
from bdcc.errors import OptionError
from bdcc.files import check_folder, write_text, writing
from bdcc.host.bench import bench
from bdcc.host.peers import time_systems
from bdcc.host.resident import measure_resident
from bdcc.pipeline.project import Project, load_model, sample_pictures
from bdcc.report.report import write_json

CALIBRATE = 8  # pictures; other systems' int8 need no more to be timed


def bench_project(
    project: Project,
    *,
    threads: int = 1,
    isa: str | None = None,
    layers: bool = False,
    peers: bool = False,
    model: Path | None = None,
    data: Path | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Figures of host.bench's BenchResult; `memory`: of host.resident's Resident, or None;
    `systems`: of host.peers' SystemTime, if `peers`.

    model: the ONNX file, which peers need; data: pictures to time and calibrate them on, generated
    without; output: a folder for bench.json and bench.svg.
    """
    if threads < 1:
        raise OptionError(f"{threads} is below 1", layer="--threads")
    if peers and model is None:
        raise OptionError(
            "other systems run the ONNX model, which is not given",
            layer="--peers",
            hint="Name it by --model MODEL.onnx",
        )
    if output is not None:
        check_folder(output)
    graph = load_model(project, model) if peers and model is not None else None
    result = bench(project.folder, threads=threads, isa=isa, layers=layers, progress=progress)
    memory = measure_resident(project.folder)
    found = {
        **result.as_json(),
        "memory": None if memory is None else asdict(memory),
        "systems": [],
    }
    if graph is not None and model is not None:
        pictures = sample_pictures(project, data, count=1 + CALIBRATE)
        systems = time_systems(
            project.folder,
            model=model,
            pictures=pictures,
            expected=run_float(graph, pictures[0])[graph.output].reshape(-1),
            isa=isa,
            threads=threads,
            progress=progress,
        )
        found["systems"] = [system.as_json() for system in systems]
    if output is not None:
        from bdcc.report.bench_figure import draw_bench

        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        write_json(found, output / "bench.json")
        write_text(output / "bench.svg", draw_bench(found))
    return found
