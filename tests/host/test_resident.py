# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import json
from pathlib import Path

import pytest

from bdcc.host import resident
from bdcc.host.resident import measure_resident

SLACK = 4_000_000


def test_weights_arena_and_little_more(net: Path) -> None:
    facts = json.loads((net / "host" / "project.json").read_text())
    found = measure_resident(net)
    assert found is not None
    assert (found.weight_bytes, found.arena_bytes) == (facts["weight_bytes"], facts["arena_bytes"])
    assert 0 < found.steady_bytes <= found.peak_bytes
    assert found.peak_bytes < found.weight_bytes + found.arena_bytes + SLACK
    assert found.more_bytes == found.peak_bytes - found.weight_bytes - found.arena_bytes


def test_where_the_system_does_not_tell(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "STATUS", Path("/nowhere/status"))
    assert measure_resident(net) is None
