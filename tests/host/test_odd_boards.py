# SPDX-License-Identifier: 0BSD
"""Boards that answer anything but what board.sh says: an `ssh` that is a script plays them."""

from __future__ import annotations

import random
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bdcc.codegen.targets import find_target
from bdcc.errors import BuildError, MismatchError
from bdcc.host import remote
from bdcc.host.facts import read_facts
from bdcc.host.remote import Board, Goal, Outcome, match_target, probe_board, run_there
from bdcc.host.tools import run_tool

PI = "pi@raspberrypi"
STEPS = Goal(by_step=True, rounds=(1, 3), seconds=0.1)
WHOLE = Goal(by_step=False, rounds=(1, 3), seconds=0.1)
FUZZ = 60
Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    """play(said, then="exit 0"): what every connection says, and does at its end."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(said: bytes | str, then: str = "exit 0") -> None:
        answer = folder / "answer"
        answer.write_bytes(said if isinstance(said, bytes) else said.encode())
        script = folder / "ssh"
        script.write_text(f"#!/bin/sh\ncat {shlex.quote(str(answer))}\n{then}\n")
        script.chmod(0o755)

    return write


@pytest.fixture
def usual(net: Path) -> str:
    """What a board says where all goes well."""
    steps = len(read_facts(net).steps) + 1
    lines = (
        "stage folder", "folder /tmp/bdcc.abcdef", "stage copy", "stage tools",
        "machine aarch64-linux-gnu", "kernel Linux 6.1 aarch64", "cpus 4",
        "cpuinfo CPU implementer\t: 0x41", "cpuinfo CPU part\t: 0xd08", "cpuinfo Model\t: Pi",
        "memory 3884096 kB", "stage build", "stage selftest", "selftest generic: 9 outputs",
        "selftest selftest: every layer equals the oracle", "stage bench",
        "isa neon", *["steps 3 1000 1100"] * steps, "isa neon", "run 3 9000 9100",
        "celsius 48300", "throttled throttled=0x0", "gone",
    )  # fmt: skip
    return "".join(f"bdcc {line}\n" for line in lines)


def deploy(project: Path) -> Outcome:
    return run_there(PI, project, goals=(STEPS, WHOLE), target=find_target("rpi4"))


def fails(project: Path, code: int = 5) -> str:
    """The line that is said."""
    with pytest.raises((BuildError, MismatchError)) as caught:
        deploy(project)
    line = str(caught.value)
    assert caught.value.exit_code == code
    assert line.startswith(f"{PI}: ")
    assert line.isprintable()
    assert len(line) < 700
    return line


def test_what_is_usual_is_understood(play: Play, usual: str, net: Path) -> None:
    play(usual)
    found = deploy(net)
    assert found.board == Board(
        cpu="cortex-a72 (Pi)", core="cortex-a72", machine="aarch64-linux-gnu",
        kernel="Linux 6.1 aarch64", cpus=4, memory_bytes=3884096 << 10,
    )  # fmt: skip
    assert (found.isa, found.celsius, found.throttled) == ("neon", 48.3, "0x0")
    assert len(found.steps) == len(read_facts(net).steps) + 1
    assert found.whole[0].median == 9100


@pytest.mark.parametrize(
    "key", ["stage", "machine", "kernel", "cpus", "selftest", "isa", "steps", "run", "celsius",
            "throttled"],
)  # fmt: skip
def test_nothing_that_is_needed_may_be_missing(play: Play, usual: str, net: Path, key: str) -> None:
    lines = usual.splitlines(keepends=True)
    play("".join(line for line in lines if not line.startswith(f"bdcc {key} ")))
    line = fails(net)
    assert ("cannot be reached" if key == "stage" else "does not answer as it should") in line
    play(usual.replace(f"bdcc {key} ", f"bdcc {key} x\nbdcc {key} ", 1))
    if key != "stage":  # of which there may be others one day
        assert "does not answer as it should" in (fails(net) if key != "selftest" else line)


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("machine aarch64-linux-gnu", "machine aarch64 \x1b[2J"),
        ("machine aarch64-linux-gnu", "machine " + "x" * 100_000),
        ("isa neon", "isa mmx"),
        ("isa neon", "isa"),
        ("steps 3 1000 1100", "steps 3 1000"),
        ("steps 3 1000 1100", "steps 3 1100 1000"),
        ("steps 3 1000 1100", "steps 0 1000 1100"),
        ("steps 3 1000 1100", "steps 3 nan nan"),
        ("steps 3 1000 1100", "steps 3 -1 inf"),
        ("steps 3 1000 1100", "steps 3 1000 1" + "0" * 5000),
        ("steps 3 1000 1100", "steps ٣ ٣ ٣"),
        ("run 3 9000 9100", "run three 9000 9100"),
        ("every layer equals", "some layers equal"),
    ],
)
def test_nothing_that_decides_may_be_odd(
    play: Play, usual: str, net: Path, there: str, instead: str
) -> None:
    assert there in usual
    play(usual.replace(there, instead, 1))
    assert "does not answer as it should: " in fails(net)


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        ("cpus 4", "cpus 0"),
        ("cpus 4", "cpus ²"),
        ("cpus 4", "cpus -4"),
        ("cpus 4", "cpus " + "9" * 5000),
        ("memory 3884096 kB", "memory " + "9" * 5000 + " kB"),
        ("memory 3884096 kB", "memory lots"),
        ("celsius 48300", "celsius hot"),
        ("celsius 48300", "celsius " + "9" * 5000),
        ("throttled throttled=0x0", "throttled throttled=0x" + "f" * 5000),
        ("cpuinfo CPU part\t: 0xd08", "cpuinfo CPU part\t: \u202e\x1b[31m"),
        ("cpuinfo Model\t: Pi", "cpuinfo Model\t: " + "π" * 50_000),
        ("bdcc stage build", "bdcc\nbdcc \nbdcc stage build\n\n\0\n"),
        ("bdcc gone", "bdcc gone\nlogout\nbdcc farewell " + "x" * 100_000),
    ],
)
def test_what_only_describes_it_is_then_not_known(
    play: Play, usual: str, net: Path, there: str, instead: str
) -> None:
    assert there in usual
    play(usual.replace(there, instead, 1))
    found = deploy(net)
    lacking = {"cpus": found.board.cpus, "memory": found.board.memory_bytes,
               "celsius": found.celsius, "throttled": found.throttled}  # fmt: skip
    assert lacking.get(there.split()[0]) is None
    assert len(found.board.cpu) <= remote.SHOWN
    assert found.board.cpu.isprintable()


@pytest.mark.parametrize("status", [0, 1, 4, 77, 255])
def test_it_may_end_at_any_point(play: Play, usual: str, net: Path, status: int) -> None:
    said = usual.encode()
    for cut in range(0, len(said) - len(b"bdcc gone\n"), 67):
        play(said[:cut], f"exit {status}")
        line = fails(net)
        if b"bdcc stage folder\n" not in said[:cut]:
            assert "cannot be reached (nothing was said)" in line


def test_a_layer_that_differs_is_named_or_it_is_not_the_selftest_s_word(
    play: Play, usual: str, net: Path
) -> None:
    until, _, _ = usual.partition("bdcc stage bench")
    play(until + "bdcc selftest neon: conv1 differs\n", "exit 4")
    assert "1 outputs of layers differ there" in fails(net, code=4)
    play(until, "exit 4")
    assert "selftest fails there with status 4" in fails(net)


@pytest.mark.parametrize("where", ["/dev/urandom", "/dev/zero"])
@pytest.mark.parametrize("to", ["", ">&2"])
def test_it_may_talk_without_end(
    play: Play, net: Path, monkeypatch: pytest.MonkeyPatch, where: str, to: str
) -> None:
    monkeypatch.setattr(remote, "SAID_BYTES", 1 << 20)
    play("bdcc stage folder\n", f"exec cat {where} {to}")
    began = time.monotonic()
    assert "it says more than 1 MiB" in fails(net)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("said", ["", "welcome\n", "bdcc stage tools\n", "bdcc stage tools"])
def test_it_may_fall_silent(
    play: Play, net: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    for limit in ("GREETING_S", "SILENCE_S", "PATIENCE_S"):
        monkeypatch.setattr(remote, limit, 0.5)
    play(said, "exec sleep 60")
    began = time.monotonic()
    assert "nothing is said for 0.5 seconds" in fails(net)
    assert time.monotonic() - began < 10


def test_it_may_close_its_output_and_stay(
    play: Play, usual: str, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE_S", 0.5)
    play(usual, "exec sleep 60 >&-")
    assert "nothing is said for 0.5 seconds" in fails(net)


def test_probing_is_as_strict(play: Play) -> None:
    usual = (
        "bdcc stage tools\nbdcc machine x86_64-linux-gnu\nbdcc kernel Linux\nbdcc cpus 2\n"
        "bdcc stage probe\nbdcc isa generic\nbdcc isa popcnt\n"
    )
    play(usual)
    found = probe_board(PI)
    assert found.isas == ("generic", "popcnt")
    assert match_target(found).name != "generic" or found.core is None
    for there, instead in (
        ("isa generic", "isa"), ("isa generic", "isa garbage"), ("bdcc isa generic\n", ""),
        ("machine x86_64-linux-gnu", "machine"), ("kernel", "colonel"), ("bdcc cpus 2\n", ""),
    ):  # fmt: skip
        assert there in usual
        play(usual.replace(there, instead))
        with pytest.raises(BuildError, match="does not answer as it should"):
            probe_board(PI)


def mutated(said: bytes, rng: random.Random) -> bytes:
    """Bytes turned, lines lost, doubled, swapped, joined, cut off, and noise among them."""
    lines = said.splitlines(keepends=True)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        line = bytearray(lines[at])
        match rng.randrange(8):
            case 0:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines)), bytes(line))
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case 3:
                lines[at] = bytes(line.rstrip(b"\n"))
            case 4:
                lines[at:] = [bytes(line[: rng.randrange(len(line) + 1)])]
            case 5 if line:
                line[rng.randrange(len(line))] = rng.randrange(256)
                lines[at] = bytes(line)
            case 6:
                lines.insert(at, rng.randbytes(rng.randrange(300)))
            case 7:
                number = rng.choice((b"-1", b"1e999", b"9" * 6000, b"0x10", b"", b"\xff\xfe"))
                words = line.split(b" ")
                words[rng.randrange(len(words))] = number
                lines[at] = b" ".join(words)
        if not lines:
            break
    return b"".join(lines)


def fuzz(play: Play, usual: str, net: Path, count: int) -> tuple[int, int]:
    """How many of the answers are refused, and are taken."""
    rng = random.Random(7)
    lines, taken = [], 0
    for _ in range(count):
        play(mutated(usual.encode(), rng), f"exit {rng.choice((0, 0, 0, 1, 4, 255))}")
        try:
            outcome = deploy(net)
        except (BuildError, MismatchError) as error:
            lines.append(str(error))
        else:
            taken += 1
            assert len(outcome.steps) == len(read_facts(net).steps) + 1
    assert all(line.isprintable() and len(line) < 700 for line in lines)
    return len(lines), taken


def test_mutated_answers(play: Play, usual: str, net: Path) -> None:
    refused, taken = fuzz(play, usual, net, FUZZ)
    assert refused > FUZZ // 2
    assert taken > 0


@pytest.mark.slow
def test_many_mutated_answers(play: Play, usual: str, net: Path) -> None:
    refused, taken = fuzz(play, usual, net, 1000)
    assert refused + taken == 1000


def test_a_script_that_plays_a_board_is_run(play: Play) -> None:
    play("hello\n", "exit 3")
    ran = run_tool(["ssh"], seconds=10)
    assert (ran.out, ran.problem) == ("hello\n", "hello")
