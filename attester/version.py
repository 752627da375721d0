"""The version of the installed distribution, and how to install one of its extras."""

from __future__ import annotations

from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "touchstone-attestation"
"""The name in ``pyproject.toml``. The project and its command are called touchstone."""
ENGINE_DISTRIBUTION: Final = "touchstone-attestation-engine"
"""The attester alone, for the environment of an inference engine: ``packaging/engine``."""


def installed_version() -> str:
    """
    The version of Touchstone as installed, under whichever of its two names.

    Raises:
        importlib.metadata.PackageNotFoundError: it is not installed, only its folder is on the path.
    """
    found = version_of(DISTRIBUTION) or version_of(ENGINE_DISTRIBUTION)
    if found is None:
        raise metadata.PackageNotFoundError(DISTRIBUTION)
    return found


def version_of(*distributions: str) -> str | None:
    """The version of the first of *distributions* that is installed; `None` if none is."""
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def install_hint(extra: str) -> str:
    """The command that installs an extra, and where to get the package."""
    return f"pip install '{DISTRIBUTION}[{extra}]' (from a wheel or from git until it is published)"
