"""The trust anchors of a running service: read anew for each import, and what is wrong with them is logged once."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from verifier import anchor_files
from verifier.config import Home
from verifier.references.anchors import Anchor

_log = structlog.get_logger("verifier")


class WatchedAnchors:
    """Reads the anchors of a home.  One bad file stops nothing but what it would have signed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._named: frozenset[tuple[str, str]] = frozenset()

    def __call__(self) -> Mapping[str, Anchor]:
        """The anchors that can be used, by name; those that newly cannot are logged."""
        files = self._home.anchor_files()
        refused = frozenset((str(file.path), why) for file in files for why in file.refused)
        for path, why in sorted(refused - self._named):
            _log.error("a trust anchor of reference values cannot be used", file=path, why=why)
        self._named = refused
        return anchor_files.usable(files)
