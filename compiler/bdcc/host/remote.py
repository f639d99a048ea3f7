# SPDX-License-Identifier: 0BSD
"""Boards that are reached by ssh: a project is sent, built, tested and timed there, and nothing is
left behind. The only user of the system's OpenSSH, with the user's own keys and configuration.

One connection does all of it: what board.sh does at the other end.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO

from bdcc.codegen.emit import shipped
from bdcc.codegen.targets import ISAS, TARGETS, Target, find_target
from bdcc.errors import BdccError, BuildError, MismatchError, OptionError, OutputError
from bdcc.host.facts import read_facts
from bdcc.host.machine import ISA_PROBE, arm_core, cpu_name
from bdcc.host.tools import first_error

Progress = Callable[[str, int, int], None]
OPTIONS = (
    "BatchMode=yes",  # never asks, so never has a password
    "ConnectTimeout=15",
    "ServerAliveInterval=15",  # a board that is gone is noticed
    "ServerAliveCountMax=4",
    "LogLevel=ERROR",
    "ClearAllForwardings=yes",
    "RemoteCommand=none",
)
SCRIPT = Path(__file__).with_name("board.sh")
PROGRAM = tuple(Path(__file__).with_name(name) for name in ("board.c", "board.mk"))
SENT = ("include", "src", "weights", "Makefile", "host/golden.bin")  # of a project
LONG_AGO = (
    1_000_000_000  # every file's time: older than what a board builds, whatever its clock says
)
BLOCK = 1 << 16
PATIENCE_S = 15  # for a board to put things away
LOST = re.compile("(?i)connection|broken pipe|timeout|closed by")
FOLDER = re.compile(r"/.*/bdcc\.[A-Za-z0-9]{6,}")
IN_32_BITS = {"cortex-a53": "rpi3-32", "cortex-a76": "rpi4-32"}  # targets of cores that name others
STAGES = ("folder", "copy", "tools", "build", "selftest", "bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """cpu: what the processor calls itself; core: as targets name it, or None; machine: what its
    compiler calls it; kernel: system, release, architecture; isas: instruction sets that programs
    of its compiler's defaults can use, None unless asked for.
    """

    cpu: str
    core: str | None
    machine: str
    kernel: str
    cpus: int | None
    memory_bytes: int | None
    isas: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Nanoseconds, over so many rounds."""

    rounds: int
    least: float
    median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is timed: the whole network, or each of its steps and then a call of none. isa: by
    name, "" for the widest; rounds: at least, at most; seconds: how long they go on between.
    """

    by_step: bool
    rounds: tuple[int, int]
    seconds: float
    isa: str = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """As board.c takes them."""
        mode = "steps" if self.by_step else "run"
        return mode, self.isa, str(self.rounds[0]), str(self.rounds[1]), f"{self.seconds:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """isa: that was used; whole, steps: what was asked for; selftest: its lines; folder: where it
    is kept, or None; celsius, throttled: behind the timing, where the board tells.
    """

    board: Board
    isa: str
    whole: tuple[Times, ...]
    steps: tuple[Times, ...]
    selftest: tuple[str, ...]
    folder: str | None
    celsius: float | None
    throttled: str | None


def probe_board(destination: str) -> Board:
    """What is there. Raises BuildError if it cannot be reached or has no compiler."""
    files: dict[str, Path | bytes] = {"isas.c": ISA_PROBE.encode()}
    files |= {name: shipped("runtime").joinpath(name).read_bytes() for name in _HEADERS}
    return _board(_work(destination, files, task=("probe",)).found)


def match_target(board: Board) -> Target:
    """The target that describes it best: its core, else its instruction set, and its memory."""
    machine = board.machine
    if machine.startswith("arm") and board.core in IN_32_BITS:
        return find_target(IN_32_BITS[board.core])
    fitting = [t for t in TARGETS if t.machine and machine.startswith(t.machine) and not t.bare]
    same = [t for t in fitting if t.core == board.core] or [
        t for t in fitting if board.isas is not None and t.planned_for == board.isas[-1]
    ]
    if not same:
        return find_target("generic")
    return min(same, key=lambda t: abs((t.ram_bytes or 0) - (board.memory_bytes or 0)))


def run_there(
    destination: str,
    project: Path,
    *,
    goals: Sequence[Goal],
    target: Target,
    threads: int = 1,
    selftest: bool = True,
    keep: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Builds the project on the board, runs its selftest, and times it.

    target: what it was compiled for; keep: leave its folder there. Raises OptionError for a target
    without an operating system, BuildError (exit code 5) for whatever fails there, MismatchError
    for a layer that differs.
    """
    if target.bare:
        raise OptionError(
            f"is for {target.name}, which has no operating system to reach by ssh",
            layer=str(project),
        )
    facts = read_facts(project)
    arguments = (
        facts.name,
        str(prod(facts.input)),
        str(facts.outputs),
        str(threads),
        "all selftest" if selftest else "",
        *(argument for goal in goals for argument in goal.arguments),
    )
    files = _project_files(project, selftest=selftest)
    work = _work(
        destination,
        files | {source.name: source for source in PROGRAM},
        task=("bench", *arguments),
        machine=target.machine or "",
        planned_for=target.name,
        keep=keep,
        progress=progress,
    )
    found = work.found
    return Outcome(
        board=_board(found),
        isa=found["isa"][-1],
        whole=_times(found.get("run", ())),
        steps=_times(found.get("steps", ())),
        selftest=tuple(found.get("selftest", ())),
        folder=work.folder if keep else None,
        celsius=_celsius(found["celsius"][-1]),
        throttled=_throttled(found["throttled"][-1]),
    )


_HEADERS = ("bdcc_isa.h", "bdcc_base.h")


def _board(found: Mapping[str, Sequence[str]]) -> Board:
    cpuinfo = "\n".join(found.get("cpuinfo", ()))
    memory = re.match(r"(\d+) kB", found.get("memory", ("",))[0])
    cpus = found["cpus"][0]
    isas = found.get("isa")
    return Board(
        cpu=cpu_name(cpuinfo) or found["machine"][0],
        core=arm_core(cpuinfo),
        machine=found["machine"][0],
        kernel=found["kernel"][0],
        cpus=int(cpus) if cpus.isdigit() else None,
        memory_bytes=1024 * int(memory[1]) if memory else None,
        isas=None if isas is None else tuple(isa for isa in ISAS if isa in isas),
    )


def _times(lines: Sequence[str]) -> tuple[Times, ...]:
    rows = [line.split() for line in lines]
    return tuple(Times(rounds=int(n), least=float(a), median=float(b)) for n, a, b in rows)


def _celsius(text: str) -> float | None:
    return int(text) / 1000 if text.isdigit() else None


def _throttled(text: str) -> str | None:
    bits = re.fullmatch("throttled=(0x[0-9a-fA-F]+)", text)
    return bits[1] if bits else None


def _project_files(project: Path, *, selftest: bool) -> dict[str, Path | bytes]:
    """By name, those that are built from, and the golden vectors."""
    files: dict[str, Path | bytes] = {}
    for name in SENT:
        place = project / name
        parts = sorted(place.rglob("*")) if place.is_dir() else [place]
        files |= {p.relative_to(project).as_posix(): p for p in parts if p.is_file()}
    needed = ("Makefile", *(("host/golden.bin",) if selftest else ()))
    missing = next((name for name in needed if name not in files), None)
    if missing is not None:
        raise OutputError(
            f"{missing} is not there", layer=str(project), hint="Compile the project again"
        )
    return files


# --- the connection -------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Work:
    """What the board has said so far. found: lines by key."""

    destination: str
    planned_for: str = ""
    machine: str = ""
    found: dict[str, list[str]] = field(default_factory=dict)

    def take(self, said: bytes) -> None:
        """A line; one that is not board.sh's is of a login."""
        mark, _, rest = said.decode(errors="replace").rstrip().partition(" ")
        if mark == "bdcc":
            key, _, value = rest.partition(" ")
            self.found.setdefault(key, []).append(_printable(value).strip())

    @property
    def stage(self) -> str | None:
        return self.found.get("stage", [None])[-1]

    @property
    def folder(self) -> str | None:
        return self.found.get("folder", [None])[-1]


def _work(
    destination: str,
    files: Mapping[str, Path | bytes],
    *,
    task: Sequence[str],
    machine: str = "",
    planned_for: str = "",
    keep: bool = False,
    progress: Progress | None = None,
) -> _Work:
    """Runs board.sh there with the files. machine: what the board's compiler must call it, ""
    for anything.
    """
    work = _Work(destination=destination, machine=machine, planned_for=planned_for)
    with tempfile.TemporaryFile() as archive, tempfile.TemporaryFile() as errors:
        size = _pack(files, archive)
        words = [str(size), "keep" if keep else "", machine, *task]
        command = shlex.join(["sh", "-c", SCRIPT.read_text("utf-8"), "bdcc", *words])
        # In a session of its own Ctrl-C does not reach it: the board can put things away first.
        try:
            process = subprocess.Popen(
                _ssh(destination, f"exec {command}"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise BuildError(
                f"ssh cannot be run ({error.strerror})", hint="Install OpenSSH's client"
            ) from None
        try:
            _converse(process, archive, size, work, progress)
            status = process.wait()
        finally:
            _part(process, work)
            if work.folder is not None and "gone" not in work.found and not keep:
                _remove(destination, work.folder)
        if status != 0 or work.stage is None:
            errors.seek(0)
            raise _failure(work, status, errors.read().decode(errors="replace"))
    return work


def check_destination(destination: str) -> None:
    """Raises OptionError for what cannot be a host, before ssh could take it for an option."""
    if not re.fullmatch(r"[^\s-]\S*", destination) or not destination.isprintable():
        raise OptionError(
            f"'{_printable(destination)}' is not a host",
            layer="ssh",
            hint="Give it as ssh takes it, like pi@raspberrypi or ssh://pi@10.0.0.7:2222",
        )


def _ssh(destination: str, command: str) -> list[str]:
    check_destination(destination)
    options = [word for option in OPTIONS for word in ("-o", option)]
    return ["ssh", "-T", "-x", *options, "--", destination, command]


def _pack(files: Mapping[str, Path | bytes], archive: IO[bytes]) -> int:
    """Writes a tar archive of the files, and goes back to its start; returns its bytes."""
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.mtime = LONG_AGO
            data = content if isinstance(content, bytes) else content.read_bytes()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    size = archive.tell()
    archive.seek(0)
    return size


def _converse(
    process: subprocess.Popen[bytes],
    archive: IO[bytes],
    size: int,
    work: _Work,
    progress: Progress | None,
) -> None:
    """Sends the archive, then listens."""
    assert process.stdin is not None
    assert process.stdout is not None
    sent = 0
    with suppress(BrokenPipeError):  # it has given up, and says why
        while block := archive.read(BLOCK):
            process.stdin.write(block)
            process.stdin.flush()
            sent += len(block)
            if progress is not None:
                progress(f"copy to {work.destination}", sent, size)
    for line in process.stdout:
        work.take(line)
        if progress is not None and work.stage in STAGES:
            progress(f"run on {work.destination}", STAGES.index(work.stage), len(STAGES))


def _part(process: subprocess.Popen[bytes], work: _Work) -> None:
    """Ends the connection: the board sees the end of its input, and puts away what it has."""
    assert process.stdin is not None
    assert process.stdout is not None
    patience = threading.Timer(PATIENCE_S, process.kill)
    patience.start()
    try:
        with suppress(BrokenPipeError):
            process.stdin.close()
        for line in process.stdout:
            work.take(line)
    except BaseException:  # asked to leave once more
        process.kill()
        raise
    finally:
        process.wait()
        patience.cancel()
        process.stdout.close()


def _remove(destination: str, folder: str) -> None:
    """What board.sh does itself, unless it was killed."""
    if FOLDER.fullmatch(folder):
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                _ssh(destination, shlex.join(["rm", "-rf", "--", folder])),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=PATIENCE_S,
                check=False,
            )


# --- what went wrong ------------------------------------------------------------------------------


def _failure(work: _Work, status: int, errors: str) -> BdccError:
    """The one line about it."""
    where, stage, found = work.destination, work.stage, work.found
    said = errors.rpartition(f"bdcc stage {stage}")[2] if stage else errors
    lines = [_printable(line).strip() for line in said.splitlines() if line.strip()]
    first, last = (lines[0], lines[-1]) if lines else ("nothing was said", "nothing was said")
    if stage is None:
        return BuildError(f"cannot be reached ({last})", layer=where, hint=_access_hint(last))
    if status in (255, -9, -15):
        if not lines or not LOST.search(last):
            last = "what ran there was killed, perhaps for want of memory"
        return BuildError(
            f"it did not go on ({last})", layer=where, hint="The board is left as it was; try again"
        )
    match stage:
        case "folder":
            message, hint = f"no temporary folder can be made there ({last})", None
        case "copy":
            message = f"the files cannot be unpacked there ({first})"
            hint = "Make room in its /tmp, or name another folder by TMPDIR in its environment"
        case "tools" if "missing" in found:
            message = f"'{found['missing'][0]}' is not there"
            hint = "Install it on the board: sudo apt install gcc make"
        case "tools":
            theirs = found.get("machine", ["an unknown machine"])[0]
            message = f"its compiler builds for {theirs}; the project is for {work.planned_for}"
            hint = f"bdcc compile --target ssh:{where} finds the target that it is"
        case "build" | "probe":
            message, hint = f"the project does not build there ({first_error(said)})", None
        case "selftest" if status == MismatchError.exit_code:
            wrong = [line for line in found.get("selftest", ()) if line.endswith("differs")]
            return MismatchError(
                f"{len(wrong)} outputs of layers differ there from the oracle's, the first in "
                f"'{wrong[0] if wrong else last}'",
                layer=where,
            )
        case _:
            message, hint = f"{stage} fails there with status {status} ({last})", None
    if work.folder is not None and "gone" not in found:
        hint = f"Its folder there is {work.folder}"
    return BuildError(message, layer=where, hint=hint)


def _access_hint(said: str) -> str:
    if "Host key verification" in said:
        return "Log in once by hand to see and accept the key of the board"
    if "Permission denied" in said:
        return "Give the board your public key: ssh-copy-id"
    return "See whether plain ssh reaches it"


def _printable(text: str) -> str:
    """What a board says is shown, and no terminal obeys it."""
    return "".join(c if c.isprintable() else " " for c in text)
