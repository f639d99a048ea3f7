# SPDX-License-Identifier: 0BSD
"""Finished work kept for the next run: decompositions, decoded pictures, tables, evaluations.

Everything is keyed by the content of what went in, bdcc's own sources included, so nothing is ever
stale and an interrupted run goes on from what it had finished. Every entry is sealed (sealed.py):
what was damaged is made again.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

import bdcc
from bdcc.approx.workers import sources_digest
from bdcc.errors import OutputError, one_line
from bdcc.files import make_folder, sweep_parts, temporary_folder
from bdcc.sealed import HINT, Shelf

Arrays = Mapping[str, npt.NDArray[Any]]
T = TypeVar("T")


@dataclass(slots=True)
class Counts:
    found: int = 0
    made: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """folder: where all of it lies; counts: how many entries of each kind were found and made (what
    this run has made itself is not found); sources: the digest of bdcc's own; fresh: what this run
    has made; damaged: what it has found damaged, by kind.
    """

    folder: Path
    counts: dict[str, Counts] = field(default_factory=dict)
    sources: str = field(default_factory=sources_digest)
    fresh: set[tuple[str, str]] = field(default_factory=set)
    damaged: dict[str, list[Path]] = field(default_factory=dict)
    _shelves: dict[str, Shelf] = field(default_factory=dict)

    def shelf(self, kind: str, *parts: object) -> Shelf:
        """That of a kind, or the one in it that `parts` and bdcc's sources determine. Raises
        OutputError if it cannot be used.
        """
        if kind not in self._shelves:
            shelf = Shelf(
                folder=self.folder / kind,
                name=kind,
                dropped=self.damaged.setdefault(kind, []).append,
            )
            shelf.prepare()
            sweep_parts(shelf.folder)
            self._shelves[kind] = shelf
        return self._shelves[kind].inside(self.key(*parts)) if parts else self._shelves[kind]

    def key(self, *parts: object) -> str:
        """What `parts` (their text) and bdcc's sources are called."""
        state = hashlib.sha256(self.sources.encode())
        state.update(json.dumps([str(part) for part in parts]).encode())
        return state.hexdigest()[:32]

    def arrays(self, kind: str, *parts: object, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of an entry, made and kept when it is not there (or is damaged)."""

        def pack(arrays: Arrays) -> bytes:
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]
            return content.getvalue()

        def unpack(content: bytes) -> Arrays:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}

        return self._entry(kind, f"{self.key(*parts)}.npz", make, pack, unpack)

    def record(self, kind: str, *parts: object, make: Callable[[], Any]) -> Any:
        """The same for a JSON value."""

        def pack(value: Any) -> bytes:
            return json.dumps(value).encode()

        return self._entry(kind, f"{self.key(*parts)}.json", make, pack, json.loads)

    def _entry(
        self,
        kind: str,
        name: str,
        make: Callable[[], T],
        pack: Callable[[T], bytes],
        unpack: Callable[[bytes], T],
    ) -> T:
        shelf = self.shelf(kind)
        content = shelf.read(name)
        if content is not None:
            self.count(kind, found=(kind, name) not in self.fresh)
            return unpack(content)
        made = make()
        packed = pack(made)
        shelf.write(name, lambda out: out.write(packed), wanted_bytes=len(packed))
        self.fresh.add((kind, name))
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


def default_folder() -> Path | None:
    """$BDCC_CACHE, or the user's cache folder by the XDG rule; None of a user who has no home."""
    if given := os.environ.get("BDCC_CACHE"):
        return Path(given)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "bdcc"
    try:
        return Path.home() / ".cache" / "bdcc"
    except RuntimeError:  # as in a container, of a user that it does not know
        return None


def cache_folder(choice: Path | None) -> Path:
    """The one that was chosen, or the user's. Raises OutputError."""
    folder = choice or default_folder()
    if folder is None:
        raise OutputError("this user has no home for a cache", layer="--cache", hint=HINT)
    return folder


@contextmanager
def open_cache(
    choice: Path | Literal["off"] | None,
    *,
    output: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Cache]:
    """The cache to use; "off" gives one that is gone afterwards. Raises OutputError if it cannot be
    written, or lies in `output`, which would then hold what is none of it. say: is told at the end,
    in a line for each kind, of entries that were damaged.
    """
    with ExitStack() as stack:
        if choice == "off":
            folder = stack.enter_context(temporary_folder())
        else:
            folder = cache_folder(choice)
            if output is not None and _is_in(folder, output):
                message = f"the cache cannot lie in the output folder '{output}'"
                raise OutputError(message, layer=str(folder), hint=HINT)
            make_folder(folder, hint=HINT)
        cache = Cache(folder=folder)
        if say is not None:
            stack.callback(_tell_of_damage, cache, say)
        yield cache


def _is_in(folder: Path, other: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(other))


def _tell_of_damage(cache: Cache, say: Callable[[str], None]) -> None:
    for kind, files in sorted(cache.damaged.items()):
        if files:
            many = "1 entry was" if len(files) == 1 else f"{len(files)} entries were"
            say(one_line(f"cache: {kind}: {many} damaged, and made again: {files[0]}"))
