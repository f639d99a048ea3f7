# SPDX-License-Identifier: 0BSD
"""Files that bdcc reads back, damaged by a seed: each is taken, or refused in one line, within the
time and memory of bounded.py.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from bdcc.codegen.costs import read_cost_table
from bdcc.codegen.targets import find_target, target_of
from bdcc.data.listing import list_pictures
from bdcc.data.pictures import read_pictures
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import BuildError
from bdcc.host import bench, library, verify
from bdcc.host.build import build
from bdcc.host.facts import read_facts
from bdcc.host.probes import Machine
from bdcc.pipeline import tables
from bdcc.pipeline.compile import compile_model
from bdcc.pipeline.options import CompileOptions
from bdcc.pipeline.project import classify, evaluate_project, open_project
from bdcc.pipeline.tables import tuning_of
from fuzz.bounded import is_fault, outcome
from fuzz.json_mutants import mutate_json
from fuzz.npz_mutants import members_of, mutate_npz, zipped

Rng = np.random.Generator
SHAPE = (1, 6, 7)
FILES = ("report.json", "host/project.json", "host/oracle.npz")


def counts(some: int, many: int) -> pytest.MarkDecorator:
    slow = pytest.param(many, id="many", marks=pytest.mark.slow)
    return pytest.mark.parametrize("count", [pytest.param(some, id="some"), slow])


def check(count: int, mutate: Callable[[Rng], Callable[[], object]]) -> None:
    """mutate: makes a damaged file, and gives what is to read it. BDCC_FUZZ: so many times as many
    cases. More than one outcome must occur, or the damage is none.
    """
    count = int(os.environ.get("BDCC_FUZZ", "1")) * count
    found = [outcome(mutate(np.random.default_rng([count, seed]))) for seed in range(count)]
    faults = [
        f"case {seed} of {count}: {text}" for seed, text in enumerate(found) if is_fault(text)
    ]
    assert not faults, f"{len(faults)} faults, the first:\n" + "\n".join(faults[:3])
    assert len(set(found)) > 1


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


@counts(60, 1000)
def test_npz_files_of_pictures(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, *SHAPE[1:], 1), np.uint8)
    good = (
        npz(images=pixels, labels=np.arange(5)),
        npz(images=pixels[..., 0], extra=np.zeros((2, 0))),
        npz(images=np.asfortranarray(rng.normal(size=(5, *SHAPE)).astype(np.float32))),
    )
    preprocess = make_preprocess(shape=SHAPE, preset="unit")

    def mutate(rng: Rng) -> Callable[[], object]:
        file = tmp_path / "x.npz"
        file.write_bytes(mutate_npz(good[rng.integers(len(good))], rng))

        def read() -> None:
            listing = list_pictures(file, shape=SHAPE, outputs=5)
            read_pictures(listing, shape=SHAPE, preprocess=preprocess).batch([0])

        return read

    check(count, mutate)


@pytest.fixture(scope="module")
def project(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the digits, built."""
    out = tmp_path_factory.mktemp("fuzz") / "digits"
    options = CompileOptions(
        **{part: examples / f"digits_{part}.npz" for part in ("calib", "holdout")},
        data=examples / "digits_search.npz",
        preset="unit",
        bases=(2,),
        q=(3,),
        keep_float=("fc7",),
        limit=20,
        decompose="plain",
        output=out,
        workers=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CFLAGS", "-O0")
        compile_model(examples / "digits.onnx", options)
        build(out)
    return out


@pytest.fixture
def damaged(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, bytes], Path]:
    """The project with another content of a file; what is built of it is built already."""

    def built(folder: Path, **_: object) -> Path:
        found = folder / "build" / f"lib{read_facts(folder).name}.so"
        if not found.is_file():
            raise BuildError(f"make has not built {found.name}")
        return found

    for module in (verify, library):
        monkeypatch.setattr(module, "build", built)
    machine = Machine(
        ghz=4.0, rates={}, cache_bytes=1 << 10, cache_gb_s=1.0, memory_gb_s=1.0, weights_gb_s=1.0
    )
    monkeypatch.setattr(bench, "measure_machine", lambda **_: machine)
    shipped = (resources.files("bdcc.codegen") / "cost_tables" / "generic.json").read_text("utf-8")

    def measured(_isa: str, _place: object, output: Path, **_: object) -> Path:
        output.write_text(shipped)
        return output

    monkeypatch.setattr(tables, "_measure_table", measured)
    for name in ("host", "build"):
        (tmp_path / name).mkdir()
    for built_file in (project / "build").glob("lib*.so"):
        (tmp_path / "build" / built_file.name).symlink_to(built_file)

    def put(file: str, content: bytes) -> Path:
        for name in FILES:
            shutil.copy(project / name, tmp_path / name)
        (tmp_path / file).write_bytes(content)
        return tmp_path

    return put


def use(project: Path, examples: Path) -> None:
    """What the commands on a project read of it."""
    opened = open_project(project)
    target_of(opened.report)
    pictures = np.zeros((1, *opened.shape), np.float32)
    verify.verify(project, images=pictures, isas=["generic"])
    classify(opened, examples / "digit.png", model=examples / "digits.onnx")
    data = examples / "digits_search.npz"
    evaluate_project(opened, data, classes=None, limit=3, threads=1, progress=None)
    bench.bench(project, rounds=1, layers=True)
    tuning_of(project, "generic", output=project / "table.json", cache="off", progress=None)


def test_the_undamaged_project_is_taken(
    damaged: Callable[[str, bytes], Path], project: Path, examples: Path
) -> None:
    assert outcome(lambda: use(damaged("x", b""), examples)) == "done"


@counts(40, 500)
@pytest.mark.parametrize("file", FILES)
def test_files_of_a_project(
    damaged: Callable[[str, bytes], Path], project: Path, examples: Path, file: str, count: int
) -> None:
    good = (project / file).read_bytes()

    def mutate(rng: Rng) -> Callable[[], object]:
        if not file.endswith(".npz"):
            content = mutate_json(good, rng)
        elif rng.random() < 0.6:
            members = members_of(good)
            members["model.json"] = mutate_json(members["model.json"], rng)
            content = zipped(members)
        else:
            content = mutate_npz(good, rng)
        folder = damaged(file, content)
        return lambda: use(folder, examples)

    check(count, mutate)


@counts(40, 300)
def test_tables_of_kernel_costs(tmp_path: Path, count: int) -> None:
    tables = sorted(Path(str(resources.files("bdcc.codegen") / "cost_tables")).glob("*.json"))

    def mutate(rng: Rng) -> Callable[[], object]:
        good = tables[rng.integers(len(tables))].read_bytes()
        file = tmp_path / "table.json"
        file.write_bytes(mutate_json(good, rng))
        return lambda: read_cost_table(file)

    check(count, mutate)


TOML = b"""like = "rpi4"
description = "a board"
cflags = "-O3 -mcpu=cortex-a72"
cross = "aarch64-linux-gnu-"
machine = "aarch64"
ram = 1073741824
mhz = 1500
"""


@counts(60, 300)
def test_targets_of_the_user(tmp_path: Path, count: int) -> None:
    odd = (b"[" * 20_000, b"x = " + b"[" * 20_000, b"\xff", b"ram = 9" + b"9" * 9999, b"like = []",
           b"[like]\na = 1", b"ram = 1979-05-27", b"mhz = inf", b"cflags = '''-a\n-b'''",
           b"name = 'x'", b"cross = '../../x-'", b"\0", b"ram = 0x7fffffffffffffff")  # fmt: skip

    def mutate(rng: Rng) -> Callable[[], object]:
        data = bytearray(TOML)
        if rng.random() < 0.5:
            lines = TOML.splitlines()
            lines[rng.integers(len(lines))] = odd[rng.integers(len(odd))]
            data = bytearray(b"\n".join(lines))
        else:
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        file = tmp_path / "board.toml"
        file.write_bytes(data)
        return lambda: find_target(str(file))

    check(count, mutate)


def test_a_fault_is_seen() -> None:
    """bounded.py judges: a bug, a warning, a crash, too much time or memory."""

    def loop() -> None:
        while True:
            pass

    calls: dict[str, Callable[[], object]] = {
        "KeyError": lambda: {}["x"],
        "RuntimeWarning": lambda: np.float32(1) / np.float32(0),
        "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "SIGPROF": loop,
        "SIGALRM": lambda: time.sleep(99),
        "MemoryError": lambda: np.ones(3 << 30, np.uint8),
    }
    for name, call in calls.items():
        text = outcome(call, seconds=1)
        assert is_fault(text), name
        assert name in text
    assert not is_fault(outcome(lambda: json.loads("{}")))
