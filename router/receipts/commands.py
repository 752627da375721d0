"""`touchstone receipt …`: fetch a receipt, and verify it offline."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import click

from attester.cli import plain_errors
from attester.errors import AttesterError, ConfigError
from router.model.errors import ReceiptError, RouterError
from verifier.errors import VerifierError

_errors = plain_errors(AttesterError, RouterError, VerifierError)
_MAX_BODY: Final = 256 << 20
_MAX_ANSWER: Final = 2 << 20
_KEYS: Final = "/.well-known/touchstone-receipts.json"
_file = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group()
def receipt() -> None:
    """Fetch receipts of answers, and verify them offline."""


@receipt.command()
@click.argument("file", type=_file)
@click.option(
    "--router-keys", required=True, type=_file, help="The router's receipt keys: touchstone receipt keys."
)
@click.option("--request", "request_file", type=_file, help="The body of the request, as it was sent.")
@click.option("--response", "response_file", type=_file, help="The body of the answer, as it came.")
@click.option("--salt", default=None, help="What the request had in X-Touchstone-Salt.")
@click.option("--log-key", default=None, metavar="VKEY", help="The log's key: touchstone log key shows it.")
@click.option(
    "--verifier-keys", type=_file, help="The verifier's keys, a JWKS: then its result is verified, too."
)
@_errors
def verify(
    file: Path,
    router_keys: Path,
    request_file: Path | None,
    response_file: Path | None,
    salt: str | None,
    log_key: str | None,
    verifier_keys: Path | None,
) -> None:
    """Verify the receipt in FILE, without a network.

    FILE is what `touchstone receipt get` writes, or the signed receipt alone.  Each step is printed; the first that
    fails ends the command with status 1.  A step for which something is missing is named, and not taken.
    """
    from router.receipts import checking, tokens
    from router.receipts.payload import read_salt
    from verifier.log.notes import VerifierKey
    from verifier.result_keys import read_jwks

    means = checking.Means(
        keys=tokens.read_keys(_read(router_keys)),
        log_key=None if log_key is None else VerifierKey.parse(log_key),
        result_keys=None if verifier_keys is None else read_jwks(_read(verifier_keys)),
        request=None if request_file is None else _read(request_file),
        response=None if response_file is None else _read(response_file),
        salt=b"" if salt is None else read_salt(salt),
    )
    try:
        found, steps = checking.check(checking.read_document(_read(file)), means)
    except checking.FailedCheckError as error:
        for step in error.taken:
            _show(step)
        failed = error.step
        click.echo(f"{failed.number}. {failed.name}: WRONG. {_plain(failed.finding)}")
        raise ReceiptError(f"{file} does not verify") from None
    for step in steps:
        _show(step)
    left = [str(step.number) for step in steps if not step.is_taken]
    click.echo(
        f"Outcome: {found.outcome}." + (f" Not checked: {', '.join(left)}." if left else " All was checked.")
    )


@receipt.command()
@click.argument("receipt_id", metavar="ID")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--form", type=click.Choice(["aci", "air"]), default=None, help="In the form of others.")
@click.option("--url", default="http://127.0.0.1:8450", show_default=True, envvar="TOUCHSTONE_ROUTER_URL")
@click.option("--key", default=None, envvar="TOUCHSTONE_API_KEY", help="The API key that made the request.")
@_errors
def get(receipt_id: str, out: Path, form: str | None, url: str, key: str | None) -> None:
    """Fetch the receipt ID, as X-Touchstone-Receipt names it, with all that goes with it, into a file."""
    path = f"/api/v1/receipts/{receipt_id}" + (f"?form={form}" if form else "")
    _write(out, asyncio.run(_fetch(url.rstrip("/") + path, key)))
    click.echo(f"Wrote {out}. Verify it: touchstone receipt verify {out} --router-keys FILE")


@receipt.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@click.option("--url", default="http://127.0.0.1:8450", show_default=True, envvar="TOUCHSTONE_ROUTER_URL")
@_errors
def keys(out: Path, url: str) -> None:
    """Fetch the router's receipt keys into a file.

    Whoever answers at the URL is believed: compare the kid with what the log has of it, or with what the router's
    operator says.
    """
    from router.receipts.tokens import read_keys

    data = asyncio.run(_fetch(url.rstrip("/") + _KEYS, None))
    found = read_keys(data)
    _write(out, data)
    for kid in found:
        click.echo(f"key {kid}")
    click.echo(f"Wrote {out}.")


def _show(step: object) -> None:
    from router.receipts.checking import Step

    assert isinstance(step, Step)
    state = "right" if step.is_taken else "not checked"
    click.echo(f"{step.number}. {step.name}: {state}. {_plain(step.finding)}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BODY + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BODY:
        raise ConfigError(f"{path} has more than {_MAX_BODY} bytes")
    return data


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


async def _fetch(url: str, key: str | None) -> bytes:
    import aiohttp

    from attester.bounded import read_all

    headers = {"Accept": "application/json", **({} if key is None else {"Authorization": f"Bearer {key}"})}
    try:
        async with (
            aiohttp.ClientSession(trust_env=False) as http,
            http.get(url, headers=headers, allow_redirects=False) as response,
        ):
            data = await read_all(response.content, _MAX_ANSWER)
            if data is None:
                raise RouterError("the answer is too large")
            if response.status != 200:
                raise RouterError(
                    f"the router answers {response.status}: {_plain(data.decode('utf-8', 'replace'))}"
                )
            return data
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RouterError(f"the router at {url} does not answer ({type(error).__name__})") from None


def _plain(text: str) -> str:
    """Text from elsewhere, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:1000])
