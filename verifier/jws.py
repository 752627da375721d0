"""
JSON Web Signatures (RFC 7515) in the one form that results have: compact, ES256, a key by its kid.

pyjwt reads the same, and a test compares both.  It checks base64url character by character in
Python, and for a result that takes twice as long as the signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from attester.errors import SignatureError
from verifier.errors import ResultError
from verifier.result_keys import VerifyingKey, b64url, unb64url


def open_jwt(token: str, keys: Mapping[str, VerifyingKey]) -> dict[str, Any]:
    """
    Verify a JWT, and read its claims.  The caller limits its size.

    Raises:
        ResultError: it is malformed, names none of *keys*, has another algorithm or a critical
            parameter, or its signature is wrong.
    """
    try:
        head, body, tail = token.split(".")
    except ValueError:
        raise _wrong("it must have three parts") from None
    header = _read_header(head)
    kid = header.get("kid")
    key = keys.get(kid) if isinstance(kid, str) else None
    if key is None:
        raise ResultError("the result is signed by an unknown key")
    # The key is for ES256 alone; a header that says otherwise is not what the signer meant.
    if header.get("alg") != "ES256":
        raise _wrong("the alg value is not ES256")
    if "crit" in header or "b64" in header:
        raise _wrong("the header has critical parameters, which are not supported")
    payload, signature = _read_part(body, "payload"), _read_part(tail, "signature")
    try:
        key.cose.verify(signature, f"{head}.{body}".encode())
    except SignatureError as error:
        raise _wrong(str(error)) from None
    return _read_object(payload, "payload")


def kid_of(token: str) -> str | None:
    """The kid in the header of a JWT, of which nothing else is read; `None` if there is none."""
    try:
        kid = _read_header(token.partition(".")[0]).get("kid")
    except ResultError:
        return None
    return kid if isinstance(kid, str) else None


@lru_cache(maxsize=16)
def _read_header(head: str) -> Mapping[str, Any]:
    """The header, which is the same in all that a key signs."""
    return _read_object(_read_part(head, "header"), "header")


def _read_part(text: str, name: str) -> bytes:
    try:
        data = unb64url(text)
    except ResultError:
        data = None
    # RFC 7515 §2 has one form of each part: without padding, and with no stray bits at its end.
    if data is None or b64url(data) != text:
        raise _wrong(f"the {name} must be base64url")
    return data


def _read_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(f"Invalid {name} string: {error}") from None
    if not isinstance(value, dict):
        raise _wrong(f"Invalid {name} string: it must be a JSON object")
    return value


def _wrong(why: str) -> ResultError:
    return ResultError(f"the result's signature or form is wrong: {why}")
