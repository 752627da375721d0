"""
Takes an upload: ``multipart/form-data``, bounded as it comes.

Its bytes go to a temporary file, and into the store only once all of it was accepted: what is refused leaves no trace.
"""

from __future__ import annotations

import asyncio
import tempfile
from typing import IO, Final, Self

from aiohttp import BodyPartReader, MultipartReader, hdrs, web

from router.config import BatchesSection
from router.gateway.errors import GatewayError
from router.gateway.jobs.wire import MAX_KEPT_S, MIN_KEPT_S, invalid
from router.model.errors import JobLineError
from router.model.job_lines import LineSplitter
from verifier.service.front import visit_of

PURPOSE: Final = "batch"
_CHUNK: Final = 64 << 10
_MAX_FIELD: Final = 256
_MAX_FIELDS: Final = 8
_MAX_NAME: Final = 255
_OVERHEAD: Final = 64 << 10
"""Bytes that the other fields and the boundaries may have."""
_IN_MEMORY: Final = 1 << 20
_ENCODINGS: Final = ("", "binary", "8bit", "7bit")


class Upload:
    """
    An upload, to be used as a context manager: its temporary file goes with it.

    Args:
        request: The request.
        config: The bounds.
    """

    def __init__(self, request: web.Request, config: BatchesSection) -> None:
        self._request = request
        self._config = config
        self.data: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        self.size = 0
        self.name = ""
        self._fields: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    @property
    def keep_s(self) -> int | None:
        """For how long its owner wants it kept; `None` if it does not say.  Raises `GatewayError`."""
        anchor, text = self._fields.get("expires_after[anchor]"), self._fields.get("expires_after[seconds]")
        if anchor is None and text is None:
            return None
        is_number = text is not None and text.isascii() and text.isdigit() and len(text) < 10
        if (
            anchor != "created_at"
            or text is None
            or not is_number
            or not MIN_KEPT_S <= int(text) <= MAX_KEPT_S
        ):
            what = f"expires_after needs the anchor created_at, and {MIN_KEPT_S} to {MAX_KEPT_S} seconds"
            raise invalid(what, param="expires_after")
        return int(text)

    async def read(self) -> None:
        """
        Read all of it.

        Raises:
            GatewayError: it is too large, too slow or malformed, or a line of it is too long.
        """
        request = self._request
        length = request.content_length
        if length is not None and length > self._config.max_file_bytes + _OVERHEAD:
            raise self._too_large()
        if request.content_type != "multipart/form-data" or request.headers.get(hdrs.CONTENT_ENCODING):
            raise invalid("a file is uploaded as multipart/form-data, not compressed")
        front = visit_of(request).front.config
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout_at(began + front.body_s) as deadline:
                self._deadline, self._until = deadline, began + front.body_s
                self._per_s = front.body_bytes_per_s
                await self._read_fields(await request.multipart())
        except TimeoutError:
            raise GatewayError(408, "invalid_request_error", "the file did not come in time") from None
        except (ValueError, AssertionError, RuntimeError, web.RequestPayloadError) as error:
            raise invalid(f"the upload is malformed: {str(error)[:100]}") from None
        if self._fields.get("purpose") != PURPOSE:
            raise invalid(f"purpose must be {PURPOSE}", param="purpose")
        if not self.name:
            raise invalid("file is missing", param="file")
        _ = self.keep_s

    async def _read_fields(self, reader: MultipartReader) -> None:
        count = 0
        while (part := await reader.next()) is not None:
            count += 1
            if count > _MAX_FIELDS or not isinstance(part, BodyPartReader):
                raise invalid("the upload has too many parts")
            if part.headers.get("Content-Transfer-Encoding", "").lower() not in _ENCODINGS:
                raise invalid("a part must not be encoded")
            if part.name == "file":
                if self.name:
                    raise invalid("file stands twice", param="file")
                self.name = "".join(c if c.isprintable() else "?" for c in part.filename or "file")[
                    :_MAX_NAME
                ]
                await self._read_file(part)
            else:
                await self._read_field(part)

    async def _read_field(self, part: BodyPartReader) -> None:
        name, data = part.name or "", b""
        while chunk := await part.read_chunk(_MAX_FIELD + 1):
            data += chunk
            if len(data) > _MAX_FIELD:
                raise invalid("a field is too long", param=name[:64])
        if name in self._fields:
            raise invalid("a field stands twice", param=name[:64])
        self._fields[name] = data.decode(errors="replace")

    async def _read_file(self, part: BodyPartReader) -> None:
        splitter = LineSplitter(self._config.max_line_bytes, self._config.max_lines)
        try:
            while chunk := await part.read_chunk(_CHUNK):
                self.size += len(chunk)
                if self.size > self._config.max_file_bytes:
                    raise self._too_large()
                splitter.feed(chunk)
                self._deadline.reschedule(self._until + self.size / self._per_s)
                await asyncio.to_thread(self.data.write, chunk)
            splitter.end()
        except JobLineError as error:
            status = 413 if error.code in ("line_too_long", "too_many_lines") else 400
            raise GatewayError(
                status, "invalid_request_error", str(error), code=error.code, param="file"
            ) from None
        if not self.size:
            raise invalid("the file is empty", param="file", code="empty_file")

    def _too_large(self) -> GatewayError:
        most = self._config.max_file_bytes
        what = f"a file has at most {most} bytes: send the requests in several files"
        return GatewayError(413, "invalid_request_error", what, param="file", code="file_too_large")
