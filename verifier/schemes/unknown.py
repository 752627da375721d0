"""Submodules of a kind that has no scheme: they are a finding, and never passed over in silence."""

from __future__ import annotations

from verifier.schemes.base import CheckedSubmod, Context, Finding, Submods
from verifier.schemes.facts import UnknownFacts


def check(submod: str, _submods: Submods, _context: Context) -> CheckedSubmod:
    """Say that this verifier cannot check the submodule."""
    finding = Finding("evidence.submod.unknown", f"submodule {submod[:80]!r}")
    return CheckedSubmod(UnknownFacts(), findings=(finding,), bound="unknown")
