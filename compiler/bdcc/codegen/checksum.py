# SPDX-License-Identifier: 0BSD
"""The checksum of runtime/bdcc_checksum.h over arrays: both give the same for the same bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

STEP = 0x9E3779B97F4A7C15
FIRST = np.uint64(0x243F6A8885A308D3)
SECOND = np.uint64(0xB7E151628AED2A6B)
CHUNK = 1 << 14  # words at a time: the temporaries stay in the cache
WORD = (1 << 64) - 1


def _mix(words: U64) -> U64:
    """Each word of a fresh array, mixed in place."""
    words ^= words >> np.uint64(32)
    words *= FIRST
    words ^= words >> np.uint64(29)
    words *= SECOND
    words ^= words >> np.uint64(32)
    return words


def checksum(data: bytes | bytearray | memoryview | npt.NDArray[np.uint8]) -> int:
    """bdcc_checksum of `data` (bytes, or a contiguous uint8 array): a number below 2^64."""
    octets = np.frombuffer(data, np.uint8)
    words = octets[: octets.size // 8 * 8].view("<u8")
    steps = np.arange(1, CHUNK + 1, dtype=np.uint64) * np.uint64(STEP)
    total = 0
    for start in range(0, words.size, CHUNK):
        chunk = words[start : start + CHUNK]
        moved = chunk + (steps[: chunk.size] + np.uint64(start * STEP & WORD))
        total += int(_mix(moved).sum(dtype=np.uint64))
    if tail := octets[words.size * 8 :].tobytes():
        value = int.from_bytes(tail, "little") + (words.size + 1) * STEP
        total += int(_mix(np.array([value & WORD], np.uint64))[0])
    return int(_mix(np.array([(total + octets.size) & WORD], np.uint64))[0])
