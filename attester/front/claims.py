"""
Answers routers that ask for signed claims of what was served to them.

    GET /touchstone/claims/             the days that there is one for, a line each
    GET /touchstone/claims/2026-11-30   the claim
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from aiohttp import StreamReader
from aiohttp.http_parser import RawRequestMessage

from attester.front.protocol import FrontProtocol, refusal_body, whole_answer
from attester.usage_claims import MAX_CLAIM, MEDIA_TYPE
from attester.usage_counts import claim_of, days_claimed

CLAIMS_PATH: Final = "/touchstone/claims/"
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNKNOWN: Final = refusal_body("unknown_claim", "there is no such claim towards you")


class ClaimAnswer:
    """
    An `Answerer` for claims.  Each client gets those towards itself, and hears nothing of others'.

    Args:
        folder: ``usage`` of the home.
        client: The connection.
        message: The request's head.
        body: Its body, which nobody reads.
    """

    def __init__(
        self, folder: Path, client: FrontProtocol, message: RawRequestMessage, body: StreamReader
    ) -> None:
        self._folder = folder
        self._client = client
        self._message = message
        self._body = body

    def begin(self) -> None:
        """See `Answerer`."""
        is_last = self._message.should_close or not self._body.is_eof() or self._message.method == "HEAD"
        found = self._find() if self._message.method == "GET" else None
        if found is None:
            answer = whole_answer(404, _UNKNOWN, is_last=is_last)
        else:
            answer = whole_answer(200, found[0], is_last=is_last, content_type=found[1])
        self._client.transport.write(answer)
        self._client.done(is_last=is_last)

    def _find(self) -> tuple[bytes, str] | None:
        name, router = self._message.path.removeprefix(CLAIMS_PATH), self._client.name
        try:
            if not name:
                return "".join(
                    f"{day}\n" for day in days_claimed(self._folder, router)
                ).encode(), "text/plain"
            if not _DAY.fullmatch(name):
                return None
            with open(claim_of(self._folder, name, router), "rb") as file:
                return file.read(MAX_CLAIM), MEDIA_TYPE
        except OSError:
            return None

    # It is answered at once, so nothing else can happen to it.

    def body_received(self) -> None:
        """See `Answerer`."""

    def refuse(self, status: int, code: str, message: str) -> None:
        """See `Answerer`."""

    def hold_answer(self, *, is_held: bool) -> None:
        """See `Answerer`."""

    def client_lost(self) -> None:
        """See `Answerer`."""
