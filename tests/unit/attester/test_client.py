"""How the client shows what a verifier refuses."""

from __future__ import annotations

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from attester.client import VerifierClient
from attester.cose import PrivateKey
from attester.errors import VerifierError, join_sentences

KEY = PrivateKey.generate()


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([], ""),
        (["One"], "One"),
        (["One.", "Two"], "One. Two"),
        (["One", "two."], "One. two."),
        (["Is it running?", "Start it!", "Try again"], "Is it running? Start it! Try again"),
        (
            ["set the node's clock", "Sign the request again."],
            "set the node's clock. Sign the request again.",
        ),
        (["One ", "", "  ", " Two"], "One. Two"),
        (["One.", "Two\nlines\tof it"], "One. Two lines of it"),
    ],
)
def test_sentences_never_run_together(parts, text):
    """A full stop separates them, unless the first one ends already."""
    assert join_sentences(parts) == text


async def refusal(document: object, status: int = 401) -> VerifierError:
    """What the client raises if the verifier answers with *document*."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(document), status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        client = VerifierClient(http, str(server.make_url("")).rstrip("/"), KEY)
        with pytest.raises(VerifierError) as caught:
            await client.open_session()
    return caught.value


async def test_a_problem_document_becomes_sentences():
    """The detail has no full stop of its own."""
    error = await refusal(
        {
            "type": "https://v.example/reasons#request.unauthorised",
            "title": "The request does not prove that a node sent it.",
            "detail": "signed +90 s from the verifier's time. Set the node's clock",
            "hint": "Sign the request with the node's key.",
        }
    )
    assert str(error) == (
        "the verifier refuses: The request does not prove that a node sent it. "
        "signed +90 s from the verifier's time. Set the node's clock. Sign the request with the node's key."
    )
    assert (error.status, error.code) == (401, "request.unauthorised")


async def test_control_characters_of_a_verifier_are_not_shown():
    """Nor more than an operator can read."""
    error = await refusal({"title": "\x1b[31mred\x07", "detail": "x" * 10_000}, 400)
    assert str(error).startswith("the verifier refuses: [31mred. xxx")
    assert len(str(error)) < 650


async def test_a_long_detail_leaves_room_for_the_hint():
    """The hint says what to do."""
    error = await refusal({"title": "No.", "detail": "x" * 10_000, "hint": "Try again."})
    assert str(error).endswith("x. Try again.")


async def test_an_answer_that_is_not_a_problem_document_has_its_status():
    """Its body is not shown."""
    assert str(await refusal(["secret"], 502)) == "the verifier answers with HTTP status 502"
