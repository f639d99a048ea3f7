# SPDX-License-Identifier: 0BSD
"""host/oracle.npz: what is read back computes the same, and equal models give equal bytes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import miniature_alexnet, random_layer

from bdcc.approx.model import (
    DecomposedModel,
    QuantizedModel,
    TensorQuant,
    load_oracle,
    save_oracle,
)
from bdcc.approx.simulate import run_exact
from bdcc.errors import DataError


def quantized(*, bases: int, dynamic: bool = False) -> QuantizedModel:
    graph, rng = miniature_alexnet(), np.random.default_rng(2)
    layers = {n.name: random_layer(rng, n.weight.shape, bases) for n in graph.weight_layers}
    del layers["conv2"], layers["fc2"]
    delta = None if dynamic else np.float32(0.1)
    return QuantizedModel(
        decomposed=DecomposedModel(graph=graph, layers=layers),
        tensors={
            n.input: TensorQuant(bits=4, delta=delta, zero_point=0 if dynamic else 5)
            for n in graph.weight_layers
            if n.name in layers
        },
    )


@pytest.mark.parametrize(("bases", "dynamic"), [(1, False), (3, True), (7, False)])
def test_round_trip(tmp_path: Path, bases: int, dynamic: bool) -> None:
    model = quantized(bases=bases, dynamic=dynamic)
    save_oracle(model, tmp_path / "oracle.npz")
    again = load_oracle(tmp_path / "oracle.npz")

    assert again.tensors == model.tensors
    assert again.graph.shapes == model.graph.shapes
    for name, layer in model.decomposed.layers.items():
        for field in ("coefficients", "signs", "scale", "bias"):
            old, new = getattr(layer, field), getattr(again.decomposed.layers[name], field)
            assert old.dtype == new.dtype
            np.testing.assert_array_equal(old, new)
    x = np.random.default_rng(0).normal(size=(3, 13, 13)).astype(np.float32)
    before, after = run_exact(model, x), run_exact(again, x)
    for old, new in (
        (before.values, after.values),
        (before.codes, after.codes),
        (before.sums, after.sums),
    ):
        assert list(old) == list(new)
        for name in old:
            np.testing.assert_array_equal(old[name], new[name])


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{i}.npz" for i in range(3))
    save_oracle(quantized(bases=3), first)
    save_oracle(load_oracle(first), second)
    save_oracle(quantized(bases=2), third)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != third.read_bytes()


def test_weights_take_a_bit_per_basis(tmp_path: Path) -> None:
    save_oracle(quantized(bases=3), tmp_path / "oracle.npz")
    with np.load(tmp_path / "oracle.npz") as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files if name != "model.json"}
    signs = [shape for name, shape in shapes.items() if name.endswith("signs")]
    assert signs == [(8, 3, 4), (8, 3, 5), (12, 3, 4)]  # K = 27, 36, 32
    floats = [shape for name, shape in shapes.items() if name.endswith("weight")]
    assert floats == [(8, 4, 3, 3), (5, 12)]  # conv2 and fc2 only


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "oracle.npz"
    with pytest.raises(DataError, match=r"oracle\.npz"):
        load_oracle(file)
    file.write_bytes(b"not a zip file")
    with pytest.raises(DataError, match=r"oracle\.npz: is not a readable oracle"):
        load_oracle(file)
    save_oracle(quantized(bases=2), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError):
        load_oracle(file)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        description = json.loads(archive.read("model.json"))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.json", json.dumps(description | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        load_oracle(file)
    with zipfile.ZipFile(file, "w") as archive:  # arrays are missing
        archive.writestr("model.json", json.dumps(description))
    with pytest.raises(DataError, match="Compile the project again"):
        load_oracle(file)


# --- edited by hand ---------------------------------------------------------------------------


Edit = Callable[[dict[str, Any]], object]
DESCRIBED: dict[str, Edit] = {
    "no nodes": lambda d: d.update(nodes=[]),
    "nodes of a kind": lambda d: d.update(nodes={"a": 1}),
    "an unknown operator": lambda d: d["nodes"][1].update(op="Sigmoid"),
    "an operator of a kind": lambda d: d["nodes"][1].update(op=["Relu"]),
    "another operator": lambda d: d["nodes"][0].update(op="Relu"),
    "weights of a vector": lambda d: d["nodes"][0].update(weight_shape=[8]),
    "weights of other rank": lambda d: d["nodes"][0].update(weight_shape=[8, 27]),
    "weights beyond the file": lambda d: d["nodes"][0].update(weight_shape=[8, 3, 2**30, 2**30]),
    "negative weights": lambda d: d["nodes"][0].update(weight_shape=[-8, -3, 3, 3]),
    "no stride": lambda d: d["nodes"][0]["attributes"].update(strides=[0, 1]),
    "a stride less": lambda d: d["nodes"][0]["attributes"].update(strides=[1]),
    "pads of 10^9": lambda d: d["nodes"][0]["attributes"].update(pads=[10**9] * 4),
    "negative pads": lambda d: d["nodes"][0]["attributes"].update(pads=[-1] * 4),
    "no groups": lambda d: d["nodes"][0]["attributes"].update(groups=0),
    "an attribute more": lambda d: d["nodes"][0]["attributes"].update(kernel=[3, 3]),
    "an attribute less": lambda d: d["nodes"][0]["attributes"].pop("pads"),
    "no name": lambda d: d["nodes"][0]["attributes"].update(name=None),
    "a name twice": lambda d: d["nodes"][0]["attributes"].update(
        name=d["nodes"][-1]["attributes"]["name"]),
    "a tensor twice": lambda d: d["nodes"][1]["attributes"].update(
        output=d["nodes"][0]["attributes"]["output"]),
    "a tensor of nobody": lambda d: d["nodes"][1]["attributes"].update(input="x"),
    "a loop": lambda d: d["nodes"][0]["attributes"].update(input=d["output"]),
    "a node of no use": lambda d: d.update(output=d["nodes"][-2]["attributes"]["output"]),
    "no such output": lambda d: d.update(output="x"),
    "the input as output": lambda d: d.update(output=d["input"]),
    "another input": lambda d: d.update(input_shape=[3, 13, 40]),
    "an input of a kind": lambda d: d.update(input_shape="3"),
    "an input of 10^18": lambda d: d.update(input_shape=[10**18, 1, 1]),
    "no bits": lambda d: next(iter(d["tensors"].values())).update(bits=0),
    "ten bits": lambda d: next(iter(d["tensors"].values())).update(bits=10),
    "no step": lambda d: next(iter(d["tensors"].values())).update(delta=0),
    "a step below floats": lambda d: next(iter(d["tensors"].values())).update(delta=1e-45),
    "a step of a kind": lambda d: next(iter(d["tensors"].values())).update(delta="1"),
    "a zero point above its codes": lambda d: next(iter(d["tensors"].values())).update(
        zero_point=16),
    "a range less": lambda d: d["tensors"].popitem(),
    "a range more": lambda d: d["tensors"].update(nobody=next(iter(d["tensors"].values()))),
    "another format": lambda d: d.update(format="1"),
}  # fmt: skip


def rewrite(file: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("kind", DESCRIBED)
def test_descriptions_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "oracle.npz"
    save_oracle(quantized(bases=2), file)
    load_oracle(file)

    def change(members: dict[str, bytes]) -> None:
        description = json.loads(members["model.json"])
        DESCRIBED[kind](description)
        members["model.json"] = json.dumps(description).encode()

    rewrite(file, change)
    with pytest.raises(DataError, match=r"oracle\.npz: is not a readable oracle") as caught:
        load_oracle(file)
    assert len(str(caught.value)) < 400


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


ARRAYS = {
    "0.signs": (np.zeros((8, 2, 5), np.uint8), np.zeros((8, 3, 4), np.uint8)),
    "0.coefficients": (
        *(np.full((8, 2), 1, np.int32), np.full((8, 2), 99, np.int16), np.zeros((8, 0), np.int16)),
        *(np.full((8, 8), 1, np.int16), np.full((8, 2), -(2**15), np.int16), np.zeros(8, np.int16)),
    ),
    "0.scale": (np.ones(9, np.float32), np.ones(8), np.full(8, np.nan, np.float32)),
    "0.bias": (np.ones((8, 1), np.float32), np.full(8, np.inf, np.float32)),
}


@pytest.mark.parametrize(
    ("name", "index"), [(n, i) for n, a in ARRAYS.items() for i in range(len(a))]
)
def test_arrays_that_do_not_fit(tmp_path: Path, name: str, index: int) -> None:
    file = tmp_path / "oracle.npz"
    save_oracle(quantized(bases=2), file)
    rewrite(file, lambda members: members.update({f"{name}.npy": npy(ARRAYS[name][index])}))
    with pytest.raises(DataError, match=r"oracle\.npz: is not a readable oracle"):
        load_oracle(file)


def test_float_weights_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "oracle.npz"
    save_oracle(quantized(bases=2), file)
    with zipfile.ZipFile(file) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("weight.npy") and n < "4")
    for wrong in (np.zeros(0, np.float32), np.zeros((8, 0, 3, 3), np.float32), np.float32(1)):
        rewrite(file, lambda members, wrong=wrong: members.update({name: npy(np.asarray(wrong))}))
        with pytest.raises(DataError, match=r"oracle\.npz: is not a readable oracle"):
            load_oracle(file)
