"""
Sessions that cost no row until evidence verifies: a stranger may ask for as many as the rate limits let through.

The session is in its own id, with a MAC under a key that follows from the pool key, so that every replica can open
it.  The nonce is still used once: the row that the result makes is what enforces it.

Only evidence that verifies uses a nonce up.  A session that is dropped is remembered by the process alone, until it
expires: a row for it would cost its opener nothing, and would let anybody use up the nonce that somebody else has chosen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from typing import Final

from msgspec.structs import replace

from verifier.challenges.pool_key import PoolKey
from verifier.schemes.context import Channel
from verifier.store.sessions import StoredSession

_PREFIX: Final = "s."
_SALT_BYTES: Final = 8
"""Two sessions of one moment with the same nonce are two sessions."""
_HEAD: Final = struct.Struct(f">BBQQ{_SALT_BYTES}s")
_VERSION: Final = 2
_CHANNELS: Final = (Channel.OPEN, Channel.BACKGROUND)
_MAC_BYTES: Final = 16
_MAX_ID: Final = 160
_MAX_DROPPED: Final = 10_000
_PURPOSE: Final = b"touchstone sealed session 1"


class Sealer:
    """Seals and opens sessions."""

    def __init__(self, key: PoolKey) -> None:
        self._key = hmac.digest(key.secret, _PURPOSE, hashlib.sha256)
        self._dropped: dict[str, None] = {}

    def seal(self, channel: Channel, nonce: bytes, now_ms: int, lifetime_ms: int) -> StoredSession:
        """Make a session for anybody, with a nonce and no challenges."""
        expires_ms = now_ms + lifetime_ms
        salt = secrets.token_bytes(_SALT_BYTES)
        body = _HEAD.pack(_VERSION, _CHANNELS.index(channel), now_ms, expires_ms, salt) + nonce
        return _session(_spell(body, self._mac(body)), body)

    def open(self, session_id: str) -> StoredSession | None:
        """Give the session in an id; `None` if the id was not made by `seal` with the same key."""
        if not session_id.startswith(_PREFIX) or len(session_id) > _MAX_ID:
            return None
        text = session_id[len(_PREFIX) :]
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        body, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
        if len(body) <= _HEAD.size or not hmac.compare_digest(mac, self._mac(body)):
            return None
        # The last character of base64 has bits that do not count: a session has one id, and one row.
        if body[0] != _VERSION or _spell(body, mac) != session_id:
            return None
        session = _session(session_id, body)
        return replace(session, status="failed") if session_id in self._dropped else session

    def drop(self, session_id: str) -> None:
        """Have a session that `open` gives be over."""
        self._dropped[session_id] = None
        while len(self._dropped) > _MAX_DROPPED:
            del self._dropped[next(iter(self._dropped))]

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_MAC_BYTES]


def _spell(body: bytes, mac: bytes) -> str:
    return _PREFIX + base64.urlsafe_b64encode(body + mac).rstrip(b"=").decode()


def _session(session_id: str, body: bytes) -> StoredSession:
    _, channel, issued_ms, expires_ms, _ = _HEAD.unpack_from(body)
    return StoredSession(
        id=session_id,
        node_id=None,
        channel=_CHANNELS[channel],
        nonce=body[_HEAD.size :],
        issued_ms=issued_ms,
        expires_ms=expires_ms,
        status="waiting",
        sealed=True,
    )
