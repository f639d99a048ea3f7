# SPDX-License-Identifier: 0BSD
"""Standard streams, however whoever started the process has left them."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from contextlib import suppress
from typing import Any


def open_streams() -> None:
    """Opens on the null device what of descriptors 0 to 2 is closed, or is to be written and only
    opened to be read, before a file of ours is taken for one of them; processes that are started
    inherit that. Messages that cannot be written are lost, and nothing with them; characters that
    an encoding does not have are escaped.

    Streams that are not the process's own (a test's) are left alone.
    """
    for descriptor in range(3):  # ascending: the least free number is what open() takes
        if not _is_usable(descriptor):
            with suppress(OSError):
                os.close(descriptor)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    elif sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            _Lost(2, "w", closefd=False),
            encoding=getattr(sys.__stderr__, "encoding", None),
            errors="backslashreplace",
            line_buffering=True,
            write_through=True,
        )


def _is_usable(descriptor: int) -> bool:
    try:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        return False
    return descriptor == 0 or mode != os.O_RDONLY


class _Lost(io.FileIO):
    """A file of messages: what its reader, who has left, or a full disk does not take is lost."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes
