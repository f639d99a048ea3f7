# SPDX-License-Identifier: 0BSD
"""The output folder: tried early for all that the end will need, and there all at once when the
work is done. What was finished and cannot be put there is kept, and named.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from bdcc.errors import BdccError, BuildError, MismatchError, OutputError
from bdcc.files import (
    LOST,
    TEMPORARY_HINT,
    free_bytes,
    locked_folder,
    runs_programs,
    sweep,
    temporary_folder,
    write_text,
    writing,
)

MANIFEST = "manifest.txt"
NO_SPACE = os.strerror(errno.ENOSPC)  # as compilers say it
BY_CMAKE = frozenset(
    (
        *("CMakeCache.txt", "Makefile", "build.ninja", ".ninja_deps", ".ninja_log"),
        *("cmake_install.cmake", "compile_commands.json", "install_manifest.txt"),
    )
)


def listed_files(project: Path) -> frozenset[str]:
    """The files that a project's manifest names, relative to it; empty without a manifest. Lines
    that lead out of the project, or name nothing, do not count.
    """
    try:
        lines = (project / MANIFEST).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return frozenset()
    return frozenset(
        line for line in lines if line == str(PurePosixPath(line)) and _is_inside(line)
    )


def _is_inside(line: str) -> bool:
    path = PurePosixPath(line)
    return line != "." and not path.is_absolute() and ".." not in path.parts


def write_manifest(project: Path) -> None:
    """Names every file of the project but the manifest, one a line; nothing under build/."""
    names = sorted(
        path.relative_to(project).as_posix()
        for path in project.rglob("*")
        if path.is_file() and path.relative_to(project).parts[0] != "build"
    )
    write_text(project / MANIFEST, "".join(f"{name}\n" for name in names if name != MANIFEST))


# --- what is there --------------------------------------------------------------------------------


def check_output(output: Path, *, force: bool) -> None:
    """Raises OutputError unless `output` is absent, an empty folder, or (with force) holds only
    what bdcc wrote: what manifest.txt lists, and what the project's make and CMake make of it.
    """
    with writing(output):
        if output.exists() and not output.is_dir():
            raise OutputError("is a file, not a folder", layer=str(output))
        if output.is_dir():
            _check_contents(output, force=force, shown=output)


def _check_contents(folder: Path, *, force: bool, shown: Path) -> None:
    """shown: what the folder is called in errors."""
    with os.scandir(folder) as entries:
        if next(entries, None) is None:
            return
    if not force:
        raise OutputError(
            "the folder is not empty",
            layer=str(shown),
            hint="Add --force to replace a project there",
        )
    foreign = next(_foreign(folder), None)
    if foreign is not None:
        raise OutputError(
            f"'{foreign}' was not written by bdcc, so --force leaves the folder alone",
            layer=str(shown),
            hint="Move it away, or choose another folder",
        )


def _foreign(folder: Path) -> Iterator[Path]:
    """What in the folder is not bdcc's, relative to it; subfolders that cannot be read too."""
    listed = listed_files(folder)
    ours = listed | {MANIFEST} if listed else listed
    parents = {str(parent) for name in ours for parent in PurePosixPath(name).parents}
    made = _products(listed)
    for root, subfolders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        for name in sorted((*subfolders, *files)):
            path = here / name
            if name in subfolders and not (folder / path).is_symlink():
                fine = str(path) in parents or path.parts[0] == "build"
                fine &= os.access(folder / path, os.R_OK | os.W_OK | os.X_OK)
            elif path.parts[0] == "build":
                fine = "CMakeFiles" in path.parts or re.sub(r"\.\d+$", "", name) in made
            else:
                fine = path.as_posix() in ours or (str(path) == "selftest" and "selftest" in made)
            if not fine:
                yield path


def _products(listed: frozenset[str]) -> frozenset[str]:
    """The names of files that a project's make and CMake make, in build/, without the number behind
    a library's.
    """
    paths = [PurePosixPath(name) for name in listed]
    sources = [path.stem for path in paths if path.match("src/*.c")]
    forms = (
        *("{}", "{}.o", "lib{}.a", "lib{}.so", "{}_array.h"),
        *("{}_bin2c", "{}_selftest", "{}_classify", "{}.pc", "{}-config.cmake"),
    )
    made = {form.format(source) for source in sources for form in forms}
    return BY_CMAKE | made | {"flags", "flags.now", "classify"} if sources else frozenset()


# --- how it gets there ----------------------------------------------------------------------------


@dataclass(slots=True)
class Stage:
    """Where an output is made. folder: for whatever else is built on the way, gone afterwards;
    project: the output to be, empty; finished: set when it is worth having, and then it takes its
    place even if what comes behind fails.
    """

    folder: Path
    project: Path
    finished: bool = False


@contextmanager
def staged(output: Path, *, force: bool, elsewhere: Sequence[Path] = ()) -> Iterator[Stage]:
    """A Stage whose project takes the place of `output` when the block ends without an exception:
    by a rename, or entry by entry where the folder itself has to stay (a mount point, the current
    folder, a folder in one that is not ours).

    Raises OutputError before the block when the place cannot be used, or another process makes the
    same output. Programs run in the stage; where `output` is mounted with noexec it is in the
    folder of temporary files, or one of `elsewhere`. Afterwards nothing else is left behind, but a
    finished project that could not be put in place, and one that does not agree with its oracle
    (MismatchError) or that a fault of bdcc's own came behind: they are named.
    """
    output = Path(os.path.realpath(output))
    with ExitStack() as stack:
        with writing(output):
            _sweep(output)
            check_output(output, force=force)
            stack.callback(_remove_empty, _make_parents(output.parent))
            place = _open_place(output, stack)
            folder = _open_workplace(place, elsewhere, stack)
            stage = Stage(folder=folder, project=folder / "project")
            stage.project.mkdir()
        try:
            yield stage
        except MismatchError as error:
            if not any(stage.project.iterdir()):
                raise
            kept = _keep(stage.project)
            raise MismatchError(
                error.message, layer=error.layer, hint=f"The project is kept in {kept}"
            ) from error
        except Exception as error:
            if stage.finished:
                _deliver(stage.project, place, output, force=force)
            elif isinstance(error, OSError) and error.errno in LOST:
                with writing(stage.folder):
                    raise
            elif isinstance(error, BuildError) and NO_SPACE in error.message:
                temporary = Path(tempfile.gettempdir())
                full = min(stage.folder, temporary, key=free_bytes)
                with writing(full, hint=TEMPORARY_HINT if full == temporary else None):
                    raise OSError(errno.ENOSPC, NO_SPACE) from error
            elif not isinstance(error, BdccError | OSError) and any(stage.project.iterdir()):
                error.add_note(f"The project is kept in {_keep(stage.project)}")
            raise
        _deliver(stage.project, place, output, force=force)


def _places(output: Path) -> tuple[Path, Path]:
    """Where the folder may be that an output is put together in, beside it or inside. It has one
    name for every process, so that the first is alone with it.
    """
    digest = hashlib.sha256(os.fsencode(output.name)).hexdigest()
    name = f".bdcc-{digest[:12]}.tmp"
    return output.parent / name, output / name


def _sweep(output: Path) -> None:
    """Removes what killed compilations to the same place have left. Raises OutputError if one is
    alive.
    """
    for place in _places(output):
        if not sweep(place, rescue=partial(_undo, place, output)):
            raise _taken(place, output)


def _taken(place: Path, output: Path) -> OutputError:
    return OutputError(
        f"another bdcc is at work there, in '{place}'",
        layer=str(output),
        hint="Wait for it; if none is running, remove that folder",
    )


def _open_place(output: Path, stack: ExitStack) -> Path:
    """Beside `output` if that can be moved, else inside."""
    beside, inside = _places(output)
    there = output.exists()
    if not (there and _is_stood_in(output)):
        try:
            stack.enter_context(locked_folder(beside))
        except FileExistsError:
            raise _taken(beside, output) from None
        except OSError:
            if not there:
                raise
        else:
            if not there or _can_be_moved(output, beside):
                return beside
    return stack.enter_context(locked_folder(inside))


def _is_stood_in(folder: Path) -> bool:
    """Whether the current folder, of whoever has called us too, is it or in it."""
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:
        return False


def _can_be_moved(folder: Path, other: Path) -> bool:
    """Tried without moving it: a folder never takes the place of `other`, which is not empty, but
    the system tells of that last.
    """
    probe = other / "probe"
    probe.mkdir()
    try:
        folder.rename(other)
    except OSError as error:
        return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
    finally:
        probe.rmdir()
    return False


def _open_workplace(place: Path, elsewhere: Sequence[Path], stack: ExitStack) -> Path:
    """`place`, or the first temporary folder in which programs can be run."""
    if runs_programs(place):
        return place
    for parent in (None, *elsewhere):
        folder = stack.enter_context(temporary_folder(parent))
        if runs_programs(folder):
            return folder
    raise OutputError(
        "no program can be run there, nor in the folder of temporary files (noexec)",
        layer=str(place.parent),
        hint="Set TMPDIR to a folder where programs can be run",
    )


def _deliver(project: Path, place: Path, output: Path, *, force: bool) -> None:
    """The project to its place; raises OutputError that says where it is kept otherwise."""
    try:
        with writing(output):
            shutil.rmtree(project / "build", ignore_errors=True)
            write_manifest(project)
            if project.parent != place:
                _copy(project, place / "project")
            _exchange(place / "project", output, place, force=force)
    except OutputError as error:
        kept = _keep(project)
        raise OutputError(
            error.message, layer=error.layer, hint=f"The finished project is in {kept}"
        ) from error


def _exchange(project: Path, output: Path, place: Path, *, force: bool) -> None:
    """The project to `output`, whose former contents remain in `place`; all of it or nothing."""
    old, new = place / "replaced", place / "new"
    inside = place.parent == output
    try:
        if inside:
            old.mkdir()
            _move_entries(output, old, but=place.name)
        elif output.exists():
            output.rename(old)
        if old.exists():  # it may have been filled since it was looked at
            _check_contents(old, force=force, shown=output)
        project.rename(new)
        if inside:
            _move_entries(new, output)
            old.rename(place / "done")
        else:
            if old.exists():
                shutil.copymode(old, new)
            new.rename(output)
    except BaseException:
        _undo(place, output)
        if new.exists():
            new.rename(project)
        raise


def _undo(place: Path, output: Path) -> None:
    """Puts back what an exchange that was broken off has moved away."""
    old, new = place / "replaced", place / "new"
    if place.parent == output:
        if old.is_dir():
            if new.is_dir():
                _move_entries(output, new, but=place.name)
            _move_entries(old, output)
    elif old.is_dir() and not output.exists():
        old.rename(output)


def _move_entries(source: Path, target: Path, *, but: str | None = None) -> None:
    for entry in list(source.iterdir()):
        if entry.name != but:
            entry.rename(target / entry.name)


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        copy.mkdir() if path.is_dir() else shutil.copyfile(path, copy)


def _keep(project: Path) -> Path:
    """Moves a project out of the folder that is about to be removed, and says where."""
    name = f"bdcc-finished-{secrets.token_hex(4)}"
    kept = project.parent.parent / name
    try:
        project.rename(kept)
    except OSError:
        kept = Path(tempfile.gettempdir()) / name
        with writing(kept):
            shutil.move(project, kept)
    return kept


def _make_parents(folder: Path) -> list[Path]:
    """The folders that had to be made, innermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        if isinstance(error, FileExistsError):  # what is there is no folder
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
        raise
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it holds the output now, or was never made
            folder.rmdir()
