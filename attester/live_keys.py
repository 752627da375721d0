"""
The keys of a running attester, as their files have them now.

The operator may roll the node key, or replace the TLS key, while the attester runs.  It looks at the
files before each round, and whenever the verifier refuses its key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog

from attester.config import Home
from attester.cose import PrivateKey
from attester.errors import KeyFileError
from attester.identity import load_key

NEW_KEY: Final = "node.key.new"
"""The node's next key: `touchstone attester roll` saves it before the verifier learns of it."""

_log = structlog.get_logger("attester")


class _KeyFile:
    """A key, and the state of its file when it was read."""

    def __init__(self, path: Path, key: PrivateKey) -> None:
        self._path = path
        self.key = key
        self._seen = _state_of(path)

    def refresh(self) -> bool:
        """Read the file again if it has changed; returns whether the key is another one."""
        state = _state_of(self._path)
        if state is None or state == self._seen:
            return False
        self._seen = state
        try:
            key = load_key(self._path)
        except KeyFileError as error:
            _log.error(
                "a key file has changed and cannot be used; the key from before is kept", why=str(error)
            )
            return False
        is_another = key.public.kid != self.key.public.kid
        self.key = key
        return is_another


class LiveKeys:
    """
    The node key and the TLS key of a home.

    Raises:
        KeyFileError: one of them cannot be read now.
    """

    def __init__(self, home: Home) -> None:
        self._new = home.path / NEW_KEY
        self._node = _KeyFile(home.path / "node.key", home.node_key())
        self._tls = _KeyFile(home.path / "tls.key", home.tls_key())
        self.node = self._node.key
        """The node key that is used."""
        self._refused: set[bytes] = set()
        """Keys that the verifier refused, since a file changed the last time."""

    @property
    def tls(self) -> PrivateKey:
        """The TLS key."""
        return self._tls.key

    def refresh(self) -> bool:
        """Look at the files; returns whether a key is another one than before."""
        is_tls = self._tls.refresh()
        if is_tls:
            _log.warning("tls.key has changed: the engine must serve with it too")
        is_node = self._node.refresh()
        if is_node:
            self.node = self._node.key
            self._refused.clear()
            _log.info("the node has another key; it is used from now on")
        return is_tls or is_node

    def try_another(self) -> bool:
        """
        Note that the verifier refused the node key; returns whether there is another one to try.

        While the key is rolled, the verifier may know the new one before its file has its name.
        """
        self._refused.add(self.node.public.kid)
        if self.refresh() and self.node.public.kid not in self._refused:
            return True
        for key in (self._node.key, self._next()):
            if key is not None and key.public.kid not in self._refused:
                self.node = key
                _log.info("the verifier refused the node key; another one of the home is tried")
                return True
        # None of them is known now.  What was refused for another reason, such as the clock, may be taken later.
        self._refused.clear()
        self.node = self._node.key
        return False

    def note_accepted(self) -> None:
        """Note that the verifier knows the node key: from now on a refusal says something new."""
        self._refused.clear()

    def _next(self) -> PrivateKey | None:
        try:
            return load_key(self._new)
        except KeyFileError:
            return None


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever a file is replaced or written; `None` while it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
