# SPDX-License-Identifier: 0BSD
"""How files are read and written: regular files alone, written complete or not at all, and with
the reason in one line when they cannot be.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bdcc.errors import DataError, OutputError

MOST_BYTES = 1 << 30  # of a file that is read in one piece
PART = ".part"  # how the names of files end that are being written
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file, to be read. Raises OSError, also where it is a pipe or a device, which may
    never end, and where no file can have that name.
    """
    try:
        mode = file.stat().st_mode
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error)) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # the system itself refuses a folder
        raise OSError(errno.EINVAL, "it is no regular file")
    with file.open("rb") as found:
        yield found


def read_file(file: Path, *, most: int = MOST_BYTES) -> bytes:
    """All of a regular file, of at most so many bytes; raises OSError as `opened`."""
    with opened(file) as found:
        size = os.fstat(found.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {most} are read")
        return found.read(most)


@contextmanager
def reading(place: Path) -> Iterator[None]:
    """Turns what the system refuses inside the block (OSError), and what is no UTF-8, into a
    DataError that names `place`, or the file that the system named.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        named = error.filename if isinstance(error, OSError) else None
        where = os.fsdecode(named) if named else str(place)
        raise DataError(f"cannot be read ({reason(error)})", layer=where) from None


def write_file(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Has `write` fill a temporary file beside `file`, which then takes its place.

    Whoever reads `file`, after a power cut too, finds the former content or all of the new. A
    symbolic link stays and its target is replaced. Raises OutputError, and leaves nothing behind,
    where `file` is there and is no regular file, and where the system refuses to write.
    """
    with writing(file), appearing(file) as part, part.open("wb") as out:
        write(out)


def write_text(file: Path, text: str) -> None:
    """The same for a text, as UTF-8. Bytes of names that are none, which Python has as lone
    surrogates, are written as \\udcXX: what JSON reads back as it was.
    """
    write_file(file, lambda out: out.write(text.encode("utf-8", "backslashreplace")))


@contextmanager
def appearing(file: Path) -> Iterator[Path]:
    """An empty file beside `file`, under a name of its own, that takes its place when the block
    ends without an exception. Raises OSError as the system does; OutputError as `write_file`.
    """
    file = check_regular(file)
    part = file.with_name(f".{file.name[:40]}.{secrets.token_hex(6)}{PART}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
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
def writing(place: Path, *, wanted_bytes: int | None = None) -> Iterator[None]:
    """Turns what the system refuses inside the block (OSError) into an OutputError that names
    `place`, or the file that the system named, and, of a full disk, the bytes.
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
        raise OutputError(message, layer=str(where), hint=_advice(error)) from error


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
