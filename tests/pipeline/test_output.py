# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bdcc.errors import BuildError, MismatchError, OutputError, one_line
from bdcc.pipeline.output import check_output, listed_files, staged


def make_project(output: Path, text: str = "one", *, force: bool = False) -> None:
    with staged(output, force=force) as stage:
        (stage.project / "src").mkdir()
        (stage.project / "src" / "model.c").write_text(text)


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_project_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "er" / "out"
    with staged(output, force=False) as stage:
        (stage.project / "file").write_text("x")
        assert not output.exists()
    parts = ["deep", "deep/er", "deep/er/out", "deep/er/out/file", "deep/er/out/manifest.txt"]
    assert everything(tmp_path) == parts
    assert output.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [BuildError("no make"), KeyboardInterrupt(), OSError("gone")])
def test_a_failure_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with staged(tmp_path / "new" / "out", force=False) as stage:
            (stage.project / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
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


MADE = (
    *("flags", "flags.now", "classify", "model.o", "libmodel.a", "libmodel.so", "libmodel.so.1"),
    *("model_array.h", "model", "CMakeCache.txt", "CMakeFiles/3.25/a.txt", "model.pc"),
)


def test_force_replaces_a_project_and_its_build(tmp_path: Path) -> None:
    output = tmp_path / "out"
    make_project(output)
    for folder in ("build", "build/threads"):
        for name in MADE:
            (output / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (output / folder / name).write_text("x")
    make_project(output, "two", force=True)
    assert everything(tmp_path) == ["out", "out/manifest.txt", "out/src", "out/src/model.c"]
    assert (output / "src/model.c").read_text() == "two"


@pytest.mark.parametrize("name", ["bdcc-staging", "replaced", "project", "candidates"])
def test_an_output_may_have_any_name(tmp_path: Path, name: str) -> None:
    make_project(tmp_path / name)
    make_project(tmp_path / name, "two", force=True)
    assert (tmp_path / name / "src/model.c").read_text() == "two"


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "src/mine.c", "sub/x", "build/thesis.txt", "build/deep/thesis.txt"),
        *("build/mine.o", "selftest", "selftest/x", "buildx/flags", "flags", ".hidden", "model.o"),
        *("a\nb", "é"),
    ],
)
def test_force_leaves_a_folder_with_foreign_files_alone(tmp_path: Path, name: str) -> None:
    output = tmp_path / "out"
    make_project(output)
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("precious")
    before = everything(tmp_path)
    shown = name.split("/")[0] if name.split("/")[0] in ("sub", "selftest", "buildx") else name
    with pytest.raises(OutputError, match="was not written by bdcc") as caught:
        make_project(output, "two", force=True)
    assert f"'{one_line(shown)}' was" in str(caught.value)
    assert everything(tmp_path) == before
    assert (output / name).read_text() == "precious"
    assert (output / "src/model.c").read_text() == "one"


@pytest.mark.parametrize("kind", ["folder", "link to a folder", "link in build"])
def test_force_leaves_folders_and_links_alone(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    make_project(output)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "flags").write_text("precious")
    match kind:
        case "folder":
            (output / "empty").mkdir()
        case "link to a folder":
            (output / "linked").symlink_to(tmp_path / "other")
        case _:
            (output / "build").mkdir()
            (output / "build" / "deep").symlink_to(tmp_path / "other")
    before = everything(tmp_path)
    with pytest.raises(OutputError, match="was not written by bdcc"):
        make_project(output, "two", force=True)
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "line", ["", "  ", ".", "..", "../precious", "/etc/passwd", "src/../../precious", "a b", "\x85"]
)
def test_odd_lines_of_a_manifest_name_nothing(tmp_path: Path, line: str) -> None:
    output = tmp_path / "out"
    make_project(output)
    (tmp_path / "precious").write_text("x")
    with (output / "manifest.txt").open("a") as manifest:
        manifest.write(f"{line}\n")
    assert listed_files(output) <= {"src/model.c", line}
    make_project(output, "two", force=True)
    assert everything(tmp_path) == [
        "out",
        "out/manifest.txt",
        "out/src",
        "out/src/model.c",
        "precious",
    ]


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


KILLED = """
import os, sys
from pathlib import Path
import bdcc.pipeline.output as output

real = Path.rename

def replace(place, left, inside):
    os.chdir(place if inside else place.parent)
    with output.staged(place, force=True) as stage:
        (stage.project / "src").mkdir()
        (stage.project / "src" / "model.c").write_text("two")
        (stage.project / "new").write_text("two")

        def rename(self, target):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
            return real(self, target)

        Path.rename = rename

for left, place in enumerate(sys.argv[2:]):
    child = os.fork()
    if not child:
        replace(Path(place), left, sys.argv[1] == "inside")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_a_kill_at_any_point_leaves_the_old_project_or_the_new(tmp_path: Path, where: str) -> None:
    """Each rename of the exchange is the last; what is half done the next run puts back."""
    places = [tmp_path / str(number) / "out" for number in range(14)]
    for place in places:
        make_project(place)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, where, *places], capture_output=True, text=True, check=True
    )
    ended = [int(line) for line in done.stdout.split()]
    renames = ended.count(-9)
    assert ended == [-9] * renames + [0] * (14 - renames)
    assert renames >= (7 if where == "inside" else 3)
    for number, place in enumerate(places):
        with pytest.raises(OutputError, match="not empty"):
            make_project(place)
        found = {name: (place / name).read_text() for name in listed_files(place)}
        old, new = {"src/model.c": "one"}, {"src/model.c": "two", "new": "two"}
        assert found == new if number >= renames else found in (old, new)
        assert number or found == old
        files = {name for name in everything(place) if (place / name).is_file()}
        assert files == {*found, "manifest.txt"}
        assert [p.name for p in place.parent.iterdir()] == ["out"]


def test_a_second_run_to_the_same_place_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in (".out.original", ".bdcc-mine"):  # not ours
        (tmp_path / name / "out").mkdir(parents=True)
    with staged(output, force=False) as stage, staged(tmp_path / "other", force=False):
        for force in (False, True):
            with pytest.raises(OutputError, match="another bdcc is at work there"):
                make_project(output, force=force)
        (stage.project / "a").write_text("a")
    assert listed_files(output) == {"a"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(".bdcc-mine", ".out.original", "other", "out"),
    ]


def test_what_was_put_there_meanwhile_stays_and_the_finished_project_is_named(
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"

    def meet() -> None:
        with staged(output, force=False) as stage:
            (stage.project / "a").write_text("a")
            output.mkdir()
            (output / "precious").write_text("x")

    with pytest.raises(OutputError, match=r"not empty.*finished project is in") as caught:
        meet()
    (kept,) = tmp_path.glob("bdcc-finished-*")
    assert str(kept) in str(caught.value)
    assert everything(kept) == ["a", "manifest.txt"]
    assert everything(output) == ["precious"]
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_finished_takes_its_place_whatever_comes_behind(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def fail(error: BaseException) -> None:
        with staged(output, force=True) as stage:
            (stage.project / "a").write_text("a")
            stage.finished = True
            raise error

    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt())
    assert everything(tmp_path) == []
    with pytest.raises(BuildError, match="no board"):
        fail(BuildError("no board"))
    assert everything(tmp_path) == ["out", "out/a", "out/manifest.txt"]


def test_a_project_that_is_wrong_is_kept_elsewhere(tmp_path: Path) -> None:
    def fail(name: str) -> None:
        with staged(tmp_path / "out", force=False) as stage:
            (stage.folder / name).write_text("a")
            raise MismatchError("differs")

    with pytest.raises(MismatchError, match=r"differs\.$"):
        fail("candidate")
    assert everything(tmp_path) == []
    with pytest.raises(MismatchError, match=r"differs\. The project is kept in"):
        fail("project/a")
    (kept,) = tmp_path.iterdir()
    assert everything(kept) == ["a"]


def test_a_folder_keeps_its_mode_and_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target").chmod(0o2750)
    (tmp_path / "out").symlink_to("target")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("out", "dangling"):
        make_project(tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert listed_files(tmp_path / name) == {"src/model.c"}
    assert (tmp_path / "target").stat().st_mode & 0o7777 == 0o2750
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "new", "out", "target"]


def test_the_current_folder_is_filled_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (tmp_path / "out", tmp_path / "out" / "src"):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        before = (tmp_path / "out").stat().st_ino
        make_project(tmp_path / "out" if place.name == "src" else Path(), "two", force=True)
        assert (tmp_path / "out").stat().st_ino == before
    assert everything(tmp_path) == ["out", "out/manifest.txt", "out/src", "out/src/model.c"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 256, "name too long"),
        ("n" * 255, None),
        ("é" * 127, None),
        (f"deep/{'n' * 256}/out", "name too long"),
        ("loop", "symbolic links"),
        ("loop/out", "symbolic links"),
        ("/", "not empty"),
        ("/.", "not empty"),
        ("file", "is a file"),
        ("file/out", "Not a directory"),
        ("pipe", "is a file"),
        ("/proc/out", "cannot be written"),
        ("/proc/self/out", "cannot be written"),
        ("/dev/null", "is a file"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_odd_places_work_or_are_refused_at_once(
    tmp_path: Path, name: str, message: str | None, force: bool
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    before = everything(tmp_path)
    if message is None:
        make_project(tmp_path / name, force=force)
        assert listed_files(tmp_path / name) == {"src/model.c"}
        return
    message = "was not written by bdcc" if force and message == "not empty" else message
    with pytest.raises(OutputError, match=f"(?i){message}"):
        staged(tmp_path / name, force=force).__enter__()  # before there is anything to lose
    assert everything(tmp_path) == before
