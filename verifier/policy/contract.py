"""
The contract of policies as pages, generated from the types so that the two cannot differ.

    python -m verifier.policy.contract docs

writes ``policy-input.md`` and the JSON schemas of input and outcome.  A test checks that the
pages are up to date.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_type_hints

import msgspec

from verifier.appraisal import MAX_REASONS
from verifier.policy import ar4si
from verifier.reasons import REASONS
from verifier.schemes.facts import PolicyInput
from verifier.schemes.registry import facts_types, facts_union
from verifier.trust import ANY_VALUES, TRUST_CLAIMS, tier_of

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def input_schema() -> dict[str, Any]:
    """The JSON schema of `input`."""
    return {"$schema": _DIALECT, "title": "A policy's input", **_schema()}


def input_type() -> Any:
    """The type of `input`: `PolicyInput` with the facts of every registered kind."""
    facts: Any = types.GenericAlias(dict, (str, facts_union()))
    fields = get_type_hints(PolicyInput, include_extras=True)
    fields["checked"] = Annotated[facts, *get_args(fields["checked"])[1:]]
    return msgspec.defstruct(
        PolicyInput.__name__,
        list(fields.items()),
        namespace={"__doc__": PolicyInput.__doc__},
        frozen=True,
        kw_only=True,
    )


def _schema() -> dict[str, Any]:
    return msgspec.json.schema(input_type())


def outcome_schema() -> dict[str, Any]:
    """The JSON schema of `data.touchstone.outcome`, which a policy must define."""
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
    """The content of a schema's file."""
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def page() -> str:
    """``policy-input.md``."""
    return "\n".join([*_INTRODUCTION, *_fields(), *_outcome(), ""])


_INTRODUCTION: Final = (
    "# The input and the outcome of a policy",
    "",
    "The command `python -m verifier.policy.contract docs` generates this page",
    "from the types in `verifier/schemes/facts.py` and the tables in `verifier/trust.py` and `verifier/reasons.py`.",
    "There is a JSON schema of the [input](policy-input.schema.json) and one of the [outcome](policy-outcome.schema.json).",
    "[writing-policies.md](writing-policies.md) explains how to write a policy.",
    "",
    "Schemes say what is true of evidence, and a policy says what that means.",
    "The input has nothing that differs every time, such as nonces and exact times,",
    "so nodes that are alike give equal inputs.",
    "A policy has no clock: the only time is the field `date`.",
    "",
    "## Input",
)


def _fields() -> Iterator[str]:
    schema = _schema()
    definitions: Mapping[str, Any] = schema["$defs"]
    for name in (
        "PolicyInput",
        "NodeFacts",
        "ReferenceFacts",
        *(facts.__name__ for facts in facts_types()),
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
    yield "## Outcome"
    yield ""
    yield "The rule `data.touchstone.outcome` must give an object for each submodule in `input.checked`, and for no other."
    yield "The object has exactly two fields:"
    yield ""
    yield "- `trust_vector`: at least one claim, with an integer from −128 to 127 for each."
    yield f"- `reasons`: at most {MAX_REASONS} codes of [reason-codes.md](reason-codes.md)."
    yield ""
    yield "Anything else is an error of the policy: a float, the number 258, an unknown claim or code, or no outcome at all."
    yield "That appraisal ends with `none` (−1) and the reason `policy.failed`."
    yield "A policy can lower a value and never raise it:"
    yield "a claim is not affirming if the evidence cannot support that, whatever the policy says."
    yield ""
    yield "Values have names, such as `data.ar4si.file_system.published`; each bundle has them in `ar4si/data.json`."
    yield "Besides the values in the table, every claim may have one of these:"
    yield ", ".join(f"`{name}` ({value})" for value, (name, _) in ANY_VALUES.items()) + "."
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
    """Write the pages into the folder that the first argument names."""
    folder = Path(sys.argv[1])
    (folder / "policy-input.md").write_text(page(), encoding="utf-8")
    for name, schema in (("input", input_schema()), ("outcome", outcome_schema())):
        (folder / f"policy-{name}.schema.json").write_bytes(to_json(schema))


if __name__ == "__main__":
    main()
