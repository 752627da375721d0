"""How commands ask a running router, and print what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import click
import msgspec

from router.config import ServiceSection
from router.model.errors import RouterError

_MAX_ANSWER: Final = 256 << 20
url_option = click.option(
    "--url",
    default=f"http://{ServiceSection().listen}",
    show_default=True,
    envvar="TOUCHSTONE_ROUTER_URL",
    help="The router's base URL.",
)
key_option = click.option(
    "--key", default=None, envvar="TOUCHSTONE_API_KEY", help="An API key, where the router needs one."
)


def call(
    url: str,
    path: str,
    key: str | None,
    body: Mapping[str, Any] | None = None,
    *,
    silent_is_an_answer: bool = False,
) -> dict[str, Any]:
    """What the router answers; if *silent_is_an_answer*, also what it says with status 503."""
    answers = (200, 201, 503) if silent_is_an_answer else (200, 201)
    return asyncio.run(_fetch(url.rstrip("/"), path, key, body, answers))


async def _fetch(
    url: str, path: str, key: str | None, body: Mapping[str, Any] | None, answers: tuple[int, ...]
) -> dict[str, Any]:
    import aiohttp

    from attester.authorities import distrust
    from attester.bounded import read_all

    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    method, data = ("GET", None) if body is None else ("POST", msgspec.json.encode(body))
    try:
        async with (
            aiohttp.ClientSession(trust_env=False) as http,
            http.request(method, url + path, headers=headers, data=data, allow_redirects=False) as response,
        ):
            content = await read_all(response.content, _MAX_ANSWER)
            if content is None:
                raise RouterError("the answer is too large")
            document = msgspec.json.decode(content, type=dict[str, Any])
            if response.status not in answers:
                detail = document.get("detail")
                said = plain(detail) if isinstance(detail, str) else "is it an id of this router?"
                raise RouterError(f"the router answers {response.status}: {said}")
            return document
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
        if why := distrust(error):
            raise RouterError(
                f"the router at {url} cannot be asked: {why}. If an authority of your own has signed it, "
                "name its file in the environment: SSL_CERT_FILE"
            ) from None
        raise RouterError(f"the router at {url} does not answer ({type(error).__name__})") from None


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def plain(text: str) -> str:
    """Text from elsewhere, without control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:2000])
