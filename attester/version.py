"""The version of the installed distribution, and how to install one of its extras."""

from __future__ import annotations

from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "touchstone-attestation"
"""The name in ``pyproject.toml``. The project and its command are called touchstone."""


def installed_version() -> str:
    """The version of Touchstone as installed."""
    return metadata.version(DISTRIBUTION)


def install_hint(extra: str) -> str:
    """The command that installs an extra, and where to get the package."""
    return f"pip install '{DISTRIBUTION}[{extra}]' (from a wheel or from git until it is published)"
