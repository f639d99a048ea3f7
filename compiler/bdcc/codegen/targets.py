# SPDX-License-Identifier: 0BSD
"""What can be built for. A target fixes the default compiler flags of the emitted project, which
instruction sets it has code for and whose kernel costs it is planned by, never its results.
"""

from __future__ import annotations

from dataclasses import dataclass

from bdcc.errors import OptionError

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
    core reads from memory, for estimates.
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
        return self.cross == "arm-none-eabi-"


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
        description="this machine; the widest instruction set that it has is picked at start",
        cflags="-O3",
        isas=(*X86_ISAS, *ARM_ISAS[1:]),
    ),
    Target(
        name="generic",
        description="plain C11 for any little-endian CPU: no vector code, no popcount instruction",
        cflags="-O2",
        isas=ISAS[:1],
        core="generic",
        planned_for="generic",
    ),
    _x86("x86-64-v2", "x86-64 with SSE4.2 and POPCNT (Nehalem), and nothing wider", "popcnt"),
    _x86("x86-64-v3", "x86-64 with AVX2 (Haswell, Zen), and nothing wider", "avx2"),
    _x86("x86-64-vnni", "x86-64 with AVX-VNNI (Alder Lake and its kin)", "avxvnni"),
    _x86("x86-64-avx512", "x86-64 with AVX-512 as of Ice Lake and Zen 4", "avx512"),
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
    """The target of that name, or an OptionError that lists them."""
    for target in TARGETS:
        if target.name == name:
            return target
    known = ", ".join(target.name for target in TARGETS)
    raise OptionError(f"'{name}' is not a target; bdcc builds for {known}", layer="--target")
