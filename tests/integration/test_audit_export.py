"""An evidence pack for an auditor: it verifies without a network, and whatever is changed in it is named."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fixtures.transactions import transaction
from tests.integration.test_log import settle, the_log
from touchstone import main
from verifier import canonical
from verifier.audit.checking import Checked, check
from verifier.audit.exporting import export
from verifier.audit.index import File, Index, open_index, sign_index
from verifier.audit.tables import Entry, decode_entry, operator_of, tables, to_csv
from verifier.errors import AuditError, LogProofError
from verifier.log import tree
from verifier.log.checkpoints import Checkpoint, open_checkpoint, sign_checkpoint
from verifier.log.notes import Signer, VerifierKey
from verifier.log.proofs import LogProof
from verifier.log.ranges import RangeNodes, nodes_beside
from verifier.store import log

STORES = ("sqlite", "postgres")
HOUR = 3_600_000


async def exported(verifier: Any, folder: Path, *, from_ms: int = 0, to_ms: int | None = None) -> VerifierKey:
    await settle(verifier)
    key = verifier.service.log_key
    async with verifier.service.db.read() as tx:
        to_ms = verifier.clock.ms + 1 if to_ms is None else to_ms
        await export(tx, key, folder, from_ms=from_ms, to_ms=to_ms, now_ms=verifier.clock.ms)
    return VerifierKey.parse((await the_log(verifier)).vkey)


def checked(folder: Path, key: VerifierKey) -> Checked:
    return check(folder, [key], lambda note: open_checkpoint(note, [key]))


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / name).read_text(), newline="")))


async def test_an_export_says_who_was_attested_and_verifies(verifier, tmp_path: Path) -> None:
    node = await verifier.enrol()
    first = await verifier.attest(node)
    second = await verifier.attest(node)
    key = await exported(verifier, tmp_path / "out")
    found = checked(tmp_path / "out", key)
    assert found.findings == []
    assert found.results == 2
    attested = rows(tmp_path / "out", "attested.csv")
    assert [row["result"] for row in attested] == [first["jti"], second["jti"]]
    assert {(row["node"], row["operator"], row["status"]) for row in attested} == {
        (node.id, "acme", "affirming")
    }
    assert attested[0]["policies"].startswith("default@")
    assert node.model in attested[0]["references"]
    (enrolled,) = [row for row in rows(tmp_path / "out", "changes.csv") if row["kind"] == "node"]
    assert (enrolled["change"], enrolled["subject"], enrolled["details"].split(" ")[-1]) == (
        "enrolled", node.id, "operator=acme"
    )  # fmt: skip


async def test_a_result_that_was_deleted_is_counted(verifier, tmp_path: Path) -> None:
    node = await verifier.enrol()
    await verifier.attest(node)
    async with transaction(verifier.service.db) as tx:
        await tx.execute("DELETE FROM appraisals")
    key = await exported(verifier, tmp_path / "out")
    found = checked(tmp_path / "out", key)
    assert found.findings == []
    assert (found.results, found.index.without_token) == (0, 1)


async def fill(verifier: Any, count: int, *, step_ms: int) -> None:
    for number in range(count):
        async with transaction(verifier.service.db) as tx:
            members = {"change": "made", "kid": f"key-{number}", "use": "test"}
            await log.append(tx, verifier.clock.ms + number * step_ms, "key", members)


async def test_a_part_of_a_log_is_exported_whole(verifier, tmp_path: Path) -> None:
    """Of 40 hours one day: the entries beside it show that none of the day is missing."""
    await fill(verifier, 40, step_ms=HOUR)
    start = verifier.clock.ms
    key = await exported(verifier, tmp_path / "out", from_ms=start + 10 * HOUR, to_ms=start + 20 * HOUR)
    found = checked(tmp_path / "out", key)
    assert found.findings == []
    changes = rows(tmp_path / "out", "changes.csv")
    assert [row["subject"] for row in changes] == [f"key-{number}" for number in range(10, 20)]
    (part,) = found.index.logs
    assert part.last - part.first == 13
    assert part.size > 40


async def test_each_entry_can_be_proven_to_somebody_else(verifier, tmp_path: Path) -> None:
    await fill(verifier, 9, step_ms=HOUR)
    start = verifier.clock.ms
    key = await exported(verifier, tmp_path / "out", from_ms=start + 3 * HOUR, to_ms=start + 5 * HOUR)
    place = json.loads((tmp_path / "out" / "log-1.jsonl").read_text().splitlines()[1])["place"]
    proof = tmp_path / "proof"
    result = audit("proof", tmp_path / "out", place, "--out", proof, "--key", key)
    assert result.exit_code == 0, result.output
    parsed = LogProof.parse(proof.read_bytes())
    assert parsed.extra is not None
    assert json.loads(parsed.extra)["kid"] == "key-3"
    parsed.verify(parsed.extra, lambda note: open_checkpoint(note, [key]))
    assert audit("proof", tmp_path / "out", 0, "--out", proof, "--key", key).exit_code == 1


async def test_a_time_without_a_log_is_refused(verifier, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="before"):
        await exported(verifier, tmp_path / "out", from_ms=5, to_ms=5)
    assert not (tmp_path / "out").exists()


def audit(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["audit", *map(str, arguments)])


# An export made by hand, so that each thing in it can be changed.


class Pack:
    """An export of a log with 9 entries an hour apart, of which it has hours 3 to 6."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private = Ed25519PrivateKey.generate()
        self.signer = Signer("log.example/log", self.private)
        token = "a.eyJzdWJtb2RzIjp7fX0.c"
        digest = hashlib.sha256(token.encode()).hexdigest()
        self.entries = [
            canonical.encode(
                {"at": hour * HOUR, "expires": 1, "id": f"r{hour}", "kind": "result", "node": "n", "sha256": digest,
                 "status": "affirming", "policies": ["p"], "v": 1}
            )
            for hour in range(9)
        ]  # fmt: skip
        self.first, self.last = 2, 8
        self.results = "".join(f'{{"id":"r{hour}","token":"{token}"}}\n' for hour in range(3, 7)).encode()
        self.write()

    @property
    def key(self) -> VerifierKey:
        return self.signer.key

    def write(self, **changed: bytes) -> None:
        """Write it anew, signed; *changed* are files by their names with _ for what no name may have."""
        leaves = [tree.leaf_hash(entry) for entry in self.entries]
        root = tree.root_of(leaves)
        beside = [
            [level, index, tree.root_of(leaves[index << level : (index + 1) << level]).hex()]
            for level, index in nodes_beside(self.first, self.last, 9)
        ]
        shown = range(self.first, self.last)
        decoded = [decode_entry(1, place, self.entries[place]) for place in range(3, 7)]
        tokens = {f"r{hour}": "a.eyJzdWJtb2RzIjp7fX0.c" for hour in range(3, 7)}
        files = {
            "log-1.checkpoint": str(
                sign_checkpoint(Checkpoint(self.key.name, 9, root), self.signer)
            ).encode(),
            "log-1.range": msgspec.json.encode({"beside": beside, "first": self.first}),
            "log-1.jsonl": b"".join(b'{"entry":%b,"place":%d}\n' % (self.entries[at], at) for at in shown),
            "results.jsonl": self.results,
            **tables(decoded, tokens),
        }
        files |= {name.replace("__", "-").replace("_", "."): data for name, data in changed.items()}
        part = {"number": 1, "vkey": str(self.key), "size": 9, "first": self.first, "last": self.last}
        index = {
            "v": 1, "made_ms": 1, "from_ms": 3 * HOUR, "to_ms": 7 * HOUR, "logs": [part], "without_token": 0,
            "files": [msgspec.to_builtins(File.of(name, data)) for name, data in sorted(files.items())],
        }  # fmt: skip
        self.folder.mkdir(exist_ok=True)
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        signed = sign_index(msgspec.convert(index, Index), self.key.name, self.private)
        (self.folder / "index").write_bytes(signed)

    def findings(self) -> list[str]:
        return checked(self.folder, self.key).findings


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return Pack(tmp_path / "pack")


def test_the_pack_verifies(pack: Pack) -> None:
    found = checked(pack.folder, pack.key)
    assert found.findings == []
    assert (found.entries, found.results) == (6, 4)


@pytest.mark.parametrize(
    "name",
    ["log-1.checkpoint", "log-1.range", "log-1.jsonl", "results.jsonl", "attested.csv", "changes.csv"],
)
def test_a_changed_file_is_named(pack: Pack, name: str) -> None:
    path = pack.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert any(
        each.startswith(f"{name}: it is not the file that the index names") for each in pack.findings()
    )


def test_a_missing_file_is_named(pack: Pack) -> None:
    (pack.folder / "releases.csv").unlink()
    assert pack.findings() == ["releases.csv: releases.csv cannot be read: No such file or directory"]


def test_a_file_that_nobody_signed_is_named(pack: Pack) -> None:
    (pack.folder / "more.csv").write_text("a,b")
    assert pack.findings()[0].startswith("more.csv: the index does not name it")


def test_an_index_of_another_key_is_refused(pack: Pack) -> None:
    other = Signer("log.example/log", Ed25519PrivateKey.generate())
    with pytest.raises(AuditError, match="index"):
        checked(pack.folder, other.key)


def test_an_altered_index_is_refused(pack: Pack) -> None:
    path = pack.folder / "index"
    path.write_bytes(path.read_bytes().replace(b'"without_token":0', b'"without_token":1'))
    with pytest.raises(AuditError, match="does not verify"):
        pack.findings()


def test_a_checkpoint_is_no_index_and_an_index_no_checkpoint(pack: Pack) -> None:
    signer = Signer(f"{pack.key.name}/audit", pack.private)
    note = sign_checkpoint(Checkpoint(signer.key.name, 0, tree.EMPTY_ROOT), signer)
    with pytest.raises(AuditError):
        open_index(str(note).encode(), [pack.key])
    with pytest.raises(Exception, match="decimal"):
        open_checkpoint((pack.folder / "index").read_bytes(), [signer.key])


# Whoever has the log's key can sign any index; the log holds them to what they logged.


def test_an_entry_that_is_not_in_the_log_is_found(pack: Pack) -> None:
    """The operator signs the export anew, with another status, tables and all."""
    signed = (pack.folder / "log-1.checkpoint").read_bytes()
    pack.entries[4] = pack.entries[4].replace(b"affirming", b"warning")
    pack.write(log__1_checkpoint=signed)
    assert pack.findings()[0] == "log 1: the entries are not those that the checkpoint signs"


def test_an_entry_that_is_left_out_is_found(pack: Pack) -> None:
    lines = (pack.folder / "log-1.jsonl").read_bytes().splitlines(keepends=True)
    pack.write(log__1_jsonl=b"".join(lines[:2] + lines[3:]))
    assert "log 1: entry 4 is missing or out of order" in pack.findings()


def test_an_end_that_is_left_out_is_found(pack: Pack) -> None:
    """Fewer entries, proven: but they end before the time does, and the log goes on."""
    pack.last = 6
    pack.write()
    assert "log 1: entries from the end of the time may be missing" in pack.findings()


def test_a_beginning_that_is_left_out_is_found(pack: Pack) -> None:
    pack.first = 4
    pack.write()
    assert "log 1: entries from the beginning of the time may be missing" in pack.findings()


def test_hashes_that_are_not_needed_are_refused(pack: Pack) -> None:
    """Among them a hash over the entries themselves, which would be believed in their place."""
    given = json.loads((pack.folder / "log-1.range").read_text())
    given["beside"].append([0, 4, "00" * 32])
    pack.write(log__1_range=json.dumps(given).encode())
    assert "log 1: the hashes beside the entries are not those that are needed" in pack.findings()


def test_a_table_that_says_something_else_is_found(pack: Pack) -> None:
    table = (pack.folder / "attested.csv").read_bytes()
    pack.write(attested_csv=table.replace(b"affirming", b"warning"))
    assert pack.findings() == ["attested.csv: it does not follow from the entries and the results"]


def test_a_result_that_was_not_logged_is_found(pack: Pack) -> None:
    pack.write(results_jsonl=pack.results.replace(b"a.eyJ", b"b.eyJ", 1))
    assert pack.findings()[0].startswith(
        "results.jsonl: the log does not have the result 'r3' with this token"
    )


def test_a_result_that_is_left_out_is_found(pack: Pack) -> None:
    pack.write(results_jsonl=b"".join(pack.results.splitlines(keepends=True)[1:]))
    assert pack.findings()[0].startswith("results.jsonl: 1 results have no token")


def test_an_export_needs_its_quorum(pack: Pack, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    witness = "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2"
    policy.write_text(f"log {pack.key}\nwitness w {witness}\nquorum w\n")
    result = audit("verify", pack.folder, "--policy", policy)
    assert result.exit_code == 1
    assert "quorum w is not met" in result.output
    assert audit("verify", pack.folder, "--key", pack.key).exit_code == 0
    assert audit("verify", pack.folder).exit_code == 2


@pytest.mark.parametrize("moment", ["2026-13-01", "yesterday", "2026-11-30T12:00:00"])
def test_a_moment_is_a_day_or_has_a_time_zone(tmp_path: Path, moment: str) -> None:
    result = audit("export", tmp_path / "out", "--home", tmp_path, "--from", moment, "--to", "2026-12-01")
    assert result.exit_code == 2


def test_a_verifier_without_a_log_exports_nothing(tmp_path: Path) -> None:
    result = audit(
        "export", tmp_path / "out", "--home", tmp_path, "--from", "2026-11-01", "--to", "2026-12-01"
    )
    assert result.exit_code == 1
    assert "log-key.pem" in result.output


def test_no_cell_is_a_formula() -> None:
    """The name of an operator is its own choice, and auditors open tables in spreadsheets."""
    entry = Entry(1, 0, {"kind": "node", "change": "enrolled", "node": "=HYPERLINK(1)", "actor": "@SUM(1)"})
    (row,) = csv.DictReader(io.StringIO(tables([entry], {})["changes.csv"].decode(), newline=""))
    assert (row["subject"], row["actor"]) == ("'=HYPERLINK(1)", "'@SUM(1)")


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(), st.lists(st.text()), st.none()))
)
def test_any_entry_has_a_row(members: dict[str, Any]) -> None:
    for kind in ("result", "revocation", "policy", "incident", "release", "receipts"):
        made = tables([Entry(1, 0, {**members, "kind": kind})], {})
        assert all(data.decode() for data in made.values())


@given(st.text())
def test_any_token_has_an_operator_or_none(token: str) -> None:
    assert operator_of(token) == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_an_index_or_refused(data: bytes) -> None:
    key = Signer("log.example/log", Ed25519PrivateKey.from_private_bytes(bytes(32))).key
    with pytest.raises(AuditError):
        open_index(data, [key])


@given(st.binary(max_size=60))
def test_any_bytes_are_an_entry_or_refused(data: bytes) -> None:
    with suppress(AuditError):
        assert isinstance(decode_entry(1, 0, data).members, dict)


@given(st.integers(1, 80), st.data())
def test_a_range_gives_the_root_and_every_proof(size: int, data: st.DataObject) -> None:
    leaves = [index.to_bytes(2, "big") for index in range(size)]
    hashes = [tree.leaf_hash(leaf) for leaf in leaves]
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first + 1, size))
    beside = {
        (level, index): tree.root_of(hashes[index << level : (index + 1) << level])
        for level, index in nodes_beside(first, last, size)
    }
    nodes = RangeNodes(first, leaves[first:last], beside)
    root = tree.root_of(hashes)
    assert tree.root_from_nodes(size, nodes) == root
    place = data.draw(st.integers(first, last - 1))
    tree.verify_inclusion(hashes[place], place, size, tree.inclusion_proof(place, size, nodes), root)
    if beside:
        few = dict(beside)
        few.pop(data.draw(st.sampled_from(sorted(beside))))
        with pytest.raises(LogProofError):
            tree.root_from_nodes(size, RangeNodes(first, leaves[first:last], few))


def test_columns_are_written_as_rfc_4180_has_them() -> None:
    assert to_csv(["a", "b"], [{"a": 'x"y', "b": "1,2"}]) == b'a,b\r\n"x""y","1,2"\r\n'
