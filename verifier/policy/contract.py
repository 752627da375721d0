"""
The contract of policies as pages: generated from the types, so that they cannot drift.

    python -m verifier.policy.contract docs

writes ``policy-input.md`` and the JSON schemas of input and outcome; a test holds them equal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from verifier.appraisal import MAX_REASONS
from verifier.policy import ar4si
from verifier.reasons import REASONS
from verifier.schemes.facts import PolicyInput
from verifier.trust import ANY_VALUES, TRUST_CLAIMS, tier_of

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def input_schema() -> dict[str, Any]:
    """The JSON schema of `input`."""
    return {"$schema": _DIALECT, "title": "A policy's input", **msgspec.json.schema(PolicyInput)}


def outcome_schema() -> dict[str, Any]:
    """The JSON schema of what a policy must give as `data.touchstone.outcome`."""
    vector = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            claim.name: {"type": "integer", "minimum": -128, "maximum": 127} for claim in TRUST_CLAIMS
        },
    }
    reasons = {"type": "array", "maxItems": MAX_REASONS, "items": {"enum": sorted(REASONS)}}
    entry = {
        "type": "object",
        "required": ["trust_vector", "reasons"],
        "additionalProperties": False,
        "properties": {"trust_vector": vector, "reasons": reasons},
    }
    return {
        "$schema": _DIALECT,
        "title": "A policy's outcome: an entry for each submodule in input.checked, and no other",
        "type": "object",
        "additionalProperties": entry,
    }


def to_json(schema: Mapping[str, Any]) -> bytes:
    """A schema as the file has it."""
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def page() -> str:
    """``policy-input.md``."""
    return "\n".join([*_INTRODUCTION, *_fields(), *_outcome(), ""])


_INTRODUCTION: Final = (
    "# What a policy is given, and what it gives",
    "",
    "Generated from the types in `verifier/schemes/facts.py` and the tables in `verifier/results.py` and",
    "`verifier/reasons.py`: `python -m verifier.policy.contract docs`. Schemas: [input](policy-input.schema.json),",
    "[outcome](policy-outcome.schema.json). How to write one: [writing-policies.md](writing-policies.md).",
    "",
    "Schemes say what is true of evidence, a policy says what it means. What differs every time (nonces, exact",
    "times) is not in the input, so that nodes that are alike give equal inputs; there is no clock but `date`.",
    "",
    "## Input",
)


def _fields() -> Iterator[str]:
    schema = msgspec.json.schema(PolicyInput)
    definitions: Mapping[str, Any] = schema["$defs"]
    for name in (
        "PolicyInput",
        "NodeFacts",
        "ReferenceFacts",
        "PlatformFacts",
        "ModelFacts",
        "GpuFacts",
        "UnknownFacts",
        "Runtime",
        "Capabilities",
    ):
        definition = definitions[name]
        yield ""
        yield f"### {name}"
        yield _one_line(definition.get("description", ""))
        yield ""
        yield "| field | type | meaning |"
        yield "|---|---|---|"
        for field, form in definition.get("properties", {}).items():
            optional = "" if field in definition.get("required", ()) else ", may be absent"
            yield f"| `{field}` | {_type(form)}{optional} | {_one_line(form.get('description', ''))} |"


def _type(form: Mapping[str, Any]) -> str:
    if "$ref" in form:
        return str(form["$ref"]).rpartition("/")[2]
    if "enum" in form:
        return " · ".join(f"`{value}`" for value in form["enum"])
    if "anyOf" in form:
        return " or ".join(dict.fromkeys(_type(option) for option in form["anyOf"]))
    match form.get("type"):
        case "object":
            return f"object of {_type(form.get('additionalProperties', {}))}"
        case "array":
            return f"array of {_type(form.get('items', {}))}"
        case str(name):
            return name
        case _:
            return "any"


def _outcome() -> Iterator[str]:
    yield ""
    yield "## PolicyOutcome"
    yield ""
    yield "`data.touchstone.outcome`: for each submodule in `input.checked`, and no other, an object with exactly"
    yield "`trust_vector` (at least one claim; integers of −128 … 127) and `reasons` (codes of"
    yield f"[reason-codes.md](reason-codes.md), at most {MAX_REASONS}). Anything else, a float, 258, an unknown claim or"
    yield "code, or nothing at all, is an error of the policy: that appraisal ends `none` (−1) with `policy.failed`."
    yield "A policy can lower and never raise: what the evidence cannot carry is not affirming, whatever it says."
    yield ""
    yield "Values have names, in `ar4si/data.json` of each bundle: `data.ar4si.file_system.published`. Every claim also has"
    yield ", ".join(f"`{name}` {value}" for value, (name, _) in ANY_VALUES.items()) + "."
    yield ""
    yield "| claim | name | value | tier | meaning |"
    yield "|---|---|---|---|---|"
    for claim in TRUST_CLAIMS:
        key = claim.name.replace("-", "_")
        for value, (name, meaning) in claim.values.items():
            assert ar4si.names()[key][name] == value
            yield f"| {claim.name} | `{key}.{name}` | {value} | {tier_of(value)} | {meaning} |"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Write the pages into the folder that is named."""
    folder = Path(sys.argv[1])
    (folder / "policy-input.md").write_text(page(), encoding="utf-8")
    for name, schema in (("input", input_schema()), ("outcome", outcome_schema())):
        (folder / f"policy-{name}.schema.json").write_bytes(to_json(schema))


if __name__ == "__main__":
    main()
