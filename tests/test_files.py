# SPDX-License-Identifier: 0BSD
"""Files appear complete or not at all, take the place of regular files alone, and say why not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import BinaryIO

import pytest

from bdcc.errors import BdccError, DataError, OutputError, one_line
from bdcc.files import (
    appearing,
    check_file,
    check_folder,
    locked_folder,
    make_folder,
    read_file,
    reading,
    sweep,
    temporary_folder,
    write_file,
    write_text,
)


def test_a_file_that_cannot_be_filled_leaves_the_former_one_and_nothing_else(
    tmp_path: Path,
) -> None:
    file = tmp_path / "table.json"
    write_text(file, "former")

    def half(out: BinaryIO) -> None:
        out.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"table\.json: the disk is full \(\d+ bytes are free"):
        write_file(file, half)
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    assert file.read_text() == "former"


def test_a_link_stays_and_its_target_is_replaced_with_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("former")
    target.chmod(0o640)
    link.symlink_to("target")
    write_text(link, "new")
    assert link.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop", "link to a device"])
def test_what_is_no_regular_file_stays(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "there"
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "device":
            file = Path("/dev/null")
        case "loop":
            file.symlink_to("there")
        case _:
            file.symlink_to("/dev/null")
    before = file.lstat()
    with pytest.raises(OutputError):
        write_text(file, "new")
    assert file.lstat().st_mode == before.st_mode
    assert file.lstat().st_ino == before.st_ino
    assert len(list(tmp_path.iterdir())) == (kind != "device")


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "é" * 127):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with appearing(file) as first, appearing(file) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first"  # the outer block ends last
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1/Conv_0 (Conv)", "conv1/Conv_0 (Conv)"),
        ("größe 卷積", "größe 卷積"),
        ("a\nb\r\x1b[2Jc\x00", r"a\nb\r\x1b[2Jc\x00"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\x85\u2028", r"\x85\u2028"),
    ],
)
def test_what_does_not_print_is_escaped(text: str, shown: str) -> None:
    assert one_line(text) == shown
    assert str(BdccError("found", layer=text)) == f"{shown}: found."


@pytest.mark.parametrize("name", ["none/file", "folder", "file/file", "n" * 256, "loop"])
def test_what_cannot_be_written_is_refused_before(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("former")
    (tmp_path / "loop").symlink_to("loop")
    for check in (check_file, lambda file: write_text(file, "")):
        with pytest.raises(OutputError, match=name):
            check(tmp_path / name)
    check_file(tmp_path / "file")
    check_file(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "loop"]
    assert (tmp_path / "file").read_text() == "former"


def test_a_folder_is_looked_at_and_not_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("none")
    check_folder(tmp_path / "deep" / "er")
    for name in ("file", "file/deep", "n" * 256, "loop", "loop/deep", "dangling"):
        with pytest.raises(OutputError, match=name):
            check_folder(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "loop"]


def test_what_killed_writers_left_goes_when_a_place_is_tried(tmp_path: Path) -> None:
    file, below = tmp_path / "table.json", tmp_path / "below"
    below.mkdir()
    left = [folder / f".{file.name}.0123456789ab.part" for folder in (tmp_path, below)]
    others = [tmp_path / name for name in ("notes.part", ".x.part", ".table.json.0123.part")]
    for path in (*left, *others):
        path.touch()
    with appearing(file) as part:
        check_file(file)
        assert part.exists(), "its writer lives"
        assert [path.exists() for path in left] == [False, True], "only in that folder"
    left[0].touch()
    make_folder(tmp_path)
    assert not left[0].exists()
    assert all(path.exists() for path in others)


def test_the_next_temporary_folder_sweeps_what_killed_processes_left(tmp_path: Path) -> None:
    killed = (
        "import os, pathlib, sys\n"
        "from bdcc.files import temporary_folder\n"
        "with temporary_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'sub').mkdir()\n"
        "    (folder / 'sub' / 'file').write_text('x')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    (stale,) = tmp_path.iterdir()
    (tmp_path / "bdcc-mine").mkdir()  # no name of ours
    with temporary_folder(tmp_path) as living, temporary_folder(tmp_path) as other:
        assert not stale.exists()
        assert living.is_dir()
        assert other.stat().st_mode & 0o777 == 0o700
        assert not sweep(living)
    assert [p.name for p in tmp_path.iterdir()] == ["bdcc-mine"]


def test_what_another_user_or_a_link_has_under_our_name_stays(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "bdcc-0123456789ab.tmp").symlink_to("target")
    os.mkfifo(tmp_path / "bdcc-0123456789ac.tmp")
    with temporary_folder(tmp_path):
        pass
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_made_once_is_refused_to_the_second(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "one"), pytest.raises(FileExistsError):
        locked_folder(tmp_path / "one").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_no_place_for_temporary_files_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"none: cannot be written \(No such file"):
        temporary_folder(tmp_path / "none").__enter__()


# --- reading ----------------------------------------------------------------------------------


def test_only_regular_files_are_read_and_nothing_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        assert read_file(tmp_path / name) == b"content"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for place, message in (
        (tmp_path / "pipe", "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / "none", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "a\0b", "null"),
    ):
        with pytest.raises(OSError, match=message):
            read_file(place)


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", 1 << 42)
    with pytest.raises(OSError, match=r"it has 4398046511104 bytes, and at most 1073741824"):
        read_file(tmp_path / "file")


def test_reading_takes_the_memory_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    tracemalloc.start()
    try:
        assert read_file(tmp_path / "file") == b"x" * 1000
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path: Path) -> None:
    folder = rf"^{tmp_path}: cannot be read \(Is a directory\)\.$"
    with pytest.raises(DataError, match=folder), reading(Path("x")):
        read_file(tmp_path)
    text = r"^x: cannot be read \('utf-8' codec"
    with pytest.raises(DataError, match=text), reading(Path("x")):
        b"\xff".decode()
    with pytest.raises(ZeroDivisionError), reading(Path("x")):
        raise ZeroDivisionError


def test_names_that_are_no_utf8_are_written_as_json_reads_them(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "x", json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "x").read_text("utf-8")) == {"name": name}
