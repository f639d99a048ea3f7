# SPDX-License-Identifier: 0BSD
"""Damaged and hostile .npz files, made from a good one by a seed."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

Rng = np.random.Generator
VALUES = (0, 1, 0xFF, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 1 << 20)
DTYPES = (
    *("<f4", "|u1", "<i8", ">i2", "|b1", "<f2", "<f16", "<c8", "|O", "|O8", "<U9", "|S4", "|V7"),
    *("<M8[s]", "|u9", "b8", "", "u1" * 9, "<f4, <f4", "é", "\\x00"),
)
SHAPES = (
    *("()", "(0,)", "(1,)", "(-1,)", "(1000000000000,)", "(9, 10**9)", "(2, 3", "3", "(1,) * 9"),
    *("(99999999999999999999999,)", "(0, 99999999999999999999)", "(1L, 2L)", "(True,)", "(1.5,)"),
    *("(4294967296, 4294967296)", "((1, 2), 3)", "[3]", "(" * 3000, "(" + "1," * 900 + ")", "(,)"),
)
HEADERS = (
    *("", "{}", "{" * 1500, "[" * 3000 + "]" * 3000, "'" * 900, "-" * 3000 + "1", "{'descr': "),
    *("__import__('os').abort()", "{'a': 1, **{}}", "\\N{DIGIT ONE}", "{'shape': (1,)}", "\0" * 99),
    *("{'descr': '|u1', 'fortran_order': False, 'shape': (1,), 'x': 1}", "1" * 4000, "(" * 4000),
)


def mutate_npz(good: bytes, rng: Rng) -> bytes:
    return KINDS[rng.integers(len(KINDS))](good, rng)


def mutate_bytes(good: bytes, rng: Rng) -> bytes:
    """Some bits, a stretch, or an end are not what they were."""
    data = bytearray(good)
    match rng.integers(6):
        case 0:
            for _ in range(rng.integers(1, 9)):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        case 1:
            del data[rng.integers(len(data)) :]
        case 2:
            start = int(rng.integers(len(data)))
            stop = start + int(rng.integers(1, 200))
            data[start:stop] = rng.bytes(len(data[start:stop]))
        case 3:
            start = int(rng.integers(len(data)))
            del data[start : start + int(rng.integers(1, 200))]
        case 4:
            start = int(rng.integers(len(data)))
            data[start:start] = rng.bytes(int(rng.integers(1, 200)))
        case _:
            data += data[: rng.integers(len(data))]
    return bytes(data)


def _directory(good: bytes, rng: Rng) -> bytes:
    """A field of the directory, of a member's own header, or of the end is another."""
    data = bytearray(good)
    marks = {b"PK\1\2": 46, b"PK\3\4": 30, b"PK\5\6": 22}
    places = [
        (at, size)
        for mark, size in marks.items()
        for at in _find(data, mark)
        if at + size < 1 << 31
    ]
    at, size = places[rng.integers(len(places))]
    offset = at + 4 + 2 * int(rng.integers((size - 4) // 2))
    value = (
        int(VALUES[rng.integers(len(VALUES))]) if rng.random() < 0.7 else int(rng.integers(1 << 32))
    )
    form = "<I" if rng.random() < 0.5 and offset + 4 <= len(data) else "<H"
    struct.pack_into(form, data, offset, value & (0xFFFFFFFF if form == "<I" else 0xFFFF))
    return bytes(data)


def _find(data: bytearray, mark: bytes) -> Iterator[int]:
    at = data.find(mark)
    while at >= 0:
        yield at
        at = data.find(mark, at + 1)


def _header(good: bytes, rng: Rng) -> bytes:
    """A member says something else of itself."""
    members = members_of(good)
    name = list(members)[rng.integers(len(members))]
    content = members[name]
    body = content[10 + int.from_bytes(content[8:10], "little") :]
    dtype, shape = DTYPES[rng.integers(len(DTYPES))], SHAPES[rng.integers(len(SHAPES))]
    order = ("False", "True", "0", "None")[rng.integers(4)]
    text = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}\n"
    if rng.random() < 0.3:
        text = HEADERS[rng.integers(len(HEADERS))]
    version = (b"\1\0", b"\2\0", b"\3\0", b"\x09\0")[rng.integers(4)]
    encoded = text.encode("utf-8")
    length = len(encoded) if rng.random() < 0.8 else int(rng.integers(1 << 16))
    size = length.to_bytes(2 if version == b"\1\0" else 4, "little")
    return zipped({**members, name: b"\x93NUMPY" + version + size + encoded + body})


def _members(good: bytes, rng: Rng) -> bytes:
    """Members are more, fewer, or no arrays."""
    members = members_of(good)
    name = list(members)[rng.integers(len(members))]
    match rng.integers(6):
        case 0:
            del members[name]
        case 1:
            members[name] = pickle.dumps([1, 2, 3])
        case 2:
            members[name] = rng.bytes(int(rng.integers(300)))
        case 3:
            members |= {"../../etc/x.npy": b"x", "": b"", "images/": b""}
        case 4:
            members[name.removesuffix(".npy")] = members.pop(name)
        case _:
            members[name] = members[list(members)[rng.integers(len(members))]]
    return zipped(members)


def _compressed(good: bytes, rng: Rng) -> bytes:
    """Another compression, whole or damaged, or a secret."""
    methods = (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED)
    data = bytearray(zipped(members_of(good), method=methods[rng.integers(4)]))
    kind = rng.integers(3)
    if kind == 0:
        for at in (
            *(p + 6 for p in _find(data, b"PK\3\4")),
            *(p + 8 for p in _find(data, b"PK\1\2")),
        ):
            data[at] |= 1  # encrypted
    if kind == 1:
        start = min(len(data) - 1, 60 + int(rng.integers(200)))
        data[start : start + 8] = rng.bytes(8)
    return bytes(data)


def _bomb(good: bytes, rng: Rng) -> bytes:
    """Small, and says that it is large."""
    members = members_of(good)
    name = list(members)[rng.integers(len(members))]
    count = int(2 ** rng.integers(20, 28))
    members[name] = array_bytes(np.zeros(0, np.uint8), shape=f"({count},)") + bytes(count)
    data = bytearray(zipped(members, method=zipfile.ZIP_DEFLATED))
    if rng.random() < 0.5:
        for at in _find(data, b"PK\1\2"):
            struct.pack_into("<I", data, at + 24, 0xFFFFFFF0)
    return bytes(data)


KINDS: tuple[Callable[[bytes, Rng], bytes], ...] = (
    *(mutate_bytes, mutate_bytes, _directory, _directory, _header, _header, _members, _compressed),
    _bomb,
)


def array_bytes(array: np.ndarray, *, shape: str) -> bytes:
    """The start of a .npy of uint8 that says it has that shape, and the array's bytes."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode("latin-1")
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + array.tobytes()


def members_of(npz: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()
