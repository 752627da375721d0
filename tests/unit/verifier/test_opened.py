"""Sessions that are kept in memory: given once, bounded, and only such as nothing is added to later."""

from __future__ import annotations

import pytest

from verifier.schemes.context import Channel, IssuedChallenges
from verifier.service.appraiser import _Changes
from verifier.service.opened import OpenedSessions
from verifier.store.pool import Entry
from verifier.store.sessions import StoredSession

ASKED = {"a/b": IssuedChallenges()}


def session(number: int, channel: Channel = Channel.ANNOUNCED, commitments: int = 32) -> StoredSession:
    """A session with one challenge."""
    return StoredSession(
        id=str(number),
        node_id="n",
        channel=channel,
        nonce=bytes(32),
        issued_ms=0,
        expires_ms=1,
        status="waiting",
        entries=(Entry("a/b", "read", 0, 1, "{}", bytes(commitments)),),
    )


def test_a_session_is_given_once_with_its_challenges() -> None:
    """What comes for it afterwards finds it in the database."""
    opened = OpenedSessions()
    opened.keep(session(1), ASKED)
    found = opened.take("1")
    assert found is not None
    assert found.asked == ASKED
    assert opened.take("1") is None


@pytest.mark.parametrize(
    "other", [session(1, Channel.CALLED), session(1, Channel.OPEN), session(1, commitments=5000)]
)
def test_others_are_not_kept(other: StoredSession) -> None:
    """Answers are added to a call; a wide walk is large."""
    opened = OpenedSessions()
    opened.keep(other, ASKED)
    assert opened.take("1") is None


def test_the_oldest_are_forgotten() -> None:
    """However many are opened and never used."""
    opened = OpenedSessions()
    for number in range(5000):
        opened.keep(session(number), ASKED)
    kept = [number for number in range(5000) if opened.take(str(number)) is not None]
    assert kept == list(range(5000 - 4096, 5000))


def test_what_is_as_it_was_is_logged_once() -> None:
    """Again after it was good, or became other; for each node by itself, and for so many nodes at most."""
    changes = _Changes()
    bad, worse = ("warning", "a"), ("contraindicated", "a", "b")
    found = [changes.is_new("n", each, good=False) for each in (bad, bad, worse, worse, bad)]
    assert found == [True, False, True, False, True]
    assert changes.is_new("m", bad, good=False)
    assert not changes.is_new("n", ("affirming",), good=True)
    assert changes.is_new("n", bad, good=False)
    for number in range(10_000):
        changes.is_new(str(number), bad, good=False)
    assert changes.is_new("n", bad, good=False)
