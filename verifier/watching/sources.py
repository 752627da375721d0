"""Where a log is read from: a URL prefix, or a folder with the same files.  Everything read is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import aiohttp

from verifier.errors import LogFormatError, LogUnreadableError
from verifier.log.notes import MAX_NOTE
from verifier.log.tiles import MAX_BUNDLE, TILE_SIZE, WIDTH, Tile, decode_bundle, split_tile
from verifier.log.tree import HASH_SIZE

_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, connect=10)
_CHUNK: Final = 64 << 10
_ATTEMPTS: Final = 3
_BUSY_ATTEMPTS: Final = 10
_AGAIN_S: Final = 0.25
"""What failed is tried again after this, twice this, and so on."""
_LONGEST_WAIT_S: Final = 30.0
_BUSY: Final = (429, 502, 503, 504)


class _BusyError(Exception):
    """A service is busy and says when to come again, as one does that limits how often strangers ask."""

    def __init__(self, status: int, retry_after: str) -> None:
        super().__init__(f"it was answered with {status}")
        seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 1.0
        self.wait_s = min(seconds, _LONGEST_WAIT_S)


class LogSource(Protocol):
    """Gives the files of a log by their paths under its prefix."""

    async def read(self, path: str, limit: int) -> bytes | None:
        """
        The bytes of a file; None if the log has none of this path.

        Raises:
            LogFormatError: it has more than *limit* bytes.
            LogUnreadableError: it cannot be read now.
        """


class FolderSource:
    """A log as files in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, path: str, limit: int) -> bytes | None:
        """See `LogSource.read`."""
        return await asyncio.to_thread(self._read, path, limit)

    def _read(self, path: str, limit: int) -> bytes | None:
        place = self._folder / path
        try:
            with open(place, "rb") as file:
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LogUnreadableError(f"{place} cannot be read: {error.strerror}") from None
        return _bounded(data, path, limit)


class UrlSource:
    """A log behind a URL prefix."""

    def __init__(self, prefix: str, http: aiohttp.ClientSession) -> None:
        self._prefix = prefix.rstrip("/")
        self._http = http

    async def read(self, path: str, limit: int) -> bytes | None:
        """See `LogSource.read`."""
        url = f"{self._prefix}/{path}"
        failed = busy = 0
        while True:
            try:
                return await self._get(url, limit)
            except _BusyError as error:
                problem, wait_s, busy = str(error), error.wait_s, busy + 1
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem, wait_s, failed = str(error) or type(error).__name__, _AGAIN_S * 2**failed, failed + 1
            if failed == _ATTEMPTS or busy == _BUSY_ATTEMPTS:
                raise LogUnreadableError(f"{url} cannot be read: {problem}")
            await asyncio.sleep(wait_s)

    async def _get(self, url: str, limit: int) -> bytes | None:
        async with self._http.get(url, allow_redirects=False) as response:
            if response.status in (404, 410):
                return None
            if response.status in _BUSY:
                raise _BusyError(response.status, response.headers.get("Retry-After", ""))
            if response.status != 200:
                raise LogUnreadableError(f"{url} cannot be read: it was answered with {response.status}")
            data = bytearray()
            async for part in response.content.iter_chunked(_CHUNK):
                data += part
                if len(data) > limit:
                    break
            return _bounded(bytes(data), url, limit)


@asynccontextmanager
async def open_source(place: str) -> AsyncIterator[LogSource]:
    """Open the log at a URL or in a folder."""
    if not place.startswith(("http://", "https://")):
        yield FolderSource(Path(place))
        return
    async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as http:
        yield UrlSource(place, http)


async def read_checkpoint(source: LogSource) -> bytes:
    """The bytes of the newest checkpoint.  Raises `LogUnreadableError`, `LogFormatError`."""
    data = await source.read("checkpoint", MAX_NOTE)
    if data is None:
        raise LogUnreadableError(
            "there is no checkpoint: this is not the prefix of a log, or the log is not begun"
        )
    return data


async def read_hashes(source: LogSource, tile: Tile) -> list[bytes]:
    """
    The hashes of a tile: its own, or the first ones of the full tile that has taken its place.

    Raises:
        LogFormatError: the log does not have them, or they are malformed.
        LogUnreadableError: they cannot be read now.
    """
    data = await source.read(tile.path, tile.width * HASH_SIZE)
    if data is None and not tile.is_full:
        data = await source.read(_full(tile).path, TILE_SIZE)
        data = None if data is None else b"".join(split_tile(data, WIDTH)[: tile.width])
    if data is None:
        raise LogFormatError("the log does not have it")
    return split_tile(data, tile.width)


async def read_entries(source: LogSource, bundle: Tile) -> list[bytes]:
    """The entries of a bundle, as `read_hashes` the hashes of a tile."""
    data = await source.read(bundle.path, MAX_BUNDLE)
    if data is None and not bundle.is_full:
        data = await source.read(_full(bundle).path, MAX_BUNDLE)
        if data is not None:
            return decode_bundle(data, WIDTH)[: bundle.width]
    if data is None:
        raise LogFormatError("the log does not have it")
    return decode_bundle(data, bundle.width)


def _full(tile: Tile) -> Tile:
    return Tile(tile.level, tile.index)


def _bounded(data: bytes, path: str, limit: int) -> bytes:
    if len(data) > limit:
        raise LogFormatError(f"{path} has more than {limit} bytes")
    return data
