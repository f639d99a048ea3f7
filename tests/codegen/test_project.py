# SPDX-License-Identifier: 0BSD
"""The emitted C: the same integers and floats as the oracle with every compiler and flag, and
linkable as a library.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bdcc.codegen import binary
from bdcc.codegen.binary import FAMILIES, Family
from bdcc.host.build import build
from bdcc.host.library import Library
from bdcc.ir.graph import Flatten, Relu
from codegen.nets import (
    Chain,
    alexnet_like,
    every_float_step,
    quantized,
    random_branches,
    random_chain,
    squeezenet_like,
    write_project,
)
from strict import strict

Tool = Callable[[str], str]
FLAGS = {
    "gcc -O0": ("gcc", "-std=c11 -O0"),
    "gcc native": ("gcc", "-std=c11 -O3 -march=native"),
    "gcc gnu11 with fma and lto": ("gcc", "-std=gnu11 -O3 -mfma -flto"),
    "gcc without avxvnni": ("gcc", "-std=c11 -O1 -DBDCC_NO_AVXVNNI"),
    "clang without avxvnni": ("clang", "-O1 -DBDCC_NO_AVXVNNI"),
    "gcc portable": ("gcc", "-std=c11 -O2 -DBDCC_PORTABLE"),
    "gcc sanitizers": (
        "gcc",
        "-std=c11 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all",
    ),
    "clang defaults": ("clang", ""),
    "clang native": ("clang", "-O3 -march=native"),
    "clang sanitizers": ("clang", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"),
}


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets") / "net"
    write_project(quantized(alexnet_like(), bases=[4, 3, 2, 5, 1], bits=[5, 3, 2, 8, 7]), folder)
    return folder


@pytest.mark.parametrize("flags", FLAGS)
def test_every_compiler_and_flag_gives_the_oracle_s_bits(
    project: Path, flags: str, tmp_path: Path, tool: Tool
) -> None:
    compiler, options = FLAGS[flags]
    tool(compiler)
    command = [
        compiler,
        *options.split(),
        *strict(compiler),
        "-Iinclude",
        "-Isrc",
        "-o",
        str(tmp_path / "selftest"),
    ]
    run([*command, "src/net.c", "src/net_weights.c", "src/selftest.c", "-lm"], project)
    said = run([str(tmp_path / "selftest"), "--golden", "host/golden.bin"], project)
    assert "every layer equals the oracle" in said
    assert ("avx2" in said) <= ("portable" not in flags)
    assert ("avxvnni" in said) <= ("-DBDCC_" not in options)


def test_compilers_that_do_not_know_avxvnni_meet_none_of_it(project: Path) -> None:
    """Neither the attribute nor code that would take it."""
    command = ["cc", "-E", "-P", "-Iinclude", "-Isrc", "src/net.c"]
    ours, without = run(command, project), run([*command, "-DBDCC_NO_AVXVNNI"], project)
    for text, there in ((ours, platform.machine() == "x86_64"), (without, False)):
        assert ('target("popcnt,avx2,avxvnni")' in text) == there
        assert ("steps__avxvnni" in text) == there


def test_fast_math_is_refused(project: Path) -> None:
    command = ["cc", "-ffast-math", "-fsyntax-only", "-Iinclude", "-Isrc", "src/net.c"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "bdcc is exact" in done.stderr


@pytest.mark.parametrize("mode", ["minmax", "dynamic"])
def test_other_ranges(mode: str, tmp_path: Path) -> None:
    model = quantized(alexnet_like(lrn_first=True, seed=3), bases=2, bits=4, mode=mode)
    write_project(model, tmp_path / "net")
    run(["make", "-s", "selftest", "CFLAGS=-O1"], tmp_path / "net")
    run(["./selftest"], tmp_path / "net")


@pytest.mark.parametrize("bases", [0, 2])
def test_every_step_kind(bases: int, tmp_path: Path) -> None:
    """bases 0: nothing is decomposed. NaN and infinity travel through float layers and come out the
    same.
    """
    write_project(quantized(every_float_step(), bases=bases, bits=3), tmp_path / "net")
    run(["make", "-s", "selftest", "CFLAGS=-O2"], tmp_path / "net")
    run(["./selftest"], tmp_path / "net")


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 84))]
)
def test_random_layers(seed: int, tmp_path: Path) -> None:
    graph, bases, bits = random_chain(seed)
    mode = "dynamic" if seed % 4 == 3 else "clip"
    families = FAMILIES[seed % 3 :] + FAMILIES[: seed % 3]
    model = quantized(graph, bases=bases, bits=bits, mode=mode)
    write_project(model, tmp_path / "net", families=families)
    run(["make", "-s", "selftest", "CFLAGS=-O1"], tmp_path / "net")
    run(["./selftest"], tmp_path / "net")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_no_output_sees_and_maps_in_several_pieces(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strides that leave the last rows and columns over; gathered codes of a few rows at a time."""
    monkeypatch.setattr(binary, "GATHERED_BYTES", 1500)
    chain = Chain((3, 41, 39), 0).conv(16, (5, 5), strides=(2, 2)).add(Relu)  # gathered
    chain.conv(24, (1, 1), strides=(2, 2)).add(Relu).conv(72, (2, 2), strides=(3, 3)).add(Relu)
    chain.conv(40, (1, 1), strides=(2, 2)).add(Flatten).dense(9)
    model = quantized(chain.graph(), bases=[3, 2, 4, 2, 1], bits=[5, 3, 2, 6, 4])
    write_project(model, tmp_path / "net", families=(family,))
    run(["make", "-s", "selftest", "CFLAGS=-O1"], tmp_path / "net")
    run(["./selftest"], tmp_path / "net")


@pytest.mark.parametrize("mode", ["clip", "dynamic", "float"])
def test_joined_maps(mode: str, tmp_path: Path) -> None:
    bases, ranges = (0, "clip") if mode == "float" else (3, mode)
    model = quantized(
        squeezenet_like(), bases=bases, bits=[4, 3, 5, 5, 2, 8, 7, 6, 4, 3, 5], mode=ranges
    )
    write_project(model, tmp_path / "net")
    command = ["make", "-s", "selftest", f"CPPFLAGS={' '.join(strict('cc'))}"]
    run(
        [*command, "CFLAGS=-O0 -fsanitize=address,undefined -fno-sanitize-recover=all"],
        tmp_path / "net",
    )
    run(["./selftest"], tmp_path / "net")


@pytest.mark.parametrize(
    "seed", [*range(6), *(pytest.param(s, marks=pytest.mark.slow) for s in range(6, 106))]
)
def test_random_branches(seed: int, tmp_path: Path) -> None:
    graph, bases, bits = random_branches(seed)
    mode = "dynamic" if seed % 4 == 3 else "clip"
    families = FAMILIES[seed % 3 :] + FAMILIES[: seed % 3]
    model = quantized(graph, bases=bases, bits=bits, mode=mode)
    write_project(model, tmp_path / "net", families=families)
    run(["make", "-s", "selftest", "CFLAGS=-O1"], tmp_path / "net")
    run(["./selftest"], tmp_path / "net")


def test_plain_make_is_clean_and_exports_only_its_own_names(project: Path) -> None:
    build(project, make_args=["-B", f"CPPFLAGS={' '.join(strict('cc'))}"])
    for file, options in (("libnet.so", ["-D"]), ("libnet.a", ["-g"])):
        symbols = run(["nm", *options, "--defined-only", f"build/{file}"], project)
        names = {
            line.split()[-1]
            for line in symbols.splitlines()
            if re.match(r"[0-9a-f]{16} [A-Z] ", line)
        }
        assert names
        assert all(name.startswith("net_") for name in names), names
    imported = run(["nm", "-D", "--undefined-only", "build/libnet.so"], project)
    banned = {"malloc", "free", "printf", "abort", "exit", "powf", "expf"}
    assert not banned & {re.sub("@.*", "", line.split()[-1]) for line in imported.splitlines()}


@pytest.mark.parametrize("weights", ["incbin", "array"])
def test_weights_linked_in_either_way(project: Path, weights: str, tmp_path: Path) -> None:
    copy = tmp_path / "net"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("build"))
    run(["make", "-s", "selftest", f"WEIGHTS={weights}", "CFLAGS=-O0"], copy)
    run(["./selftest"], copy)


def test_large_weights_become_an_array_on_request(project: Path, tmp_path: Path) -> None:
    run(["cc", "-O0", "src/bin2c.c", "-o", str(tmp_path / "bin2c")], project)
    run([str(tmp_path / "bin2c"), "weights/net.bin", str(tmp_path / "made.h")], project)
    numbers = [
        [int(word.strip().rstrip("u"), 16) for word in re.findall(r"0x[0-9a-f]+u", text)]
        for text in (
            (tmp_path / "made.h").read_text(),
            (project / "src/net_weights_array.h").read_text(),
        )
    ]
    assert numbers[0] == numbers[1]
    assert np.array(numbers[0], "<u8").tobytes() == (project / "weights/net.bin").read_bytes()


CALLER = """
#include "net.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static unsigned char arena[NET_ARENA_BYTES + 2 * NET_ARENA_ALIGN];
static float x[NET_INPUT_C * NET_INPUT_H * NET_INPUT_W], y[NET_OUTPUT_N];
static int failures;
static void expect(int line, int got, int wanted) {
    if (got != wanted) { printf("line %d: %d instead of %d\\n", line, got, wanted); failures = 1; }
}
#define EXPECT(got, wanted) expect(__LINE__, got, wanted)
int main(int argc, char **argv) {
    net_t m;
    unsigned char *aligned = arena + (NET_ARENA_ALIGN - (size_t)arena % NET_ARENA_ALIGN) %
    NET_ARENA_ALIGN;
    static _Alignas(64) unsigned char blob[1 << 20];
    FILE *file = fopen(argv[argc - 1], "rb");
    size_t size = fread(blob, 1, sizeof blob, file);
    fclose(file);
    memset(&m, 0, sizeof m);
    EXPECT(net_run(&m, aligned, sizeof arena - 64, x, y), NET_E_NULL);
    EXPECT(net_init(NULL, NULL, 0), NET_E_NULL);
    EXPECT(net_init(&m, blob + 1, size), NET_E_ALIGN);
    EXPECT(net_init(&m, blob, 8), NET_E_SIZE);
    EXPECT(net_init(&m, blob, size - 64), NET_E_SIZE);
    blob[size - 200] ^= 4; EXPECT(net_init(&m, blob, size), NET_E_CHECKSUM); blob[size - 200] ^= 4;
    blob[9] ^= 1; EXPECT(net_init(&m, blob, size), NET_E_FINGERPRINT); blob[9] ^= 1;
    blob[4] ^= 1; EXPECT(net_init(&m, blob, size), NET_E_VERSION); blob[4] ^= 1;
    for (int bit = 0; bit < 8 * 64; ++bit) { /* no bit of the header goes unread */
        blob[bit / 8] ^= (unsigned char)(1 << bit % 8);
        const int status = net_init(&m, blob, size);
        const int byte = bit / 8;
        EXPECT(status, byte < 8 ? NET_E_VERSION : byte < 16 ? NET_E_FINGERPRINT :
            byte < 24 ? NET_E_SIZE : NET_E_CHECKSUM);
        blob[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    EXPECT(net_init_isa(&m, NULL, 0, "mmx"), NET_E_ISA);
    EXPECT(net_run(&m, aligned, NET_ARENA_BYTES, x, y), NET_E_NULL);
    EXPECT(net_init(&m, blob, size), NET_OK);
    EXPECT(net_init(&m, NULL, 0), NET_OK);
    EXPECT(net_run(&m, aligned + 1, NET_ARENA_BYTES, x, y), NET_E_ALIGN);
    EXPECT(net_run(&m, aligned, NET_ARENA_BYTES - 1, x, y), NET_E_ARENA);
    EXPECT(net_run(&m, NULL, NET_ARENA_BYTES, x, y), NET_E_NULL);
    EXPECT(net_run(&m, aligned, NET_ARENA_BYTES, NULL, y), NET_E_NULL);
    EXPECT(net_run_u8(&m, aligned, NET_ARENA_BYTES, blob, NET_INPUT_W * NET_INPUT_C - 1, y),
    NET_E_SIZE);
    static unsigned char small[30 * 40 * NET_INPUT_C];
    static unsigned char fitted[NET_INPUT_H * NET_INPUT_W * NET_INPUT_C];
    static uint64_t scratch[1 << 12];
    const size_t row = 40 * NET_INPUT_C;
    EXPECT(net_resize(small, 40, 30, row, fitted, scratch, sizeof scratch), NET_OK);
    EXPECT(net_resize(small, 40, 30, row - 1, fitted, scratch, sizeof scratch), NET_E_SIZE);
    EXPECT(net_resize(small, 40, 30, 0, fitted, scratch, sizeof scratch), NET_E_SIZE);
    EXPECT(net_resize(small, 40, 29, row + 1, fitted, scratch, sizeof scratch), NET_OK);
    memset(aligned + NET_ARENA_BYTES, 0x5a, 64); /* whatever lies behind the arena stays */
    EXPECT(net_run(&m, aligned, NET_ARENA_BYTES, x, y), NET_OK);
    for (int i = 0; i < 64; ++i) EXPECT(aligned[NET_ARENA_BYTES + i], 0x5a);
    float other[NET_OUTPUT_N];
    EXPECT(net_run(&m, aligned + NET_ARENA_ALIGN, NET_ARENA_BYTES, x, other), NET_OK); /* anywhere
    aligned */
    EXPECT(memcmp(y, other, sizeof y), 0);
    int best[NET_OUTPUT_N];
    const float scores[NET_OUTPUT_N] = { 1, 3, 0.0f / (float)(argc - 2), 3, 2 };
    net_top_k(scores, NET_OUTPUT_N + 5, best);
    EXPECT(best[0], 1); EXPECT(best[1], 3); EXPECT(best[2], 4); EXPECT(best[NET_OUTPUT_N - 1], 2);
    EXPECT((int)(net_arena_bytes() - NET_ARENA_BYTES), 0);
    return failures;
}
"""


def test_status_codes_and_arena(project: Path, tmp_path: Path) -> None:
    (tmp_path / "caller.c").write_text(CALLER)
    command = [
        "gcc",
        "-O1",
        "-fsanitize=address,undefined",
        "-Iinclude",
        "-Isrc",
        str(tmp_path / "caller.c"),
    ]
    run(
        [*command, "src/net.c", "src/net_weights.c", "-lm", "-o", str(tmp_path / "caller")], project
    )
    run([str(tmp_path / "caller"), "weights/net.bin"], project)


PROGRAM = """
#include "first.h"
#include "second.h"
#include <cstdio>
alignas(64) static unsigned char arena[FIRST_ARENA_BYTES + SECOND_ARENA_BYTES];
static float x[FIRST_INPUT_C * FIRST_INPUT_H * FIRST_INPUT_W], y[FIRST_OUTPUT_N + SECOND_OUTPUT_N];
int main() {
    first_t a;
    second_t b;
    if (first_init(&a, nullptr, 0) != FIRST_OK) return 1;
    if (second_init(&b, nullptr, 0) != SECOND_OK) return 1;
    for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = static_cast<float>(i % 23) / 8 - 1;
    if (first_run(&a, arena, sizeof arena, x, y) != FIRST_OK) return 2;
    if (second_run(&b, arena, sizeof arena, x, y + FIRST_OUTPUT_N) != SECOND_OK) return 3;
    return std::fwrite(y, sizeof y, 1, stdout) == 1 ? 0 : 4;
}
"""

CMAKE = """
cmake_minimum_required(VERSION 3.13)
project(program CXX C)
find_package(first REQUIRED)
{second}
add_executable(shared program.cpp)
target_link_libraries(shared first::first second::second)
add_executable(static program.cpp)
target_link_libraries(static first::static second::static)
"""


def test_two_models_in_one_program(tmp_path: Path, tool: Tool) -> None:
    """Different bits, one C++ program, shared and static, through CMake's targets and through
    pkg-config.
    """
    for program in ("cmake", "pkg-config", "g++"):
        tool(program)
    x = ((np.arange(3 * 23 * 21) % 23).astype(np.float32) / 8 - 1).reshape(3, 23, 21)
    wanted, quick = b"", "-DCMAKE_C_FLAGS_RELEASE=-O0"  # linking is what is tried
    for name, bits in (("first", 3), ("second", 2)):
        write_project(quantized(alexnet_like(), bases=bits, bits=bits), tmp_path / name, name=name)
        build(tmp_path / name, make_args=["CFLAGS=-O0"])
        with Library.open(tmp_path / name) as library:
            wanted += library.run(x).tobytes()
    prefix, staged = tmp_path / "usr", tmp_path / "stage"
    run(["make", "-s", "install", f"PREFIX={prefix}", "CFLAGS=-O0"], tmp_path / "first")
    run(
        ["make", "-s", "install", f"PREFIX={prefix}", f"DESTDIR={staged}", "CFLAGS=-O0"],
        tmp_path / "first",
    )
    assert (staged / str(prefix).lstrip("/") / "include" / "first.h").is_file()
    run(
        ["cmake", "-S", "second", "-B", "made", f"-DCMAKE_INSTALL_PREFIX={prefix}", quick], tmp_path
    )
    run(["cmake", "--build", "made", "-j2"], tmp_path)
    run(["cmake", "--install", "made"], tmp_path)

    (tmp_path / "program.cpp").write_text(PROGRAM)
    for place, second in (
        ("found", "find_package(second REQUIRED)"),
        ("inside", f"add_subdirectory({tmp_path / 'second'} second)"),
    ):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(CMAKE.format(second=second))
        shutil.copy(tmp_path / "program.cpp", folder)
        run(["cmake", "-S", ".", "-B", "b", f"-DCMAKE_PREFIX_PATH={prefix}", quick], folder)
        run(["cmake", "--build", "b", "-j2"], folder)
        for kind in ("shared", "static"):
            got = subprocess.run([folder / "b" / kind], capture_output=True, check=True).stdout
            assert got == wanted, (place, kind)

    for kind, extra in (("shared", [f"-Wl,-rpath,{prefix}/lib"]), ("static", ["-static"])):
        query = [
            "pkg-config",
            "--cflags",
            "--libs",
            *(["--static"] if kind == "static" else []),
            "first",
            "second",
        ]
        flags = subprocess.run(
            query, env={"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig", "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        run(["g++", "-O1", "program.cpp", *flags, *extra, "-o", f"pkg_{kind}"], tmp_path)
        got = subprocess.run([tmp_path / f"pkg_{kind}"], capture_output=True, check=True).stdout
        assert got == wanted, kind


def test_emission_is_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_project(quantized(alexnet_like(), bases=2, bits=3), tmp_path / name / "net")
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert len(files) > 20
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_every_emitted_source_states_its_licence(project: Path) -> None:
    for file in [
        *project.glob("src/*"),
        *project.glob("include/*"),
        project / "Makefile",
        project / "CMakeLists.txt",
    ]:
        assert "SPDX-License-Identifier: 0BSD" in file.read_text(), file


def test_changed_variables_build_anew(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "it's a net"  # a path that shells and assemblers trip over
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("build"))
    run(["make", "-s", "CFLAGS=-O0", "WEIGHTS=none"], copy)
    run(["make", "-s", "CFLAGS=-O0", "WEIGHTS=incbin", "PORTABLE=1", "selftest"], copy)
    said = run(["./selftest"], copy)
    assert "every layer equals the oracle" in said
    assert "avx2" not in said
    before = (copy / "build" / "net.o").stat().st_mtime_ns
    run(["make", "-s", "CFLAGS=-O0", "WEIGHTS=incbin", "PORTABLE=1"], copy)
    assert (copy / "build" / "net.o").stat().st_mtime_ns == before
    run(["make", "-s", "CFLAGS=-O0", "install", f"PREFIX={tmp_path}/one"], copy)
    run(["make", "-s", "CFLAGS=-O0", "install", f"PREFIX={tmp_path}/two"], copy)
    assert f"prefix={tmp_path}/two\n" in (tmp_path / "two/lib/pkgconfig/net.pc").read_text()
