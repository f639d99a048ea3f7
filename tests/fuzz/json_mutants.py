# SPDX-License-Identifier: 0BSD
"""JSON as a person or a fault may have changed it, made from a good one by a seed."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

Rng = np.random.Generator
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 255, 2**31, 2**63, 10**18, 10**290, -(10**18), 0.5, -0.0),
    *(
        1e308,
        1e-320,
        "",
        "x",
        "../../x",
        "/dev/zero",
        "a\nb",
        "\x1b[2J",
        "\0",
        "\ud800",
        "caf\udce9",
    ),
    *(
        "x" * 5000,
        "host.toml",
        "popcount",
        "input",
        "conv1",
        [],
        [[]],
        {},
        {"a": {}},
        [1, 1, 1],
        [0],
    ),
    *([10**9, 10**9, 10**9], ["a"], "é", "1", "-Wl,-rpath", "$(shell id)", "; id", "%s%n"),
)
TEXTS = (
    *("", "{", "[]", "null", "1", '"x"', "NaN", "Infinity", "[" * 100_000, '{"a":' * 100_000),
    *("{}", "1" * 10_000, "[1e999]", "[-Infinity]", "\ufeff{}", "{}x", '{"schema": 1}', "\0"),
)


def mutate_json(good: bytes, rng: Rng) -> bytes:
    """One to three changes of values, or one of the text."""
    if rng.random() < 0.25:
        return _mutate_text(good, rng)
    value = json.loads(good)
    for _ in range(rng.integers(1, 4)):
        value = mutate_value(value, rng)
    text = json.dumps(value, indent=1)
    if rng.random() < 0.1:
        text = text.replace('"name"', '"name": 1, "name"', 1)
    return text.encode("utf-8")


def mutate_value(good: Any, rng: Rng) -> Any:
    """One place of it is another: replaced, left out, doubled, swapped."""
    value = copy.deepcopy(good)
    places = list(_places(value))
    if not places:
        return ODD[rng.integers(len(ODD))]
    holder, key = places[rng.integers(len(places))]
    match rng.integers(7):
        case 0:
            del holder[key]
        case 1 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            factor = (-1, 2, 0.5, 10**9, 1e30)[rng.integers(5)]
            holder[key] = holder[key] * factor + int(rng.integers(-1, 2))
        case 2:
            other, its = places[rng.integers(len(places))]
            holder[key] = copy.deepcopy(other[its])
        case 3 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 4 if isinstance(holder, dict):
            holder[str(ODD[rng.integers(len(ODD))])[:50]] = holder[key]
        case 5 if isinstance(holder[key], str):
            text = holder[key]
            at = int(rng.integers(len(text) + 1))
            holder[key] = (
                text[:at] + ("/", "\n", "é", "..", "", "0")[rng.integers(6)] + text[at + 1 :]
            )
        case _:
            holder[key] = ODD[rng.integers(len(ODD))]
    return value


def _places(value: Any) -> Any:
    """Every (dict or list, key or index) in it."""
    if not isinstance(value, dict | list):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        yield from _places(value[key])


def _mutate_text(good: bytes, rng: Rng) -> bytes:
    data = bytearray(good)
    match rng.integers(6):
        case 0:
            return TEXTS[rng.integers(len(TEXTS))].encode("utf-8")
        case 1:
            del data[rng.integers(len(data)) :]
        case 2:
            for _ in range(rng.integers(1, 5)):
                data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        case 3:
            start = int(rng.integers(len(data)))
            del data[start : start + int(rng.integers(1, 40))]
        case 4:
            digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
            at = digits[rng.integers(len(digits))]
            data[at:at] = b"9" * int((1, 5, 20, 400, 9000)[rng.integers(5)])
        case _:
            return good.decode("utf-8").encode(("utf-16", "utf-32", "cp500")[rng.integers(3)])
    return bytes(data)
