# SPDX-License-Identifier: 0BSD
"""JSON that somebody may have edited or damaged: parsed strictly, and checked once against a
schema, so that nothing behind has to doubt a type or a range.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdcc.files import read_file

MOST_BYTES = 1 << 26  # of a file of JSON
DIGITS = 300  # of a number: what float takes
ANNOTATIONS = frozenset(("$schema", "$defs", "title"))
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def read_record(file: Path, schema: Mapping[str, Any]) -> Any:
    """What a file of JSON holds, as the schema has it. Raises OSError, or ValueError where it is
    none, or another.
    """
    record = parse_json(read_file(file, most=MOST_BYTES))
    check(record, schema)
    return record


def parse_json(data: bytes | str) -> Any:
    """Raises ValueError for what is no JSON, and for what JSON leaves open: NaN and infinity,
    numbers beyond float, a key that stands twice, nesting beyond Python's.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_float=_float,
            parse_int=_integer,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _integer(text: str) -> int:
    return int(text) if len(text) <= DIGITS else _refuse(text)


def check(
    value: Any, schema: Mapping[str, Any], *, where: str = "it", root: Mapping[str, Any] = {}
) -> None:
    """Raises ValueError unless the value is as the schema says: the part of JSON Schema that
    report/schema.json is written in. An integer is written as one. root: has the $defs.
    """
    root = root or schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        check(value, root["$defs"][name], where=where, root=root)
        return
    for keyword, wanted in schema.items():
        if keyword in ANNOTATIONS:
            continue
        if not _holds(keyword, value, wanted, schema, where, root):
            raise ValueError(f"{where} is {str(value)[:40]!r}, which breaks {keyword}: {wanted}")


def _holds(
    keyword: str,
    value: Any,
    wanted: Any,
    schema: Mapping[str, Any],
    where: str,
    root: Mapping[str, Any],
) -> bool:
    """Whether one keyword holds; like JSON Schema's, it says nothing of values of other types."""
    match keyword:
        case "type":
            return any(_is(value, kind) for kind in ([wanted] if _is(wanted, "string") else wanted))
        case "const":
            return type(value) is type(wanted) and bool(value == wanted)
        case "enum":
            return any(type(value) is type(one) and value == one for one in wanted)
        case "anyOf":
            return any(_fits(value, one, root) for one in wanted)
        case "minimum":
            return not _is(value, "number") or value >= wanted
        case "maximum":
            return not _is(value, "number") or value <= wanted
        case "minLength":
            return not _is(value, "string") or len(value) >= wanted
        case "pattern":  # all are anchored
            return not _is(value, "string") or re.fullmatch(wanted, value) is not None
        case "minItems":
            return not _is(value, "array") or len(value) >= wanted
        case "maxItems":
            return not _is(value, "array") or len(value) <= wanted
        case "required":
            return not _is(value, "object") or all(key in value for key in wanted)
        case "items":
            for index, item in enumerate(value if _is(value, "array") else ()):
                check(item, wanted, where=f"{where}[{index}]", root=root)
        case "properties":
            for key, one in wanted.items() if _is(value, "object") else ():
                if key in value:
                    check(value[key], one, where=f"{where}.{key}", root=root)
        case "additionalProperties":
            known = schema.get("properties", {})
            for key in value if _is(value, "object") else ():
                if key not in known and wanted is False:
                    return False
                if key not in known:
                    check(value[key], wanted, where=f"{where}.{key[:40]}", root=root)
        case _:
            raise NotImplementedError(f"the keyword {keyword} of JSON Schema")
    return True


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _fits(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    try:
        check(value, schema, root=root)
    except ValueError:
        return False
    return True
