"""
Attacks on the verifier: 1, 18 and 32 of the catalogue (reference/routers.md §C.2).

Each test fails where its attack succeeds; the last one takes the defences away and shows that it does.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from attester.errors import VerifierError
from fixtures.published import publish
from fixtures.simulator import MODEL, SimulatedNode
from verifier import appraisal, trust
from verifier.service import sessions as session_service
from verifier.store import nodes, sessions
from verifier.store.nodes import Grant

# 1: names without number.

SUBMOD = f"model/{MODEL}"
FLOOD = 50
KEPT = ("nodes", "node_keys", "sessions", "seen_requests", "events", "recordings")


@pytest.fixture
def verifier_settings() -> dict[str, Any]:
    """The rates of addresses are not what is tested here."""
    return {
        "calls": {"min_interval_s": 3000.0, "max_interval_s": 3600.0},
        "policy": {"workers": 1},
        "sessions": {"per_address_per_minute": 100_000},
    }


async def count_rows(verifier: Any) -> dict[str, int]:
    """How many rows each table has that a new name could add to."""
    return {table: (await verifier.rows(f"SELECT count(*) AS n FROM {table}"))[0]["n"] for table in KEPT}


async def test_attack_1_mass_fake_gpus(verifier: Any) -> None:
    """1, mass fake GPUs: without a token of its own no name is enrolled, and none leaves a row."""
    token = await verifier.token()
    await verifier.client(SimulatedNode(verifier.model_folder)).enrol(token, [MODEL])
    before = await count_rows(verifier)
    for number in range(FLOOD):
        node = SimulatedNode(verifier.model_folder)
        with suppress(VerifierError):
            await verifier.client(node).enrol(token if number % 2 else f"guessed-{number:032}", [MODEL])
        async with verifier.http.post(f"{verifier.url}/challenge-response/v1/newSession") as response:
            assert response.status == 201
    assert await count_rows(verifier) == before, "attack 1 succeeds: names without tokens are kept"


async def test_a_stolen_database_enrols_nobody(verifier: Any) -> None:
    """1, with a copy of the tables: a token's digest is there, and the token is not."""
    token = await verifier.token()
    (row,) = await verifier.rows("SELECT * FROM tokens")
    assert token.encode() not in b"".join(str(value).encode() for value in row.values())
    for stolen in (row["digest"].hex(), base64.urlsafe_b64encode(row["digest"]).decode()):
        with pytest.raises(VerifierError, match="token"):
            await verifier.client(SimulatedNode(verifier.model_folder)).enrol(stolen, [MODEL])


def without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes is enrolled, as on networks that pay for a registration."""

    async def anyone(*_: Any) -> Grant:
        return Grant("acme", (MODEL,))

    monkeypatch.setattr(nodes, "use_token", anyone)


def with_rows_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of a stranger is a row, as soon as it is opened."""
    seal = session_service._seal_session

    async def stored(service: Any, channel: Any, nonce: bytes) -> Any:
        session = await seal(service, channel, nonce)
        await service.db.write(lambda tx: sessions.store_sealed(tx, session))
        return session

    monkeypatch.setattr(session_service, "_seal_session", stored)


# 18: a majority that agrees on the wrong digest.

CROWD = 5


async def learn_from_nodes(verifier: Any, declared: Path) -> None:
    """What the verifier takes from nodes as a reference value: nothing.  Only people publish them."""


def altered(folder: Path, target: Path) -> Path:
    """The published model with one value changed."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors["norm"][0] ^= 1
    save_file(tensors, target / "model.safetensors")
    return target


async def test_attack_18_colluding_majority(verifier: Any, tmp_path: Path) -> None:
    """18, a colluding majority: nodes of five operators that agree on other weights move no reference value."""
    other = altered(verifier.model_folder, tmp_path / "other")
    await learn_from_nodes(verifier, other)
    for number in range(CROWD):
        node = await verifier.enrol(SimulatedNode(other), operator=f"sybil-{number}")
        result = await verifier.attest(node)
        claims = result["submods"][SUBMOD]["ear_trustworthiness_vector"]
        assert claims["file-system"] == 96, "attack 18 succeeds: what most have is taken for right"
    result = await verifier.attest(await verifier.enrol(operator="honest"))
    assert result["ear_status"] == "affirming"


def by_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chutes' rule: if all miners agree on a digest, it counts as the right one."""

    async def adopt(verifier: Any, declared: Path) -> None:
        await publish(verifier.service.db, verifier.service.pool_key, declared, verifier.clock.ms)

    monkeypatch.setattr(f"{__name__}.learn_from_nodes", adopt)


# 32: claims that no evidence of this version can carry.


def boast(submods: Iterable[str]) -> dict[str, Any]:
    """The best of everything, for whatever is asked."""
    best = dict.fromkeys(trust.CLAIM_NAMES, 2)
    return {name: {"trust_vector": best, "reasons": []} for name in submods}


async def test_attack_32_claims_of_hardware(verifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """32, forged hardware: no policy and no node gets a claim, or an assurance, that only a root could carry."""

    async def evaluate(_: Any, policy_input: bytes) -> Any:
        return boast(("platform", SUBMOD))

    monkeypatch.setattr(verifier.service.engine, "evaluate", evaluate)
    result = await verifier.attest(await verifier.enrol())
    for appraised in result["submods"].values():
        vector = appraised["ear_trustworthiness_vector"]
        affirmed = {claim for claim, value in vector.items() if trust.tier_of(value) is trust.Tier.AFFIRMING}
        assert affirmed <= {"instance-identity", "configuration", "file-system", "executables"}, (
            "attack 32 succeeds: a claim of hardware without a root"
        )
        assert appraised["ear_verifier_claims"]["assurance"] in ("declared", "challenged")


def without_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's word is the result."""

    def unchanged(_: str, __: Any, ___: Any, values: Mapping[str, int], ____: Any) -> Any:
        return dict(values), []

    monkeypatch.setattr(appraisal, "apply_ceilings", unchanged)


@pytest.mark.parametrize("defenceless", [without_tokens, with_rows_for_strangers])
async def test_without_its_defence_attack_1_succeeds(
    verifier: Any, monkeypatch: pytest.MonkeyPatch, defenceless: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The very test of the attack fails by its success, where the defence is taken away."""
    defenceless(monkeypatch)
    with pytest.raises(AssertionError, match="attack 1 succeeds"):
        await test_attack_1_mass_fake_gpus(verifier)


async def test_without_its_defence_attack_18_succeeds(
    verifier: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Likewise."""
    by_majority(monkeypatch)
    with pytest.raises(AssertionError, match="attack 18 succeeds"):
        await test_attack_18_colluding_majority(verifier, tmp_path)


async def test_without_its_defence_attack_32_succeeds(verifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise."""
    without_ceilings(monkeypatch)
    with pytest.raises(AssertionError, match="attack 32 succeeds"):
        await test_attack_32_claims_of_hardware(verifier, monkeypatch)
