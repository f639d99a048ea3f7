# SPDX-License-Identifier: 0BSD
"""Small disks, to be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from required import miss

KINDS = ("tmpfs", "ext4")


@contextmanager
def small_disk(folder: Path, kind: str, *, kilobytes: int) -> Iterator[Path]:
    """A file system of its own at `folder`, which is made; a skip where it cannot be mounted."""
    folder.mkdir()
    options = f"size={kilobytes}k"
    source = "none"
    if kind == "ext4":
        tool = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
        if tool is None:
            miss("mkfs.ext4 is not installed")
        image = folder.with_suffix(".image")
        with image.open("wb") as file:
            file.truncate(kilobytes << 10)
        make = [tool, "-q", "-O", "^has_journal", "-m", "0", "-N", "256", str(image)]
        subprocess.run(make, check=True)
        options, source = "loop", str(image)
    mount = ["mount", "-t", kind, "-o", options, source, str(folder)]
    found = subprocess.run(mount, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no file system can be mounted here: {found.stderr.strip()}")
    try:
        shutil.rmtree(folder / "lost+found", ignore_errors=True)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def grow(folder: Path, *, kilobytes: int) -> None:
    """A tmpfs of small_disk."""
    options = f"remount,size={kilobytes}k"
    subprocess.run(["mount", "-o", options, str(folder)], check=True)


def fill(folder: Path, *, but: int) -> None:
    """Leaves `but` bytes, or a few more."""
    found = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - but))
