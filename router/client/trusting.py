"""
Making a trust file: what a router and a verifier say are their keys, for a person to agree to.

They are fetched over the connections whose other ends they are to vouch for: that is trust on first use.  So they are
shown, and a person compares them with what the operators say by another way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import aiohttp
import msgspec
from msgspec import Meta, Struct

from attester.authorities import open_session, why_unreached
from attester.bounded import read_all
from attester.errors import ConfigError
from router.client.errors import TrustError
from router.client.trust import LogTrust, Required, RouterTrust, Trust, TrustFile, VerifierTrust
from router.model.errors import ReceiptError
from router.receipts.tokens import MAX_JWKS, read_keys
from verifier.errors import LogError, ResultError
from verifier.log.notes import VerifierKey
from verifier.result_keys import read_jwks

RECEIPT_KEYS_PATH: Final = "/.well-known/touchstone-receipts.json"
RESULT_KEYS_PATH: Final = "/.well-known/jwks.json"
LOG_PATH: Final = "/api/v1/log"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=10)


class _Log(Struct, frozen=True):
    vkey: Annotated[str, Meta(max_length=1024)]


class _Logs(Struct, frozen=True):
    logs: Annotated[tuple[_Log, ...], Meta(max_length=32)]


async def fetch_trust(
    router: str,
    verifier: str,
    *,
    ca_file: Path | None = None,
    router_name: str | None = None,
    log_policy: str | None = None,
    require: Required | None = None,
) -> TrustFile:
    """
    What the services say now.

    Args:
        router: Its base URL.
        verifier: Its base URL, which is the issuer of its results.
        log_policy: A policy (c2sp.org/tlog-policy), or one vkey; `None`: the verifier's own word, without witnesses.

    Raises:
        TrustError: one of them does not answer, or has no keys that can be used.
    """
    router, verifier = router.rstrip("/"), verifier.rstrip("/")
    try:
        session = open_session(ca_file)
    except ConfigError as error:
        raise TrustError(str(error)) from None
    async with session as http:
        receipt_keys = await _keys(http, router + RECEIPT_KEYS_PATH)
        result_keys = await _keys(http, verifier + RESULT_KEYS_PATH)
        policy = log_policy or await _log_policy(http, verifier)
    try:
        file = TrustFile(
            router=RouterTrust(
                url=router,
                name=router_name,
                keys=tuple(key.jwk() for key in read_keys(receipt_keys).values()),
            ),
            verifier=VerifierTrust(
                issuer=verifier, keys=tuple(key.jwk() for key in read_jwks(result_keys).values())
            ),
            log=None if policy is None else LogTrust(policy=as_policy(policy)),
            require=require or Required(log="never" if policy is None else "later"),
        )
    except (ReceiptError, ResultError) as error:
        raise TrustError(str(error)) from None
    Trust(file)
    return file


def as_policy(text: str) -> str:
    """A policy; of one vkey it is that log's, without witnesses.  Raises `TrustError`: it is neither."""
    words = text.split()
    if len(words) != 1:
        return text
    try:
        return f"log {VerifierKey.parse(words[0])}\nquorum none\n"
    except LogError as error:
        raise TrustError(f"the key of the log cannot be used: {error}") from None


def describe(file: TrustFile) -> list[str]:
    """The keys, in lines to be compared."""
    trust = Trust(file)
    lines = [f"router    {trust.router.url}"]
    lines += [f"  receipts are signed by  {kid}" for kid in trust.receipt_keys]
    lines.append(f"verifier  {trust.verifier.issuer}")
    lines += [f"  results are signed by   {kid}" for kid in trust.result_keys]
    if trust.log is None:
        return [*lines, "log       none: nobody shows that all callers are given the same story"]
    lines += [f"log       {peer.key}" for peer in trust.log.logs]
    witnesses = trust.log.witnesses
    lines += [f"  witness                 {peer.key}" for peer in witnesses.values()]
    if trust.log.quorum == "none":
        lines.append("  no witness is asked for: the verifier could show each caller a log of its own")
    return lines


def kids_of(file: TrustFile) -> set[str]:
    """Every key of a trust file, as `describe` shows it."""
    trust = Trust(file)
    logs = () if trust.log is None else (*trust.log.logs, *trust.log.witnesses.values())
    return {*trust.receipt_keys, *trust.result_keys, *(str(peer.key) for peer in logs)}


async def _log_policy(http: aiohttp.ClientSession, verifier: str) -> str | None:
    """The logs of a verifier by its own word, and no witness; `None` if it has none."""
    document = await _fetch(http, verifier + LOG_PATH, may_lack=True)
    if document is None:
        return None
    try:
        found = msgspec.json.decode(document, type=_Logs).logs
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise TrustError(f"{verifier}{LOG_PATH} is malformed") from None
    return "".join(f"log {each.vkey}\n" for each in found) + "quorum none\n" if found else None


async def _keys(http: aiohttp.ClientSession, url: str) -> bytes:
    found = await _fetch(http, url)
    assert found is not None
    return found


async def _fetch(http: aiohttp.ClientSession, url: str, *, may_lack: bool = False) -> bytes | None:
    try:
        async with http.get(url, allow_redirects=False, timeout=_TIMEOUT) as response:
            data = await read_all(response.content, MAX_JWKS)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise TrustError(f"{url} cannot be fetched: {why_unreached(error)}") from None
    if response.status == 404 and may_lack:
        return None
    if response.status != 200 or data is None:
        raise TrustError(f"{url} cannot be fetched: the answer is {response.status}")
    return data
