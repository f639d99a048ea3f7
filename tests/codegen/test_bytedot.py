# SPDX-License-Identifier: 0BSD
"""Bits -> int8 weights -> byte dot products in C, for every compiler and instruction set of this
machine, against the plain integer product of codes and integer weights in NumPy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bdcc.approx.model import COEFFICIENT_CAP, Decomposition
from bdcc.codegen.bytedot import (
    UNIT,
    WIDE_BELOW,
    flush_interval,
    signed_flush_interval,
    signed_offset,
    template_variables,
)
from bdcc.codegen.packing import LANES, pack_filters
from bdcc.codegen.targets import ISAS
from boards import CORES, Board
from codegen import programs
from codegen.programs import Program, run, usable
from codegen.test_lut import views
from codegen.test_popcount import Case, plain_product, random_layer

CORNERS = ((1, 1), (4, 3), (4, 8), (5, 8), (7, 8))  # 16-bit sums last long, for 2, 1, 0 steps
EVERY = tuple(range(1, 8))
# Filters that fill a unit, its parts of 1, 2 and 3 blocks, and more than one; pixels around tiles.
LAYERS = (
    *(
        Case(form="direct", channels=8, size=(1, 13), kernel=(1, 1), filters=filters)
        for filters in (1, 9, 17, 25, 33, 72)
    ),
    *(
        Case(form="direct", channels=16, size=(2, pixels), kernel=(2, 2), filters=40, zero=1)
        for pixels in (2, 3, 5, 6, 7, 10, 18)
    ),
    *(
        Case(form="gathered", channels=k, size=(1, 3), filters=3)
        for k in (1, 7, 8, 9, 63, 64, 65, 449)
    ),
    Case(form="gathered", channels=3, size=(23, 19), filters=9, kernel=(11, 11), strides=(4, 4)),
    Case(
        form="gathered", channels=20, size=(7, 9), kernel=(3, 2), dilations=(2, 3), groups=2,
        pads=(2, 1, 0, 1), filters=18, zero=1,
    ),
    *(
        Case(form="direct", channels=c, size=(4, 5), kernel=(3, 3), pads=(1, 1, 1, 1), zero=1)
        for c in (1, 7, 9, 64, 136)
    ),
    Case(
        form="direct", channels=14, size=(9, 6), kernel=(2, 3), strides=(2, 3), pads=(0, 1, 3, 2),
        dilations=(3, 1), groups=2, filters=6, zero=1,
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A case, its bases and bits; share: of its cap that the coefficients reach."""

    case: Case
    bases: int
    bits: int
    share: float = 1.0


def build(
    folder: Path, cc: str, flags: Sequence[str], bases: Sequence[int], emulator: Sequence[str] = ()
) -> Program:
    variables = template_variables(bases, wide=True, offset=True)
    return programs.build(
        folder, cc, flags, emulator=emulator, kernels="bytedot", variables=variables, select=bases
    )


def flushes(bits: int, largest: int) -> tuple[int, int, int]:
    """bdcc_view_t's flush, offset and flush_signed."""
    signed = signed_flush_interval(bits, largest)
    return flush_interval(bits, largest), signed_offset(bits), signed


def random_layers(count: int) -> list[Layer]:
    """Layers of any shape, bases, bits and size of coefficients."""
    rng = np.random.default_rng(count)

    def pair(low: int, high: int) -> tuple[int, int]:
        first, second = rng.integers(low, high + 1, 2)
        return int(first), int(second)

    layers = []
    for _ in range(count):
        direct = bool(rng.integers(2))  # whose runs have no gaps
        groups, kernel, more = int(rng.choice([1, 1, 2, 3])), pair(1, 4), pair(0, 9)
        dilations = (int(rng.integers(1, 3)), 1) if direct else pair(1, 2)
        case = Case(
            form="direct" if direct else "gathered",
            channels=groups * int(rng.integers(1, 41)),
            size=(
                dilations[0] * (kernel[0] - 1) + 1 + more[0],
                dilations[1] * (kernel[1] - 1) + 1 + more[1],
            ),
            filters=groups * int(rng.integers(1, 41)),
            kernel=kernel,
            strides=pair(1, 3),
            pads=(*pair(0, 2), *pair(0, 2)),
            dilations=dilations,
            groups=groups,
            zero=int(rng.integers(2)),
        )
        bases, bits = int(rng.integers(1, 8)), int(rng.integers(1, 9))
        layers.append(Layer(case=case, bases=bases, bits=bits, share=float(rng.random())))
    return layers


def check(
    program: Program,
    pairs: Sequence[tuple[int, int]],
    cases: Sequence[Case],
    more: Sequence[Layer] = (),
) -> None:
    """Run all cases, and more layers, on all instruction sets of this machine in one go and compare
    every sum.
    """
    layers = [Layer(case=case, bases=b, bits=q) for b, q in pairs for case in cases]
    rng = np.random.default_rng(7)
    records, expected = [], []
    for layer in (*layers, *more):
        case, bases, bits = layer.case, layer.bases, layer.bits
        decomposition, codes = random_layer(case, bases, bits, rng)
        fewer = np.trunc(decomposition.coefficients * layer.share).astype(np.int16)
        decomposition = replace(decomposition, coefficients=fewer)
        plain = plain_product(case, decomposition, codes)
        out = (plain.shape[1], plain.shape[2])
        shape = (case.channels // case.groups, *case.kernel)
        packed = pack_filters(decomposition, kernel=shape, groups=case.groups, form=case.form)
        _, blocks, rows, words, _, _ = packed.weights.shape
        per_group = case.filters // case.groups
        largest = int(np.abs(decomposition.coefficients.astype(int)).sum(axis=1).max())
        for group, (x, view) in enumerate(views(case, codes, out, bits, rng)):
            for isa in usable(program):
                header = struct.pack(
                    "<18i",
                    ISAS.index(isa), bases, *flushes(bits, largest),
                    packed.weights[group].size, packed.valid.size, x.size,
                    out[1], out[0] * out[1], blocks, rows, words, view["taps"],
                    view["tap_bytes"], view["pixel_stride"], view["row_stride"],
                    view["line_stride"],
                )  # fmt: skip
                parts = (packed.weights[group], packed.coefficients[group], packed.valid, x)
                arrays = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
                records.append(header + arrays)
                part = plain[group * per_group : (group + 1) * per_group]
                name = f"b{bases}q{bits} {isa} {case}"
                expected.append((name, part.reshape(per_group, -1)))
    sums = run(program, records)
    for name, plain in expected:
        filters, pixels = plain.shape
        for first in range(0, filters, UNIT * LANES):
            some = min(UNIT * LANES, filters - first)
            padded = -(-some // LANES) * LANES
            got, sums = sums[: padded * pixels].reshape(pixels, padded).T, sums[padded * pixels :]
            np.testing.assert_array_equal(got[:some], plain[first : first + some], err_msg=name)
            assert not got[some:].any(), f"{name}: filters that fill up a block are not 0"
    assert sums.size == 0


def check_largest_sums(program: Program) -> None:
    """All codes at the top, or at 0, and all weights at plus or minus their cap: no int16 runs
    over.
    """

    def extreme(bases: int) -> Decomposition:
        each = np.full(bases, COEFFICIENT_CAP[bases] // bases)
        each[0] += COEFFICIENT_CAP[bases] - each.sum()
        return Decomposition(
            coefficients=np.array([each, -each], np.int16),
            signs=np.full((2, 256), (1 << bases) - 1, np.uint8),
            scale=np.ones(2, np.float32),
            bias=np.zeros(2, np.float32),
        )

    records, expected, isas = [], [], usable(program)
    for bases in EVERY:
        packed = pack_filters(extreme(bases), kernel=(256, 1, 1), groups=1, form="direct")
        cap = COEFFICIENT_CAP[bases]
        for bits, top in [*((bits, (1 << bits) - 1) for bits in range(1, 9)), (8, 0)]:
            x = np.full(7 * 256, top, np.uint8)
            parts = (packed.weights, packed.coefficients, packed.valid, x)
            for isa in isas:
                header = struct.pack(
                    "<18i", ISAS.index(isa), bases, *flushes(bits, cap), packed.weights.size,
                    packed.valid.size, x.size, 7, 7, 1, 1, 4, 1, 256, 256, 0, 0,
                )  # fmt: skip
                arrays = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
                records.append(header + arrays)
                expected.append(256 * cap * top)
    sums = run(program, records).reshape(-1, 7, 8)
    assert (sums[:, :, 0] == np.reshape(expected, (-1, 1))).all()
    assert (sums[:, :, 1] == -np.reshape(expected, (-1, 1))).all()


@pytest.mark.parametrize(
    ("cc", "flags"),
    [
        ("gcc", "-O3"),
        ("gcc", "-O2 -march=native"),
        ("gcc", "-O2 -DBDCC_PORTABLE"),
        ("clang", "-O2"),
        ("clang", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"),
    ],
)
def test_kernels_match_plain_product(
    cc: str, flags: str, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    bases = sorted({bases for bases, _ in CORNERS})
    check(build(tmp_path, tool(cc), flags.split(), bases), CORNERS, LAYERS)


@pytest.mark.parametrize("board", CORES, ids=lambda board: board.cpu)
def test_kernels_match_plain_product_on_boards(
    board: Board, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    program = build(tmp_path, board.compiler(tool), board.flags, EVERY, board.emulator(tool))
    assert board.target.planned_for in usable(program)
    check(program, CORNERS, LAYERS, random_layers(80))
    check_largest_sums(program)


@pytest.mark.parametrize("flags", ["-O0", "-O2 -fno-omit-frame-pointer"])
def test_clang_has_fewer_registers(flags: str, tmp_path: Path, tool: Callable[[str], str]) -> None:
    board = next(board for board in CORES if board.cpu == "arm1176")
    board.compiler(tool)  # its libraries
    every = ["--target=arm-linux-gnueabi", *flags.split(), *board.flags]
    optimised = [flag for flag in every if flag != "-O3"]
    program = build(tmp_path, tool("clang"), optimised, EVERY, board.emulator(tool))
    assert board.target.planned_for in usable(program)
    check(program, CORNERS, LAYERS)


def test_every_pair_of_bases_and_bits(tmp_path: Path, tool: Callable[[str], str]) -> None:
    case = Case(form="direct", channels=24, size=(3, 9), kernel=(2, 3), pads=(1, 0, 0, 2), zero=1)
    pairs = [(bases, bits) for bases in EVERY for bits in range(1, 9)]
    check(build(tmp_path, tool("gcc"), ["-O0"], EVERY), pairs, (case,))


def test_largest_sums(tmp_path: Path, tool: Callable[[str], str]) -> None:
    check_largest_sums(build(tmp_path, tool("gcc"), ["-O1", "-fsanitize=undefined"], EVERY))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("cap", sorted(set(COEFFICIENT_CAP.values())))
def test_flush_interval_holds_in_16_bits(bits: int, cap: int) -> None:
    flush, signed = flush_interval(bits, cap), signed_flush_interval(bits, cap)
    assert signed >= 1
    for code in (0, (1 << bits) - 1):
        assert signed * 2 * abs(code - signed_offset(bits)) * cap < 2**15
    assert flush * 2 * ((1 << bits) - 1) * cap < 2**15
    assert flush >= WIDE_BELOW or (bits, cap) in ((8, 63), (7, 127), (8, 127))
