# SPDX-License-Identifier: 0BSD
"""The output folder: refused early when it cannot be used, and there all at once when the work is
done.
"""

from __future__ import annotations

import fcntl
import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bdcc.errors import OutputError

MANIFEST = "manifest.txt"
MARK = "bdcc-staging"
MADE = ("build", "selftest")  # what the project's Makefile makes


def listed_files(project: Path) -> frozenset[str]:
    """The files that a project's manifest names, relative to it; empty without a manifest."""
    try:
        lines = (project / MANIFEST).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(line.split()[-1] for line in lines if line and not line.startswith("#"))


def write_manifest(project: Path) -> None:
    """Names every file of the project but the manifest, one a line; nothing under build/."""
    names = sorted(
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if path.is_file() and path.relative_to(project).parts[0] != "build"
    )
    (project / MANIFEST).write_text("".join(f"{n}\n" for n in names if n != MANIFEST), "utf-8")


def check_output(output: Path, *, force: bool) -> None:
    """Raises OutputError unless `output` is absent, an empty folder, or (with force) holds only
    what bdcc wrote.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise OutputError("is a file, not a folder", layer=str(output))
    found = sorted(output.rglob("*"))
    if not found:
        return
    if not force:
        raise OutputError(
            "the folder is not empty",
            layer=str(output),
            hint="Add --force to replace a project there",
        )
    listed = listed_files(output)
    for path in found:
        name = path.relative_to(output)
        if name.parts[0] in MADE or (path.is_dir() and not path.is_symlink()):
            continue
        if name.as_posix() not in listed | {MANIFEST} or not listed:
            raise OutputError(
                f"'{name}' was not written by bdcc, so --force leaves the folder alone",
                layer=str(output),
                hint="Move it away, or choose another folder",
            )


@contextmanager
def staged(output: Path, *, force: bool) -> Iterator[Path]:
    """A folder beside `output` that takes its place, by a rename, when the block ends without an
    exception.

    Raises OutputError before the block when the place cannot be used. Afterwards nothing else is
    left behind.
    """
    check_output(output, force=force)
    output = output.resolve()
    made = _make_parents(output.parent)
    _sweep(output)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        _remove_empty(made)
        raise OutputError(f"cannot be written ({error.strerror})", layer=str(output)) from None
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 is for secrets
        with _marked(folder):
            project = folder / "project"  # no name of the user's beside bdcc's own
            project.mkdir()
            yield project
            check_output(output, force=force)  # it may have been filled meanwhile
            _put_in_place(project, output, folder / "replaced")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(made)


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Marks a staging folder as bdcc's, and as in use for as long as this process lives."""
    part = folder / f"{MARK}.part"
    with part.open("w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        part.rename(folder / MARK)  # locked before anyone can see it
        yield


def _sweep(output: Path) -> None:
    """Removes what killed compilations to the same place have left; folders that bdcc has not
    marked, and those of a living process, stay.
    """
    for mark in output.parent.glob(f".{glob.escape(output.name)}.*/{MARK}"):
        try:
            with mark.open() as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)
        except OSError:  # a living one works in it, or it has just gone
            continue


def _put_in_place(project: Path, output: Path, old: Path) -> None:
    if output.exists():
        output.rename(old)
    try:
        project.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise


def _make_parents(folder: Path) -> list[Path]:
    """The folders that had to be made, innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise OutputError(f"cannot be written ({error.strerror})", layer=str(folder)) from None
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it holds the output now, or was never made
            return
