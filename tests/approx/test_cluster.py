# SPDX-License-Identifier: 0BSD
"""Chunks over a Dask cluster of real processes: the same results, also when a worker is killed."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from nets import Noise, miniature_alexnet, random_layer

from bdcc.approx import workers
from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.model import DecomposedModel
from bdcc.approx.tables import compute_logits
from bdcc.errors import OptionError

GRAPH = miniature_alexnet()
FLOAT = DecomposedModel(graph=GRAPH, layers={})
STARTS_S = 120  # far beyond what a busy machine needs


def other_model() -> DecomposedModel:
    rng = np.random.default_rng(1)
    layers = {n.name: random_layer(rng, n.weight.shape, 2) for n in GRAPH.weight_layers}
    return DecomposedModel(graph=GRAPH, layers=layers)


def blas_threads(network, pictures, indices) -> np.ndarray:
    import threadpoolctl

    pools = [p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    return np.array([max(pools, default=1), os.getpid()])


def die_once(network, pictures, indices, *, marker: Path) -> np.ndarray:
    """The worker that meets picture 100 for the first time is killed."""
    if 100 in indices and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_logits(network, pictures, indices, quants={})


def start(module: str, *given: str) -> subprocess.Popen[bytes]:
    """A program of Dask, in a process group of its own with all that it starts."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "OPENBLAS_NUM_THREADS": "2",  # so that it takes bdcc to make it one
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *given, "--no-dashboard"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler on this host."""
    file = tmp_path_factory.mktemp("dask") / "scheduler.json"
    given = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    # If these tests are killed, it ends by itself, and its workers with it.
    with start("dask_scheduler", *given, "--idle-timeout", "300s") as process:
        try:
            deadline = time.monotonic() + STARTS_S
            while not file.exists() or not file.read_text():
                assert process.poll() is None, "the scheduler ended"
                assert time.monotonic() < deadline, "the scheduler did not start"
                time.sleep(0.02)
            yield json.loads(file.read_text())["address"]
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster(scheduler: str) -> Iterator[str]:
    """--workers for two worker processes of the scheduler; one that dies is started again."""
    import distributed

    given = ("--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1")
    with start("dask_worker", scheduler, *given) as process:
        try:
            with distributed.Client(scheduler, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=STARTS_S)
            yield f"dask:{scheduler}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)


# The first test: the others' fixture gives the scheduler workers.
def test_a_cluster_without_workers_is_refused(scheduler: str) -> None:
    with pytest.raises(OptionError, match=rf"^--workers: .*{scheduler}' has no workers"):
        ChunkRunner(Noise(2), workers=f"dask:{scheduler}")


def test_where_it_is_computed_changes_nothing(cluster: str) -> None:
    work, pictures, rows = (
        functools.partial(compute_logits, quants={}),
        Noise(300),
        np.arange(9, 99),
    )
    found = []
    for where in (0, 2, cluster):
        with ChunkRunner(pictures, workers=where) as runner:
            found.append(
                [
                    *runner.run(FLOAT, work, stage="float"),
                    *runner.run(other_model(), work, stage="decomposed"),
                    *runner.run(other_model(), work, stage="some", rows=rows),
                    *runner.run(FLOAT, work, stage="float again"),
                ]
            )
            assert runner.computed == 6 + 6 + 2 + 6
    here, processes, there = (np.concatenate(results) for results in found)
    assert (here[:300] != here[300:600]).any()
    np.testing.assert_array_equal(here[309:399], here[600:690])
    np.testing.assert_array_equal(here, processes)
    np.testing.assert_array_equal(here, there)


def test_a_worker_computes_with_one_blas_thread(cluster: str) -> None:
    with ChunkRunner(Noise(300), workers=cluster) as runner:
        seen = runner.run(FLOAT, blas_threads, stage="threads")
    assert {int(threads) for threads, _ in seen} == {1}
    assert os.getpid() not in {int(pid) for _, pid in seen}


def test_a_killed_worker_loses_nothing(cluster: str, tmp_path: Path) -> None:
    work = functools.partial(die_once, marker=tmp_path / "died")
    with ChunkRunner(Noise(300), workers=cluster) as runner:
        found = runner.run(FLOAT, work, stage="killed")
        assert runner.computed == 6
    assert (tmp_path / "died").exists()
    with ChunkRunner(Noise(300), workers=0) as runner:
        whole = runner.run(FLOAT, work, stage="whole")
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(whole))


def test_workers_of_another_version_are_refused(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "sources_digest", lambda: "another")
    with (
        pytest.raises(
            OptionError, match=r"^--workers: a worker on \S+ runs another version of bdcc"
        ),
        ChunkRunner(Noise(2), workers=cluster) as runner,
    ):
        runner.run(FLOAT, blas_threads, stage="threads")


def test_where_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 0.2)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, so that nobody listens there
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            OptionError, match=f"^--workers: no Dask scheduler answers at '{address}"
        ):
            ChunkRunner(Noise(2), workers=f"dask:{address}")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"^--workers: .*distributed.*pip install 'bdcc\[dask\]'"):
        ChunkRunner(Noise(2), workers="dask:tcp://127.0.0.1:8786")
