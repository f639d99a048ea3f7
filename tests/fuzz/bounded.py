# SPDX-License-Identifier: 0BSD
"""One call in a process of its own, with as much time and memory as a damaged file may cost."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from bdcc.errors import BdccError

SECONDS, BYTES = 5, 2 << 30
WAITED = 6  # times as many seconds may pass
DONE, REFUSED = "done", "refused: "


def outcome(call: Callable[[], object], *, seconds: int = SECONDS) -> str:
    """`done`, `refused: ` and the one line of a BdccError, or else what went wrong: a traceback, a
    warning, a signal, more time or memory.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as out:
                out.write(_judge(call, seconds).encode("utf-8", "backslashreplace"))
        finally:
            os._exit(0)  # whatever happens: there is one pytest
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        text = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return text


def is_fault(text: str) -> bool:
    """Whether an outcome is neither success nor one line."""
    return text != DONE and not (text.startswith(REFUSED) and text.isprintable())


def _judge(call: Callable[[], object], seconds: int) -> str:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES,) * 2)
    for kind in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(kind, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor, which others use too
    signal.alarm(WAITED * seconds)
    warnings.simplefilter("error")
    try:
        call()
    except BdccError as error:
        return f"{REFUSED}{error}"
    except BaseException:
        return "".join(traceback.format_exception(*sys.exc_info())[-3:])
    return DONE
