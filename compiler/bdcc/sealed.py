# SPDX-License-Identifier: 0BSD
"""Files that are kept for later runs, each under a seal: whatever has happened to one is noticed.

A sealed file is its content and behind it a line of text with the SHA-256 of its name and content.
So one that is cut off, has changed bits, or is another one's copy does not pass for what was
written there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from bdcc.errors import OutputError
from bdcc.files import BLOCK, appearing, make_folder, opened, reason, writing

MARK = b"\n#bdcc-seal-1 "
SEAL_BYTES = len(MARK) + 64 + 1
HINT = "Choose another cache with --cache DIR, or --cache off"


def _nobody(file: Path) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """A folder of sealed files. name: what seals know it by, wherever it lies; dropped: is told of
    each file that is found damaged.

    Every method raises OutputError where the system refuses, or what is there is no regular file.
    """

    folder: Path
    name: str
    dropped: Callable[[Path], None] = _nobody

    def inside(self, name: str) -> Shelf:
        """A shelf in this one's folder."""
        return replace(self, folder=self.folder / name, name=f"{self.name}/{name}")

    def prepare(self) -> None:
        """Makes the folder, and refuses one that cannot be used, before there is work to keep."""
        make_folder(self.folder, hint=HINT)

    def read(self, name: str) -> bytes | None:
        """The content that was written under the name; None if there is none, or a damaged one."""
        with self._opened(name) as file:
            return None if file is None else file.read(_content_bytes(file))

    def find(self, name: str) -> Path | None:
        """The file itself, for what is better mapped than read, as its content comes first in it;
        None as for `read`.
        """
        with self._opened(name) as file:
            return None if file is None else self.folder / name

    def write(
        self, name: str, write: Callable[[BinaryIO], object], *, wanted_bytes: int | None = None
    ) -> Path:
        """Keeps what `write` puts into an empty file that is open to be read and written. It
        appears complete or not at all.
        """
        file = self.folder / name
        with writing(file, wanted_bytes=wanted_bytes, hint=HINT):
            self.folder.mkdir(parents=True, exist_ok=True)
            with appearing(file) as part, part.open("r+b") as out:
                write(out)
                out.write(self._seal(name, out, out.seek(0, os.SEEK_END)))
        return file

    def _is_sound(self, name: str, file: BinaryIO) -> bool:
        size = _content_bytes(file)
        file.seek(max(0, size))
        seal = file.read(SEAL_BYTES)  # first: what has none may be of any size
        return seal.startswith(MARK) and seal == self._seal(name, file, size)

    def _seal(self, name: str, file: BinaryIO, size: int) -> bytes:
        """Of the first `size` bytes of the file, which is left behind them."""
        state = hashlib.sha256(f"{self.name}/{name}\0".encode())
        file.seek(0)
        while size > 0 and (block := file.read(min(size, BLOCK))):
            state.update(block)
            size -= len(block)
        return MARK + state.hexdigest().encode() + b"\n"

    @contextmanager
    def _opened(self, name: str) -> Iterator[BinaryIO | None]:
        """The file at its start if its seal is right; it is read through for that."""
        file = self.folder / name
        try:
            with opened(file) as found:
                if self._is_sound(name, found):
                    found.seek(0)
                    yield found
                    return
            self.dropped(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            message = f"cannot be read ({reason(error)})"
            raise OutputError(message, layer=str(file), hint=HINT) from None
        yield None


def _content_bytes(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - SEAL_BYTES


def without_seal(content: bytes) -> bytes:
    """The content of a sealed file, unchecked; all of one that has no seal."""
    return content[:-SEAL_BYTES] if content[-SEAL_BYTES:].startswith(MARK) else content
