"""
Minted answers in the pool, sealed: a stolen database tells nobody what will be asked, or what is to be answered.  Pure.

AES-256-GCM (NIST SP 800-38D).  The key of an entry follows from the pool key, the entry's place and a salt of its own, so
no key encrypts twice and the nonce may be constant; the place is associated data, so an entry that was put elsewhere in
the database does not open.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from verifier.challenges.pool_key import PoolKey
from verifier.errors import ReferenceValueError

SALT_BYTES: Final = 16
_NONCE: Final = bytes(12)
_SEALED: Final = b"touchstone minted answer 1"
_PROMPT: Final = b"touchstone minted prompt 1"
_DRAWS: Final = b"touchstone minted draws 1"
_PROMPT_BYTES: Final = 16


def seal(key: PoolKey, model: str, index: int, plain: bytes, salt: bytes) -> bytes:
    """
    Seal an entry.

    Args:
        salt: `SALT_BYTES` random bytes, never used before.
    """
    return salt + AESGCM(_key(key, model, index, salt)).encrypt(_NONCE, plain, _place(model, index))


def unseal(key: PoolKey, model: str, index: int, sealed: bytes) -> bytes:
    """
    Open an entry.

    Raises:
        ReferenceValueError: it was changed, is of another place, or was sealed with another pool key.
    """
    salt, rest = sealed[:SALT_BYTES], sealed[SALT_BYTES:]
    try:
        return AESGCM(_key(key, model, index, salt)).decrypt(_NONCE, rest, _place(model, index))
    except (InvalidTag, ValueError):
        raise ReferenceValueError(
            f"minted answer {index} of {model} does not open: the database was changed, or its pool key is another one"
        ) from None


def draws_secret(key: PoolKey, model: str, index: int) -> bytes:
    """The secret from which the choices of an entry's request follow (`verifier.answers.draws`)."""
    return hmac.digest(key.secret, _DRAWS + _place(model, index), hashlib.sha256)


def prompt_name(key: PoolKey, model: str, text: str) -> bytes:
    """What is kept of a prompt, so that it is never asked twice: whoever has the database alone cannot try prompts."""
    return hmac.digest(key.secret, _PROMPT + model.encode() + b"\0" + text.encode(), hashlib.sha256)[
        :_PROMPT_BYTES
    ]


def _key(key: PoolKey, model: str, index: int, salt: bytes) -> bytes:
    return hmac.digest(key.secret, _SEALED + salt + _place(model, index), hashlib.sha256)


def _place(model: str, index: int) -> bytes:
    return model.encode() + b"\0answ" + index.to_bytes(8, "little")
