"""The version of the installed distribution."""

from __future__ import annotations

from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "touchstone-attestation"


def installed_version() -> str:
    """The version of Touchstone as installed."""
    return metadata.version(DISTRIBUTION)
