# SPDX-License-Identifier: 0BSD
"""What does it cost to decompose the weights alone, activations being float?

    python examples/measure_aware.py alexnet.onnx --data val/ --calib calib/ --bases 4,3,2

By number of bases, with free integer coefficients and with those of an integer format (1, 2, 4, ..)
by the same procedure.

Prints a table: accuracy lost on search and holdout pictures in percentage points, KL divergence
of the outputs from the float model's in nats, seconds, and the most memory the process has taken.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.observe import observe
from bdcc.approx.sequence import SequenceDecomposer
from bdcc.approx.tables import measure_logits
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline.cache import open_cache
from bdcc.pipeline.material import TOP, evaluation_workers, gather, judge, outcome_of
from bdcc.pipeline.options import CompileOptions, default_metric


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    for name in ("--data", "--calib", "--holdout"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--preset", default="torchvision")
    parser.add_argument("--mean", help="like 122.2,116.2,103.6")
    parser.add_argument("--resize", default="stretch")
    parser.add_argument("--bases", default="4,3,2")
    given = parser.parse_args()
    options = CompileOptions(
        output=Path("unused"),
        data=given.data,
        calib=given.calib,
        holdout=given.holdout,
        preset=given.preset,
        mean=None if given.mean is None else tuple(float(x) for x in given.mean.split(",")),
        resize=given.resize,
    )
    graph = load_onnx(given.model)
    metric = default_metric(graph)
    with open_cache(options.cache) as cache:
        material = gather(
            graph, options, preprocess=options.preprocess(graph), cache=cache, progress=None
        )
        *parts, _ = judge(graph, material, options, metric=metric, cache=cache, progress=None)
    began = time.monotonic()
    observed = observe(graph, material.calib, workers=options.worker_count)
    print(f"{len(material.calib)} calibration pictures, {time.monotonic() - began:.0f} s")
    print("| B | coefficients | drop, search / holdout | nats | seconds | GB |")
    print("|---|---|---|---|---|---|")
    for bases in map(int, given.bases.split(",")):
        for uniform in (False, True):
            decomposer = SequenceDecomposer(
                observed=observed, mode="clip", workers=options.worker_count, uniform=uniform
            )
            began = time.monotonic()
            model, _ = decomposer.decompose(
                {layer.name: bases for layer in graph.weight_layers}, {}
            )
            seconds = time.monotonic() - began
            lost, nats = [], 0.0
            for part in parts:
                workers = evaluation_workers(graph, len(part.pictures), options)
                with ChunkRunner(part.pictures, workers=workers) as runner:
                    logits = measure_logits(runner, model.decomposed, {}, stage="evaluate")
                found = outcome_of(graph, part, logits)
                hits = (part.float_ranks < TOP[metric]), (found["ranks"] < TOP[metric])
                lost.append(100 * float(hits[0].mean() - hits[1].mean()))
                nats = nats or float(found["nats"].mean())
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"| {bases} | {'1, 2, 4, ..' if uniform else 'free'} | "
                f"{lost[0]:.2f} / {lost[1]:.2f} | {nats:.4f} | {seconds:.0f} | {memory:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
