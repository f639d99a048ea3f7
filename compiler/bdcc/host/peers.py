# SPDX-License-Identifier: 0BSD
"""A project beside other inference systems: the same picture, in turns, a process each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bdcc.files import temporary_folder
from bdcc.host.bench import DIGITS, Progress
from bdcc.host.build import build
from bdcc.host.probes import fastest_cpus
from bdcc.ir.graph import F32

OURS = "bdcc"
SYSTEMS: Mapping[str, tuple[str, ...]] = {  # and the packages that they need
    OURS: (),
    "onnxruntime fp32": ("onnxruntime",),
    "onnxruntime int8": ("onnxruntime",),
    "openvino fp32": ("openvino",),
    "openvino int8": ("openvino", "onnxruntime"),  # the file that onnxruntime quantised
    "openvino int8 by nncf": ("openvino", "nncf"),
    "ncnn fp32": ("ncnn",),
}
OTHERS = tuple(name for name in SYSTEMS if name != OURS)
INSTALL = "pip install 'bdcc[bench]'"
ROUNDS = 16
TURN_MS = 150.0  # what a system gets to do in a round
RUNS = (3, 200)  # but so many at least, at most
PATIENCE_S = 10.0  # for a process to end


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemTime:
    """threads: that one picture takes; cpu_ms: the least time of all CPUs together, which other
    work on the machine lengthens less; ratio, cpu_ratio: our least time / its, below 1 where we
    are faster; error: |y - y_float| / |y_float| of its outputs; problem: why there are no figures.
    """

    name: str
    threads: int = 0
    runs: int = 0
    min_ms: float = 0.0
    median_ms: float = 0.0
    cpu_ms: float = 0.0
    ratio: float = 0.0
    cpu_ratio: float = 0.0
    error: float = 0.0
    problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def time_systems(
    project: Path,
    *,
    model: Path,
    pictures: F32,
    expected: F32,
    isa: str | None = None,
    threads: int = 1,
    others: Sequence[str] = OTHERS,
    progress: Progress | None = None,
) -> tuple[SystemTime, ...]:
    """Times the project and the other systems that are installed. model: the ONNX file that the
    project was compiled from; pictures: float32 [n, C, H, W], preprocessed: the first is timed, the
    others (or it, if there are none) calibrate int8; expected: the float model's outputs for it.
    """
    build(project)
    systems = (OURS, *others)
    problems: dict[str, str] = {}
    peers: dict[str, _Peer] = {}
    cpus = fastest_cpus(threads)
    with temporary_folder() as name:
        folder = Path(name)
        np.save(folder / "input.npy", pictures[0])
        np.save(folder / "calib.npy", pictures[1:] if len(pictures) > 1 else pictures)
        try:
            for index, system in enumerate(systems):
                if progress is not None:
                    progress("prepare", index, len(systems))
                try:
                    _check_installed(system)
                    place = project if system == OURS else _prepare(system, model, folder)
                    peers[system] = _Peer(
                        system, place, folder, threads=threads, cpus=cpus, isa=isa
                    )
                except _PeerError as error:
                    problems[system] = str(error)
            for turn in range(ROUNDS):
                for system, peer in peers.items():
                    if system in problems:
                        continue
                    try:
                        peer.take_turn()
                    except _PeerError as error:
                        problems[system] = str(error)
                if progress is not None:
                    progress("bench", turn + 1, ROUNDS)
        finally:
            for peer in peers.values():
                peer.close()
    if OURS in problems:  # a bug of bdcc
        raise RuntimeError(f"{project}: {problems[OURS]}")
    return tuple(
        SystemTime(name=system, problem=problems[system])
        if system in problems
        else SystemTime(
            name=system,
            threads=peers[system].threads,
            runs=len(peers[system].ms),
            min_ms=round(min(peers[system].ms), DIGITS),
            median_ms=round(median(peers[system].ms), DIGITS),
            cpu_ms=round(min(peers[system].cpu_ms), DIGITS),
            ratio=round(min(peers[OURS].ms) / min(peers[system].ms), DIGITS),
            cpu_ratio=round(min(peers[OURS].cpu_ms) / min(peers[system].cpu_ms), DIGITS),
            error=_distance(peers[system].output, expected),
        )
        for system in systems
    )


def _distance(found: F32, expected: F32) -> float:
    """Of outputs, relative to the length of the expected ones."""
    length = float(np.linalg.norm(expected.astype(np.float64)))
    return round(float(np.linalg.norm(found.astype(np.float64) - expected)) / (length or 1.0), 6)


class _PeerError(Exception):
    """Why a system does not run."""


def _check_installed(system: str) -> None:
    if any(find_spec(package) is None for package in SYSTEMS[system]):
        raise _PeerError(f"not installed ({INSTALL})")


def _prepare(system: str, model: Path, folder: Path) -> Path:
    """Writes what the system runs into folder, which is returned."""
    arguments = ("prepare", system, str(model), str(folder / "calib.npy"), str(folder))
    log = folder / "log"
    with log.open("w") as out:
        done = subprocess.run(_command(*arguments), stdout=out, stderr=out, check=False)
    if done.returncode != 0:
        raise _PeerError(f"cannot be prepared: {_last_line(log)}")
    return folder


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "it ended without a word"


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "bdcc.host.peer", *arguments]


class _Peer:
    """A process that has loaded a system's model and waits. output: of the one picture; ms, cpu_ms:
    of all runs so far.
    """

    def __init__(
        self,
        system: str,
        place: Path,
        folder: Path,
        *,
        threads: int,
        cpus: Sequence[int],
        isa: str | None,
    ) -> None:
        self._log = folder / f"{system}.log"
        count = str(threads)
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        arguments = ("serve", system, str(place), str(folder / "input.npy"), count)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                _command(*arguments, isa or "", ",".join(map(str, cpus))),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **dict.fromkeys(pools, count)},
            )
        self._runs = RUNS[0]
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        try:
            first = self._answer()
        except _PeerError:
            self.close()
            raise
        self.output = np.array(first["output"], np.float32)
        self.threads: int = first["threads"]

    def take_turn(self) -> None:
        """Runs for about TURN_MS."""
        self._send(str(self._runs))
        answer = self._answer()
        self.ms += answer["ms"]
        self.cpu_ms += answer["cpu_ms"]
        least, most = RUNS
        self._runs = max(least, min(most, round(TURN_MS / max(median(answer["ms"]), 1e-3))))

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except OSError:
            raise _PeerError(f"ended: {_last_line(self._log)}") from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise _PeerError(f"does not run: {_last_line(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """The end of its input is the end of the process."""
        try:
            self._process.communicate(timeout=PATIENCE_S)
        except (subprocess.TimeoutExpired, OSError):
            self._process.kill()
            self._process.communicate()
