"""The settings of the log, and of its witnesses."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from verifier.errors import LogFormatError
from verifier.log.notes import COSIGNATURE_V1, VerifierKey


class AskedWitness(Struct, frozen=True, forbid_unknown_fields=True):
    """One witness of the log."""

    url: Annotated[str, Meta(pattern=r"^https?://[^\s]+\Z", max_length=512)]
    """Its submission prefix (c2sp.org/tlog-witness): ``/add-checkpoint`` follows."""
    key: Annotated[str, Meta(max_length=512)]
    """Its vkey, ``NAME+ID+KEY``: no other cosignature is taken from it."""

    def __post_init__(self) -> None:
        try:
            key = VerifierKey.parse(self.key)
        except LogFormatError as error:
            raise ValueError(f"key: {error}") from None
        if key.kind != COSIGNATURE_V1:
            raise ValueError(f"key: {key.name} is the key of a log, not of a witness")


class LogConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[log]``: the append-only log of what the verifier decided."""

    origin: Annotated[str, Meta(pattern=r"^[^\s+]*\Z", max_length=256)] = ""
    """The name of the log, under which its key signs.  Default: the host of ``[service] url``, and ``/log``."""
    witnesses: Annotated[tuple[AskedWitness, ...], Meta(max_length=16)] = ()
    """Who is asked to cosign each checkpoint.  One that is away stops nothing."""
