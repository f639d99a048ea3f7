# SPDX-License-Identifier: 0BSD
"""The hand-written C against the oracle, bit for bit, for the compilers and instruction sets here.

The tests in runtime/tests judge each function by a slow C version; here the oracle, NumPy and
Pillow judge it.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bdcc.approx.model import TensorQuant
from bdcc.approx.quantize import dynamic_range, quantize_array
from bdcc.approx.simulate import dynamic_constants, exact_exp, run_node
from bdcc.codegen.checksum import checksum
from bdcc.codegen.geometry import lrn_scratch_bytes
from bdcc.codegen.packing import pack_float_filters
from bdcc.data.preprocess import Preprocess, make_preprocess
from bdcc.ir.graph import (
    AveragePool,
    Conv,
    Dense,
    GlobalAveragePool,
    Lrn,
    MaxPool,
    Node,
    Relu,
    Softmax,
    make_graph,
)
from boards import CORES, Board
from strict import strict

RUNTIME = Path(__file__).resolve().parents[2] / "runtime"
SANITIZE = "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"

Array = np.ndarray[Any, Any]
Call = Callable[..., Any]


@pytest.mark.parametrize("flags", ["-O0", "-O1 -DBDCC_PORTABLE", "-O3 -march=native", SANITIZE])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_c_tests_pass(cc: str, flags: str, tmp_path: Path, tool: Callable[[str], str]) -> None:
    variables = [f"CC={tool(cc)}", f"CFLAGS={flags}", f"BUILD={tmp_path}"]
    make = ["make", "-C", str(RUNTIME), "test", *variables]
    run = subprocess.run(make, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("board", CORES, ids=lambda board: board.cpu)
def test_c_tests_pass_on_boards(board: Board, tmp_path: Path, tool: Callable[[str], str]) -> None:
    variables = [
        f"CC={board.compiler(tool)}", f"CFLAGS={' '.join(board.flags)}", f"BUILD={tmp_path}",
        f"RUN=timeout 120 {' '.join(board.emulator(tool))}",  # threads that wait for ever fail
    ]  # fmt: skip
    make = ["make", "-C", str(RUNTIME), "test", *variables]
    run = subprocess.run(make, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


# compiler, flags, instruction set that the CPU must have
BUILDS = {
    "gcc": ("gcc", ["-O3"], "GENERIC"),
    "gcc -O0": ("gcc", ["-O0"], "GENERIC"),
    "gcc avx2": ("gcc", ["-O3", "-DTARGET=BDCC_TARGET_AVX2"], "AVX2"),
    "gcc avx512": ("gcc", ["-O3", "-DTARGET=BDCC_TARGET_AVX512"], "AVX512"),
    "gcc native": ("gcc", ["-O3", "-march=native"], "GENERIC"),
    "gcc fused": ("gcc", ["-O3", "-std=gnu11", "-march=native", "-ffp-contract=fast"], "GENERIC"),
    "clang": ("clang", ["-O3"], "GENERIC"),
    "clang native": ("clang", ["-O3", "-march=native"], "GENERIC"),
    "clang avx512": ("clang", ["-O3", "-DTARGET=BDCC_TARGET_AVX512"], "AVX512"),
}


@pytest.fixture(scope="module", params=BUILDS)
def call(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tool: Callable[[str], str],
) -> Call:
    """call(name, *arguments): a function of exported.c; an array is passed as a pointer."""
    cc, flags, isa = BUILDS[request.param]
    path = tmp_path_factory.mktemp("runtime") / "exported.so"
    source = Path(__file__).with_name("exported.c")
    build = [tool(cc), "-std=c11", *strict(cc), *flags, f"-DNEEDS=BDCC_ISA_{isa}", f"-I{RUNTIME}"]
    subprocess.run([*build, "-shared", "-fPIC", "-o", path, source, "-lm"], check=True)
    library = ctypes.CDLL(str(path))
    if not library.isa_usable():
        pytest.skip(f"this CPU has no {isa}")

    def invoke(name: str, *arguments: Any) -> Any:
        converted = [
            ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_size_t(a)
            for a in arguments
        ]
        return getattr(library, name)(*converted)

    return invoke


# --- data ---------------------------------------------------------------------------------------

HARD = np.array(
    [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45, -1e-40, 0.5, -0.5, 1.5, 2.5],
    np.float32,
)  # fmt: skip


def values(
    shape: tuple[int, ...], *, seed: int = 0, hard: bool = False, scale: float = 1.0
) -> Array:
    """float32 of about size `scale`; hard: one in ten replaced by a value that breaks things."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(scale)
    if hard:
        x = np.where(rng.random(shape) < 0.1, rng.choice(HARD, shape), x)
    return x


def nhwc(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(1, 2, 0))


def nchw(y: Array) -> Array:
    return y.transpose(2, 0, 1)


def expect(node: Node, x: Array) -> Array:
    """The oracle's answer."""
    graph = make_graph(
        name="one", input_name=node.input, input_shape=x.shape, output=node.output, nodes=[node]
    )
    return run_node(graph, node, x)


def assert_same_bits(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    assert want.dtype == np.float32
    np.testing.assert_array_equal(
        np.ascontiguousarray(got).view(np.uint32), np.ascontiguousarray(want).view(np.uint32)
    )


NAMES = {"name": "n", "input": "x", "output": "y"}

# --- float layers -------------------------------------------------------------------------------

# shape, filters, kernel, options
CONVS: dict[str, tuple[tuple[int, int, int], int, tuple[int, int], dict[str, Any]]] = {
    "conv1": ((3, 31, 31), 16, (11, 11), {"strides": (4, 4)}),
    "groups": ((8, 9, 9), 6, (5, 5), {"pads": (2, 2, 2, 2), "groups": 2}),
    "depthwise": ((5, 8, 7), 5, (3, 3), {"pads": (1, 1, 1, 1), "groups": 5}),
    "asymmetric": ((4, 7, 6), 9, (3, 2), {"pads": (2, 0, 0, 3), "strides": (2, 1)}),
    "dilated": ((3, 9, 10), 33, (3, 3), {"pads": (2, 2, 2, 2), "dilations": (2, 3)}),
    "one": ((1, 1, 1), 1, (1, 1), {}),
    "blocks": ((6, 4, 15), 2 * 141, (3, 3), {"pads": (1, 1, 1, 1), "groups": 2}),
    "long runs": ((50, 2, 9), 64, (1, 3), {"pads": (0, 1, 0, 1)}),
}


@pytest.mark.parametrize("hard", [False, True], ids=["normal", "hard"])
@pytest.mark.parametrize("case", CONVS)
def test_conv(call: Call, case: str, hard: bool) -> None:
    shape, filters, kernel, options = CONVS[case]
    groups = options.get("groups", 1)
    weight = values((filters, shape[0] // groups, *kernel), seed=1)
    node = Conv(**NAMES, weight=weight, bias=values((filters,), seed=2), **options)
    x = values(shape, seed=3, hard=hard)
    want = expect(node, x)
    geometry = np.array(
        [*shape[1:], shape[0], *want.shape[1:], filters, *kernel, *node.strides, *node.pads[:2],
         *node.dilations, groups], np.int32,
    )  # fmt: skip
    physical = pack_float_filters(weight, groups=groups)
    y = np.empty((*want.shape[1:], filters), np.float32)
    call("conv", geometry, nhwc(x), physical, node.bias, 0, y)
    assert_same_bits(nchw(y), want)
    call("conv", geometry, nhwc(x), physical, node.bias, 1, y)
    assert_same_bits(nchw(y), expect(Relu(**NAMES), want))


@pytest.mark.parametrize(("k", "n"), [(1, 1), (7, 5), (64, 33), (301, 130)])
@pytest.mark.parametrize("hard", [False, True], ids=["normal", "hard"])
def test_dense(call: Call, k: int, n: int, hard: bool) -> None:
    node = Dense(**NAMES, weight=values((n, k), seed=k), bias=values((n,), seed=n))
    x = values((k,), seed=5, hard=hard)
    y = np.empty(n, np.float32)
    call("dense", x, node.weight.T.copy(), node.bias, k, n, 0, y)
    assert_same_bits(y, expect(node, x))


# --- pools --------------------------------------------------------------------------------------

POOLS: dict[str, tuple[tuple[int, int, int], tuple[int, int], dict[str, Any]]] = {
    "alexnet": ((24, 13, 13), (3, 3), {"strides": (2, 2)}),
    "padded": ((17, 7, 8), (3, 2), {"strides": (2, 1), "pads": (1, 0, 1, 1)}),
    "ceil": ((5, 6, 6), (3, 3), {"strides": (2, 2), "ceil_mode": True}),
    "ceil padded": (
        (3, 6, 6),
        (4, 4),
        {"strides": (3, 3), "pads": (1, 1, 1, 1), "ceil_mode": True},
    ),
    "dilated": ((2, 9, 9), (3, 3), {"dilations": (2, 2), "pads": (1, 2, 2, 1)}),
    "one": ((1, 1, 1), (1, 1), {}),
}


def pool_geometry(
    node: MaxPool | AveragePool, shape: tuple[int, ...], out: tuple[int, ...]
) -> Array:
    include = int(isinstance(node, AveragePool) and node.count_include_pad)
    fields = [*shape[1:], shape[0], *out[1:], *node.kernel, *node.strides, *node.pads[:2],
              *node.dilations, *node.pads[2:], include]  # fmt: skip
    return np.array(fields, np.int32)


@pytest.mark.parametrize("hard", [False, True], ids=["normal", "hard"])
@pytest.mark.parametrize("case", POOLS)
def test_pools(call: Call, case: str, hard: bool) -> None:
    shape, kernel, options = POOLS[case]
    x = values(shape, hard=hard)
    nodes: list[tuple[str, MaxPool | AveragePool]] = [
        ("max_pool_float", MaxPool(**NAMES, kernel=kernel, **options)),
        ("average_pool", AveragePool(**NAMES, kernel=kernel, **options)),
        ("average_pool", AveragePool(**NAMES, kernel=kernel, count_include_pad=True, **options)),
    ]
    for function, node in nodes:
        want = expect(node, x)
        y = np.empty((*want.shape[1:], shape[0]), np.float32)
        finite = [0] if function == "max_pool_float" else []
        call(function, pool_geometry(node, shape, want.shape), nhwc(x), *finite, y)
        assert_same_bits(nchw(y), want)


@pytest.mark.parametrize("case", POOLS)
def test_max_pool_of_codes(call: Call, case: str) -> None:
    """Pooled codes are the codes of the pooled numbers."""
    shape, kernel, options = POOLS[case]
    node = MaxPool(**NAMES, kernel=kernel, **options)
    quant = TensorQuant(bits=4, delta=np.float32(0.3), zero_point=6)
    x = values(shape, seed=8)
    want = quantize_array(expect(node, x), quant)
    y = np.empty((*want.shape[1:], shape[0]), np.uint8)
    call(
        "max_pool_codes", pool_geometry(node, shape, want.shape), nhwc(quantize_array(x, quant)), y
    )
    np.testing.assert_array_equal(nchw(y), want)


@pytest.mark.parametrize("hard", [False, True], ids=["normal", "hard"])
def test_global_average_pool(call: Call, hard: bool) -> None:
    x = values((37, 5, 7), hard=hard)
    y = np.empty((1, 1, 37), np.float32)
    call("global_average_pool", nhwc(x), 35, 37, y)
    assert_same_bits(nchw(y), expect(GlobalAveragePool(**NAMES), x))


# --- elementwise and across channels ------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("quarters", [1, 2, 3, 4, 7, 16])
def test_lrn(call: Call, size: int, quarters: int) -> None:
    for channels, hard in ((3, True), (70, False), (96, True)):
        x = values((channels, 2, 3), seed=channels, hard=hard, scale=20.0)
        node = Lrn(**NAMES, size=size, alpha=1e-4 * size, beta=quarters / 4, bias=2.0)
        constants = np.array([node.alpha / node.size, node.bias], np.float32)
        y = np.empty((2, 3, channels), np.float32)
        scratch = np.empty(lrn_scratch_bytes(channels, size) // 4, np.float32)
        call("lrn", nhwc(x), 6, channels, size, constants, quarters, scratch, y)
        want = expect(node, x)
        assert_same_bits(nchw(y), want)
        quant = TensorQuant(bits=5, delta=np.float32(0.7), zero_point=9)
        to = np.array(quant.reciprocal), quant.zero_point, 31
        codes = np.empty(y.shape, np.uint8)
        call("lrn_codes", nhwc(x), 6, channels, size, constants, quarters, scratch, *to, codes)
        np.testing.assert_array_equal(nchw(codes), quantize_array(want, quant))


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e30])
@pytest.mark.parametrize("hard", [False, True], ids=["normal", "hard"])
def test_softmax(call: Call, scale: float, hard: bool) -> None:
    for shape in ((1, 1, 1), (10, 1, 1), (1000, 1, 1), (7, 3, 2)):
        x = values(shape, hard=hard, scale=scale)
        y = np.empty((shape[1], shape[2], shape[0]), np.float32)
        call("softmax", nhwc(x), shape[1] * shape[2], shape[0], y)
        assert_same_bits(nchw(y), expect(Softmax(**NAMES), x))


def test_exp(call: Call) -> None:
    """Equal to the oracle's, and within 2 units in the last place of the true value."""
    limits = np.array([-87, 88], np.float32)
    around = [np.nextafter(limits, np.float32(sign) * np.inf) for sign in (-1, 1)]
    x = np.concatenate([np.linspace(-87, 88, 100_003, dtype=np.float32), limits, *around, HARD])
    y = np.empty_like(x)
    call("exponential", x, x.size, y)
    with np.errstate(all="ignore"):
        want = exact_exp(x)
    assert_same_bits(y, np.where(np.isnan(want), np.float32(np.nan), want))
    inside = (x >= -87) & (x <= 88)
    true = np.exp(x[inside].astype(np.float64))
    assert np.all(np.abs(y[inside] - true) <= 2 * np.spacing(true.astype(np.float32)))


def test_relu(call: Call) -> None:
    for n in (0, 1, 15, 16, 1001):
        x = values((n,), hard=True)
        y = np.empty_like(x)
        call("relu", x, n, y)
        assert_same_bits(y, expect(Relu(**NAMES), x) if n else x)


# --- codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantize(call: Call, bits: int) -> None:
    top = (1 << bits) - 1
    for delta in (0.01, 0.5, 3.0, 2.0**-100, 2.0**100):
        for zero_point in sorted({0, top // 2, top}):
            quant = TensorQuant(bits=bits, delta=np.float32(delta), zero_point=zero_point)
            x = values((333,), seed=bits, hard=True)
            codes = np.empty(x.shape, np.uint8)
            call("quantize", x, x.size, np.array(quant.reciprocal), zero_point, top, codes)
            np.testing.assert_array_equal(codes, quantize_array(x, quant))


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_dynamic_range(call: Call, bits: int) -> None:
    finite = values((1000,), seed=4)
    cases = [finite, -abs(finite), abs(finite), values((77,), hard=True), np.zeros(5, np.float32)]
    cases += [
        np.full(40, fill, np.float32)
        for fill in (np.nan, np.inf, -np.inf, -0.0, 7.0, 1e-38, 3e38, -(2.0**-92))
    ]
    for x in cases:
        found = np.empty(3, np.float32)
        call("dynamic_range", x, x.size, bits, found)
        delta, zero_point, reciprocal = dynamic_range(x, bits)
        assert_same_bits(found, np.array([delta, reciprocal, zero_point], np.float32))


def test_dynamic_constants(call: Call) -> None:
    for delta in (0.37, 2.0**100):
        quant = TensorQuant(bits=8, delta=np.float32(delta), zero_point=93)
        scale, bias, sums = (values((61,), seed=seed, scale=5000.0) for seed in range(3))
        got = np.empty_like(scale), np.empty_like(bias)
        call(
            "dynamic_constants",
            scale,
            bias,
            sums,
            scale.size,
            np.array(quant.delta),
            quant.zero_point,
            *got,
        )
        with np.errstate(over="ignore"):
            want = dynamic_constants(scale, bias, sums, quant)
        for mine, oracle in zip(got, want, strict=True):
            assert_same_bits(mine, oracle)


@pytest.mark.parametrize("relu", [0, 1])
@pytest.mark.parametrize("channels", [1, 8, 33])
def test_epilogues(call: Call, relu: int, channels: int) -> None:
    """From y_int to floats, and to codes, as run_exact composes them: scale, Relu, quantize."""
    rng = np.random.default_rng(channels)
    sums = rng.integers(-(2**31), 2**31, (6, channels)).astype(np.int32) >> rng.integers(
        0, 31, (6, 1)
    ).astype(np.int32)
    scale, bias = values((channels,), seed=1, hard=True), values((channels,), seed=2, hard=True)
    with np.errstate(all="ignore"):
        y = scale * sums.astype(np.float32) + bias
    y = np.where(np.isnan(y), np.float32(np.nan), y)
    want = expect(Relu(**NAMES), y) if relu else y
    out, codes = np.empty_like(want), np.empty(want.shape, np.uint8)
    call("epilogue_float", sums, 6, channels, scale, bias, relu, out)
    assert_same_bits(out, want)
    quant = TensorQuant(bits=5, delta=np.float32(0.7), zero_point=0 if relu else 11)
    call(
        "epilogue_codes",
        sums,
        6,
        channels,
        scale,
        bias,
        relu,
        np.array(quant.reciprocal),
        quant.zero_point,
        31,
        codes,
    )
    np.testing.assert_array_equal(codes, quantize_array(want, quant))


# --- pictures and checksum ----------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["torchvision", "caffe"])
def test_pixels(call: Call, preset: str) -> None:
    preprocess = make_preprocess(shape=(3, 9, 7), preset=preset)
    padded = np.random.default_rng(0).integers(
        0, 256, (9, 10, 3), np.uint8
    )  # rows longer than the picture
    y = np.empty((9, 7, 3), np.float32)
    order = np.array(preprocess.rgb_index, np.uint8)
    call("input_u8", padded, padded.strides[0], 3, 9, 7, preprocess.table(), order, y)
    want = preprocess.apply(np.ascontiguousarray(padded[None, :, :7]))[0]
    assert_same_bits(nchw(y), want)
    quant = TensorQuant(bits=6, delta=np.float32(3.7), zero_point=31)
    table, codes = quantize_array(preprocess.table(), quant), np.empty(y.shape, np.uint8)
    call("input_u8_codes", padded, padded.strides[0], 3, 9, 7, table, order, codes)
    np.testing.assert_array_equal(nchw(codes), quantize_array(want, quant))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (9, 7), (31, 33)])
def test_input_codes(call: Call, channels: int, size: tuple[int, int]) -> None:
    quant = TensorQuant(bits=5, delta=np.float32(0.2), zero_point=11)
    x, codes = values((channels, *size), hard=True), np.empty((*size, channels), np.uint8)
    to = np.array(quant.reciprocal), quant.zero_point, 31
    call("input_codes", x, channels, *size, *to, codes)
    np.testing.assert_array_equal(nchw(codes), quantize_array(x, quant))


def picture(width: int, height: int, channels: int) -> Array:
    """uint8 [H, W, C]: a smooth half and a noisy one with hard edges."""
    rng = np.random.default_rng(width * height)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2) % 256
    noise = rng.choice([0, 255, 128, 7], (height, width, channels))
    noise[:, : width // 2] = ramp[:, : width // 2, None]
    return np.ascontiguousarray(noise.astype(np.uint8))


@pytest.mark.parametrize("resize", ["stretch", "crop:40"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "size", [(1, 1), (33, 33), (200, 150), (150, 401), (17, 90), (640, 21), (40, 40)]
)
def test_resize(call: Call, resize: str, channels: int, size: tuple[int, int]) -> None:
    """Within one level of what the Python side does with Pillow."""
    image = picture(*size, channels)
    mean = (0.0,) * channels
    preprocess = Preprocess(preset="raw", mean=mean, std=mean, resize=resize)
    want = preprocess.fit(
        Image.fromarray(image.squeeze(axis=2) if channels == 1 else image), (channels, 33, 37)
    )
    geometry = (*size, channels, 37, 33, preprocess.crop or 0)
    scratch = np.empty(call("resize_scratch", *geometry), np.uint8)
    got = np.empty_like(want)
    assert call("resize", *geometry, image, image.strides[0], got, scratch, scratch.size) == 0
    assert np.max(np.abs(got.astype(int) - want)) <= 1


def test_checksum(call: Call) -> None:
    """C and NumPy agree: around word and chunk edges, and on something large."""
    data = np.random.default_rng(0).integers(0, 256, 1_000_003, np.uint8)
    out = np.empty(1, np.uint64)
    for n in (0, 1, 7, 8, 9, 63, 8 * (1 << 14), 8 * (1 << 14) + 1, data.size):
        call("checksum", data, n, out)
        assert checksum(data[:n]) == int(out[0])
        assert checksum(data[:n].tobytes()) == int(out[0])
