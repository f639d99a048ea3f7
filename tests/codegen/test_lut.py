# SPDX-License-Identifier: 0BSD
"""The look-up kernels in C, for every compiler and instruction set of this machine, against the
plain integer product of codes and integer weights in NumPy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bdcc.approx.model import Decomposition
from bdcc.codegen.lut import (
    BYTE,
    HALF,
    VECTORS,
    Vector,
    generic_kernel,
    kernel,
    neon,
    scratch_bytes,
    table,
    table_bytes,
    template_variables,
    unit_filters,
    wide,
)
from bdcc.codegen.packing import Packed, pack_filters
from bdcc.codegen.targets import ISAS
from boards import CORES, Board
from codegen import programs
from codegen.programs import Program, run, usable
from codegen.test_popcount import FORMS, Case, plain_product, random_layer

CORNERS = ((1, 1), (1, 8), (7, 1), (7, 8), (4, 3), (3, 6), (3, 2), (2, 5), (1, 4))
EVERY = tuple((bases, bits) for bases in range(1, 8) for bits in range(1, 9))

U8 = npt.NDArray[np.uint8]

# Edges of K: of a table, of a word, of what eight tables take (48).
VECTOR_EDGES = (1, 3, 4, 5, 6, 7, 8, 9, 47, 48, 49, 63, 64, 65, 96, 128, 363)
LAYERS = (
    *(Case(form="vector", channels=k, filters=11) for k in VECTOR_EDGES),
    Case(form="vector", channels=64 * 130 + 5, filters=16),  # 16 bits do not hold it
    Case(form="vector", channels=70, filters=1040),  # several units everywhere
    *(Case(form="gathered", channels=k, size=(1, 3), filters=3) for k in (1, 63, 64, 65)),
    Case(form="gathered", channels=3, size=(23, 19), filters=9, kernel=(11, 11), strides=(4, 4)),
    Case(
        form="gathered", channels=20, size=(7, 9), kernel=(3, 2), dilations=(2, 3), groups=2,
        pads=(2, 1, 0, 1), filters=18, zero=1,
    ),
    *(
        Case(form="direct", channels=c, size=(4, 5), kernel=(3, 3), pads=(1, 1, 1, 1), zero=1)
        for c in (1, 7, 8, 9, 41, 48, 50, 64)
    ),
    Case(
        form="direct", channels=96, size=(5, 11), kernel=(5, 5), pads=(2, 2, 2, 2), groups=2,
        filters=136,
    ),
    Case(
        form="direct", channels=14, size=(9, 6), kernel=(2, 3), strides=(2, 3), pads=(0, 1, 3, 2),
        dilations=(3, 1), groups=2, filters=6, zero=1,
    ),
    Case(form="direct", channels=200, size=(3, 26), kernel=(1, 1), filters=40),
    Case(form="direct", channels=9, size=(5, 5), kernel=(1, 1), strides=(3, 2), filters=73),
    Case(form="direct", channels=24, size=(3, 80), kernel=(2, 2), filters=48, zero=1),
    Case(form="direct", channels=800, size=(5, 5), kernel=(3, 3), filters=24),  # several passes
    Case(form="direct", channels=8, size=(25, 26), kernel=(2, 2), filters=24),  # many pixels
)  # fmt: skip


RANDOM = 90  # layers of each board


def random_case(rng: np.random.Generator) -> Case:
    """A small layer of any form and shape."""

    def some(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    form = FORMS[some(0, 2)]
    if form == "vector":
        return Case(form=form, channels=some(1, 400), filters=some(1, 140))
    groups = some(1, 3)
    kernel = (some(1, 4), some(1, 4))
    dilations = (some(1, 3), 1 if form == "direct" else some(1, 3))
    reach = [(k - 1) * step + 1 for k, step in zip(kernel, dilations, strict=True)]
    return Case(
        form=form, channels=groups * some(1, 70), filters=groups * some(1, 70), groups=groups,
        kernel=kernel, strides=(some(1, 3), some(1, 3)), dilations=dilations,
        size=(reach[0] + some(0, 4), reach[1] + some(0, 12)),
        pads=(some(0, 2), some(0, 2), some(0, 2), some(0, 2)), zero=some(0, 1),
    )  # fmt: skip


build = partial(programs.build_pairs, "lut", template_variables)


def views(
    case: Case, codes: U8, out: tuple[int, int], bits: int, rng: np.random.Generator
) -> Iterator[tuple[U8, dict[str, int]]]:
    """Each group's codes [C, H, W] as bytes, and bdcc_view_t's taps and strides. Bytes that meet no
    weight are random."""
    channels = case.channels // case.groups
    if case.form == "vector":
        strides = {"pixel_stride": channels, "row_stride": 0, "line_stride": channels}
        yield codes.reshape(-1), {"taps": 1, "tap_bytes": channels, **strides}
        return
    (top, left, bottom, right), (kh, kw) = case.pads, case.kernel
    (down, along), (dh, dw) = case.strides, case.dilations
    padding = ((0, 0), (top, bottom), (left, right))
    padded = np.pad(codes, padding, constant_values=case.zero).transpose(1, 2, 0)
    for group in np.split(padded, case.groups, axis=2):
        if case.form == "direct":
            deep = -(-channels // 8) * 8
            x = rng.integers(0, 1 << bits, (*group.shape[:2], deep), dtype=np.uint8)
            x[..., :channels] = group
            line = deep * group.shape[1]
            yield x.reshape(-1), {
                "taps": kw, "tap_bytes": deep, "pixel_stride": along * deep,
                "row_stride": dh * line, "line_stride": down * line,
            }  # fmt: skip
            continue
        size = -(-channels * kh * kw // 64) * 64
        x = rng.integers(0, 256, (*out, size), dtype=np.uint8)
        for oy, ox in np.ndindex(*out):
            rows, columns = oy * down + dh * np.arange(kh), ox * along + dw * np.arange(kw)
            x[oy, ox, : channels * kh * kw] = group[np.ix_(rows, columns)].reshape(-1)
        yield x.reshape(-1), {
            "taps": 1, "tap_bytes": size, "pixel_stride": size, "row_stride": 0,
            "line_stride": out[1] * size,
        }  # fmt: skip


def record(
    isa: int,
    bits: int,
    packed: Packed,
    group: int,
    x: U8,
    view: dict[str, int],
    out: tuple[int, int],
) -> bytes:
    _, blocks, rows, words, bases, _ = packed.weights.shape
    taps, tap_bytes = view["taps"], view["tap_bytes"]
    weights = packed.weights[group]
    header = struct.pack(
        "<18i",
        isa, bases, bits, weights.size, packed.valid.size, x.size,
        table_bytes([ISAS[isa]], bits=bits, cells=x.size // tap_bytes, tap_bytes=tap_bytes),
        scratch_bytes(
            [ISAS[isa]], bases=bases, bits=bits, blocks=blocks, rows=rows, taps=taps,
            tap_bytes=tap_bytes,
        ),
        out[1], out[0] * out[1], blocks, rows, words, taps, tap_bytes,
        view["pixel_stride"], view["row_stride"], view["line_stride"],
    )  # fmt: skip
    parts = (weights, packed.coefficients[group], packed.valid, x)
    return header + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def check(program: Program, layers: Iterable[tuple[tuple[int, int], Case]]) -> None:
    """Run all layers, each of (bases, bits), on all instruction sets of this machine in one go and
    compare every sum."""
    rng = np.random.default_rng(7)
    records, expected = [], []
    for (bases, bits), case in layers:
        decomposition, codes = random_layer(case, bases, bits, rng)
        plain = plain_product(case, decomposition, codes)
        out = (plain.shape[1], plain.shape[2])
        shape = (case.channels // case.groups, *case.kernel)
        packed = pack_filters(decomposition, kernel=shape, groups=case.groups, form=case.form)
        per_group = case.filters // case.groups
        for group, (x, view) in enumerate(views(case, codes, out, bits, rng)):
            part = plain[group * per_group : (group + 1) * per_group].reshape(per_group, -1)
            for isa in usable(program):
                records.append(record(ISAS.index(isa), bits, packed, group, x, view, out))
                expected.append((f"b{bases}q{bits} {isa} {case}", unit_filters(isa), part))
    sums = run(program, records)
    for name, unit, plain in expected:
        filters, pixels = plain.shape
        for first in range(0, filters, unit):
            some = min(unit, filters - first)
            padded = -(-some // 8) * 8
            got, sums = sums[: padded * pixels].reshape(pixels, padded).T, sums[padded * pixels :]
            np.testing.assert_array_equal(got[:some], plain[first : first + some], err_msg=name)
            assert not got[some:].any(), f"{name}: filters that fill up a block are not 0"
    assert sums.size == 0


@pytest.mark.parametrize(
    ("cc", "flags", "pairs"),
    [
        ("gcc", "-O3", CORNERS),
        ("gcc", "-O2 -march=native", CORNERS[3:7]),
        ("gcc", "-O2 -DBDCC_PORTABLE", CORNERS),
        ("clang", "-O2", CORNERS),
        ("clang", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all", CORNERS[3:]),
    ],
)
def test_kernels_match_plain_product(
    cc: str,
    flags: str,
    pairs: Sequence[tuple[int, int]],
    tmp_path: Path,
    tool: Callable[[str], str],
) -> None:
    check(build(tmp_path, tool(cc), flags.split(), pairs), product(pairs, LAYERS))


@pytest.mark.parametrize("board", CORES, ids=lambda board: board.cpu)
def test_kernels_match_plain_product_on_boards(
    board: Board, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    rng = np.random.default_rng(list(board.cpu.encode()))
    pairs = [*CORNERS[3:7], *(EVERY[i] for i in rng.choice(len(EVERY), 5, replace=False))]
    program = build(tmp_path, board.compiler(tool), board.flags, pairs, board.emulator(tool))
    assert board.target.planned_for in usable(program)
    random = [(pairs[i % len(pairs)], random_case(rng)) for i in range(RANDOM)]
    check(program, [*product(pairs[:4], LAYERS), *random])


def test_every_pair_of_bases_and_bits(tmp_path: Path, tool: Callable[[str], str]) -> None:
    cases = (
        Case(form="vector", channels=64 * 9 + 1, filters=9),
        Case(form="direct", channels=24, size=(3, 9), kernel=(2, 3), pads=(1, 0, 0, 2), zero=1),
    )
    check(build(tmp_path, tool("gcc"), ["-O0"], EVERY), product(EVERY, cases))


def test_largest_sums_that_int32_holds(tmp_path: Path, tool: Callable[[str], str]) -> None:
    """All codes at the top, all weights +127 or -127, for one pixel and for several: no byte and no
    16 bits run over, at any number of bits; with 8 bits the result ends next to 2^31."""
    reduction = (2**31 - 1) // (255 * 127)
    pairs = [(1, bits) for bits in range(1, 9)]
    program = build(tmp_path, tool("gcc"), ["-O1", "-fsanitize=undefined"], pairs)
    decomposition = Decomposition(
        coefficients=np.array([[127], [-127]], np.int16),
        signs=np.ones((2, reduction), np.uint8),
        scale=np.ones(2, np.float32),
        bias=np.zeros(2, np.float32),
    )
    packed = pack_filters(decomposition, kernel=(reduction, 1, 1), groups=1, form="gathered")
    size = packed.weights.shape[3] * 64
    strides = {"pixel_stride": size, "row_stride": 0, "line_stride": 14 * size}
    view = {"taps": 1, "tap_bytes": size, **strides}
    for bits in range(1, 9):
        top = (1 << bits) - 1
        x = np.full(14 * size, top, np.uint8)
        records = [
            record(ISAS.index(isa), bits, packed, 0, x, view, (1, 14)) for isa in usable(program)
        ]
        sums = run(program, records).reshape(-1, 8)
        assert (sums[:, 0] == reduction * top * 127).all()
        assert (sums[:, 1] == -reduction * top * 127).all()
    assert 2**31 - reduction * 255 * 127 <= 255 * 127


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.isa)
def test_sums_do_not_run_over(vector: Vector, bits: int) -> None:
    t = table(vector, bits)
    assert t.flush >= 1
    assert t.flush * t.inputs * ((1 << t.low) - 1) <= BYTE
    assert t.limit * t.inputs * ((1 << bits) - 1) <= HALF
    assert t.low <= bits <= t.low * t.parts
    for bases in range(1, 8):
        assert kernel(vector, bases, bits).tile >= 1
        assert generic_kernel(bases, bits).limit >= 1


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("registers", [16, 32])
def test_sums_do_not_run_over_on_neon(registers: int, bits: int) -> None:
    for bases in range(1, 8):
        one = neon(bases, bits, registers)
        assert one.tile >= 1
        assert 1 <= one.unroll * one.rounds <= one.table.flush


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("bases", range(1, 8))
def test_wide_sums_do_not_run_over(bases: int, bits: int) -> None:
    one = wide(bases, bits)
    assert 1 <= one.unroll * 4 * ((1 << one.low) - 1) <= BYTE
    assert one.low <= bits <= one.low * one.parts
    assert 1 << one.low * (one.parts - 1) <= 127  # a high part is multiplied with it, an int8
    assert one.tile >= 1
