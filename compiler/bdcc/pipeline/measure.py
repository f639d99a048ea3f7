# SPDX-License-Identifier: 0BSD
"""Accuracy measured on the library that the emitted project builds: the figures that are reported
as measured.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np

from bdcc.data.pictures import Pictures, Progress
from bdcc.host.library import Library
from bdcc.ir.graph import F32, Graph
from bdcc.pipeline.cache import Arrays, Cache
from bdcc.pipeline.material import Judged, outcome_of

BATCH = (
    32  # pictures per thread and call: enough to keep threads busy, little enough to show progress
)
SHF_EXECINSTR = 4
REPORTS = ("report.json", "report.html", "timings.json", "manifest.txt")


def library_logits(
    library: Library, pictures: Pictures, *, threads: int, progress: Progress | None = None
) -> F32:
    """float32 [N, outputs]: what the built library makes of the pictures, threads with an arena
    each.
    """
    step, parts = BATCH * threads, []
    for start in range(0, len(pictures), step):
        rows = range(start, min(start + step, len(pictures)))
        parts.append(library.run_batch(pictures.batch(rows), threads=threads))
        if progress is not None:
            progress("measure the library", rows.stop, len(pictures))
    return np.concatenate(parts).reshape(len(pictures), -1)


def measure_built(
    project: Path,
    graph: Graph,
    judged: Judged,
    *,
    cache: Cache,
    threads: int,
    progress: Progress | None = None,
) -> Arrays:
    """`outcome_of` what the built library answers.

    Kept in the cache by the content of the project, so the same choice is never measured twice.
    """

    def measure() -> Arrays:
        with Library.open(project) as library:
            logits = library_logits(library, judged.pictures, threads=threads, progress=progress)
        return outcome_of(graph, judged, logits)

    labels = hashlib.sha256(judged.labels.tobytes()).hexdigest()
    key = (content_digest(project), graph.sha256, judged.pictures.key, labels)
    return cache.arrays("measured", *key, make=measure)


def content_digest(project: Path) -> str:
    """Of a project's sources: names and bytes of its files, reports and build/ left out."""
    state = hashlib.sha256()
    for file in sorted(project.rglob("*")):
        name = file.relative_to(project)
        if name.parts[0] in ("build", *REPORTS) or not file.is_file():
            continue
        content = file.read_bytes()
        state.update(f"{name.as_posix()}\0{len(content)}\0".encode() + content)
    return state.hexdigest()


def code_bytes(library: Path) -> int | None:
    """Bytes of machine code in a shared library: its executable sections. None unless it is a
    little-endian ELF file.
    """
    data = library.read_bytes()
    if data[:4] != b"\x7fELF" or data[5] != 1:
        return None
    wide = data[4] == 2
    (table,) = struct.unpack_from("<Q" if wide else "<I", data, 40 if wide else 32)
    entry, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    total = 0
    for start in range(table, table + entry * count, entry):
        (flags,) = struct.unpack_from("<Q" if wide else "<I", data, start + 8)
        (size,) = struct.unpack_from("<Q" if wide else "<I", data, start + (32 if wide else 20))
        total += size if flags & SHF_EXECINSTR else 0
    return total or None
