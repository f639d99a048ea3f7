# SPDX-License-Identifier: 0BSD
"""The warnings that all C here is free of, as errors; some are gcc's alone."""

from __future__ import annotations

_EVERY = "-Wall -Wextra -Wconversion -Wpedantic -Wredundant-decls -Wshadow -Werror"


def strict(compiler: str) -> list[str]:
    """Flags for a compiler by its name or path."""
    return [*_EVERY.split(), *(() if "clang" in compiler else ("-Wduplicated-cond",))]
