# SPDX-License-Identifier: 0BSD
"""The pictures of a compilation, what they are judged by, and the float model's answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.approx.chunks import ChunkRunner, chunk_bounds
from bdcc.approx.evaluate import I32, first_classes, ranks_of
from bdcc.approx.model import DecomposedModel
from bdcc.approx.sensitivity import divergence, log_probabilities
from bdcc.approx.tables import measure_logits
from bdcc.data.generate import generate_pictures
from bdcc.data.listing import I64, Classes, Listing, list_pictures, read_classes, split
from bdcc.data.pictures import JoinedPictures, Pictures, Progress, read_picture, read_pictures
from bdcc.data.preprocess import PRESETS, Preprocess, make_preprocess
from bdcc.errors import DataError
from bdcc.ir.graph import F32, Graph, macs
from bdcc.pipeline.cache import Cache
from bdcc.pipeline.options import CompileOptions

GENERATED = {"search": 200, "calib": 200, "holdout": 100}
PRESET_TRIAL = 200
TOP = {"top1": 1, "top5": 5}
# Fewer multiplications than this take less time than starting worker processes.
IN_PROCESS_MACS = 20e9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """The pictures of each part. judge: labels, agreement or generated; class_labels: of the
    outputs, or empty.
    """

    search: Pictures
    calib: Pictures
    holdout: Pictures
    judge: str
    class_labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Pictures with the labels they are judged by, the float model's outputs, float32 [N, outputs],
    and its ranks of the labels, int32 [N].
    """

    pictures: Pictures
    labels: I64
    float_outputs: F32
    float_ranks: I32


def outcome_of(
    graph: Graph, judged: Judged, outputs: F32, rows: I64 | None = None
) -> dict[str, npt.NDArray[Any]]:
    """What a model's outputs, float32 [n, outputs], of all pictures or of `rows` are worth: ranks,
    int32 [n], of the labels, and nats, float64 [n], of divergence from the float model.
    """
    some = slice(None) if rows is None else rows
    reference = log_probabilities(graph, judged.float_outputs[some])
    return {
        "ranks": ranks_of(outputs, judged.labels[some]),
        "nats": divergence(reference, log_probabilities(graph, outputs)),
    }


def outputs_of(graph: Graph) -> int:
    return int(np.prod(graph.shapes[graph.output]))


def gather(
    graph: Graph,
    options: CompileOptions,
    *,
    preprocess: Preprocess,
    cache: Cache,
    progress: Progress | None,
) -> Material:
    """The pictures that the options name, shared out, decoded and at the model's size. Raises
    DataError.
    """
    shape, outputs, store = graph.shapes[graph.input], outputs_of(graph), cache.shelf("pictures")
    named = None if options.classes is None else read_classes(options.classes, outputs=outputs)

    def listing(path: Path, *, labelled: bool = True) -> Listing:
        return list_pictures(path, shape=shape, outputs=outputs, classes=named, labelled=labelled)

    def read(found: Listing, rows: I64 | None = None) -> Pictures:
        return read_pictures(
            found,
            rows=rows,
            shape=shape,
            preprocess=preprocess,
            store=store,
            workers=options.worker_count,
            progress=progress,
        )

    def generated(part: str) -> Pictures:
        count = GENERATED[part]
        if part == "search" and options.limit:
            count = min(count, options.limit)
        seed = options.seed * len(GENERATED) + list(GENERATED).index(part)
        return generate_pictures(count, shape=shape, preprocess=preprocess, seed=seed, store=store)

    # Everything is listed, and refused if it has to be, before anything is decoded.
    calib = None if options.calib is None else listing(options.calib, labelled=False)
    holdout = None if options.holdout is None else listing(options.holdout)
    if options.data is None:
        return Material(
            search=generated("search"),
            calib=generated("calib") if calib is None else read(calib),
            holdout=generated("holdout") if holdout is None else read(holdout),
            judge="generated",
            class_labels=() if named is None else named.labels,
        )
    data = listing(options.data)
    if data.labels is not None and holdout is not None and holdout.labels is None:
        raise DataError("has no labels, but --data has", layer=str(options.holdout))
    if data.array is None:  # rather told that it is none than that one picture is too few
        read_picture(data.path / data.names[0], shape=shape, preprocess=preprocess)
    parts = split(
        data, calib=calib is None, holdout=holdout is None, limit=options.limit, seed=options.seed
    )
    classes: Classes | None = named or data.classes
    return Material(
        search=read(data, parts.search),
        calib=read(data, parts.calib) if calib is None else read(calib),
        holdout=read(data, parts.holdout) if holdout is None else read(holdout),
        judge="agreement" if data.labels is None else "labels",
        class_labels=() if classes is None else classes.labels,
    )


def warn_of_repeats(material: Material) -> tuple[str, ...]:
    """Warnings about pictures, told by their content, that serve for more than one purpose."""
    seen = {
        "calibration": _contents(material.calib),
        "search": _contents(material.search),
        "holdout": _contents(material.holdout),
    }
    reasons = {
        ("calibration", "search"): "the search is judged on what it was fitted to",
        ("calibration", "holdout"): "the holdout is not new to the model",
        ("search", "holdout"): "the holdout is not new to the search",
    }
    found = []
    for (one, other), reason in reasons.items():
        count = len(seen[one] & seen[other])
        if count:
            found.append(
                f"{count} of the {len(seen[one])} {one} pictures are also {other} pictures: "
                f"{reason}"
            )
    return tuple(found)


def _contents(pictures: Pictures) -> set[bytes]:
    """A digest of each picture's values."""
    return {hashlib.blake2b(one, digest_size=16).digest() for one in pictures.contents()}


def evaluation_workers(graph: Graph, pictures: int, options: CompileOptions) -> int | str:
    """Who works on that many inferences, for ChunkRunner: a cluster if one is named; 0, this
    process, where that is quicker than starting others.
    """
    if isinstance(options.workers, str):
        return options.workers
    work = pictures * sum(macs(node, graph.shapes) for node in graph.nodes)
    return 0 if work < IN_PROCESS_MACS else options.worker_count


def judge(
    graph: Graph,
    material: Material,
    options: CompileOptions,
    *,
    metric: str,
    cache: Cache,
    progress: Progress | None,
) -> tuple[Judged, Judged, tuple[str, ...]]:
    """Search and holdout pictures with what they are judged by, and warnings about the
    preprocessing.
    """
    variants = _preset_variants(graph, material)
    source = JoinedPictures(
        parts=(material.search, material.holdout, *(pictures for _, pictures in variants))
    )
    store = cache.shelf("float", graph.sha256, source.key)
    workers = evaluation_workers(graph, len(source), options)
    model = DecomposedModel(graph=graph, layers={})
    with ChunkRunner(source, workers=workers) as runner:
        logits = measure_logits(
            runner, model, {}, stage="float model", store=store, progress=progress
        )
        found = len(chunk_bounds(len(source))) - runner.computed
        cache.count("chunks of the float model", found=found, made=runner.computed)
    starts = source.starts
    parts = [logits[a:b] for a, b in pairwise(starts)]
    agreement = material.judge != "labels"
    judged = [
        _judge_part(pictures, part, agreement=agreement)
        for pictures, part in zip((material.search, material.holdout), parts[:2], strict=True)
    ]
    trials = [(name, p, part) for (name, p), part in zip(variants, parts[2:], strict=True)]
    return judged[0], judged[1], tuple(_better_preset(judged[0], trials, TOP[metric]))


def _judge_part(pictures: Pictures, logits: F32, *, agreement: bool) -> Judged:
    labels = first_classes(logits) if agreement or pictures.labels is None else pictures.labels
    return Judged(
        pictures=pictures,
        labels=labels,
        float_outputs=logits,
        float_ranks=ranks_of(logits, labels),
    )


def evenly(total: int, count: int) -> I64:
    """At most `count` of `total` rows, evenly spaced: pictures lie class by class."""
    return np.unique(np.linspace(0, total - 1, min(total, count)).astype(np.int64))


def _preset_variants(graph: Graph, material: Material) -> list[tuple[str, Pictures]]:
    """Some of the search pictures under every preset that makes other numbers of them."""
    search, shape = material.search, graph.shapes[graph.input]
    if search.labels is None or not search.are_pixels:
        return []
    sample = search.subset(evenly(len(search), PRESET_TRIAL))
    used = search.preprocess
    found = []
    for name in PRESETS:
        other = make_preprocess(shape=shape, preset=name, resize=used.resize)
        if replace(other, preset=used.preset) != used:
            found.append((name, replace(sample, preprocess=other)))
    return found


def _better_preset(
    search: Judged, trials: Sequence[tuple[str, Pictures, F32]], top: int
) -> list[str]:
    """A warning if a preset is better than what was asked for by more than chance would have it."""
    rows = evenly(len(search.labels), PRESET_TRIAL)
    own = search.float_ranks[rows] < top
    best: tuple[int, str] | None = None
    for name, _, logits in trials:
        hits = ranks_of(logits, search.labels[rows]) < top
        won, lost = int((hits & ~own).sum()), int((own & ~hits).sum())
        beats_chance = won - lost > 2 * np.sqrt(won + lost)
        if beats_chance and (best is None or int(hits.sum()) > best[0]):
            best = (int(hits.sum()), name)
    if best is None:
        return []
    count = len(rows)
    return [
        f"on {count} pictures the float model reaches {100 * best[0] / count:.1f} % with "
        f"--preset {best[1]}, but {100 * own.sum() / count:.1f} % with the preprocessing given"
    ]
