"""
Kept receipts: a folder with a file for each answer, with which it can be verified years later.

A file has the receipt, the result, the salt and, once it is there, the proof from the log.  It has no word of the
request or of the answer, unless the owner wants that.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import Any, Final

import msgspec

from router.client.checking import Checked
from router.client.errors import TrustError
from router.client.exchanges import Exchange
from verifier.result_keys import b64url

VERSION: Final = 1


class KeptFolder:
    """
    A folder of receipts.

    Args:
        has_bodies: Whether requests and answers are kept too, as far as they were whole in memory.

    Raises:
        TrustError: it cannot be made.
    """

    def __init__(self, path: Path, *, has_bodies: bool = False) -> None:
        self._path = path
        self.has_bodies = has_bodies
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TrustError(f"{path} cannot be made: {error.strerror}") from None

    async def keep(self, checked: Checked, bundle: bytes, salt: bytes, exchange: Exchange) -> None:
        """Write what is known of an answer.  Raises `TrustError` if that is not possible."""
        document = {
            "version": VERSION,
            "salt": b64url(salt),
            "method": exchange.method,
            "path": exchange.path,
            "status": exchange.status,
            "sent_ms": exchange.sent_ms,
            "ended_ms": exchange.ended_ms,
            "bundle": msgspec.Raw(bundle),
        }
        await self._write(checked.receipt.jti, document)

    async def complete(self, checked: Checked, bundle: bytes) -> None:
        """Put a receipt that has its proof now into the place of the one without.  Raises `TrustError`."""
        await asyncio.to_thread(self._add, checked.receipt.jti, {"bundle": msgspec.Raw(bundle)})

    async def add_bodies(self, checked: Checked, request: bytes, response: bytes) -> None:
        """Keep a request and its answer too.  Raises `TrustError`."""
        bodies = {"request": request, "response": response}
        await asyncio.to_thread(self._add, checked.receipt.jti, bodies)

    def _add(self, receipt_id: str, members: dict[str, Any]) -> None:
        try:
            document = msgspec.json.decode(self._file(receipt_id).read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            # Somebody has moved it away.
            document = {"version": VERSION}
        self._replace(receipt_id, {**document, **members})

    async def _write(self, receipt_id: str, document: dict[str, Any]) -> None:
        await asyncio.to_thread(self._replace, receipt_id, document)

    def _replace(self, receipt_id: str, document: dict[str, Any]) -> None:
        # Whoever reads the folder finds whole files alone.
        temporary = self._path / f".{receipt_id}.{secrets.token_hex(4)}"
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
            temporary.replace(self._file(receipt_id))
        except OSError as error:
            raise TrustError(f"{self._path}: a receipt cannot be kept: {error.strerror}") from None

    def _file(self, receipt_id: str) -> Path:
        return self._path / f"{receipt_id}.json"
