# SPDX-License-Identifier: 0BSD
"""Build an emitted project with its own Makefile: what users link is what is verified."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from bdcc.errors import BuildError
from bdcc.files import temporary_folder
from bdcc.host.facts import read_facts
from bdcc.host.tools import Ran, run_tool

JOBS = 2
BUILD_S = 1800  # for a whole project, on a slow board
COMPILE_S = 120  # for a program of one file
RUN_S = 300  # for such a program
USERS = ("CC", "AR", "CFLAGS", "CPPFLAGS", "LDFLAGS")  # variables that the user's environment sets
MAKES_OWN = re.compile("(GNU)?MAKE.*|MFLAGS|[VG]PATH")
VARIABLE = re.compile(r"\$[({]([A-Za-z_]\w*)")


def build(
    project: Path,
    *,
    make_args: Sequence[str] = (),
    cc: str | None = None,
    passing: bool = False,
    threads: bool = False,
    seconds: float = BUILD_S,
) -> Path:
    """Runs the project's `make` and returns the shared library; when it is up to date, at once.

    make_args: variables and targets for make, e.g. "CFLAGS=-O0"; cc: the C compiler; passing: the
    folder will be gone after a failure, so nobody is sent there; threads: the library with
    `<m>_run_mt`, in a folder of its own beside the plain one; seconds: that it may take. Raises
    BuildError with the first line that tells of an error, OutputError if there is no project.
    """
    facts = read_facts(project)
    built = Path("build", "threads" if threads else "", f"lib{facts.name}.so")
    compiler = () if cc is None else (f"CC={cc}",)
    threaded = ("THREADS=1", f"BUILD={built.parent}", str(built)) if threads else ()
    ran = run_make(project, (*compiler, *threaded, *make_args), seconds=seconds)
    if ran.refused is not None:
        raise BuildError(
            f"make cannot be run ({ran.problem})", hint="Install make and a C compiler"
        )
    if ran.problem is not None and passing:
        raise BuildError(
            f"the C compiler '{cc or _compiler()}' does not build the project ({ran.problem})",
            hint="Name another by the environment variable CC; make takes CFLAGS and LDFLAGS too",
        )
    if ran.problem is not None:
        raise BuildError(
            ran.problem,
            layer=str(project),
            hint=f"Run {shlex.join(['make', '-C', str(project.absolute())])} to see all of it",
        )
    library = project / built
    if not library.is_file():
        raise BuildError(f"make has not built {library.name}", layer=str(project))
    return library


def run_make(
    project: Path,
    arguments: Sequence[str],
    *,
    kept: Collection[str] = USERS,
    seconds: float = BUILD_S,
) -> Ran:
    """Runs `make` in the project. kept: the variables of its Makefile that the environment may set.

    Whatever else the Makefile reads has the value that the Makefile or `arguments` give it, however
    the environment calls its own variables; and a make above us (`make test`) hands down neither
    its options nor pieces of its job server.
    """
    try:
        makefile = (project / "Makefile").read_text("utf-8", errors="replace")
    except OSError:  # make says it
        makefile = ""
    hidden = set(VARIABLE.findall(makefile)) - set(kept)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not MAKES_OWN.fullmatch(name) and (name != "CC" or value.strip())
    }
    # Absolute, for make takes a folder's name of ~ for a home; and named, for a GNUmakefile that
    # somebody has put there would go before ours.
    command = ["make", "-C", str(project.absolute()), "-f", "Makefile", f"-j{JOBS}", *arguments]
    return run_tool(command, seconds=seconds, environment=environment)


def _compiler() -> str:
    """The one that a project's make takes when nobody names another."""
    return os.environ.get("CC", "").strip() or "cc"


def check_compiler(*, seconds: float = COMPILE_S) -> None:
    """Compiles one line with the compiler that make will take, and asks make for its version: a
    missing or broken one is found before hours of work, not behind them. Raises BuildError.
    """
    with temporary_folder() as folder:
        source = folder / "probe.c"
        source.write_text("int main(void) { return 0; }\n")
        compile_program(source, folder / "probe", arguments=["-std=c11"], seconds=seconds)
    ran = run_tool(["make", "--version"], seconds=seconds)
    problem = ran.problem
    if problem is None and not ran.out.startswith("GNU Make"):
        problem = "it is not GNU make"
    if problem is not None:
        raise BuildError(f"make does not work ({problem})", hint="Install GNU make")


def compile_program(
    source: Path, program: Path, *, arguments: Sequence[str] = (), seconds: float = COMPILE_S
) -> None:
    """Compiles a program of one file, and of objects and libraries among `arguments`, with the
    compiler that make takes. All paths are absolute: the compiler works in the program's folder,
    where it is as little at home as in a project's. Raises BuildError.
    """
    compiler = _compiler()
    try:
        words = shlex.split(compiler)
    except ValueError as error:  # quotes that do not match
        problem: str | None = str(error)
    else:
        command = [*words, str(source), *arguments, "-o", str(program)]
        problem = run_tool(command, seconds=seconds, folder=program.parent).problem
        if problem is None and not program.is_file():
            problem = "it has made no program"
    if problem is not None:
        raise BuildError(
            f"the C compiler '{compiler}' does not work ({problem})",
            hint="Install one, or name it by the environment variable CC",
        )


def run_program(program: Path, *arguments: str, seconds: float = RUN_S) -> Ran:
    """Runs what `compile_program` has made."""
    return run_tool([str(program), *arguments], seconds=seconds)
