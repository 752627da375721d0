"""Imports change nothing in force without being asked, states can be undone, and the history says who did what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog.testing
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attester.cose import PrivateKey
from fixtures.simulator import MODEL, SimulatedNode
from tests.conftest import seed
from tests.integration.lifecycle import post, step
from tests.integration.maintenance import Ended, touchstone
from tests.integration.test_reference_values import (
    SUBMOD,
    VALUES,
    WHY,
    activate,
    add,
    bring,
    document,
    signed,
)
from verifier.references import corim, profile
from verifier.references.measured import Document, DocumentFile
from verifier.service.app import open_service
from verifier.store import reference_sources

STORES = ("sqlite", "postgres")
CORIM = "application/rim+cose"
OTHER = Document(model="acme/other", files=(DocumentFile("f.safetensors", 3, sha256="ab" * 32),))


@pytest.fixture
def newer(tmp_path: Path, model_folder: Path) -> Path:
    """The next release of the model: another configuration, one more file."""
    folder = tmp_path / "newer"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_text('{"layers": 2}')
    (folder / "notes.txt").write_text("2")
    return folder


async def in_force(verifier) -> dict[str, Any]:
    (row,) = await verifier.rows(
        "SELECT digest, state, source, signer, not_before, not_after, added_ms FROM reference_values"
        " WHERE state = 'active' AND model = '" + MODEL + "'"
    )
    return row


async def retire(verifier, digest: str) -> int:
    return (await post(verifier, f"{VALUES}/{digest}/retire", WHY))[0]


async def restore(verifier, digest: str, why: dict[str, str] = WHY) -> tuple[int, Any]:
    return await post(verifier, f"{VALUES}/{digest}/restore", why)


async def run(verifier, *arguments: str | Path) -> Ended:
    return await touchstone("reference", *arguments, "--home", verifier.home.path)


# Import never changes what is in force.


@pytest.mark.parametrize(
    "validity", [{}, {"not_after": 1}, {"not_after": 1 << 40}], ids=["as it is", "soon", "later"]
)
async def test_a_corim_of_the_value_in_force_changes_neither_it_nor_its_dates(verifier, validity) -> None:
    """Import without --activate never changes the value in force: its source, signer and end stay as they are."""
    before = await in_force(verifier)
    changed = {name: verifier.clock.seconds + value for name, value in validity.items()}
    data = signed(verifier, document(verifier.model_folder), **changed)
    status, body = await add(verifier, data, CORIM)
    assert await in_force(verifier) == before
    (said,) = body["reference_values"]
    assert (status, said["state"], said["source"]) == (201, "active", 2)
    assert said["counts"] == {"source": "measured", "signer": None, "not_before": None, "not_after": None}
    verifier.clock.forward(2)
    assert (await verifier.attest(await verifier.enrol()))["ear_status"] == "affirming"


async def test_another_source_counts_once_somebody_asks_for_it(verifier) -> None:
    """By activating the value again, and each of its sources by its number; nothing else of it changes."""
    before = await in_force(verifier)
    await add(verifier, signed(verifier, document(verifier.model_folder)), CORIM)
    await activate(verifier, before["digest"])
    now = await in_force(verifier)
    assert now == {
        **before,
        "source": "corim",
        "signer": "home",
        "not_before": verifier.clock.seconds - 10,
        "not_after": verifier.clock.seconds + 3600,
    }
    assert (await post(verifier, f"{VALUES}/{before['digest']}/activate", WHY))[0] == 422
    assert (await post(verifier, f"{VALUES}/{before['digest']}/activate", {**WHY, "source": 3}))[0] == 422
    await activate(verifier, before["digest"], source=1)
    assert await in_force(verifier) == before


async def test_an_import_that_asks_for_it_lets_its_own_source_count(verifier) -> None:
    """A CoRIM that was signed again, with a later end."""
    value = document(verifier.model_folder)
    for later in (10, 20):
        end = verifier.clock.seconds + later
        await add(verifier, signed(verifier, value, not_after=end), CORIM, activate="1")
        assert (await in_force(verifier))["not_after"] == end


@pytest.mark.parametrize("kind", ["corim", "yaml", "json"])
async def test_a_further_value_waits_whatever_it_is_made_of(verifier, newer: Path, kind: str) -> None:
    """The answer names the value in force and says where the two differ, file by file."""
    before, value = await in_force(verifier), document(newer)
    match kind:
        case "corim":
            status, body = await add(verifier, signed(verifier, value), CORIM)
        case "json":
            status, body = await add(verifier, msgspec.json.encode(value))
        case _:
            files = {file.name: {"sha256": file.sha256, "size": file.size} for file in value.files}
            text = f"model: {MODEL}\nfiles: {json.dumps(files)}\n"
            status, body = await add(verifier, text.encode(), "application/yaml")
    (said,) = body["reference_values"]
    assert (status, said["state"], said["in_force"]) == (201, "candidate", before["digest"])
    assert (said["differs"]["differs"], said["differs"]["only_other"]) == (["config.json"], ["notes.txt"])
    assert await in_force(verifier) == before


async def test_the_first_value_waits_if_a_corim_has_named_its_model(verifier) -> None:
    """A trusted signer decides what its models are, and not which are served here."""
    status, body = await add(verifier, signed(verifier, OTHER), CORIM)
    assert (status, body["reference_values"][0]["state"]) == (201, "candidate")
    assert (await verifier.get(f"{VALUES}/acme/other"))[0] == 404
    status, body = await add(verifier, signed(verifier, OTHER), CORIM, activate="1")
    assert body["reference_values"][0]["state"] == "active"


async def test_a_value_of_ones_own_is_in_force_at_once_if_the_model_never_had_one(verifier) -> None:
    """Also beside one that waits; not after somebody withdrew one."""
    await add(verifier, signed(verifier, OTHER), CORIM)
    own = msgspec.structs.replace(OTHER, files=(DocumentFile("f.safetensors", 3, sha256="cd" * 32),))
    _, body = await add(verifier, msgspec.json.encode(own))
    assert body["reference_values"][0]["state"] == "active"
    assert await retire(verifier, own.digest) == 204
    third = msgspec.structs.replace(OTHER, files=(DocumentFile("f.safetensors", 3, sha256="ef" * 32),))
    _, body = await add(verifier, msgspec.json.encode(third))
    assert body["reference_values"][0]["state"] == "candidate"


@pytest.mark.parametrize("kind", ["unknown profile", "two, one retired"])
async def test_a_corim_is_taken_whole_or_not_at_all(verifier, newer: Path, kind: str) -> None:
    """Of an unknown profile, named; and with one value that cannot come back. Nothing is left of either."""
    first, second = document(verifier.model_folder), document(newer)
    if kind == "unknown profile":
        tags = profile.from_document(OTHER).tags
        made = corim.Corim("id", tags, "http://other.example/profile")
        expected = "http://other.example/profile"
    else:
        assert await retire(verifier, first.digest) == 204
        made = corim.Corim(
            "id", (*profile.from_document(OTHER).tags, *profile.from_document(first).tags), profile.PROFILE
        )
        expected = "was retired by kim"
    data = corim.sign(made, verifier.home.author_key(), signer="us")
    before = await verifier.rows("SELECT * FROM changes")
    status, body = await add(verifier, data, CORIM, activate="1")
    assert (status, body["type"].rpartition("#")[2]) == (422, "reference.unusable")
    assert expected in body["detail"]
    assert await verifier.rows("SELECT * FROM changes") == before
    assert await verifier.rows("SELECT * FROM reference_values WHERE model = 'acme/other'") == []
    assert second.digest


async def test_a_dry_run_says_the_same_and_changes_nothing(verifier, newer: Path) -> None:
    """Also with activate; every table is as it was."""
    data = signed(verifier, document(newer))
    tables = ("reference_values", "reference_sources", "changes", "events")
    before = [await verifier.rows(f"SELECT * FROM {table}") for table in tables]
    for more in ({}, {"activate": "1"}):
        status, body = await add(verifier, data, CORIM, dry_run="1", **more)
        assert (status, body["dry_run"]) == (200, True)
        assert body["reference_values"][0]["state"] == ("active" if more else "candidate")
    assert [await verifier.rows(f"SELECT * FROM {table}") for table in tables] == before


BAD_DOCUMENTS = {
    "a path out of the model": {"name": "../f", "sha256": "ab" * 32},
    "an absolute path": {"name": "/f", "sha256": "ab" * 32},
    "a file that no manifest lists": {"name": ".git/config", "sha256": "ab" * 32},
    "a negative size": {"name": "f", "size": -1, "sha256": "ab" * 32},
    "no digest": {"name": "f"},
    "an unknown key": {"name": "f", "sha256": "ab" * 32, "sha1": "x"},
    "a digest in capitals": {"name": "f", "sha256": "AB" * 32},
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
async def test_add_checks_what_import_yaml_checks(verifier, case: str) -> None:
    """A value that no manifest could equal is refused, whatever it is written in."""
    body = json.dumps({"model": "acme/other", "files": [BAD_DOCUMENTS[case]]}).encode()
    status, answer = await add(verifier, body)
    assert (status, answer["type"].rpartition("#")[2]) == (422, "reference.unusable")
    assert await verifier.rows("SELECT * FROM reference_values WHERE model = 'acme/other'") == []


# States can be undone.


async def test_retire_can_be_undone(verifier) -> None:
    """The value waits then: it comes into force only when somebody activates it, and passes as before."""
    digest = (await in_force(verifier))["digest"]
    node = await verifier.enrol()
    assert await retire(verifier, digest) == 204
    assert (await verifier.attest(node))["submods"][SUBMOD]["ear_trustworthiness_vector"]["file-system"] == 1
    assert (await restore(verifier, digest))[0] == 204
    (row,) = await verifier.rows("SELECT state FROM reference_values")
    assert row["state"] == "candidate"
    assert (await verifier.attest(node))["submods"][SUBMOD]["ear_trustworthiness_vector"]["file-system"] == 1
    # Measured again it waits still: it was withdrawn once.
    _, body = await add(verifier, msgspec.json.encode(document(verifier.model_folder)))
    assert body["reference_values"][0]["state"] == "candidate"
    await activate(verifier, digest)
    assert (await verifier.attest(node))["ear_status"] == "affirming"


async def test_a_retired_value_says_who_retired_it_and_how_it_comes_back(verifier) -> None:
    """Measured again or activated: not by itself."""
    digest = (await in_force(verifier))["digest"]
    await retire(verifier, digest)
    for status, body in (
        await add(verifier, msgspec.json.encode(document(verifier.model_folder))),
        await post(verifier, f"{VALUES}/{digest}/activate", WHY),
    ):
        assert status == 422
        assert "was retired by kim" in body["detail"]
        assert "because" in body["detail"]
        assert f"touchstone reference restore {digest[:12]}" in body["detail"]


async def test_only_a_retired_value_is_restored_and_only_with_a_reason(verifier) -> None:
    """An active one and an unknown one are refused; nothing changes."""
    digest = (await in_force(verifier))["digest"]
    before = await verifier.rows("SELECT * FROM changes")
    assert (await restore(verifier, digest))[0] == 422
    assert (await restore(verifier, "0" * 64))[0] == 422
    assert await verifier.rows("SELECT * FROM changes") == before
    await retire(verifier, digest)
    assert (await restore(verifier, digest, {"reason": " "}))[0] == 400


async def test_activate_is_undone_by_activating_the_former_value(verifier, newer: Path) -> None:
    """With its own source and dates as they were."""
    before = await in_force(verifier)
    await add(verifier, signed(verifier, document(newer)), CORIM)
    await activate(verifier, document(newer).digest)
    await activate(verifier, before["digest"])
    assert {**await in_force(verifier), "added_ms": 0} == {**before, "added_ms": 0}


async def test_a_retired_value_that_the_policy_brings_is_not_restored_under_it(verifier, newer: Path) -> None:
    """It would come into force by itself; once the policy is gone it waits like any other."""
    digest = document(newer).digest
    bundle = await bring(verifier, newer)
    await step(verifier, "promote", bundle)
    await retire(verifier, digest)
    status, body = await restore(verifier, digest)
    assert (status, "would put it in force at once" in body["detail"]) == (422, True)
    assert (await post(verifier, "/api/v1/policies/rollback", WHY))[0] == 200
    assert (await restore(verifier, digest))[0] == 204
    node = await verifier.enrol(SimulatedNode(newer))
    assert (await verifier.attest(node))["ear_status"] != "affirming"


async def test_the_history_says_who_did_what_and_why(verifier, newer: Path) -> None:
    """Every step, the newest first, of all models or of one."""
    digest = document(newer).digest
    await add(verifier, signed(verifier, document(newer)), CORIM)
    await activate(verifier, digest)
    await add(verifier, msgspec.json.encode(document(newer)))
    await activate(verifier, digest)
    await retire(verifier, digest)
    await restore(verifier, digest)
    await add(verifier, msgspec.json.encode(OTHER))
    _, body = await verifier.get(f"{VALUES}/history?model={MODEL}")
    taken = [change for change in body["changes"] if change["actor"] == "kim"]
    assert [(change["action"], change["digest"], change["reason"]) for change in taken] == [
        (action, digest, "because") for action in ("restore", "retire", "adopt", "source", "activate", "add")
    ]
    assert {change["model"] for change in body["changes"]} == {MODEL}
    _, body = await verifier.get(f"{VALUES}/history")
    assert {change["model"] for change in body["changes"]} == {MODEL, "acme/other"}


async def test_a_value_of_an_earlier_version_keeps_its_source(verifier) -> None:
    """Processes of the earlier schema store no sources: the value's own is the first."""
    async with verifier.service.db.read() as tx:
        assert await tx.all("SELECT * FROM reference_sources") != []
    await verifier.service.db.write(lambda tx: tx.execute("DELETE FROM reference_sources"))
    digest = (await in_force(verifier))["digest"]
    await add(verifier, signed(verifier, document(verifier.model_folder)), CORIM)
    async with verifier.service.db.read() as tx:
        (value,) = await tx.all("SELECT * FROM reference_values")
        known = await reference_sources.every(tx, value)
    assert [(each["digest"], each["number"], each["source"]) for each in known] == [
        (digest, 1, "measured"), (digest, 2, "corim"),
    ]  # fmt: skip


# Commands.


async def test_commands_say_what_happened_and_what_to_do_next(verifier, newer: Path, tmp_path: Path) -> None:
    """From a dry look to undoing it again, each step names the next command."""
    before, value = await in_force(verifier), document(newer)
    file = tmp_path / "newer.corim"
    file.write_bytes(corim.sign(profile.from_document(value), verifier.home.author_key(), signer="us"))
    done = await run(verifier, "import-corim", file, "--dry-run")
    assert done.status == 0, done.said
    for words in ("would be candidate", "differs            config.json", "only in this one   notes.txt",
                  "A dry run: nothing was changed."):  # fmt: skip
        assert words in done.said
    done = await run(verifier, "import-corim", file)
    assert (done.status, "Missing option '--reason'" in done.said) == (2, True)
    done = await run(verifier, "import-corim", file, "--reason", "the new release")
    assert "Another value stays in force for this model, unchanged" in done.said
    assert f"reference rollout start {MODEL} --to {value.digest[:12]}" in done.said
    assert f"reference activate {value.digest[:12]}" in done.said
    done = await run(verifier, "activate", value.digest, "--reason", "go")
    assert f"is in force for {MODEL}, as corim signed by home" in done.said
    assert f"reference activate {before['digest'][:12]}" in done.said
    done = await run(verifier, "retire", value.digest[:12], "--reason", "broken")
    assert f"reference restore {value.digest[:12]}" in done.said
    done = await run(verifier, "measure", newer, "--model", MODEL, "--dry-run")
    assert f"same files as {value.digest[:12]}, which was retired" in done.said
    done = await run(verifier, "measure", newer, "--model", MODEL, "--digest", "sha256")
    assert (done.status, "was retired by os:" in done.said, "(broken)" in done.said) == (1, True, True)
    done = await run(verifier, "restore", value.digest[:12], "--reason", "mended")
    assert "is a candidate again. It is not in force." in done.said
    done = await run(verifier, "history", MODEL)
    said = [line.split("  ", 1)[1].split(" by os:")[0].split() for line in done.said.splitlines()]
    assert said[:4] == [[what, value.digest[:12]] for what in ("restore", "retire", "activate", "add")]
    assert [line.rpartition(": ")[2] for line in done.said.splitlines()][:4] == [
        "mended", "broken", "go", "the new release",
    ]  # fmt: skip
    done = await run(verifier, "list")
    assert "restore" in done.said
    assert "mended" in done.said
    shown = json.loads((await run(verifier, "show", value.digest[:12])).said)
    assert [each["source"] for each in shown["sources"]] == ["corim"]
    assert [each["action"] for each in shown["changes"]] == ["restore", "retire", "activate", "add"]


async def test_a_further_source_is_said_to_wait(verifier, tmp_path: Path) -> None:
    """The command names what counts, what was added, and how to change it."""
    digest = (await in_force(verifier))["digest"]
    made = profile.from_document(document(verifier.model_folder))
    file = tmp_path / "same.corim"
    file.write_bytes(corim.sign(made, verifier.home.author_key(), signer="us", not_after=1 << 40))
    done = await run(verifier, "import-corim", file, "--reason", "signed too")
    assert "The value is in force already, as measured, and that stays as it is." in done.said
    assert f"reference activate {digest[:12]} --source 2" in done.said
    assert f"{digest[:12]}  has 2 sources" in (await run(verifier, "list")).said


# Anchors.


def pem(key: Any) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


async def test_an_anchor_is_noticed_without_a_restart(verifier) -> None:
    """One that is put into the folder counts for the next import, and one that is taken away does not."""
    key = PrivateKey.generate()
    data = corim.sign(profile.from_document(OTHER), key, signer="them")
    assert (await add(verifier, data, CORIM))[0] == 422
    anchor = verifier.home.path / "anchors" / "them.pem"
    anchor.write_bytes(pem(key.native.public_key()))
    assert (await add(verifier, data, CORIM))[0] == 201
    anchor.unlink()
    assert (await add(verifier, data, CORIM))[0] == 422


async def test_a_private_key_that_is_named_is_used_with_a_warning(verifier, tmp_path: Path) -> None:
    """Its public half, for this import; a file with nothing that can be used ends it."""
    key = ec.generate_private_key(ec.SECP256R1())
    path, file = tmp_path / "mine.pem", tmp_path / "value.corim"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    file.write_bytes(corim.sign(profile.from_document(OTHER), PrivateKey(key), signer="them"))
    done = await run(verifier, "import-corim", file, "--anchor", path, "--reason", "x")
    assert (done.status, "has a PRIVATE key. Only its public half" in done.said) == (0, True)
    assert "signed by mine" in done.said
    path.write_text("no key")
    done = await run(verifier, "import-corim", file, "--anchor", path, "--reason", "x")
    assert (done.status, "mine.pem must be a public key in PEM or JWK, or a certificate" in done.said) == (
        1,
        True,
    )


async def test_a_bad_anchor_is_named_and_the_others_count(verifier, tmp_path: Path) -> None:
    """In the list, in the status, and by the import; beside a good P-384 key."""
    folder = verifier.home.path / "anchors"
    (folder / "bad.pem").write_text("no key")
    (folder / "p384.pem").write_bytes(pem(ec.generate_private_key(ec.SECP384R1()).public_key()))
    done = await run(verifier, "anchors")
    assert "P-384" in done.said
    assert "NOT trusted: bad.pem: it is neither a public key nor a certificate" in done.said
    listed = json.loads((await run(verifier, "anchors", "--json")).said)
    assert {(each["file"], each["kind"], len(each["kid"] or "")) for each in listed} == {
        ("home.pem", "P-256", 64), ("p384.pem", "P-384", 64), ("bad.pem", None, 0),
    }  # fmt: skip
    done = await touchstone("verifier", "status", "--home", verifier.home.path)
    assert "NOT trusted" in done.said
    assert "bad.pem" in done.said
    file = tmp_path / "value.corim"
    file.write_bytes(corim.sign(profile.from_document(OTHER), verifier.home.author_key(), signer="us"))
    done = await run(verifier, "import-corim", file, "--reason", "x")
    assert (done.status, "bad.pem is not trusted" in done.said) == (0, True)


async def test_a_service_starts_with_an_anchor_that_cannot_be_used(verifier_home) -> None:
    """A bad anchor is named in the log, and no P-384 file stops `verifier serve`."""
    await seed(verifier_home, 1_800_000_000_000)
    folder = verifier_home.path / "anchors"
    (folder / "p384.pem").write_bytes(pem(ec.generate_private_key(ec.SECP384R1()).public_key()))
    (folder / "curve.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256K1()).public_key()))
    (folder / "secret.jwk").write_text('{"kty": "EC", "d": "x"}')
    with structlog.testing.capture_logs() as logged:
        async with open_service(verifier_home, verifier_home.config()) as service:
            assert set(service.anchors()) == set(service.anchors()) == {"home", "p384"}
    logged = [each for each in logged if "trust anchor" in each["event"]]
    named = {Path(each["file"]).name: each["why"] for each in logged}
    assert len(logged) == 2
    assert named.keys() == {"curve.pem", "secret.jwk"}
    assert "secp256k1" in named["curve.pem"]
    assert "PRIVATE key" in named["secret.jwk"]
