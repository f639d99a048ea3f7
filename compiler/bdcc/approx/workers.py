# SPDX-License-Identifier: 0BSD
"""Who computes the chunks of `chunks.py`: processes on this host.

A model travels once to each worker, which keeps the last one that it was given, prepared.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bdcc.approx.evaluate import Network, PictureSource, prepare
from bdcc.approx.model import DecomposedModel

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Work = Callable[[Network, npt.NDArray[np.float32], Indices], Array]

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


class Processes:
    """Spawned processes that share this host's files; they start with the first chunk."""

    def __init__(self, pictures: PictureSource, count: int) -> None:
        self._pictures, self._count = pictures, count
        self._pool: ProcessPoolExecutor | None = None
        self._started: set[BaseProcess] = set()
        self._kept: tuple[DecomposedModel, str, Path] | None = None  # its key, its file

    @property
    def slots(self) -> int:
        """Chunks that are computed at the same time."""
        return self._count

    def submit(self, work: Work, model: DecomposedModel, rows: Indices) -> Future[Array]:
        """The work on a model and the pictures at `rows`."""
        key, file = self._keep(model)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start,
                initargs=(self._pictures,),
            )
        others = set(multiprocessing.active_children())
        with _one_blas_thread():  # a process starts, and inherits this, when it gets work
            future = self._pool.submit(_work_in_process, work, key, file, rows)
        self._started |= set(multiprocessing.active_children()) - others
        return future

    def stop(self, *, now: bool) -> None:
        """End the processes; the next chunk starts others. `now`: without the chunks at hand."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in self._started if now else ():
                process.terminate()
            self._pool, self._started = None, set()

    def close(self, *, now: bool) -> None:
        self.stop(now=now)
        self._forget()

    def _keep(self, model: DecomposedModel) -> tuple[str, Path]:
        """The model's key, and the file that workers who do not hold it find it in."""
        if self._kept is None or self._kept[0] is not model:
            self._forget()
            content = pickle.dumps(model, protocol=pickle.HIGHEST_PROTOCOL)
            with tempfile.NamedTemporaryFile(prefix="bdcc-model-", delete=False) as file:
                self._kept = model, hashlib.sha256(content).hexdigest(), Path(file.name)
                file.write(content)
        return self._kept[1:]

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept[2].unlink(missing_ok=True)
            self._kept = None


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

# All that a worker holds: the pictures of the runner that it was started for, and the last model.
_pictures: PictureSource | None = None
_network: tuple[str, Network] | None = None


def _start(pictures: PictureSource) -> None:
    global _pictures
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    _pictures = pictures


def _prepared(key: str, load: Callable[[], DecomposedModel]) -> Network:
    global _network
    if _network is None or _network[0] != key:
        _network = None  # one model's memory, not two
        _network = key, prepare(load())
    return _network[1]


def _work_in_process(work: Work, key: str, file: Path, rows: Indices) -> Array:
    def load() -> DecomposedModel:
        with file.open("rb") as opened:
            model: DecomposedModel = pickle.load(opened)
        return model

    assert _pictures is not None, "the initializer ran"
    return work(_prepared(key, load), _pictures.batch(rows), rows)
