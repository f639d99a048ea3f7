# SPDX-License-Identifier: 0BSD
"""Who computes the chunks of `chunks.py`: processes on this host, or a Dask cluster.

A model travels once to each worker, which keeps the last one that it was given, prepared.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import bdcc
from bdcc.approx.evaluate import Network, PictureSource, prepare
from bdcc.approx.model import DecomposedModel
from bdcc.errors import BdccError, OptionError, one_line
from bdcc.files import TEMPORARY_HINT, reason, temporary_folder, writing

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]
Work = Callable[[Network, npt.NDArray[np.float32], Indices], Array]

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
CONNECT_S = 10  # how long a scheduler may take to answer


class Processes:
    """Spawned processes that share this host's files; they start with the first chunk."""

    def __init__(self, pictures: PictureSource, count: int) -> None:
        self._pictures, self._count = pictures, count
        self._pool: ProcessPoolExecutor | None = None
        self._started: set[BaseProcess] = set()
        self._kept: tuple[DecomposedModel, str, Path] | None = None  # its key, its file
        self._folder = ExitStack()  # where that lies

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

    def result(self, future: Future[Array]) -> Array:
        return future.result()

    def check(self) -> None:
        """A process that died has made itself known by its future."""

    def close(self, *, now: bool) -> None:
        """End the processes, `now`: with the chunks at hand. Another chunk starts others."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in self._started if now else ():
                process.terminate()
            self._pool, self._started = None, set()
        self._forget()

    def _keep(self, model: DecomposedModel) -> tuple[str, Path]:
        """The model's key, and the file that workers who do not hold it find it in."""
        if self._kept is None or self._kept[0] is not model:
            self._forget()
            key, content = _pickled(model)
            file = self._folder.enter_context(temporary_folder()) / "model"
            with writing(file, wanted_bytes=len(content), hint=TEMPORARY_HINT):
                file.write_bytes(content)
            self._kept = model, key, file
        return self._kept[1:]

    def _forget(self) -> None:
        self._folder.close()
        self._kept = None


class Cluster:
    """The workers of a Dask cluster, on any hosts: they need the same bdcc, and no files of ours.

    A chunk takes its pictures along. The model is the result of a task, which Dask copies from
    worker to worker, and makes again from what the scheduler holds if all who had it are gone.
    Raises OptionError if there is no such cluster.
    """

    def __init__(self, pictures: PictureSource, address: str) -> None:
        self._client = _connect(address)
        import dask

        self._pictures, self._address = pictures, address
        self._kept: tuple[DecomposedModel, str, Any] | None = None  # its key, its Dask future
        self._large = functools.partial(
            dask.config.set, {"distributed.admin.large-graph-warning-threshold": "1TB"}
        )
        self._executor: Executor = self._client.get_executor(pure=False)
        try:
            self.check()
            self._ask_for_packages()
        except BaseException:
            self.close(now=True)
            raise

    @property
    def slots(self) -> int:
        return max(1, self._threads())

    def submit(self, work: Work, model: DecomposedModel, rows: Indices) -> Future[Array]:
        pictures = self._pictures.portable(rows)
        with self._unless_lost(), self._large():
            if self._kept is None or self._kept[0] is not model:
                key, _ = _pickled(model)
                self._kept = model, key, self._client.submit(_same, model, key=f"bdcc-model-{key}")
            return self._executor.submit(
                _work_on_cluster, sources_digest(), work, *self._kept[1:], pictures, rows
            )

    def result(self, future: Future[Array]) -> Array:
        from distributed import KilledWorker

        try:
            with self._unless_lost():
                return future.result()
        except KilledWorker as error:
            raise BdccError(
                f"{error.allowed_failures + 1} workers died, one after another, over the same "
                "pictures",
                layer=f"dask:{self._address}",
                hint="If memory ran out, start fewer workers on each machine",
            ) from error

    def check(self) -> None:
        """Raises OptionError if nobody is there to work."""
        if not self._threads():
            raise OptionError(
                f"the Dask cluster at '{self._address}' has no workers",
                layer="--workers",
                hint=f"Start some: dask worker {self._address} --nworkers=-1 --nthreads 1",
            )

    def close(self, *, now: bool) -> None:
        """Forget what is under way, which Dask then does not begin; a chunk at hand runs out."""
        self._kept = None
        self._client.close()

    def _threads(self) -> int:
        with self._unless_lost():
            threads: dict[str, int] = self._client.nthreads()
        return sum(threads.values())

    def _ask_for_packages(self) -> None:
        """Without bdcc a worker would die of its first task, and say so nowhere but in its log."""

        def missing() -> str | None:  # travels as code: nothing of bdcc may be needed
            try:
                import threadpoolctl  # noqa: F401

                import bdcc.approx.workers  # noqa: F401
            except ImportError as error:
                return str(error.name).partition(".")[0]
            return None

        answers = {"the scheduler": self._client.run_on_scheduler(missing)}
        answers |= self._client.run(missing)
        for who, package in answers.items():
            if package is not None:
                raise OptionError(
                    f"{who} cannot import {package}",
                    layer="--workers",
                    hint="Install bdcc[dask] on every machine of the cluster",
                )

    @contextmanager
    def _unless_lost(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._client.status == "running" and not isinstance(error, CancelledError):
                raise
            raise BdccError(
                "the scheduler is gone",
                layer=f"dask:{self._address}",
                hint="Finished chunks are kept: start it, its workers and bdcc again",
            ) from error


def check_cluster(workers: int | str | None) -> None:
    """Raises OptionError if these are "dask:ADDRESS" and no scheduler answers there."""
    if isinstance(workers, str):
        _connect(workers.removeprefix("dask:")).close()


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError as error:
        raise OptionError(
            f"dask:{address} needs the package {error.name}, which is not installed",
            layer="--workers",
            hint="pip install 'bdcc[dask]'",
        ) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters, errors tell
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    # A Client tries for a minute, and leaves threads behind; so first it is seen who is there.
    try:
        kind = asyncio.run(_kind_of(address))
        if kind == "Scheduler":
            return distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
        problem = f"a {one_line(kind[:40])} answers" if kind else "what answers is not Dask"
    except OptionError:
        raise
    except TimeoutError:
        problem = f"nothing is said within {CONNECT_S} seconds"
    except Exception as error:  # of Dask, Tornado, OpenSSL, whatever the address makes them raise
        problem = _innermost(error)
    raise OptionError(
        f"no Dask scheduler answers at '{address}' ({problem})",
        layer="--workers",
        hint="Start one with `dask scheduler` and give the address that it prints, "
        "like dask:tcp://10.0.0.1:8786",
    )


async def _kind_of(address: str) -> str:
    """What answers there calls itself: Scheduler, Worker, or "" if it is nothing of Dask's."""
    import distributed

    arguments = distributed.Security().get_connection_args("client")  # as Dask is configured
    if address.startswith("tls:") and arguments.get("ssl_context") is None:
        raise OptionError(
            f"'{address}' needs certificates, and Dask's configuration names none",
            layer="--workers",
            hint="Name them as docs/workers.md does",
        )

    async def ask() -> Any:
        there = distributed.rpc(address, timeout=CONNECT_S, connection_args=arguments)
        async with there:
            return await there.identity()

    answer = await asyncio.wait_for(ask(), CONNECT_S + 2)  # connecting has a reason to tell
    kind = answer.get("type") if isinstance(answer, dict) else None
    return kind if isinstance(kind, str) else ""


def _innermost(error: BaseException) -> str:
    """The reason of the innermost error that tells one, for Dask wraps them."""
    told = reason(error)
    while (cause := error.__cause__) is not None:
        error = cause
        told = reason(error) if str(error).strip() else told
    return told[:120]


def _pickled(model: DecomposedModel) -> tuple[str, bytes]:
    """A key of the content, and the content."""
    content = pickle.dumps(model, protocol=pickle.HIGHEST_PROTOCOL)
    return hashlib.sha256(content).hexdigest(), content


@functools.cache
def sources_digest() -> str:
    """Of the Python files that results depend on, in hex."""
    state = hashlib.sha256()
    root = Path(bdcc.__file__).parent
    for room in ("ir", "approx", "data", "pipeline"):
        for file in sorted((root / room).rglob("*.py")):
            state.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return state.hexdigest()


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
_preparing = threading.Lock()  # a Dask worker may compute on several threads


def _start(pictures: PictureSource) -> None:
    global _pictures
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _pictures = pictures


def _end_with_parent() -> None:
    """Whatever this worker waits for or computes, it ends when its parent does, however that is."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is spawned"
    parent.join()
    os._exit(1)


def _prepared(key: str, load: Callable[[], DecomposedModel]) -> Network:
    global _network
    with _preparing:
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


def _same(model: DecomposedModel) -> DecomposedModel:
    return model


def _work_on_cluster(
    sources: str,
    work: Work,
    key: str,
    model: DecomposedModel,
    pictures: PictureSource,
    rows: Indices,
) -> Array:
    """pictures: those at `rows` alone."""
    import threadpoolctl

    if sources != sources_digest():
        raise OptionError(
            f"a worker on {socket.gethostname()} runs another version of bdcc",
            layer="--workers",
            hint="Install the same one there and start its workers again",
        )
    # For good: putting it back would change the threads of another chunk in this process.
    threadpoolctl.threadpool_limits(1, user_api="blas")
    return work(_prepared(key, lambda: model), pictures.batch(range(len(rows))), rows)
