"""
The whole way with real parts: a llama.cpp that streams, its front, a verifier with a log, a router, and the client.

All that a client can require at once: the log before the answer is used, a decision that comes out again, the front's
own signature, a walk that is young.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import structs

from fixtures import smollm
from router.client import trusting
from router.client.errors import Step
from router.client.kept import KeptFolder
from router.client.offline import read_material, verify_offline
from router.client.session import AsyncClient
from router.client.trust import Required, Trust
from tests.integration.test_llama_cpp import (  # noqa: F401  # fixtures
    FILES_ALONE,
    LlamaNode,
    clock,
    measured_once,
    node,
    router_of,
    verifier_home,
)

REQUIRED = Required(
    model_claims=FILES_ALONE,
    max_walk_age_s=600,
    has_front=True,
    choice="replayed",
    tells_router=True,
    log="before",
)
REQUEST = {
    "model": smollm.MODEL,
    "messages": list(smollm.QUESTION),
    "temperature": 0,
    "max_tokens": 24,
    "stream": True,
}


async def test_a_streamed_answer_is_verified_to_the_log(node: LlamaNode, tmp_path: Path) -> None:  # noqa: F811
    """And once more from the file that was kept, without a network."""
    await node.attest()
    async with router_of(node, tmp_path, FILES_ALONE, store={"flush_s": 0.1}) as (asking, _):
        url = str(asking.base_url).removesuffix("/v1/")
        file = await trusting.fetch_trust(url, node.verifier.url)
        assert file.log is not None
        trust = Trust(structs.replace(file, require=REQUIRED))
        kept = KeptFolder(tmp_path / "receipts", has_bodies=True)
        async with AsyncClient(trust=trust, kept=kept) as client:
            answer = await client.ask("POST", "/v1/chat/completions", msgspec.json.encode(REQUEST))
    assert answer.status == 200, answer.body
    assert b"Paris" in answer.body
    assert answer.checked is not None
    assert set(answer.checked.steps) == set(Step) - {Step.CONTINUED}
    assert answer.checked.is_logged
    (path,) = (tmp_path / "receipts").iterdir()
    outcome = verify_offline(read_material(path.read_bytes()), trust)
    assert outcome.missing == {}
    assert outcome.checked.is_logged
