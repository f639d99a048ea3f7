# SPDX-License-Identifier: 0BSD
"""A project may be called anything: its prefix is nobody else's, and it builds with all headers."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bdcc.codegen.emit import emit
from bdcc.codegen.names import NAME_MOST, c_identifier, project_name
from bdcc.codegen.plan import DeploymentPlan, make_plan
from bdcc.codegen.targets import find_target
from bdcc.ir.graph import Flatten
from codegen.nets import Chain, quantized, write_project
from strict import strict

Tool = Callable[[str], str]

C11 = """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign
    stdarg stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar
    wchar wctype
    """
POSIX = """
    aio arpa/inet cpio dirent dlfcn fcntl fmtmsg fnmatch ftw glob grp iconv langinfo libgen monetary
    mqueue ndbm net/if netdb netinet/in netinet/tcp nl_types poll pthread pwd regex sched search
    semaphore spawn strings stropts sys/ipc sys/mman sys/msg sys/resource sys/select sys/sem sys/shm
    sys/socket sys/stat sys/statvfs sys/time sys/times sys/types sys/uio sys/un sys/utsname sys/wait
    syslog tar termios trace ulimit unistd utime utmpx wordexp
    """
WORDS = """
    int8 int16 uint8 uint32 float double char int long short void unsigned signed struct union
    enum const static inline register volatile extern auto if else for while do switch case
    default break continue return goto sizeof typedef bool true false null size ssize ptrdiff off
    mode pid uid gid clock clockid timer key id dev stack sem mtx thrd tss cnd div ldiv fpos
    va_list jmp_buf wint file dir stdin stdout stderr errno main run init step steps golden
    selftest bin2c classify bdcc bdcc_run bdcc_isa lut_kernels popcount_kernels resize label info
    isa weights arena input output model models net nets network cnn dnn conv dense layer layers
    image images picture pixel class classes data dataset train training test tests valid index
    indices count number name names value values key_value list array table map set get put open
    close read write print printf malloc free abort exit assert memory cache buffer queue thread
    threads mutex lock process system kernel cpu gpu arm neon x86 linux unix windows mac board
    device host target build make cmake all install clean force src include lib libs bin usr
    dev_null c m h o a x r w f rt dl gcc std posix pthread atomic signal alarm sleep wait kill
    fork exec pipe socket server client net_io user group path root home config option options
    version release debug error errors warning log trace report util utils common base core app
    demo example hello world foo bar baz cat dog bird fish tree car truck red green blue alpha
    beta gamma mnist cifar imagenet resnet vgg yolo unet bert detector segment
    """
ODD = (
    "7up",
    "_Reserved",
    "__x",
    "",
    "模型",
    "ünïcödé",
    "a b",
    "x" * 250,
    "9" * 250,
    "NUL\0",
    "E_OK",
)
WORST = (
    *("time", "int8", "pthread", "c", "m", "golden", "run", "bdcc", "selftest", "stdint", "x"),
    *("7up", "模型", "n" * 250),
)
UNCHANGED = (
    "alexnet squeezenet digits net first second resnet50 mobilenet_v2 res_net re_id int quad8b"
)
SUFFIX = re.compile(r"\bnet_(\w+)|\bNET_(\w+)")


@pytest.mark.parametrize("name", UNCHANGED.split())
def test_ordinary_names_stay(name: str) -> None:
    assert project_name(name) == name


def test_names_become_identifiers() -> None:
    assert c_identifier("AlexNet-v1.0") == "alexnet_v1_0"
    assert c_identifier("7up") == "m7up"
    assert c_identifier("花") == "model"
    assert project_name("main") == "main_model"  # src/main.c is the project's own
    assert project_name("bdcc_pool") == "bdcc_pool_model"
    assert project_name("AlexNet") == "alexnet"


def test_a_name_that_is_no_file_name_is_cut() -> None:
    name = project_name("a" * 1000)
    assert name == "a" * NAME_MOST
    assert len(f"lib{project_name('bdcc_' + 'a' * 1000)}_weights_array.h") < 255


@pytest.fixture(scope="module")
def plan() -> DeploymentPlan:
    """A network of one layer, in plain C: what is compiled is what every project has."""
    graph = Chain((3, 4, 4), 0).add(Flatten).dense(3).graph()
    model = quantized(graph, bases=0, bits=8)
    return make_plan(model, name="net", target=find_target("generic"))


def sources(project: Path) -> str:
    """All C of a project, without comments and strings."""
    files = (*project.glob("include/*"), *project.glob("src/*.[ch]"))
    text = "".join(file.read_text() for file in files)
    return re.sub(r'/\*.*?\*/|"(\\.|[^"\\\n])*"', "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def suffixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What stands behind the prefix in a project's identifiers, and in its macros."""
    folder = tmp_path_factory.mktemp("suffixes") / "net"
    write_project(quantized(Chain((3, 9, 9), 0).conv(4, (3, 3)).graph(), bases=2, bits=2), folder)
    names = [found.groups() for found in SUFFIX.finditer(sources(folder))]
    return {
        "lower": {lower for lower, _ in names if lower},
        "upper": {upper for _, upper in names if upper},
    }


def clashing(identifiers: set[str], suffixes: dict[str, set[str]]) -> Iterator[str]:
    """The names with which a project would have one of the identifiers."""
    for one in identifiers:
        for suffix in suffixes["lower"]:
            if one.endswith(f"_{suffix}"):
                yield one[: -len(suffix) - 1]
        for suffix in suffixes["upper"]:
            if one.endswith(f"_{suffix}") and one.isupper():
                yield one[: -len(suffix) - 1].lower()


def possible(names: Iterator[str]) -> set[str]:
    return {name for name in names if re.fullmatch("[a-z][a-z0-9_]*", name)}


def everything() -> str:
    """C that includes every header of C11 and POSIX that is there."""
    headers = (*C11.split(), *POSIX.split())
    guarded = "#if __has_include(<{0}.h>)\n#include <{0}.h>\n#endif\n"
    return "#define _GNU_SOURCE 1\n" + "".join(guarded.format(name) for name in headers)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_project_has_a_name_that_the_system_has(
    compiler: str, suffixes: dict[str, set[str]], tool: Tool
) -> None:
    said = [
        subprocess.run(
            [tool(compiler), "-E", "-P", *option, "-x", "c", "-"],
            input=everything(), capture_output=True, text=True, check=True,
        ).stdout
        for option in ((), ("-dM",))
    ]  # fmt: skip
    known = set(re.findall(r"[A-Za-z_]\w*", re.sub(r'"[^"\n]*"', "", "".join(said))))
    found = possible(clashing(known, suffixes))
    assert {"time", "int8", "pthread", "x", "sem"} <= found
    assert {name for name in found if project_name(name) == name} == set()
    headers = {Path(name).name for name in (*C11.split(), *POSIX.split()) if "/" not in name}
    assert {name for name in headers if project_name(name) == name} == set()


def test_no_project_has_a_name_that_its_own_sources_have(
    suffixes: dict[str, set[str]], tmp_path: Path
) -> None:
    write_project(quantized(Chain((3, 9, 9), 0).conv(4, (3, 3)).graph(), bases=2, bits=2),
                  tmp_path / "net")  # fmt: skip
    words = set(re.findall(r"[A-Za-z_]\w*", sources(tmp_path / "net")))
    found = possible(clashing({word for word in words if not SUFFIX.match(word)}, suffixes))
    assert {"golden", "run", "bdcc"} <= found
    assert {name for name in found if project_name(name) == name} == set()
    files = {file.stem for file in (tmp_path / "net" / "src").iterdir()}
    files = {name for name in files if not name.startswith("net")}
    assert {"main", "selftest", "bin2c", "bytedot_kernels"} <= files
    assert {name for name in files if project_name(name) == name} == set()


USER = """
#include "{m}.h"
#include <stdio.h>
static _Alignas({M}_ARENA_ALIGN) unsigned char arena[{M}_ARENA_BYTES];
static {m}_pool_t pool;
int main(void) {{
    static float x[{M}_INPUT_C * {M}_INPUT_H * {M}_INPUT_W], y[{M}_OUTPUT_N];
    {m}_t model;
    (void)pool;
    if ({m}_init(&model, NULL, 0) != {M}_OK) return 1;
    if ({m}_run(&model, arena, sizeof arena, x, y) != {M}_OK) return 2;
    printf("%f\\n", sqrt((double)y[0] * y[0]));
    return (int)time(NULL) == 0;
}}
"""


def check_name(plan: DeploymentPlan, name: str, folder: Path) -> None:
    """The project builds, and so does a program that has all headers and is linked as usual."""
    m = project_name(name)
    project = folder / "project"
    project.mkdir()
    emit(replace(plan, name=m), project, pictures=np.ones((1, 3, 4, 4), np.float32))
    make = ["make", "-s", "selftest", "CFLAGS=-O0", f"CPPFLAGS={' '.join(strict('gcc'))}"]
    subprocess.run([*make, "CC=gcc"], cwd=project, check=True, capture_output=True)
    subprocess.run(["./selftest"], cwd=project, check=True, capture_output=True)
    (project / "user.c").write_text(everything() + USER.format(m=m, M=m.upper()))
    flags = ["-std=c11", "-Wall", "-Werror", f"-D{m.upper()}_THREADS", "-Iinclude", "-Lbuild"]
    link = ["user.c", f"-l{m}", "-lm", "-lpthread", "-o", "user"]
    subprocess.run(["gcc", *flags, *link], cwd=project, check=True, capture_output=True)
    subprocess.run(["./user"], cwd=project, check=True, capture_output=True)


@pytest.mark.parametrize("name", WORST)
def test_the_worst_names_build(name: str, plan: DeploymentPlan, tmp_path: Path, tool: Tool) -> None:
    tool("gcc")
    check_name(plan, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [(*C11.split(), *ODD), POSIX.split(), *(WORDS.split()[i::4] for i in range(4))]
)
def test_words_and_headers_build(
    part: tuple[str, ...], plan: DeploymentPlan, tmp_path: Path, tool: Tool
) -> None:
    tool("gcc")
    assert len(set(WORDS.split())) > 250
    for number, name in enumerate(part):
        folder = tmp_path / str(number)
        folder.mkdir()
        check_name(plan, name, folder)
