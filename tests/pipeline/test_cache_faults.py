# SPDX-License-Identifier: 0BSD
"""Damaged caches, full disks and killed runs: one line, nothing lost, nothing left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compile import differing
from trained_network import Trained, options_for

import bdcc
from bdcc.approx import sequence, workers
from bdcc.approx.model import DecomposedModel
from bdcc.approx.sequence import _Flow
from bdcc.cli import main
from bdcc.data.pictures import hold_pixels
from bdcc.errors import OutputError
from bdcc.ir.onnx_import import load_onnx
from bdcc.pipeline import tables
from bdcc.pipeline.cache import Cache, open_cache
from bdcc.sealed import Shelf
from disks import KINDS, fill, grow, small_disk

FIXED = ("--bases", "2", "--q", "4", "--limit", "20", "--metric", "top1")
QUICK: dict[str, Any] = {"bases": (2,), "q": (4,), "limit": 20}  # no search: one library is built


@dataclass(frozen=True)
class Kept:
    """A compilation: its options, its project, and the cache that it has left."""

    options: dict[str, Any]
    project: Path
    cache: Path


def compile_and_keep(trained: Trained, folder: Path, options: dict[str, Any]) -> Kept:
    given = options_for(trained, folder / "out", cache=folder / "cache", **options)
    project = bdcc.compile_model(trained.model, given).project
    return Kept(options=options, project=project, cache=folder / "cache")


@pytest.fixture(scope="module")
def quick(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return compile_and_keep(trained, tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def searched(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    options = {"max_drop_pp": 12.0}
    return compile_and_keep(trained, tmp_path_factory.mktemp("searched"), options)


@pytest.fixture(params=["quick", pytest.param("searched", marks=pytest.mark.slow)])
def kept(request: pytest.FixtureRequest) -> Kept:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Kept)
    return found


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def leftovers(*folders: Path) -> list[Path]:
    return [
        p for folder in folders for p in folder.rglob("*") if re.search(r"\.(part|tmp)$", p.name)
    ]


# --- damage -------------------------------------------------------------------------------

Damage = Callable[[np.random.Generator, Path, list[Path]], object]


def patch(
    rng: np.random.Generator, file: Path, size: int, change: Callable[[bytes], bytes]
) -> None:
    content = file.read_bytes()
    start = int(rng.integers(max(1, len(content) - size)))
    stop = start + size
    file.write_bytes(content[:start] + change(content[start:stop]) + content[stop:])


def replace_by(file: Path, make: Callable[[Path], object]) -> None:
    file.unlink()
    make(file)


DAMAGES: dict[str, Damage] = {
    "a bit": lambda rng, f, _: patch(rng, f, 1, lambda b: bytes([b[0] ^ 1 << rng.integers(8)])),
    "a run": lambda rng, f, _: patch(rng, f, 64, lambda b: rng.bytes(len(b))),
    "zeros": lambda rng, f, _: patch(rng, f, 4096, lambda b: bytes(len(b))),
    "inverted": lambda rng, f, _: patch(rng, f, 4096, lambda b: bytes(255 - x for x in b)),
    "cut off": lambda rng, f, _: os.truncate(f, int(rng.integers(f.stat().st_size))),
    "empty": lambda rng, f, _: os.truncate(f, 0),
    "longer": lambda rng, f, _: os.truncate(f, f.stat().st_size + int(rng.integers(1, 9999))),
    "another's": lambda rng, f, all_: f.write_bytes(all_[rng.integers(len(all_))].read_bytes()),
    "folder": lambda rng, f, _: replace_by(f, Path.mkdir),
    "pipe": lambda rng, f, _: replace_by(f, os.mkfifo),
    "loop": lambda rng, f, _: replace_by(f, lambda f: f.symlink_to(f.name)),
    "gone": lambda rng, f, _: f.unlink(),
}


def test_no_damaged_entry_is_used(kept: Kept, tmp_path: Path) -> None:
    """Of every kind that a compilation leaves, with every damage: it is refused or made again."""
    mutants = 1000 if "max_drop_pp" in kept.options else 60
    cache = tmp_path / "cache"
    shutil.copytree(kept.cache, cache)
    files, rng = entries(cache), np.random.default_rng(16)
    kinds = sorted({file.relative_to(cache).parts[0] for file in files})
    assert {"pictures", "float", "measured"} <= {*kinds}
    assert mutants < 1000 or {"tables", "sensitivities", "finalists", "lowered"} <= {*kinds}
    by_kind = [[file for file in files if file.relative_to(cache).parts[0] == k] for k in kinds]
    outcomes = {"same": 0, "dropped": 0, "refused": 0, "gone": 0}
    for number in range(mutants):
        some = by_kind[number % len(by_kind)]
        file, damage = some[rng.integers(len(some))], [*DAMAGES][rng.integers(len(DAMAGES))]
        before = file.read_bytes()
        DAMAGES[damage](rng, file, files)
        dropped: list[Path] = []
        shelf = Shelf(
            folder=file.parent,
            name=file.parent.relative_to(cache).as_posix(),
            dropped=dropped.append,
        )
        try:
            read, found = shelf.read(file.name), shelf.find(file.name)
            if read is None:
                assert found is None
                assert dropped == [file] * (2 * (damage != "gone"))
                outcomes["gone" if damage == "gone" else "dropped"] += 1
            else:  # a run of zeros made zero, or a file that became its own copy
                assert file.read_bytes() == before, damage
                outcomes["same"] += 1
            shelf.write(file.name, lambda out: out.write(b"again"))
            assert shelf.read(file.name) == b"again"
            assert damage not in ("folder", "pipe", "loop")
        except OutputError as error:
            refused = str(error)
            assert (damage in ("folder", "pipe", "loop"), str(file) in refused) == (True, True)
            outcomes["refused"] += 1
            file.rmdir() if file.is_dir() else file.unlink()
        file.write_bytes(before)
    assert sum(outcomes.values()) == mutants
    assert outcomes["same"] <= mutants // 10
    assert min(outcomes["dropped"], outcomes["refused"], outcomes["gone"]) > mutants // 30
    assert entries(cache) == files


def test_a_cache_that_is_damaged_all_over_changes_nothing(
    trained: Trained, kept: Kept, tmp_path: Path
) -> None:
    """A bit of every entry is turned: each kind is told of, in one line, and made again."""
    cache, rng = tmp_path / "cache", np.random.default_rng(1)
    shutil.copytree(kept.cache, cache)
    for file in entries(cache):
        DAMAGES["a bit"](rng, file, [])
    said: list[str] = []
    for number in range(2):
        given = options_for(trained, tmp_path / f"out{number}", cache=cache, **kept.options)
        bdcc.compile_model(trained.model, given, say=said.append)
        assert differing(tmp_path / f"out{number}", kept.project) == []
    # The second run has found nothing damaged.
    told = [re.fullmatch(r"cache: (\w+): \d+ entr(?:y was|ies were) damaged, .*", s) for s in said]
    assert [one[1] for one in told if one is not None] == sorted(p.name for p in cache.iterdir())


@pytest.mark.slow
def test_compilations_with_damaged_caches(trained: Trained, searched: Kept, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    outcomes: list[str] = []
    for number in range(36):
        cache, out = tmp_path / f"cache{number}", tmp_path / f"out{number}"
        shutil.copytree(searched.cache, cache)
        files = entries(cache)
        damage = [*DAMAGES][number % len(DAMAGES)]
        for file in rng.choice(files, size=6, replace=False):
            DAMAGES[damage](rng, file, [f for f in files if f.is_file()])
        said: list[str] = []
        try:
            given = options_for(trained, out, cache=cache, **searched.options)
            bdcc.compile_model(trained.model, given, say=said.append)
        except OutputError as error:
            refused = str(error)
            assert (damage in ("folder", "pipe", "loop"), str(cache) in refused) == (True, True)
            assert not out.exists()
        else:
            assert differing(out, searched.project) == []
            outcomes += said
        assert leftovers(tmp_path) == []
        shutil.rmtree(cache)
        shutil.rmtree(out, ignore_errors=True)
    assert len(outcomes) > 12


def test_a_damaged_table_of_costs_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tables.shipped_cost_table("generic")
    monkeypatch.setattr(tables, "tune", lambda isa, progress: shipped.ns)
    monkeypatch.setattr(tables, "usable_isas", lambda: ("generic",))
    host, place = tables.find_target("host"), tables.find_place(None)
    file = tables._measure_table("generic", place, None, cache=tmp_path, progress=None)
    said: list[str] = []
    found = tables.find_cost_table(host, "default", cache=tmp_path, say=said.append)
    assert (found.source, found.ns, said) == ("measured", shipped.ns, [])
    # Named by the user it is a table as any other, whose seal is not a part of it.
    named = tables.find_cost_table(host, str(file), cache=None)
    assert (named.source, named.sha256) == ("file", found.sha256)
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0.1", b"0.2", 1))
    assert file.read_bytes() != content
    found = tables.find_cost_table(host, "default", cache=tmp_path, say=said.append)
    assert found.source == "shipped"
    assert said == [f"cache: a table is damaged, and not used; bdcc tune makes one: {file}"]


# --- places that cannot be used -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "pipe", "dangling link", "loop", "name too long"])
def test_what_is_no_folder_is_no_cache(
    trained: Trained, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "cache"
    match kind:
        case "file":
            place.touch()
        case "pipe":
            os.mkfifo(place)
        case "dangling link":
            place.symlink_to("gone")
        case "loop":
            place.symlink_to("cache")
        case _:
            place = tmp_path / ("n" * 300)
    given = [str(trained.model), "--data", str(trained.search), "--cache", str(place)]
    with pytest.raises(SystemExit) as left:
        main(["compile", *given, "-o", str(tmp_path / "out")])
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert re.fullmatch(rf"bdcc: {re.escape(str(place))}: cannot be written .*--cache.*\n", said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "pipe", "dangling link", "loop"])
def test_what_is_no_folder_keeps_no_entries(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "kind"
    match kind:
        case "file":
            place.touch()
        case "pipe":
            os.mkfifo(place)
        case "dangling link":
            place.symlink_to("gone")
        case _:
            place.symlink_to("kind")
    cache = Cache(folder=tmp_path)
    with pytest.raises(OutputError, match=r"kind: cannot be written .*--cache DIR"):
        cache.record("kind", make=lambda: pytest.fail("work that could not be kept"))


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BDCC_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(OutputError, match=r"--cache: .*no home"), open_cache(None):
        pass
    host = tables.find_target("host")
    assert tables.find_cost_table(host, "default", cache=None).source == "shipped"


# --- full disks ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_on_a_full_disk(tmp_path: Path, kind: str) -> None:
    """Where space were not reserved, writing through the mapping would end this process."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    with small_disk(tmp_path / "disk", kind, kilobytes=2000) as disk:
        fill(disk, but=600_000)
        shelf = Shelf(folder=disk, name="pictures")
        with pytest.raises(OutputError, match=r"the disk is full \(\d+ .* 786432 are needed\)"):
            hold_pixels(pixels, shelf)
        assert [path.name for path in disk.iterdir()] == ["filler"]
        held, _ = hold_pixels(pixels[:32], shelf)
        assert isinstance(held, Path)
        np.testing.assert_array_equal(np.load(held, mmap_mode="r"), pixels[:32])


@pytest.mark.parametrize("kind", KINDS)
def test_temporary_files_on_a_full_disk(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Of flows, and of the model that workers get."""
    with small_disk(tmp_path / "disk", kind, kilobytes=1000) as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk))
        fill(disk, but=100_000)
        flow = object.__new__(_Flow)
        flow._in_files = True
        assert isinstance(sequence.temporary_place(), Path)
        x = np.ones((30, 1000), np.float32)
        with pytest.raises(OutputError, match=rf"{disk}: the disk is full .*120000 .*TMPDIR=DIR"):
            flow._keep(x)
        np.testing.assert_array_equal(flow._keep(x[:3]), x[:3])
        model = DecomposedModel(graph=load_onnx(trained.model), layers={})
        crew = workers.Processes(None, 1)  # type: ignore[arg-type]
        monkeypatch.setattr(workers, "_pickled", lambda model: ("key", bytes(200_000)))
        with pytest.raises(OutputError, match=rf"{disk}.*: the disk is full .*200000 .*TMPDIR=DIR"):
            crew.submit(print, model, np.arange(1))  # type: ignore[arg-type]
        crew.close(now=True)
        assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_cache_that_fills_up(trained: Trained, quick: Kept, tmp_path: Path) -> None:
    """At one entry after the other; with more room the run goes on, and ends the same."""
    said: list[str] = []
    with small_disk(tmp_path / "disk", "tmpfs", kilobytes=40) as disk:
        kilobytes, done = 40, False
        given = options_for(trained, tmp_path / "out", **QUICK, cache=disk)
        while not done:
            assert kilobytes < 10_000
            try:
                bdcc.compile_model(trained.model, given)
                done = True
            except OutputError as error:
                said.append(str(error))
            assert leftovers(tmp_path) == []
            assert (tmp_path / "out").exists() == done
            kilobytes = kilobytes * 4 // 3
            grow(disk, kilobytes=kilobytes)
    assert len(said) > 2
    for line in said:
        assert re.fullmatch(rf"{disk}/.*: the disk is full \(\d+ bytes are .*--cache DIR.*", line)
    assert differing(tmp_path / "out", quick.project) == []


# --- kills --------------------------------------------------------------------------------

WITH_WORKERS = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
from bdcc.pipeline import material
material.IN_PROCESS_MACS = 0
from bdcc.cli import main
if __name__ == "__main__":
    main(sys.argv[1:])
"""


def workers_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, ppid = int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])
            if ppid == parent and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_two_at_once_share_a_cache(trained: Trained, quick: Kept, tmp_path: Path) -> None:
    def start(number: int) -> subprocess.Popen[str]:
        command = ["-c", "from bdcc.cli import main; main()", "compile", str(trained.model)]
        command += [*trained.data, *FIXED, "--cache", str(tmp_path / "cache")]
        return subprocess.Popen(
            [sys.executable, *command, "-o", str(tmp_path / f"out{number}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    for run in [start(0), start(1)]:
        _, error = run.communicate()
        assert (run.returncode, error) == (0, "")
    for number in range(2):
        assert differing(tmp_path / f"out{number}", quick.project) == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "kills"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGHUP, 5, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 5, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 60, marks=pytest.mark.slow),
    ],
)
def test_killed_runs_leave_no_workers_and_nothing_that_the_next_does_not_sweep(
    trained: Trained, quick: Kept, tmp_path: Path, how: signal.Signals, kills: int
) -> None:
    script, temporary = tmp_path / "script.py", tmp_path / "tmp"
    script.write_text(WITH_WORKERS)
    temporary.mkdir()
    cache, out = tmp_path / "cache", tmp_path / "out"
    data = (*trained.data, *FIXED, "--workers", "2")
    arguments = [str(trained.model), *data, "--cache", str(cache), "-o", str(out)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), "compile", *arguments],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    seen = killed = 0
    rng = np.random.default_rng(kills)
    for _ in range(5 * kills):
        if killed == kills:
            break
        run = start()
        while run.poll() is None and not workers_of(run.pid):
            time.sleep(0.02)
        time.sleep(3 * rng.random())
        run.send_signal(signal.SIGSTOP)
        children = workers_of(run.pid)
        seen += len(children)
        run.send_signal(how)
        run.send_signal(signal.SIGCONT)
        _, error = run.communicate()
        deadline = time.monotonic() + 60  # 2 s on a machine at rest
        while any(Path(f"/proc/{pid}/cmdline").exists() for pid in children):
            assert time.monotonic() < deadline, "workers are still there"
            time.sleep(0.05)
        assert run.returncode in (0, -how, 130), error
        killed += run.returncode != 0
        assert run.returncode or (error, out.exists()) == ("", True)
        if out.exists():  # quicker than thought: all of it, and the next has all of it to do
            assert differing(out, quick.project) == []
            shutil.rmtree(out)
            shutil.rmtree(cache)
    assert killed == kills
    assert seen >= kills
    run = start()
    _, error = run.communicate()
    assert (run.returncode, error) == (0, "")
    assert differing(out, quick.project) == []
    assert list(temporary.iterdir()) == []
    assert leftovers(tmp_path) == []
