# SPDX-License-Identifier: 0BSD
"""How a text of a model's, a file's or a user's is written in each language that is emitted: the
one place for each. (A C identifier: names.py. JSON: json.dumps.)

Nothing of theirs is ever code. `opaque` makes that the default: what templates are given has no
such text in the open, only a `Text`, which no template can write but through the filter of the
language it stands in. Who forgets the filter gets a TypeError, not a hole.
"""

from __future__ import annotations

import html as html_entities
import re
from collections.abc import Callable, Mapping
from typing import Any

from bdcc.errors import one_line

# What means nothing but itself in any of the languages: in C, in a comment, a string, a Makefile.
PLAIN = re.compile(r"[A-Za-z0-9_.+/-]*")
LITERAL_MOST = 4095  # bytes of a string literal, as C11 promises
LIBRARY_MOST = 1000  # characters, at most 4 bytes each
COMMENT_MOST = 160
CELL_MOST = 60  # of a table's cell


class Text:
    """A text that a template cannot write, join, format or look into, but for a filter."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        raise TypeError("a text from outside takes the filter of its language (codegen/escape.py)")

    __repr__ = __str__

    def __bool__(self) -> bool:
        return bool(self._text)


def opaque(value: Any) -> Any:
    """The value with each text in it, however deep, as a Text, unless it is PLAIN. Raises TypeError
    for what may hide a text.
    """
    match value:
        case str():
            return value if PLAIN.fullmatch(value) else Text(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {opaque(key): opaque(item) for key, item in value.items()}
        case list() | tuple():
            return tuple(opaque(item) for item in value)
        case _:
            raise TypeError(f"templates get no {type(value).__name__}")


def library_text(text: str) -> str:
    """What the library says for a layer's, tensor's or class's name: C programs print it."""
    return one_line(text, most=LIBRARY_MOST)


def c_string(text: str) -> str:
    """A C string literal, UTF-8 bytes outside ASCII as octal escapes."""
    escapes = {ord('"'): '\\"', ord("\\"): "\\\\", ord("?"): "\\?"}  # ??/ is a trigraph
    body = "".join(
        escapes.get(byte, chr(byte)) if 32 <= byte < 127 else f"\\{byte:03o}"
        for byte in library_text(text).encode()
    )
    return f'"{body}"'


def c_comment(text: str) -> str:
    """Inside a C comment, with something behind it on the line: it neither ends nor opens one."""
    return re.sub(
        r"(?<=\*)(?=/)|(?<=/)(?=\*)|(?<=\?)(?=\?)", " ", one_line(text, most=COMMENT_MOST)
    )


def make(text: str) -> str:
    """In the value of a Makefile's variable."""
    value = re.sub(r"(\\*)#", r"\1\1\\#", one_line(text).replace("$", "$$"))
    return f"{value}$()" if value.endswith("\\") else value  # nothing, or the line would go on


def cmake(text: str) -> str:
    """Inside a quoted argument of CMake's."""
    return re.sub(r'[\\"$#@]', r"\\\g<0>", one_line(text))


def markdown(text: str) -> str:
    """Inside a paragraph or a table's cell."""
    special = r"[\\`*\[\]<>(){}#!|&~$@:]|(?<![^\W_])_|_(?![^\W_])"  # inside a word _ is itself
    return re.sub(special, r"\\\g<0>", one_line(text, most=CELL_MOST))


class Html(str):
    """HTML that `element` has made, or that is written in bdcc's own sources."""

    __slots__ = ()


def html(text: str) -> Html:
    """The text as it is read, in an element or an attribute's quotes."""
    return text if isinstance(text, Html) else Html(html_entities.escape(one_line(text)))


def element(name: str, *inside: str, kind: str | None = None) -> Html:
    """<name class="kind">..</name>; whatever is inside and no Html becomes a text."""
    attribute = f' class="{kind}"' if kind else ""
    return Html(f"<{name}{attribute}>{''.join(map(html, inside))}</{name}>")


def _filter(escape: Callable[[str], str]) -> Callable[[str | Text], str]:
    return lambda value: escape(value._text if isinstance(value, Text) else value)


FILTERS = {one.__name__: _filter(one) for one in (c_string, c_comment, make, cmake, markdown)}
