"""
The agent: it keeps the call channel open, answers each call at once, and attests.

Answers and evidence are sent again while their session lives (`attester.client`).  If a round fails all
the same, the agent logs it and waits for the next call.  If the channel closes, the agent opens it again
after a random wait whose upper bound doubles, so that the nodes of a fleet do not all reconnect at the
same moment.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import msgspec
import structlog

from attester.client import Session, VerifierClient
from attester.collector import Collector
from attester.config import Enrolment
from attester.cose import PrivateKey
from attester.errors import AttesterError, VerifierError
from attester.evidence import ReadAnswer, Token, WalkAnswer
from attester.holding import Holding, NotReadyError
from attester.live_keys import LiveKeys
from attester.weights.possession import ModelChallenge

_MIN_RECONNECT_WAIT_S = 0.5
_MAX_RECONNECT_WAIT_S = 60.0
_LOOK_SOON_S: Final = 0.2

_KEYS_TRIED: Final = 3
"""How many keys of the home are tried for one request: the old one, the new one, and one that came meanwhile."""
_REFUSED_KEY: Final = frozenset({"request.unauthorised", "evidence.key"})

T = TypeVar("T")
Answers: TypeAlias = Mapping[str, tuple[ReadAnswer | None, WalkAnswer | None]]
"""By model, the answers to `read` and to `walk`; `None` for what was not asked, or could not be answered."""

_log = structlog.get_logger("attester")


class Agent:
    """
    One node's agent.

    Args:
        now: Seconds since 1970, for `iat`.
        sleep: Waits for a number of seconds; tests replace it.
        keys: The keys of the home.  Without them *key* is the node's as long as the agent lives.
        holding: Watches what the node holds; without it, the agent never looks.
    """

    def __init__(
        self,
        client: VerifierClient,
        collector: Collector,
        key: PrivateKey,
        enrolment: Enrolment,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        keys: LiveKeys | None = None,
        holding: Holding | None = None,
    ) -> None:
        self._keys = keys
        self._holding = holding
        self._in_round = asyncio.Lock()
        self._may_be_called = asyncio.Event()
        self._may_be_called.set()
        self._must_leave = asyncio.Event()
        self._look_soon = asyncio.Event()
        self._wait_s = _MIN_RECONNECT_WAIT_S
        """At most so long it waits before it opens a channel again."""
        self._client = client
        self._collector = collector
        self._key = key
        self._enrolment = enrolment
        self._now = now
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._answered = ""
        """The last call whose answers the verifier has: if it comes again, it still waits for the evidence."""

    @property
    def client(self) -> VerifierClient:
        """The client of the verifier, which signs with the node key of now."""
        return self._client

    async def run(self) -> None:
        """Attest until cancelled."""
        await self.prepare()
        await self.serve()

    async def prepare(self) -> None:
        """Have ready what calls need, as far as it can be had."""
        try:
            await self._collector.prepare()
        except AttesterError as error:
            # Calls meet the same error later, and answer as much as they can.
            _log.error("not ready for calls", why=str(error))
        except Exception:  # noqa: BLE001
            _log.exception("not ready for calls")
        if self._holding is not None:
            await self._look(self._holding)

    async def serve(self) -> None:
        """Keep the call channel open and answer each call, until cancelled."""
        if self._holding is None:
            await self._serve()
            return
        watch = asyncio.create_task(self._watch(self._holding), name="folders")
        try:
            await self._serve()
        finally:
            await _end(watch)

    async def _watch(self, holding: Holding) -> None:
        """Look at the folders again and again."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(holding.look_s):
                    await self._look_soon.wait()
                # Something is not as it was claimed: not at once, or it would be looked without a pause.
                await self._sleep(_LOOK_SOON_S)
            self._look_soon.clear()
            await self._look(holding)

    async def _look(self, holding: Holding) -> None:
        """Look at the folders, claim what is new, and attest to it; hold a channel only if there is something to show."""
        has_changed = False
        try:
            has_changed = await holding.look(self.between_rounds)
        except AttesterError as error:
            _log.warning("the folders could not be compared with the verifier's revisions", why=str(error))
        except Exception:  # noqa: BLE001
            _log.exception("the folders could not be compared with the verifier's revisions")
        if holding.is_blocked:
            self._may_be_called.clear()
            self._must_leave.set()
        else:
            self._must_leave.clear()
            self._may_be_called.set()
        if has_changed:
            async with self._in_round:
                await self._attest_anew()

    async def _attest_anew(self) -> None:
        """Attest in a session of the node's own, so that what it holds now is known soon."""
        try:
            claims = decode_unverified(await self.once())
        except AttesterError as error:
            # The verifier calls soon in any case.
            _log.warning("no attestation before the next call", why=str(error))
        else:
            _log.info("attested to the new revision", status=claims.get("ear_status"))

    async def _serve(self) -> None:
        while True:
            asked_s = 0.0
            await self._may_be_called.wait()
            try:
                self._take_keys()
                channel = asyncio.create_task(self._hold_channel(), name="channel")
                try:
                    if await self._stays(channel):
                        _log.info("the verifier closed the channel; it will be opened again")
                finally:
                    await _end(channel)
            except AttesterError as error:
                if self._has_another_key(error):
                    continue
                _log.warning("the channel is closed", why=str(error))
                asked_s = (error.retry_after_s or 0.0) if isinstance(error, VerifierError) else 0.0
            except Exception:  # noqa: BLE001
                # The outermost loop: one unexpected error must not end the attester.
                _log.exception("the channel failed")
            await self._sleep(asked_s + self._rng.uniform(0, self._wait_s))
            self._wait_s = min(self._wait_s * 2, _MAX_RECONNECT_WAIT_S)

    async def _hold_channel(self) -> bool:
        """Answer the calls of one channel until it ends; gives whether it was the verifier that ended it."""
        async for session in self._client.calls(self._enrolment.node):
            self._wait_s = _MIN_RECONNECT_WAIT_S
            async with self._in_round:
                if not await self._round(session):
                    return False
        return True

    async def _stays(self, channel: asyncio.Task[bool]) -> bool:
        """Wait for the end of a channel, or leave it if there is nothing to show."""
        leaving = asyncio.create_task(self._must_leave.wait(), name="leaving")
        try:
            await asyncio.wait([channel, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end(leaving)
        if channel.done():
            return channel.result()
        # A round that has begun comes to its end.
        async with self._in_round:
            await _end(channel)
        return False

    async def once(self) -> str:
        """
        Attest once in a session that the agent opens itself; returns the result, a JWT.

        Raises:
            VerifierError, WeightsError, EngineError, NotReadyError: the attestation failed.
        """
        return await self.attest(await self._client.open_session(), called=False)

    async def attest(self, session: Session, *, called: bool) -> str:
        """Answer a session's challenges and submit evidence; returns the result, a JWT."""
        self._take_keys()
        answers = await self._answer(session.models, called=called)
        if called and session.id != self._answered:
            answers = await self._send(session, answers)
            self._answered = session.id
        result = await self._by_any_key(lambda: self._submit(session, answers))
        if self._keys is not None:
            self._keys.note_accepted()
        return result

    async def _submit(self, session: Session, answers: Answers) -> str:
        """Sign evidence with the key of now, and submit it."""
        submods = await self._collector.submods(session.nonce, answers)
        if self._holding is not None:
            await self._holding.check(self._enrolment.models, walks=False)
        token = Token(
            nonce=session.nonce,
            ueid=self._enrolment.ueid,
            iat=int(self._now()),
            aud=self._enrolment.verifier,
            submods=submods,
        )
        return await self._client.submit(session, token.sign(self._key))

    async def _by_any_key(self, send: Callable[[], Awaitable[T]]) -> T:
        """*send*, again if the key was rolled in the middle of the session, which still lives."""
        for _ in range(_KEYS_TRIED - 1):
            try:
                return await send()
            except VerifierError as error:
                if not self._has_another_key(error):
                    raise
        return await send()

    @contextlib.asynccontextmanager
    async def between_rounds(self) -> AsyncIterator[None]:
        """A time in which no round runs, and none begins."""
        async with self._in_round:
            yield

    def _take_keys(self) -> None:
        """Use the keys that the home has now."""
        if self._keys is not None and self._keys.refresh():
            self._use_keys(self._keys)

    def _has_another_key(self, error: AttesterError) -> bool:
        """Whether the verifier refused the node key and the home has another one, which is used from now on."""
        if self._keys is None or not isinstance(error, VerifierError):
            return False
        if error.code not in _REFUSED_KEY:
            return False
        has_another = self._keys.try_another()
        self._use_keys(self._keys)
        return has_another

    def _use_keys(self, keys: LiveKeys) -> None:
        self._key = keys.node
        self._client.use_key(keys.node)
        self._collector.use_keys(keys.tls, keys.node.public.kid)

    async def _answer(self, challenges: Sequence[ModelChallenge], *, called: bool) -> Answers:
        """The answers to challenges.  Raises `NotReadyError` if what is claimed was not there all the time."""
        if self._holding is None:
            return {each.model: await self._collector.answer(each) for each in challenges}
        walked = [each.model for each in challenges if each.walk is not None]
        if called:
            await self._holding.check_engine()
        await self._holding.check([each.model for each in challenges], walks=False)
        await self._holding.check(walked, walks=True)
        answers = {each.model: await self._collector.answer(each) for each in challenges}
        await self._holding.check([each.model for each in challenges], walks=False)
        return answers

    async def _send(self, session: Session, answers: Answers) -> Answers:
        """Send the answers to a call, and those to the walks that follow; returns all of them."""
        try:
            walks = await self._by_any_key(lambda: self._client.answer_call(session, answers))
            if not walks:
                return answers
            walked = await self._answer(walks, called=True)
            if any(walk is not None for _, walk in walked.values()):
                await self._by_any_key(lambda: self._client.answer_call(session, walked))
        except VerifierError as error:
            if error.code != "session.closed":
                raise
            # An attester that ran here before has sent them, or the call is over, which the evidence will show.
            return answers
        unasked = (None, None)
        return {
            model: (answers.get(model, unasked)[0], walked.get(model, unasked)[1])
            for model in {**answers, **walked}
        }

    async def _round(self, session: Session) -> bool:
        """Answer a call; gives whether the channel may stay open."""
        start = time.monotonic()
        challenges = _kinds_of(session)
        left_s = None if session.expiry is None else session.expiry - self._now()
        try:
            # If the engine hangs, the agent must still answer the next calls.
            async with asyncio.timeout(left_s):
                result = await self.attest(session, called=True)
        except TimeoutError:
            _log.error("attestation failed", asked=challenges, why="the session expired first")
            return True
        except NotReadyError as error:
            _log.warning("a call is not answered, because the node changes", asked=challenges, why=str(error))
            self._look_soon.set()
            return False
        except AttesterError as error:
            # This round is lost, but the channel still works.
            _log.error("attestation failed", asked=challenges, why=str(error))
            return True
        except Exception:  # noqa: BLE001
            _log.exception("attestation failed", asked=challenges)
            return True
        _log_result(result, challenges, time.monotonic() - start)
        return True


def _kinds_of(session: Session) -> list[str]:
    return sorted(
        kind
        for challenge in session.models
        for kind, part in (("read", challenge.read), ("walk", challenge.walk))
        if part is not None
    )


def _log_result(result: str, challenges: Sequence[str], took_s: float) -> None:
    claims = decode_unverified(result)
    _log.info("attested", asked=challenges, status=claims.get("ear_status"), took_ms=int(took_s * 1000))
    for code, detail in read_reasons(claims):
        _log.warning("finding", code=code, detail=detail)


async def _end(task: asyncio.Task[T]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def decode_unverified(result: str) -> dict[str, object]:
    """The claims of a result whose signature is not checked: only to show them to the operator."""
    try:
        body = result.split(".")[1]
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return msgspec.json.decode(data, type=dict[str, object])
    except (IndexError, ValueError, RecursionError, msgspec.DecodeError):
        return {}


def read_reasons(claims: dict[str, object]) -> list[tuple[str, str]]:
    """The codes and details of a result's findings; empty if the claims do not have a result's form."""
    try:
        submods = msgspec.convert(claims.get("submods"), dict[str, _Appraisal])
    except msgspec.ValidationError:
        return []
    return [
        (reason.code, f"{name}: {reason.detail}")
        for name, appraisal in submods.items()
        for reason in appraisal.ear_verifier_claims.reasons
    ]


class _Reason(msgspec.Struct, frozen=True):
    code: str
    detail: str


class _VerifierClaims(msgspec.Struct, frozen=True):
    reasons: tuple[_Reason, ...] = ()


class _Appraisal(msgspec.Struct, frozen=True):
    ear_verifier_claims: _VerifierClaims = _VerifierClaims()
