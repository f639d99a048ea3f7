# SPDX-License-Identifier: 0BSD
"""Finished work kept for the next run: decompositions, decoded pictures, tables, evaluations.

Everything is keyed by the content of what went in, bdcc's own sources included, so nothing is ever
stale and an interrupted run goes on from what it had finished. Files appear complete or not at all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import bdcc
from bdcc.approx.workers import sources_digest
from bdcc.errors import OutputError

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(slots=True)
class Counts:
    found: int = 0
    made: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """folder: where all of it lies; counts: how many entries of each kind were found and made (what
    this run has made itself is not found); sources: the digest of bdcc's own; fresh: what this run
    has made.
    """

    folder: Path
    counts: dict[str, Counts] = field(default_factory=dict)
    sources: str = field(default_factory=sources_digest)
    fresh: set[Path] = field(default_factory=set)

    def path(self, kind: str, *parts: object, suffix: str = "") -> Path:
        """The entry of a kind that `parts` (their text) and bdcc's sources determine; its folder
        exists.
        """
        state = hashlib.sha256(self.sources.encode())
        state.update(json.dumps([str(part) for part in parts]).encode())
        folder = self.folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / (state.hexdigest()[:32] + suffix)

    def arrays(self, kind: str, *parts: object, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of an entry, made and kept when it is not there (or is damaged)."""
        file = self.path(kind, *parts, suffix=".npz")
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            self.count(kind, found=file not in self.fresh)
            return arrays
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            made = make()
        with _appearing(file) as part, part.open("wb") as out:
            np.savez(out, **made)  # type: ignore[arg-type]
        self.fresh.add(file)
        self.count(kind, made=1)
        return made

    def record(self, kind: str, *parts: object, make: Callable[[], Any]) -> Any:
        """The same for a JSON value."""
        file = self.path(kind, *parts, suffix=".json")
        try:
            value = json.loads(file.read_text("utf-8"))
            self.count(kind, found=file not in self.fresh)
            return value
        except (OSError, ValueError):
            made = make()
        with _appearing(file) as part:
            part.write_text(json.dumps(made), "utf-8")
        self.fresh.add(file)
        self.count(kind, made=1)
        return made

    def count(self, kind: str, *, found: int = 0, made: int = 0) -> None:
        """Entries of a kind that were found, or had to be made."""
        counts = self.counts.setdefault(kind, Counts())
        counts.found += found
        counts.made += made

    def totals(self) -> Counts:
        """Over all kinds."""
        counts = self.counts.values()
        return Counts(found=sum(c.found for c in counts), made=sum(c.made for c in counts))


@contextmanager
def _appearing(file: Path) -> Iterator[Path]:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


@functools.cache
def emission_digest() -> str:
    """Of all that an emitted project and its answers depend on beside `sources_digest`, in hex."""
    root = Path(bdcc.__file__).parent
    places = [root / "_runtime", root / "_templates"]  # in a wheel; in a checkout:
    places += [root.parents[1] / "runtime", root.parents[1] / "templates"]
    files = [file for place in places for file in place.glob("*.*")]
    files += [file for room in ("codegen", "host") for file in (root / room).glob("*.py")]
    state = hashlib.sha256()
    for file in sorted(files):
        state.update(file.name.encode() + b"\0" + file.read_bytes())
    return state.hexdigest()


def default_folder() -> Path:
    """$BDCC_CACHE, or the user's cache folder by the XDG rule."""
    if given := os.environ.get("BDCC_CACHE"):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "bdcc"


@contextmanager
def open_cache(choice: Path | Literal["off"] | None) -> Iterator[Cache]:
    """The cache to use; "off" gives one that is gone afterwards. Raises OutputError if it cannot be
    written.
    """
    if choice == "off":
        folder = Path(tempfile.mkdtemp(prefix="bdcc-"))
        try:
            yield Cache(folder=folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = default_folder() if choice is None else choice
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"the cache cannot be written ({error.strerror})",
            layer=str(folder),
            hint="Choose another with --cache DIR, or --cache off",
        ) from None
    yield Cache(folder=folder)
