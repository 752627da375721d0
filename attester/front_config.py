"""``[front]``: what `touchstone attester front` listens on, whom it believes, and what one router may cost."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from attester.settings import check_listen

OPERATION = r"^[a-z0-9][a-z0-9_-]*(/[a-z0-9][a-z0-9_-]*)*\Z"
"""A path below ``/v1/``, as it is sent: no dots, no escapes, nothing that could be read in two ways."""

_Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class FrontSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[front]``: all of it has defaults."""

    listen: (
        Annotated[str, Meta(max_length=256, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]*):[0-9]{1,5}\Z")]
        | None
    ) = None
    """``HOST:PORT``; if left out, every address of the machine and the port of ``[serve] url``."""
    connect: (
        Annotated[str, Meta(max_length=256, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}\Z")]
        | None
    ) = None
    """``HOST:PORT`` where this machine itself reaches the served endpoint, if it cannot reach ``[serve] url``."""
    engine_url: Annotated[str, Meta(pattern=r"^https?://[^\s/?#@]+\Z", max_length=256)] | None = None
    """Where the engine answers OpenAI's API, if that is not at ``[engine] url``."""
    operations: (
        Annotated[
            tuple[Annotated[str, Meta(max_length=64, pattern=OPERATION)], ...],
            Meta(min_length=1, max_length=32),
        ]
        | None
    ) = None
    """The paths below ``/v1/`` that are passed on; if left out, those that engines of ``[engine] adapter`` have."""
    routers_max_age_s: Annotated[int, Meta(ge=60, le=30 * 86_400)] = 86_400
    """For so long the last list of routers is believed while the verifier gives no newer one."""
    connections: Annotated[int, Meta(ge=2, le=65_536)] = 1024
    """Connections of routers at the same time.  Each has one request in progress at most."""
    max_body: Annotated[int, Meta(ge=1024, le=1 << 32)] = 64 << 20
    """Bytes of a request's body."""
    head_s: _Seconds = 10.0
    """Seconds for a TLS handshake, and for the head of a request once it has begun."""
    idle_s: _Seconds = 75.0
    """Seconds after which a connection without a request is closed."""
    body_s: _Seconds = 30.0
    """Seconds that a body may take beyond its bytes at *body_bytes_per_s*; also how long a reader may stand still."""
    body_bytes_per_s: Annotated[int, Meta(ge=1)] = 16_384
    """The slowest rate of a body."""
    answer_s: _Seconds = 600.0
    """Seconds in which the engine must send something: the begin of its answer, or the next part of it."""

    receipts: Annotated[int, Meta(ge=0, le=1 << 20)] = 16_384
    """Answers whose digests are kept, so that routers can ask for signed receipts; 0: none.  Each takes about 1 kB."""
    receipts_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    """For how long each is kept."""

    def __post_init__(self) -> None:
        """Refuse a port that cannot be."""
        for place in (self.listen, self.connect):
            if place is not None:
                check_listen(place)
