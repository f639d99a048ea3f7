# SPDX-License-Identifier: 0BSD
"""A project of a board: cross-compiled as its README says and run under QEMU, statically linked,
by CMake, by compilers that are not the board's.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from boards import CORES, Board
from codegen.nets import alexnet_like, quantized, write_project

Tool = Callable[[str], str]
EQUAL = "every layer equals the oracle\n"
NOTE = "net is planned for {}; on {} it computes the same, but slower than if compiled with "
OF = {board.target.name: board for board in CORES}
CLANG = "clang --target="
NEWLIB = "--sysroot=/usr/lib/arm-none-eabi"
# What is neither a target's compiler nor its flags: the project, the compiler, its flags.
OTHERS = {
    "clang aarch64": ("host", f"{CLANG}aarch64-linux-gnu", ""),
    "clang rpi5": ("rpi5", f"{CLANG}aarch64-linux-gnu", ""),
    "clang armv8.2-a+rcpc+sha3": (
        "host",
        f"{CLANG}aarch64-linux-gnu",
        "-march=armv8.2-a+rcpc+sha3",
    ),
    "clang armhf": ("host", f"{CLANG}arm-linux-gnueabihf", "-march=armv7-a -mfpu=neon-vfpv4"),
    "clang rpi2": ("rpi2", f"{CLANG}arm-linux-gnueabihf", ""),
    "clang rpi-zero": ("rpi-zero", f"{CLANG}arm-linux-gnueabi", ""),
    "clang cortex-m4": ("cortex-m4", f"{CLANG}arm-none-eabi {NEWLIB}", ""),
    "clang cortex-m7": ("cortex-m7", f"{CLANG}arm-none-eabi {NEWLIB}", ""),
    **{
        f"gcc {march}": ("host", "aarch64-linux-gnu-gcc", f"-march={march}")
        for march in (
            "armv8.3-a",
            "armv8-a+rcpc",
            "armv8-a+sha3",
            "armv8.2-a+dotprod",
            "armv8.2-a+rcpc -D_FORTIFY_SOURCE=2",  # whose memcpy is inlined too
        )
    },
}


def shell(line: str, cwd: Path, *, fails: bool = False) -> str:
    """What it says on both streams."""
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, f"{line}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of projects by target, as emitted."""
    folder = tmp_path_factory.mktemp("boards")
    model = quantized(alexnet_like(), bases=[3, 2, 4, 1, 2], bits=[4, 3, 2, 6, 5])
    for target in ("host", *OF, "cortex-m4", "cortex-m7"):
        write_project(model, folder / target, target=target)
    return folder


@pytest.fixture
def project(emitted: Path, tmp_path: Path) -> Callable[[str], Path]:
    """project(target): a copy of its own to build in."""
    return lambda target: shutil.copytree(emitted / target, tmp_path / "net")


def line_of(readme: str, part: str) -> str:
    return next(line.partition("#")[0].strip() for line in readme.splitlines() if part in line)


@pytest.mark.parametrize("target", ["rpi4", "rpi2", "rpi-zero"])
def test_as_the_readme_says(
    target: str, project: Callable[[str], Path], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CFLAGS", raising=False)  # a newcomer has none
    net, board = project(target), OF[target]
    board.compiler(tool), board.emulator(tool)
    line = line_of((net / "README.md").read_text("utf-8"), "make CROSS=")
    libraries = f"/usr/{board.target.cross.removesuffix('-')}"
    emulator = "qemu-aarch64" if board.target.bits == 64 else "qemu-arm"
    make = f"make CROSS={board.target.cross} selftest"
    assert line == f"{make} && {emulator} -L {libraries} ./selftest"
    said = shell(line, net)
    assert said.endswith(EQUAL)
    assert f"\n{board.target.planned_for}: 6 pictures" in said
    assert "planned for" not in said
    assert ("-mfloat-abi=softfp" in said) == (target == "rpi-zero")
    for flag in board.target.cflags.split():
        assert f" {flag} " in said


def test_as_the_readme_says_of_a_compiler_in_a_folder(tmp_path: Path, tool: Tool) -> None:
    """One whose libraries are not where Debian's are."""
    prefix = tmp_path / "gcc-12.2+x/bin/aarch64-none_1-linux-gnu-"
    prefix.parent.mkdir(parents=True)
    for name in ("gcc", "ar"):
        Path(f"{prefix}{name}").symlink_to(tool(f"aarch64-linux-gnu-{name}"))
    tool("qemu-aarch64")
    (tmp_path / "my.toml").write_text(f'like = "rpi4"\ncflags = "-O1"\ncross = "{prefix}"')
    model = quantized(alexnet_like(), bases=2, bits=2)
    write_project(model, tmp_path / "net", target=str(tmp_path / "my.toml"))
    readme = (tmp_path / "net/README.md").read_text("utf-8")
    assert f"by a cross compiler ({prefix}gcc); QEMU's qemu-aarch64 runs it here" in readme
    line = line_of(readme, "make CROSS=")
    assert line == f"make CROSS={prefix} STATIC=1 selftest && qemu-aarch64 ./selftest"
    assert shell(line, tmp_path / "net").endswith(EQUAL)
    if shutil.which("cmake"):
        shell(line_of(readme, "cmake -B"), tmp_path / "net")


@pytest.mark.parametrize("board", CORES, ids=lambda board: board.name)
def test_static_programs_need_no_library(
    board: Board, project: Callable[[str], Path], tool: Tool
) -> None:
    net = project(board.target.name)
    board.compiler(tool)
    shell(f"make CROSS={board.target.cross} STATIC=1 CFLAGS=-Os all selftest", net)
    for program in ("build/classify", "selftest"):
        assert b"/ld-linux" not in (net / program).read_bytes(), "it names a loader"
    assert (net / "build/libnet.so").is_file()
    said = shell(f"{' '.join(board.emulator(tool))} ./selftest", net)
    assert f"\n{board.target.planned_for}: " in said
    assert said.endswith(EQUAL)


def test_another_architecture_is_told_and_works(project: Callable[[str], Path], tool: Tool) -> None:
    net = project("rpi4")
    said = shell("make -s CFLAGS=-O1 selftest && ./selftest", net)
    machine = subprocess.check_output(["cc", "-dumpmachine"], text=True).strip()
    if not machine.startswith("aarch64"):
        assert said.startswith(NOTE.format("rpi4 (aarch64)", machine))
    assert said.endswith(EQUAL)
    tool("arm-linux-gnueabihf-gcc")
    said = shell("make -n CROSS=arm-linux-gnueabihf- CFLAGS=-O1", net)
    note = NOTE.format("rpi4 (aarch64)", "arm-linux-gnueabihf")
    assert said.startswith(f"{note}--target rpi4-32 or rpi2\n")
    assert "-mcpu" not in said


def test_armv6_is_not_given_libraries_of_armv7(project: Callable[[str], Path], tool: Tool) -> None:
    """Debian's armhf; that of Raspberry Pi OS, under the same name, is of ARMv6."""
    net = project("rpi-zero")
    tool("arm-linux-gnueabihf-gcc")
    said = shell("make CROSS=arm-linux-gnueabihf-", net, fails=True)
    assert "arm-linux-gnueabihf-gcc links start files and a libc of ARMv7, which rpi-zero" in said
    assert "CROSS=arm-linux-gnueabi- STATIC=1, or plain make on the board" in said
    if shutil.which("cmake"):
        compiler = "-DCMAKE_C_COMPILER=arm-linux-gnueabihf-gcc"
        assert "libc of ARMv7" in shell(f"cmake -B b {compiler}", net, fails=True)
    said = shell("make CC='arm-linux-gnueabihf-gcc -marm -march=armv6+fp' build/net_weights.o", net)
    assert "-march=armv6 -mtune=arm1176jzf-s" in said
    assert "-mfloat-abi" not in said
    assert "planned for" not in said


@pytest.mark.parametrize("target", ["rpi4", "rpi-zero"])
def test_by_cmake(target: str, project: Callable[[str], Path], tool: Tool) -> None:
    tool("cmake")
    net, board = project(target), OF[target]
    board.compiler(tool)
    line = line_of((net / "README.md").read_text("utf-8"), "cmake -B")
    configure, and_, build = line.partition(" && ")
    assert and_
    said = shell(f"{configure} -DNET_STATIC=ON -DCMAKE_C_FLAGS_RELEASE=-O1 && {build} -v", net)
    assert "planned for" not in said
    for flag in board.target.cflags.split():
        assert f" {flag} " in said or flag.startswith("-O")
    assert ("-mfloat-abi=softfp" in said) == (target == "rpi-zero")
    shell(f"{build} --target net_classify net_selftest", net)
    assert b"/ld-linux" not in (net / "b/classify").read_bytes()
    emulator = " ".join(board.emulator(tool))
    assert shell(f"{emulator} b/selftest --golden host/golden.bin", net).endswith(EQUAL)


@pytest.mark.parametrize("name", OTHERS)
def test_other_compilers_and_flags(name: str, project: Callable[[str], Path], tool: Tool) -> None:
    """Not a warning; and with an operating system, the same bits."""
    target, compiler, flags = OTHERS[name]
    tool(compiler.split()[0])
    net = project(target)
    make = f"make CC='{compiler}' CFLAGS='-O1 -Werror {flags}' STATIC=1"
    if "-none-eabi" in compiler:
        tool("arm-none-eabi-gcc")  # for its headers
        assert "planned for" not in shell(f"{make} all", net)
        return
    triplet = compiler.removeprefix(CLANG).removesuffix("-gcc")
    tool(f"{triplet}-gcc")  # for its libraries
    assert "planned for" not in shell(f"{make} THREADS=1 all selftest", net)
    emulator, usable = ("qemu-arm", ["generic", "neon"])
    if triplet.startswith("aarch64"):
        emulator, usable = "qemu-aarch64", ["generic", "neon", "neondot"]
    if target == "rpi-zero":
        usable = ["generic", "simd32"]
    said = shell(f"{tool(emulator)} -cpu max ./selftest", net)
    assert said.endswith(EQUAL)
    assert re.findall(r"^(\w+): 6 pictures", said, re.MULTILINE) == usable


def test_dot_products_are_allowed_in_their_functions_alone(
    project: Callable[[str], Path], tool: Tool
) -> None:
    """And not what gcc would use there, but flags do not allow."""
    compiler = f"{tool('aarch64-linux-gnu-gcc')} -std=c11 -O1 -march=armv8-a+rcpc"
    said = shell(f"{compiler} -Iinclude -Isrc -S src/net.c -o -", project("host"))
    arch, functions = "", set()
    for kind, what in re.findall(r"^\t\.(arch |type\t)(.*)", said, re.MULTILINE):
        if kind == "arch ":
            arch = what
        elif what.endswith(", %function"):
            functions.add(("neondot" in what, "+dotprod" in arch, "+rcpc" in arch, "+sha3" in arch))
    assert functions == {(True, True, True, False), (False, False, True, False)}
