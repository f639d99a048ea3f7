# SPDX-License-Identifier: 0BSD
"""Programs of this machine: compilers, make, and what they have built. Each has a time to end in,
and takes what it has started with it.
"""

from __future__ import annotations

import errno
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bdcc.files import reason

KEPT_BYTES = 1 << 22  # of what a program says, on each stream: far more than is shown of it
SHOWN = 400  # characters of a line
LOOK_S = 0.1  # how often a program that is silent is asked whether it has ended
GRACE_S = 1.0  # for what is asked to end, before it is made to
ERROR_LINE = re.compile(
    r"(?i)\b(fatal )?error\b|undefined reference|no such file|no space left|not found|\*\*\*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a program went. problem: why it failed, in one line, or None; refused: the errno of the
    system that did not even start it, or None; out, err: the beginning of what it said.
    """

    problem: str | None = None
    refused: int | None = None
    out: str = ""
    err: str = ""


def run_tool(
    command: Sequence[str],
    *,
    seconds: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Ran:
    """Runs a program without input, in `folder`, and whatever it starts in a group of their own,
    of which nothing is left: when it has ended, when it takes longer than `seconds`, and when
    bdcc is interrupted.

    environment: None: as it is. What it says is in English and read as UTF-8.
    """
    given = os.environ if environment is None else environment
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**given, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Ran(problem=reason(error), refused=error.errno or errno.EINVAL)
    except ValueError as error:  # a NUL in a word
        return Ran(problem=reason(error), refused=errno.EINVAL)
    out, err = bytearray(), bytearray()
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            _listen(process, {process.stdout: out, process.stderr: err}, seconds)
        except subprocess.TimeoutExpired:
            problem: str | None = f"it has not ended after {seconds:g} seconds, and was stopped"
        else:
            problem = _problem(process.returncode, err, out)
        finally:
            _end_group(process)
    return Ran(problem=problem, out=_text(out), err=_text(err))


def _listen(
    process: subprocess.Popen[bytes], streams: Mapping[IO[bytes], bytearray], seconds: float
) -> None:
    """Keeps what is said until it ends; raises TimeoutExpired."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(process.args, seconds)
            ready = selector.select(min(left, LOOK_S))
            if not ready and process.poll() is not None:
                break  # something that it has left behind holds its outputs
            for key, _ in ready:
                block = os.read(key.fd, 1 << 16)
                if not block:
                    selector.unregister(key.fileobj)
                for stream, kept in streams.items():
                    if stream is key.fileobj:
                        kept += block[: KEPT_BYTES - len(kept)]
    process.wait(max(deadline - time.monotonic(), 0))


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Asks first, where the program still runs: a killed compiler leaves temporary files."""
    try:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while _signal_group(process, 0) and time.monotonic() < deadline:
                time.sleep(GRACE_S / 50)
                process.poll()
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether there is anything of the group, which the number 0 only asks."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):  # macOS: of a group that has ended
        return False
    return True


def _problem(status: int, err: bytearray, out: bytearray) -> str | None:
    if status == 0:
        return None
    if status < 0:
        return f"it was ended by {_signal_name(-status)}"
    return first_error(_text(err), _text(out)) or f"it ended with status {status}, saying nothing"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _text(said: bytearray) -> str:
    return said.decode("utf-8", "replace")


def first_error(*said: str) -> str:
    """The first line of these texts that tells of an error, else the last of the first text that
    has any; "" without one.
    """
    texts = [[line.strip() for line in text.splitlines() if line.strip()] for text in said]
    lines = [line for text in texts for line in text]
    ours = [line for line in lines if not line.startswith("make")]  # its own lines say the least
    telling = (line for part in (ours, lines) for line in part if ERROR_LINE.search(line))
    last = (text[-1] for text in texts if text)
    return next(telling, next(last, ""))[:SHOWN]
