# SPDX-License-Identifier: 0BSD
"""What a model, a file, a class or an option calls itself is never code: not in C, not in make, not
in a page, not on a terminal.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from bdcc.codegen.escape import library_text
from hostile import HOSTILE
from strict import strict
from zoo import Builder

Tool = Callable[[str], str]
SIDE = 5
LAYERS = tuple(name for name in HOSTILE if name)
LABELS = tuple(  # what a line of a classes file can hold
    t for t in LAYERS if len(t.splitlines()) == 1 and t.strip() == t and not set(t) & set("\t\0")
)
MODEL = "m'\"$(touch pwned_file)`touch pwned_tick`#%s\\<script>alert(1)<\u202e;\n模型.onnx"
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "span", "svg"),
    *("table", "tbody", "tr", "th", "td", "defs", "g", "path", "rect", "clippath", "use", "text"),
}


def write_model(file: Path) -> None:
    """A chain of 1x1 layers, each and each tensor called something else; the rest in between."""
    b, tensor, channels = Builder(seed=0), "data", 3
    for number, name in enumerate(LAYERS):
        weight = b.weights(f"w{number} {name}", 4, channels, 1, 1)
        inputs = [tensor, weight, b.weights(f"b{number}", 4)]
        tensor = b.node("Conv", inputs, "a#4" if name == "a#4" else f"t {name}", name=name)
        if number % 4 == 0:
            tensor = b.node("LRN", [tensor], f"l {name}", name=f"lrn {name}", size=3)
        channels = 4
    tensor = b.node("Flatten", [tensor], "flat", name="flat")
    weight = b.weights("wf", len(LABELS), 4 * SIDE * SIDE)
    b.node("Gemm", [tensor, weight, b.weights("bf", len(LABELS))], HOSTILE[0], name="fc", transB=1)
    onnx.save(b.model(input="data", shape=(1, 3, SIDE, SIDE), output=HOSTILE[0]), file)


@dataclass(frozen=True, kw_only=True)
class Said:
    status: int
    out: str
    errors: str


def bdcc(folder: Path, *arguments: str, **environment: str) -> Said:
    """A run of the command; whatever it says shows as it is, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", "from bdcc.cli import main; main()", *arguments],
        cwd=folder, env={**os.environ, "CFLAGS": "-O0", **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    for line in (*done.stdout.split("\n"), *done.stderr.split("\n")):
        assert line.isprintable(), line
    assert "Traceback" not in done.stderr
    return Said(status=done.returncode, out=done.stdout, errors=done.stderr)


def check_untouched(*folders: Path) -> None:
    for folder in folders:
        assert list(folder.rglob("pwned*")) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the compiled project in out/."""
    folder = tmp_path_factory.mktemp("hostile")
    write_model(folder / MODEL)
    (folder / "classes.txt").write_text("".join(f"class{i}\t{t}\n" for i, t in enumerate(LABELS)))
    (folder / "board.toml").write_text(
        'like = "generic"\ncflags = "-O0 -DA=%1,@b:c"\n'
        'description = "*/ $(touch pwned_target) <script>alert(1)</script> \\u202e"\n'
    )
    said = bdcc(
        folder, "compile", MODEL, "--bases", "1", "--q", "2", "--limit", "20", "-o", "out",
        "--target", "board.toml", "--classes", "classes.txt",
    )  # fmt: skip
    assert said.status == 0, said.errors
    assert said.errors == ""  # no missing glyph, no layout that gave up
    rows = said.out.split("\n\n")[0].splitlines()
    assert len(rows) == 2 + len(LAYERS) + 1
    assert max(map(len, rows)) < 140
    check_untouched(folder)
    return folder


def test_it_verifies_and_says_its_names(folder: Path) -> None:
    said = bdcc(folder, "verify", "out")
    assert said.status == 0, said.errors
    assert "0 differing values" in said.out
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(folder / "picture.png")
    said = bdcc(folder, "run", "out", "picture.png", "--model", MODEL)
    assert said.status == 0, said.errors
    answer = json.loads(bdcc(folder, "run", "out", "picture.png", "--json").out)
    assert {row["label"] for row in answer["top"]} <= {library_text(label) for label in LABELS}
    assert len(answer["top"]) == 5
    check_untouched(folder)


def test_the_inspection_is_a_table(folder: Path) -> None:
    said = bdcc(folder, "inspect", MODEL)
    assert said.status == 0, said.errors
    assert "right\\u202eleft" in said.out
    assert max(len(line) for line in said.out.splitlines() if not line.startswith("--keep")) < 250
    found = json.loads(bdcc(folder, "inspect", MODEL, "--json").out)
    assert {row["name"] for row in found["layers"]} >= set(LAYERS)
    check_untouched(folder)


def test_it_builds_strictly_and_passes_its_selftest(folder: Path, tool: Tool) -> None:
    for compiler in ("gcc", "clang"):
        flags = " ".join([*strict(compiler), "-Wtrigraphs", "-Wcomment"])
        make = ["make", "-C", "out", "-B", "selftest", "all", f"CC={tool(compiler)}", "CFLAGS=-O0"]
        done = subprocess.run(
            [*make, f"CPPFLAGS={flags}"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    said = subprocess.run(["./selftest"], cwd=folder / "out", capture_output=True, check=True)
    assert b"every layer equals the oracle" in said.stdout
    picture = Image.new("RGB", (SIDE, SIDE))
    picture.save(folder / "picture.ppm")
    said = subprocess.run(
        ["out/build/classify", "picture.ppm", "99"], cwd=folder, capture_output=True, check=True
    )
    shown = said.stdout.decode()
    assert all(line.isprintable() for line in shown.split("\n"))
    assert [label for label in LABELS if f". {library_text(label)} " not in shown] == []
    check_untouched(folder)


def test_cmake_builds_it(folder: Path, tool: Tool) -> None:
    tool("cmake")
    for command in (["-S", "out", "-B", "b"], ["--build", "b", "-j2"]):
        subprocess.run(["cmake", *command], cwd=folder, check=True, capture_output=True)
    check_untouched(folder)


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.names, self.text, self.title = set[str](), "", ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            assert not (value or "").startswith("javascript")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.get_starttag_text() == "<title>" and not self.title:
            self.title = data


def test_the_report_is_a_page_of_its_own(folder: Path, tmp_path: Path, tool: Tool) -> None:
    page = (folder / "out" / "report.html").read_text()
    assert "right\\u202eleft" in Tags(page).text
    assert Tags(page).names <= TAGS
    command = [
        *(tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
    ]
    file = (folder / "out" / "report.html").as_uri()
    done = subprocess.run(
        [*command, file], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    seen = Tags(done.stdout)
    assert "svg" in seen.names
    assert seen.names <= TAGS
    assert seen.title.startswith("bdcc: m'")
    for name in ("<script>document.title='pwned'</script>", "$\\frac{", "]]><b>&lt;&amp;"):
        assert name in seen.text
    check_untouched(folder, tmp_path)


@pytest.mark.parametrize("name", [HOSTILE[0], "模型"])
def test_a_prefix_is_an_identifier(name: str, examples: Path, tmp_path: Path) -> None:
    said = bdcc(
        tmp_path, "compile", str(examples / "digits.onnx"), "--float", "--limit", "20",
        "--preset", "unit", "--target", "generic", "--name", name[:200], "-o", "out",
    )  # fmt: skip
    assert said.status == 0, said.errors
    (header,) = (tmp_path / "out" / "include").iterdir()
    assert re.fullmatch(r"[a-z_][a-z0-9_]*\.h", header.name)
    assert f"the prefix of the C names is '{header.stem}'" in said.out
    check_untouched(tmp_path)


def test_a_prefix_that_is_too_long_is_refused_at_once(examples: Path, tmp_path: Path) -> None:
    model = str(examples / "digits.onnx")
    said = bdcc(tmp_path, "compile", model, "--name", "n" * 201, "-o", "out")
    assert said.status == 1
    assert said.errors == "bdcc: --name: the name has 201 characters; at most 200 are allowed.\n"


def test_a_target_s_file_has_a_plain_name(examples: Path, tmp_path: Path) -> None:
    file = tmp_path / "a$(touch pwned).toml"
    file.write_text('like = "generic"\n')
    model = str(examples / "digits.onnx")
    said = bdcc(tmp_path, "compile", model, "--target", str(file), "-o", "out")
    assert said.status == 1
    assert "the name of the file is not of letters, digits" in said.errors
    check_untouched(tmp_path)
