# SPDX-License-Identifier: 0BSD
"""Targets that the user describes in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bdcc.codegen.targets import TARGETS, changes_of, find_target, target_of
from bdcc.errors import OptionError
from codegen.nets import alexnet_like, quantized, write_project

BOARD = """
like = "rpi5"
description = "a board with a Cortex-A55"
cflags = "-O2 -mcpu=cortex-a55"
cross = "/opt/board/bin/aarch64-none-linux-gnu-"
ram = 2147483648
mhz = 1800
memory_mbs = 3000
"""


def test_a_file_changes_a_target(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(BOARD)
    target, base = find_target(str(file)), find_target("rpi5")
    assert (target.name, target.like, target.cflags) == (
        "board.toml",
        "rpi5",
        "-O2 -mcpu=cortex-a55",
    )
    assert (target.ram_bytes, target.mhz, target.memory_mbs) == (1 << 31, 1800, 3000)
    assert (target.core, target.isas, target.planned_for) == (
        base.core,
        base.isas,
        base.planned_for,
    )
    write_project(quantized(alexnet_like(), bases=2, bits=3), tmp_path / "net", target=str(file))
    makefile = (tmp_path / "net" / "Makefile").read_text("utf-8")
    assert "CFLAGS ?= -O2\n" in makefile
    assert "CPU_FLAGS := -mcpu=cortex-a55\n" in makefile
    assert "planned for board.toml (aarch64)" in makefile
    toolchain = (tmp_path / "net" / "toolchain.cmake").read_text("utf-8")
    assert "set(CMAKE_C_COMPILER /opt/board/bin/aarch64-none-linux-gnu-gcc)\n" in toolchain


def test_later_commands_know_it_without_the_file(tmp_path: Path) -> None:
    file = tmp_path / "board.toml"
    file.write_text(BOARD)
    target = find_target(str(file))
    report = json.loads(json.dumps({"target": target.like, "target_changes": changes_of(target)}))
    file.unlink()
    assert target_of(report) == target
    for one in TARGETS:
        assert changes_of(one) == {}
        assert target_of({"target": one.name}) == one


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("like = rpi4", "is not TOML (Invalid value"),
        ("mhz = 1", "'like' is missing; its kernels are those of one of host, generic, "),
        ('like = "rpi9"', "like = 'rpi9' is not a target; its kernels are those of one of host, "),
        ("like = 4", "like = 4 is not a target"),
        (
            'like = "rpi4"\ncflag = "-O2"',
            "'cflag' is not one of like, description, cflags, cross, ",
        ),
        ('like = "rpi4"\nisas = ["neon"]', "'isas' is not one of like, "),
        ('like = "rpi4"\nmhz = "fast"', "mhz = 'fast' is not a whole number above 0"),
        ('like = "rpi4"\nram = true', "ram = True is not a whole number above 0"),
        ('like = "rpi4"\nflash = 0', "flash = 0 is not a whole number above 0"),
        (
            'like = "rpi4"\ncflags = "-O2 $(x)"',
            "cflags = '-O2 $(x)' is not flags of the C compiler",
        ),
        ('like = "rpi4"\ncflags = 2', "cflags = 2 is not flags of the C compiler"),
        ('like = "rpi4"\ncross = "gcc"', "cross = 'gcc' is not the prefix of its compilers, like "),
        ('like = "rpi4"\ncross = "/a b/c-"', "cross = '/a b/c-' is not the prefix of its "),
        ('like = "rpi4"\ncross = "$(x)-"', "cross = '$(x)-' is not the prefix of its "),
        ('like = "rpi4"\ncross = "~/c-"', "cross = '~/c-' is not the prefix of its "),
        ('like = "rpi4"\nmachine = "a b"', "machine = 'a b' is not what its compiler says to "),
        ('like = "rpi4"\ndescription = "a\\nb"', "description = 'a\\nb' is not one line of text"),
    ],
)
def test_what_is_wrong_with_a_file(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text(text)
    with pytest.raises(OptionError) as caught:
        find_target(str(file))
    assert str(caught.value).startswith(f"--target {file}: {says}")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_one(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"my\.toml: cannot be read \(No such file"):
        find_target(str(tmp_path / "my.toml"))
    (tmp_path / "$x.toml").write_text('like = "rpi4"')
    with pytest.raises(OptionError, match="the name of the file is not of letters"):
        find_target(str(tmp_path / "$x.toml"))
    with pytest.raises(OptionError, match=r"'rpi' is not a target; .*, or for what a \.toml file"):
        find_target("rpi")


@pytest.mark.parametrize(
    "report",
    [
        {"target": "board.toml"},
        {"target": "/dev/zero.toml"},
        {"target": None},
        {"target": "rpi4", "target_changes": {"isas": ["generic"]}},
        {"target": "rpi4", "target_changes": {"cflags": "-O2; touch x"}},
        {"target": "rpi4", "target_changes": {"cross": "a b-"}},
        {"target": "rpi4", "target_changes": {"machine": "aarch64\n"}},
        {"target": "rpi4", "target_changes": {"ram_bytes": 0}},
        {"target": "rpi4", "target_changes": {"ram_bytes": "1"}},
        {"target": "rpi4", "target_changes": {"mhz": 10**30}},
        {"target": "rpi4", "target_changes": {"like": "rpi99"}},
        {"target": "rpi4", "target_changes": {"name": "../x"}},
        {"target": "rpi4", "target_changes": ["x"]},
    ],
    ids=str,
)
def test_reports_that_were_edited(report: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"no target|breaks"):
        target_of(report)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 100_000, "is nested too deeply"),
        ('like = "rpi4"\nram = ' + "9" * 30, "ram = 9+ is not a whole number above 0"),
        ('like = "rpi4"\nram = ' + "9" * 9000, "is not TOML"),
        ("like = []", r"like = \[\] is not a target"),
        ("\0", "is not TOML"),
    ],
    ids=lambda value: value[:20],
)
def test_files_that_are_odd(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "board.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=message) as caught:
        find_target(str(file))
    assert str(caught.value).isprintable()


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"description = '\xe9'")
    for name, message in (
        ("pipe", "it is no regular file"),
        ("folder", "Is a directory"),
        ("latin", "is not TOML"),
    ):
        with pytest.raises(OptionError, match=message):
            find_target(str(tmp_path / f"{name}.toml"))
