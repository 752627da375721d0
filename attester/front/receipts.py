"""
What the front has served, in its own word: a receipt for each request that a router has given an id.

The front digests the body that it was sent and the body that it sends, and keeps the digests for a while.  When the
router asks for the receipt, and only then, they are signed with the key of the endpoint's certificate: the one that
the node's evidence names and that its result pins.  So a receipt costs two digests, and a signature if somebody wants it.

A receipt is a JWS (RFC 7515), compact, whose payload is JSON with its members sorted and no spaces.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import OrderedDict
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from attester import cose
from attester.errors import COSEError, FrontReceiptError
from attester.front.usage import UsageFinder

REQUEST_HEADER: Final = "X-Touchstone-Request"
"""Of every request of a router: 32 hexadecimal digits, another one for each attempt."""
PATH: Final = "/touchstone/receipts/"
"""Followed by the id: where the router that sent the request asks for its receipt."""
MEDIA_TYPE: Final = "application/jwt"
TYP: Final = "touchstone-front-receipt+jwt"
MAX_RECEIPT: Final = 4096
"""Bytes of a receipt."""
_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_PEEKED: Final = 64 * 1024
"""Bytes of a body in which the model is looked for."""
_ALGORITHMS: Final = {cose.ES256: ("ES256", "EC", "P-256"), cose.ED25519: ("Ed25519", "OKP", "Ed25519")}

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, lt=1 << 53)]


class Body(Struct, frozen=True, forbid_unknown_fields=True):
    """One body: that of the request as it was received, after its chunks were joined."""

    sha256: _Digest
    bytes: _Count


class ServedBody(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of the answer as it was sent, without the chunks that it was sent in."""

    status: Annotated[int, Meta(ge=100, le=999)]
    sha256: _Digest
    bytes: _Count
    complete: bool
    """Whether it was sent to its end."""


class FrontReceipt(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """The payload of a receipt."""

    v: Annotated[int, Meta(ge=1, le=1)]
    jti: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """The id that the router gave the request."""
    iat: _Count
    """When it was signed, Unix milliseconds."""
    at: _Count
    """When the answer ended, by the node's clock."""
    request: Body
    response: ServedBody
    jwk: dict[str, str]
    """The public key that signed (RFC 7517)."""
    model: Annotated[str, Meta(max_length=128)] | None = None
    """As the request names it, if the front has looked."""


class _Peeked(Struct):
    model: str | None = None


_EMPTY: Final = hashlib.sha256().hexdigest()
_peek: Final = msgspec.json.Decoder(_Peeked)
_header: Final = msgspec.json.Decoder(dict[str, str])


class Served:
    """What is known of one request and its answer: digests while they come and go, and after that until it is old."""

    __slots__ = (
        "_answer", "_request", "answer_bytes", "at_ms", "is_complete", "key", "model", "request_bytes",
        "request_id", "signed", "status", "usage",
    )  # fmt: skip

    key: cose.PrivateKey
    """The endpoint's key, as it was when the answer ended."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.request_bytes = self.answer_bytes = 0
        self.model: str | None = None
        self._request: Any = None
        self._answer: Any = None
        self.signed = ""
        """The receipt, once it was signed."""
        self.usage = UsageFinder()
        """What the engine tells of tokens."""

    def take_request(self, part: bytes, *, is_whole: bool = False) -> None:
        """A part of the request's body has come; *is_whole*: it is all of it."""
        if self._request is None:
            self._request = hashlib.sha256(part)
        else:
            self._request.update(part)
        self.request_bytes += len(part)
        if is_whole and len(part) <= _MAX_PEEKED:
            self.model = _model_of(part)

    def take_answer(self, part: bytes) -> None:
        """A part of the answer's body is sent."""
        if self._answer is None:
            self._answer = hashlib.sha256(part)
        else:
            self._answer.update(part)
        self.answer_bytes += len(part)
        self.usage.feed(part)

    def end(self, key: cose.PrivateKey, status: int, at_ms: int, *, is_complete: bool) -> None:
        """The answer has ended."""
        self.key, self.status, self.at_ms, self.is_complete = key, status, at_ms, is_complete

    @property
    def request_sha256(self) -> str:
        """Of the request's body, hex."""
        return _EMPTY if self._request is None else str(self._request.hexdigest())

    @property
    def answer_sha256(self) -> str:
        """Of the answer's body, hex."""
        return _EMPTY if self._answer is None else str(self._answer.hexdigest())


class Ring:
    """
    What was served lately, by the client and the id that it gave.

    Args:
        most: How many requests are kept; the oldest give way.
        life_s: For how long each is kept.
    """

    def __init__(self, most: int, life_s: float) -> None:
        self._most = most
        self._life_s = life_s
        # A plain dictionary looks through all that was deleted for the first that is left.
        self._kept: OrderedDict[tuple[str, str], tuple[float, Served]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_kept(self) -> bool:
        """Whether anything is kept at all."""
        return self._most > 0

    def add(self, client: str, served: Served, now: float) -> None:
        """Keep it; *now* is of a clock that nobody sets."""
        place = (client, served.request_id)
        # A client that uses an id twice has a receipt of the second use.
        self._kept.pop(place, None)
        self._kept[place] = now, served
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        self._forget(now)

    def find(self, client: str, request_id: str, now: float) -> Served | None:
        """What was served to a client under an id, if it is kept."""
        self._forget(now)
        found = self._kept.get((client, request_id))
        return None if found is None else found[1]

    def _forget(self, now: float) -> None:
        while self._kept and now - self._kept[next(iter(self._kept))][0] > self._life_s:
            self._kept.popitem(last=False)


def read_id(text: str | None) -> str | None:
    """An id as routers give it; `None` if it is none."""
    return text if text is not None and _ID.fullmatch(text) else None


def sign(served: Served, now_ms: int) -> str:
    """The receipt of what was served; it is signed once."""
    if not served.signed:
        receipt = FrontReceipt(
            v=1,
            jti=served.request_id,
            iat=now_ms,
            at=served.at_ms,
            request=Body(served.request_sha256, served.request_bytes),
            response=ServedBody(served.status, served.answer_sha256, served.answer_bytes, served.is_complete),
            model=served.model,
            jwk=_jwk_of(served.key.public),
        )
        header = {"alg": _ALGORITHMS[served.key.public.alg][0], "kid": _pin_of(served.key.public), "typ": TYP}
        signed = f"{_b64url(_json(header))}.{_b64url(_json(receipt))}"
        served.signed = f"{signed}.{_b64url(served.key.sign(signed.encode()))}"
    return served.signed


def open_receipt(text: str, pin: str) -> FrontReceipt:
    """
    Verify a receipt and read it.

    Args:
        text: The JWS.
        pin: The SHA-256 of the endpoint's public key, hex, as the node's result names it.

    Raises:
        FrontReceiptError: it is malformed, of another key than the pinned one, or its signature is wrong.
    """
    if len(text) > MAX_RECEIPT or text.count(".") != 2:
        raise FrontReceiptError("it is not a compact JWS of a receipt")
    head, body, tail = text.split(".")
    try:
        header = _header.decode(_unb64url(head))
        receipt = msgspec.json.decode(_unb64url(body), type=FrontReceipt)
        signature = _unb64url(tail)
        key = _key_of(receipt.jwk)
    except (msgspec.DecodeError, ValueError, COSEError, RecursionError) as error:
        raise FrontReceiptError(f"it is malformed: {str(error)[:100]}") from None
    expected = {"alg": _ALGORITHMS[key.alg][0], "kid": pin, "typ": TYP}
    if _pin_of(key) != pin or header != expected:
        raise FrontReceiptError(
            "it is signed by another key than that of the endpoint, or has another header"
        )
    try:
        key.verify(signature, f"{head}.{body}".encode())
    except COSEError as error:
        raise FrontReceiptError(str(error)) from None
    return receipt


def _model_of(body: bytes) -> str | None:
    try:
        model = _peek.decode(body).model
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    is_plain = model is not None and len(model) <= 128 and model.isascii() and model.isprintable()
    return model if is_plain else None


def _jwk_of(key: cose.PublicKey) -> dict[str, str]:
    _, kty, crv = _ALGORITHMS[key.alg]
    if key.alg == cose.ES256:
        return {"crv": crv, "kty": kty, "x": _b64url(key.point[:32]), "y": _b64url(key.point[32:])}
    return {"crv": crv, "kty": kty, "x": _b64url(key.point)}


def _key_of(jwk: dict[str, str]) -> cose.PublicKey:
    """Raises `ValueError`, `COSEError`."""
    match jwk:
        case {"kty": "EC", "crv": "P-256", "x": x, "y": y} if len(jwk) == 4:
            return cose.PublicKey.from_map({1: 2, -1: 1, -2: _unb64url(x), -3: _unb64url(y)})
        case {"kty": "OKP", "crv": "Ed25519", "x": x} if len(jwk) == 3:
            return cose.PublicKey.from_map({1: 1, -1: 6, -2: _unb64url(x)})
    raise ValueError("its key is none of P-256 or Ed25519")


# DER of a SubjectPublicKeyInfo up to the key itself: id-ecPublicKey with prime256v1 (RFC 5480), Ed25519 (RFC 8410).
_SPKI: Final = {
    cose.ES256: bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"),
    cose.ED25519: bytes.fromhex("302a300506032b6570032100"),
}


def _pin_of(key: cose.PublicKey) -> str:
    return hashlib.sha256(_SPKI[key.alg] + key.point).hexdigest()


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64url(text: str) -> bytes:
    """Raises `ValueError`: it is not base64url in its one form (RFC 7515 §2)."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _b64url(data) != text:
        raise ValueError("a part is not base64url")
    return data
