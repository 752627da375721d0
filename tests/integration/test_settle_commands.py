"""`touchstone settle …`, as people run it, and what a router that was killed leaves for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attester.identity import key_to_pem, write_private
from router.commands.settle import settle
from router.model.clock import Clock
from router.state.name import LEASE_S, NameLease
from router.store import settlement as store
from tests.integration.test_settlement import filled
from tests.unit.router.test_receipts import KEY
from verifier.router_receipts import ReceiptKey
from verifier.store.opening import open_database

CONFIG = """
[verifier]
url = "https://v.example"
[service]
name = "one"
[store]
path = "router.db"
keep_days = 3650
[settlement]
unit = "EUR"
decimals = 2
"""


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A router's folder with a month of receipts."""
    (tmp_path / "router.toml").write_text(CONFIG)
    write_private(tmp_path / "router-receipts.pem", key_to_pem(KEY))
    keys = {"keys": [ReceiptKey(KEY.public).jwk()]}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    async with open_database("", tmp_path / "router.db", schema="router.store") as db:
        await filled(db, 4)
    return tmp_path


def ran(home: Path, *command: str, fails: bool = False) -> str:
    options = [] if command[0] == "verify" else ["--config", str(home / "router.toml")]
    result = CliRunner().invoke(settle, [*command, *options])
    assert (result.exit_code != 0) is fails, result.output
    return result.output


def test_a_month_from_run_to_verify(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.commands.settle._now_ms", lambda: 1_795_000_000_000)
    told = ran(home, "run", "--period", "2026-10")
    assert "2026-10: 3 statements made, 0 were there." in told
    assert "0 statements made, 3 were there." in ran(home, "run", "--period", "2026-10")
    rows = [line.split() for line in ran(home, "list").splitlines()]
    name = rows[0][0]
    assert len(rows) == 3
    assert "Total" in ran(home, "show", name)
    document = json.loads(ran(home, "show", name, "--form", "json"))
    assert document["id"] == name
    out = home / "out"
    assert "Verify it" in ran(home, "export", name, "--out", str(out))
    told = ran(home, "verify", str(out), "--router-keys", str(home / "keys.json"))
    assert document["statement"]["total_exact"] in told
    assert {path.name for path in out.iterdir()} == {
        "statement.jws", "statement.json", "statement.csv", "statement.html", "receipts.jsonl", "batches.jsonl",
    }  # fmt: skip
    told = ran(
        home, "correct", name, "--actor", "ada", "--reason", "agreed", "--line", "1", "--amount", "-0.25"
    )
    assert "Made number 2" in told
    assert "corrected already" in ran(home, "correct", name, "--actor", "a", "--reason", "r", fails=True)


def test_a_period_that_goes_on_is_not_settled(home: Path) -> None:
    assert "is settled 48 hours after its end" in ran(home, "run", "--period", "2999-01", fails=True)
    assert "is no period" in ran(home, "run", "--period", "tomorrow", fails=True)


def test_a_gap_is_noted_by_hand(home: Path) -> None:
    given = ["--router", "one", "--from", "2026-10-01T00:00:00", "--to", "2026-10-01T01:00:00", "--lost", "5"]
    assert "Noted." in ran(home, "gap", *given, "--why", "restored")


@pytest.mark.parametrize("is_clean", [True, False])
async def test_a_router_that_was_killed_notes_what_it_may_have_lost(
    tmp_path: Path, *, is_clean: bool
) -> None:
    now: dict[str, Any] = {"ms": 1_795_000_000_000}
    clock = Clock(lambda: now["ms"], lambda: now["ms"] / 1000)
    async with open_database("", tmp_path / "router.db", schema="router.store") as db:
        first = NameLease(db, "one", clock)
        await first.take()
        if is_clean:
            await first.give_back()
        now["ms"] += int(LEASE_S * 1000) + 1
        await NameLease(db, "one", clock).take()
        async with db.read() as tx:
            found = await store.gaps(tx, 0, 1 << 50)
    assert [each.router for each in found] == ([] if is_clean else ["one"])
