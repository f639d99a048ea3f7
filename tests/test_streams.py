# SPDX-License-Identifier: 0BSD
"""bdcc works with whatever standard streams it is given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BDCC = 'exec "$0" -c "import bdcc.cli; bdcc.cli.main()" targets --json'
# Where a file of ours must not be taken for one of the streams.
OPENS = """import bdcc.streams; bdcc.streams.open_streams(); import os, sys
file = open(sys.argv[1], "w")
print("out", flush=True); print("err", file=sys.stderr)
sys.exit(file.fileno() < 3)"""


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", script, sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "streams",
    [
        *("<&-", "2>&-", "<&- 2>&-", "2>/dev/full", "2</dev/null"),
        *(">&-", ">&- 2>&-", "<&- >&- 2>&-", "1</dev/null", "1</dev/null 2</dev/null"),
    ],
)
def test_the_work_is_done_and_nothing_is_said_of_it(streams: str, tmp_path: Path) -> None:
    done = shell(f"{BDCC} {streams}")
    lost = ">&-" in streams.replace("2>&-", "") or "1<" in streams
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == "") == lost
    done = shell(f'exec "$0" -c "$1" "$2" {streams}', OPENS, tmp_path / "file")
    assert done.returncode == 0, "a file of ours is none of them"
    assert (tmp_path / "file").read_text() == ""
