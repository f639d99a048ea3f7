# SPDX-License-Identifier: 0BSD
"""Programs that never return, talk without end, die, or leave others behind."""

from __future__ import annotations

import errno
import signal
import threading
import time
from pathlib import Path

import pytest

from bdcc.errors import OutputError
from bdcc.files import temporary_folder
from bdcc.host import tools
from bdcc.host.tools import first_error, run_tool
from processes import is_gone


def shell(script: str, *, seconds: float = 20) -> tools.Ran:
    return run_tool(["sh", "-c", script], seconds=seconds)


def test_what_it_says_is_kept_apart() -> None:
    ran = shell("echo out; echo err >&2")
    assert (ran.problem, ran.refused, ran.out, ran.err) == (None, None, "out\n", "err\n")


def test_it_has_no_input_and_speaks_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert shell("cat; echo $LC_ALL").out == "C\n"


@pytest.mark.parametrize(
    "script", ["sleep 60", "exec >&- 2>&-; sleep 60", "trap '' TERM; sleep 60"]
)
def test_what_never_returns_is_stopped_with_all_it_started(tmp_path: Path, script: str) -> None:
    began = time.monotonic()
    ran = shell(f"sleep 61 & echo $! $$ >'{tmp_path}/pids'; {script}", seconds=0.5)
    assert ran.problem == "it has not ended after 0.5 seconds, and was stopped"
    assert time.monotonic() - began < 5
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


def test_what_is_stopped_may_tidy_up_first(tmp_path: Path) -> None:
    """A compiler removes its temporary files so."""
    script, file = tmp_path / "script", tmp_path / "file"
    script.write_text(f"touch '{file}'; trap \"rm '{file}'; exit\" TERM; sleep 60 & wait")
    assert shell(f"sh '{script}'; true", seconds=0.5).problem is not None
    assert list(tmp_path.iterdir()) == [script]


def test_what_it_leaves_behind_is_not_waited_for() -> None:
    began = time.monotonic()
    ran = shell("sleep 62 & echo $!")
    assert ran.problem is None
    assert time.monotonic() - began < 5
    assert is_gone(int(ran.out))


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "pid"

    def interrupt() -> None:
        while not (marker.exists() and marker.read_text()):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            shell(f"echo $$ >'{marker}'; sleep 63")
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert is_gone(int(marker.read_text()))


def test_megabytes_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "KEPT_BYTES", 1 << 16)
    ran = shell("head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 1")
    assert (len(ran.out), len(ran.err)) == (1 << 16, 1 << 16)
    assert ran.problem is not None
    assert len(ran.problem) <= tools.SHOWN


def test_what_talks_without_end_is_stopped() -> None:
    ran = shell("cat /dev/urandom", seconds=0.5)
    assert ran.problem is not None
    assert "was stopped" in ran.problem
    assert len(ran.out.encode("utf-8", "replace")) <= 3 * tools.KEPT_BYTES


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "it ended with status 3, saying nothing"),
        ("kill -SEGV $$", "it was ended by SIGSEGV"),
        ("kill -KILL $$", "it was ended by SIGKILL"),
        ("echo x.c:1: error: planted >&2; echo more; exit 1", "x.c:1: error: planted"),
        ("echo cc -c error.c; echo why >&2; echo 'make: *** [x] Error 1' >&2; exit 2",
         "cc -c error.c"),
        ("echo why >&2; exit 2", "why"),
        ("printf '\\377\\376\\n'; exit 2", "\ufffd\ufffd"),
    ],
)  # fmt: skip
def test_why_it_failed(script: str, problem: str) -> None:
    assert shell(script).problem == problem


def test_what_cannot_be_run(tmp_path: Path) -> None:
    for command, why in (
        (["no-such-program"], errno.ENOENT),
        ([str(tmp_path)], errno.EACCES),
        (["sh\0"], errno.EINVAL),
        (["sh", "x" * (1 << 22)], errno.E2BIG),
    ):
        ran = run_tool(command, seconds=5)
        assert ran.refused == why
        assert ran.problem
    text = tmp_path / "text"
    text.write_bytes(b"\x7fELF nothing")
    text.chmod(0o755)
    assert run_tool([str(text)], seconds=5).refused == errno.ENOEXEC


def test_the_first_error_of_several_texts() -> None:
    assert first_error("", "") == ""
    assert first_error("a\nb\n", "c\n") == "b"
    assert first_error("a\nmake: *** [all] Error 2", "x: error: y") == "x: error: y"
    assert first_error("make: *** [all] Error 2", "c") == "make: *** [all] Error 2"


def test_a_temporary_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.name.startswith("bdcc-")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OutputError, match="cannot be written"), temporary_folder():
        pass


def test_descriptors_are_closed() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for script in ("true", "sleep 9"):
        shell(script, seconds=0.2)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
