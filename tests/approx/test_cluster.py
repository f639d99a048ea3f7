# SPDX-License-Identifier: 0BSD
"""Chunks over a Dask cluster of real processes: the same results, also when a worker is killed."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


def refused(address: str) -> str:
    """The line, which comes soon and leaves no thread behind."""
    before, began = set(threading.enumerate()), time.monotonic()
    with pytest.raises(OptionError, match=r"^--workers: ") as caught:
        ChunkRunner(Noise(2), workers=f"dask:{address}")
    assert time.monotonic() - began < 15
    assert set(threading.enumerate()) <= before
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 500
    return line


def test_where_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, so that nobody listens there
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        assert f"no Dask scheduler answers at '{address}' (" in refused(address)


def test_where_nothing_is_ever_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no Dask scheduler answers" in refused(f"tcp://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64, b"SSH-2.0-x\r\n", b"\xff" * 99]
)
def test_where_something_else_answers(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                with one:
                    one.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            refused(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("foo", "missing port number"),
        ("tcp://", "missing port number"),
        (" ", "missing port number"),
        ("http://127.0.0.1:8786", "unknown address scheme 'http'"),
        ("tls://", "needs certificates, and Dask's configuration names none"),
        ("tls://127.0.0.1:8786", "needs certificates, and Dask's configuration names none"),
        ("inproc://1", "no Dask scheduler answers"),
        ("tcp://127.0.0.1:99999", "no Dask scheduler answers"),
        ("tcp://127.0.0.1:-1", "no Dask scheduler answers"),
        ("tcp://[::1", "no Dask scheduler answers"),
        ("tcp://nowhere.invalid:8786", "no Dask scheduler answers"),
        ("tcp://\x1b[2J\n:1", "no Dask scheduler answers"),
    ],
)
def test_what_is_no_address(monkeypatch: pytest.MonkeyPatch, address: str, why: str) -> None:
    monkeypatch.setattr(workers, "CONNECT_S", 0.3)
    assert why in refused(address)


def test_a_worker_is_no_scheduler(cluster: str) -> None:
    import distributed

    with distributed.Client(cluster.removeprefix("dask:"), set_as_default=False) as client:
        address = next(iter(client.scheduler_info()["workers"]))
    assert "(a Worker answers)" in refused(address)


def test_a_cluster_that_only_answers_certificates(
    tmp_path: Path, tool: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of docs/workers.md."""
    text = (Path(__file__).parents[2] / "docs" / "workers.md").read_text("utf-8")
    (make,) = (line for line in text.splitlines() if "openssl req" in line)
    subprocess.run(["sh", "-c", make], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bdcc.key").stat().st_mode & 0o77 == 0
    options = [line.partition("dask scheduler ")[2] for line in text.splitlines()]
    (line,) = (line for line in options if "--tls-ca-file" in line)
    given = line.replace("127.0.0.1:8787", "127.0.0.1:0").split()
    monkeypatch.chdir(tmp_path)
    exported = [line.strip().removeprefix("export ") for line in text.splitlines()]
    named = dict(line.split("=") for line in exported if line.startswith("DASK_DISTRIBUTED__"))
    assert len(named) == 4
    certified = [word for word in given if word != "--protocol" and word != "tls"]
    import dask

    with running_scheduler(tmp_path, *given) as address:
        assert address.startswith("tls://")
        assert "needs certificates" in refused(address)
        configured = {
            name.removeprefix("DASK_").lower().replace("__", "."): value == "true" or value
            for name, value in named.items()
        }
        with (
            dask.config.set(configured),
            running_workers(address, *certified) as at,
            ChunkRunner(Noise(70), workers=at) as runner,
        ):
            assert len(runner.run(FLOAT, blas_threads, stage="threads")) == 2


def test_a_cluster_on_the_loopback_address_is_nowhere_else(cluster: str) -> None:
    """With the options that docs/workers.md gives for it."""
    text = (Path(__file__).parents[2] / "docs" / "workers.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("    dask ")]
    local = [line for line in lines if "--host 127.0.0.1" in line]
    assert len(local) == 2
    assert all("--dashboard-address 127.0.0.1:" in line for line in local)
    sockets = {
        words[9]: words[1]
        for table in ("tcp", "tcp6")
        for words in map(str.split, Path("/proc/net", table).read_text().splitlines()[1:])
        if words[3] == "0A"  # listens
    }
    found = set()
    pids = [os.getpid()]
    for pid in pids:  # grows
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                pids += map(int, (task / "children").read_text().split())
            for file in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    node = str(file.readlink()).removeprefix("socket:[").removesuffix("]")
                    found |= {sockets[node]} if node in sockets else set()
    assert len(found) >= 2 + 1 + 2 * 2  # scheduler, nanny and two workers, and pages
    assert all(address.startswith("0100007F:") for address in found), found


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(OptionError, match=r"^--workers: .*distributed.*pip install 'bdcc\[dask\]'"):
        ChunkRunner(Noise(2), workers="dask:tcp://127.0.0.1:8786")
