# SPDX-License-Identifier: 0BSD
"""The pictures that a model is measured on, decoded and at the size of its input.

The pixels lie in a sealed .npy file that worker processes map, so a `Pictures` pickles in a few
kilobytes.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from bdcc.data.listing import I64, Listing, draw, list_pictures, read_classes
from bdcc.data.preprocess import U8, Preprocess
from bdcc.errors import DataError
from bdcc.files import opened, read_file, reading, reason, reserve
from bdcc.ir.graph import F32, Shape
from bdcc.sealed import Shelf

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """N pictures at the size of the model's input.

    data: uint8 [M, H, W, C] (R,G,B or gray) or float32 [M, C, H, W] (preprocessed already), or the
    .npy file that has it, and may have more behind it;
    rows: int64 [N], which of its M entries; labels: int64 [N] or None; digest: of the pixels, in
    hex.
    """

    data: Path | U8 | F32
    rows: I64
    names: tuple[str, ...]
    labels: I64 | None
    preprocess: Preprocess
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def _array(self) -> U8 | F32:
        if not isinstance(self.data, Path):
            return self.data
        try:
            array: U8 | F32 = np.load(self.data, mmap_mode="r")
        except OSError as error:  # somebody has cleared the cache meanwhile
            raise DataError(f"cannot be read ({reason(error)})", layer=str(self.data)) from None
        return array

    @property
    def are_pixels(self) -> bool:
        """Whether they are uint8 pixels, for `preprocess` to work on."""
        return self._array().dtype == np.uint8

    @property
    def images(self) -> U8 | None:
        """uint8 [N, H, W, C], or None when the pictures came preprocessed."""
        array = self._array()
        return np.asarray(array[self.rows]) if array.dtype == np.uint8 else None

    @property
    def tensors(self) -> F32 | None:
        """float32 [N, C, H, W] as they came, or None when they are pixels."""
        array = self._array()
        return np.asarray(array[self.rows]) if array.dtype == np.float32 else None

    def contents(self) -> Iterator[bytes]:
        """The values of one picture after the other, as they lie in the file: all of them together
        need not fit in memory.
        """
        array = self._array()
        return (array[row].tobytes() for row in self.rows)

    def batch(self, indices: Sequence[int] | I64) -> F32:
        """float32 [n, C, H, W]: what the model takes, for the pictures at `indices`."""
        array = self._array()
        chosen = np.asarray(array[self.rows[np.asarray(indices, np.int64)]])
        if chosen.dtype == np.uint8:
            return self.preprocess.apply(chosen.astype(np.uint8, copy=False))
        return chosen.astype(np.float32, copy=False)

    def subset(self, indices: Sequence[int] | I64) -> Pictures:
        chosen = np.asarray(indices, np.int64)
        return replace(
            self,
            rows=self.rows[chosen],
            names=tuple(self.names[i] for i in chosen),
            labels=None if self.labels is None else self.labels[chosen],
        )

    def portable(self, indices: Sequence[int] | I64) -> Pictures:
        """The subset with its pixels in memory: it pickles for a host that has not got the file."""
        chosen = self.subset(indices)
        pixels: Any = np.asarray(self._array()[chosen.rows])
        return replace(chosen, data=pixels, rows=np.arange(len(pixels), dtype=np.int64))

    @property
    def key(self) -> str:
        """Hex digest of all that an accuracy depends on: pixels, preprocessing, which rows, their
        labels.
        """
        state = hashlib.sha256(self.digest.encode())
        state.update(repr(self.preprocess.as_json()).encode())
        state.update(self.rows.tobytes())
        state.update(b"" if self.labels is None else self.labels.tobytes())
        return state.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JoinedPictures:
    """Several sets one after another, as one source of batches."""

    parts: tuple[Pictures, ...]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each part begins, and the end."""
        return (0, *np.cumsum([len(part) for part in self.parts]).tolist())

    def batch(self, indices: Sequence[int] | I64) -> F32:
        """float32 [n, C, H, W]; indices ascending."""
        inside = self._inside(indices)
        return np.concatenate([p.batch(i) for p, i in zip(self.parts, inside, strict=True)])

    def portable(self, indices: Sequence[int] | I64) -> JoinedPictures:
        """See Pictures.portable; indices ascending."""
        inside = self._inside(indices)
        parts = tuple(p.portable(i) for p, i in zip(self.parts, inside, strict=True))
        return JoinedPictures(parts=parts)

    def _inside(self, indices: Sequence[int] | I64) -> list[I64]:
        """For each part, those of the indices that lie in it, counted from its start."""
        chosen = np.asarray(indices, np.int64)
        return [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(self.starts)]

    @property
    def key(self) -> str:
        return hashlib.sha256("".join(part.key for part in self.parts).encode()).hexdigest()


def read_pictures(
    listing: Listing,
    *,
    rows: I64 | None = None,
    shape: Shape,
    preprocess: Preprocess,
    store: Shelf | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Pictures:
    """Decodes and resizes the pictures of a listing at `rows` (all: None), on threads; raises
    DataError naming a bad file.

    store: what keeps the pixels, keyed by the bytes of the files, for worker processes to map and
    for the next run to find; None keeps them in memory. Raises OutputError if they cannot be kept.
    """
    rows = np.arange(len(listing), dtype=np.int64) if rows is None else rows
    names = tuple(listing.names[i] for i in rows)
    labels = None if listing.labels is None else listing.labels[rows]
    if listing.array is not None:
        data, digest = hold_pixels(listing.array[rows], store)
    else:
        files = [listing.path / name for name in names]
        data, digest = _hold_files(files, shape, preprocess, store, workers, progress)
    return Pictures(
        data=data,
        rows=np.arange(len(rows), dtype=np.int64),
        names=names,
        labels=labels,
        preprocess=preprocess,
        digest=digest,
    )


def _read(file: Path) -> bytes:
    with reading(file):
        return read_file(file)


def hold_pixels(pixels: U8 | F32, store: Shelf | None) -> tuple[Path | U8 | F32, str]:
    """The pixels themselves, or the file in `store` that has them; and their digest."""
    state = hashlib.sha256(f"{pixels.dtype} {pixels.shape}".encode())
    state.update(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
    digest = state.hexdigest()
    if store is None:
        return pixels, digest
    fill = functools.partial(np.copyto, src=pixels)
    return _keep(store, digest, pixels.shape, pixels.dtype, fill), digest


def _hold_files(
    files: Sequence[Path],
    shape: Shape,
    preprocess: Preprocess,
    store: Shelf | None,
    workers: int,
    progress: Progress | None,
) -> tuple[Path | U8 | F32, str]:
    channels, height, width = shape
    state = hashlib.sha256(f"{shape} {preprocess.resize}".encode())
    with ThreadPoolExecutor(workers) as pool:
        for content in pool.map(lambda file: hashlib.sha256(_read(file)).digest(), files):
            state.update(content)
    digest = state.hexdigest()
    size = (len(files), height, width, channels)

    def decode(out: U8) -> None:
        def decode_one(index: int) -> None:
            out[index] = read_picture(files[index], shape=shape, preprocess=preprocess)

        with ThreadPoolExecutor(workers) as pool:
            try:
                for done, _ in enumerate(pool.map(decode_one, range(len(files))), 1):
                    if progress is not None:
                        progress("pictures", done, len(files))
            except BaseException:  # a bad file, or Ctrl-C: do not decode the rest first
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    if store is None:
        pixels = np.empty(size, np.uint8)
        decode(pixels)
        return pixels, digest
    return _keep(store, digest, size, np.dtype(np.uint8), decode), digest


def _keep(
    store: Shelf, digest: str, size: Shape, dtype: np.dtype[Any], fill: Callable[[Any], None]
) -> Path:
    """The .npy of that digest, filled through a mapping unless it is there: it never has to fit in
    memory.
    """
    name = f"pixels-{digest[:32]}.npy"
    content_bytes = math.prod(size) * dtype.itemsize

    def write(out: BinaryIO) -> None:
        header = {"descr": dtype.str, "fortran_order": False, "shape": size}
        np.lib.format.write_array_header_1_0(out, header)
        start = out.tell()
        reserve(out, content_bytes)
        mapped = np.memmap(out, dtype, "r+", offset=start, shape=size)
        fill(mapped)
        mapped.flush()

    return store.find(name) or store.write(name, write, wanted_bytes=content_bytes)


def read_picture(file: Path, *, shape: Shape, preprocess: Preprocess) -> U8:
    """uint8 [H, W, C] of one picture file; raises DataError."""
    if shape[0] not in (1, 3):
        raise DataError(
            f"pictures have 1 or 3 channels, the model's input has {shape[0]}",
            layer=str(file),
            hint="Give an .npz with float32 images [N, C, H, W]",
        )
    try:
        with opened(file) as content, Image.open(content) as picture:
            return preprocess.fit(picture, shape)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        text = "no picture format that Pillow knows"
        if not isinstance(error, UnidentifiedImageError):
            text = reason(error)
        raise DataError(f"is not a readable picture ({text})", layer=str(file)) from None


def load_pictures(
    path: Path,
    *,
    input_shape: Shape,
    preprocess: Preprocess,
    outputs: int,
    classes: Path | None = None,
    store: Shelf | None = None,
    limit: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pictures:
    """All pictures at `path` (or `limit`, drawn evenly over classes), with their labels if they
    have any.
    """
    named = None if classes is None else read_classes(classes, outputs=outputs)
    listing = list_pictures(path, shape=input_shape, outputs=outputs, classes=named)
    return read_pictures(
        listing,
        rows=draw(listing.labels, np.arange(len(listing)), count=limit, seed=seed),
        shape=input_shape,
        preprocess=preprocess,
        store=store,
        progress=progress,
    )
