# SPDX-License-Identifier: 0BSD
"""How files are read and written: regular files alone, written complete or not at all, and with
the reason in one line when they cannot be.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bdcc.errors import DataError, OutputError

MOST_BYTES = 1 << 30  # of a file that is read in one piece
PART = ".part"  # how the names of files end that are being written
PART_NAME = re.compile(r"\..{1,40}\.[0-9a-f]{12}\.part", re.DOTALL)  # those of `appearing`
BLOCK = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
LOST = (*FULL, errno.EIO, errno.EROFS)  # what a disk says that no program can foresee
TEMPORARY_HINT = "Choose another place for temporary files with TMPDIR=DIR"
TEMPORARY_NAME = re.compile(r"\.?bdcc-[0-9a-f]{12}\.tmp")  # folders for a while


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A regular file, to be read. Raises OSError, also where it is a pipe or a device, which may
    never end, and where no file can have that name.
    """
    try:
        found = open(file, "rb", opener=_open_without_waiting)  # noqa: SIM115
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error)) from None
    with found:
        if not stat.S_ISREG(os.fstat(found.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        yield found


def _open_without_waiting(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


def read_file(file: Path, *, most: int = MOST_BYTES) -> bytes:
    """All of a regular file, of at most so many bytes; raises OSError as `opened`."""
    with opened(file) as found:
        size = os.fstat(found.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {most} are read")
        return found.read(size)


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
    part = file.with_name(_part_name(file.name))
    descriptor = _open_locked(part)
    try:
        if file.exists():
            os.fchmod(descriptor, stat.S_IMODE(file.stat().st_mode))
        yield part
        os.fsync(descriptor)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
        os.close(descriptor)


def _part_name(name: str) -> str:
    return f".{name[:40]}.{secrets.token_hex(6)}{PART}"


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
        _sweep_parts(Path(place, name) for name in names)


def _sweep_parts(files: Iterable[Path]) -> None:
    for file in files:
        if PART_NAME.fullmatch(file.name):
            with suppress(OSError):  # its writer lives, or it has just taken its place
                _remove_unlocked(file)


def _remove_unlocked(part: Path) -> None:
    descriptor = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()
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
        raise OutputError(f"cannot be written (it is {what})", layer=str(file))
    return target


def check_file(file: Path) -> None:
    """Raises OutputError, before there is anything to lose, where `write_file` would."""
    with writing(file):
        _touch_in(check_regular(file).parent)


def check_folder(folder: Path) -> None:
    """The same of files in a folder, which is not made yet if it is not there."""
    with writing(folder):
        for place in (folder, *folder.absolute().parents):
            try:
                place.stat()
            except FileNotFoundError:
                if place.is_symlink():  # in whose place no folder can be made
                    raise
            else:
                return _touch_in(place)


def make_folder(folder: Path, *, hint: str | None = None) -> None:
    """Makes the folder unless it is there, and tries to write in it. Raises OutputError."""
    with writing(folder, hint=hint):
        folder.mkdir(parents=True, exist_ok=True)
        _touch_in(folder)


def _touch_in(folder: Path) -> None:
    """Tries it, and removes what killed writers have left there."""
    with suppress(OSError):  # what is wrong with the folder, the probe tells
        _sweep_parts(folder.iterdir())
    probe = folder / _part_name("try")
    try:
        probe.touch(exist_ok=False)
    finally:
        probe.unlink(missing_ok=True)


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
        named = os.fsdecode(error.filename or "")
        where = _known(place if not named or named.endswith(PART) else Path(named))
        message = f"cannot be written ({reason(error)})"
        if error.errno in FULL:
            free = free_bytes(where)
            message = f"the disk is full ({free} bytes are free there"
            message += f", {wanted_bytes} are needed)" if wanted_bytes else ")"
        raise OutputError(message, layer=str(where), hint=hint or _advice(error)) from error


def temporary_place() -> Path:
    """The folder for temporary files; raises OutputError if none can be used."""
    with writing(Path(os.environ.get("TMPDIR", "/tmp")), hint=TEMPORARY_HINT):
        return Path(tempfile.gettempdir())


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder for this process alone, gone when the block ends; what killed processes have left in
    the same place goes before. parent: None for the system's folder of temporary files ($TMPDIR).
    Raises OutputError where it cannot be made.
    """
    parent = parent or temporary_place()
    with writing(parent, hint=TEMPORARY_HINT):
        for entry in parent.iterdir():
            if TEMPORARY_NAME.fullmatch(entry.name):
                sweep(entry)
        folder, lock = _make_locked(parent / f"bdcc-{secrets.token_hex(6)}.tmp")
    with _owned(folder, lock):
        yield folder


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Makes `folder`, which nobody sweeps while this process lives, and which is gone when the
    block ends. Raises OSError as the system does; FileExistsError if it is there.
    """
    _, lock = _make_locked(folder)
    with _owned(folder, lock):
        yield folder


def sweep(folder: Path, *, rescue: Callable[[], object] | None = None) -> bool:
    """Removes a folder of the two above if the process that made it is dead; whether it is gone.

    rescue: called before, to take out what must not be lost. Raises OSError where the folder may be
    but cannot be looked at.
    """
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or no folder at all
        return False
    try:
        if os.geteuid() not in (0, os.fstat(lock).st_uid):
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if rescue is not None:
            rescue()
        return _remove(folder)
    except OSError:  # a living process has it, or the file system knows no locks
        return False
    finally:
        os.close(lock)


def _make_locked(folder: Path) -> tuple[Path, int]:
    """The folder and the descriptor that locks it, which children do not inherit."""
    while True:
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # swept before it could be locked
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), folder.stat()):
                return folder, lock
        except (BlockingIOError, FileNotFoundError):  # being swept
            pass
        except OSError:  # no locks here: then nobody can sweep it either
            return folder, lock
        os.close(lock)


@contextmanager
def _owned(folder: Path, lock: int) -> Iterator[None]:
    try:
        yield
    finally:
        _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> bool:
    """Whether it is gone. What still writes there (a compiler whose parent was killed) may need a
    second turn.
    """
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return True
    return False


def runs_programs(folder: Path) -> bool:
    """Whether programs and libraries in it can be run: not where it is mounted with noexec."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()
        try:
            mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        except PermissionError:
            return False
    return True


def _known(path: Path) -> Path:
    """The path, or where the folder lies that is ours for a while and that it is in."""
    ours = (p for p in (path, *path.parents) if TEMPORARY_NAME.fullmatch(p.name))
    return next((p.parent for p in ours), path)


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
