"""What a serious finding leads to, by who else failed and passed at the same."""

from __future__ import annotations

import pytest

from verifier.incidents import BLAST_WINDOW_MS, Disposition, Tally, decide_disposition

NOW = 10**12
CASES = [
    # failed before, passed, operator, age of the cause → weight
    ((), (), "a", 0, Disposition.SUSPECT),
    ((), ("b",), "a", 0, Disposition.QUARANTINE),
    ((), ("a",), "a", 0, Disposition.SUSPECT),
    (("b",), (), "a", 0, Disposition.SUSPECT),
    (("b", "c"), (), "a", 0, Disposition.REFERENCE_SUSPECT),
    (("b", "c"), ("d",), "a", 0, Disposition.REFERENCE_SUSPECT),
    (("b", "c"), ("d", "e", "f"), "a", 0, Disposition.REFERENCE_SUSPECT),
    (("b", "c"), ("d", "e", "f", "g"), "a", 0, Disposition.QUARANTINE),
    (("a", "b"), (), "a", 0, Disposition.SUSPECT),
    (("b", "c"), (), "a", BLAST_WINDOW_MS + 1, Disposition.REFERENCE_SUSPECT),
    ((), (), "a", BLAST_WINDOW_MS + 1, Disposition.REFERENCE_SUSPECT),
    ((), ("a",), "a", BLAST_WINDOW_MS + 1, Disposition.QUARANTINE),
    (("b", "c"), ("d",), "a", BLAST_WINDOW_MS + 1, Disposition.QUARANTINE),
    ((), (), "a", BLAST_WINDOW_MS, Disposition.SUSPECT),
]


@pytest.mark.parametrize(("failed", "passed", "operator", "age", "weight"), CASES)
def test_weigh(failed, passed, operator, age, weight) -> None:
    """Operators count, not nodes; passes of one's own speak for nobody; the window ends."""
    tally = Tally(frozenset(failed), frozenset(passed), NOW - age)
    assert decide_disposition(tally, operator, NOW) is weight


def test_while_a_person_looks_at_it_the_window_stays_open() -> None:
    """Three operators that fail are held by nobody until the review of what is ours ends."""
    tally = Tally(frozenset("bc"), frozenset("d"), NOW - BLAST_WINDOW_MS - 1, reviewed=True)
    assert decide_disposition(tally, "a", NOW) is Disposition.REFERENCE_SUSPECT
