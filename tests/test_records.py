# SPDX-License-Identifier: 0BSD
"""JSON that was edited: strict where JSON leaves things open, and checked as jsonschema does it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from bdcc.records import check, parse_json, read_record
from bdcc.report.report import load_schema
from fuzz.json_mutants import mutate_value
from report.test_report import example

ODD = {
    "NaN": "NaN",
    "infinity": "-Infinity",
    "beyond float": "1e999",
    "a long number": "9" * 400,
    "a number beyond int()": "9" * 10_000,
    "a key twice": '{"a": 1, "a": 1}',
    "a key twice inside": '[{"b": {"a": 1, "a": 2}}]',
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep and whole": "[" * 50_000 + "]" * 50_000,
    "nothing": "",
    "more": "1 2",
    "a byte order mark": "\ufeff1",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_json_leaves_open_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_json(ODD[kind])
    assert len(str(caught.value)) < 100


def test_what_is_no_utf8() -> None:
    for encoding in ("utf-16", "latin-1"):
        with pytest.raises(ValueError, match="utf-8"):
            parse_json('{"é": 1}'.encode(encoding))


def test_values_are_as_python_reads_them() -> None:
    text = '{"a": [1, -2.5, 1e300, true, null, "\\ud800\\u00e9"], "b": {}}'
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)
    assert parse_json(str(10**299)) == 10**299


def test_the_schema_of_reports_means_what_jsonschema_says() -> None:
    """On a good report and a thousand changed ones, both ways often."""
    schema, good = load_schema(), json.loads(json.dumps(example().as_json()))
    base = jsonschema.Draft202012Validator  # to which 1e30 is an integer
    types = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    judge = jsonschema.validators.extend(base, type_checker=types)(schema)
    check(good, schema)
    told = []
    for seed in range(1000):
        changed = mutate_value(good, np.random.default_rng(seed))
        try:
            check(changed, schema)
            told.append(True)
        except ValueError:
            told.append(False)
        assert told[-1] == judge.is_valid(changed), seed
    assert min(told.count(True), told.count(False)) > 100


@pytest.mark.parametrize(
    ("schema", "fine", "wrong"),
    [
        ({"type": "integer"}, [0, -1], [True, 1.5, "1", None]),
        ({"type": "number"}, [0, 1.5], [True, "1"]),
        ({"type": ["string", "null"]}, ["", None], [0, False]),
        ({"const": 1}, [1], [True, 1.0, "1"]),
        ({"enum": [1, "a", None]}, [1, "a", None], [True, "b", [1]]),
        ({"type": "array", "items": {"minimum": 1}, "maxItems": 2}, [[1], []], [[0], [1, 1, 1]]),
        ({"pattern": "^a+$"}, ["a", 5], ["a\n", "b", ""]),
        ({"required": ["a"], "additionalProperties": False, "properties": {"a": {"type": "null"}}},
         [{"a": None}], [{}, {"a": 1}, {"a": None, "b": 1}]),
        ({"anyOf": [{"type": "null"}, {"minimum": 2, "type": "integer"}]}, [None, 2], [1, "x"]),
    ],
)  # fmt: skip
def test_keywords(schema: dict[str, Any], fine: list[Any], wrong: list[Any]) -> None:
    for value in fine:
        check(value, schema)
    for value in wrong:
        with pytest.raises(ValueError, match="breaks"):
            check(value, schema)


def test_a_keyword_that_is_not_known_is_a_bug() -> None:
    with pytest.raises(NotImplementedError, match="multipleOf"):
        check(1, {"multipleOf": 2})


def test_the_message_says_where() -> None:
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    with pytest.raises(ValueError, match=r"it\.a\[1\] is '7', which breaks type: string"):
        check({"a": ["x", 7]}, schema)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"a": 1}')
    assert read_record(tmp_path / "x", {"type": "object"}) == {"a": 1}
    with pytest.raises(ValueError, match="type"):
        read_record(tmp_path / "x", {"type": "array"})
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    for name, message in (("pipe", "no regular file"), ("large", "at most"), ("none", "No such")):
        with pytest.raises(OSError, match=message):
            read_record(tmp_path / name, {})
