# SPDX-License-Identifier: 0BSD
"""Times a compiled project beside what emx-onnx-cgen emits for the same model, in alternating
rounds, one thread.

    pip install emx-onnx-cgen
    python examples/compare_emx.py model.onnx OUT

Three programs: the project as plain `make` builds it, the project as plain C11 (PORTABLE=1: no
vector code, no
popcount), and emx-onnx-cgen's C with gcc -O3. Prints minimum and median milliseconds and the
ratios.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bdcc.host.build import build
from bdcc.host.facts import read_facts
from bdcc.host.library import Library


def emx_runner(model: Path, folder: Path, x: np.ndarray, outputs: int) -> Callable[[], None]:
    source = folder / "emx.c"
    command = ["emx-onnx-cgen", "compile", str(model), str(source), "--model-name", "emx"]
    bin_folder = Path(sys.executable).parent
    if (bin_folder / command[0]).exists():
        command[0] = str(bin_folder / command[0])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    library = folder / "emx.so"
    subprocess.run(
        ["gcc", "-O3", "-w", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"], check=True
    )
    loaded = ctypes.CDLL(str(library))
    weights = next(folder.glob("emx*.bin"), None)
    if weights is not None:
        loaded.emx_load.restype = ctypes.c_bool
        assert loaded.emx_load(str(weights).encode()), "emx cannot load its weights"
    y = np.zeros(outputs, np.float32)
    pointers = (ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data))
    return lambda: loaded.emx(*pointers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("project", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    facts = read_facts(options.project)
    x = np.random.default_rng(0).uniform(-120, 130, facts.input).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        portable_build = folder / "portable"
        build(options.project)
        build(options.project, make_args=["PORTABLE=1", "CFLAGS=-O3", f"BUILD={portable_build}"])
        plain = Library.open(options.project)
        portable = Library(portable_build / f"lib{facts.name}.so", facts)
        runners: dict[str, Callable[[], object]] = {
            f"bdcc, plain make ({plain.isa})": lambda: plain.run(x),
            f"bdcc, plain C11 ({portable.isa})": lambda: portable.run(x),
            "emx-onnx-cgen, gcc -O3": emx_runner(options.model, folder, x, facts.outputs),
        }
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(options.rounds):
            for name, run in runners.items():
                run()
                for _ in range(3):
                    start = time.thread_time()  # the machine may be shared
                    run()
                    times[name].append(1e3 * (time.thread_time() - start))
    slowest = min(times["emx-onnx-cgen, gcc -O3"])
    print(f"{'':36} {'min ms':>9} {'median ms':>10} {'times faster':>13}")
    for name, values in times.items():
        least = min(values)
        print(f"{name:36} {least:9.2f} {statistics.median(values):10.2f} {slowest / least:13.1f}")


if __name__ == "__main__":
    main()
