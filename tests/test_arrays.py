# SPDX-License-Identifier: 0BSD
"""Arrays out of .npz files: what NumPy writes is read as it does, and nothing else is."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bdcc import arrays as module
from bdcc.arrays import open_arrays
from bdcc.errors import DataError
from fuzz.npz_mutants import array_bytes, zipped

TYPES = ("?", "u1", "i1", "u2", ">i4", "<u8", "f2", ">f4", "f8")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4), (2, 0, 3), (1,) * 8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_writes_is_read_as_numpy_reads_it(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], order: str
) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape)
    array = np.asarray(values.astype(dtype), order=order)  # type: ignore[call-overload]
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "x.npz", a=array, b=np.arange(3))
        with open_arrays(tmp_path / "x.npz") as found:
            assert set(found.names) == {"a", "b"}
            assert (found.header("a").dtype, found.header("a").shape) == (array.dtype, shape)
            again = found.read("a")
        assert again.dtype == array.dtype
        assert np.array_equal(again, array)
        assert again.flags.writeable


def test_values_of_many_chunks(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 1 << 20), np.uint8)
    np.savez_compressed(tmp_path / "x.npz", array)
    with open_arrays(tmp_path / "x.npz") as found:
        assert np.array_equal(found.read("arr_0"), array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_format(tmp_path: Path, version: tuple[int, int]) -> None:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.arange(6).reshape(2, 3), version=version)
    (tmp_path / "x.npz").write_bytes(zipped({"a.npy": content.getvalue()}))
    with open_arrays(tmp_path / "x.npz") as found:
        assert found.read("a").tolist() == [[0, 1, 2], [3, 4, 5]]


ZEROS = np.zeros(6, np.uint8)
GOOD = array_bytes(ZEROS, shape="(2, 3)")


def headed(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode("latin-1") + bytes(6)


HOSTILE = {
    "more than is there": array_bytes(ZEROS, shape="(1000000000000,)"),
    "less than is there": array_bytes(ZEROS, shape="(5,)"),
    "negative": array_bytes(ZEROS, shape="(-6,)"),
    "overflowing": array_bytes(ZEROS, shape="(4294967296, 4294967296)"),
    "beyond 64 bits": array_bytes(ZEROS, shape="(99999999999999999999999,)"),
    "nothing of much": array_bytes(ZEROS[:0], shape="(0, 99999999999999999999999)"),
    "nested": array_bytes(ZEROS, shape="((2, 3),)"),
    "bare": array_bytes(ZEROS, shape="6"),
    "an empty extent": array_bytes(ZEROS, shape="(2,,3)"),
    "too many dimensions": array_bytes(ZEROS[:1], shape=f"({'1,' * 33})"),
    "objects": headed("{'descr': '|O', 'fortran_order': False, 'shape': (6,), }"),
    "records": headed("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (6,), }"),
    "texts": headed("{'descr': '<U6', 'fortran_order': False, 'shape': (1,), }"),
    "complex": headed("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }"),
    "no type": headed("{'descr': '|b8', 'fortran_order': False, 'shape': (1,), }"),
    "code": headed("__import__('os').abort()"),
    "deep": headed("(" * 4000),
    "a key too few": headed("{'descr': '|u1', 'shape': (6,), }"),
    "a key too many": headed("{'descr': '|u1', 'fortran_order': False, 'shape': (6,), 'x': 1}"),
    "a key twice": headed("{'descr': '|u1', 'descr': '|u1', 'shape': (6,), }"),
    "swapped": headed("{'descr': (6,), 'fortran_order': '|u1', 'shape': False, }"),
    "blanks": headed("{" + " " * 4000),
    "a long header": headed("{" + " " * 60_000),
    "a header beyond its end": b"\x93NUMPY\1\0\xff\x0f{",
    "another version": b"\x93NUMPY\7\0" + GOOD[8:],
    "a pickle": pickle.dumps([1, 2]),
    "empty": b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_members_that_are_no_arrays_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.npz").write_bytes(zipped({"a.npy": HOSTILE[kind], "b.npy": GOOD}))
    with open_arrays(tmp_path / "x.npz", hint="Write it anew") as found:
        for read in (found.header, found.read):
            with pytest.raises(DataError, match=r"x\.npz: is not a readable \.npz.*Write it anew"):
                read("a")
        assert found.read("b").shape == (2, 3)


def changed(data: bytes, mark: bytes, offset: int, form: str, value: int) -> bytes:
    """One field behind a mark of the zip format."""
    out = bytearray(data)
    struct.pack_into(form, out, data.index(mark) + offset, value)
    return bytes(out)


PLAIN, PACKED = (
    zipped({"a.npy": GOOD}, method=m) for m in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
)
DAMAGED = {
    "BZ2": zipped({"a.npy": GOOD}, method=zipfile.ZIP_BZIP2),
    "LZMA": zipped({"a.npy": GOOD}, method=zipfile.ZIP_LZMA),
    "encrypted": changed(changed(PLAIN, b"PK\1\2", 8, "<H", 1), b"PK\3\4", 6, "<H", 1),
    "another checksum": changed(PLAIN, b"PK\1\2", 16, "<I", 7),
    "a larger size": changed(PACKED, b"PK\1\2", 24, "<I", 1000),
    "10^9 bytes and more": changed(PACKED, b"PK\1\2", 24, "<I", 0xFFFFFFFE),
    "a directory elsewhere": changed(PLAIN, b"PK\5\6", 16, "<I", 0xFFFFFF),
    "a member elsewhere": changed(PLAIN, b"PK\1\2", 42, "<I", 77),
    "damaged zlib": PACKED[:40] + bytes(20) + PACKED[60:],
    "cut short": PLAIN[:100],
    "no zip": b"\x93NUMPY" + PLAIN,
    "nothing": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.npz").write_bytes(DAMAGED[kind])

    def read() -> None:
        with open_arrays(tmp_path / "x.npz") as found:
            found.read("a")

    if kind == "no zip":  # something in front of it is no fault of a zip
        read()
        return
    with pytest.raises(DataError, match=r"x\.npz: is not a readable \.npz file of plain arrays \("):
        read()


def test_a_bomb_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROOM", 1 << 20)
    bomb = tmp_path / "x.npz"
    bomb.write_bytes(zipped({"a.npy": bytes(4 << 20)}, method=zipfile.ZIP_DEFLATED))
    assert bomb.stat().st_size < 1 << 17
    with pytest.raises(DataError, match="it says that it holds 4194304 bytes, and at most"):
        open_arrays(bomb).__enter__()


def test_members_that_overlap_are_counted_each(tmp_path: Path) -> None:
    """Where nothing may be compressed, there is no more than the file's own bytes."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", bytes(1000))
        archive.NameToInfo.clear()
        for name in "bcd":
            info = zipfile.ZipInfo(f"{name}.npy")
            info.file_size = info.compress_size = 1000
            info.header_offset = info.CRC = 0
            archive.filelist.append(info)
    with pytest.raises(DataError, match="it says that it holds 4000 bytes"):
        open_arrays(tmp_path / "x.npz", compressed=False).__enter__()


def test_what_may_not_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(zipped({"a": b"x" * 99}, method=zipfile.ZIP_DEFLATED))
    with pytest.raises(DataError, match="it is compressed"):
        open_arrays(tmp_path / "x.npz", compressed=False).__enter__()


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place, text in ((tmp_path / "pipe", "no regular file"), (tmp_path, "Is a directory"),
                        (tmp_path / "none", "No such file"), (Path("a\0b"), "null"),
                        (tmp_path / ("x" * 300), "too long")):  # fmt: skip
        with pytest.raises(DataError, match=text):
            open_arrays(place).__enter__()
