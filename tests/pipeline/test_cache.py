# SPDX-License-Identifier: 0BSD
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bdcc.errors import OutputError
from bdcc.pipeline.cache import Cache, default_folder, open_cache


def test_arrays_are_made_once_and_survive(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(5), "b": np.float32(2.5)[None]}

    for _ in range(2):
        cache = Cache(folder=tmp_path)
        arrays = cache.arrays("kind", "key", 3, make=make)
        assert arrays["a"].tolist() == [0, 1, 2, 3, 4]
        assert arrays["b"].dtype == np.float32
    assert made == [1]
    assert (cache.counts["kind"].found, cache.counts["kind"].made) == (1, 0)


def test_records_are_made_once(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path)
    assert cache.record("kind", "key", make=lambda: {"x": [1, 2]}) == {"x": [1, 2]}
    assert cache.record("kind", "key", make=lambda: "never") == {"x": [1, 2]}
    assert (cache.totals().found, cache.totals().made) == (0, 1)  # its own does not count as found
    cache = Cache(folder=tmp_path)
    assert cache.record("kind", "key", make=lambda: "never") == {"x": [1, 2]}
    assert (cache.totals().found, cache.totals().made) == (1, 0)


def test_keys_do_not_run_together(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path)
    shelves = {
        cache.shelf("a", "x", "y").folder,
        cache.shelf("a", "xy").folder,
        cache.shelf("a", "x,y").folder,
        cache.shelf("a", "x", "y", "").folder,
        cache.shelf("b", "x", "y").folder,
    }
    assert len(shelves) == 5


def test_a_failure_leaves_no_entry(tmp_path: Path) -> None:
    cache = Cache(folder=tmp_path)

    def fail() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.record("kind", "key", make=fail)
    assert list((tmp_path / "kind").iterdir()) == []


def test_the_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BDCC_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("BDCC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "bdcc"
    with open_cache(None) as cache:
        assert cache.folder.is_dir()


def test_off_keeps_nothing() -> None:
    with open_cache("off") as cache:
        cache.record("kind", "key", make=lambda: 1)
        folder = cache.folder
    assert not folder.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match=r"cannot be written.*--cache off"),
        open_cache(tmp_path / "file" / "cache"),
    ):
        pass


def test_a_cache_does_not_lie_in_the_output(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for place in ("out", "out/deep/cache", "link/cache"):
        with (
            pytest.raises(OutputError, match=r"cannot lie in the output folder.*--cache off"),
            open_cache(tmp_path / place, output=tmp_path / "out"),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]
    with open_cache(tmp_path / "output", output=tmp_path / "out"):
        pass
