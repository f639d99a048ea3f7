# SPDX-License-Identifier: 0BSD
"""One system in a process of its own, so that threads and memory of several do not meet: prepares
its model, or runs it whenever it is told to. The only file that imports other inference systems.

    python -m bdcc.host.peer prepare SYSTEM MODEL.onnx CALIB.npy FOLDER
    python -m bdcc.host.peer serve   SYSTEM FOLDER INPUT.npy THREADS ISA CPU,..

SYSTEM: a name of peers.SYSTEMS; ISA: for bdcc, "" for the widest. Serving: {"output": [..],
"threads": n} is printed, then for each number n that comes in a line {"ms": [..], "cpu_ms": [..]},
the times of n runs by the clock and of all CPUs together.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bdcc.ir.graph import F32

Run = Callable[[], F32]
SPIN_S = 0.3  # threads of a pool may wait for more work so long, in everybody's way
CALIBRATED = "int8.onnx"


def main(arguments: list[str]) -> None:
    # Systems print what they like: only the answers may go where answers are read.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    mode, system, *rest = arguments
    if mode == "prepare":
        model, calib, folder = map(Path, rest)
        prepare(system, model, np.load(calib), folder)
    else:
        folder, picture = map(Path, rest[:2])
        threads, isa, cpus = rest[2:]
        if cpus:
            os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
        serve(system, folder, np.load(picture), threads=int(threads), isa=isa or None, to=answers)


def serve(system: str, folder: Path, x: F32, *, threads: int, isa: str | None, to: TextIO) -> None:
    with ExitStack() as stack:
        if system == "bdcc":
            run = load_bdcc(folder, x, threads, isa, stack)
        elif system.startswith("onnxruntime"):
            run = load_onnxruntime(model_file(system, folder), x, threads)
        elif system.startswith("openvino"):
            run = load_openvino(model_file(system, folder), x, threads)
        else:
            run = load_ncnn(model_file(system, folder), x, threads)
        output = np.asarray(run(), np.float32).reshape(-1)
        print(json.dumps({"output": output.tolist(), "threads": threads}), file=to, flush=True)
        for line in sys.stdin:
            run()  # fetches what others had evicted
            times = list(_time(run, int(line)))
            if threads > 1:
                time.sleep(SPIN_S)
            answer = {"ms": [wall for wall, _ in times], "cpu_ms": [cpu for _, cpu in times]}
            print(json.dumps(answer), file=to, flush=True)


def _time(run: Run, count: int) -> Iterator[tuple[float, float]]:
    """Milliseconds of each run, by the clock and of all CPUs together."""
    for _ in range(count):
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        run()
        wall = time.perf_counter_ns() - wall
        yield wall / 1e6, (time.process_time_ns() - cpu) / 1e6


# --- preparing ------------------------------------------------------------------------------------


def model_file(system: str, folder: Path) -> Path:
    """What a system runs, once it is prepared."""
    names = {
        "onnxruntime fp32": "model.onnx",
        "onnxruntime int8": CALIBRATED,
        "openvino fp32": "model.onnx",
        "openvino int8": CALIBRATED,
        "openvino int8 by nncf": "nncf.xml",
        "ncnn fp32": "model.param",
    }
    return folder / names[system]


def prepare(system: str, model: Path, calib: F32, folder: Path) -> None:
    """Writes a system's model file, unless another has. calib: float32 [n, C, H, W]."""
    file = model_file(system, folder)
    if file.exists():
        return
    if file.name == CALIBRATED:
        quantize_qdq(model, calib, file)
    elif file.suffix == ".xml":
        quantize_nncf(model, calib, file)
    elif file.suffix == ".param":
        from bdcc.host.ncnn_files import write_ncnn
        from bdcc.ir.onnx_import import load_onnx

        write_ncnn(load_onnx(model, max_memory=sys.maxsize), file)  # bench has bounded it
    else:
        file.symlink_to(model.resolve())


def quantize_qdq(model: Path, calib: F32, file: Path) -> None:
    """onnxruntime's static quantisation: codes of 8 bits, weights by channel."""
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    del session

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.left = list(calib)

        def get_next(self) -> dict[str, F32] | None:
            return {name: self.left.pop()[None]} if self.left else None

    optimised = file.with_suffix(".optimised.onnx")
    quant_pre_process(str(model), str(optimised), skip_symbolic_shape=True)
    quantize_static(
        str(optimised),
        str(file),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    optimised.unlink()


def quantize_nncf(model: Path, calib: F32, file: Path) -> None:
    import nncf
    import openvino

    network = openvino.Core().read_model(model)
    network.reshape([1, *calib.shape[1:]])
    pictures = nncf.Dataset([one[None] for one in calib])
    quantized = nncf.quantize(network, pictures, subset_size=len(calib))
    openvino.save_model(quantized, file, compress_to_fp16=False)


# --- running --------------------------------------------------------------------------------------


def load_bdcc(project: Path, x: F32, threads: int, isa: str | None, stack: ExitStack) -> Run:
    """stack: what it needs is closed with."""
    from bdcc.host.bench import one_picture
    from bdcc.host.library import Library

    library = stack.enter_context(Library.open(project, isa=isa, threads=threads > 1))
    pool = stack.enter_context(library.pool(threads)) if threads > 1 else None
    return one_picture(library, x, pool=pool)


def load_onnxruntime(file: Path, x: F32, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: x[None]}
    return lambda: session.run(None, inputs)[0]  # type: ignore[no-any-return, unused-ignore]


def load_openvino(file: Path, x: F32, threads: int) -> Run:
    """Float layers in float32: by itself it would take bfloat16 where the CPU has it."""
    import openvino

    core = openvino.Core()
    network = core.read_model(file)
    network.reshape([1, *x.shape])
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # the CPUs are ours to choose
    }
    request = core.compile_model(network, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(x[None]), shared_memory=True))
    output = request.get_output_tensor(0)

    def run() -> F32:
        request.infer()
        return output.data  # type: ignore[no-any-return, unused-ignore]

    return run


def load_ncnn(file: Path, x: F32, threads: int) -> Run:
    import ncnn

    from bdcc.host.ncnn_files import INPUT, OUTPUT

    net = ncnn.Net()
    net.opt.num_threads = threads
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise RuntimeError(f"ncnn does not load {file.name}")
    picture = ncnn.Mat(np.ascontiguousarray(x)).clone()  # layers in place must see who else has it

    def run() -> F32:
        extractor = net.create_extractor()
        extractor.input(INPUT, picture)
        status, output = extractor.extract(OUTPUT)
        if status:
            raise RuntimeError(f"ncnn: status {status}")
        return np.array(output)

    return run


if __name__ == "__main__":
    main(sys.argv[1:])
