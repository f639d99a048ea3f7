# SPDX-License-Identifier: 0BSD
"""Bare metal: what examples/cortex_m makes of a project, on emulated boards."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bdcc.codegen.binary import FAMILIES
from bdcc.codegen.targets import find_target
from bdcc.errors import OptionError
from bdcc.host import footprint
from bdcc.ir.graph import Graph
from bdcc.pipeline import CompileOptions, compile_model
from bdcc.report.report import Report
from codegen.nets import alexnet_like, every_float_step, quantized, write_project

Tool = Callable[[str], str]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cortex_m"
CORES = ("cortex-m4", "cortex-m7")


def options_of(examples: Path, out: Path, core: str) -> CompileOptions:
    return CompileOptions(
        output=out,
        data=examples / "digits_search.npz",
        calib=examples / "digits_calib.npz",
        holdout=examples / "digits_calib.npz",
        decompose="plain",
        preset="unit",
        bases=(3,),
        q=(4,),
        limit=40,
        target=core,
    )


@dataclass(frozen=True, kw_only=True)
class Compiled:
    project: Path
    options: CompileOptions
    report: Report


@pytest.fixture(scope="module", params=CORES)
def digits(
    request: pytest.FixtureRequest,
    examples: Path,
    tool: Tool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Compiled:
    tool("arm-none-eabi-gcc")
    options = options_of(examples, tmp_path_factory.mktemp("bare") / "out", request.param)
    result = compile_model(examples / "digits.onnx", options)
    return Compiled(project=result.project, options=options, report=result.report)


def run(project: Path, build: Path, core: str, *given: str) -> tuple[int, str]:
    """What the program says on the emulated board, and make's exit code."""
    ours = {k: v for k, v in os.environ.items() if k != "CFLAGS"}
    command = ["make", "-C", EXAMPLE, f"PROJECT={project}", f"BUILD={build}", f"CORE={core}"]
    done = subprocess.run(
        [*command, "CPPFLAGS=-Werror", *given, "run"],
        env=ours,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def undefined(file: Path) -> set[str]:
    done = subprocess.run(
        ["arm-none-eabi-nm", "-u", file], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"\bU (\w+)", done.stdout))


def test_every_layer_and_the_predicted_memory(digits: Compiled, tool: Tool, tmp_path: Path) -> None:
    """Flash as linked, RAM as painted: within 2 % of what the report says, and never above."""
    tool("qemu-system-arm")
    code, said = run(digits.project, tmp_path, digits.options.target)
    assert code == 0, said
    steps = 30
    assert said.count(" equal\n") == steps
    assert f"{steps} layers compared, 0 differ\n" in said
    assert "1. class 2  " in said
    assert re.search(r"^one picture: [1-9]\d+ ticks$", said, re.MULTILINE)
    taken = re.search(
        r"digits takes (\d+) bytes of flash and (\d+) of RAM: arena (\d+), handle (\d+), "
        r"stack (\d+)\n",
        said,
    )
    assert taken is not None, said
    flash, ram, arena, handle, stack = map(int, taken.groups())
    size = digits.report.as_json()["size"]
    assert (arena, handle) == (size["arena_bytes"], footprint.HANDLE_BYTES)
    for found, predicted in ((flash, size["flash_bytes"]), (ram, size["ram_bytes"])):
        assert 0.98 * predicted <= found <= predicted
    assert stack <= size["stack_bytes"] < 1536
    assert size["flash_bytes"] == size["weight_bytes"] + size["code_bytes"]


def test_a_layer_that_differs(digits: Compiled, tool: Tool, tmp_path: Path) -> None:
    tool("qemu-system-arm")
    golden = bytearray((digits.project / "host" / "golden.bin").read_bytes())
    golden[32 + 4 * 256 + 8] ^= 1  # the checksum of the first picture's second step
    (tmp_path / "golden.bin").write_bytes(golden)
    code, said = run(
        digits.project, tmp_path / "b", digits.options.target, f"GOLDEN={tmp_path}/golden.bin"
    )
    assert code != 0
    assert "Error 4" in said
    assert re.findall(r"(.*) DIFFERS", said) == ["picture 0: conv1"]


@pytest.mark.parametrize("graph", [alexnet_like, every_float_step])
def test_every_kind_of_step_and_kernel(
    graph: Callable[[], Graph], tool: Tool, tmp_path: Path
) -> None:
    """NaN and infinity among the pictures; of the C library nothing but copying and filling."""
    tool("arm-none-eabi-gcc")
    tool("qemu-system-arm")
    mode = "clip" if graph is alexnet_like else "dynamic"
    core, project, build = CORES[1], tmp_path / "net", tmp_path / "build"
    model = quantized(graph(), bases=2, bits=3, mode=mode)
    plan = write_project(model, project, target=core, families=FAMILIES)
    channels, height, width = model.graph.shapes[model.graph.input]
    (tmp_path / "picture").write_bytes(bytes(channels * height * width))
    code, said = run(project, build, core, f"PICTURE={tmp_path}/picture")
    assert code == 0, said
    assert "DIFFERS" not in said
    pictures = int.from_bytes((project / "host" / "golden.bin").read_bytes()[8:16], "little")
    assert f"{len(plan.steps) * pictures} layers compared, 0 differ" in said

    library = build / "network" / "net.o"
    helpers = {name for name in undefined(library) if not name.startswith("__aeabi_")}
    assert helpers <= {"memcpy", "memset", "memcmp", "net_linked_weights"}
    sizes = subprocess.run(["arm-none-eabi-size", library], capture_output=True, text=True)
    assert sizes.stdout.splitlines()[1].split()[1:3] == ["0", "0"]  # no data, no bss
    symbols = subprocess.run(
        ["arm-none-eabi-nm", build / "firmware.elf"], capture_output=True, text=True
    ).stdout
    assert "__aeabi_d" not in symbols  # float64 is for the resizing alone
    assert "malloc" not in symbols

    found = footprint.measure_footprint(project, find_target(core))
    assert found is not None
    stack = re.search(r"stack (\d+)", said)
    assert stack is not None
    assert int(stack[1]) <= found.stack_bytes < 4096


def test_the_footprint_is_the_same_in_any_temporary_folder(
    digits: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """make takes no names with spaces; and what is exported for others is not for these."""
    target = find_target(digits.options.target)
    usual = footprint.measure_footprint(digits.project, target)
    (tmp_path / "a b $c #").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a b $c #"))
    for name in ("CC", "AR", "CFLAGS", "CROSS"):
        monkeypatch.setenv(name, "/nonexistent")
    assert footprint.measure_footprint(digits.project, target) == usual
    assert list((tmp_path / "a b $c #").iterdir()) == []


def test_what_does_not_fit_is_refused(examples: Path, tool: Tool, tmp_path: Path) -> None:
    """With the layer that takes most, before anything takes long."""
    tool("arm-none-eabi-gcc")
    model, given = examples / "digits.onnx", options_of(examples, tmp_path / "out", CORES[0])
    with pytest.raises(OptionError) as refused:
        compile_model(model, replace(given, flash_bytes=41000))
    said = (
        r"--flash: the weights of this choice take (\d+) bytes, most of them in fc6, and its code "
        r"(\d+); allowed are 41000"
    )
    found = re.match(said, str(refused.value))
    assert found is not None
    assert int(found[1]) < 41000 < int(found[1]) + int(found[2])
    with pytest.raises(OptionError) as refused:
        compile_model(model, replace(given, ram_bytes=9999))
    said = (
        r"--ram: the arena of this choice takes at least (\d+) bytes with any kernels, most in "
        r"\w+, and its stack and handle (\d+); allowed are 9999"
    )
    found = re.match(said, str(refused.value))
    assert found is not None
    assert int(found[1]) > 9999


def test_a_board_s_own_memory_is_the_limit(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without its compiler, weights and arena alone are known."""
    options = replace(options_of(examples, tmp_path / "out", "cortex-m4"), cache="off")
    monkeypatch.setattr(footprint.shutil, "which", lambda name: None)
    report = compile_model(examples / "digits.onnx", options).report.as_json()
    assert [report["size"][f"{of}_bytes"] for of in ("code", "flash", "ram", "stack")] == [None] * 4
    assert any("arm-none-eabi-gcc" in note and "not installed" in note for note in report["notes"])
    small = replace(find_target("cortex-m4"), flash_bytes=30000)
    monkeypatch.setattr("bdcc.pipeline.compile.find_target", lambda name: small)
    with pytest.raises(OptionError, match="most of them in fc6; allowed are 30000"):
        compile_model(examples / "digits.onnx", replace(options, force=True))


@pytest.mark.parametrize("compiler", ["arm-none-eabi-gcc", "aarch64-linux-gnu-gcc"])
def test_big_endian_is_refused(compiler: str, tool: Tool, tmp_path: Path) -> None:
    write_project(quantized(alexnet_like(), bases=1, bits=2), tmp_path / "net")
    command = [tool(compiler), "-std=c11", "-mbig-endian", "-fsyntax-only", "-Iinclude", "-Isrc"]
    done = subprocess.run(
        [*command, "src/net.c"], cwd=tmp_path / "net", capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "bdcc projects are little-endian" in done.stderr
