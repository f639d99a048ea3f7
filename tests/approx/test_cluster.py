# SPDX-License-Identifier: 0BSD
"""Chunks over a Dask cluster of real processes: the same results, also when a worker is killed."""

from __future__ import annotations

import functools
import os
import signal
import socket
import sys
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
from clusters import running_scheduler, running_workers

GRAPH = miniature_alexnet()
FLOAT = DecomposedModel(graph=GRAPH, layers={})


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


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_scheduler(tmp_path_factory.mktemp("dask")) as address:
        yield address


@pytest.fixture(scope="module")
def cluster(scheduler: str) -> Iterator[str]:
    with running_workers(scheduler) as named:
        yield named


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
    # The same pictures in chunks of other sizes: a BLAS may round differently there.
    np.testing.assert_allclose(here[309:399], here[600:690], rtol=1e-5, atol=1e-5)
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
