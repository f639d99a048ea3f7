# SPDX-License-Identifier: 0BSD
"""A Dask cluster of real processes on this host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AT_HOME = ("--dashboard-address", "127.0.0.1:0")  # --no-dashboard listens on all interfaces
STARTS_S = 120  # far beyond what a busy machine needs


@contextmanager
def running_scheduler(folder: Path, *more: str) -> Iterator[str]:
    """The address of a scheduler, which keeps a file in the folder; more: of its options."""
    file = folder / "scheduler.json"
    given = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), *more)
    # If the tests are killed, it ends by itself, and its workers with it.
    with _running("dask_scheduler", *given, "--idle-timeout", "300s") as process:
        deadline = time.monotonic() + STARTS_S
        while not file.exists() or not file.read_text():
            assert process.poll() is None, "the scheduler ended"
            assert time.monotonic() < deadline, "the scheduler did not start"
            time.sleep(0.02)
        yield json.loads(file.read_text())["address"]


@contextmanager
def running_workers(scheduler: str, *more: str) -> Iterator[str]:
    """--workers for two worker processes of the scheduler; one that dies is started again. more:
    of their options.
    """
    import distributed

    given = ("--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1", *more)
    with _running("dask_worker", scheduler, *given):
        with distributed.Client(scheduler, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=STARTS_S)
        yield f"dask:{scheduler}"


@contextmanager
def _running(module: str, *given: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of Dask, in a process group of its own with all that it starts."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "OPENBLAS_NUM_THREADS": "2",  # so that it takes bdcc to make it one
    }
    with subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *given, *AT_HOME],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
