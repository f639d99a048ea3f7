# SPDX-License-Identifier: 0BSD
"""What a test may not do without: missing, it is a skip, or a failure where all must be there."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRE_ALL = os.environ.get("BDCC_REQUIRE_REAL") == "1"


def miss(what: str) -> NoReturn:
    """Skips; fails where BDCC_REQUIRE_REAL=1 says that everything must be there."""
    if REQUIRE_ALL:
        pytest.fail(f"{what}, and BDCC_REQUIRE_REAL=1 forbids to skip")
    pytest.skip(what)
