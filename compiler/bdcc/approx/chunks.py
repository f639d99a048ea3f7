# SPDX-License-Identifier: 0BSD
"""Pictures in chunks over worker processes.

Each finished chunk can be kept in a folder, so that a run that was killed goes on from there.
Results do not depend on the number of workers: every chunk is computed alone, with one BLAS thread.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from bdcc.approx.evaluate import Network, PictureSource, Progress, prepare
from bdcc.approx.model import DecomposedModel
from bdcc.errors import BdccError

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Work = Callable[[Network, npt.NDArray[np.float32], Indices], Array]

CHUNK = 64  # pictures: a minute or so of AlexNet's tables, which is what a kill can cost
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class ChunkRunner:
    """Worker processes that hold one model and its pictures; a context manager.

    workers: processes; 0 computes in this process, which suits small models. Scripts that use
    workers need the usual `if __name__ == "__main__":`, because the processes are spawned.
    """

    def __init__(
        self, model: DecomposedModel, pictures: PictureSource, *, workers: int = 2
    ) -> None:
        self.model, self.pictures, self.workers = model, pictures, workers
        self.computed = 0  # chunks computed, not found in a store
        self._pool: ProcessPoolExecutor | None = None
        self._network: Network | None = None
        self._processes: set[BaseProcess] = set()

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
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in self._processes if now else ():
                process.terminate()
            self._pool, self._processes = None, set()

    def run(
        self,
        work: Work,
        *,
        stage: str,
        store: Path | None = None,
        progress: Progress | None = None,
    ) -> list[Array]:
        """work(network, float32 [n, C, H, W], indices) of every chunk, in order; picklable.

        store: a folder that belongs to this very work on these very pictures: chunks found there
        are not computed again. progress counts pictures.
        """
        bounds = chunk_bounds(len(self.pictures))
        results: dict[int, Array] = {}
        if store is not None:
            store.mkdir(parents=True, exist_ok=True)
            for index, limits in enumerate(bounds):
                if (kept := _load(store, limits)) is not None:
                    results[index] = kept
        total = len(self.pictures)

        def report() -> None:
            if progress:
                progress(stage, sum(bounds[i][1] - bounds[i][0] for i in results), total)

        report()
        missing = [index for index in range(len(bounds)) if index not in results]
        for index, result in self._compute(work, bounds, missing):
            if store is not None:
                _save(store, bounds[index], result)
            results[index] = result
            self.computed += 1
            report()
        return [results[index] for index in range(len(bounds))]

    def _compute(
        self, work: Work, bounds: Sequence[tuple[int, int]], missing: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        if self.workers < 1:
            self._network = self._network or prepare(self.model)
            for index in missing:
                yield index, _work_on(work, self._network, self.pictures, bounds[index])
            return
        left, may_break = list(missing), True
        while left:
            try:
                for index, result in self._submit(work, bounds, left):
                    left.remove(index)
                    may_break = True
                    yield index, result
            except BrokenProcessPool as error:
                self.close()
                if not may_break:
                    raise BdccError(
                        "a worker process died, and died again when its pictures were repeated",
                        hint="If memory ran out, use fewer: --workers 1",
                    ) from error
                may_break = False

    def _submit(
        self, work: Work, bounds: Sequence[tuple[int, int]], indices: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(self.model, self.pictures),
            )
        others = set(multiprocessing.active_children())
        with _one_blas_thread():  # the processes start, and inherit this, when they get work
            futures: dict[Future[Array], int] = {
                self._pool.submit(_work, work, bounds[index]): index for index in indices
            }
        self._processes |= set(multiprocessing.active_children()) - others
        for future in as_completed(futures):
            yield futures[future], future.result()


def chunk_bounds(count: int) -> list[tuple[int, int]]:
    """(start, stop) of equal chunks of at most CHUNK pictures; an even number, for two cores."""
    chunks = min(count, 2 * math.ceil(count / (2 * CHUNK)))
    edges = [count * i // chunks for i in range(chunks + 1)] if chunks else [0]
    return list(pairwise(edges))


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in BLAS_THREADS}
    os.environ.update(dict.fromkeys(BLAS_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


# --- in the worker ------------------------------------------------------------------------

# What this process works with. A worker lives for one model: this is its whole state, set once.
_state: tuple[Network, PictureSource] | None = None


def _start(model: DecomposedModel, pictures: PictureSource) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    _state = prepare(model), pictures


def _work(work: Work, limits: tuple[int, int]) -> Array:
    assert _state is not None, "the initializer ran"
    return _work_on(work, *_state, limits)


def _work_on(
    work: Work, network: Network, pictures: PictureSource, limits: tuple[int, int]
) -> Array:
    indices = np.arange(*limits, dtype=np.int64)
    return work(network, pictures.batch(indices), indices)


# --- the store ----------------------------------------------------------------------------


def _file(store: Path, limits: tuple[int, int]) -> Path:
    return store / f"{limits[0]}-{limits[1]}.npy"


def _load(store: Path, limits: tuple[int, int]) -> Array | None:
    try:
        return np.asarray(np.load(_file(store, limits), allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None


def _save(store: Path, limits: tuple[int, int], result: Array) -> None:
    """Appears complete or not at all."""
    with tempfile.NamedTemporaryFile(dir=store, suffix=".part", delete=False) as part:
        np.save(part, result, allow_pickle=False)
    Path(part.name).replace(_file(store, limits))
