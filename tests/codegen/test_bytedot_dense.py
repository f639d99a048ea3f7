# SPDX-License-Identifier: 0BSD
"""The dense kernels by bytes in C, for every compiler and instruction set of this machine, against
the plain integer product of codes and integer weights in NumPy."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bdcc.approx.model import COEFFICIENT_CAP, Decomposition
from bdcc.codegen.bytedot_dense import dense_parameters, template_variables
from bdcc.codegen.packing import pack_filters, side_by_side
from bdcc.codegen.targets import ISAS
from boards import CORES, Board
from codegen import programs
from codegen.programs import Program, run, usable

# one table or two, full or not; every way to add products in 16 bits
CORNERS = ((1, 1), (1, 8), (2, 6), (3, 8), (4, 7), (4, 8), (5, 8), (6, 8), (7, 3), (7, 7))
EVERY = tuple((bases, bits) for bases in range(1, 8) for bits in range(1, 9))

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer, of which blocks first .. first + count of eight filters are asked for."""

    inputs: int
    filters: int
    first: int
    count: int
    largest: bool = False


CASES = (
    *(Case(inputs=k, filters=8 * n, first=0, count=n) for n, k in enumerate((1, 63, 64, 65), 1)),
    Case(inputs=363, filters=37, first=0, count=5),
    Case(inputs=363, filters=37, first=2, count=2),
    Case(inputs=9216, filters=11, first=1, count=1),
    Case(inputs=64 * 512 + 1, filters=9, first=0, count=2),  # x in two chunks
    *(Case(inputs=k, filters=16, first=0, count=2, largest=True) for k in (64, 9216, 66311)),
)


def random_cases(count: int, rng: np.random.Generator) -> list[Case]:
    """Layers of any size that is quick under emulation."""
    cases: list[Case] = []
    for _ in range(count):
        filters = int(rng.integers(1, 50))
        first = int(rng.integers(0, -(-filters // 8)))
        cases.append(
            Case(
                inputs=int(rng.integers(1, 1500)),
                filters=filters,
                first=first,
                count=int(rng.integers(1, -(-filters // 8) - first + 1)),
                largest=bool(rng.integers(0, 4) == 0),
            )
        )
    return cases


build = partial(programs.build_pairs, "bytedot_dense", template_variables)


def random_layer(
    case: Case, bases: int, bits: int, rng: np.random.Generator
) -> tuple[Decomposition, U8]:
    """Random bases, coefficients as large as allowed, and codes [K]; or all codes at the top and
    the weights of each filter all the largest or all the smallest there are."""
    cap = COEFFICIENT_CAP[bases]
    parts = np.floor(rng.dirichlet(np.ones(bases), size=case.filters) * cap).astype(np.int16)
    parts[:, 0] += cap - parts.sum(axis=1, dtype=np.int16)
    negative = rng.integers(0, 2, parts.shape) == 1
    parts[negative] *= -1
    signs = rng.integers(0, 1 << bases, (case.filters, case.inputs), dtype=np.uint8)
    codes = rng.integers(0, 1 << bits, case.inputs, dtype=np.uint8)
    if case.largest:
        positive = ((parts > 0) << np.arange(bases)).sum(axis=1).astype(np.uint8)
        positive[::2] ^= np.uint8((1 << bases) - 1)
        signs[:] = positive[:, None]
        codes[:] = (1 << bits) - 1
    decomposition = Decomposition(
        coefficients=parts,
        signs=signs,
        scale=np.ones(case.filters, np.float32),
        bias=np.zeros(case.filters, np.float32),
    )
    return decomposition, codes


def record(case: Case, isa: int, bits: int, decomposition: Decomposition, codes: U8) -> bytes:
    packed = pack_filters(decomposition, kernel=(case.inputs, 1, 1), groups=1, form="vector")
    _, blocks, _, words, bases, _ = packed.weights.shape
    header = struct.pack("<7i", isa, bases, bits, words, blocks, case.first, case.count)
    x = np.zeros(64 * words, np.uint8)
    x[: case.inputs] = codes
    return header + b"".join(
        a.tobytes() for a in (side_by_side(packed.weights), packed.coefficients, x)
    )


def check(program: Program, pairs: Sequence[tuple[int, int]], cases: Sequence[Case]) -> None:
    """Run all cases on all instruction sets of this machine in one go and compare every sum."""
    isas = usable(program)
    assert isas[0] == "generic"
    rng = np.random.default_rng(7)
    records: list[bytes] = []
    expected: list[tuple[str, I64]] = []
    for bases, bits in pairs:
        for case in cases:
            decomposition, codes = random_layer(case, bases, bits, rng)
            plain = np.zeros(-(-case.filters // 8) * 8, np.int64)
            weights = decomposition.integer_weights().astype(np.int64)
            plain[: case.filters] = weights @ codes.astype(np.int64)
            assert np.abs(plain).max() < 2**31
            plain = plain[8 * case.first :][: 8 * case.count]
            for isa in isas:
                records.append(record(case, ISAS.index(isa), bits, decomposition, codes))
                expected.append((f"b{bases}q{bits} {isa} {case}", plain))
    sums = run(program, records)
    for name, plain in expected:
        np.testing.assert_array_equal(sums[: plain.size], plain, err_msg=name)
        sums = sums[plain.size :]
    assert sums.size == 0


@pytest.mark.parametrize(
    ("cc", "flags", "pairs"),
    [
        ("gcc", "-O3", CORNERS),
        ("gcc", "-O2 -march=native", CORNERS[4:7]),
        ("gcc", "-O2 -DBDCC_PORTABLE", CORNERS),
        ("clang", "-O2", CORNERS),
        ("clang", "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all", CORNERS[5:9]),
    ],
)
def test_kernels_match_plain_product(
    cc: str,
    flags: str,
    pairs: Sequence[tuple[int, int]],
    tmp_path: Path,
    tool: Callable[[str], str],
) -> None:
    check(build(tmp_path, tool(cc), flags.split(), pairs), pairs, CASES)


@pytest.mark.parametrize("board", CORES, ids=lambda board: board.cpu)
def test_kernels_match_plain_product_on_boards(
    board: Board, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    """The corners, and random layers: 7 of every pair."""
    program = build(tmp_path, board.compiler(tool), board.flags, CORNERS, board.emulator(tool))
    assert board.target.planned_for in usable(program)
    check(program, CORNERS, CASES)
    check(program, CORNERS, random_cases(7, np.random.default_rng(11)))


def test_clang_builds_for_aarch64(tmp_path: Path, tool: Callable[[str], str]) -> None:
    tool("aarch64-linux-gnu-gcc")  # whose libraries clang takes
    flags = ["--target=aarch64-linux-gnu", "-mcpu=cortex-a53", "-O2", "-static"]
    emulator = [tool("qemu-aarch64"), "-cpu", "max"]
    program = build(tmp_path, tool("clang"), flags, CORNERS[3:6], emulator)
    assert usable(program) == ("generic", "neon", "neondot")
    check(program, CORNERS[3:6], random_cases(3, np.random.default_rng(13)))


def test_every_pair_of_bases_and_bits(tmp_path: Path, tool: Callable[[str], str]) -> None:
    cases = (
        Case(inputs=64 * 9 + 1, filters=9, first=0, count=2),
        Case(inputs=64 * 600, filters=2, first=0, count=1, largest=True),
    )
    check(build(tmp_path, tool("gcc"), ["-O0"], EVERY), EVERY, cases)


@pytest.mark.parametrize(("bases", "bits"), EVERY)
def test_products_fit_16_bits(bases: int, bits: int) -> None:
    kernel = dense_parameters(bases, bits)
    top = 15 if kernel.split else (1 << bits) - 1
    assert 2 * top * COEFFICIENT_CAP[bases] * kernel.together * kernel.rounds <= 2**15 - 1
    largest = ((1 << bits) - 1) * (COEFFICIENT_CAP[bases] + kernel.offset)
    assert kernel.offset >= COEFFICIENT_CAP[bases]
    assert kernel.products in (1, 2, 4, 8)
    assert largest * kernel.products <= 2**16 - 1
    assert kernel.rounds == 1 or kernel.together == 4
    assert sum((table.bases for table in kernel.tables), ()) == tuple(range(bases))
