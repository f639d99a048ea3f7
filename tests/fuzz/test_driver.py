# SPDX-License-Identifier: 0BSD
"""The driver finds what it is there to find."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

from bdcc.errors import BdccError
from fuzz.driver import run_mutants


def refuse() -> None:
    raise BdccError("is damaged", layer="file\nname")


def spin() -> None:
    while True:
        pass


def fill() -> None:
    np.ones(1 << 28, np.uint8)


def test_results_and_refusals_are_fine() -> None:
    assert run_mutants([("returns", lambda: 1), ("refuses", refuse)]) == []


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (lambda: {}["missing"], "KeyError: 'missing'"),
        (lambda: time.sleep(60), "took more than 0.2 s"),
        (spin, "took more than 0.2 s"),
        (fill, "MemoryError"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended by SIGKILL"),
        (lambda: os._exit(0), "ended the process"),
        (lambda: exec("raise SystemExit(0)"), "SystemExit"),
    ],
    ids=["raises", "sleeps", "spins", "fills", "dies", "leaves", "exits"],
)
def test_all_else_is_found(case: Callable[[], object], what: str) -> None:
    found = run_mutants([("before", refuse), ("this", case)], seconds=0.2, memory_bytes=1 << 26)
    assert [finding.case for finding in found] == ["this"]
    assert what in found[0].what
