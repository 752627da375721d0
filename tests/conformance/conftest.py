"""Where others' data is: used in place, never copied."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of third-party samples; skipped, saying so, where it is not."""
    place = os.environ.get("TOUCHSTONE_SAMPLES")
    folder = Path(place) if place else Path(__file__).parents[3] / "shared" / "samples"
    if not folder.is_dir():
        pytest.skip("the third-party samples are not on this machine (TOUCHSTONE_SAMPLES)")
    return folder
