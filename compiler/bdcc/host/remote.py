# SPDX-License-Identifier: 0BSD
"""Boards that are reached by ssh: a project is sent, built, tested and timed there, and nothing is
left behind. The only user of the system's OpenSSH, with the user's own keys and configuration.

One connection does all of it: what board.sh does at the other end.
"""

from __future__ import annotations

import io
import os
import re
import selectors
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import IO

from bdcc.codegen.emit import shipped
from bdcc.codegen.targets import ISAS, TARGETS, Target, find_target
from bdcc.errors import (
    BdccError,
    BuildError,
    MismatchError,
    OptionError,
    OutputError,
    one_line,
)
from bdcc.files import reason, writing
from bdcc.host.facts import read_facts
from bdcc.host.machine import ISA_PROBE, arm_core, cpu_name
from bdcc.host.tools import LOOK_S, first_error, run_tool

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
GREETING_S = 60  # until the script's first word
SILENCE_S = 1800  # between its words: a slow board compiles one file for minutes
PATIENCE_S = 15  # for a board to put things away
SAID_BYTES = 1 << 26  # at most, of all that is said there
SHOWN = 200  # characters of a line that is shown
LOST = re.compile("(?i)connection|broken pipe|timeout|closed by")
FOLDER = re.compile(r"/.*/bdcc\.[A-Za-z0-9]{6,}")
MACHINE = re.compile("[A-Za-z0-9_.+-]{1,100}")
TIMES = re.compile("([1-9][0-9]{0,8}) ([0-9]{1,18}) ([0-9]{1,18})")
PASSED = "selftest: every layer equals the oracle"
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
    work = _work(destination, files, task=("probe",))
    return replace(_board(work), isas=work.isas())


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
    by_step = sum(goal.by_step for goal in goals)
    return Outcome(
        board=_board(work),
        isa=work.isas(count=len(goals))[-1],
        whole=work.times("run", count=len(goals) - by_step),
        steps=work.times("steps", count=by_step * (len(facts.steps) + 1)),
        selftest=work.passed() if selftest else (),
        folder=work.one("folder", FOLDER) if keep else None,
        celsius=_celsius(work.one("celsius")),
        throttled=_throttled(work.one("throttled")),
    )


_HEADERS = ("bdcc_isa.h", "bdcc_base.h")


def _board(work: _Work) -> Board:
    """What only describes it is None where it is not told as it should be."""
    cpuinfo = "\n".join(work.found.get("cpuinfo", ()))
    memory = re.fullmatch("([0-9]{1,12}) kB", work.found.get("memory", ("",))[0])
    cpus = work.one("cpus")
    machine = work.one("machine", MACHINE)
    return Board(
        cpu=cpu_name(cpuinfo)[:SHOWN] or machine,
        core=arm_core(cpuinfo),
        machine=machine,
        kernel=work.one("kernel")[:SHOWN],
        cpus=int(cpus) if re.fullmatch("[1-9][0-9]{0,4}", cpus) else None,
        memory_bytes=1024 * int(memory[1]) if memory else None,
    )


def _celsius(text: str) -> float | None:
    return int(text) / 1000 if re.fullmatch("-?[0-9]{1,6}", text) else None


def _throttled(text: str) -> str | None:
    bits = re.fullmatch("throttled=(0x[0-9a-fA-F]{1,16})", text)
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
    """What the board has said so far, and the only reader of it: whoever asks for something gets
    it as it should be, or a BuildError that tells what was said instead. found: lines by key;
    volume: bytes of all that was said; removed: whether its folder was, by a second connection.
    """

    destination: str
    planned_for: str = ""
    machine: str = ""
    found: dict[str, list[str]] = field(default_factory=dict)
    volume: int = 0
    removed: bool = False
    _rest: bytes = b""

    def hear(self, said: bytes) -> None:
        """Takes complete lines; one that is not board.sh's is of a login."""
        self.volume += len(said)
        if self.volume > SAID_BYTES:
            return
        *lines, rest = (self._rest + said).split(b"\n")
        self._rest = rest[:BLOCK]
        for line in lines:
            mark, _, rest_of_it = line.decode(errors="replace").rstrip().partition(" ")
            if mark == "bdcc":
                key, _, value = rest_of_it.partition(" ")
                self.found.setdefault(key, []).append(one_line(value.replace("\t", " ").strip()))

    @property
    def stage(self) -> str | None:
        return self.found.get("stage", [None])[-1]

    @property
    def folder(self) -> str | None:
        return self.found.get("folder", [None])[-1]

    def odd(self, what: str) -> BuildError:
        return BuildError(
            f"it does not answer as it should: {what}",
            layer=self.destination,
            hint=self.left or "See what its login does",
        )

    @property
    def left(self) -> str | None:
        """Where its folder is, if it is still there."""
        if self.folder is None or self.removed or "gone" in self.found:
            return None
        return f"Its folder there is {self.folder[:SHOWN]}"

    def one(self, key: str, form: re.Pattern[str] | None = None) -> str:
        """What it has said once."""
        values = self.found.get(key, [])
        if len(values) != 1:
            raise self.odd(f"'{key}' is said {len(values)} times instead of once")
        if form is not None and not form.fullmatch(values[0]):
            raise self.odd(f"'{key}' is '{values[0][:SHOWN]}'")
        return values[0]

    def isas(self, *, count: int | None = None) -> tuple[str, ...]:
        """Instruction sets; without a count each that it has, the widest last."""
        values = self.found.get("isa", [])
        wrong = next((value for value in values if value not in ISAS), None)
        if wrong is not None:
            raise self.odd(f"'{wrong[:SHOWN]}' is no instruction set that bdcc knows")
        if count is None:
            if ISAS[0] not in values:
                raise self.odd(f"it has not even the instruction set '{ISAS[0]}'")
            return tuple(isa for isa in ISAS if isa in values)
        if len(values) != count:
            raise self.odd(f"'isa' is said {len(values)} times instead of {count}")
        return tuple(values)

    def times(self, key: str, *, count: int) -> tuple[Times, ...]:
        lines = self.found.get(key, [])
        if len(lines) != count:
            raise self.odd(f"{len(lines)} times of '{key}' instead of {count}")
        times = []
        for line in lines:
            words = TIMES.fullmatch(line)
            if words is None or int(words[2]) > int(words[3]):
                raise self.odd(f"a time of '{key}' is '{line[:SHOWN]}'")
            times.append(Times(rounds=int(words[1]), least=float(words[2]), median=float(words[3])))
        return tuple(times)

    def passed(self) -> tuple[str, ...]:
        """The selftest's lines, the last of which says that all is well."""
        lines = tuple(self.found.get("selftest", ()))
        if lines[-1:] != (PASSED,):
            last = lines[-1][:SHOWN] if lines else ""
            raise self.odd(f"its selftest ends with '{last}'")
        return lines


class _OddError(Exception):
    """What is odd about a conversation that is broken off."""


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
    with (
        writing(Path(os.environ.get("TMPDIR", "/tmp"))),
        tempfile.TemporaryFile() as archive,  # without a name: a killed bdcc leaves none
        tempfile.TemporaryFile() as errors,
    ):
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
                f"ssh cannot be run ({reason(error)})", hint="Install OpenSSH's client"
            ) from None
        odd, status = None, 0
        try:
            status = _converse(process, archive, size, work, errors, progress)
        except _OddError as error:
            odd = str(error)
        finally:
            _part(process, work)
            if work.folder is not None and "gone" not in work.found and not keep:
                work.removed = _remove(destination, work.folder)
        if odd is not None:
            raise work.odd(odd)
        if status != 0 or work.stage is None:
            errors.seek(0)
            raise _failure(work, status, errors.read().decode(errors="replace"))
    return work


def check_destination(destination: str) -> None:
    """Raises OptionError for what cannot be a host, before ssh could take it for an option."""
    if not re.fullmatch(r"[^\s-]\S*", destination) or not destination.isprintable():
        raise OptionError(
            f"'{destination}' is not a host",
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
            data = content if isinstance(content, bytes) else _read(content)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    size = archive.tell()
    archive.seek(0)
    return size


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise OutputError(f"cannot be read ({reason(error)})", layer=str(file)) from None


def _converse(
    process: subprocess.Popen[bytes],
    archive: IO[bytes],
    size: int,
    work: _Work,
    errors: IO[bytes],
    progress: Progress | None,
) -> int:
    """Sends the archive, listens until the other end has said all, and returns ssh's status."""
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    block, sent, complaints, heard, listening = memoryview(b""), 0, 0, time.monotonic(), True
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while listening or process.poll() is None:
            ready = selector.select(LOOK_S)
            before, complaints = complaints, os.fstat(errors.fileno()).st_size
            if ready or complaints != before:
                heard = time.monotonic()
            seconds = GREETING_S if work.stage is None else SILENCE_S
            if not listening:
                seconds = PATIENCE_S
            if time.monotonic() - heard > seconds:
                raise _OddError(f"nothing is said for {seconds:g} seconds")
            if work.volume + complaints > SAID_BYTES:
                process.kill()  # it would not hear that nobody listens
                raise _OddError(f"it says more than {SAID_BYTES >> 20} MiB")
            for key, _ in ready:
                if key.fileobj is process.stdout:
                    said = os.read(key.fd, BLOCK)
                    if not said:
                        listening = False
                        selector.unregister(key.fileobj)
                        continue
                    work.hear(said)
                    if progress is not None and work.stage in STAGES:
                        done = STAGES.index(work.stage)
                        progress(f"run on {work.destination}", done, len(STAGES))
                    continue
                block = block or memoryview(archive.read(BLOCK))
                try:
                    count = os.write(key.fd, block) if block else 0
                except BrokenPipeError:  # it has given up, and says why
                    count = 0
                block, sent = block[count:], sent + count
                if count == 0:
                    selector.unregister(key.fileobj)
                elif progress is not None:
                    progress(f"copy to {work.destination}", sent, size)
    return process.wait()


def _part(process: subprocess.Popen[bytes], work: _Work) -> None:
    """Ends the connection: the board sees the end of its input, and puts away what it has."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + PATIENCE_S
    try:
        with suppress(BrokenPipeError):
            process.stdin.close()
        with selectors.DefaultSelector() as selector, suppress(subprocess.TimeoutExpired):
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.select(max(deadline - time.monotonic(), 0)):
                said = os.read(process.stdout.fileno(), BLOCK)
                if not said:
                    break
                work.hear(said)
            process.wait(max(deadline - time.monotonic(), 0))
    finally:  # asked to leave once more, too
        process.kill()
        process.wait()
        process.stdout.close()


def _remove(destination: str, folder: str) -> bool:
    """What board.sh does itself, unless it was killed; whether it has worked."""
    if not FOLDER.fullmatch(folder):
        return False
    command = _ssh(destination, shlex.join(["rm", "-rf", "--", folder]))
    return run_tool(command, seconds=PATIENCE_S).problem is None


# --- what went wrong ------------------------------------------------------------------------------


def _failure(work: _Work, status: int, errors: str) -> BdccError:
    """The one line about it."""
    where, stage, found = work.destination, work.stage, work.found
    said = errors.rpartition(f"bdcc stage {stage}")[2] if stage else errors
    lines = [one_line(line.strip())[:SHOWN] for line in said.splitlines() if line.strip()]
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
            message = f"'{found['missing'][0][:SHOWN]}' is not there"
            hint = "Install it on the board: sudo apt install gcc make"
        case "tools":
            theirs = found.get("machine", ["an unknown machine"])[0][:SHOWN]
            message = f"its compiler builds for {theirs}; the project is for {work.planned_for}"
            hint = f"bdcc compile --target ssh:{where} finds the target that it is"
        case "build" | "probe":
            message, hint = (
                f"the project does not build there ({first_error(said) or 'nothing was said'})",
                None,
            )
        case "selftest" if status == MismatchError.exit_code and (wrong := _differing(found)):
            return MismatchError(
                f"{len(wrong)} outputs of layers differ there from the oracle's, the first in "
                f"'{wrong[0]}'",
                layer=where,
            )
        case _:
            message = f"{stage[:SHOWN]} fails there with status {status} ({last})"
            hint = None
    return BuildError(message, layer=where, hint=work.left or hint)


def _differing(found: Mapping[str, Sequence[str]]) -> list[str]:
    return [line[:SHOWN] for line in found.get("selftest", ()) if line.endswith("differs")]


def _access_hint(said: str) -> str:
    if "Host key verification" in said:
        return "Log in once by hand to see and accept the key of the board"
    if "Permission denied" in said:
        return "Give the board your public key: ssh-copy-id"
    return "See whether plain ssh reaches it"
