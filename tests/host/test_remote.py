# SPDX-License-Identifier: 0BSD
"""Work on a board, by a real sshd; and all that can go wrong there."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bdcc.approx.model import QuantizedModel
from bdcc.codegen.plan import DeploymentPlan
from bdcc.codegen.targets import ISAS, find_target
from bdcc.errors import BuildError, MismatchError, OptionError, OutputError
from bdcc.host.facts import read_facts
from bdcc.host.machine import usable_isas
from bdcc.host.remote import Board, Goal, Outcome, match_target, probe_board, run_there
from sshd import Sshd

HOST = find_target("host")
PI = "pi@raspberrypi"
QUICK = Goal(by_step=True, rounds=(1, 3), seconds=0.1)
WHOLE = Goal(by_step=False, rounds=(2, 2), seconds=0.1, isa="generic")


def deploy(project: Path, **options: object) -> Outcome:
    given = {"goals": (QUICK,), "target": HOST, **options}
    return run_there(PI, project, **given)  # type: ignore[arg-type]


def fails(project: Path, message: str, code: int = 5, **options: object) -> str:
    """The line that is said."""
    with pytest.raises((BuildError, MismatchError), match=message) as caught:
        deploy(project, **options)
    assert caught.value.exit_code == code
    line = str(caught.value)
    assert line.startswith(f"{PI}: ")
    assert line.isprintable()
    return line


# --- what it does -----------------------------------------------------------------------------


def test_a_project_is_built_tested_and_timed(board: Sshd, net: Path, tmp_path: Path) -> None:
    board.start()
    hostile = tmp_path / "o u t '$(touch broken)' `touch broken`; *"
    shutil.copytree(net, hostile)
    outcome = deploy(hostile, goals=(QUICK, WHOLE))
    assert len(outcome.steps) == len(read_facts(net).steps) + 1
    (whole,) = outcome.whole
    assert whole.rounds == 2
    assert 0 < whole.least <= whole.median
    assert outcome.isa == "generic"
    assert outcome.selftest[-1] == "selftest: every layer equals the oracle"
    assert outcome.board.machine.startswith(os.uname().machine)
    assert outcome.board.cpus == os.cpu_count()
    assert outcome.folder is None
    assert not list(tmp_path.rglob("broken"))


def test_threads(board: Sshd, net: Path) -> None:
    board.start()
    outcome = deploy(net, threads=2)
    assert min(step.least for step in outcome.steps) > 0
    assert outcome.selftest[-1] == "selftest: every layer equals the oracle"


def test_the_oracle_stays_at_home(board: Sshd, net: Path) -> None:
    board.start()
    outcome = deploy(net, keep=True)
    assert outcome.folder is not None
    folder = Path(outcome.folder)
    assert folder.parent == board.tmp
    assert [file.name for file in (folder / "host").iterdir()] == ["golden.bin"]
    assert (folder / "selftest").is_file()
    assert folder.stat().st_mode & 0o77 == 0
    shutil.rmtree(folder)


def test_a_login_may_say_things(board: Sshd, net: Path) -> None:
    (board.folder / ".bashrc").write_text("echo bdcc; echo welcome; echo 'warning: locale' >&2\n")
    board.start()
    assert deploy(net).steps


def test_what_a_pi_says_of_itself(board: Sshd, net: Path) -> None:
    board.program("vcgencmd", "echo throttled=0x50000")
    board.start()
    assert deploy(net).throttled == "0x50000"


def test_probing(board: Sshd) -> None:
    board.start()
    found = probe_board(PI)
    assert found.isas == usable_isas()
    if found.machine.startswith("x86_64"):
        assert match_target(found).planned_for == usable_isas()[-1]


def test_an_emulated_board(
    board: Sshd,
    model: QuantizedModel,
    write: Callable[[QuantizedModel, Path], DeploymentPlan],
    tool: Callable[[str], str],
    tmp_path: Path,
) -> None:
    """An AArch64 compiler whose programs run under QEMU."""
    board.emulate(tool)
    board.start()
    project = tmp_path / "net"
    write(model, project)
    outcome = deploy(project, target=find_target("rpi4"))
    assert outcome.isa == "neon"
    assert outcome.board.machine == "aarch64-linux-gnu"
    assert outcome.selftest[-1] == "selftest: every layer equals the oracle"
    assert len(outcome.selftest) == 3  # generic, neon
    found = probe_board(PI)
    assert found.isas == ("generic", "neon")
    assert match_target(found).planned_for == "neon"


# --- what goes wrong --------------------------------------------------------------------------


def test_nobody_listens(board: Sshd, net: Path) -> None:
    assert "Connection refused" in fails(net, "cannot be reached")


def test_a_host_key_that_is_not_known(board: Sshd, net: Path) -> None:
    (board.folder / "known").write_text("")
    board.start()
    assert "Log in once by hand" in fails(net, "Host key verification failed")
    assert (board.folder / "known").read_text() == ""


def test_a_host_key_that_has_changed(board: Sshd, net: Path, tool: Callable[[str], str]) -> None:
    board.make_key("host", tool)
    board.start()
    fails(net, "Host key verification failed")


def test_a_key_that_is_not_allowed(board: Sshd, net: Path) -> None:
    (board.folder / "authorized").write_text("")
    board.start()
    assert "ssh-copy-id" in fails(net, "Permission denied")


def _when(marker: Path, act: Callable[[], None]) -> threading.Thread:
    """Acts once there is the file."""

    def wait() -> None:
        for _ in range(400):
            if marker.exists() and marker.read_text():
                time.sleep(0.3)  # what was said before has arrived
                return act()
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def _slow_compiler(board: Sshd, tool: Callable[[str], str], marker: Path, seconds: int) -> None:
    board.program(
        "cc",
        f"""case "$*" in *dumpmachine*) exec {tool("cc")} "$@" ;; esac
echo $$ >>'{marker}'
exec sleep {seconds}""",
    )


def _gone(pid: int) -> bool:
    """Ended, though perhaps nobody has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_connection_that_is_lost_while_it_builds(
    board: Sshd, net: Path, tool: Callable[[str], str], tmp_path: Path
) -> None:
    marker = tmp_path / "compiling"
    _slow_compiler(board, tool, marker, 60)
    board.start()
    cut = _when(marker, board.cut)
    assert "The board is left as it was" in fails(net, "it did not go on")
    cut.join()
    assert board.left() == []
    assert all(_gone(int(pid)) for pid in marker.read_text().split())


def test_a_connection_that_is_lost_while_it_copies(board: Sshd, net: Path, tmp_path: Path) -> None:
    marker = tmp_path / "copying"
    board.program("head", f"echo here >'{marker}'\ncat >/dev/null")
    board.start()
    cut = _when(marker, board.cut)
    fails(net, "it did not go on")
    cut.join()
    assert board.left() == []


def test_a_shell_that_is_killed(
    board: Sshd, net: Path, tool: Callable[[str], str], tmp_path: Path
) -> None:
    """As for want of memory: nothing there can put away, so another connection does."""
    marker = tmp_path / "compiling"
    _slow_compiler(board, tool, marker, 1)
    board.start()
    killed = _when(marker, lambda: board.kill(b"trap leave EXIT"))
    fails(net, "what ran there was killed")
    killed.join()


def test_a_full_disk(board: Sshd, net: Path, tmp_path: Path) -> None:
    small = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(board.tmp)]
    mounted = (
        os.geteuid() == 0
        and subprocess.run(small, capture_output=True, check=False).returncode == 0
    )
    if not mounted:
        said = "tar: weights/net.bin: Cannot write: No space left on device"
        board.program("tar", f"cat >/dev/null; echo '{said}' >&2; exit 2")
    board.start()
    try:
        line = fails(net, "No space left on device")
        assert "the files cannot be unpacked there (tar: " in line
        assert "Make room" in line
        assert board.left() == []
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(board.tmp)], check=True)


def test_no_place_for_a_folder(board: Sshd, net: Path) -> None:
    board.environment["TMPDIR"] = str(board.folder / "nowhere")
    board.start()
    fails(net, r"no temporary folder can be made there \(mktemp: ")


@pytest.mark.parametrize("missing", ["make", "cc"])
def test_tools_that_are_not_there(
    board: Sshd, net: Path, tool: Callable[[str], str], missing: str
) -> None:
    for name in {"sh", "bash", "mktemp", "head", "tar", "rm", "make", "cc"} - {missing}:
        (board.bin / name).symlink_to(tool(name))
    board.environment["PATH"] = str(board.bin)
    board.start()
    assert "sudo apt install" in fails(net, f"'{missing}' is not there")


def test_another_architecture(board: Sshd, net: Path) -> None:
    board.program("cc", "echo riscv64-linux-gnu")
    board.start()
    fails(net, "builds for riscv64-linux-gnu; the project is for rpi4", target=find_target("rpi4"))


def test_a_board_without_an_operating_system(net: Path) -> None:
    with pytest.raises(OptionError, match="no operating system"):
        deploy(net, target=find_target("cortex-m4"))


def test_a_source_that_does_not_compile(board: Sshd, copy: Path) -> None:
    source = copy / "src" / "net.c"
    source.write_text("#error this is planted\n" + source.read_text("utf-8"), "utf-8")
    board.start()
    assert "Its folder" not in fails(copy, "does not build there .*this is planted")


def test_a_failure_may_be_looked_at(board: Sshd, copy: Path) -> None:
    (copy / "src" / "net.c").write_text("#error planted\n")
    board.start()
    line = fails(copy, "does not build there", keep=True)
    (folder,) = board.tmp.iterdir()
    assert f"Its folder there is {folder}" in line
    shutil.rmtree(folder)


def test_a_layer_that_differs(board: Sshd, copy: Path) -> None:
    golden = copy / "host" / "golden.bin"
    data = bytearray(golden.read_bytes())
    data[-1] ^= 1
    golden.write_bytes(data)
    board.start()
    last = read_facts(copy).steps[-1]["layer"]
    assert f": {last} differs" in fails(copy, "outputs of layers differ there", code=4)


def test_golden_vectors_must_be_there(copy: Path) -> None:
    (copy / "host" / "golden.bin").unlink()
    with pytest.raises(OutputError, match=r"host/golden\.bin is not there"):
        deploy(copy)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=touch broken", "a b", "pi@x\ny", "\x1b[2J"])
def test_what_is_no_host_never_reaches_ssh(board: Sshd, net: Path, host: str) -> None:
    wrapper = board.near / "ssh"
    wrapper.write_text(f"#!/bin/sh\ntouch '{board.folder}/run'\n")
    with pytest.raises(OptionError, match="is not a host") as caught:
        probe_board(host)
    assert str(caught.value).isprintable()
    assert not (board.folder / "run").exists()


def test_no_ssh(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BuildError, match="ssh cannot be run"):
        deploy(net)


def test_a_host_that_is_no_shell(board: Sshd, net: Path) -> None:
    (board.folder / "authorized").write_text(
        f'command="echo go away >&2; exit 7" {(board.folder / "user.pub").read_text()}'
    )
    board.start()
    fails(net, r"cannot be reached \(go away\)")


def test_what_says_that_all_is_well(board: Sshd, net: Path) -> None:
    (board.near / "ssh").write_text("#!/bin/sh\n")
    fails(net, r"cannot be reached \(nothing was said\)")


# --- which target it is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("core", "machine", "mib", "isas", "target"),
    [
        ("cortex-a72", "aarch64-linux-gnu", 3700, ("generic", "neon"), "rpi4"),
        ("cortex-a72", "arm-linux-gnueabihf", 1800, ("generic",), "rpi4-32"),
        ("cortex-a76", "aarch64-linux-gnu", 7900, ("generic", "neon", "neondot"), "rpi5"),
        ("cortex-a53", "aarch64-linux-gnu", 416, ("generic", "neon"), "rpi-zero2"),
        ("cortex-a53", "aarch64-linux-gnu", 906, ("generic", "neon"), "rpi3"),
        ("cortex-a53", "arm-linux-gnueabihf", 906, ("generic",), "rpi3-32"),
        ("cortex-a76", "arm-linux-gnueabihf", 7900, ("generic",), "rpi4-32"),
        ("cortex-a7", "arm-linux-gnueabihf", 920, ("generic",), "rpi2"),
        ("arm1176jzf-s", "arm-linux-gnueabihf", 430, ("generic", "simd32"), "rpi-zero"),
        (None, "aarch64-linux-gnu", 7900, ("generic", "neon", "neondot"), "rpi5"),
        (None, "x86_64-linux-gnu", 7900, ("generic", "popcnt", "avx2"), "x86-64-v3"),
        (None, "riscv64-linux-gnu", 7900, ("generic",), "generic"),
        (None, "x86_64-linux-gnu", 7900, ISAS[:1], "generic"),
    ],
)
def test_a_board_s_target(
    core: str | None, machine: str, mib: int, isas: tuple[str, ...], target: str
) -> None:
    board = Board(
        cpu="?", core=core, machine=machine, kernel="Linux", cpus=4, memory_bytes=mib << 20,
        isas=isas,
    )  # fmt: skip
    assert match_target(board).name == target
