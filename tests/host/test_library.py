# SPDX-License-Identifier: 0BSD
"""The built library on arrays, judged by the oracle; shapes, threads, instruction sets."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bdcc.approx.model import QuantizedModel
from bdcc.approx.simulate import run_exact
from bdcc.codegen.targets import ISAS
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import BuildError, DataError, MismatchError, OptionError
from bdcc.host.build import build
from bdcc.host.facts import read_facts
from bdcc.host.library import Library

SHAPE = (3, 23, 21)


@pytest.fixture(scope="module")
def library(net: Path) -> Iterator[Library]:
    with Library.open(net) as library:
        yield library


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(7, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(model: QuantizedModel, images: np.ndarray) -> np.ndarray:
    """The oracle's output for each picture."""
    return np.stack([run_exact(model, x).values[model.graph.output] for x in images])


def test_run_is_the_oracle(library: Library, images: np.ndarray, expected: np.ndarray) -> None:
    assert np.array_equal(library.run(images), expected)
    one = library.run(images[3])
    assert one.shape == (11,)
    assert np.array_equal(one, expected[3])
    assert library.run(images[:0]).shape == (0, 11)


def test_strided_input(library: Library, images: np.ndarray, expected: np.ndarray) -> None:
    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not channels_last.flags.c_contiguous
    assert np.array_equal(library.run(channels_last), expected)
    assert np.array_equal(library.run(images[::-2]), expected[::-2])


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 20])
def test_batches(library: Library, images: np.ndarray, expected: np.ndarray, threads: int) -> None:
    assert np.array_equal(library.run_batch(images, threads=threads), expected)


def test_threads_that_share_a_library(
    library: Library, images: np.ndarray, expected: np.ndarray
) -> None:
    together = threading.Barrier(4)

    def work(index: int) -> bool:
        together.wait(timeout=30)
        return all(
            np.array_equal(library.run(images[i]), expected[i])
            for i in np.random.default_rng(index).integers(0, len(images), 200)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.fixture(scope="module")
def threaded(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    copy = shutil.copytree(net, tmp_path_factory.mktemp("threaded") / "net", symlinks=True)
    plain = build(copy)
    before = plain.stat().st_mtime_ns
    with Library.open(copy, threads=True) as library:
        yield library
    assert build(copy).stat().st_mtime_ns == before  # the plain library lies beside it


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 16])
def test_threads_that_share_a_picture(
    threaded: Library, images: np.ndarray, expected: np.ndarray, threads: int
) -> None:
    with threaded.pool(threads) as pool:
        assert pool.threads == threads
        assert np.array_equal(threaded.run_mt(images, pool), expected)
        assert np.array_equal(threaded.run_mt(images[2], pool), expected[2])
        output = np.empty(11, np.float32)
        for index in range(threaded.step_count):
            threaded.run_steps(images[4], output, index, index + 1, pool=pool)
        assert np.array_equal(output, expected[4])
    assert np.array_equal(threaded.run(images), expected)


def test_two_pools_at_once(threaded: Library, images: np.ndarray, expected: np.ndarray) -> None:
    def work(threads: int) -> bool:
        for _ in range(10):
            with threaded.pool(threads) as pool:
                if not np.array_equal(threaded.run_mt(images, pool), expected):
                    return False
        return True

    with ThreadPoolExecutor(2) as callers:
        assert all(callers.map(work, (2, 3)))


@pytest.mark.parametrize("threads", [0, -1, 17])
def test_pools_that_cannot_be(threaded: Library, library: Library, threads: int) -> None:
    with (
        pytest.raises(OptionError, match=f"--threads: {threads}: not 1 to 16"),
        threaded.pool(threads),
    ):
        pass
    with pytest.raises(OptionError, match="without threads"), library.pool(2):
        pass


def test_pixels(library: Library) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 23, 21, 3), np.uint8)
    unit = make_preprocess(shape=SHAPE, preset="unit")  # as write_project has it
    found = library.run_u8(pixels)
    assert np.array_equal(found, library.run(unit.apply(pixels)))
    assert np.array_equal(library.run_u8(pixels[1]), found[1])


def test_trace_has_every_step(library: Library, model: QuantizedModel, images: np.ndarray) -> None:
    oracle = run_exact(model, images[0])
    steps = library.trace(images[0])
    assert len(steps) == library.step_count
    assert {s.bits for s in steps} >= {0, 2, 3, 4}
    for step in steps:
        shape = model.graph.map_shape(step.tensor)
        assert step.array.dtype == (np.uint8 if step.bits else np.float32)
        if step.bits == 0:
            assert np.array_equal(step.array, oracle.values[step.tensor].reshape(shape))
        elif step.tensor in oracle.codes:
            assert np.array_equal(step.array, oracle.codes[step.tensor].reshape(shape))
    assert {layer.name for layer in model.graph.weight_layers} <= {s.layer for s in steps}


def test_steps_in_pieces(library: Library, images: np.ndarray, expected: np.ndarray) -> None:
    output = np.full(11, 7, np.float32)
    for first in range(0, library.step_count, 4):
        assert first == 0 or np.all(output == 7)  # only the last step writes it
        library.run_steps(images[2], output, first, min(first + 4, library.step_count))
    assert np.array_equal(output, expected[2])


def test_instruction_sets(
    library: Library, net: Path, images: np.ndarray, expected: np.ndarray
) -> None:
    assert library.isas == tuple(isa for isa in ISAS if isa in library.isas)
    assert library.isas[0] == "generic"
    assert library.isa == library.isas[-1]
    for isa in library.isas:
        with Library.open(net, isa=isa) as narrow:
            assert narrow.isa == isa
            assert np.array_equal(narrow.run(images), expected)


@pytest.mark.parametrize("isa", ["", "sse9", "AVX2", "generic "])
def test_an_unknown_instruction_set(net: Path, isa: str) -> None:
    with pytest.raises(OptionError, match=r"--isa: .* it has generic"):
        Library.open(net, isa=isa)


def test_what_it_says_of_itself(library: Library, model: QuantizedModel) -> None:
    assert library.label(0) == "class 0"
    assert library.label(11) == library.label(-1) == ""
    info = json.loads(library.info)
    assert info["name"] == "net"
    names = [layer.name for layer in model.graph.weight_layers]
    assert [layer["name"] for layer in info["layers"]] == names
    assert library.takes_pixels


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((23, 21, 3), np.float32),
        np.zeros((3, 23, 20), np.float32),
        np.zeros((1, 1, 3, 23, 21), np.float32),
        np.zeros(3, np.float32),
        np.zeros(SHAPE),
        np.zeros(SHAPE, np.uint8),
    ],
)
def test_what_does_not_fit_is_refused(library: Library, x: np.ndarray) -> None:
    with pytest.raises(DataError, match="expects"):
        library.run(x)
    with pytest.raises(DataError, match="expects"):
        library.run_u8(x)


def test_arenas_are_aligned_and_guarded(library: Library) -> None:
    for _ in range(5):
        arena = library.new_arena()
        assert arena.ctypes.data % 64 == 0
        assert arena.size > library.arena_bytes


def test_a_rebuilt_library_is_loaded_anew(copy: Path, images: np.ndarray) -> None:
    facts, source = read_facts(copy), copy / "src" / "net.c"
    first = Library(build(copy), facts)  # stays open
    text = source.read_text("utf-8")
    assert '"class 0"' in text
    source.write_text(text.replace('"class 0"', '"another"'), "utf-8")
    with Library(build(copy, make_args=["CFLAGS=-O0"]), facts) as second:
        assert (first.label(0), second.label(0)) == ("class 0", "another")
        assert np.array_equal(first.run(images), second.run(images))
    first.close()
    first.close()


def test_damaged_weights_do_not_start(copy: Path) -> None:
    weights = copy / "weights" / "net.bin"
    blob = bytearray(weights.read_bytes())
    blob[-1] ^= 1
    weights.write_bytes(blob)
    library = build(copy, make_args=["WEIGHTS=incbin", "-B", "CFLAGS=-O0"])
    with pytest.raises(MismatchError, match="the weights are damaged"):
        Library(library, read_facts(copy))


def test_what_is_no_library_here_is_refused(copy: Path) -> None:
    library = copy / "build" / "libnet.so"
    whole = library.read_bytes()
    for content, why in ((b"", "file too short"), (b"text" * 99, "invalid ELF header")):
        library.resolve().write_bytes(content)
        with pytest.raises(BuildError, match=f"cannot be loaded .*{why}") as caught:
            Library(library, read_facts(copy))
        assert str(caught.value).isprintable()
    library.resolve().write_bytes(whole)
    Library(library, read_facts(copy)).close()
