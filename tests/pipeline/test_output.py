# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bdcc.errors import OutputError
from bdcc.pipeline.output import check_output, listed_files, staged, write_manifest


def make_project(output: Path, text: str = "one", *, force: bool = False) -> None:
    with staged(output, force=force) as project:
        (project / "src").mkdir()
        (project / "src" / "model.c").write_text(text)
        write_manifest(project)


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_project_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "er" / "out"
    with staged(output, force=False) as project:
        (project / "file").write_text("x")
        assert not output.exists()
    assert everything(tmp_path) == ["deep", "deep/er", "deep/er/out", "deep/er/out/file"]
    assert output.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged(tmp_path / "new" / "out", force=False) as project:
            (project / "half").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert everything(tmp_path) == []


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    make_project(tmp_path / "out")
    assert listed_files(tmp_path / "out") == {"src/model.c"}


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    make_project(tmp_path / "out")
    with pytest.raises(OutputError, match=r"not empty.*--force"):
        make_project(tmp_path / "out", "two")
    assert (tmp_path / "out/src/model.c").read_text() == "one"


def test_force_replaces_a_project_and_its_build(tmp_path: Path) -> None:
    output = tmp_path / "out"
    make_project(output)
    (output / "build" / "deep").mkdir(parents=True)
    (output / "build" / "deep" / "model.o").write_text("x")
    make_project(output, "two", force=True)
    assert everything(tmp_path) == ["out", "out/manifest.txt", "out/src", "out/src/model.c"]
    assert (output / "src/model.c").read_text() == "two"


@pytest.mark.parametrize("name", ["bdcc-staging", "replaced", "project", "candidates"])
def test_an_output_may_have_any_name(tmp_path: Path, name: str) -> None:
    make_project(tmp_path / name)
    make_project(tmp_path / name, "two", force=True)
    assert (tmp_path / name / "src/model.c").read_text() == "two"


@pytest.mark.parametrize("name", ["notes.txt", "src/mine.c", "sub/x"])
def test_force_leaves_a_folder_with_foreign_files_alone(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    make_project(output)
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text("precious")
    with pytest.raises(OutputError, match=f"'{name}' was not written by bdcc"):
        make_project(output, "two", force=True)
    assert (output / name).read_text() == "precious"
    assert (output / "src/model.c").read_text() == "one"


def test_force_is_no_licence_without_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.txt").write_text("")
    with pytest.raises(OutputError, match=r"'manifest\.txt' was not written by bdcc"):
        check_output(tmp_path / "out", force=True)


def test_a_failed_replacement_keeps_the_old_project(tmp_path: Path) -> None:
    output = tmp_path / "out"
    make_project(output)

    def fail() -> None:
        with staged(output, force=True):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (output / "src/model.c").read_text() == "one"
    assert everything(tmp_path) == ["out", "out/manifest.txt", "out/src", "out/src/model.c"]


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        make_project(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot be written"):
        make_project(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        make_project(Path("/proc/out"))


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    killed = (
        "import os, sys, pathlib, bdcc.pipeline.output as o\n"
        "with o.staged(pathlib.Path(sys.argv[1]), force=False) as project:\n"
        "    (project / 'a').write_text('a')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, tmp_path / "out"], check=False)
    assert done.returncode == -9
    (stale,) = tmp_path.iterdir()
    for name in (".out.original", ".other.abcd1234"):  # not ours
        (tmp_path / name / "out").mkdir(parents=True)
    with staged(tmp_path / "out", force=False) as project:
        assert not stale.exists()
        (project / "a").write_text("a")
        mine = project.parent
        with staged(tmp_path / "out", force=False):
            assert mine.exists()  # a living one is left alone
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [".other.abcd1234", ".out.original", "out"]
