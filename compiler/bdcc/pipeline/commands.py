# SPDX-License-Identifier: 0BSD
"""The command line that stands for options."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from bdcc.pipeline.options import CompileOptions

NOT_SHOWN = ("output", "force", "workers", "cache", "resume")  # of no effect on the result
FLAGS = {"max_drop_pp": "D", "float_only": "float", "flash_bytes": "flash", "ram_bytes": "ram"}


def compile_command(model: Path, options: CompileOptions, *, output: Path) -> str:
    """The `bdcc compile` that makes a point, for a shell."""
    return shlex.join(["bdcc", "compile", str(model), *arguments_of(options), "-o", str(output)])


def arguments_of(options: CompileOptions) -> list[str]:
    """Of the options that are not at their defaults."""
    found: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in NOT_SHOWN or value == field.default:
            continue
        found.append(f"--{FLAGS.get(field.name, field.name.replace('_', '-'))}")
        if isinstance(value, tuple):
            found.append(",".join(str(one) for one in value))
        elif value is not True:
            found.append(f"{value:g}" if isinstance(value, float) else str(value))
    return found
