"""Keeps what the front has served, and answers routers that ask for a receipt of it."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from typing import Final

from aiohttp import StreamReader
from aiohttp.http_parser import RawRequestMessage

from attester import cose
from attester.front.protocol import FrontProtocol, refusal_body, whole_answer
from attester.front.receipts import MEDIA_TYPE, PATH, REQUEST_HEADER, Ring, Served, read_id, sign
from attester.front_config import FrontSection
from attester.usage_claims import UNKNOWN
from attester.usage_counts import UsageCounter

_OK: Final = 200
_UNKNOWN: Final = refusal_body("unknown_receipt", "no receipt of such a request is kept for you")


class Ledger:
    """
    What was served lately, and to whom.

    Args:
        config: For how many answers, and how long.
        key: The endpoint's key, as of now.
        now_ms: Unix milliseconds.
        monotonic: Seconds of a clock that nobody sets.
        counter: Counts what was served, for claims; `None`: nobody does.
    """

    def __init__(
        self,
        config: FrontSection,
        key: Callable[[], cose.PrivateKey],
        now_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        counter: UsageCounter | None = None,
    ) -> None:
        self._ring = Ring(config.receipts, config.receipts_s)
        self._key = key
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._counter = counter

    @property
    def counter(self) -> UsageCounter | None:
        """Counts what was served."""
        return self._counter

    def open(self, message: RawRequestMessage) -> Served | None:
        """Begin to digest a request; `None` if its client has given it no id, or nothing is kept."""
        request_id = read_id(message.headers.get(REQUEST_HEADER)) if self._is_asked else None
        return None if request_id is None else Served(request_id)

    def close(self, client: str, served: Served, status: int, *, is_complete: bool) -> None:
        """Keep what became of it."""
        now_ms = self._now_ms()
        if self._counter is not None and is_complete and status == _OK:
            day = dt.datetime.fromtimestamp(now_ms // 1000, dt.UTC).date().isoformat()
            usage = served.usage
            self._counter.add(day, client, served.model or UNKNOWN, usage.prompt, usage.completion)
        if self._ring.is_kept:
            served.end(self._key(), status, now_ms, is_complete=is_complete)
            self._ring.add(client, served, self._monotonic())

    @property
    def _is_asked(self) -> bool:
        return self._ring.is_kept or self._counter is not None

    def receipt(self, client: str, request_id: str | None) -> str | None:
        """The signed receipt of what was served to a client; `None` if nothing is kept of it."""
        served = None
        if request_id is not None:
            served = self._ring.find(client, request_id, self._monotonic())
        return None if served is None else sign(served, self._now_ms())


class ReceiptAnswer:
    """
    An `Answerer` for one receipt.  Each client gets those of its own requests, and hears nothing of others'.

    Args:
        ledger: What was served.
        client: The connection.
        message: The request's head.
        body: Its body, which nobody reads.
    """

    def __init__(
        self, ledger: Ledger, client: FrontProtocol, message: RawRequestMessage, body: StreamReader
    ) -> None:
        self._ledger = ledger
        self._client = client
        self._message = message
        self._body = body

    def begin(self) -> None:
        """See `Answerer`."""
        request_id = read_id(self._message.path.removeprefix(PATH)) if self._message.method == "GET" else None
        found = self._ledger.receipt(self._client.name, request_id)
        is_last = self._message.should_close or not self._body.is_eof() or self._message.method == "HEAD"
        if found is None:
            answer = whole_answer(404, _UNKNOWN, is_last=is_last)
        else:
            answer = whole_answer(200, found.encode(), is_last=is_last, content_type=MEDIA_TYPE)
        self._client.transport.write(answer)
        self._client.done(is_last=is_last)

    # It is answered at once, so nothing else can happen to it.

    def body_received(self) -> None:
        """See `Answerer`."""

    def refuse(self, status: int, code: str, message: str) -> None:
        """See `Answerer`."""

    def hold_answer(self, *, is_held: bool) -> None:
        """See `Answerer`."""

    def client_lost(self) -> None:
        """See `Answerer`."""
