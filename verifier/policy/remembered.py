"""What policies made of their inputs of late: a policy is a pure function, so the same input has the same outcome."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final

MAX_BYTES: Final = 16 << 20
"""All together.  An outcome of the default policy has about 500 bytes."""
_ENTRY_BYTES: Final = 400
"""What an entry needs besides its outcome."""
_MAX_OUTCOME: Final = 64 << 10
"""A larger outcome is not kept: it would displace too many others."""

Key = tuple[str, bytes]
"""The digest of a bundle, and the SHA-256 of the input's exact bytes."""


def key_of(bundle_digest: str, policy_input: bytes) -> Key:
    """The key of an outcome: everything that it follows from."""
    return bundle_digest, hashlib.sha256(policy_input).digest()


class Outcomes:
    """Outcomes as JSON.  If there are too many, those that were unused longest are forgotten."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._outcomes: OrderedDict[Key, bytes] = OrderedDict()

    def get(self, key: Key) -> bytes | None:
        """The outcome, if it is remembered."""
        outcome = self._outcomes.get(key)
        if outcome is not None:
            self._outcomes.move_to_end(key)
        return outcome

    def put(self, key: Key, outcome: bytes) -> None:
        """Remember what a policy gave; never that it failed, because it may do better the next time."""
        if len(outcome) > _MAX_OUTCOME or key in self._outcomes:
            return
        self._outcomes[key] = outcome
        self._bytes += len(outcome) + _ENTRY_BYTES
        while self._bytes > self._max_bytes:
            _, oldest = self._outcomes.popitem(last=False)
            self._bytes -= len(oldest) + _ENTRY_BYTES
