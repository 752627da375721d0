"""Routers with batches, and what their owners see of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import openai

from tests.integration.gateway import CHATS, PROMPT, Fleet, key, official, opened
from tests.unit.router.doubles import Moved
from tests.unit.router.support import MODEL

OWNER, OTHER = "owner", "other"
STAFF = [key("kim", roles=["administrator"]), key("auditor", roles=["auditor"])]
KEYS = [key(OWNER), key(OTHER), *STAFF]
T = TypeVar("T")
ENDED = ("completed", "failed", "expired", "cancelled")


def keys_named(*names: str) -> list[dict[str, Any]]:
    """Keys of relying parties, and those of the people who look after the router."""
    return [*(key(name) for name in names), *STAFF]


def line(custom_id: str, url: str = CHATS, **body: Any) -> dict[str, Any]:
    """A line of a file."""
    given = {"model": MODEL, "messages": [{"role": "user", "content": f"{PROMPT} {custom_id}"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": given}


def jsonl(lines: Iterable[Any]) -> bytes:
    """A file; a line may be bytes already."""
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )


@asynccontextmanager
async def batching(
    folder: Path,
    *,
    store: dict[str, Any] | None = None,
    clock: Moved | None = None,
    nodes: int = 2,
    **sections: Any,
) -> AsyncIterator[Fleet]:
    """A router that keeps what it is given, over honest nodes."""
    async with opened(folder, clock) as fleet:
        for number in range(nodes):
            await fleet.engine(f"node-{number}")
        kept = store or {"path": str(folder / "router.db")}
        given = {"keys": KEYS, "store": {**kept, "flush_s": 0.2}, **sections}
        given["batches"] = {"places_per_node": 16, **sections.get("batches", {})}
        await fleet.start(sections=given)
        yield fleet


def client(fleet: Fleet, name: str = OWNER) -> openai.AsyncOpenAI:
    """The official client, with the key of *name*."""
    return official(fleet, f"sk-{name}")


async def begin(
    caller: openai.AsyncOpenAI, lines: Iterable[Any] | bytes, endpoint: Any = CHATS, window: Any = "24h"
) -> Any:
    """Upload a file, and begin a batch."""
    data = lines if isinstance(lines, bytes) else jsonl(lines)
    file = await caller.files.create(file=("in.jsonl", data), purpose="batch")
    return await caller.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window=window)


async def eventually(
    ask: Callable[[], Awaitable[T]], is_good: Callable[[T], bool], seconds: float = 20.0
) -> T:
    """What *ask* gives, once it is good."""
    async with asyncio.timeout(seconds):
        while True:
            found = await ask()
            if is_good(found):
                return found
            await asyncio.sleep(0.02)


async def ended(caller: openai.AsyncOpenAI, batch: str, seconds: float = 20.0) -> Any:
    """The batch, once it has ended."""
    return await eventually(
        lambda: caller.batches.retrieve(batch), lambda found: found.status in ENDED, seconds
    )


async def results(caller: openai.AsyncOpenAI, file: str | None) -> list[Any]:
    """The lines of a file of results."""
    if file is None:
        return []
    content = await caller.files.content(file)
    return [json.loads(each) for each in content.text.split("\n")[:-1]]


async def files_of(caller: openai.AsyncOpenAI) -> list[str]:
    """The ids of all files that a caller has."""
    return [file.id async for file in caller.files.list()]
