# SPDX-License-Identifier: 0BSD
"""The one family of errors a user can meet; `cli.py` turns each into one line and an exit code."""

from __future__ import annotations


def one_line(text: str, *, most: int | None = None) -> str:
    """The text with what does not print escaped: control characters, line ends, characters that
    turn the direction of writing, bytes that are no UTF-8. What a model, a file or another program
    calls itself stays one line, and moves no cursor. most: characters, the last of them an ellipsis
    where it has more.
    """
    if not text.isprintable():
        text = "".join(
            c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
            for c in text
        )
    return text if most is None or len(text) <= most else f"{text[: most - 1]}…"


class BdccError(Exception):
    """Something the user can act on: where, what was found, what is allowed, what to do.

    message: what was found and what is allowed; one line, no trailing period needed.
    layer:   the layer (or tensor, option, file) it is about; printed in front of the message.
    hint:    what to do; printed after the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, layer: str | None = None, hint: str | None = None) -> None:
        self.message, self.layer, self.hint = message, layer, hint
        parts = [f"{layer}: {message}" if layer else message]
        if hint:
            parts.append(hint)
        super().__init__(one_line(". ".join(part.rstrip(".") for part in parts) + "."))


class ModelError(BdccError):
    """The ONNX file is not one bdcc can take: damaged, or an unsupported operator or shape."""


class DataError(BdccError):
    """Pictures or labels are missing, unreadable, or do not fit the model."""


class OptionError(BdccError):
    """An option's value is outside what it allows."""


class OutputError(BdccError):
    """The output folder cannot be written, or holds what bdcc did not write."""


class BuildError(BdccError):
    """The C compiler, make, or a remote host failed; the message carries its first error line."""

    exit_code = 5


class MismatchError(BdccError):
    """The built library and the oracle differ."""

    exit_code = 4
