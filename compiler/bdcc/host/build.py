# SPDX-License-Identifier: 0BSD
"""Build an emitted project with its own Makefile: what users link is what is verified."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bdcc.errors import BuildError
from bdcc.files import temporary_folder
from bdcc.host.facts import read_facts

JOBS = 2
ERROR_LINE = re.compile(
    r"(?i)\b(fatal )?error\b|undefined reference|no such file|no space left|not found|\*\*\*"
)


def build(
    project: Path,
    *,
    make_args: Sequence[str] = (),
    cc: str | None = None,
    passing: bool = False,
    threads: bool = False,
) -> Path:
    """Runs the project's `make` and returns the shared library; when it is up to date, at once.

    make_args: variables and targets for make, e.g. "CFLAGS=-O0"; cc: the C compiler; passing: the
    folder will be gone after a failure, so nobody is sent there; threads: the library with
    `<m>_run_mt`, in a folder of its own beside the plain one. Raises BuildError with the first line
    that tells of an error, OutputError if there is no project.
    """
    facts = read_facts(project)
    built = Path("build", "threads" if threads else "", f"lib{facts.name}.so")
    compiler = () if cc is None else (f"CC={cc}",)
    threaded = ("THREADS=1", f"BUILD={built.parent}", str(built)) if threads else ()
    command = ["make", "-C", str(project), f"-j{JOBS}", *compiler, *threaded, *make_args]
    # A make above us (`make test`) must not hand down its options, nor pieces of its job server.
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")}
    try:
        done = subprocess.run(
            command,
            env={**environment, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise BuildError(
            f"make cannot be run ({error.strerror})", hint="Install make and a C compiler"
        ) from None
    if done.returncode != 0 and passing:
        raise BuildError(
            f"the C compiler '{cc or _compiler()}' does not build the project "
            f"({first_error(done.stdout)})",
            hint="Name another by the environment variable CC; make takes CFLAGS and LDFLAGS too",
        )
    if done.returncode != 0:
        raise BuildError(
            first_error(done.stdout),
            layer=str(project),
            hint=f"Run 'make -C {project}' to see all of it",
        )
    library = project / built
    if not library.is_file():
        raise BuildError(f"make has not built {library.name}", layer=str(project))
    return library


def _compiler() -> str:
    """The one that a project's make takes when nobody names another."""
    cross = os.environ.get("CROSS")
    return os.environ.get("CC", f"{cross}gcc" if cross else "cc")


def check_compiler() -> None:
    """Compiles one line with the compiler that make will take: a missing or broken one is found
    before hours of work, not behind them. Raises BuildError.
    """
    with temporary_folder() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("int main(void) { return 0; }\n")
        compile_program(source, Path(f"{source}.out"), arguments=["-std=c11"])


def compile_program(source: Path, program: Path, *, arguments: Sequence[str] = ()) -> None:
    """Compiles a program of one file, and of objects and libraries among `arguments`, with the
    compiler that make takes. Raises BuildError.
    """
    compiler = _compiler()
    try:
        before = [*shlex.split(compiler), str(source)]
        command = [*before, *arguments, "-o", str(program)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        problem = None if done.returncode == 0 else first_error(done.stdout + done.stderr)
    except OSError as error:
        problem = str(error.strerror)
    except ValueError as error:  # quotes that do not match
        problem = str(error)
    if problem is not None:
        raise BuildError(
            f"the C compiler '{compiler}' does not work ({problem})",
            hint="Install one, or name it by the environment variable CC",
        )


def first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    ours = [line for line in lines if not line.startswith("make")]  # its own lines say the least
    telling = (line for part in (ours, lines) for line in part if ERROR_LINE.search(line))
    return next(telling, lines[-1] if lines else "it failed without a word")
