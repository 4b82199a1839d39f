"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photographs beside the checkout; without it the test is skipped, in CI it fails."""
    if not SHARED_DATA.is_dir():
        message = f"real photographs are read from {SHARED_DATA}, which is absent"
        if os.environ.get("DISTBRANCH_NO_SKIP"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED_DATA
