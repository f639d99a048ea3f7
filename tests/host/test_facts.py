# SPDX-License-Identifier: 0BSD
"""What a project says of itself, edited by hand: taken, or refused in one line, and never trusted
where memory is made by it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bdcc.errors import BuildError, DataError, MismatchError, OutputError
from bdcc.host import library
from bdcc.host import verify as verification
from bdcc.host.build import build
from bdcc.host.facts import read_facts, read_layers, read_oracle
from bdcc.host.library import Library
from bdcc.host.verify import verify

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def edited(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project to be edited, whose library is built already."""
    shared = build(net)
    for module in (library, verification):
        monkeypatch.setattr(module, "build", lambda *_, **__: shared)
    (tmp_path / "host").mkdir()
    for file in ("host/project.json", "host/oracle.npz", "report.json"):
        shutil.copy(net / file, tmp_path / file)
    return tmp_path


def edit(project: Path, change: Edit, file: str = "host/project.json") -> None:
    record = json.loads((project / file).read_text("utf-8"))
    change(record)
    (project / file).write_text(json.dumps(record), "utf-8")


WRONG: dict[str, Edit] = {
    "a path as the name": lambda r: r.update(name="../../etc/x"),
    "an option as the name": lambda r: r.update(name="-f"),
    "a name of several lines": lambda r: r.update(name="net\nx"),
    "no name": lambda r: r.update(name=""),
    "a vector": lambda r: r.update(input=[3]),
    "a negative extent": lambda r: r.update(input=[3, -23, 21]),
    "an extent of a kind": lambda r: r.update(input=[3, 23.0, 21]),
    "another input": lambda r: r.update(input=[3, 23, 22]),
    "another input, in the steps too": lambda r: (
        r.update(input=[3, 23, 22]), r["steps"][0].update(shape=[4, 23, 22])),
    "another input, beyond memory": lambda r: (
        r.update(input=[3, 2**30, 2**30]), r["steps"][0].update(shape=r["input"])),
    "another input and arena, beyond memory": lambda r: (
        r.update(input=[3, 2**22, 2**22], arena_bytes=2**48),
        r["steps"][0].update(shape=r["input"])),
    "other outputs": lambda r: r.update(outputs=1000),
    "true outputs": lambda r: r.update(outputs=True),
    "an arena of 10^18": lambda r: r.update(arena_bytes=10**18),
    "no weights": lambda r: r.update(weight_bytes=0),
    "no steps": lambda r: r.update(steps=[]),
    "steps of a kind": lambda r: r.update(steps={"a": 1}),
    "a step of a kind": lambda r: r["steps"].append(["conv"]),
    "a step without its tensor": lambda r: r["steps"][2].pop("tensor"),
    "an unknown family": lambda r: r["steps"][1].update(family="gemm"),
    "a range that is no name": lambda r: r["steps"][1].update(quant=["x"]),
    "no fingerprint": lambda r: r.pop("fingerprint"),
    "another fingerprint": lambda r: r.update(fingerprint="00"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_was_edited_is_refused(edited: Path, kind: str) -> None:
    edit(edited, WRONG[kind])
    with pytest.raises(OutputError, match=r"project\.json is not there or is damaged") as caught:
        read_facts(edited)
    assert str(caught.value).isprintable()


UNLIKE: dict[str, Edit] = {
    "a larger input": lambda r: (
        r.update(input=[3, 99, 99]), r["steps"][0].update(shape=[3, 99, 99])),
    "a smaller input": lambda r: (
        r.update(input=[1, 1, 1]), r["steps"][0].update(shape=[1, 1, 1])),
    "fewer outputs": lambda r: (
        r.update(outputs=1), r["steps"][-1].update(shape=[1, 1, 1])),
    "another arena": lambda r: r.update(arena_bytes=2**47),
    "other weights": lambda r: r.update(weight_bytes=2**47),
    "another layer": lambda r: r["steps"][1].update(layer="conv1\N{ESCAPE}[2J"),
    "another tensor": lambda r: r["steps"][1].update(tensor="nobody"),
    "another shape": lambda r: r["steps"][1].update(shape=[1, 1, 1]),
    "codes as floats": lambda r: [s.update(quant=None) for s in r["steps"]],
    "a step less": lambda r: r["steps"].pop(3),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNLIKE)
def test_the_library_is_not_used_by_what_is_not_its_own(edited: Path, kind: str) -> None:
    """Arrays are made as large as project.json says: what is smaller would be written behind."""
    edit(edited, UNLIKE[kind])
    with pytest.raises(MismatchError) as caught:
        Library.open(edited)
    assert str(caught.value).isprintable()
    with pytest.raises((MismatchError, DataError)):
        verify(edited, images=np.zeros((1, *read_facts(edited).input), np.float32))


def test_a_library_of_another_name(edited: Path) -> None:
    edit(edited, lambda record: record.update(name="other"))
    with pytest.raises(MismatchError, match="other: the library has no init"):
        Library.open(edited)


def test_a_library_that_is_none(net: Path, tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF and then nothing"):
        (tmp_path / "libnet.so").write_bytes(content)
        with pytest.raises(BuildError, match=r"cannot be loaded \("):
            Library(tmp_path / "libnet.so", read_facts(net))


OTHER: dict[str, Edit] = {
    "no such tensor": lambda r: r["steps"][1].update(tensor="nobody"),
    "no such range": lambda r: r["steps"][0].update(quant="nobody"),
    "another shape": lambda r: r["steps"][1].update(shape=[1, 2, 3]),
}


@pytest.mark.parametrize("kind", OTHER)
def test_oracle_and_steps_fit_each_other(edited: Path, kind: str) -> None:
    read_oracle(edited)
    edit(edited, OTHER[kind])
    with pytest.raises(DataError, match=r"oracle\.npz and host/project\.json do not fit"):
        read_oracle(edited)


@pytest.mark.parametrize(
    "row",
    [
        {"macs": "1"}, {"macs": 0}, {"weight_bytes": 10**300}, {"bases": True}, {"q": 9},
        {"kernel": 1}, {"bases": None}, {"op": None}, {"name": []},
    ],
)  # fmt: skip
def test_layers_of_a_report_that_cannot_be_timed(edited: Path, row: dict[str, Any]) -> None:
    good = {"name": "conv0", "op": "Conv", "bases": 2, "q": 4, "macs": 9, "weight_bytes": 9}
    good |= {"kernel": "bdcc_lut_b2q4"}
    edit(edited, lambda report: report.update(layers=[good]), "report.json")
    assert set(read_layers(edited)) == {"conv0"}
    edit(edited, lambda report: report.update(layers=[{**good, **row}]), "report.json")
    assert read_layers(edited) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.0]}, {"std": [0, 0, 0]}, {"scale": "1"}, {"resize": "crop:1"}, {"channels": 3},
        {"mean": [1e300] * 3},
    ],
)  # fmt: skip
def test_preprocessing_that_does_not_fit(edited: Path, change: dict[str, Any]) -> None:
    edit(edited, lambda report: report["preprocess"].update(change), "report.json")
    with pytest.raises(OutputError, match=r"report\.json is damaged"):
        verify(
            edited, images=np.zeros((1, *read_facts(edited).input), np.float32), isas=["generic"]
        )
