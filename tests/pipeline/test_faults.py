# SPDX-License-Identifier: 0BSD
"""Disks that are full, folders that cannot be replaced, kills and hang-ups: one line, nothing left,
and nothing lost.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained_network import Trained, options_for

import bdcc
from bdcc import cli
from bdcc.errors import BuildError, MismatchError
from bdcc.pipeline import compile as story
from bdcc.pipeline import tables

BDCC = [sys.executable, "-c", "from bdcc.cli import main; main()"]
QUICK = ("--q", "4", "--bases", "2")
SEARCHED = ("--D", "40", "--bases", "2", "--limit", "60", "--decompose", "plain")
DROPPED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # root without its privileges
Shell = Callable[..., "Outcome"]


class Outcome:
    """Of a `bdcc compile -o OUT` in a shell of its own. files: of OUT; beside: what its parent
    holds, and temporary: what the folder of temporary files does, when all is over.
    """

    def __init__(self, folder: Path) -> None:
        self.code = int((folder / "code").read_text())
        self.err = (folder / "err").read_text()
        self.files = content_of(folder / "copy")
        self.beside = (folder / "beside").read_text().split()
        self.temporary = sorted(p.name for p in (folder / "tmp").iterdir())

    def check_refusal(self, message: str) -> None:
        assert re.fullmatch(rf"bdcc: .*{message}.*\.\n", self.err), self.err
        assert self.code == 1
        assert self.temporary == []


def content_of(project: Path) -> dict[str, bytes]:
    """The files of a project by name; the times differ, and build/ is the user's."""
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file() and path.name != "timings.json"
    }


@pytest.fixture(scope="session")
def arguments(examples: Path) -> tuple[str, ...]:
    """`compile` of the digits that are shipped."""
    digits = examples / "digits"
    pictures = (f"--{part}={digits}_{part}.npz" for part in ("calib", "holdout"))
    data = f"--data={digits}_search.npz"
    return ("compile", f"{digits}.onnx", data, *pictures, "--preset", "unit", "--workers", "1")


@pytest.fixture(scope="session")
def whole(
    arguments: tuple[str, ...], quick_builds: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What QUICK makes where nothing is wrong."""
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run([*BDCC, *arguments, *QUICK, "-o", out], check=True, capture_output=True)
    return content_of(out)


@pytest.fixture(scope="session")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command that runs another with mounts of its own."""
    folder = tmp_path_factory.mktemp("mount")
    for command in (("unshare", "-m"), ("unshare", "-rm")):
        mount = (*command, "mount", "-t", "tmpfs", "none", str(folder))
        if shutil.which("unshare") and subprocess.run(mount, check=False).returncode == 0:
            return command
    pytest.skip("neither root nor a user namespace may mount here")


@pytest.fixture
def shell(
    namespace: tuple[str, ...], arguments: tuple[str, ...], quick_builds: None, tmp_path: Path
) -> Shell:
    """shell("mount ... out", "out", *options): compiles to it, in tmp_path, with that done before.
    There are out/, img and tmp/, which is TMPDIR.
    """

    def run(before: str, output: str, *options: str, under: tuple[str, ...] = ()) -> Outcome:
        for name in ("out", "tmp"):
            (tmp_path / name).mkdir(exist_ok=True)
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        command = [*under, *BDCC, *arguments, *QUICK, "-o", output, *options]
        script = f"""
            set -e
            {before}
            set +e
            TMPDIR=$PWD/tmp {shlex.join(command)} 2>err >shown
            echo $? >code
            ls -A "$(dirname {output})" 2>/dev/null | grep -vxE 'err|shown|code|beside|tmp' >beside
            test ! -d {output} || cp -r {output} copy
            find out -name 'bdcc-*' -o -name '.bdcc-*' >>beside
        """
        done = subprocess.run(
            [*namespace, "sh", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return Outcome(tmp_path)

    return run


# --- places ---------------------------------------------------------------------------------------


def test_a_mount_point_is_filled(shell: Shell, whole: dict[str, bytes]) -> None:
    """As by `docker run -v ...:/out`; with noexec, where no library can be loaded, too."""
    found = shell("mount -t tmpfs -o noexec none out", "out")
    assert (found.code, found.err, found.files) == (0, "", whole)
    assert found.beside == ["out"]
    assert found.temporary == []


@pytest.mark.slow
def test_a_project_at_a_mount_point_is_replaced(shell: Shell, whole: dict[str, bytes]) -> None:
    found = shell("mkdir from; mount --bind from out", "out")
    assert (found.code, found.files) == (0, whole)
    shell("mount --bind from out", "out").check_refusal("not empty")
    found = shell("mount --bind from out", "out", "--force")
    assert (found.code, found.err, found.files) == (0, "", whole)
    shell("mount --bind from out; touch out/thesis.txt", "out", "--force").check_refusal("thesis")


@pytest.mark.slow
def test_a_folder_below_a_noexec_mount_is_filled(shell: Shell, whole: dict[str, bytes]) -> None:
    found = shell("mount -t tmpfs -o noexec none out", "out/deep/er")
    assert (found.code, found.err, found.files) == (0, "", whole)
    assert found.beside == ["er"]


def test_nowhere_to_run_a_program_is_told(shell: Shell) -> None:
    names = ("out", "tmp", "cache")
    noexec = [f"mkdir -p {name}; mount -t tmpfs -o noexec none {name}" for name in names]
    found = shell("; ".join((*noexec, "export BDCC_CACHE=$PWD/cache")), "out")
    found.check_refusal("out: no program can be run there.*Set TMPDIR")


@pytest.mark.parametrize("mode", ["1777", pytest.param("0755", marks=pytest.mark.slow)])
def test_a_folder_in_one_of_another_user_is_filled(
    shell: Shell, whole: dict[str, bytes], tmp_path: Path, mode: str
) -> None:
    """It cannot be moved, nor anything be made beside it (0755)."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    give = f"mkdir -p par/out; chmod {mode} par; chmod 777 par/out; chown 65534 par par/out"
    found = shell(give, "par/out", under=DROPPED)
    assert (found.code, found.err, found.files) == (0, "", whole)
    assert found.beside == ["out"]
    assert (tmp_path / "par").stat().st_uid == 65534


@pytest.mark.parametrize(
    ("before", "output", "message"),
    [
        ("mount -t tmpfs -o ro none out", "out", "out: cannot be written .Read-only file system"),
        ("mount -t tmpfs -o ro none out", "out/deep", "out: cannot be written .Read-only"),
        ("mkdir no; chown 65534 no", "no/new", "no: cannot be written .Permission denied"),
        ("mkdir -p no/out; chown 65534 no no/out", "no/out", "no/out: cannot be written .Permis"),
        ("mkdir no; chown 65534 no; chmod 0 no", "no", "no: cannot be written .Permission denied"),
        ("mkdir no; chown 65534 no; chmod 0 no", "no/new", "cannot be written .Permission denied"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_at_once(
    shell: Shell, before: str, output: str, message: str
) -> None:
    if "chown" in before and os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    began = time.monotonic()
    found = shell(before, output, under=DROPPED)
    found.check_refusal(message)
    assert time.monotonic() - began < 60
    assert not found.files


def test_force_leaves_a_folder_alone_that_it_could_not_remove(
    shell: Shell, whole: dict[str, bytes], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    for name, content in whole.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    hidden = tmp_path / "out" / "src" / "sub"
    hidden.mkdir()
    (hidden / "precious").write_text("x")
    hide = "chown 65534 out/src/sub; chmod 0 out/src/sub"
    shell(hide, "out", "--force", under=DROPPED).check_refusal("'src/sub' was not written by bdcc")
    assert (hidden / "precious").read_text() == "x"


# --- full disks -----------------------------------------------------------------------------------

# From the first byte to the last: the sources, the oracle, the objects, the library.
SIZES = (4, 40, 200, 500, 800, 1200, 1700, 2200)
SOME = (40, 1200)


@pytest.mark.parametrize(
    "kilobytes", [n if n in SOME else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
@pytest.mark.parametrize("output", [pytest.param("out", marks=pytest.mark.slow), "out/deep/er"])
def test_a_full_disk_is_one_line_and_nothing_is_left(
    shell: Shell, whole: dict[str, bytes], kilobytes: int, output: str
) -> None:
    found = shell(f"mount -t tmpfs -o size={kilobytes}k none out", output)
    if found.code:
        found.check_refusal(
            r"out(/deep)?: the disk is full \(\d+ bytes are free there\)\. Make room"
        )
        assert not found.files
        assert "er" not in found.beside
    else:
        assert found.files == whole
    assert kilobytes > 1500 or found.code == 1


@pytest.mark.parametrize(
    "kilobytes", [900, *(pytest.param(n, marks=pytest.mark.slow) for n in (60, 300))]
)
def test_a_full_ext4_is_one_line_and_nothing_is_left(
    shell: Shell, tool: Callable[[str], str], kilobytes: int
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount an image")
    before = f"""
        truncate -s 4M img
        {tool("mkfs.ext4")} -q -O ^has_journal img
        mount -o loop img out
        fallocate -l $(( $(stat -f -c '%a * %S' out) - {kilobytes * 1024} )) out/fill
    """
    found = shell(before, "out/deep")
    found.check_refusal(r"out(/deep)?: the disk is full \(\d+ bytes are free there\)\. Make room")
    assert found.beside == ["fill", "lost+found"]


def test_a_full_folder_of_temporary_files_is_one_line(shell: Shell) -> None:
    found = shell("mount -t tmpfs -o size=100k none tmp", "out/deep")
    found.check_refusal(r"tmp: the disk is full .*TMPDIR=DIR")
    assert found.beside == []


@pytest.mark.parametrize("option", ["--help", "targets", "targets --json"])
def test_a_full_standard_output_is_one_line(option: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*BDCC, *option.split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == ("bdcc: standard output: cannot be written (No space left on device).\n")


def test_full_standard_streams_do_not_stop_the_work(
    arguments: tuple[str, ...], whole: dict[str, bytes], tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*BDCC, *arguments, *QUICK, "--resume", "-o", tmp_path / "out"]
        done = subprocess.run(command, stdout=full, stderr=full, check=False)
    assert done.returncode == 1
    assert content_of(tmp_path / "out") == whole


# --- kills ----------------------------------------------------------------------------------------


class Running:
    """A compilation in tmp_path; its TMPDIR is tmp, and the cache its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "tmp").mkdir(exist_ok=True)
        self.folder = folder
        self._process = subprocess.Popen(
            [*BDCC, *arguments],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), "BDCC_CACHE": str(folder / "cache")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_candidate(self) -> None:
        """Until something is being built beside OUT."""
        deadline = time.monotonic() + 120
        while not list(self.folder.glob(".bdcc-*.tmp/candidates/0/Makefile")):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        err = self._process.communicate()[1]
        return self._process.returncode, err

    def left(self) -> list[str]:
        """What is there beside OUT and the cache."""
        names = [p.name for place in (".", "tmp") for p in (self.folder / place).iterdir()]
        return sorted(set(names) - {"tmp", "cache", "out"})


@contextmanager
def inherited(number: signal.Signals, handler: Any) -> Iterator[None]:
    """How processes that are started meanwhile take the signal: only SIG_IGN is handed on."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_a_signal_ends_as_ctrl_c_does(
    arguments: tuple[str, ...], tmp_path: Path, quick_builds: None, number: signal.Signals
) -> None:
    with inherited(number, signal.default_int_handler):  # not as in the background of a script
        run = Running(tmp_path, *arguments, *QUICK, "--decompose", "plain", "-o", "out")
    run.wait_for_candidate()
    run.send(number)
    code, err = run.end()
    assert code == 130
    said, again = err.strip().splitlines()
    assert said == "bdcc: interrupted; what was finished is kept."
    assert again.startswith("Go on with: bdcc compile ")
    assert again.endswith("-o out --resume")
    assert run.left() == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_does_not_matter(
    arguments: tuple[str, ...], tmp_path: Path, quick_builds: None
) -> None:
    with inherited(signal.SIGHUP, signal.SIG_IGN):
        run = Running(tmp_path, *arguments, *QUICK, "--decompose", "plain", "-o", "out")
    run.wait_for_candidate()
    run.send(signal.SIGHUP)
    assert run.end() == (0, "")
    assert (tmp_path / "out" / "manifest.txt").is_file()


def test_two_at_once_to_one_place_the_second_is_refused_early(
    arguments: tuple[str, ...], whole: dict[str, bytes], tmp_path: Path
) -> None:
    first = Running(tmp_path, *arguments, *QUICK, "-o", "out")
    first.wait_for_candidate()
    second = Running(tmp_path, *arguments, *QUICK, "-o", "out", "--force")
    code, err = second.end()
    assert (code, err.count("\n")) == (1, 1)
    assert "out: another bdcc is at work there" in err
    assert first.end() == (0, "")
    assert content_of(tmp_path / "out") == whole
    assert first.left() == []


@pytest.fixture(scope="module")
def searched(
    arguments: tuple[str, ...], quick_builds: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], float]:
    """What SEARCHED makes without a cache, and how long that takes."""
    folder = tmp_path_factory.mktemp("searched")
    began = time.monotonic()
    run = Running(folder, *arguments, *SEARCHED, "-o", "out", "--cache", "off")
    assert run.end()[0] == 0
    assert run.left() == []
    return content_of(folder / "out"), time.monotonic() - began


@pytest.mark.parametrize(
    "group", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 12))]
)
def test_a_killed_run_goes_on_where_it_was_and_nothing_is_left(
    arguments: tuple[str, ...],
    searched: tuple[dict[str, bytes], float],
    tmp_path: Path,
    group: int,
) -> None:
    """Five kills at any time, then all of it."""
    whole, seconds = searched
    command = (*arguments, *SEARCHED, "-o", "out", "--resume")
    for part in np.random.default_rng(group).uniform(0.05, 0.9, 5):
        run = Running(tmp_path, *command)
        time.sleep(part * seconds)
        run.send(signal.SIGKILL)
        code, err = run.end()
        assert code in (0, -signal.SIGKILL)
        assert "Traceback" not in err
        assert code or (tmp_path / "out").exists()
        if (tmp_path / "out").exists():  # quicker than thought: all of it, or nothing
            assert content_of(tmp_path / "out") == whole
            shutil.rmtree(tmp_path / "out")
    run = Running(tmp_path, *command)
    code, err = run.end()
    assert code == 0
    assert [line for line in err.splitlines() if not line.startswith("found finished: ")] == []
    assert content_of(tmp_path / "out") == whole
    assert run.left() == []


# --- what fails behind the search -----------------------------------------------------------------


@pytest.fixture
def compile_here(trained: Trained, tmp_path: Path) -> Callable[[], bdcc.CompileResult]:
    """Compiles to tmp_path/out."""
    given = options_for(trained, tmp_path / "out", q=(4,), bases=(2,))
    return lambda: bdcc.compile_model(trained.model, given)


def fail(error: BaseException) -> Callable[..., object]:
    def raise_it(*_: object, **__: object) -> object:
        raise error

    return raise_it


def test_a_page_that_cannot_be_drawn_is_a_warning(
    compile_here: Callable[[], bdcc.CompileResult],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(story, "render_html", fail(ValueError("$$\nParseException")))
    result = compile_here()
    (warning,) = (text for text in result.report.warnings if "report.html" in text)
    assert warning == (r"report.html could not be drawn (ValueError: $$); everything else is there")
    assert not (tmp_path / "out" / "report.html").exists()
    assert warning in (tmp_path / "out" / "report.json").read_text()
    assert "report.html" not in (tmp_path / "out" / "manifest.txt").read_text()


@pytest.mark.parametrize("error", [BuildError("no more make"), ZeroDivisionError()])
def test_a_verified_project_is_in_place_whatever_timing_it_says(
    compile_here: Callable[[], bdcc.CompileResult],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
) -> None:
    monkeypatch.setattr(story, "bench", fail(error))
    with pytest.raises(type(error)):
        compile_here()
    listed = (tmp_path / "out" / "manifest.txt").read_text().split()
    assert "report.json" in listed
    assert "timings.json" not in listed
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_project_that_does_not_agree_is_kept_elsewhere(
    compile_here: Callable[[], bdcc.CompileResult],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(story, "verify", fail(MismatchError("a bit differs")))
    with pytest.raises(MismatchError, match=r"a bit differs\. The project is kept in") as caught:
        compile_here()
    (kept,) = tmp_path.iterdir()
    assert str(kept) in str(caught.value)
    assert (kept / "report.json").is_file()


def test_a_report_that_cannot_be_made_does_not_lose_the_project(
    compile_here: Callable[[], bdcc.CompileResult],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(story, "make_report", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError) as caught:
        compile_here()
    (kept,) = tmp_path.iterdir()
    assert caught.value.__notes__ == [f"The project is kept in {kept}"]
    assert (kept / "Makefile").is_file()
    assert (kept / "host" / "oracle.npz").is_file()


# --- -o FILE --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(trained: Trained, quick_builds: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project."""
    out = tmp_path_factory.mktemp("made") / "out"
    bdcc.compile_model(trained.model, options_for(trained, out, q=(4,), bases=(2,)))
    return out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """run(arguments...) -> exit code and stderr, in this process."""

    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            cli.main([str(argument) for argument in arguments])
        return int(left.value.code or 0), capsys.readouterr().err

    return call


def places(folder: Path) -> Iterator[tuple[Path, str]]:
    """Where no file can be written, and what is said of it."""
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "device").symlink_to("/dev/null")
    yield Path("/dev/null"), "is no regular file"
    yield folder / "device", "is no regular file"
    yield folder / "pipe", "is no regular file"
    yield folder / "loop", "cannot be written"
    yield folder, "is a folder"
    yield folder / "pipe" / "x", "cannot be written"
    yield folder / ("n" * 256), "cannot be written"


def _written(place: Path) -> tuple[int, ...]:
    """What a write changes; following a link changes its time of access."""
    found = place.lstat()
    return found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@pytest.mark.parametrize("command", ["tune -o", "verify --dump", "deploy nowhere -o"])
def test_only_regular_files_are_written_and_others_refused_before_the_work(
    run: Callable[..., tuple[int, str]],
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(tables, "tune", fail(AssertionError()))
    monkeypatch.setattr("bdcc.host.verify.verify", fail(AssertionError()))
    monkeypatch.setattr("bdcc.pipeline.deploy.run_there", fail(AssertionError()))
    for place, message in places(tmp_path):
        *words, option = command.split()
        before = _written(place) if place.name != "x" and len(place.name) < 256 else None
        code, err = run(*words, made, option, place)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
        if before is not None:
            assert _written(place) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device", "loop", "pipe"]


def test_a_dump_behind_a_link_replaces_what_it_leads_to(
    run: Callable[..., tuple[int, str]], made: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").write_text("former")
    assert run("verify", made, "--dump", tmp_path / "link") == (0, "")
    assert (tmp_path / "link").is_symlink()
    with np.load(tmp_path / "target") as layers:
        assert len(layers.files) > 3
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_of_figures_is_refused_before_the_work(
    run: Callable[..., tuple[int, str]],
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bdcc.pipeline.timing.bench", fail(AssertionError()))
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/deep", "n" * 256):
        code, err = run("bench", made, "-o", tmp_path / place)
        assert (code, err.count("\n")) == (1, 1)
        assert "cannot be written" in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_sweep_is_refused_before_the_work(
    run: Callable[..., tuple[int, str]],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bdcc.pipeline.sweep.compile_model", fail(AssertionError()))
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    for place in ("file", "file/deep", "n" * 256, "loop"):
        code, err = run(
            *("sweep", trained.model, *trained.data, "--metric", "top1", "--D", "40"),
            *("-o", tmp_path / place),
        )
        assert (code, err.count("\n")) == (1, 1), err
        assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


@pytest.mark.parametrize("command", ["compile", "sweep"])
def test_a_cache_in_the_output_is_refused_before_the_work(
    run: Callable[..., tuple[int, str]], trained: Trained, tmp_path: Path, command: str
) -> None:
    code, err = run(
        *(command, trained.model, *trained.data, "--metric", "top1", "--D", "40"),
        *("-o", tmp_path / "out", "--cache", tmp_path / "out" / "cache"),
    )
    assert (code, err.count("\n")) == (1, 1), err
    assert "cannot lie in the output folder" in err
    assert list(tmp_path.iterdir()) == []
