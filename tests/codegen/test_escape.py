# SPDX-License-Identifier: 0BSD
"""Texts of a model's in each language: read back by its own tools, they are themselves."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest

from bdcc.codegen import emit
from bdcc.codegen.escape import (
    COMMENT_MOST,
    LIBRARY_MOST,
    PLAIN,
    Text,
    c_comment,
    c_string,
    cmake,
    element,
    html,
    library_text,
    make,
    markdown,
    opaque,
)
from bdcc.codegen.names import c_identifier
from bdcc.codegen.plan import make_plan
from bdcc.codegen.targets import find_target
from codegen.nets import alexnet_like, quantized
from hostile import HOSTILE
from strict import strict

Tool = Callable[[str], str]
GCC = ["-std=c11", *strict("gcc"), "-Wtrigraphs", "-Wcomment", "-x", "c", "-"]


def run_c(text: str, folder: Path) -> bytes:
    program = folder / "program"
    command = ["gcc", *GCC, "-o", str(program)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return subprocess.run([program], cwd=folder, capture_output=True, check=True).stdout


def test_c_strings_hold_any_text(tmp_path: Path, tool: Tool) -> None:
    tool("gcc")
    lines = "\n".join(f"    puts({c_string(text)});" for text in HOSTILE)
    said = run_c(f"#include <stdio.h>\nint main(void) {{\n{lines}\n    return 0;\n}}\n", tmp_path)
    assert said.decode().splitlines() == [library_text(text) for text in HOSTILE]
    assert max(len(library_text(text)) for text in HOSTILE) == LIBRARY_MOST


def test_c_comments_hold_any_text(tmp_path: Path, tool: Tool) -> None:
    tool("gcc")
    pairs = [one + other for one in ("*", "/", "?", "\\") for other in ("*/", "/*", "??/", "\\")]
    comments = "\n".join(
        f"/* {c_comment(text)} */" for text in (*HOSTILE, *pairs, "/*/*/*/", "***//")
    )
    assert run_c(f"{comments}\nint main(void) {{ return 0; }}\n", tmp_path) == b""
    assert [file.name for file in tmp_path.iterdir()] == ["program"]
    assert len(c_comment("x" * 10_000)) == COMMENT_MOST
    assert c_comment("conv1/3x3 (relu)") == "conv1/3x3 (relu)"


def test_identifiers_are_identifiers() -> None:
    for text in HOSTILE:
        assert c_identifier(text).isidentifier()
        assert c_identifier(text).isascii()


def test_make_holds_any_text(tmp_path: Path, tool: Tool) -> None:
    shown = [line for text in HOSTILE if (line := library_text(text)).strip() == line and line]
    tool("make")
    rules = "".join(f"T{i} := {make(text)}\n" for i, text in enumerate(shown))
    told = "".join(f"$(info $(T{i}))\n" for i in range(len(shown)))
    (tmp_path / "Makefile").write_text(f"{rules}{told}all: ;\n")
    done = subprocess.run(["make", "-s"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == shown


def test_cmake_holds_any_text(tmp_path: Path, tool: Tool) -> None:
    tool("cmake")
    shown = [library_text(text) for text in HOSTILE]
    text = "".join(f'message("{cmake(one)}")\n' for one in shown)
    (tmp_path / "x.cmake").write_text(text)
    done = subprocess.run(["cmake", "-P", "x.cmake"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stderr.decode().splitlines() == shown


def test_a_table_of_markdown_keeps_its_cells() -> None:
    for text in HOSTILE:
        line = markdown(text)
        assert "\n" not in line
        bare = line.replace("\\\\", "")  # escaped backslashes escape nothing
        for mark in "|`<>*[]$":
            assert bare.count(mark) == bare.count(f"\\{mark}"), line
    assert markdown("fire2_squeeze_1") == "fire2_squeeze_1"
    assert markdown("__init__ _x") == r"\_\_init\_\_ \_x"


def test_html_has_the_tags_that_were_meant() -> None:
    page = element("p", *HOSTILE, element("b", "a & b"), kind="warning")
    assert page.startswith('<p class="warning">')
    assert page.endswith("<b>a &amp; b</b></p>")
    assert page.count("<") == 4
    assert html(html("<")) == "&lt;"
    assert html(html("<") + "<") == "&amp;lt;&lt;"  # what is joined by hand is a text again


@pytest.mark.parametrize(
    "template",
    [
        "{{ text }}",
        "{{ text | upper }}",
        "{{ text ~ '' }}",
        "{{ '%s' % text }}",
        "{{ '{}'.format(text) }}",
        "{{ '{!r}'.format(text) }}",
        "{{ [text] | join }}",
        "{{ [text] }}",
        "{{ rows[0].name }}",
        "{{ rows }}",
        "{{ text | string }}",
        "{{ text | pprint }}",
        "{{ text | safe }}",
        "{{ text | replace('a', 'b') }}",
        "{{ text | trim }}",
        "{{ text | tojson }}",
        "{% for key in named %}{{ key }}{% endfor %}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(text) }}",
        "{% set y = text %}{{ y }}",
        "{{ text[0] }}",
        "{{ text + '' }}",
    ],
)
def test_a_template_that_forgets_the_filter_writes_nothing(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.j2").write_text(template)
    monkeypatch.setattr(emit, "shipped", lambda _: tmp_path)
    variables = {"text": "*/ pwn", "rows": [{"name": "*/ pwn"}], "named": {"*/ pwn": 1}}
    with pytest.raises((TypeError, jinja2.TemplateError)):
        emit.renderer(opaque(variables))("x.j2")
    (tmp_path / "x.j2").write_text("{{ text | c_string }}{{ rows[0].name | c_comment }}")
    assert emit.renderer(opaque(variables))("x.j2") == '"*/ pwn"* / pwn'


def test_what_is_opaque() -> None:
    plain = {"a": ["conv1/3x3-a.b", 3, 2.5, None, True], "0x1.8p+3f": ()}
    assert opaque(plain) == {"a": ("conv1/3x3-a.b", 3, 2.5, None, True), "0x1.8p+3f": ()}
    for text in HOSTILE:
        assert isinstance(opaque(text), Text) or PLAIN.fullmatch(text)
        assert bool(opaque(text)) == bool(text)
    for hidden in (object(), b"x", {"x"}, Path("x")):
        with pytest.raises(TypeError, match="templates get no"):
            opaque({"x": [hidden]})


KERNELS = re.compile(r"(bytedot|bytedot_dense|popcount|lut|lut_\w+)\.h\.j2")  # of numbers alone
FOREIGN = [
    "steps.layer",
    "steps.tensor",
    "steps.comment",
    "labels",
    "layers.name",
    "cflags",
    "cpu_flags",
]
C_TEXTS = re.compile(r'/\*.*?\*/|"(\\.|[^"\\\n])*"', re.DOTALL)
PWNED = '*/ ??/\\\n"PWNED$(x)`#<i>'


def test_every_template_filters_what_is_not_ours() -> None:
    """Each text from a model or a user in each template, where a Text would be refused."""
    plan = make_plan(
        quantized(alexnet_like(), bases=2, bits=2), name="net", target=find_target("rpi-zero")
    )

    def spoil(value: Any, path: str = "") -> Any:
        if isinstance(value, dict):
            return {key: spoil(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [spoil(item, path) for item in value]
        return PWNED if path[1:] in FOREIGN else value

    variables = emit._variables(plan, emit._blob(plan))
    variables |= {"emulator": "qemu-arm", "array_by_default": True}
    render = emit.renderer(opaque(spoil(variables)))
    names = sorted(path.name for path in emit.shipped("templates").iterdir())
    own = [name for name in names if not KERNELS.fullmatch(name)]
    assert len(own) > 14
    assert len(names) - len(own) == 7
    found = {name: text.count("PWNED") for name in own if (text := render(name)) is not None}
    assert {name for name, count in found.items() if count} == {
        "steps.h.j2", "model.c.j2", "README.md.j2", "Makefile.j2", "CMakeLists.txt.j2"
    }  # fmt: skip
    for name in own:
        text = render(name)
        assert '\n"PWNED' not in text, name
        if name.endswith((".c.j2", ".h.j2")):
            assert "PWNED" not in re.sub(C_TEXTS, "", text), name
