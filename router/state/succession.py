"""
Which of a node's results counts: the rules by which one takes the place of another.

The verifier's number decides, never a time: a result gives way only to one with a higher number (ADR 0028).  A
revocation names the number up to which results are void, so it never voids a newer one.  A result that comes
before or after its time, by the router's clock, is set aside: the one before it stays good, as far as both allow
the work.  Nothing depends on the order in which
results and revocations come.

All of it is pure: a view in, a view out.
"""

from __future__ import annotations

from msgspec.structs import replace

from router.model.node import AsideResult, NodeView
from verifier.results import AttestationResult


def is_known(view: NodeView, result: AttestationResult) -> bool:
    """Whether a view has a result already, as the one that counts or as the one that is set aside."""
    return any(known.jti == result.jti for known in _both(view))


def is_newer(view: NodeView, result: AttestationResult, *, is_untimely: bool) -> bool:
    """Whether a result is newer than the one whose place it takes, and than the one that counts."""
    places = _both(view) if is_untimely else () if view.result is None else (view.result,)
    return all(result.is_newer_than(known) for known in places)


def take(
    view: NodeView, result: AttestationResult, digest: bytes, issued_at: float, *, is_untimely: bool
) -> NodeView:
    """
    Give the view with a result that is newer than the one whose place it takes (`is_newer`).

    Args:
        issued_at: See `NodeView.issued_at`.
        is_untimely: Whether it cannot be accepted by the router's clock, so that it must wait.
    """
    revoked = (result.ear_touchstone_sequence or view.void + 1) <= view.void
    if is_untimely:
        # What is revoked need not be kept.
        return view if revoked else replace(view, aside=AsideResult(result, digest, issued_at))
    aside = view.aside
    if aside is not None and not aside.result.is_newer_than(result):
        aside = None
    return replace(
        view, result=result, token_digest=digest, issued_at=issued_at, revoked=revoked, aside=aside
    )


def void(view: NodeView, sequence: int | None) -> NodeView:
    """Give the view with all results void up to a number; without one, all that it has."""
    if sequence is None:
        return replace(view, revoked=True, aside=None)
    if sequence <= view.void:
        return view
    number = None if view.result is None else view.result.ear_touchstone_sequence
    aside = view.aside
    if aside is not None and (aside.result.ear_touchstone_sequence or 0) <= sequence:
        aside = None
    return replace(view, void=sequence, revoked=view.revoked or (number or 0) <= sequence, aside=aside)


def promote(view: NodeView) -> NodeView:
    """Give the view in which the result that was set aside counts: the time is right for it."""
    aside = view.aside
    if aside is None:
        return view
    return replace(
        view,
        result=aside.result,
        token_digest=aside.digest,
        issued_at=aside.issued_at,
        revoked=False,
        aside=None,
    )


def _both(view: NodeView) -> tuple[AttestationResult, ...]:
    aside = () if view.aside is None else (view.aside.result,)
    return aside if view.result is None else (view.result, *aside)
