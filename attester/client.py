"""
The client of the verifier's API: signed requests, bounded answers, errors in plain sentences.

Answers and evidence are sent again while their session lives, if the verifier could not be reached or asks for it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import aiohttp
import msgspec
from msgspec import Meta, Struct

from attester import router_list
from attester.authorities import distrust
from attester.bounded import read_all
from attester.cose import PrivateKey
from attester.errors import VerifierError, join_sentences
from attester.evidence import MAX_FILES, MEDIA_TYPE, ReadAnswer, WalkAnswer
from attester.proof import Request
from attester.revisions import Revision
from attester.revisions import parse as parse_revisions
from attester.router_list import KnownRouter
from attester.sse import read_events
from attester.weights.possession import ModelChallenge

_MAX_ANSWER = 8 << 20
_MAX_EVENT = 1 << 20
_TIMEOUT = aiohttp.ClientTimeout(total=60, connect=10)
_CALLS_TIMEOUT_S = 30.0
"""The verifier sends something on the call channel at least this often."""
_MAX_SENTENCE_CHARS = 300
_TEMPORARY: Final = frozenset({429, 502, 503, 504})
_NOT_FOUND: Final = 404
_MIN_RETRY_WAIT_S: Final = 0.5
_MAX_RETRY_WAIT_S: Final = 8.0

T = TypeVar("T")


_FileName = Annotated[str, Meta(min_length=1, max_length=1024)]


class _Challenge(Struct, frozen=True):
    models: Annotated[tuple[ModelChallenge, ...], Meta(max_length=32)]
    files: dict[str, Annotated[tuple[_FileName, ...], Meta(min_length=1, max_length=MAX_FILES)]] = {}
    """By model, the files that its challenges are about.  Verifiers from before it have always meant all."""

    def posed(self) -> tuple[ModelChallenge, ...]:
        """The challenges, with the files that they are about."""
        return tuple(model.about(self.files.get(model.model)) for model in self.models)


class _AnsweredBody(Struct, frozen=True):
    challenge: _Challenge | None = None


class _SessionBody(Struct, frozen=True, kw_only=True):
    nonce: str
    expiry: str
    status: str
    challenge: _Challenge | None = None
    result: str | None = None
    session: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")] | None = None
    next: _SessionBody | None = None


@dataclass(frozen=True)
class Session:
    """A challenge-response session that waits for evidence."""

    id: str
    nonce: bytes
    models: tuple[ModelChallenge, ...]
    expiry: float | None = None
    """Seconds since 1970; evidence that comes later is refused."""


class VerifierClient:
    """
    Requests to one verifier, signed with the node key.

    Args:
        now: Seconds since 1970.
        sleep: Waits for a number of seconds; tests replace it.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        key: PrivateKey,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._http = http
        self._url = url
        self._key = key
        self._now = now
        self._sleep = sleep
        self._rng = rng or random.Random()

    def with_key(self, key: PrivateKey) -> VerifierClient:
        """A client of the same verifier that signs with *key*."""
        return VerifierClient(self._http, self._url, key, now=self._now, sleep=self._sleep, rng=self._rng)

    def use_key(self, key: PrivateKey) -> None:
        """Sign with *key* from now on."""
        self._key = key

    async def discover(self) -> Mapping[str, Any]:
        """The verifier's discovery document."""
        return await self._json("GET", "/.well-known/veraison/verification", signed=False)

    async def reference(self, model: str) -> Mapping[str, Any]:
        """A model's reference value, with the practice challenge; for enrolled nodes with this model."""
        return await self._json("GET", f"/api/v1/reference-values/{model}")

    async def revisions(self, model: str) -> tuple[Revision, ...] | None:
        """
        The revisions of a model that the verifier takes now; `None` if it does not tell, as earlier verifiers do not.

        Raises:
            VerifierError: the verifier refuses, cannot be reached, or its answer is malformed.
        """
        try:
            _, data = await self._ask("GET", f"/api/v1/revisions/{model}")
        except VerifierError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return parse_revisions(data, model)

    async def say_revisions(self, node: str, held: Mapping[str, str]) -> None:
        """Say which revisions the node has: by model, the digest.  Raises `VerifierError`."""
        body = msgspec.json.encode({"revisions": dict(held)})
        await self._ask("PUT", f"/api/v1/nodes/{node}/revisions", body)

    async def enrol(self, token: str, models: Sequence[str]) -> Mapping[str, Any]:
        """Enrol this key."""
        key = base64.b64encode(self._key.public.encode()).decode()
        body = msgspec.json.encode({"token": token, "key": key, "models": list(models)})
        return await self._json("POST", "/api/v1/nodes", body)

    async def roll(self, node: str, new: PrivateKey) -> None:
        """Replace the node's key: the current key signs the request, and *new* proves its possession."""
        target = f"/api/v1/nodes/{node}/key"
        proof = self._request("POST", target, b"").authorize(new, now=int(self._now()))
        key = base64.b64encode(new.public.encode()).decode()
        await self._json("POST", target, msgspec.json.encode({"key": key, "proof": proof}))

    async def routers(self) -> tuple[KnownRouter, ...]:
        """The routers that may use the node.  Raises `VerifierError`, also if the list is malformed."""
        _, data = await self._ask("GET", "/api/v1/routers")
        return router_list.parse(data)

    async def open_session(self) -> Session:
        """Open a session without a call; its walk counts for less, because the node chose the moment."""
        response, data = await self._ask("POST", "/challenge-response/v1/newSession", b"")
        location = response.headers.get("Location", "")
        return _session(data, location.rpartition("/")[2])

    async def submit(self, session: Session, evidence: bytes) -> str:
        """
        Submit evidence; returns the result, a JWT.

        The same evidence gives the same result, so it may be sent again whatever became of the first time.
        """
        result, _ = await self._submit(session, evidence, "")
        return result

    async def submit_and_go_on(self, session: Session, evidence: bytes) -> tuple[str, Session | None]:
        """Submit evidence; returns the result, and the next session that the verifier opened with it, if it did."""
        return await self._submit(session, evidence, "?next=1")

    async def _submit(self, session: Session, evidence: bytes, query: str) -> tuple[str, Session | None]:
        path = f"/challenge-response/v1/session/{session.id}{query}"

        async def send() -> bytes:
            _, data = await self._ask("POST", path, evidence, content_type=MEDIA_TYPE, signed=False)
            return data

        data = await self._insist(session, send)
        body: _SessionBody = _decode(data, _SessionBody)
        if body.result is None:
            raise VerifierError("the verifier accepted the evidence but returned no result")
        return body.result, None if body.next is None else _to_session(body.next, "")

    async def answer_call(
        self, session: Session, answers: Mapping[str, tuple[ReadAnswer | None, WalkAnswer | None]]
    ) -> tuple[ModelChallenge, ...]:
        """
        Send the answers to a call ahead of the evidence: the verifier measures the time they take.

        Returns:
            The walks that follow: their answers are to be sent in the same way.  Empty if none follows.
        """
        entries = [
            {
                "model": model,
                "read": None if read is None else read.answer.hex(),
                "walk": None if walk is None else [answer.hex() for answer in walk.answers],
            }
            for model, (read, walk) in answers.items()
        ]
        body = msgspec.json.encode({"answers": entries})
        may_have_arrived = False

        async def send() -> tuple[ModelChallenge, ...]:
            nonlocal may_have_arrived
            try:
                _, data = await self._ask("POST", f"/api/v1/calls/{session.id}/answers", body)
            except VerifierError as error:
                if error.code == "session.closed" and may_have_arrived:
                    # An earlier try has arrived, and only its acknowledgement was lost.
                    return ()
                may_have_arrived = may_have_arrived or error.may_have_arrived
                raise
            answered: _AnsweredBody = _decode(data, _AnsweredBody)
            return () if answered.challenge is None else answered.challenge.posed()

        return await self._insist(session, send)

    async def calls(self, node: str) -> AsyncIterator[Session]:
        """
        Keep the call channel open and yield each call as it arrives.

        Raises:
            VerifierError: the verifier refuses, or sends nothing for 30 seconds.
        """
        target = f"/api/v1/nodes/{node}/calls"
        header = self._request("GET", target, b"").authorize(self._key, now=int(self._now()))
        try:
            async with self._http.get(
                self._url + target,
                headers={"Authorization": header, "Accept": "text/event-stream"},
                timeout=aiohttp.ClientTimeout(total=None, connect=10, sock_read=_CALLS_TIMEOUT_S),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    retry_after = response.headers.get("Retry-After", "")
                    raise _refusal(response.status, await _read(response), retry_after)
                async for event in read_events(response.content, max_size=_MAX_EVENT):
                    if event.kind == "call":
                        yield _session(event.data.encode(), "")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _unreachable(self._url, error) from None

    async def _insist(self, session: Session, send: Callable[[], Awaitable[T]]) -> T:
        """*send*, again and again, until the verifier has answered or the session would be over."""
        longest_s = _MIN_RETRY_WAIT_S
        while True:
            try:
                return await send()
            except VerifierError as error:
                # A random part, so that the nodes of a fleet do not all come back at the same moment.
                wait_s = (error.retry_after_s or 0) + self._rng.uniform(0, longest_s)
                if not error.is_temporary or session.expiry is None or self._now() + wait_s >= session.expiry:
                    raise
            await self._sleep(wait_s)
            longest_s = min(longest_s * 2, _MAX_RETRY_WAIT_S)

    def _request(self, method: str, target: str, body: bytes) -> Request:
        return Request(method, self._url.partition("://")[2], target, body)

    async def _json(
        self, method: str, target: str, body: bytes = b"", *, signed: bool = True
    ) -> Mapping[str, Any]:
        _, data = await self._ask(method, target, body, signed=signed)
        document: Mapping[str, Any] = _decode(data, dict[str, Any])
        return document

    async def _ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        content_type: str = "application/json",
        signed: bool = True,
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        headers = {"Content-Type": content_type} if body else {}
        if signed:
            request = self._request(method, target, body)
            headers["Authorization"] = request.authorize(self._key, now=int(self._now()))
        try:
            async with self._http.request(
                method,
                self._url + target,
                data=body or None,
                headers=headers,
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                data = await _read(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _unreachable(self._url, error) from None
        if response.status not in (200, 201, 204):
            raise _refusal(response.status, data, response.headers.get("Retry-After", ""))
        return response, data


async def _read(response: aiohttp.ClientResponse) -> bytes:
    data = await read_all(response.content, _MAX_ANSWER)
    if data is None:
        raise VerifierError(f"the verifier's answer is larger than {_MAX_ANSWER} bytes")
    return data


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VerifierError(f"the verifier's answer is malformed: {error}") from None


def _session(data: bytes, session_id: str) -> Session:
    return _to_session(_decode(data, _SessionBody), session_id)


def _to_session(body: _SessionBody, session_id: str) -> Session:
    try:
        nonce = base64.b64decode(body.nonce, validate=True)
    except (binascii.Error, ValueError):
        raise VerifierError("the verifier's nonce is not base64") from None
    if not 8 <= len(nonce) <= 64:
        raise VerifierError("the verifier's nonce must have 8 to 64 bytes")
    models = () if body.challenge is None else body.challenge.posed()
    try:
        expiry = datetime.fromisoformat(body.expiry).timestamp()
    except (ValueError, OverflowError):
        raise VerifierError("the verifier's expiry is not an ISO 8601 time") from None
    return Session(body.session or session_id, nonce, models, expiry)


def _refusal(status: int, data: bytes, retry_after: str = "") -> VerifierError:
    """A problem document (RFC 9457) as sentences, without unprintable characters."""
    is_seconds = retry_after.isascii() and retry_after.isdigit() and len(retry_after) <= 6
    outcome: dict[str, Any] = {
        "status": status,
        "retry_after_s": float(retry_after) if is_seconds else None,
        "is_temporary": status in _TEMPORARY,
        # A server in between may have lost the answer, and a verifier its database during the commit.
        "may_have_arrived": status >= 500,
    }
    try:
        problem = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return VerifierError(f"the verifier answers with HTTP status {status}", **outcome)
    parts = [
        str(problem[name])[:_MAX_SENTENCE_CHARS] for name in ("title", "detail", "hint") if problem.get(name)
    ]
    text = "".join(c for c in join_sentences(parts) if c.isprintable())
    code = str(problem.get("type", "")).rpartition("#")[2][:80] or None
    return VerifierError(f"the verifier refuses: {text}", code=code, **outcome)


def _unreachable(url: str, error: BaseException) -> VerifierError:
    why = distrust(error)
    return VerifierError(
        f"the verifier at {url} cannot be reached ({type(error).__name__})"
        if why is None
        else f"the verifier at {url} cannot be reached: {why}. If an authority of your own has signed it, "
        "name its file as ca_file under [verifier] in attester.toml",
        is_temporary=not isinstance(error, ValueError),
        # Without a connection nothing was sent.
        may_have_arrived=not isinstance(error, aiohttp.ClientConnectorError),
    )
