# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bdcc.data.generate import generate_images, generate_pictures
from bdcc.data.listing import list_pictures
from bdcc.data.pictures import JoinedPictures, Pictures, load_pictures, read_pictures
from bdcc.data.preprocess import make_preprocess
from bdcc.errors import DataError
from bdcc.sealed import Shelf

SHAPE = (3, 6, 8)
PRE = make_preprocess(shape=SHAPE, preset="caffe")


def write_pictures(folder: Path, count: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (9, 12, 3), dtype=np.uint8) for _ in range(count)]
    folder.mkdir(exist_ok=True)
    for i, array in enumerate(pixels):
        Image.fromarray(array).save(folder / f"{i}.png")
    return pixels


def load(path: Path, **options: object) -> Pictures:
    return load_pictures(path, input_shape=SHAPE, preprocess=PRE, outputs=4, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [False, True])
def test_a_folder_of_pictures(tmp_path: Path, stored: bool) -> None:
    pixels = write_pictures(tmp_path / "data")
    store = Shelf(folder=tmp_path / "store", name="test") if stored else None
    seen: list[tuple[str, int, int]] = []
    pictures = load(tmp_path / "data", store=store, progress=lambda *step: seen.append(step))
    assert seen == [("pictures", i, 7) for i in range(1, 8)]
    expected = np.stack(
        [np.asarray(Image.fromarray(p).resize((8, 6), Image.Resampling.BILINEAR)) for p in pixels]
    )
    assert pictures.images is not None
    assert np.array_equal(pictures.images, expected)
    assert np.array_equal(pictures.batch([5, 2]), PRE.apply(expected[[5, 2]]))
    assert (pictures.tensors, pictures.labels, len(pictures)) == (None, None, 7)


def test_the_store_is_found_again_and_keyed_by_content(tmp_path: Path) -> None:
    data, store = tmp_path / "data", Shelf(folder=tmp_path / "store", name="test")
    write_pictures(data)
    first = load(data, store=store)
    seen: list[object] = []
    again = load(data, store=store, progress=lambda *step: seen.append(step))
    assert (seen, again.digest) == ([], first.digest)
    before = (data / "0.png").stat()
    Image.new("RGB", (9, 12)).save(data / "0.png")
    os.utime(data / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = load(data, store=store)
    assert changed.digest != first.digest
    assert len(list(store.folder.iterdir())) == 2


def test_pickles_small_and_whole(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data")
    pictures = load(tmp_path / "data", store=Shelf(folder=tmp_path / "store", name="test")).subset(
        [6, 1, 3]
    )
    blob = pickle.dumps(pictures)
    assert len(blob) < 4000
    other = pickle.loads(blob)
    assert np.array_equal(other.batch(range(3)), pictures.batch(range(3)))
    assert other.names == ("6.png", "1.png", "3.png")


def test_subset_of_a_subset_keeps_labels_and_names(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (9, 6, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(9) % 4)
    part = load(tmp_path / "x.npz").subset([8, 4, 2, 0]).subset([2, 1])
    assert part.labels is not None
    assert part.labels.tolist() == [2, 0]
    assert part.images is not None
    assert np.array_equal(part.images, images[[2, 4]])


def test_float_tensors_pass_untouched(tmp_path: Path) -> None:
    tensors = np.random.default_rng(1).standard_normal((3, 3, 6, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=tensors)
    for store in (None, Shelf(folder=tmp_path / "store", name="test")):
        pictures = load(tmp_path / "x.npz", store=store)
        assert pictures.images is None
        assert np.array_equal(pictures.batch([2, 0]), tensors[[2, 0]])
        assert np.array_equal(pictures.tensors, tensors)


def test_only_the_drawn_rows_are_decoded(tmp_path: Path) -> None:
    write_pictures(tmp_path, 6)
    (tmp_path / "9.png").write_bytes(b"broken")
    listing = list_pictures(tmp_path, shape=SHAPE, outputs=4)
    pictures = read_pictures(listing, rows=np.array([1, 4]), shape=SHAPE, preprocess=PRE)
    assert pictures.names == ("1.png", "4.png")


def test_key_tells_apart_what_changes_an_accuracy(tmp_path: Path) -> None:
    images = np.zeros((4, 6, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(4))
    np.savez(tmp_path / "y.npz", images=images, labels=np.arange(4)[::-1])
    x, y = load(tmp_path / "x.npz"), load(tmp_path / "y.npz")
    raw = load_pictures(
        tmp_path / "x.npz",
        input_shape=SHAPE,
        outputs=4,
        preprocess=make_preprocess(shape=SHAPE, preset="raw"),
    )
    assert len({x.key, y.key, raw.key, x.subset([0, 1]).key}) == 4
    assert x.key == load(tmp_path / "x.npz").key


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_bad_picture_is_named_and_leaves_nothing(tmp_path: Path, content: bytes | None) -> None:
    data, store = tmp_path / "data", Shelf(folder=tmp_path / "store", name="test")
    write_pictures(data)
    whole = (data / "3.png").read_bytes()
    (data / "3.png").write_bytes(whole[:80] if content is None else content)
    with pytest.raises(DataError, match=r"3\.png: is not a readable picture"):
        load(data, store=store)
    assert not list(store.folder.iterdir())


def test_pictures_cannot_feed_five_channels(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    shape = (5, 6, 8)
    with pytest.raises(DataError, match="input has 5"):
        load_pictures(
            tmp_path, input_shape=shape, outputs=4, preprocess=make_preprocess(shape=shape)
        )


@pytest.mark.parametrize("shape", [(3, 32, 40), (1, 8, 8), (3, 1, 1), (4, 7, 9)])
def test_generated_pictures(shape: tuple[int, int, int]) -> None:
    images = generate_images(5, shape=shape, seed=3)
    assert images.dtype == np.uint8
    assert images.shape == (5, *shape[1:], shape[0])
    assert np.array_equal(images[:2], generate_images(2, shape=shape, seed=3))
    assert not np.array_equal(images, generate_images(5, shape=shape, seed=4))


def test_generated_pictures_are_smooth_and_varied() -> None:
    images = generate_images(20, shape=(3, 64, 64), seed=0).astype(float)
    neighbours = np.corrcoef(images[:, :, 1:].ravel(), images[:, :, :-1].ravel())[0, 1]
    colours = np.corrcoef(images[..., 0].ravel(), images[..., 1].ravel())[0, 1]
    assert neighbours > 0.6
    assert 0.5 < colours < 1
    assert np.ptp(images.mean(axis=(1, 2, 3))) > 40


def test_generated_pictures_can_be_stored(tmp_path: Path) -> None:
    kept = generate_pictures(
        3, shape=SHAPE, preprocess=PRE, seed=0, store=Shelf(folder=tmp_path, name="test")
    )
    loose = generate_pictures(3, shape=SHAPE, preprocess=PRE, seed=0)
    assert isinstance(kept.data, Path)
    assert kept.digest == loose.digest
    assert np.array_equal(kept.batch([1]), loose.batch([1]))


@pytest.mark.real
def test_the_real_search_pictures(shared: Path, tmp_path: Path) -> None:
    shape = (3, 227, 227)
    pictures = load_pictures(
        shared / "data/tiny202/search",
        input_shape=shape,
        outputs=202,
        classes=shared / "data/tiny202/classes.txt",
        preprocess=make_preprocess(shape=shape, preset="raw", mean=(122.2259, 116.2092, 103.5655)),
        store=Shelf(folder=tmp_path, name="test"),
        limit=404,
    )
    assert pictures.labels is not None
    assert set(np.bincount(pictures.labels).tolist()) == {2}


def test_joined_pictures_are_one_after_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    parts = []
    for count in (3, 0, 4, 1):
        np.savez(tmp_path / "x.npz", images=rng.integers(0, 256, (4, 6, 8, 3), dtype=np.uint8))
        parts.append(load(tmp_path / "x.npz").subset(range(count)))
    joined = JoinedPictures(parts=tuple(parts))
    whole = np.concatenate([part.batch(range(len(part))) for part in parts])
    assert (len(joined), joined.starts) == (8, (0, 3, 3, 7, 8))
    for chosen in ([0], [2, 3], list(range(8)), [1, 6, 7], np.arange(3, 7)):
        assert np.array_equal(joined.batch(chosen), whole[chosen])
    assert joined.key != JoinedPictures(parts=tuple(parts[:-1])).key


def test_portable_pictures_need_no_file(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data")
    stored = load(tmp_path / "data", store=Shelf(folder=tmp_path / "store", name="test")).subset(
        [6, 1, 5, 2]
    )
    parts = (stored, generate_pictures(3, shape=SHAPE, preprocess=PRE, seed=1))
    joined = JoinedPictures(parts=parts)
    rows = [1, 3, 5]
    expected = joined.batch(rows)
    content = pickle.dumps(joined.portable(rows))
    for file in (tmp_path / "store").iterdir():
        file.unlink()
    portable = pickle.loads(content)
    assert len(portable) == 3
    assert np.array_equal(portable.batch(range(3)), expected)
    assert portable.parts[0].images.dtype == np.uint8  # a quarter of what the model takes
