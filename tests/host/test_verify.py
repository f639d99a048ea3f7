# SPDX-License-Identifier: 0BSD
"""Verification finds nothing in what bdcc wrote, and every fault that is planted in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdcc.approx.model import QuantizedModel, save_oracle
from bdcc.codegen.checksum import checksum
from bdcc.codegen.plan import BLOB_HEADER_BYTES, DeploymentPlan
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import DataError, MismatchError
from bdcc.host import verify as module
from bdcc.host.verify import VerificationReport, adversarial_inputs, verify
from bdcc.ir.graph import Concat
from codegen.nets import alexnet_like, every_float_step, quantized, squeezenet_like

SHAPE = (3, 23, 21)
IMAGES = np.random.default_rng(3).normal(size=(2, *SHAPE)).astype(np.float32)
QUICK = ("CFLAGS=-O0",)  # plants are found at any optimisation


def test_nothing_differs(net: Path) -> None:
    seen = []
    report = verify(net, images=IMAGES, progress=lambda *state: seen.append(state))
    assert report.isas[0] == "generic"
    assert report.inputs[:2] == ("picture 1", "picture 2")
    assert {"zero", "saturated high", "saturated low", "huge", "special"} <= set(report.inputs)
    assert seen[-1] == ("verify", len(report.inputs), len(report.inputs))
    times = len(report.inputs) * len(report.isas)
    assert report.steps[0].values == times * np.prod(SHAPE)
    assert all(step.values and not step.differing for step in report.steps)
    assert {"Conv", "Gemm", "LRN", "MaxPool", "Softmax"} <= {step.op for step in report.steps}
    assert {step.bits for step in report.steps} >= {0, 2, 3, 4}


def test_the_report(net: Path) -> None:
    report = verify(net, images=IMAGES[:0], isas=["generic"])
    assert isinstance(report, VerificationReport)
    assert report.isas == ("generic",)
    record = json.loads(json.dumps(report.as_json()))
    assert record["differing"] == 0
    assert len(record["steps"]) == len(report.steps)
    last = report.text().splitlines()[-1]
    assert re.fullmatch(r"0 differing values among [\d,]+ in \d+ steps", last)


DYNAMIC = {"bases": 2, "bits": 5, "mode": "dynamic"}
NETS = {
    "dynamic ranges": (alexnet_like(lrn_first=True), DYNAMIC),
    "nothing decomposed": (every_float_step(), {"bases": 0, "bits": 8}),
}


@pytest.mark.parametrize("kind", NETS)
def test_other_networks(
    tmp_path: Path, write: Callable[[QuantizedModel, Path], DeploymentPlan], kind: str
) -> None:
    graph, options = NETS[kind]
    write(quantized(graph, **options), tmp_path / "net")
    x = np.random.default_rng(2).normal(size=(1, *graph.shapes["x"])).astype(np.float32)
    report = verify(tmp_path / "net", images=x, make_args=QUICK)
    assert {step.differing for step in report.steps} == {0}
    assert {step.bits for step in report.steps} == {0}  # dynamic codes live in scratch memory


def test_joined_maps(
    tmp_path: Path, write: Callable[[QuantizedModel, Path], DeploymentPlan]
) -> None:
    """Slices of a block are compared where they lie, and one that goes wrong is found."""
    graph, net = squeezenet_like(), tmp_path / "net"
    write(quantized(graph, bases=2, bits=3), net)
    x = np.random.default_rng(2).normal(size=(1, *graph.shapes["x"])).astype(np.float32)
    report = verify(net, images=x, make_args=QUICK)
    assert sum(step.bits == 3 for step in report.steps) > 8
    (right,) = (n.inputs[1] for n in graph.nodes[:10] if isinstance(n, Concat))
    steps = net / "src" / "net_steps.h"
    body = steps.read_text().split("/* conv7 ")
    assert len(body) == 2, "conv7 is the layer that makes the right half"
    assert right == "relu8.out"
    broken = re.sub(r"(\.reciprocal = )0x1\.", r"\g<1>0x1.8", body[1], count=1)
    steps.write_text(f"{body[0]}/* conv7 {broken}")
    with pytest.raises(MismatchError, match=r"^conv7: tensor 'relu8\.out' at \(c="):
        verify(net, images=x, make_args=QUICK)


def test_adversarial_inputs_are_what_they_are_called() -> None:
    named = dict(adversarial_inputs(SHAPE, seed=0))
    assert all(x.shape == SHAPE and x.dtype == np.float32 for x in named.values())
    assert not named["zero"].any()
    assert named["saturated high"].min() > 1e5 > -1e5 > named["saturated low"].max()
    assert np.all(np.abs(named["huge"]) == np.float32(1e30))
    special = named["special"]
    assert np.isnan(special).any()
    assert np.isposinf(special).any()
    assert np.isneginf(special).any()
    again = dict(adversarial_inputs(SHAPE, seed=0))
    assert all(x.tobytes() == again[name].tobytes() for name, x in named.items())


# --- planted faults -------------------------------------------------------------------------------


def renew_checksum(blob: bytearray) -> None:
    body = np.frombuffer(bytes(blob[BLOB_HEADER_BYTES:]), np.uint8)
    blob[24:32] = np.array([checksum(body)], "<u8").tobytes()


def test_the_checksum_is_the_emitter_s(net: Path) -> None:
    blob = bytearray((net / "weights" / "net.bin").read_bytes())
    kept = bytes(blob)
    renew_checksum(blob)
    assert blob == kept


def plant_bit(project: Path, offset: int, bit: int) -> None:
    weights = project / "weights" / "net.bin"
    blob = bytearray(weights.read_bytes())
    blob[offset] ^= 1 << bit
    renew_checksum(blob)
    weights.write_bytes(blob)


@pytest.mark.parametrize("table", ["conv0.weights", "conv4.scale", "conv6.coefficients",
                                   "dense10.bias", "dense12.weights"])  # fmt: skip
def test_a_wrong_bit_in_the_weights(copy: Path, plan: DeploymentPlan, table: str) -> None:
    """The last bit of a table's last value, which may well change no result."""
    section = next(s for s in plan.sections if s.name == table)
    last = section.offset + section.array.nbytes - section.array.itemsize
    plant_bit(copy, last, 0)
    layer, _, name = table.partition(".")
    at = re.escape(str(tuple(extent - 1 for extent in section.array.shape)))
    with pytest.raises(MismatchError, match=rf"^{layer}: {name} at {at} is .* 1 of") as caught:
        verify(copy, images=IMAGES, isas=["generic"], make_args=("WEIGHTS=incbin", *QUICK))
    assert caught.value.exit_code == 4


def test_results_tell_of_a_wrong_bit_too(
    copy: Path, plan: DeploymentPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the packing would be in both blobs: the layer's values have to show it."""
    section = next(s for s in plan.sections if s.name == "conv0.weights")
    plant_bit(copy, section.offset, 0)
    monkeypatch.setattr(module, "_check_weights", lambda *_: None)
    with pytest.raises(MismatchError, match=r"^conv0: tensor .* at \(c=0, h=0, w=0\) is "):
        verify(copy, images=IMAGES, isas=["generic"], make_args=("WEIGHTS=incbin", *QUICK))


CONSTANTS = {
    "popcount kernel": ("popcount_kernels.h", r"sum = 2 \* sum \+", "sum = 3 * sum +"),
    "exp": ("bdcc_numeric.h", r"\b0\.693359375f", "0.693359f"),
    "padding": ("net_steps.h", r"\.pad_left = 1\b", ".pad_left = 0"),
    "top code": ("net_steps.h", r"\.top = 15\b", ".top = 14"),
    "LRN": ("net_steps.h", r"(bdcc_lrn_t g = [^;]*?)0x1\.0{13}p\+1f", r"\g<1>0x1.4p+1f"),
}


@pytest.mark.parametrize("plant", CONSTANTS)
def test_a_wrong_constant_in_the_code(copy: Path, plant: str) -> None:
    file, right, wrong = CONSTANTS[plant]
    source = copy / "src" / file
    text, planted = re.subn(right, wrong, source.read_text("utf-8"))
    assert planted, f"{right} is not in {file} any more; plant another fault"
    source.write_text(text, "utf-8")
    with pytest.raises(MismatchError, match=r"in the library and .* in the oracle; \d+ of \d+"):
        verify(copy, images=IMAGES, isas=["generic"], make_args=QUICK)


def test_a_fault_of_one_instruction_set(copy: Path) -> None:
    """The message names layer, tensor, position, values, input and instruction set."""
    source = copy / "src" / "popcount_kernels.h"
    text, planted = re.subn(r"sum = 2 \* sum \+", "sum = 3 * sum +", source.read_text("utf-8"))
    assert planted
    source.write_text(text, "utf-8")
    with pytest.raises(MismatchError) as caught:
        verify(copy, images=IMAGES, make_args=QUICK)
    assert re.fullmatch(
        r"conv\d: tensor '[\w.]+' at \(c=\d+, h=\d+, w=\d+\) is \S+( \(0x\w{8}\))? in the library "
        r"and \S+( \(0x\w{8}\))? in the oracle; [1-9]\d* of \d+ values differ "
        r"\(input 'picture 1', generic\)\.",
        str(caught.value),
    )


def test_a_write_behind_the_arena(copy: Path) -> None:
    source = copy / "src" / "net.c"
    text = source.read_text("utf-8")
    before = "    if (status == NET_OK) run_all(model, &run, first, last);\n"
    assert before in text
    plant = before + "    ((unsigned char *)arena)[NET_ARENA_BYTES] = 1;\n"
    source.write_text(text.replace(before, plant), "utf-8")
    with pytest.raises(MismatchError, match="wrote behind its arena"):
        verify(copy, images=IMAGES, isas=["generic"], make_args=QUICK)


def test_steps_that_do_not_agree(copy: Path) -> None:
    file = copy / "host" / "project.json"
    record = json.loads(file.read_text("utf-8"))
    del record["steps"][2]
    file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(MismatchError, match="the library's steps are"):
        verify(copy, images=IMAGES, isas=["generic"])


def test_another_oracle(copy: Path) -> None:
    """The library is judged by the oracle: with another one every layer is wrong."""
    other = quantized(alexnet_like(seed=1), bases=[3, 2, 4, 0, 1], bits=[4, 3, 2, 8, 8])
    save_oracle(other, copy / "host" / "oracle.npz")
    with pytest.raises(MismatchError):
        verify(copy, images=IMAGES, isas=["generic"])


def test_no_oracle(copy: Path) -> None:
    (copy / "host" / "oracle.npz").unlink()
    with pytest.raises(DataError, match=r"oracle\.npz"):
        verify(copy, images=IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0.0, 9.0, 0.0)}, "^net: pixel_table at"),
        ({"channels": "bgr"}, "pixels, generic"),
    ],
)
def test_pixels_are_checked(copy: Path, change: dict[str, Any], message: str) -> None:
    """report.json says how pixels become inputs; the library must do just that."""
    wrong = make_preprocess(shape=SHAPE, preset="unit", **change)
    (copy / "report.json").write_text(json.dumps({"preprocess": wrong.as_json()}), "utf-8")
    with pytest.raises(MismatchError, match=message):
        verify(copy, images=IMAGES[:0], isas=["generic"])
