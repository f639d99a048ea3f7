# SPDX-License-Identifier: 0BSD
"""host/oracle.npz: what is read back computes the same, and equal models give equal bytes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

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
