# SPDX-License-Identifier: 0BSD
"""Which pictures there are, what classes they belong to, and how they are shared out; nothing is
decoded here.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bdcc.arrays import Arrays, open_arrays
from bdcc.data.preprocess import U8
from bdcc.errors import DataError, one_line
from bdcc.files import read_file, reading, reason
from bdcc.ir.graph import F32, Shape

I64 = npt.NDArray[np.int64]
MOST_TEXT = 1 << 26  # bytes of a file of classes or labels
NPZ_HINT = "Write it with numpy.savez(file, images=..., labels=...), or give a folder"
INDEX = re.compile("[0-9]{1,18}")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """Line i of a classes file: the folder of class i, and its label (the folder's name where none
    is given).
    """

    folders: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listing:
    """What lies at a path, in a fixed order, nothing decoded.

    names: of each picture, relative to path; labels: int64 [N] or None; classes: of a folder per
    class or None. An .npz has its arrays here, in place of files.
    """

    path: Path
    names: tuple[str, ...]
    labels: I64 | None
    classes: Classes | None = None
    array: U8 | F32 | None = None

    def __len__(self) -> int:
        return len(self.names)


def read_classes(path: Path, *, outputs: int) -> Classes:
    """A line per class: folder, optionally tab and label. Raises DataError unless there is one for
    each output.
    """
    try:
        text = read_file(path, most=MOST_TEXT).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the classes ({reason(error)})", layer=str(path)) from None
    if "\0" in text:
        raise DataError("cannot read the classes (a null character)", layer=str(path))
    lines = [line for line in re.split("\r\n?|\n", text) if line.strip()]
    folders = tuple(line.split("\t")[0].strip() for line in lines)
    labels = tuple(line.partition("\t")[2].strip() for line in lines)
    if len(folders) != outputs:
        raise DataError(
            f"{len(folders)} classes, but the model has {outputs} outputs", layer=str(path)
        )
    counts = Counter(folders)
    if len(counts) < len(folders):
        twice = next(name for name in folders if counts[name] > 1)
        raise DataError(f"class '{twice}' is listed twice", layer=str(path))
    return Classes(
        folders=folders,
        labels=tuple(label or f for label, f in zip(labels, folders, strict=True)),
    )


def _names_in(folder: Path) -> list[str]:
    """What is in it and not hidden, sorted."""
    try:
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read the folder ({reason(error)})", layer=str(folder)) from None


def _pictures_in(folder: Path) -> list[str]:
    return [name for name in _names_in(folder) if Path(name).suffix.lower() in SUFFIXES]


def _list_csv(path: Path, outputs: int) -> Listing:
    table = path / "labels.csv"
    try:
        text = read_file(table, most=MOST_TEXT).decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read ({reason(error)})", layer=str(table)) from None
    if not rows or [cell.strip() for cell in rows[0]] != ["file", "index"]:
        raise DataError("the first line must be 'file,index'", layer=str(table))
    names, labels = [], []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        where = f"{table}:{number}"
        index = row[1].strip() if len(row) == 2 else ""
        if not INDEX.fullmatch(index):
            raise DataError("expected a file name and a class index", layer=where)
        if not int(index) < outputs:
            raise DataError(
                f"class index {index} is out of range, the model has {outputs} outputs", layer=where
            )
        if "\0" in row[0] or not (path / row[0]).is_file():
            raise DataError(f"there is no file '{row[0]}'", layer=where)
        names.append(row[0])
        labels.append(int(index))
    return Listing(path=path, names=tuple(names), labels=np.array(labels, np.int64))


def _list_class_folders(
    path: Path, folders: Sequence[str], classes: Classes | None, outputs: int
) -> Listing:
    if classes is None:
        if len(folders) != outputs:
            raise DataError(
                f"{len(folders)} class folders, but the model has {outputs} outputs",
                layer=str(path),
                hint="Name the classes of the outputs, a line each, with --classes FILE",
            )
        classes = Classes(folders=tuple(folders), labels=tuple(map(one_line, folders)))
    position = {name: i for i, name in enumerate(classes.folders)}
    unknown = next((name for name in folders if name not in position), None)
    if unknown is not None:
        raise DataError(f"folder '{unknown}' is not in the classes file", layer=str(path))
    found = [(f"{name}/{p}", position[name]) for name in folders for p in _pictures_in(path / name)]
    return Listing(
        path=path,
        names=tuple(name for name, _ in found),
        labels=np.array([index for _, index in found], np.int64),
        classes=classes,
    )


def _list_npz(path: Path, shape: Shape, outputs: int) -> Listing:
    channels, height, width = shape
    expected = {
        np.dtype(np.uint8): (height, width, channels),
        np.dtype(np.float32): (channels, height, width),
    }
    with open_arrays(path, hint=NPZ_HINT) as found:
        if "images" not in found.names:
            names = ", ".join(sorted(found.names)) or "nothing"
            raise DataError(f"has no array 'images' (it has {names})", layer=str(path))
        header = found.header("images")
        size = header.shape
        if header.dtype == np.uint8 and len(size) == 3 and channels == 1:
            size = (*size, 1)
        if len(size) != 4 or size[1:] != expected.get(header.dtype):
            raise DataError(
                f"images are {header.dtype} {list(size)}; this model takes uint8 "
                f"[N, {height}, {width}, {channels}] or float32 [N, {channels}, {height}, {width}]",
                layer=str(path),
            )
        labels = _read_labels(found, count=size[0], outputs=outputs)
        images = found.read("images").reshape(size)
    if images.dtype == np.float32:
        for number, image in enumerate(images):
            if not np.isfinite(image).all():
                raise DataError(
                    f"picture {number} holds NaN or infinity; every value must be finite",
                    layer=str(path),
                )
    return Listing(
        path=path,
        names=tuple(f"{path.name}[{i}]" for i in range(len(images))),
        labels=labels,
        array=np.ascontiguousarray(images),
    )


def _read_labels(found: Arrays, *, count: int, outputs: int) -> I64 | None:
    """int64 [count], None where there are none."""
    if "labels" not in found.names:
        return None
    header = found.header("labels")
    if header.shape != (count,) or header.dtype.kind not in "iu":
        raise DataError(
            f"labels are {header.dtype} {list(header.shape)}, expected {count} integers",
            layer=str(found.path),
        )
    labels = found.read("labels")
    wrong = np.flatnonzero((labels < 0) | (labels >= outputs))
    if wrong.size:
        raise DataError(
            f"label {labels[wrong[0]]} of picture {wrong[0]} is out of range, "
            f"the model's classes are 0..{outputs - 1}",
            layer=str(found.path),
        )
    return labels.astype(np.int64)


def list_pictures(
    path: Path,
    *,
    shape: Shape,
    outputs: int,
    classes: Classes | None = None,
    labelled: bool = True,
) -> Listing:
    """What lies at `path` for a model with input (C, H, W) and `outputs` classes; raises DataError.

    labelled: False takes every picture and no labels (what calibration needs), so folders may have
    any names.
    """
    with reading(path):
        listing = _list(path, shape, outputs, classes, labelled)
    if not len(listing):
        raise DataError(
            f"there are no pictures in it (bdcc reads {', '.join(sorted(SUFFIXES))})",
            layer=str(path),
        )
    return listing if labelled else replace(listing, labels=None)


def _list(
    path: Path, shape: Shape, outputs: int, classes: Classes | None, labelled: bool
) -> Listing:
    if not path.exists():
        raise DataError("there is no such file or folder", layer=str(path))
    if not path.is_dir():
        return _list_npz(path, shape, outputs)
    loose = _pictures_in(path)
    folders = [n for n in _names_in(path) if (path / n).is_dir() and _pictures_in(path / n)]
    if not labelled:
        nested = [f"{name}/{p}" for name in folders for p in _pictures_in(path / name)]
        return Listing(path=path, names=tuple(loose + nested), labels=None)
    if (path / "labels.csv").is_file():
        return _list_csv(path, outputs)
    if folders and loose:
        raise DataError(
            f"holds both pictures ('{loose[0]}') and folders of pictures ('{folders[0]}')",
            layer=str(path),
            hint="Give a folder per class, or one folder of pictures",
        )
    if folders:
        return _list_class_folders(path, folders, classes, outputs)
    return Listing(path=path, names=tuple(loose), labels=None)


def draw(labels: I64 | None, rows: npt.NDArray[np.intp], *, count: int, seed: int) -> I64:
    """`count` of `rows` (0 or more than there are: all), evenly over their classes, chosen by seed;
    ascending.

    Classes take turns in a random order, each giving its pictures in a random order, until `count`
    are drawn.
    """
    if count == 0 or count >= len(rows):
        return rows.astype(np.int64)
    shuffled = np.random.default_rng(seed).permutation(rows)
    if labels is not None:
        group = labels[shuffled]
        turn = np.zeros(len(shuffled), np.int64)
        for value in np.unique(group):
            members = np.flatnonzero(group == value)
            turn[members] = np.arange(len(members))
        shuffled = shuffled[np.argsort(turn, kind="stable")]
    return np.sort(shuffled[:count]).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Disjoint rows of one listing; a part that has its own pictures is empty here."""

    search: I64
    calib: I64
    holdout: I64


def split(listing: Listing, *, calib: bool, holdout: bool, limit: int, seed: int) -> Parts:
    """10 % (at most 600) to calibrate and 25 % to hold out, where asked; of the rest at most
    `limit` (0: all) to search.

    Each drawn evenly over classes. Raises DataError when there are too few pictures to share out.
    """
    rest, labels = np.arange(len(listing)), listing.labels
    taken: dict[str, I64] = {"calib": np.empty(0, np.int64), "holdout": np.empty(0, np.int64)}
    wanted = {
        "calib": min(600, max(1, len(listing) // 10)) if calib else 0,
        "holdout": max(1, len(listing) // 4) if holdout else 0,
    }
    if sum(wanted.values()) >= len(listing):
        raise DataError(
            f"{len(listing)} pictures are too few to calibrate, search and hold out with",
            layer=str(listing.path),
            hint="Give more, or --calib and --holdout",
        )
    for number, (part, count) in enumerate(wanted.items()):
        if count:
            taken[part] = draw(labels, rest, count=count, seed=seed + number)
            rest = np.setdiff1d(rest, taken[part])
    return Parts(search=draw(labels, rest, count=limit, seed=seed + 2), **taken)
