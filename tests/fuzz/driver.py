# SPDX-License-Identifier: 0BSD
"""Runs damaged inputs, each in a process of its own: what is no BdccError is a finding, and so is
what takes too long or too much memory.
"""

from __future__ import annotations

import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from bdcc.errors import BdccError

FINE = "fine"
PATIENCE = 6  # seconds of wall time for each of the processor's: other tests run beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """case: its name; what: the traceback, or what ended the process."""

    case: str
    what: str


def run_mutants(
    cases: Iterable[tuple[str, Callable[[], object]]],
    *,
    seconds: float = 5,
    memory_bytes: int = 2 << 30,
) -> list[Finding]:
    """Calls every case in a fork of this process; fine are those that return or raise a BdccError
    of one line. seconds: of the processor; memory_bytes: of addresses, beyond what this process
    has.
    """
    findings = []
    for name, run in cases:
        what = _outcome(run, seconds, memory_bytes)
        if what:
            findings.append(Finding(case=name, what=what))
    return findings


def _outcome(run: Callable[[], object], seconds: float, memory_bytes: int) -> str:
    """Empty if all is well."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forks of a process with threads
        child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _confine(seconds, memory_bytes)
            what = _judge(run) or FINE
            os.write(writer, what[-4000:].encode(errors="backslashreplace"))
        finally:
            os._exit(0)  # nothing of the parent's is cleaned up twice
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123 (of a descriptor)
        told = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return "" if told == FINE else told or "ended the process"
    number = os.WTERMSIG(status)
    if number in (signal.SIGPROF, signal.SIGALRM):
        return f"took more than {seconds:g} s"
    return f"ended by {signal.Signals(number).name}"


def _confine(seconds: float, memory_bytes: int) -> None:
    """The system ends this process after so many seconds, whatever C code it is in."""
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * seconds)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _judge(run: Callable[[], object]) -> str:
    try:
        run()
    except BdccError as error:
        return f"a message of several lines: {error}" if "\n" in str(error) else ""
    except BaseException:
        return traceback.format_exc()
    return ""
