# SPDX-License-Identifier: 0BSD
"""One inference on several threads: the oracle's bits for any number of them, no data race, and
status codes for whatever cannot be done.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bdcc.codegen.binary import FAMILIES, Family
from bdcc.host.build import build
from bdcc.host.library import Library
from codegen.nets import alexnet_like, quantized, random_chain, squeezenet_like, write_project
from strict import strict

Tool = Callable[[str], str]
STRICT = " ".join(strict("cc"))
NUMBERS = (1, 2, 3, 5, 16)


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def check(project: Path, numbers: tuple[int, ...] = NUMBERS, flags: str = "-O1") -> None:
    """Every layer on every instruction set, with so many threads."""
    run(["make", "-s", "selftest", "THREADS=1", f"CFLAGS={flags}", f"CPPFLAGS={STRICT}"], project)
    for number in numbers:
        said = run(["./selftest", "--threads", str(number)], project)
        assert "every layer equals the oracle" in said


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every family on convolutions of both forms and on dense layers."""
    folder = tmp_path_factory.mktemp("nets") / "net"
    model = quantized(alexnet_like(), bases=[4, 3, 2, 5, 1], bits=[5, 3, 2, 8, 7])
    write_project(model, folder, families=("bytedot", "lut", "popcount", "bytedot"))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "seed", [2, 3, *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 24))]
)
def test_random_layers(seed: int, family: Family, tmp_path: Path) -> None:
    graph, bases, bits = random_chain(seed)
    mode = "dynamic" if seed % 4 == 3 else "clip"
    model = quantized(graph, bases=bases, bits=bits, mode=mode)
    write_project(model, tmp_path / "net", families=(family,))
    check(tmp_path / "net")


@pytest.mark.parametrize("mode", ["clip", pytest.param("dynamic", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_joined_maps(family: Family, mode: str, tmp_path: Path) -> None:
    model = quantized(squeezenet_like(), bases=3, bits=[4, 3, 5, 5, 2, 8, 7, 6, 4, 3, 5], mode=mode)
    write_project(model, tmp_path / "net", families=(family,))
    check(tmp_path / "net")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_data_race(compiler: str, project: Path, tmp_path: Path, tool: Tool) -> None:
    flags = "-O1 -g -fsanitize=thread -DNET_THREADS -pthread -Iinclude -Isrc"
    sources = ["src/net.c", "src/net_weights.c", "src/selftest.c", "-lm"]
    command = [
        tool(compiler),
        "-std=c11",
        *strict(compiler),
        *flags.split(),
        *sources,
        "-o",
        f"{tmp_path}/selftest",
    ]
    run(command, project)
    for number in ("2", "5"):
        said = run(
            [f"{tmp_path}/selftest", "--threads", number, "--golden", "host/golden.bin"], project
        )
        assert "every layer equals the oracle" in said


def test_sanitized(project: Path) -> None:
    check(project, (3,), "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all")


CALLER = """
#include <pthread.h>
#include <stdio.h>
#include <string.h>
static int threads_left = 100, threads_alive;
static int limited_create(pthread_t *thread, const pthread_attr_t *how, void *(*start)(void *),
    void *argument) {
    if (threads_left-- <= 0) return 11;
    ++threads_alive;
    return pthread_create(thread, how, start, argument);
}
static int counted_join(pthread_t thread, void **result) {
    --threads_alive;
    return pthread_join(thread, result);
}
#define pthread_create limited_create
#define pthread_join counted_join
#include "net.c"
enum { BYTES = NET_ARENA_BYTES_MT(NET_MAX_THREADS), ROW = NET_INPUT_W * NET_INPUT_C };
static unsigned char arena[BYTES + 64 + NET_ARENA_ALIGN];
static float x[NET_INPUT_C * NET_INPUT_H * NET_INPUT_W], y[NET_OUTPUT_N], z[NET_OUTPUT_N];
static uint8_t pixels[NET_INPUT_C * NET_INPUT_H * NET_INPUT_W];
static int failures;
static void expect(int line, int got, int wanted) {
    if (got != wanted) { printf("line %d: %d instead of %d\\n", line, got, wanted); failures = 1; }
}
#define EXPECT(got, wanted) expect(__LINE__, got, wanted)
int main(void) {
    net_t m;
    net_pool_t pool, other;
    unsigned char *at = arena + (64 - (uintptr_t)arena % 64) % 64;
    for (size_t i = 0; i < sizeof x / sizeof *x; ++i) {
        x[i] = (float)(i % 23) / 8 - 1;
        pixels[i] = (uint8_t)(i * 7);
    }
    memset(&pool, 0xA5, sizeof pool);
    EXPECT(net_init(&m, NULL, 0), NET_OK);
    EXPECT(net_run_mt(&m, &pool, at, BYTES, x, y), NET_E_NULL);
    EXPECT(net_pool_stop(&pool), NET_E_NULL);
    EXPECT(net_pool_start(NULL, 2), NET_E_NULL);
    EXPECT(net_pool_stop(NULL), NET_E_NULL);
    EXPECT(net_pool_start(&pool, 0), NET_E_THREADS);
    EXPECT(net_pool_start(&pool, -1), NET_E_THREADS);
    EXPECT(net_pool_start(&pool, NET_MAX_THREADS + 1), NET_E_THREADS);
    EXPECT(net_pool_stop(&pool), NET_E_NULL);
    for (int possible = 0; possible < 4; ++possible) {
        threads_left = possible;
        EXPECT(net_pool_start(&pool, 5), NET_E_THREADS);
        EXPECT(threads_alive, 0);
        EXPECT(net_run_mt(&m, &pool, at, BYTES, x, y), NET_E_NULL);
    }
    threads_left = 100000;
    const size_t bytes = net_arena_bytes_mt(3);
    EXPECT((int)bytes, NET_ARENA_BYTES_MT(3));
    EXPECT((int)net_arena_bytes_mt(1), NET_ARENA_BYTES);
    EXPECT((int)net_arena_bytes_mt(0), 0);
    EXPECT((int)net_pool_bytes(), (int)sizeof pool);
    EXPECT(net_pool_start(&pool, 3), NET_OK);
    EXPECT(threads_alive, 2);
    EXPECT(net_run_mt(NULL, &pool, at, bytes, x, y), NET_E_NULL);
    EXPECT(net_run_mt(&m, NULL, at, bytes, x, y), NET_E_NULL);
    EXPECT(net_run_mt(&m, &pool, NULL, bytes, x, y), NET_E_NULL);
    EXPECT(net_run_mt(&m, &pool, at, bytes, NULL, y), NET_E_NULL);
    EXPECT(net_run_mt(&m, &pool, at, bytes, x, NULL), NET_E_NULL);
    EXPECT(net_run_mt(&m, &pool, at + 1, bytes, x, y), NET_E_ALIGN);
    EXPECT(net_run_mt(&m, &pool, at, bytes - 1, x, y), NET_E_ARENA);
    EXPECT(net_run_u8_mt(&m, &pool, at, bytes, pixels, ROW - 1, y), NET_E_SIZE);
    EXPECT(net_run_steps_mt(&m, &pool, at, bytes, NULL, NULL, 1, 1), NET_OK); /* nothing to do */
    memset(at + bytes, 0x5a, 64);
    EXPECT(net_run(&m, at, BYTES, x, y), NET_OK);
    memset(at, 0xA5, bytes);
    EXPECT(net_run_mt(&m, &pool, at, bytes, x, z), NET_OK);
    EXPECT(memcmp(y, z, sizeof y), 0);
    EXPECT(net_run_u8(&m, at, BYTES, pixels, ROW, y), NET_OK);
    memset(at, 0xA5, bytes);
    EXPECT(net_run_u8_mt(&m, &pool, at, bytes, pixels, ROW, z), NET_OK);
    EXPECT(memcmp(y, z, sizeof y), 0);
    for (int i = 0; i < 64; ++i) EXPECT(at[bytes + (size_t)i], 0x5a);
    EXPECT(net_pool_start(&other, 2), NET_OK); /* beside the first */
    EXPECT(net_run_u8_mt(&m, &other, at, bytes, pixels, ROW, z), NET_OK);
    EXPECT(memcmp(y, z, sizeof y), 0);
    EXPECT(net_pool_stop(&other), NET_OK);
    EXPECT(net_pool_stop(&pool), NET_OK);
    EXPECT(net_pool_stop(&pool), NET_E_NULL);
    EXPECT(net_run_mt(&m, &pool, at, bytes, x, y), NET_E_NULL);
    for (int i = 0; i < 300; ++i) {
        EXPECT(net_pool_start(&pool, 1 + i % 5), NET_OK);
        if (i % 3 == 0) EXPECT(net_run_u8_mt(&m, &pool, at, BYTES, pixels, ROW, z), NET_OK);
        EXPECT(net_pool_stop(&pool), NET_OK);
    }
    EXPECT(memcmp(y, z, sizeof y), 0);
    EXPECT(threads_alive, 0);
    return failures;
}
"""


def test_status_codes(project: Path, tmp_path: Path) -> None:
    (tmp_path / "caller.c").write_text(CALLER)
    flags = "-std=c11 -O1 -fsanitize=address,undefined -DNET_THREADS -pthread -Iinclude -Isrc"
    sources = [f"{tmp_path}/caller.c", "src/net_weights.c", "-lm"]
    run(["gcc", *flags.split(), *sources, "-o", f"{tmp_path}/caller"], project)
    run([f"{tmp_path}/caller"], project)


def test_without_threads_there_is_none(project: Path) -> None:
    build(project, make_args=["CFLAGS=-O1"])
    symbols = run(["nm", "build/net.o"], project)
    assert not any(word in symbols for word in ("pthread", "thrd", "sched", "_mt", "pool_start"))
    run(["make", "-s", "selftest", "CFLAGS=-O1"], project)
    done = subprocess.run(["./selftest", "--threads", "2"], cwd=project, capture_output=True)
    assert done.returncode == 1
    assert b"make THREADS=1" in done.stderr


PROGRAM = """
#include "net.h"
#include <cstdio>
alignas(64) static unsigned char arena[NET_ARENA_BYTES_MT(3)];
static float x[NET_INPUT_C * NET_INPUT_H * NET_INPUT_W], y[NET_OUTPUT_N];
int main() {
    net_t model;
    net_pool_t pool;
    for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = static_cast<float>(i % 23) / 8 - 1;
    if (net_init(&model, nullptr, 0) != NET_OK || net_pool_start(&pool, 3) != NET_OK) return 1;
    if (net_run_mt(&model, &pool, arena, sizeof arena, x, y) != NET_OK) return 2;
    if (net_pool_stop(&pool) != NET_OK) return 3;
    return std::fwrite(y, sizeof y, 1, stdout) == 1 ? 0 : 4;
}
"""

CMAKE = """
cmake_minimum_required(VERSION 3.13)
project(program CXX C)
{net}
add_executable(shared program.cpp)
target_link_libraries(shared net::net)
add_executable(static program.cpp)
target_link_libraries(static net::static)
"""


def test_a_program_learns_of_threads(project: Path, tmp_path: Path, tool: Tool) -> None:
    """A C++ program finds the library built with threads, and needs no flag of its own: by make's
    and by CMake's installation, as a subdirectory, through pkg-config.
    """
    for program in ("cmake", "pkg-config", "g++"):
        tool(program)
    x = ((np.arange(3 * 23 * 21) % 23).astype(np.float32) / 8 - 1).reshape(3, 23, 21)
    with Library.open(project) as library:
        wanted = library.run(x).tobytes()
    made, built = tmp_path / "made", tmp_path / "built"
    run(["make", "-s", "install", "THREADS=1", f"PREFIX={made}", "CFLAGS=-O1"], project)
    options = [f"-DCMAKE_INSTALL_PREFIX={built}", "-DNET_THREADS=ON", "-DCMAKE_C_FLAGS=-O1"]
    run(["cmake", "-S", str(project), "-B", "b", *options, "-DCMAKE_BUILD_TYPE=None"], tmp_path)
    run(["cmake", "--build", "b", "-j2"], tmp_path)
    run(["cmake", "--install", "b"], tmp_path)
    config = Path("lib", "cmake", "net", "net-config.cmake")
    assert (made / config).read_text() == (built / config).read_text()

    (tmp_path / "program.cpp").write_text(PROGRAM)
    inside = f"set(NET_THREADS ON)\nadd_subdirectory({project} net)"
    for place, net, prefix in (
        ("found", "find_package(net REQUIRED)", made),
        ("found_too", "find_package(net REQUIRED)", built),
        ("inside", inside, made),
    ):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "CMakeLists.txt").write_text(CMAKE.format(net=net))
        (folder / "program.cpp").symlink_to(tmp_path / "program.cpp")
        found = [f"-DCMAKE_PREFIX_PATH={prefix}", "-DCMAKE_BUILD_TYPE=None"]
        run(["cmake", "-S", ".", "-B", "b", *found], folder)
        run(["cmake", "--build", "b", "-j2"], folder)
        for kind in ("shared", "static"):
            got = subprocess.run([folder / "b" / kind], capture_output=True, check=True).stdout
            assert got == wanted, (place, kind)

    for prefix in (made, built):
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "--static", "net"],
            env={"PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig", "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        assert "-DNET_THREADS" in flags
        assert "-pthread" in flags
        run(["g++", "-O1", "program.cpp", *flags, "-static", "-o", "packaged"], tmp_path)
        got = subprocess.run([tmp_path / "packaged"], capture_output=True, check=True).stdout
        assert got == wanted
