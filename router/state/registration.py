"""
The router's registration at the verifier, by which nodes learn of it.

It is made at the start, every hour, and when a node refuses the router.

Whose fault a node's refusal is depends on it.  A router that is not registered is the cause itself.  Nodes need up to
two minutes to learn of a new one, and that is nobody's fault.  Afterwards it is the node's.  The verifier is asked each
time, because a person may have removed the router meanwhile; if it does not answer, the refusal is nobody's fault.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Final

import aiohttp
import msgspec
import structlog
from msgspec import Meta, Struct
from prometheus_client import Counter, Gauge

from attester.authorities import why_unreached
from attester.bounded import read_all
from attester.errors import ConfigError
from router.model.clock import Clock
from router.model.outcomes import Failure
from router.state.identity import Identity

LEARNED_IN_S: Final = 120.0
"""Nodes know of a router at most so long after it was registered."""
FRESH_S: Final = 5.0
"""What the verifier has said so lately is not asked again."""
RENEW_EVERY_S: Final = 3600.0
_ASK_S: Final = 2.0
"""How long a request that was refused waits for the verifier's word."""
_FIRST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 60.0
_MAX_ANSWER: Final = 64 << 10
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10, connect=5)

_LISTED_NAME: Final = 128
"""Characters of a name in that list (`verifier.service.routers`)."""

_log = structlog.get_logger("router")
_registered = Gauge("touchstone_router_registered", "Whether the verifier has registered this router.")
_attempts = Counter(
    "touchstone_router_registrations_total", "Registrations at the verifier, by what became of them.", ["how"]
)

_Seconds = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Answer(Struct, frozen=True):
    name: Annotated[str, Meta(min_length=1, max_length=600)]
    registered_for_s: _Seconds
    expires_in_s: _Seconds


class Registrar:
    """
    Keeps a router registered.

    Args:
        http: A client that trusts the verifier's certificate.
        issuer: The verifier's URL.
        token: Reads the router's credential; raises `ConfigError`.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        issuer: str,
        identity: Identity,
        clock: Clock,
        token: Callable[[], str | None],
    ) -> None:
        self._http = http
        self._issuer = issuer
        self.identity = identity
        self._clock = clock
        self._token = token
        self._name: str | None = None
        self._since = 0.0
        self._confirmed = 0.0
        self._ends: float | None = None
        """Monotonic seconds; `None`: it is not registered."""
        self._problem = "the verifier was not asked yet"
        self._failed = 0
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_registered(self) -> bool:
        """Whether the verifier lists this router, as far as is known."""
        return self._ends is not None and self._clock.monotonic() < self._ends

    async def judge_refusal(self) -> Failure:
        """Say whose fault it is that a node refused the certificate now."""
        if self.is_registered and not self._failed:
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_S), self._one_at_a_time:
                    if not self._is_fresh:
                        await self.register()
        if not self.is_registered:
            return Failure.NOT_REGISTERED
        if not self._is_fresh or self._clock.monotonic() - self._since < LEARNED_IN_S:
            return Failure.CERTIFICATE_NEW
        return Failure.CERTIFICATE_REFUSED

    @property
    def _is_fresh(self) -> bool:
        return self._clock.monotonic() - self._confirmed <= FRESH_S

    @property
    def name(self) -> str | None:
        """The router's name as nodes read it in the verifier's list; `None` while it is not registered."""
        return None if self._name is None or not self.is_registered else self._name[:_LISTED_NAME]

    def to_wire(self) -> dict[str, Any]:
        """What people are shown."""
        now, certificate = self._clock.monotonic(), self.identity.certificate
        registered = self.is_registered
        return {
            "spki_sha256": certificate.spki_sha256.hex(),
            "certificate_ends": certificate.ends.date().isoformat(),
            "registered": registered,
            "registered_as": self._name if registered else None,
            "registered_for_s": round(now - self._since) if registered else None,
            "problem": self._problem or None,
        }

    async def run(self) -> None:
        """Register, and go on, until cancelled."""
        while True:
            try:
                async with self._one_at_a_time:
                    await self.register()
            except Exception:  # noqa: BLE001
                # The outermost of the loop: if it ended, nodes would forget this router.
                self._failed += 1
                _log.exception("the registration failed")
            await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        """How long to wait for the next registration; routers that start together do not stay together."""
        spread = random.uniform(0.9, 1.0)
        if self._failed:
            return spread * min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failed - 1, 8))
        left_s = 0.0 if self._ends is None else self._ends - self._clock.monotonic()
        return spread * max(0.0, min(RENEW_EVERY_S, left_s / 2))

    async def register(self) -> None:
        """Register once, or renew the registration; what went wrong is in the status and in the log."""
        try:
            token = self._token()
        except ConfigError as error:
            self._note_failure(str(error), is_final=False)
            return
        if token is None:
            self._note_failure("this router has no credential of the verifier", is_final=True)
            return
        try:
            async with self._http.post(
                f"{self._issuer}/api/v1/routers",
                data=self.identity.registration(self._issuer, token),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=_TIMEOUT,
                allow_redirects=False,
            ) as response:
                data = await read_all(response.content, _MAX_ANSWER)
                status = response.status
            if status == 200 and data is not None:
                self._note_success(msgspec.json.decode(data, type=_Answer))
                return
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._note_failure(f"the verifier does not answer: {why_unreached(error)}", is_final=False)
            return
        except (msgspec.DecodeError, UnicodeError):
            self._note_failure("what answers is no verifier that registers routers", is_final=False)
            return
        # What the verifier cannot do now says nothing of a registration that it made before.
        self._note_failure(_why_refused(status, data), is_final=status in (401, 403, 404, 405, 422))

    def _note_success(self, answer: _Answer) -> None:
        now = self._clock.monotonic()
        _attempts.labels("accepted").inc()
        _registered.set(1)
        if self._problem:
            _log.info("the router is registered at the verifier", name=answer.name)
        self._name, self._problem, self._failed = answer.name, "", 0
        self._confirmed, self._since = now, now - answer.registered_for_s
        self._ends = now + answer.expires_in_s

    def _note_failure(self, why: str, *, is_final: bool) -> None:
        _attempts.labels("refused" if is_final else "failed").inc()
        self._failed += 1
        if is_final:
            self._ends = None
        _registered.set(self.is_registered)
        if why != self._problem:
            _log.warning(
                "the router is not registered now: nodes that ask for its certificate refuse it", why=why
            )
        self._problem = why


def _why_refused(status: int, data: bytes | None) -> str:
    """What the verifier answered, in a line."""
    if status in (404, 405):
        return "this verifier registers no routers: it is of an earlier version"
    try:
        document = msgspec.json.decode(data or b"", type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        document = {}
    detail = document.get("detail")
    said = "".join(c for c in detail[:300] if c.isprintable()) if isinstance(detail, str) else ""
    return f"the verifier answers {status}: {said}".removesuffix(": ")
