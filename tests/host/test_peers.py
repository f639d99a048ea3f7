# SPDX-License-Identifier: 0BSD
"""Other systems beside ours: those that are installed run, the others are named."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bdcc.approx.simulate import run_float
from bdcc.errors import ModelError
from bdcc.host import peers as module
from bdcc.host.ncnn_files import MAGIC, write_ncnn
from bdcc.host.peer import load_ncnn
from bdcc.host.peers import INSTALL, OURS, SYSTEMS, time_systems
from bdcc.ir.graph import F32, Graph, Lrn, MaxPool, Relu
from bdcc.ir.onnx_import import load_onnx
from codegen.nets import Chain, alexnet_like, every_float_step, squeezenet_like


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr(module, "TURN_MS", 1.0)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conv, relu, flatten, gemm; its input is that of the project `net`."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (11, 4 * 21 * 19), "c": (11,)}
    constants = [
        numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["t"]),
        helper.make_node("Relu", ["t"], ["u"]),
        helper.make_node("Flatten", ["u"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], transB=1),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tiny",
        [value("x", TensorProto.FLOAT, [1, 3, 23, 21])],
        [value("y", TensorProto.FLOAT, [1, 11])],
        constants,
    )
    path = tmp_path_factory.mktemp("peers") / "tiny.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def pictures() -> F32:
    return np.random.default_rng(1).normal(size=(4, 3, 23, 21)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(model_file: Path, pictures: F32) -> F32:
    graph = load_onnx(model_file)
    return run_float(graph, pictures[0])[graph.output]


@pytest.mark.parametrize("threads", [1, 2])
def test_who_is_installed_is_timed(
    net: Path, model_file: Path, pictures: F32, expected: F32, threads: int
) -> None:
    """(The project computes another network, so its outputs are far off.)"""
    progress: list[str] = []
    systems = time_systems(
        net,
        model=model_file,
        pictures=pictures,
        expected=expected,
        threads=threads,
        progress=lambda stage, done, total: progress.append(stage),
    )
    assert [one.name for one in systems] == list(SYSTEMS)
    assert progress == ["prepare"] * len(SYSTEMS) + ["bench"] * 2
    for one in systems:
        if any(find_spec(package) is None for package in SYSTEMS[one.name]):
            assert one.problem == f"not installed ({INSTALL})"
            continue
        assert one.problem is None, one
        assert 0 < one.min_ms <= one.median_ms
        assert one.cpu_ms > 0
        assert one.runs >= 2 * module.RUNS[0]
        assert one.threads == threads
        assert one.ratio == pytest.approx(systems[0].min_ms / one.min_ms, rel=1e-3)
        if one.name != OURS:
            assert one.error < (1e-3 if one.name.endswith("fp32") else 0.2)


def test_who_is_missing_is_named(
    net: Path, model_file: Path, pictures: F32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    ours, *others = time_systems(
        net, model=model_file, pictures=pictures, expected=np.ones(11, np.float32)
    )
    assert ours.problem is None
    assert {one.problem for one in others} == {"not installed (pip install 'bdcc[bench]')"}


def test_who_does_not_run_does_not_stop_the_others(
    net: Path, pictures: F32, tmp_path: Path
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    ours, float_, int8 = time_systems(
        net,
        model=tmp_path / "broken.onnx",
        pictures=pictures[:1],
        expected=np.ones(11, np.float32),
        others=["onnxruntime fp32", "onnxruntime int8"],
    )
    assert ours.problem is None
    assert ours.min_ms > 0
    assert float_.problem is not None
    assert float_.problem.startswith("does not run: ")
    assert int8.problem is not None
    assert int8.problem.startswith("cannot be prepared: ")


# --- ncnn's files ---------------------------------------------------------------------------------


def shared_input() -> Graph:
    """The picture itself is read twice, once in place, and a Relu cannot join its layer."""
    chain = Chain((3, 9, 8), 0).add(Relu)
    left = chain.tensor
    conv = chain.at("x").conv(4, (3, 3), pads=(1, 1, 1, 1)).tensor
    relu = chain.add(Relu).tensor
    return chain.concat(left, conv, relu, left).graph()


GRAPHS = {
    "alexnet": lambda: alexnet_like(lrn_first=True),
    "float": every_float_step,
    "squeezenet": squeezenet_like,
    "shared": shared_input,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_blob_is_written_and_read_once(tmp_path: Path, name: str) -> None:
    graph = GRAPHS[name]()
    param = tmp_path / "net.param"
    binary = write_ncnn(graph, param)
    magic, counts, *lines = param.read_text().splitlines()
    written: list[str] = []
    read: list[str] = []
    for line in lines:
        _, _, inputs, outputs, *rest = line.split()
        assert set(rest[: int(inputs)]) <= set(written)
        read += rest[: int(inputs)]
        written += rest[int(inputs) : int(inputs) + int(outputs)]
    assert int(magic) == MAGIC
    assert counts == f"{len(lines)} {len(written)}"
    assert len(set(written)) == len(written)
    assert len(set(read)) == len(read)
    assert set(written) - set(read) == {"output"}
    layers = graph.weight_layers
    floats = sum(layer.weight.size + layer.bias.size for layer in layers)
    assert binary.stat().st_size == 4 * (floats + len(layers))


@pytest.mark.parametrize("name", GRAPHS)
def test_ncnn_computes_the_network(tmp_path: Path, name: str) -> None:
    graph = GRAPHS[name]()
    write_ncnn(graph, tmp_path / "net.param")
    x = np.random.default_rng(2).normal(size=graph.shapes[graph.input]).astype(np.float32)
    exact = run_float(graph, x)[graph.output].reshape(-1)
    found = load_ncnn(tmp_path / "net.param", x, 1)().reshape(-1)
    assert np.linalg.norm(found - exact) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Lrn, {"size": 4}, "even size"),
        (MaxPool, {"kernel": (2, 2), "dilations": (2, 2)}, "dilation"),
    ],
)
def test_what_ncnn_has_not_got(
    tmp_path: Path, kind: type, values: dict[str, object], message: str
) -> None:
    graph = Chain((3, 9, 8), 0).add(kind, **values).graph()
    with pytest.raises(ModelError, match=message):
        write_ncnn(graph, tmp_path / "net.param")


def test_who_never_answers_is_named(
    net: Path,
    model_file: Path,
    pictures: F32,
    expected: F32,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "peer"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    command = module._command
    monkeypatch.setattr(
        module, "_command", lambda *a: command(*a) if OURS in a else [str(script), *a]
    )
    monkeypatch.setattr(module, "_check_installed", lambda system: None)
    monkeypatch.setattr(module, "_prepare", lambda system, model, folder: folder)
    monkeypatch.setattr(module, "ANSWER_S", 5.0)
    monkeypatch.setattr(module, "PATIENCE_S", 0.1)
    ours, other = time_systems(
        net, model=model_file, pictures=pictures, expected=expected, others=("ncnn fp32",)
    )
    assert ours.problem is None
    assert other.problem == "has not answered for 5 seconds"
