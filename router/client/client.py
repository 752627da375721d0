"""
The client in three lines, for programs without asyncio.

    from router.client import Client
    client = Client("https://router.example", key="sk-…", trust="trust.json")
    answer = client.chat.completions.create(model="ORG/NAME", messages=[{"role": "user", "content": "Hello"}])

What it gives has been verified: anything else is an error.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import msgspec

from attester import strictjson
from router.client.checking import Checked
from router.client.errors import RefusedError, TrustError, UnreachableError
from router.client.kept import KeptFolder
from router.client.session import AsyncClient
from router.client.trust import Trust
from router.gateway.sse import EventError, EventParser

T = TypeVar("T")
_DONE: Final = b"[DONE]"
_OK: Final = range(200, 300)
_HEADERS: Final = {"Content-Type": "application/json"}


class Document(dict[str, Any]):
    """A JSON object whose members are attributes too, as OpenAI's own client has them."""

    checked: Checked | None = None
    """What was verified of the answer."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the answer has no {name}") from None


def as_document(data: bytes) -> Document:
    """
    Read an answer.

    Raises:
        UnreachableError: it is no JSON object.
    """
    try:
        value = strictjson.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnreachableError("the router's answer is not a JSON object")
    found = _wrap(value)
    assert isinstance(found, Document)
    return found


def _wrap(value: Any) -> Any:
    if isinstance(value, dict):
        return Document({name: _wrap(part) for name, part in value.items()})
    return [_wrap(part) for part in value] if isinstance(value, list) else value


class Client:
    """
    A client of one router that verifies each answer before it gives it out.

    It has a thread of its own, and may be used by several.

    Args:
        url: The router's base URL.
        key: An API key of the router.
        trust: The trust file: ``touchstone client trust`` makes one.
        ca_file: Whose certificates are believed over https, PEM; those of the system if it is `None`.
        folder: Where receipts are kept.

    Raises:
        TrustError: the trust file cannot be used, or is about another router.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        trust: Trust | str | Path,
        key: str | None = None,
        ca_file: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        kept = None if folder is None else KeptFolder(folder)
        self._client = AsyncClient(url, trust=trust, key=key, ca_file=ca_file, kept=kept)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="touchstone-client", daemon=True)
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except TrustError:
            self._stop()
            raise

    def __getattr__(self, name: str) -> Resource:
        """``client.chat``, ``client.models``, …: what is below ``/v1``, by OpenAI's names."""
        if name.startswith("_"):
            raise AttributeError(name)
        return Resource(self, f"/v1/{name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def settle(self) -> None:
        """Wait until each receipt until now is in the log.  Raises `UnverifiedError`: one is not there in time."""
        self._run(self._client.watch.settle())

    def close(self) -> None:
        """End the connections.  What is not in the log yet is waited for no more: see `settle`."""
        if not self._loop.is_closed():
            self._run(self._client.__aexit__(None, None, None))
            self._stop()

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Document:
        """
        Send a request of any kind, and give its answer.

        Raises:
            RefusedError: the router refuses it, or could not have it done.
            UnreachableError: the router does not answer.
            UnverifiedError: the answer does not verify.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        answer = self._run(self._client.ask(method, path, data, _HEADERS))
        _check_status(answer.status, answer.body)
        document = as_document(answer.body)
        document.checked = answer.checked
        return document

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Document]:
        """
        Send a request whose answer is streamed, and yield its events: all of them are verified before the first.

        Raises:
            RefusedError, UnreachableError, UnverifiedError: as `request`.
        """
        answer = self._run(self._client.ask("POST", path, msgspec.json.encode(body), _HEADERS))
        _check_status(answer.status, answer.body)
        parser = _Events()
        for document in parser.feed(answer.body):
            document.checked = answer.checked
            yield document

    def unverified_events(self, path: str, body: Mapping[str, Any]) -> Iterator[Document]:
        """
        The same, and each event is given out as it comes, before anything is verified.

        Whether to believe them is known when the iteration has ended without an error.
        """
        source = self._parts(path, msgspec.json.encode(body))
        parser = _Events()
        try:
            while (part := self._run(_next(source))) is not None:
                yield from parser.feed(part)
        finally:
            self._run(source.aclose())

    async def _parts(self, path: str, data: bytes) -> AsyncGenerator[bytes, None]:
        async with self._client.stream("POST", path, data, _HEADERS) as stream:
            if stream.status in _OK:
                async for part in stream.parts():
                    yield part
            else:
                _check_status(stream.status, await stream.whole())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Resource:
    """A path below ``/v1``: ``client.chat.completions`` is ``/v1/chat/completions``."""

    def __init__(self, client: Client, path: str) -> None:
        self._client = client
        self._path = path

    def __getattr__(self, name: str) -> Resource:
        """What is below it."""
        if name.startswith("_"):
            raise AttributeError(name)
        return Resource(self._client, f"{self._path}/{name}")

    def create(self, *, stream: bool | Literal["unverified"] = False, **body: Any) -> Any:
        """
        Send a request with OpenAI's members.

        Args:
            stream: True gives an iterator of events, all of them verified before the first is given out.
                ``"unverified"`` gives each as it comes, and an error at the end if they do not verify.

        Raises:
            RefusedError: the router refuses it, or could not have it done.
            UnreachableError: the router does not answer.
            UnverifiedError: the answer does not verify.
        """
        if stream == "unverified":
            return self._client.unverified_events(self._path, {**body, "stream": True})
        if stream:
            return self._client.events(self._path, {**body, "stream": True})
        return self._client.request("POST", self._path, body)

    def list(self) -> Document:
        """What is there."""
        return self._client.request("GET", self._path)


class _Events:
    """The events of a stream."""

    def __init__(self) -> None:
        self._parser = EventParser()

    def feed(self, data: bytes) -> Iterator[Document]:
        """Yield the events that are whole.  Raises `RefusedError`: one of them is an error of the router."""
        try:
            for event in self._parser.feed(data):
                if event.data != _DONE:
                    document = as_document(event.data)
                    _check_error(502, document)
                    yield document
        except EventError as error:
            raise UnreachableError(f"the router sends {error}") from None


def _check_status(status: int, body: bytes) -> None:
    if status in _OK:
        return
    document = as_document(body)
    _check_error(status, document)
    raise RefusedError(f"the router answers {status}", status=status)


def _check_error(status: int, document: Document) -> None:
    error = document.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        said = "".join(c if c.isprintable() else "?" for c in str(error.get("message"))[:1000])
        raise RefusedError(said, status=status, code=code if isinstance(code, str) else None)


async def _next(source: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(source, None)
