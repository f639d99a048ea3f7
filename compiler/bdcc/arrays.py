# SPDX-License-Identifier: 0BSD
"""Arrays out of .npz files that anybody may have made: of plain numbers, never unpickled, and
nothing is allocated before it is known to be there.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bdcc.errors import DataError
from bdcc.files import opened, reason

# Compressed, all arrays together may take ROOM and COMPRESSION times what the file has; pictures
# never shrink as much, and zeros do to a thousandth.
ROOM, COMPRESSION = 1 << 28, 20
CHUNK = 1 << 20  # bytes that are read at a time
SUFFIX = ".npy"
HEADER_BYTES = 4096  # the most; NumPy writes 118 for up to three dimensions
DIMENSIONS = 8
ITEM = re.compile(
    r"['\"](descr|fortran_order|shape)['\"]\s*:"
    r"\s*(['\"][<>|=]?[biuf][1248]['\"]|True|False|\([\d\sL,]*\))\s*(?:,\s*|(?=\}))"
)
HEADER = re.compile(rf"\{{\s*(?:{ITEM.pattern})*\}}\s*")
EXTENT = re.compile(r"\s*(\d{1,18})L?\s*")
# What zipfile and zlib raise for bytes that are none of theirs.
DAMAGE = (
    *(OSError, EOFError, ValueError, ArithmeticError, LookupError, RuntimeError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What an array says of itself. fortran: whether its first index changes fastest."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """An .npz file that is open (open_arrays). names: of its arrays. Methods raise DataError."""

    path: Path
    archive: zipfile.ZipFile
    names: tuple[str, ...]
    hint: str | None

    def header(self, name: str) -> Header:
        """Of one array; nothing else of it is read."""
        with self._member(name + SUFFIX) as member:
            return _read_header(member, self._size(name + SUFFIX))

    def read(self, name: str) -> npt.NDArray[Any]:
        with self._member(name + SUFFIX) as member:
            header = _read_header(member, self._size(name + SUFFIX))
            flat = np.empty(prod(header.shape), header.dtype)
            _fill(member, flat)
        if header.fortran:
            return flat.reshape(header.shape[::-1]).T
        return flat.reshape(header.shape)

    def read_bytes(self, member_name: str, *, most: int) -> bytes:
        """A member that is no array, of at most so many bytes."""
        with self._member(member_name) as member:
            if self._size(member_name) > most:
                raise ValueError(f"{member_name} has {self._size(member_name)} bytes")
            return member.read()

    def _size(self, member_name: str) -> int:
        return self.archive.getinfo(member_name).file_size

    @contextmanager
    def _member(self, member_name: str) -> Iterator[IO[bytes]]:
        with _foreign(self.path, self.hint), self.archive.open(member_name) as member:
            yield member


@contextmanager
def open_arrays(
    path: Path, *, compressed: bool = True, hint: str | None = None
) -> Iterator[Arrays]:
    """An .npz file. Raises DataError if it is none, and if its members are more than it can hold.

    compressed: whether they may be compressed, as numpy.savez_compressed does it; hint: of errors.
    """
    with ExitStack() as stack:
        with _foreign(path, hint):
            file = stack.enter_context(opened(path))
            size = os.fstat(file.fileno()).st_size
            archive = stack.enter_context(zipfile.ZipFile(file))
            members = archive.infolist()
            _check_members(members, most=ROOM + COMPRESSION * size if compressed else size)
            if not compressed and any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise ValueError("it is compressed")
        found = (m.filename for m in members)
        names = tuple(f.removesuffix(SUFFIX) for f in found if f.endswith(SUFFIX))
        yield Arrays(path=path, archive=archive, names=names, hint=hint)


def _check_members(members: list[zipfile.ZipInfo], *, most: int) -> None:
    """Raises ValueError."""
    if len({member.filename for member in members}) != len(members):
        raise ValueError("a name stands twice")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed in a way that NumPy does not write")
    total = sum(member.file_size for member in members)
    if total > most:
        raise ValueError(f"it says that it holds {total} bytes, and at most {most} are read")


@contextmanager
def _foreign(path: Path, hint: str | None) -> Iterator[None]:
    """Around the reading of one thing: what a damaged file makes libraries raise is a DataError."""
    try:
        yield
    except MemoryError:
        raise DataError("its arrays need more memory than there is", layer=str(path)) from None
    except DAMAGE as error:
        message = f"is not a readable .npz file of plain arrays ({reason(error)[:200]})"
        raise DataError(message, layer=str(path), hint=hint) from None


def _read_header(member: IO[bytes], size: int) -> Header:
    """Of the array that a member of `size` bytes has; the member is then where its values start.

    Raises ValueError unless it is of plain numbers, and there are just as many.
    """
    magic = member.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("a member is no array")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(member.read(width), "little")
    if length > HEADER_BYTES:
        raise ValueError("an array's header is too long")
    text = member.read(length).decode("latin-1")
    items = dict(ITEM.findall(text))
    if not HEADER.fullmatch(text) or len(items) != 3 or text.count(":") != 3:
        raise ValueError("an array's header is damaged, or it is not of plain numbers")
    *extents, last = items["shape"].strip("()").split(",")
    extents += [last] if last.strip() else []
    found = [EXTENT.fullmatch(extent) for extent in extents]
    if items["fortran_order"] not in ("True", "False") or len(found) > DIMENSIONS:
        raise ValueError("an array's header is damaged")
    try:
        header = Header(
            dtype=np.dtype(items["descr"].strip("'\"")),
            shape=tuple(int(extent[1]) for extent in found if extent),
            fortran=items["fortran_order"] == "True",
        )
    except TypeError:  # b8, and the like
        raise ValueError("an array is not of plain numbers") from None
    there = size - 8 - width - length
    if None in found or header.size_bytes != there:
        raise ValueError(f"an array of shape {items['shape'][:80]} does not have {there} bytes")
    return header


def _fill(member: IO[bytes], flat: npt.NDArray[Any]) -> None:
    """Raises EOFError, or what zipfile raises where the checksum is another."""
    memory = flat.view(np.uint8).data
    for start in range(0, len(memory), CHUNK):
        part = memory[start : start + CHUNK]
        while len(part):
            data = member.read(len(part))
            if not data:
                raise EOFError("it ends early")
            part[: len(data)] = data
            part = part[len(data) :]
    member.read(1)  # at its end, the checksum is compared
