"""Decisions and revisions in sentences, for the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from router.choose.gates import sort_codes

_BAR: Final = 20
"""Cells of a bar."""
_SHORT: Final = 12
"""Digits by which a revision is named in sentences."""
_DIGEST: Final = re.compile(r"\b(?:sha256|blake3):[0-9a-f]{13,}")


def describe_revisions(workloads: Mapping[str, Any]) -> list[str]:
    """The revisions of each workload's model, in lines with bars."""
    lines = []
    for name, workload in workloads.items():
        lines.append(f"{name}: {workload['model']}")
        revisions = workload["revisions"]
        total = sum(each["nodes"] for each in revisions.values())
        for digest, each in sorted(revisions.items(), key=lambda item: (-item[1]["nodes"], item[0])):
            if not each["nodes"]:
                lines.append(f"  {digest}  asked for, and no live node has it")
                continue
            full = round(_BAR * each["nodes"] / total)
            bar = "█" * full + "░" * (_BAR - full)
            said = f"{each['nodes']} of {total} nodes, {each['may_work']} may work"
            asked = "" if each["allowed"] else "; the workload asks for other revisions"
            lines.append(f"  {digest}  {bar}  {said}{asked}")
        if not revisions:
            lines.append("  no live node has a revision that its result names")
    return lines


def describe_seed(choice: Mapping[str, Any] | None) -> str:
    """Where the seed of a decision comes from."""
    if choice is None:
        return "this router drew the seed alone: the request brought no nonce"
    return f"the seed follows from the router's commitment {choice['id']} and the caller's nonce {choice['nonce']}"


def describe_required(required: Mapping[str, Any] | None, met: int | None) -> list[str]:
    """What the caller itself required, in lines."""
    if required is None:
        return []
    lines = [f"  the caller requires, and {met} of the nodes that the workload allows meet it:"]
    for name, value in required.items():
        shown = value
        if isinstance(value, Mapping):
            shown = "; ".join(f"{part}: {_listed(each)}" for part, each in value.items())
        lines.append(f"      {name}: {_listed(shown)}")
    return lines


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


_AFFINITY: Final[Mapping[str, str]] = {
    "kept": "{node} comes first: it is near the key {key} of the request",
    "drawn": "{node}, which is near the key {key} of the request, was drawn anyway",
    "busy": "the nodes near the key {key} of the request would take too long",
    "trial": "the key {key} of the request does not count: a node is tried",
    "none": "the key {key} of the request does not count: no node is established",
}


def describe_affinity(affinity: Mapping[str, Any] | None) -> list[str]:
    """What the key of affinity was worth, in lines."""
    if affinity is None:
        return []
    said = _AFFINITY.get(affinity["how"], "the key {key} of the request: {how}")
    return ["  " + said.format(**{"node": "", **affinity})]


def _continues(attempt: Mapping[str, Any]) -> str:
    return f", going on from what {attempt['continues']} gave" if attempt.get("continues") else ""


def explanation(record: dict[str, Any]) -> list[str]:
    """A decision in sentences."""
    workload = record["workload"]
    facts = record.get("facts", {})
    lines = [
        f"Decision {record['id']} for {workload['model']} (seed {record['seed']}, snapshot {record['snapshot']})",
        "  " + describe_seed(record.get("choice")),
        *describe_required(record.get("required"), record.get("met")),
        "  eligible: " + (", ".join(f"{n} {lane}" for lane, n in record["lanes"].items() if n) or "nobody"),
        *describe_affinity(record.get("affinity")),
    ]
    for place, ranked in enumerate(record["ranked"], 1):
        lines += [
            f"  {place}. {ranked['node']}  {ranked['lane']}: {ranked['score']:.3f} expected s per success",
            (
                f"       = {ranked['latency_s']:.3f} s × {ranked['in_flight'] + 1} in flight"
                f" ÷ {max(ranked['completion'], 0.05) * ranked.get('calls', 1):.3f} completion"
                f" ({ranked['evidence']:.0f} requests measured; {ranked['why']})"
            ),
        ]
        if ranked.get("calls", 1) != 1:
            lines.append(
                f"       its calls of tools are good {ranked['calls']:.2f} times as often as is usual"
            )
        if revision := facts.get(ranked["node"], {}).get("revision"):
            lines.append(f"       revision {revision[:_SHORT]}… of the model")
        if said := _prompting(facts.get(ranked["node"], {})):
            lines.append(f"       {said}")
        if ranked.get("cost"):
            lines.append(f"       expected cost of a success: {ranked['cost']:.3f} millionths")
    if not record["ranked"]:
        lines.append("  no node may do it")
    if record["opened"]:
        lines.append(f"  failed open, because no other node was left: {', '.join(record['opened'])}")
    if record["over"]:
        lines.append(f"  passed over, because they have their share in flight: {', '.join(record['over'])}")
    counts = record["closed"]
    lines += [f"  ✗ {counts[code]} {code}" for code in sort_codes(iter(counts))]
    for node, verdict in record.get("excluded", {}).items():
        lines.append(f"      {node}  {verdict['code']}: {verdict['detail']}")
    lines += [
        f"  → {attempt['node']}  {attempt['outcome']} in {attempt.get('ms', 0)} ms ({attempt['detail']})"
        + (f", revision {attempt['revision'][:_SHORT]}…" if attempt.get("revision") else "")
        + _continues(attempt)
        for attempt in record["attempts"]
    ]
    if offered := record.get("offered"):
        lines.append(f"  offered to the picker of another gateway, {len(offered)}: {', '.join(offered)}")
    return lines


def _prompting(facts: Mapping[str, Any]) -> str:
    """What a node renders prompts with, and samples by, with digests that can be told apart."""
    words = (("renders", facts.get("template")), ("samples", facts.get("sampling")))
    return "; ".join(f"{word} by {_DIGEST.sub(_cut, str(value))}" for word, value in words if value)


def _cut(found: re.Match[str]) -> str:
    return f"{found[0][: found[0].index(':') + 1 + _SHORT]}…"
