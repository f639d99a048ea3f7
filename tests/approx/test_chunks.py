# SPDX-License-Identifier: 0BSD
"""Chunks over processes: the same results with any number of workers, after kills and crashes."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nets import Noise, miniature_alexnet

from bdcc.approx.chunks import ChunkRunner, chunk_bounds
from bdcc.approx.model import DecomposedModel
from bdcc.errors import BdccError
from bdcc.sealed import Shelf

MODEL = DecomposedModel(graph=miniature_alexnet(), layers={})


def sums(network, pictures, indices) -> np.ndarray:
    return np.stack([indices, pictures.sum(axis=(1, 2, 3))])


def blas_threads(network, pictures, indices) -> np.ndarray:
    return np.array([int(os.environ["OPENBLAS_NUM_THREADS"]), os.getpid()])


def die(network, pictures, indices, *, marker: Path, always: bool) -> np.ndarray:
    """The worker that meets picture 0 is killed: the first time, or each time."""
    if indices[0] == 0 and (always or not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return sums(network, pictures, indices)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 63, 64, 65, 128, 129, 300, 2020])
def test_chunks_cover_everything_in_even_numbers(count: int) -> None:
    bounds = chunk_bounds(count)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in bounds]
    assert all(0 < size <= 64 for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
    assert count < 2 or len(sizes) % 2 == 0


def test_processes_change_nothing() -> None:
    results = []
    for workers in (0, 2):
        with ChunkRunner(Noise(150), workers=workers) as runner:
            results.append(np.concatenate(runner.run(MODEL, sums, stage="sums"), axis=1))
            if workers:
                seen = runner.run(MODEL, blas_threads, stage="threads")
                assert {int(threads) for threads, _ in seen} == {1}
                assert os.getpid() not in {int(pid) for _, pid in seen}
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0][0], np.arange(150))


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done >= 60:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        ChunkRunner(Noise(300), workers=0) as runner,
    ):
        runner.run(
            MODEL,
            sums,
            stage="sums",
            store=Shelf(folder=tmp_path / "kept", name="test"),
            progress=interrupt,
        )
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["0-50.npy", "50-100.npy"]
    (tmp_path / "kept" / "50-100.npy").write_bytes(b"cut off")  # a damaged one is made again

    steps: list[tuple[str, int, int]] = []
    with ChunkRunner(Noise(300), workers=0) as runner:
        result = runner.run(
            MODEL,
            sums,
            stage="sums",
            store=Shelf(folder=tmp_path / "kept", name="test"),
            progress=lambda *step: steps.append(step),
        )
        assert runner.computed == 5
    assert steps[0] == ("sums", 50, 300)
    assert steps[-1] == ("sums", 300, 300)
    with ChunkRunner(Noise(300), workers=0) as runner:
        whole = runner.run(MODEL, sums, stage="sums")
    np.testing.assert_array_equal(np.concatenate(result, axis=1), np.concatenate(whole, axis=1))


def test_a_dead_worker_costs_its_chunk_once(tmp_path: Path) -> None:
    once = functools.partial(die, marker=tmp_path / "died", always=False)
    with ChunkRunner(Noise(4), workers=1) as runner:
        result = np.concatenate(runner.run(MODEL, once, stage="sums"), axis=1)
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(result[0], np.arange(4))

    always = functools.partial(die, marker=tmp_path / "died", always=True)
    with (
        pytest.raises(BdccError, match=r"died again.*--workers 1"),
        ChunkRunner(Noise(4), workers=1) as runner,
    ):
        runner.run(MODEL, always, stage="sums")


def test_an_interrupted_runner_leaves_no_process() -> None:
    with ChunkRunner(Noise(2), workers=1) as runner:
        pid = int(runner.run(MODEL, blas_threads, stage="threads")[0][1])
        assert pid in {process.pid for process in multiprocessing.active_children()}
        runner.close(now=True)
    deadline = time.monotonic() + 10
    while pid in {process.pid for process in multiprocessing.active_children()}:
        assert time.monotonic() < deadline, "the worker is still there after 10 s"
        time.sleep(0.01)


STARTER = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
sys.path[:0] = sys.argv[2:]
import numpy as np
from nets import Noise, miniature_alexnet
from bdcc.approx.chunks import ChunkRunner
from bdcc.approx.model import DecomposedModel

def work(network, pictures, indices):
    import os
    os.write(1, f"{os.getpid()}\\n".encode())
    end = time.monotonic() + (60 if sys.argv[1] == "computing" else 0)
    while time.monotonic() < end:
        pictures.sum()
    return indices

if __name__ == "__main__":
    with ChunkRunner(Noise(130), workers=2) as runner:
        runner.run(DecomposedModel(graph=miniature_alexnet(), layers={}), work, stage="work")
        print("idle", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "busy"),
    [
        (signal.SIGKILL, "idle"),
        (signal.SIGKILL, "computing"),
        (signal.SIGHUP, "computing"),
        (signal.SIGTERM, "idle"),
    ],
)
def test_workers_end_with_their_parent_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, busy: str
) -> None:
    script, temporary = tmp_path / "script.py", tmp_path / "tmp"
    script.write_text(STARTER)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    pids: set[int] = set()
    with subprocess.Popen(
        [sys.executable, str(script), busy, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line == "idle\n":
                break
            pids.add(int(line))
            if busy == "computing" and len(pids) == 2:
                break
        parent.send_signal(how)
        parent.wait()
        deadline = time.monotonic() + 60  # 2 s on a machine at rest
        while left := [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]:  # no zombie
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                pytest.fail("workers are still there")
            time.sleep(0.01)
    assert pids
    (model,) = temporary.iterdir()  # the model, which the next run of anybody sweeps
    with ChunkRunner(Noise(2), workers=1) as runner:
        runner.run(MODEL, sums, stage="sums")
        assert not model.exists()
    assert list(temporary.iterdir()) == []
