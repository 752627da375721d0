"""Submodules of a kind that has no scheme: each is a finding, and none is ignored."""

from __future__ import annotations

from verifier.schemes.context import Context, Submods
from verifier.schemes.facts import UnknownFacts
from verifier.schemes.findings import CheckedSubmod, Finding


def check(submod: str, _submods: Submods, _context: Context) -> CheckedSubmod:
    """Say that this verifier cannot check the submodule."""
    finding = Finding("evidence.submod.unknown", f"this verifier cannot check the submodule {submod[:80]!r}")
    return CheckedSubmod(UnknownFacts(), findings=(finding,), bound="unknown")
