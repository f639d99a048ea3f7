# SPDX-License-Identifier: 0BSD
"""What can be built for. A target fixes the default compiler flags of the emitted project, which
instruction sets it has code for and whose kernel costs it is planned by, never its results.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from bdcc.errors import OptionError
from bdcc.files import read_file, reason
from bdcc.records import check

# As in runtime/bdcc_isa.h; of one architecture narrow to wide.
X86_ISAS = ("generic", "popcnt", "avx2", "avxvnni", "avx512")
ARM_ISAS = ("generic", "simd32", "neon", "neondot")
ISAS = (*X86_ISAS, "neon", "neondot", "simd32")

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """name: as --target takes it; core: whose kernel costs decide, the name of a table; isas:
    instruction sets that the project has code for, and chooses from at start; planned_for: the one
    of them that the core uses, None: the widest of the machine that compiles.

    machine: what the compiler's -dumpmachine starts with, and bits: of its words, None: any;
    cross: prefix of Debian's compilers for it, "": none; cflags: the Makefile's default CFLAGS;
    flash_bytes, ram_bytes: what it has room for, None: plenty; mhz, memory_mbs: clock and what a
    core reads from memory, for estimates; like: of a target in a file of the user's, the one that
    it changes.
    """

    name: str
    description: str
    cflags: str
    isas: tuple[str, ...]
    core: str | None = None
    planned_for: str | None = None
    machine: str | None = None
    bits: int | None = None
    cross: str = ""
    flash_bytes: int | None = None
    ram_bytes: int | None = None
    mhz: int | None = None
    memory_mbs: int | None = None
    like: str | None = None

    @property
    def portable(self) -> bool:
        """Whether it is plain C11 only (BDCC_PORTABLE)."""
        return self.isas == ISAS[:1]

    @property
    def armv6(self) -> bool:
        """Whether it is Linux on ARMv6, which Debian's armhf is too new for."""
        return self.planned_for == "simd32" and not self.bare

    @property
    def bare(self) -> bool:
        """Whether it has no operating system."""
        return (self.machine or "").endswith("-none-eabi")


def _x86(name: str, description: str, isa: str) -> Target:
    isas = X86_ISAS[: X86_ISAS.index(isa) + 1]
    return Target(
        name=name, description=description, cflags="-O3", isas=isas, core=isa, planned_for=isa,
        machine="x86_64", bits=64,
    )  # fmt: skip


def _pi(
    name: str, description: str, core: str, *, bits: int, ram: int, mhz: int, mbs: int
) -> Target:
    """A Raspberry Pi under Linux, ram in MiB. Its project has the instruction sets of x86-64 too:
    they cost the board nothing, and accuracy is measured at full speed where it is compiled.
    """
    isa = {"arm1176jzf-s": "simd32", "cortex-a76": "neondot"}.get(core, "neon")
    if bits == 64:
        machine, cross, cflags = "aarch64", "aarch64-linux-gnu-", f"-O3 -mcpu={core}"
    elif isa == "simd32":
        # Debian's armhf start files and libraries are of ARMv7.
        machine, cross = "arm", "arm-linux-gnueabi-"
        cflags = "-O3 -marm -march=armv6 -mtune=arm1176jzf-s -mfpu=vfp"
    else:
        machine, cross = "arm", "arm-linux-gnueabihf-"
        fpu = "neon-vfpv4" if core == "cortex-a7" else "neon-fp-armv8"
        cflags = f"-O3 -marm -mcpu={core} -mfpu={fpu}"
    return Target(
        name=name, description=f"{description}, {bits}-bit system", cflags=cflags,
        isas=(*X86_ISAS, *ARM_ISAS[1:]),
        core=core, planned_for=isa, machine=machine, bits=bits, cross=cross, ram_bytes=ram * MIB,
        mhz=mhz, memory_mbs=mbs,
    )  # fmt: skip


def _micro(name: str, description: str, *, flash: int, ram: int, mhz: int, fpu: str) -> Target:
    """A microcontroller, flash and ram in KiB."""
    return Target(
        name=name, description=f"{description}, bare metal",
        cflags=f"-O2 -mthumb -mcpu={name} -mfpu={fpu} -mfloat-abi=hard",
        isas=("generic", "simd32"), core=name, planned_for="simd32", machine="arm-none-eabi",
        bits=32, cross="arm-none-eabi-", flash_bytes=flash * KIB, ram_bytes=ram * KIB, mhz=mhz,
    )  # fmt: skip


# fmt: off
TARGETS = (
    Target(
        name="host",
        description="this machine, at its widest",
        cflags="-O3",
        isas=(*X86_ISAS, *ARM_ISAS[1:]),
    ),
    Target(
        name="generic",
        description="any little-endian CPU, plain C11",
        cflags="-O2",
        isas=ISAS[:1],
        core="generic",
        planned_for="generic",
    ),
    _x86("x86-64-v2", "SSE4.2 and POPCNT (Nehalem)", "popcnt"),
    _x86("x86-64-v3", "AVX2 (Haswell, Zen)", "avx2"),
    _x86("x86-64-vnni", "AVX-VNNI (Alder Lake and its kin)", "avxvnni"),
    _x86("x86-64-avx512", "AVX-512 as of Ice Lake and Zen 4", "avx512"),
    _pi("rpi-zero", "Raspberry Pi Zero, 1", "arm1176jzf-s", bits=32, ram=512, mhz=1000, mbs=400),
    _pi("rpi2", "Raspberry Pi 2", "cortex-a7", bits=32, ram=1024, mhz=900, mbs=1200),
    _pi("rpi-zero2", "Raspberry Pi Zero 2", "cortex-a53", bits=64, ram=512, mhz=1000, mbs=2000),
    _pi("rpi3", "Raspberry Pi 3", "cortex-a53", bits=64, ram=1024, mhz=1200, mbs=2000),
    _pi("rpi4", "Raspberry Pi 4", "cortex-a72", bits=64, ram=1024, mhz=1500, mbs=4000),
    _pi("rpi5", "Raspberry Pi 5", "cortex-a76", bits=64, ram=2048, mhz=2400, mbs=10000),
    # As rpi2, whose binaries it runs: in order and with 64-bit paths, like its own core in 32 bits.
    _pi("rpi3-32", "Raspberry Pi 3", "cortex-a7", bits=32, ram=1024, mhz=1200, mbs=2000),
    _pi("rpi4-32", "Raspberry Pi 4", "cortex-a72", bits=32, ram=1024, mhz=1500, mbs=4000),
    _micro("cortex-m4", "Cortex-M4F", flash=1024, ram=192, mhz=168, fpu="fpv4-sp-d16"),
    _micro("cortex-m7", "Cortex-M7F", flash=2048, ram=512, mhz=400, fpu="fpv5-sp-d16"),
)
# fmt: on


def planned_core(isa: str) -> str:
    """A core whose kernel costs stand for an instruction set of an unknown one."""
    return next(t.core for t in TARGETS if t.planned_for == isa and t.core is not None)


def find_target(name: str) -> Target:
    """The target of that name, or the one that a TOML file describes (docs/targets.md); raises
    OptionError.
    """
    if name.endswith(".toml"):
        return _read_target(Path(name))
    for target in TARGETS:
        if target.name == name:
            return target
    raise OptionError(
        f"'{name}' is not a target; bdcc builds for {_names()}, or for what a .toml file describes",
        layer="--target",
    )


def target_of(report: Mapping[str, Any]) -> Target:
    """What a project was compiled for, from its report.json; the user's file need not be there.

    Raises ValueError where there is no such target, or a change is none that a file can make.
    """
    base = next((target for target in TARGETS if target.name == report["target"]), None)
    if base is None:
        raise ValueError("no target")
    changes = report.get("target_changes", {})
    check(changes, CHANGES)
    return replace(base, **changes)


def changes_of(target: Target) -> dict[str, Any]:
    """For `target_of`: the fields in which a user's target differs from the one it is like."""
    if target.like is None:
        return {}
    base = find_target(target.like)
    pairs = {f.name: getattr(target, f.name) for f in fields(Target)}
    return {name: value for name, value in pairs.items() if value != getattr(base, name)}


def _names() -> str:
    return ", ".join(target.name for target in TARGETS)


# Keys of a user's target: the field, and what a text must look like, for it goes into the Makefile;
# None: a number.
KEYS = {
    "description": ("description", r"[^\n]*"),
    "cflags": ("cflags", r"(-[\w=,.+:/@%-]+( +|$))*"),
    "cross": ("cross", r"([\w./+-]+-)?"),
    "machine": ("machine", r"[\w-]+"),
    "flash": ("flash_bytes", None),
    "ram": ("ram_bytes", None),
    "mhz": ("mhz", None),
    "memory_mbs": ("memory_mbs", None),
}
MOST = 1 << 62  # of a number
MOST_TEXT = 1 << 20  # bytes of a file
# What a user's target changes in fields, as report.json keeps it.
CHANGES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{
            field: {"type": "integer", "minimum": 1, "maximum": MOST}
            if shape is None
            else {"type": "string", "pattern": f"(?a){shape}"}
            for field, shape in KEYS.values()
        },
        "name": {"type": "string", "pattern": r"(?a)[\w.-]+"},
        "like": {"enum": [target.name for target in TARGETS]},
    },
}
SHAPES = {
    "description": "one line of text",
    "cflags": 'flags of the C compiler, like "-O3 -mcpu=cortex-a55"',
    "cross": 'the prefix of its compilers, like "aarch64-linux-gnu-", or "" for none',
    "machine": 'what its compiler says to -dumpmachine before the first -, like "aarch64"',
}


def _read_target(file: Path) -> Target:
    where = f"--target {file}"
    if not re.fullmatch(r"[\w.-]+", file.name, re.ASCII):
        raise OptionError("the name of the file is not of letters, digits, . _ -", layer=where)
    try:
        record = tomllib.loads(read_file(file, most=MOST_TEXT).decode("utf-8"))
    except OSError as error:
        raise OptionError(f"cannot be read ({reason(error)})", layer=where) from None
    except RecursionError:
        raise OptionError("is nested too deeply", layer=where) from None
    except ValueError as error:
        raise OptionError(f"is not TOML ({error})", layer=where) from None
    like = record.pop("like", None)
    base = next((target for target in TARGETS if target.name == like), None)
    if base is None:
        found = "'like' is missing" if like is None else f"like = {like!r} is not a target"
        raise OptionError(f"{found}; its kernels are those of one of {_names()}", layer=where)
    changes: dict[str, Any] = {}
    for key, value in record.items():
        if key not in KEYS:
            raise OptionError(f"'{key}' is not one of like, {', '.join(KEYS)}", layer=where)
        field, shape = KEYS[key]
        if shape is None:
            fits = type(value) is int and 0 < value < MOST
        else:
            fits = isinstance(value, str) and re.fullmatch(shape, value, re.ASCII) is not None
        if not fits:
            allowed = SHAPES.get(key, "a whole number above 0")
            raise OptionError(f"{key} = {value!r} is not {allowed}", layer=where)
        changes[field] = value
    return replace(base, name=file.name, like=base.name, **changes)
