"""The client's side of a stream, as an exchange sees it."""

from __future__ import annotations

from typing import Protocol


class ClientGoneError(ConnectionError):
    """The client takes nothing more."""


class Sink(Protocol):
    """The client's side of a stream."""

    @property
    def has_begun(self) -> bool:
        """Whether anything has gone to the client, so that no other node can take over."""

    async def prepare(self) -> None:
        """Prepare what can be prepared without anything going to the client."""

    def name_revision(self, revision: str) -> None:
        """Name in the head the revision of the model that is asked now, unless the head has gone to the client."""

    def may_block(self, size: int) -> bool:
        """Whether sending so many bytes may have to wait for the client to read."""

    @property
    def is_open(self) -> bool:
        """Whether the status has gone to the client, so that an error can only be an event."""

    async def send(self, data: bytes) -> None:
        """Send whole events on.  Raises `ClientGoneError` if the client is gone or does not read."""
