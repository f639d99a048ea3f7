# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdcc.data.listing import Listing, draw, list_pictures, read_classes, split
from bdcc.data.pictures import read_picture, read_pictures
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import DataError

SHAPE = (3, 6, 8)


def put(file: Path, value: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(file)


def listed(path: Path, *, outputs: int = 3, **options: object) -> Listing:
    return list_pictures(path, shape=SHAPE, outputs=outputs, **options)  # type: ignore[arg-type]


def class_folders(path: Path) -> None:
    for folder, count in (("b", 2), ("a", 1), ("c", 3)):
        for i in range(count):
            put(path / folder / f"{i}.png")


def test_a_folder_per_class_in_sorted_order(tmp_path: Path) -> None:
    class_folders(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    put(tmp_path / ".hidden" / "x.png")
    listing = listed(tmp_path)
    assert listing.names == ("a/0.png", "b/0.png", "b/1.png", "c/0.png", "c/1.png", "c/2.png")
    assert listing.labels is not None
    assert listing.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert listing.classes is not None
    assert listing.classes.labels == ("a", "b", "c")


def test_a_classes_file_gives_position_label_and_allows_a_subset(tmp_path: Path) -> None:
    class_folders(tmp_path / "data")
    file = tmp_path / "classes.txt"
    file.write_text("c\tcurly cat\n\nzebra\na\nb\tbig\tbear\n")
    classes = read_classes(file, outputs=4)
    assert classes.labels == ("curly cat", "zebra", "a", "big\tbear")
    listing = listed(tmp_path / "data", outputs=4, classes=classes)
    assert listing.labels is not None
    assert listing.labels.tolist() == [2, 3, 3, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "2 classes, but the model has 3 outputs"),
        ("a\nb\na\n", "class 'a' is listed twice"),
        ("", "0 classes"),
    ],
)
def test_classes_files_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(file, outputs=3)


def test_an_unreadable_classes_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the classes"):
        read_classes(tmp_path / "missing.txt", outputs=3)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read the classes"):
        read_classes(tmp_path / "binary", outputs=3)


def test_a_classes_file_of_another_system(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    for text in ("\ufeffa\tb\u2028c\x0bd\r\n\r\nb\rc", "a\tb\u2028c\x0bd\rb\nc\n"):
        file.write_bytes(text.encode())
        classes = read_classes(file, outputs=3)
        assert classes.folders == ("a", "b", "c")
        assert classes.labels == ("b\u2028c\x0bd", "b", "c")
    for content in ("a\nb\nc".encode("utf-16"), b"a\nb\0\nc"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="cannot read the classes"):
            read_classes(file, outputs=3)


def test_many_classes_take_no_time(tmp_path: Path) -> None:
    count = 200_000
    (tmp_path / "classes").write_text("\n".join(map(str, range(count))) + "\n0")
    with pytest.raises(DataError, match="class '0' is listed twice"):
        read_classes(tmp_path / "classes", outputs=count + 1)


NOT_UTF8 = os.fsdecode(b"caf\xe9")


def test_folders_whose_names_are_no_utf8(tmp_path: Path) -> None:
    for folder in ("a\nb", NOT_UTF8, "c"):
        put(tmp_path / folder / f"{NOT_UTF8}.png")
    listing = listed(tmp_path)
    assert listing.classes is not None
    assert listing.classes.folders == ("a\nb", "c", NOT_UTF8)
    assert listing.classes.labels == ("a\\nb", "c", r"caf\udce9")
    read_pictures(listing, shape=SHAPE, preprocess=make_preprocess(shape=SHAPE))
    put(tmp_path / "d" / "x.png")
    (tmp_path / "classes").write_text("a\nc\nd\n")
    classes = read_classes(tmp_path / "classes", outputs=3)
    with pytest.raises(DataError, match=r"folder 'a\\nb' is not in the classes file"):
        listed(tmp_path, classes=classes)


def test_what_is_no_file_and_no_folder_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "x.npz").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for place, message in (
        (tmp_path / "pipe", "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path / "x.npz", "there are no pictures in it"),
        (tmp_path / "loop", "there is no such file or folder"),
        (tmp_path / ("x" * 300), "File name too long"),
        (Path("a\0b"), "there is no such file or folder"),
    ):
        for labelled in (True, False):
            with pytest.raises(DataError, match=message):
                listed(place, labelled=labelled)
    with pytest.raises(DataError, match="it is no regular file"):
        read_classes(tmp_path / "pipe", outputs=3)


@pytest.mark.parametrize("kind", ["pipe.png", "folder.png", "loop.png"])
def test_what_is_named_like_a_picture_and_is_none(tmp_path: Path, kind: str) -> None:
    match kind:
        case "pipe.png":
            os.mkfifo(tmp_path / kind)
        case "folder.png":
            (tmp_path / kind).mkdir()
        case _:
            (tmp_path / kind).symlink_to(kind)
    preprocess = make_preprocess(shape=SHAPE)
    with pytest.raises(DataError, match=rf"/{kind}: cannot be read"):
        read_pictures(listed(tmp_path), shape=SHAPE, preprocess=preprocess)
    with pytest.raises(DataError, match=rf"/{kind}: is not a readable picture"):
        read_picture(tmp_path / kind, shape=SHAPE, preprocess=preprocess)


def test_labels_csv(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    put(tmp_path / "sub" / "y, z.png")
    put(tmp_path / "unlisted.png")
    (tmp_path / "labels.csv").write_text('file,index\nx.png,2\n"sub/y, z.png", 0\n\n')
    listing = listed(tmp_path)
    assert listing.names == ("x.png", "sub/y, z.png")
    assert listing.labels is not None
    assert listing.labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.png,0\n", "first line must be 'file,index'"),
        ("", "first line must be 'file,index'"),
        ("file,index\nx.png,3\n", r"labels.csv:2: class index 3 is out of range.*3 outputs"),
        ("file,index\nx.png,-1\n", "expected a file name and a class index"),
        ("file,index\nx.png\n", "expected a file name and a class index"),
        ("file,index\nx.png,0\nmissing.png,1\n", r"labels.csv:3: there is no file 'missing.png'"),
        ("file,index\n", "no pictures"),
        ("file,index\nx.png," + "9" * 100_000 + "\n", "expected a file name and a class index"),
        ("file,index\nx.png,\N{SUPERSCRIPT TWO}\n", "expected a file name and a class index"),
        ("file,index\nx\0.png,0\n", r"labels.csv:2: there is no file 'x\\x00.png'"),
        ("file,index\n" + "x" * 300 + ",0\n", "File name too long"),
        ('file,index\n"x.png,0\n', "expected a file name and a class index"),
        ("file,index\n" + "x" * 200_000 + ",0\n", "field larger than field limit"),
        ("file,index\nx.png/,0\nx.png/y,0\n", "there is no file 'x.png/y'"),
    ],
)
def test_labels_csv_that_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path / "x.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path)


def test_labels_csv_that_is_no_text(tmp_path: Path) -> None:
    put(tmp_path / "x.png")
    (tmp_path / "labels.csv").write_bytes("file,index\nx.png,0\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read \('utf-8' codec"):
        listed(tmp_path)
    (tmp_path / "labels.csv").write_bytes("\ufefffile,index\r\nx.png,2\r\n".encode())
    labels = listed(tmp_path).labels
    assert labels is not None
    assert labels.tolist() == [2]


def test_unlabelled(tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    put(tmp_path / "0.JPG")
    listing = listed(tmp_path)
    assert (listing.names, listing.labels) == (("0.JPG", "1.png"), None)


def test_calibration_takes_pictures_from_anywhere_and_no_labels(tmp_path: Path) -> None:
    class_folders(tmp_path)
    put(tmp_path / "loose.png")
    listing = listed(tmp_path, outputs=99, labelled=False)
    assert len(listing) == 7
    assert listing.labels is None


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        listed(tmp_path / "missing")
    with pytest.raises(DataError, match="there are no pictures in it"):
        listed(tmp_path)
    class_folders(tmp_path)
    with pytest.raises(DataError, match=r"3 class folders, but the model has 4 outputs.*--classes"):
        listed(tmp_path, outputs=4)
    (tmp_path / "classes").write_text("a\nb\nd\n")
    classes = read_classes(tmp_path / "classes", outputs=3)
    with pytest.raises(DataError, match="folder 'c' is not in the classes file"):
        listed(tmp_path, classes=classes)
    put(tmp_path / "loose.png")
    with pytest.raises(DataError, match="both pictures"):
        listed(tmp_path)


@pytest.mark.parametrize(("dtype", "size"), [(np.uint8, (4, 6, 8, 3)), (np.float32, (4, 3, 6, 8))])
@pytest.mark.parametrize("labels", [None, np.array([0, 2, 1, 0], np.uint8)])
def test_npz(tmp_path: Path, dtype: type, size: tuple[int, ...], labels: np.ndarray | None) -> None:
    images = np.zeros(size, dtype)
    arrays = {"images": images} if labels is None else {"images": images, "labels": labels}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    listing = listed(tmp_path / "x.npz")
    assert len(listing) == 4
    assert listing.array is not None
    assert listing.array.dtype == dtype
    if labels is None:
        assert listing.labels is None
    else:
        assert listing.labels is not None
        assert listing.labels.tolist() == labels.tolist()


U8 = np.zeros((2, 6, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": U8}, "has no array 'images' .it has pictures"),
        ({"images": U8[:, :5]}, r"uint8 \[2, 5, 8, 3\]; this model takes uint8 \[N, 6, 8, 3\]"),
        ({"images": U8.astype(np.float32)}, r"float32 \[2, 6, 8, 3\]"),
        ({"images": U8.astype(np.float64)}, "images are float64"),
        ({"images": U8[0]}, r"images are uint8 \[6, 8, 3\]"),
        ({"images": U8[:0]}, "no pictures"),
        ({"images": U8, "labels": np.array([0, 3])}, "label 3 of picture 1 is out of range"),
        ({"images": U8, "labels": np.array([-1, 0])}, "label -1 of picture 0"),
        ({"images": U8, "labels": np.array([0])}, "expected 2 integers"),
        ({"images": U8, "labels": np.array([0.0, 1.0])}, "labels are float64"),
    ],
)
def test_npz_that_does_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "x.npz")


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        listed(tmp_path / "x.npz")
    np.save(tmp_path / "y.npy", U8)
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        listed(tmp_path / "y.npy")


def test_draw_is_even_over_classes_and_repeatable() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 20])
    rows = np.arange(75)
    chosen = draw(labels, rows, count=17, seed=4)
    assert np.array_equal(chosen, draw(labels, rows, count=17, seed=4))
    assert not np.array_equal(chosen, draw(labels, rows, count=17, seed=5))
    assert len(set(chosen.tolist())) == 17
    counts = np.bincount(labels[chosen])
    assert counts[1] == 5
    assert sorted(counts[[0, 2]]) == [6, 6]
    assert draw(labels, rows, count=0, seed=0).tolist() == rows.tolist()
    assert draw(labels, rows, count=99, seed=0).tolist() == rows.tolist()


@pytest.mark.parametrize("classes", [None, 7])
def test_parts_are_disjoint_and_of_the_stated_sizes(classes: int | None) -> None:
    count = 210
    labels = None if classes is None else np.arange(count) % classes
    listing = Listing(path=Path("x"), names=("",) * count, labels=labels)
    parts = split(listing, calib=True, holdout=True, limit=0, seed=0)
    assert (len(parts.calib), len(parts.holdout), len(parts.search)) == (21, 52, 137)
    together = np.concatenate([parts.calib, parts.holdout, parts.search])
    assert sorted(together.tolist()) == list(range(count))
    if labels is not None:
        assert set(np.bincount(labels[parts.calib]).tolist()) == {3}
    limited = split(listing, calib=False, holdout=False, limit=40, seed=0)
    assert (len(limited.calib), len(limited.holdout), len(limited.search)) == (0, 0, 40)


def test_calibration_stops_at_600() -> None:
    listing = Listing(path=Path("x"), names=("",) * 9000, labels=None)
    parts = split(listing, calib=True, holdout=True, limit=5000, seed=0)
    assert (len(parts.calib), len(parts.holdout), len(parts.search)) == (600, 2250, 5000)


def test_too_few_pictures_to_share_out() -> None:
    listing = Listing(path=Path("x"), names=("", ""), labels=None)
    with pytest.raises(DataError, match="2 pictures are too few"):
        split(listing, calib=True, holdout=True, limit=0, seed=0)
    assert len(split(listing, calib=True, holdout=False, limit=0, seed=0).search) == 1
