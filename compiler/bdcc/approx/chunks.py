# SPDX-License-Identifier: 0BSD
"""Pictures in chunks over workers.

Each finished chunk can be kept on a shelf, so that a run that was killed goes on from there.
Results do not depend on the number of workers: every chunk is computed alone, with one BLAS thread.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np

from bdcc.approx.evaluate import Network, PictureSource, Progress, one_blas_thread, prepare
from bdcc.approx.model import DecomposedModel
from bdcc.approx.workers import Array, Cluster, Indices, Processes, Work
from bdcc.errors import BdccError
from bdcc.sealed import Shelf

CHUNK = 64  # pictures: a minute or so of AlexNet's tables, which is what a kill can cost
AHEAD = 2  # chunks per slot that are under way: as many wait as are computed
PATIENCE_S = 30  # without a finished chunk; then somebody asks whether anybody is there


class ChunkRunner:
    """Workers that evaluate any number of models, one after another, on the same pictures.

    A context manager. workers: processes on this host, which live as long as the runner; 0 computes
    in this process, which suits small models; "dask:ADDRESS" has it done by a Dask cluster (see
    docs/workers.md) and raises OptionError if there is none. Scripts that use processes need the
    usual `if __name__ == "__main__":`, because these are spawned.
    """

    def __init__(self, pictures: PictureSource, *, workers: int | str) -> None:
        self.pictures = pictures
        self.computed = 0  # chunks computed, not found in a store
        self._crew: Processes | Cluster | None = None
        self._network: tuple[DecomposedModel, Network] | None = None
        if isinstance(workers, str):
            self._crew = Cluster(pictures, workers.removeprefix("dask:"))
        elif workers > 0:
            self._crew = Processes(pictures, workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(now=kind is not None)

    def close(self, *, now: bool = False) -> None:
        """End the workers; `now` does not wait for the chunks at hand."""
        if self._crew is not None:
            self._crew.close(now=now)

    def run(
        self,
        model: DecomposedModel,
        work: Work,
        *,
        stage: str,
        store: Shelf | None = None,
        progress: Progress | None = None,
        rows: Indices | None = None,
    ) -> list[Array]:
        """work(network, float32 [n, C, H, W], indices) of every chunk, in order; picklable.

        rows: int64, ascending: which pictures (None: all). store: a shelf that belongs to this
        very work on this model and these pictures (of any rows: each choice of rows has a place of
        its own there): chunks found there are not computed again. progress counts pictures.
        """
        total = len(self.pictures)
        if rows is None:
            rows = np.arange(total, dtype=np.int64)
        elif store is not None:
            store = store.inside(f"rows-{hashlib.sha256(rows.tobytes()).hexdigest()[:32]}")
        bounds = chunk_bounds(len(rows))
        results: dict[int, Array] = {}
        if store is not None:
            store.prepare()
            for index, limits in enumerate(bounds):
                if (kept := _load(store, limits)) is not None:
                    results[index] = kept

        def report() -> None:
            if progress:
                progress(stage, sum(bounds[i][1] - bounds[i][0] for i in results), len(rows))

        report()
        missing = {i: rows[slice(*bounds[i])] for i in range(len(bounds)) if i not in results}
        for index, result in self._compute(model, work, missing):
            if store is not None:
                _save(store, bounds[index], result)
            results[index] = result
            self.computed += 1
            report()
        return [results[index] for index in range(len(bounds))]

    def _compute(
        self, model: DecomposedModel, work: Work, chunks: Mapping[int, Indices]
    ) -> Iterator[tuple[int, Array]]:
        if self._crew is None:
            if self._network is None or self._network[0] is not model:
                self._network = model, prepare(model)
            for index, rows in chunks.items():
                with one_blas_thread():
                    result = work(self._network[1], self.pictures.batch(rows), rows)
                yield index, result
            return
        left, may_break = dict(chunks), True
        while left:
            try:
                for index, result in _share_out(self._crew, model, work, left):
                    del left[index]
                    may_break = True
                    yield index, result
            except BrokenProcessPool as error:
                self._crew.close(now=False)
                if not may_break:
                    raise BdccError(
                        "a worker process died, and died again when its pictures were repeated",
                        hint="If memory ran out, use fewer: --workers 1",
                    ) from error
                may_break = False


def _share_out(
    crew: Processes | Cluster, model: DecomposedModel, work: Work, chunks: Mapping[int, Indices]
) -> Iterator[tuple[int, Array]]:
    """The results of the chunks as they come, a few being under way at any time."""
    waiting = deque(chunks.items())
    running: dict[Future[Array], int] = {}
    while waiting or running:
        while waiting and len(running) < AHEAD * crew.slots:
            index, rows = waiting.popleft()
            running[crew.submit(work, model, rows)] = index
        done = wait(running, timeout=PATIENCE_S, return_when=FIRST_COMPLETED).done
        if not done:
            crew.check()
        for future in done:
            yield running.pop(future), crew.result(future)


def chunk_bounds(count: int) -> list[tuple[int, int]]:
    """(start, stop) of equal chunks of at most CHUNK pictures; an even number, for two cores."""
    chunks = min(count, 2 * math.ceil(count / (2 * CHUNK)))
    edges = [count * i // chunks for i in range(chunks + 1)] if chunks else [0]
    return list(pairwise(edges))


# --- the store ----------------------------------------------------------------------------


def _name(limits: tuple[int, int]) -> str:
    return f"{limits[0]}-{limits[1]}.npy"


def _load(store: Shelf, limits: tuple[int, int]) -> Array | None:
    content = store.read(_name(limits))
    return None if content is None else np.load(io.BytesIO(content), allow_pickle=False)


def _save(store: Shelf, limits: tuple[int, int], result: Array) -> None:
    content = io.BytesIO()
    np.save(content, result, allow_pickle=False)
    store.write(_name(limits), lambda out: out.write(content.getbuffer()))
