"""Results against the draft's CDDL, our published schema, and a reader that is not ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import jwt
import pytest

from verifier import results, trust

SCHEMA: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "ear.schema.json").read_text())


async def test_a_result_verifies_with_pyjwt_alone(verifier) -> None:
    """A relying party needs the JWKS and a JWT library, nothing of ours."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    url = f"{verifier.url}/api/v1/nodes/{node.id}/result"
    async with verifier.http.get(url, headers={"Accept": "application/eat+jwt"}) as response:
        token = await response.text()
        assert response.headers["Content-Type"] == results.MEDIA_TYPE_JWT
    _, document = await verifier.get("/.well-known/jwks.json")
    keys = jwt.PyJWKSet.from_dict(document)
    key = keys[jwt.get_unverified_header(token)["kid"]]
    decoded = jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        issuer=verifier.url,
        options={"verify_exp": False, "verify_iat": False},
    )
    assert decoded == claims
    jsonschema.validate(decoded, SCHEMA)


async def test_contraindicated_results_pass_the_schema_too(verifier) -> None:
    """Reasons and all."""
    node = await verifier.enrol()
    session = await verifier.client(node).open_session()
    data = node.evidence(session, iat=verifier.clock.seconds, answers={})
    claims = await verifier.submit(session, data, node)
    assert claims["ear_status"] == "contraindicated"
    jsonschema.validate(claims, SCHEMA)


async def test_the_three_forms_say_the_same(verifier) -> None:
    """JWT, CWT and decoded JSON, by Accept."""
    node = await verifier.enrol()
    claims = await verifier.attest(node)
    url = f"{verifier.url}/api/v1/nodes/{node.id}/result"
    keys = verifier.service.verifying_keys()
    async with verifier.http.get(url, headers={"Accept": "application/eat+cwt"}) as response:
        cwt = results.decode_cwt(await response.read(), keys, issuer=verifier.url, now=verifier.clock.seconds)
        assert response.headers["Content-Type"] == results.MEDIA_TYPE_CWT
    assert json.loads(json.dumps(cwt.to_claims())) == claims
    _, decoded = await verifier.get(f"/api/v1/nodes/{node.id}/result", Accept="application/json")
    assert decoded == claims
    async with verifier.http.get(url, headers={"Accept": "text/html"}) as response:
        assert response.status == 406


def labels(cddl: str) -> dict[str, int]:
    """The JSON names and CBOR keys of a CDDL file: ``JC<"name", 1000>``."""
    return {name: int(key) for name, key in re.findall(r'JC<"([^"]+)",\s*(-?\d+)>', cddl)}


def test_names_and_keys_are_the_drafts(samples: Path) -> None:
    """Every label we share with the draft's CDDL has its name and its key."""
    folder = samples / "ear" / "cddl"
    draft: dict[str, int] = {}
    for file in ("ear.cddl", "ear-appraisal.cddl", "ar4si.cddl"):
        draft |= labels((folder / file).read_text())
    ours = {**results._CWT_TOP, **results._CWT_SUBMOD, **results._LABELS}
    ours |= {str(tier): number for tier, number in results._TIER_NUMBER.items()}
    ours |= {"developer": 0, "build": 1}
    shared = ours.keys() & draft.keys()
    assert {name: ours[name] for name in shared} == {name: draft[name] for name in shared}
    assert shared >= {
        "ear_status", "ear_trustworthiness_vector", "ear_appraisal_policy_ids", "ear_verifier_id",
        *trust.CLAIM_NAMES, "none", "affirming", "warning", "contraindicated",
    }  # fmt: skip


def test_the_schema_requires_what_the_draft_requires(samples: Path) -> None:
    """Mandatory members of the CDDL are mandatory in our schema; the vector is the draft's."""
    cddl = (samples / "ear" / "cddl" / "ear.cddl").read_text()
    body = cddl[cddl.index("EAR = {") : cddl.index("}\n", cddl.index("EAR = {"))]
    mandatory = set(re.findall(r"^  (?:eat\.)?([a-z-]+)-label =>", body, re.MULTILINE))
    names = {
        "profile": "eat_profile",
        "iat-claim": "iat",
        "verifier-id": "ear_verifier_id",
        "submods": "submods",
    }
    assert mandatory == set(names)
    assert set(names.values()) <= set(SCHEMA["required"])
    vector = (samples / "ear" / "cddl" / "ar4si.cddl").read_text()
    claims = set(re.findall(r"\? ([a-z-]+)-label => trustworthiness-claim", vector))
    assert claims == set(SCHEMA["$defs"]["trustworthiness_vector"]["properties"]) == trust.CLAIM_NAMES
    assert "trustworthiness-claim = -128 .. 127" in vector


@pytest.mark.parametrize("name", ["ear-json-1.diag", "ear-json-2.diag"])
def test_the_drafts_examples_fit_where_we_overlap(samples: Path, name: str) -> None:
    """The appraisals of the draft's own examples pass the parts of the schema we share."""
    example = json.loads((samples / "ear" / "cddl" / "examples" / name).read_text())
    # The examples are of revision 03; 04 changed the profile and added claims.
    assert example["eat_profile"] == "tag:ietf.org,2026:rats/ear#03"
    for appraisal in example["submods"].values():
        for member, definition in (
            ("ear_status", "tier"),
            ("ear_trustworthiness_vector", "trustworthiness_vector"),
        ):
            if member in appraisal:
                jsonschema.validate(
                    appraisal[member], {**SCHEMA["$defs"][definition], "$defs": SCHEMA["$defs"]}
                )
        vector = appraisal.get("ear_trustworthiness_vector", {})
        if vector:
            assert trust.worst(vector) == appraisal["ear_status"]
