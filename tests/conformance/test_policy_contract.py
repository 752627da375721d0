"""What policies are really given fits the published schema, and so does what the default one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import RunningVerifier

DOCS = Path(__file__).parents[2] / "docs"


def schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((DOCS / f"policy-{name}.schema.json").read_text()))


@pytest.mark.parametrize("walk", [True, False])
async def test_inputs_and_outcomes_fit_their_schemas(verifier: RunningVerifier, walk) -> None:
    """As recorded: nothing unknown, nothing missing."""
    await verifier.attest(await verifier.enrol(), walk=walk)
    (row,) = await verifier.rows("SELECT input FROM recordings")
    schema("input").validate(json.loads(row["input"]))
    outcome = await verifier.service.engine.evaluate(await verifier.policy(), row["input"].encode())
    schema("outcome").validate(outcome)
    assert outcome.keys() == json.loads(row["input"])["checked"].keys()


@pytest.mark.parametrize(
    "outcome",
    [
        {"platform": {"trust_vector": {}, "reasons": []}},
        {"platform": {"trust_vector": {"goodness": 2}, "reasons": []}},
        {"platform": {"trust_vector": {"hardware": 258}, "reasons": []}},
        {"platform": {"trust_vector": {"hardware": 2.5}, "reasons": []}},
        {"platform": {"trust_vector": {"hardware": 2}, "reasons": ["weights.fine"]}},
        {"platform": {"trust_vector": {"hardware": 2}}},
        {"platform": {"trust_vector": {"hardware": 2}, "reasons": [], "more": 1}},
    ],
)
def test_the_schema_refuses_what_the_verifier_refuses(outcome: Any) -> None:
    """So that a team's own checks say the same."""
    with pytest.raises(jsonschema.ValidationError):
        schema("outcome").validate(outcome)
