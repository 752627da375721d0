"""The installed distribution: its name, its version, and how to install one of its extras."""

from __future__ import annotations

import importlib.metadata
from typing import Final

NAME: Final = "touchstone-attestation"
"""The name in ``pyproject.toml``. The command and the project are called touchstone."""


def version() -> str:
    """The version in ``pyproject.toml``, as installed."""
    return importlib.metadata.version(NAME)


def install_hint(extra: str) -> str:
    """The command that installs an extra, and where to get the package."""
    return f"pip install '{NAME}[{extra}]' (from a wheel or from git until it is published)"
