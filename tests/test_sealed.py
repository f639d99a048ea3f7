# SPDX-License-Identifier: 0BSD
"""Whatever happens to a sealed file, nobody gets anything but what was written under its name."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from bdcc.errors import OutputError
from bdcc.files import sweep_parts
from bdcc.sealed import SEAL_BYTES, Shelf, without_seal

CONTENT = bytes(range(256)) * 9


class Kept:
    """A shelf, and what was found damaged on it."""

    def __init__(self, folder: Path, name: str = "kind") -> None:
        self.dropped: list[Path] = []
        self.shelf = Shelf(folder=folder, name=name, dropped=self.dropped.append)

    def put(self, name: str, content: bytes = CONTENT) -> Path:
        return self.shelf.write(name, lambda out: out.write(content))


@pytest.mark.parametrize("content", [b"", b"x", CONTENT, bytes(3 << 20)])
def test_what_is_written_is_read_and_mapped(tmp_path: Path, content: bytes) -> None:
    kept = Kept(tmp_path / "not" / "yet")
    assert kept.shelf.read("entry") is None
    assert kept.shelf.find("entry") is None
    file = kept.put("entry", content)
    assert kept.shelf.read("entry") == content
    assert kept.shelf.find("entry") == file
    assert file.read_bytes().startswith(content)
    assert without_seal(file.read_bytes()) == content
    assert without_seal(content) == content
    assert kept.dropped == []
    assert list(file.parent.iterdir()) == [file]


def test_every_single_bit_counts(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    file = kept.put("entry", b"short")
    whole = bytearray(file.read_bytes())
    assert len(whole) == 5 + SEAL_BYTES
    with file.open("r+b", buffering=0) as opened:
        for bit in range(8 * len(whole)):
            for change in (1 << bit % 8, 0):
                opened.seek(bit // 8)
                opened.write(bytes([whole[bit // 8] ^ change]))
                assert (kept.shelf.read("entry") is None) == (change > 0), bit
    assert kept.dropped == [file] * 8 * len(whole)


def test_every_length_counts(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    file = kept.put("entry", b"short")
    whole = file.read_bytes()
    for other in [
        *(whole[:n] for n in range(len(whole))),
        whole + b"\n",
        whole + whole,
        b"\0" + whole,
    ]:
        file.write_bytes(other)
        assert kept.shelf.read("entry") is None, len(other)
        assert kept.shelf.find("entry") is None, len(other)
    with file.open("r+b") as sparse:  # is not read into memory to be refused
        sparse.truncate(1 << 36)
        assert kept.shelf.read("entry") is None


@pytest.mark.parametrize(
    ("shelf", "name"), [("kind", "other"), ("kinds", "entry"), ("kind/in", "entry")]
)
def test_the_copy_of_another_is_none(tmp_path: Path, shelf: str, name: str) -> None:
    one, other = Kept(tmp_path / "one"), Kept(tmp_path / "two", shelf)
    shutil.copy(one.put("entry"), other.put(name, b"its own"))
    assert other.shelf.read(name) is None
    assert other.shelf.find(name) is None
    assert other.dropped == [tmp_path / "two" / name] * 2


def test_a_shelf_may_be_moved(tmp_path: Path) -> None:
    Kept(tmp_path / "here").shelf.inside("in").write("entry", lambda out: out.write(CONTENT))
    (tmp_path / "here").rename(tmp_path / "there")
    assert Kept(tmp_path / "there").shelf.inside("in").read("entry") == CONTENT


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "socket name too long"])
def test_what_is_no_file_is_named_at_once(tmp_path: Path, kind: str) -> None:
    kept, name = Kept(tmp_path), "entry"
    place = tmp_path / name
    match kind:
        case "folder":
            place.mkdir()
        case "pipe":
            os.mkfifo(place)
        case "loop":
            place.symlink_to(name)
        case "device":
            place.symlink_to("/dev/zero")
        case _:
            name = "n" * 300
    for act in (kept.shelf.read, kept.shelf.find, kept.put):
        with pytest.raises(OutputError, match=name):
            act(name)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if len(name) < 256 else [])


def test_a_dangling_link_is_no_entry(tmp_path: Path) -> None:
    (tmp_path / "entry").symlink_to("gone")
    kept = Kept(tmp_path)
    assert kept.shelf.read("entry") is None
    kept.put("entry")
    assert kept.shelf.read("entry") == CONTENT


AS_ANOTHER = """
import os, sys
from pathlib import Path
from bdcc.errors import BdccError
from bdcc.sealed import Shelf
os.setgid(65534)
os.setuid(65534)
shelf = Shelf(folder=Path(sys.argv[1]), name="kind")
for act in (
    shelf.prepare,
    lambda: shelf.read("entry"),
    lambda: shelf.write("new", lambda out: None),
):
    try:
        act()
        print("done")
    except BdccError as error:
        print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_the_shelf_of_another_user_is_named(mode: int) -> None:
    folder = Path("/tmp") / f"bdcc-test-{os.getpid()}-{mode:o}"  # pytest's are closed to others
    try:
        Kept(folder).put("entry")
        (folder / "entry").chmod(0o600)
        folder.chmod(mode)
        told = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER, str(folder)],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        shutil.rmtree(folder)
    prepared, read, written = told.stdout.splitlines()
    for line, verb in ((prepared, "written"), (read, "read"), (written, "written")):
        assert re.fullmatch(rf"{folder}[^ ]*: cannot be {verb} \(.+\)\..*", line)
    assert "--cache DIR" in prepared
    assert "--cache DIR" in read


def test_a_full_disk_is_one_line_and_leaves_the_former(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put("entry")

    def fill(out: BinaryIO) -> None:
        out.write(b"new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        OutputError, match=r"entry: the disk is full \(\d+ .* 9 are needed\).*--cache"
    ):
        kept.shelf.write("entry", fill, wanted_bytes=9)
    assert kept.shelf.read("entry") == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


WRITER = """
import sys, time
from pathlib import Path
from bdcc.sealed import Shelf
def stop(out):
    out.write(b"half")
    out.flush()
    print("now", flush=True)
    time.sleep(60)
Shelf(folder=Path(sys.argv[1]), name="kind").write("entry", stop)
"""


def test_what_killed_writers_leave_is_swept_and_nothing_else(tmp_path: Path) -> None:
    others = [tmp_path / "mine.part", tmp_path / ".mine.part", tmp_path / ".mine.0123456789ab.part"]
    for other in others:
        other.touch()
    (tmp_path / ".folder.0123456789ab.part").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "in")], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        sweep_parts(tmp_path)
        (part,) = (tmp_path / "in").iterdir()  # of a living one
        assert part.read_bytes() == b"half"
        writer.kill()
    sweep_parts(tmp_path)
    assert list((tmp_path / "in").iterdir()) == []
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"in", "mine.part", ".mine.part", ".folder.0123456789ab.part"}
