# SPDX-License-Identifier: 0BSD
from __future__ import annotations

import os
from typing import Any

import pytest

from bdcc.host import tune


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="CPUs cannot be chosen here")
def test_kernels_are_measured_on_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be at the clocks and in the caches of several; what builds them may use all."""
    cpus = []
    times = tune._times

    def spying(library: Any) -> dict[str, float]:
        cpus.append(os.sched_getaffinity(0))
        return times(library)

    before = os.sched_getaffinity(0)
    monkeypatch.setattr(tune, "PAIRS", ((1, 1),))
    monkeypatch.setattr(tune, "_times", spying)
    measured = tune.tune("generic")
    assert len(measured) == 2 * len(cpus) == 2 * len(tune.FAMILIES)
    assert {len(chosen) for chosen in cpus} == {1}
    assert os.sched_getaffinity(0) == before
