"""What `touchstone client check` checks: files, folders of them, and ids."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from msgspec import UNSET

from attester.errors import ConfigError
from router.client.chain import Chain
from router.client.errors import Step, UnverifiedError
from router.client.offline import MAX_KEPT, Material, Outcome, read_material, salt_of, verify_offline
from router.client.session import AsyncClient
from router.client.trust import Trust
from router.model.errors import ReceiptError

_ID: Final = re.compile(r"[0-9a-f]{32}\Z")
Source = tuple[str, Material | UnverifiedError]
"""A name, and what is to be checked, or why it cannot be."""


def gather(names: Sequence[str], trust: Trust, key: str | None, ca_file: Path | None) -> list[Source]:
    """
    All that is to be checked.

    Args:
        names: Files, folders and ids.
        key: An API key, for ids.

    Raises:
        ConfigError: there is no such file, and it is no id.
        UnreachableError: the router does not answer.
    """
    found: list[Source] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found += [_read(file) for file in sorted(path.glob("*.json"))]
        elif path.is_file():
            found.append(_read(path))
        elif _ID.match(name):
            found.append((name, asyncio.run(_fetch(name, trust, key, ca_file))))
        else:
            raise ConfigError(f"{name} is no file, no folder and no id of a receipt")
    return found


def _read(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            return path.name, read_material(file.read(MAX_KEPT + 1))
    except UnverifiedError as error:
        return path.name, error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


async def _fetch(
    receipt_id: str, trust: Trust, key: str | None, ca_file: Path | None
) -> Material | UnverifiedError:
    async with AsyncClient(trust=trust, key=key, ca_file=ca_file) as client:
        try:
            found = await client.fetch(receipt_id)
        except UnverifiedError as error:
            return error
    return (
        UnverifiedError(Step.RECEIPT, "its answer has not ended yet") if found is None else Material(found[1])
    )


def check_one(
    material: Material | UnverifiedError,
    trust: Trust,
    salt: str,
    request: bytes | None,
    response: bytes | None,
) -> Outcome:
    """
    Check a receipt.

    Args:
        salt: Base64url, in place of that of the file; empty: that one.
        request: In place of that of the file; `None`: that one.
        response: Likewise.

    Raises:
        UnverifiedError: it is wrong.
    """
    if isinstance(material, UnverifiedError):
        raise material
    try:
        given = replace(
            material,
            salt=salt_of(salt) or material.salt,
            request=material.request if request is None else request,
            response=material.response if response is None else response,
        )
    except ReceiptError as error:
        raise UnverifiedError(Step.REQUEST, str(error)) from None
    return verify_offline(given, trust)


class Links:
    """The receipts that were right, as a chain."""

    def __init__(self) -> None:
        self._chain = Chain()
        self._keys: set[tuple[str, str]] = set()

    def add(self, outcome: Outcome) -> None:
        """Hold a receipt against the others.  Raises `UnverifiedError`: it does not continue them."""
        receipt = outcome.checked.receipt
        steps = outcome.checked.steps
        found = {**steps, Step.CHAIN: self._chain.add(receipt, outcome.checked.payload)}
        outcome.checked.steps = {step: found[step] for step in Step if step in found}
        if receipt.key is not UNSET:
            self._keys.add((receipt.iss, receipt.key))

    def gaps(self) -> list[str]:
        """A line for each key of which receipts are missing between those that are there."""
        lines = []
        for router, key in sorted(self._keys):
            if missing := self._chain.missing(router, key):
                some = ", ".join(map(str, missing[:10])) + (", …" if len(missing) > 10 else "")
                lines.append(f"of the key {key[:12]}… at {router} there are others: {some}")
        return lines
