# SPDX-License-Identifier: 0BSD
"""Codes -> bit planes -> popcount kernels in C, for every compiler and instruction set of this
machine, against the plain integer product of codes and integer weights in NumPy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bdcc.approx.model import COEFFICIENT_CAP, Decomposition
from bdcc.codegen.packing import Form, pack_filters
from bdcc.codegen.popcount import adder_network, counter, kernel_parameters, template_variables
from bdcc.codegen.popcount_neon import LIMIT, MACHINES, Machine, loop
from bdcc.codegen.targets import ISAS
from boards import CORES, Board
from codegen import programs
from codegen.programs import Program, run, usable

FORMS: tuple[Form, ...] = ("direct", "gathered", "vector")
CORNERS = ((1, 1), (1, 8), (7, 1), (7, 8), (4, 3), (3, 2), (4, 5))
EVERY = tuple((bases, bits) for bases in range(1, 8) for bits in range(1, 9))

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer. channels: of the whole map; a vector is a map of 1 x 1 under a kernel of 1 x 1."""

    form: Form
    channels: int
    size: tuple[int, int] = (1, 1)
    filters: int = 8
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    zero: int = 0


WORD_EDGES = (1, 63, 64, 65, 128, 363, 449, 1000)
LAYERS = (
    *(Case(form="vector", channels=k, filters=11) for k in WORD_EDGES),
    Case(form="vector", channels=64 * 130 + 5, filters=16),  # several chunks of positions
    *(Case(form="gathered", channels=k, size=(1, 3), filters=3) for k in WORD_EDGES[:5]),
    Case(form="gathered", channels=3, size=(23, 19), filters=9, kernel=(11, 11), strides=(4, 4)),
    Case(
        form="gathered", channels=3, size=(9, 8), kernel=(3, 5), pads=(1, 2, 3, 4), strides=(2, 1),
        zero=1,
    ),
    Case(
        form="gathered", channels=20, size=(7, 9), kernel=(3, 2), dilations=(2, 3), groups=2,
        pads=(2, 1, 0, 1), filters=18, zero=1,
    ),
    Case(
        form="gathered", channels=66, size=(3, 5), kernel=(1, 2), groups=3, filters=3, zero=1
    ),
    *(
        Case(form="direct", channels=c, size=(4, 5), kernel=(3, 3), pads=(1, 1, 1, 1), zero=1)
        for c in (1, 7, 8, 9, 64)
    ),
    Case(
        form="direct", channels=96, size=(5, 11), kernel=(5, 5), pads=(2, 2, 2, 2), groups=2,
        filters=20,
    ),
    Case(
        form="direct", channels=14, size=(9, 6), kernel=(2, 3), strides=(2, 3), pads=(0, 1, 3, 2),
        dilations=(3, 1), groups=2, filters=6, zero=1,
    ),
    Case(form="direct", channels=200, size=(3, 26), kernel=(1, 1), filters=40),
    Case(form="direct", channels=24, size=(2, 70), kernel=(2, 2), zero=1),  # many pixels
)  # fmt: skip


RANDOM = 90  # layers of each board
PAIRS = ((1, 1), (2, 2), (3, 2), (4, 5), (7, 8))  # on boards, and one more


def random_case(bits: int, rng: np.random.Generator) -> Case:
    """A small layer of any form and shape, a dense one of up to four runs of the inner loops."""

    def some(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    form = FORMS[some(0, 2)]
    if form == "vector":
        return Case(form=form, channels=some(1, 64 * some(1, 100)), filters=some(1, 40))
    groups = some(1, 3)
    kernel = (some(1, 4), some(1, 4))
    dilations = (some(1, 3), 1 if form == "direct" else some(1, 3))
    reach = [(k - 1) * step + 1 for k, step in zip(kernel, dilations, strict=True)]
    return Case(
        form=form, channels=groups * some(1, 150), filters=groups * some(1, 20), groups=groups,
        kernel=kernel, strides=(some(1, 3), some(1, 3)), dilations=dilations,
        size=(reach[0] + some(0, 4), reach[1] + some(0, 12)),
        pads=(some(0, 2), some(0, 2), some(0, 2), some(0, 2)), zero=some(0, (1 << bits) - 1),
    )  # fmt: skip


build = partial(programs.build_pairs, "popcount", template_variables)


def random_layer(
    case: Case, bases: int, bits: int, rng: np.random.Generator
) -> tuple[Decomposition, U8]:
    """Random bases, coefficients as large as allowed, codes [C, H, W] that reach the top."""
    fan_in = case.channels // case.groups * case.kernel[0] * case.kernel[1]
    parts = rng.dirichlet(np.ones(bases), size=case.filters) * COEFFICIENT_CAP[bases]
    signs = rng.choice([-1, 1], size=parts.shape)
    decomposition = Decomposition(
        coefficients=(np.floor(parts) * signs).astype(np.int16),
        signs=rng.integers(0, 1 << bases, (case.filters, fan_in), dtype=np.uint8),
        scale=np.ones(case.filters, np.float32),
        bias=np.zeros(case.filters, np.float32),
    )
    codes = rng.integers(0, 1 << bits, (case.channels, *case.size), dtype=np.uint8)
    codes[:, 0, 0] = (1 << bits) - 1
    return decomposition, codes


def plain_product(case: Case, decomposition: Decomposition, codes: U8) -> I64:
    """int64 [filters, out_h, out_w]: the sum of codes times integer weights, tap by tap."""
    top, left, bottom, right = case.pads
    (height, width), (kh, kw) = case.size, case.kernel
    padded = np.full(
        (case.channels, top + height + bottom, left + width + right), case.zero, np.int64
    )
    padded[:, top : top + height, left : left + width] = codes
    per_group = case.filters // case.groups
    weights = decomposition.integer_weights().astype(np.int64)
    weights = weights.reshape(case.groups, per_group, -1, kh, kw)
    inputs = padded.reshape(case.groups, -1, *padded.shape[1:])
    (down, along), (dh, dw) = case.strides, case.dilations
    out_h = (padded.shape[1] - dh * (kh - 1) - 1) // down + 1
    out_w = (padded.shape[2] - dw * (kw - 1) - 1) // along + 1
    result = np.zeros((case.groups, per_group, out_h, out_w), np.int64)
    for i in range(kh):
        for j in range(kw):
            taps = inputs[:, :, i * dh :, j * dw :][:, :, ::down, ::along][:, :, :out_h, :out_w]
            result += np.einsum("gnc,gchw->gnhw", weights[:, :, :, i, j], taps)
    return result.reshape(case.filters, out_h, out_w)


def record(
    case: Case, isa: int, bits: int, decomposition: Decomposition, codes: U8, out: tuple[int, int]
) -> bytes:
    kernel = (case.channels // case.groups, *case.kernel)
    packed = pack_filters(decomposition, kernel=kernel, groups=case.groups, form=case.form)
    _, blocks, rows, words, bases, _ = packed.weights.shape
    header = struct.pack(
        "<12i18i",
        isa, bases, FORMS.index(case.form), *out, case.groups, blocks, rows, words,
        packed.weights.size, packed.valid.size, codes.size,
        *case.size, case.channels, 0, kernel[0], *case.pads, *case.kernel, *case.strides,
        *case.dilations, bits, case.zero, 0,
    )  # fmt: skip
    parts = (packed.weights, packed.coefficients, packed.valid, codes.transpose(1, 2, 0))
    return header + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def check(program: Program, layers: Iterable[tuple[tuple[int, int], Case]]) -> None:
    """Run all layers, each of (bases, bits), on all instruction sets of this machine in one go and
    compare every sum."""
    isas = usable(program)
    rng = np.random.default_rng(7)
    records, expected = [], []
    for (bases, bits), case in layers:
        decomposition, codes = random_layer(case, bases, bits, rng)
        plain = plain_product(case, decomposition, codes)
        for isa in isas:
            out = (plain.shape[1], plain.shape[2])
            records.append(record(case, ISAS.index(isa), bits, decomposition, codes, out))
            expected.append((f"b{bases}q{bits} {isa} {case}", case, plain))
    sums = run(program, records)
    for name, case, plain in expected:
        per_group = case.filters // case.groups
        padded = -(-per_group // 8) * 8
        count = case.groups * padded * plain.shape[1] * plain.shape[2]
        got = sums[:count].reshape(case.groups, *plain.shape[1:], padded)
        sums = sums[count:]
        found = got[..., :per_group].transpose(0, 3, 1, 2).reshape(plain.shape)
        np.testing.assert_array_equal(found, plain, err_msg=name)
        assert not got[..., per_group:].any(), f"{name}: filters that fill up a block are not 0"
    assert sums.size == 0


@pytest.mark.parametrize(
    ("cc", "flags", "pairs"),
    [
        ("gcc", "-O3", CORNERS),
        ("gcc", "-O2 -march=native", CORNERS),
        ("gcc", "-O2 -DBDCC_PORTABLE", CORNERS),
        ("clang", "-O2", CORNERS),
        ("clang", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all", CORNERS[3:5]),
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
    pairs = sorted({*PAIRS, EVERY[int(rng.integers(len(EVERY)))]})
    program = build(tmp_path, board.compiler(tool), board.flags, pairs, board.emulator(tool))
    assert board.target.planned_for in usable(program)
    random = [
        (pairs[i % len(pairs)], random_case(pairs[i % len(pairs)][1], rng)) for i in range(RANDOM)
    ]
    check(program, [*product(pairs[1:4], LAYERS), *random])


def test_every_pair_of_bases_and_bits(tmp_path: Path, tool: Callable[[str], str]) -> None:
    cases = (
        Case(form="vector", channels=64 * 9 + 1, filters=9),
        Case(form="direct", channels=24, size=(3, 9), kernel=(2, 3), pads=(1, 0, 0, 2), zero=1),
    )
    check(build(tmp_path, tool("gcc"), ["-O0"], EVERY), product(EVERY, cases))


def check_largest_sums(program: Program, every: Sequence[int]) -> None:
    """All codes at the top, all weights +127 or -127: no counter runs over, at any number of bits;
    with 8 bits the sums end next to 2^31."""
    case = Case(form="vector", channels=(2**31 - 1) // (255 * 127), filters=2)
    decomposition = Decomposition(
        coefficients=np.array([[127], [-127]], np.int16),
        signs=np.ones((2, case.channels), np.uint8),
        scale=np.ones(2, np.float32),
        bias=np.zeros(2, np.float32),
    )
    for bits in every:
        codes = np.full((case.channels, 1, 1), (1 << bits) - 1, np.uint8)
        plain = plain_product(case, decomposition, codes)
        for isa in usable(program):
            one = record(case, ISAS.index(isa), bits, decomposition, codes, (1, 1))
            np.testing.assert_array_equal(run(program, [one])[:2], plain[:, 0, 0])
    assert 2**31 - plain.max() <= 255 * 127


def test_largest_sums_that_int32_holds(tmp_path: Path, tool: Callable[[str], str]) -> None:
    every = (1, 2, 3, 4, 8)
    flags = ["-O1", "-fsanitize=undefined"]
    check_largest_sums(build(tmp_path, tool("gcc"), flags, [(1, q) for q in every]), every)


@pytest.mark.parametrize("board", CORES[:3], ids=lambda board: board.cpu)
def test_largest_sums_on_boards(board: Board, tmp_path: Path, tool: Callable[[str], str]) -> None:
    every = (1, 2, 3, 4, 5, 7, 8)
    pairs, flags = [(1, bits) for bits in every], [*board.flags, "-O1"]
    program = build(tmp_path, board.compiler(tool), flags, pairs, board.emulator(tool))
    assert board.target.planned_for in usable(program)
    check_largest_sums(program, every)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("positions", [1, 4])
def test_adder_network_counts(bits: int, positions: int) -> None:
    """Three rounds on random words: what was counted and what is left in the levels add up."""
    rng = np.random.default_rng(bits)
    levels, total, expected = [0] * counter(bits).levels, 0, 0
    for _ in range(3):
        weights = [int(w) for w in rng.integers(0, 2**63, positions, dtype=np.uint64)]
        planes = rng.integers(0, 2**63, (positions, bits), dtype=np.uint64)
        words: dict[str, int] = {}
        for step in adder_network(bits, positions):
            match step.kind:
                case "product":
                    word = weights[step.position] & int(planes[step.position, step.plane])
                    expected += word.bit_count() << step.plane
                    words[step.out] = word
                case "full" | "half":
                    a, b, c = levels[step.level], words[step.a], words.get(step.b, 0)
                    levels[step.level] = a ^ b ^ c
                    words[step.out] = (a & b) | (a & c) | (b & c)
                case _:
                    assert step.kind == "count"
                    total += words[step.a].bit_count() << len(levels)
    assert total + sum(word.bit_count() << level for level, word in enumerate(levels)) == expected


@pytest.mark.parametrize(("bases", "bits"), EVERY)
def test_register_tile_fits(bases: int, bits: int) -> None:
    kernel = kernel_parameters(bases, bits)
    assert sum(kernel.passes, ()) == tuple(range(bases))
    largest = max(len(part) for part in kernel.passes)
    assert kernel.tile * largest * bits <= 24
    assert kernel.limit // 4 * 8 + 3 * 8 <= 255
    assert kernel.half_limit // 4 * 8 + 3 * 8 <= 255
    for machine in MACHINES:
        for tile in kernel.neon[machine.width]:
            seen = []
            for part in tile.passes:
                shape = part.shape
                assert (shape.pixels, shape.pairs) == (tile.pixels, tile.pairs)
                assert len(loop(shape, machine).registers) <= machine.registers
                # The weighted counts of a lane of 16 bits, and the offsets of 32-bit loads.
                assert 2 * 8 * LIMIT * ((1 << shape.planes) - 1) < 1 << 16
                assert machine.width == 64 or max(shape.rows + shape.columns) + 8 <= 1020
                for basis, plane in product(part.bases, part.planes):
                    seen += product(
                        range(basis, basis + shape.bases), range(plane, plane + shape.planes)
                    )
            assert sorted(seen) == list(product(range(bases), range(bits)))


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: str(machine.width))
@pytest.mark.parametrize(("bases", "bits"), EVERY)
def test_products_in_flight_do_not_meet(bases: int, bits: int, machine: Machine) -> None:
    """A temporary is not written before what it held was added, in the next position either."""
    for tile in kernel_parameters(bases, bits).neon[machine.width]:
        for shape in {part.shape for part in tile.passes}:
            names = shape.temporaries(machine)
            count, ahead = len(names), shape.ahead(machine)
            for i in range(count):
                window = {names[(i + j) % count] for j in range(2 * ahead + 1)}
                assert len(window) == 2 * ahead + 1
