"""The configuration of `touchstone client serve`, ``client.toml``."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from attester.settings import check_listen, is_loopback

_File = Annotated[str, Meta(min_length=1, max_length=4096)]


class ClientConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``client.toml``; files are relative to it."""

    trust: _File = "trust.json"
    """The trust file: `touchstone client trust` makes one."""
    listen: Annotated[str, Meta(pattern=r"^[^\s/]+:[0-9]{1,5}\Z")] = "127.0.0.1:4180"
    """HOST:PORT.  Beyond loopback only with `caller_key_file`."""
    key_file: _File | None = None
    """An API key of the router, which all requests get.  Without it, callers bring their own."""
    caller_key_file: _File | None = None
    """A key that callers of this proxy must present, as they would OpenAI's."""
    ca_file: _File | None = None
    """Whose certificates are believed over https, PEM; those of the system if it is absent."""
    folder: _File | None = None
    """Where receipts are kept, a file for each answer."""
    keep_bodies: bool = False
    """Whether requests and answers are kept with them."""
    pass_streams: bool = False
    """
    Whether the parts of a stream are handed on as they come, before they can be verified.

    Then its end is held back until all is verified, and it ends with an error if it does not verify.
    """
    max_in_flight: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """Requests at a time; more are refused."""
    max_body_bytes: Annotated[int, Meta(ge=1, le=1 << 30)] = 32 << 20

    def __post_init__(self) -> None:
        check_listen(self.listen)
        if self.caller_key_file is None and not is_loopback(self.listen.rpartition(":")[0]):
            raise ValueError(
                f"{self.listen} is not an address of this machine alone: whoever reaches it spends your key. "
                "Listen on 127.0.0.1, or name a caller_key_file"
            )
        if self.keep_bodies and self.folder is None:
            raise ValueError("keep_bodies needs a folder")
