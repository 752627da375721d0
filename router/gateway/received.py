"""What has come of one stream, and what of it has not gone on to the client yet."""

from __future__ import annotations

from typing import Final

from router.gateway.attempts import StreamSummary
from router.gateway.sse import ServerEvent, encode_event
from router.model.answers import ChunkReader, StreamReader
from router.model.continuing import Splice
from router.model.errors import AttemptError
from router.model.outcomes import Outcome
from router.model.tokens import TokenCounter
from router.model.uniform import NOTHING, Added, hide
from router.model.usage import Usage

_MAX_UNSENT: Final = 1 << 20
_EXTRA_EVENTS: Final = 16
_ERROR_EVENT: Final = b"error"


class Received:
    """
    The events of a stream, counted as they come.

    Args:
        text: Counts the tokens.
        max_tokens: How many there may be.
        added: What was added to the request.
        splice: Joins the chunks to those of another node, if they go on from them.
    """

    __slots__ = ("_added", "_max_events", "_splice", "claimed", "events", "reader", "text", "unsent", "usage")

    def __init__(
        self,
        text: TokenCounter,
        max_tokens: int | None,
        added: Added = NOTHING,
        splice: Splice | None = None,
    ) -> None:
        self._splice = splice
        self._added = added if added.hides_logprobs else None
        self.text = text
        self._max_events = None if max_tokens is None else max_tokens + _EXTRA_EVENTS
        self.reader: StreamReader | None = None
        """Reads the stream, once it has begun."""
        self.events = 0
        """How many carried text."""
        self.claimed: Usage | None = None
        self.usage: bytes | None = None
        self.unsent = bytearray()

    @property
    def is_finished(self) -> bool:
        """Whether every part of the answer has come to its end."""
        return self.reader is not None and self.reader.is_finished

    @property
    def is_done(self) -> bool:
        """Whether the last event of the protocol has come."""
        return self.reader is not None and self.reader.is_done

    @property
    def tokens(self) -> int:
        """At least about so many have come: an event may carry several, and a token many bytes."""
        return max(self.events, self.text.estimate())

    def take(self, reader: StreamReader, event: ServerEvent) -> bool:
        """
        Count an event, and keep it for the client; returns whether it carried text.

        Raises:
            AttemptError: it shows that the attempt failed.
        """
        if event.name == _ERROR_EVENT:
            raise AttemptError(Outcome.CRASHED, "the node ended the stream with an error")
        part = reader.read(event.data)
        text, forward = part.text, part.forward
        if part.claimed is not None:
            self.claimed = part.claimed
        if part.usage is not None:
            self.usage = part.usage
        if text:
            self.text.add(text)
            self.events += 1
        if forward is not None:
            if self._added is not None:
                forward = hide(forward, self._added)
            if self._splice is not None:
                forward = self._splice.join(forward)
            self.unsent += encode_event(forward, event.name)
        if not self.events and len(self.unsent) > _MAX_UNSENT:
            raise AttemptError(Outcome.CORRUPTED, f"{_MAX_UNSENT} bytes of events without text")
        return bool(text)

    def check_length(self) -> None:
        """Raise `AttemptError` if there is more than was asked for."""
        if self._max_events is not None and self.events > self._max_events:
            raise AttemptError(Outcome.CORRUPTED, "more tokens than were asked for")

    def summary(self, first_token_s: float | None) -> StreamSummary:
        """What was seen until now; the first text came after *first_token_s*."""
        return StreamSummary(
            events=self.events,
            text=self.text,
            first_token_s=first_token_s,
            claimed=self.claimed,
            usage=self.usage,
            is_done=self.is_done,
            unsent=bytes(self.unsent),
            delivered=self.reader.delivered if isinstance(self.reader, ChunkReader) else None,
        )
