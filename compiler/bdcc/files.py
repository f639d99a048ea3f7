# SPDX-License-Identifier: 0BSD
"""How files are written: complete or not at all, in place of regular files alone, and with the
reason in one line when they cannot be; and what killed writers have left, removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bdcc.errors import OutputError

PART = ".part"  # how the names of files end that are being written
PART_NAME = re.compile(r"\..{1,40}\.[0-9a-f]{12}\.part", re.DOTALL)
BLOCK = 1 << 20
TEMPORARY = "bdcc-"  # how the names of temporary folders begin
MARK = "bdcc-temporary"  # the file in those that may be swept
TEMPORARY_HINT = "Choose another place for temporary files with TMPDIR=DIR"
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_file(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Has `write` fill a temporary file beside `file`, which then takes its place.

    Whoever reads `file`, after a power cut too, finds the former content or all of the new. A
    symbolic link stays and its target is replaced. Raises OutputError, and leaves nothing behind,
    where `file` is there and is no regular file, and where the system refuses to write.
    """
    with writing(file), appearing(file) as part, part.open("wb") as out:
        write(out)


def write_text(file: Path, text: str) -> None:
    """The same for a text, as UTF-8."""
    write_file(file, lambda out: out.write(text.encode()))


@contextmanager
def appearing(file: Path) -> Iterator[Path]:
    """An empty file beside `file`, under a name of its own, that takes its place when the block
    ends without an exception. Raises OSError as the system does; OutputError as `write_file`.
    """
    file = check_regular(file)
    part = file.with_name(f".{file.name[:40]}.{secrets.token_hex(6)}{PART}")
    descriptor = _open_locked(part)
    try:
        try:
            if file.exists():
                os.fchmod(descriptor, stat.S_IMODE(file.stat().st_mode))
            yield part
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _open_locked(part: Path) -> int:
    """A new file, locked for as long as it is open: `sweep_parts` leaves it alone."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # a file system without locks, where nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if part.exists():
            return descriptor
        os.close(descriptor)  # it was swept before it was locked


def sweep_parts(folder: Path) -> None:
    """Removes, from a folder and those in it, files of `appearing` whose writers were killed."""
    for place, _, names in os.walk(folder):
        for name in filter(PART_NAME.fullmatch, names):
            with suppress(OSError):  # its writer lives, or it has just taken its place
                _remove_unlocked(Path(place, name))


def _remove_unlocked(part: Path) -> None:
    descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
    finally:
        os.close(descriptor)


def temporary_place() -> Path:
    """The folder for temporary files; raises OutputError if none can be used."""
    with writing(Path(os.environ.get("TMPDIR", "/tmp")), hint=TEMPORARY_HINT):
        return Path(tempfile.gettempdir())


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in TMPDIR that is gone afterwards; what a killed process has left of its own, the
    next one to make such a folder removes. Raises OutputError.
    """
    base = temporary_place()
    with writing(base, hint=TEMPORARY_HINT):
        for mark in base.glob(f"{TEMPORARY}*/{MARK}"):
            with suppress(OSError):  # its process lives, or it has just gone
                _remove_marked(mark)
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=base))
    try:
        with _marked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Marks a folder as one to be swept, but not while this process lives."""
    part = folder / f"{MARK}{PART}"
    with part.open("w") as mark:
        with suppress(OSError):  # as in _open_locked
            fcntl.flock(mark, fcntl.LOCK_EX)
        part.rename(folder / MARK)  # locked before anyone can see it
        yield


def _remove_marked(mark: Path) -> None:
    folder = mark.parent.lstat()
    if folder.st_uid != os.getuid() or not stat.S_ISDIR(folder.st_mode):
        return
    descriptor = os.open(mark, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(mark.parent, ignore_errors=True)
    finally:
        os.close(descriptor)


def reserve(file: BinaryIO, size: int) -> None:
    """Gives an open file disk space, zeros, for `size` bytes from where it stands. This raises
    OSError where there is too little; a mapping without space of its own ends the process instead.
    """
    if not hasattr(os, "posix_fallocate"):  # as on macOS
        for start in range(0, size, BLOCK):
            file.write(bytes(min(BLOCK, size - start)))
        file.flush()
    elif size:
        os.posix_fallocate(file.fileno(), file.tell(), size)


def check_regular(file: Path) -> Path:
    """The file itself, behind its symbolic links; raises OutputError if it is there and is no
    regular file.
    """
    try:
        target = file.resolve()
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except (OSError, RuntimeError) as error:  # a loop of links
        raise OutputError(f"cannot be written ({reason(error)})", layer=str(file)) from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OutputError(f"is {what}; bdcc writes regular files", layer=str(file))
    return target


@contextmanager
def writing(
    place: Path, *, wanted_bytes: int | None = None, hint: str | None = None
) -> Iterator[None]:
    """Turns what the system refuses inside the block (OSError) into an OutputError that names
    `place`, or the file that the system named, and, of a full disk, the bytes. hint: what to do.
    """
    try:
        yield
    except OSError as error:
        where = Path(os.fsdecode(error.filename)) if error.filename else place
        message = f"cannot be written ({reason(error)})"
        if error.errno in FULL:
            free = free_bytes(where)
            message = f"the disk is full ({free} bytes are free there"
            message += f", {wanted_bytes} are needed)" if wanted_bytes else ")"
        raise OutputError(message, layer=str(where), hint=hint or _advice(error)) from error


def free_bytes(place: Path) -> int:
    """What its file system has left for this user; of the nearest folder that exists."""
    for folder in (place, *place.absolute().parents):
        try:
            found = os.statvfs(folder)
        except OSError:
            continue
        return found.f_bavail * found.f_frsize
    return 0


def reason(error: BaseException) -> str:
    """Why the system refused, without the path, which stands in front of it."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]


def _advice(error: OSError) -> str | None:
    return "Make room, or choose another place" if error.errno in FULL else None
