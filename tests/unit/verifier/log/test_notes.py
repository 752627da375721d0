"""Signed notes, checkpoints and cosignatures: vectors of others, and what must not verify."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from verifier.errors import LogError, LogFormatError, LogSignatureError
from verifier.log.checkpoints import Checkpoint, open_checkpoint, read_signed, sign_checkpoint
from verifier.log.cosignatures import cosignatures, parse_lines, verify_answer
from verifier.log.notes import (
    COSIGNATURE_V1,
    MAX_NOTE,
    Note,
    Signature,
    Signer,
    VerifierKey,
    decode_base64,
    decode_number,
    sign_note,
    verified,
)
from verifier.log.tree import EMPTY_ROOT

# golang.org/x/mod, sumdb/note/note_test.go (BSD-3-Clause).
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = decode_base64("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER_LINE = "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
ENOCH_LINE = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
# A checkpoint of a log of certificates as four public witnesses cosigned it, with their keys.
ARCHE = (
    "arche2025h1.staging.ct.transparency.dev\n1432088532\nU7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=\n\n"
    "— arche2025h1.staging.ct.transparency.dev zTM8sQAAAZ5W0WdjBAMARjBEAiBjW5IQf9pvsYLfQFX6hoGREPMHbdQ3urbllzalAp"
    "kptQIgIpwtEroeW2BXaHAI4kJXFbon5Ch9MNL5zRNZ55lvGt0=\n"
    "— arche2025h1.staging.ct.transparency.dev ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW"
    "9g8Ei59RA23oHP7Ry1k3ZFWwQ=\n"
    "— transparency.dev/DEV:witness-little-garden 2AQqhwAAAABqEiEgzgFIqqhbUoDwjMWE6UP8nd8/KYTzwZ2rhIgcqoXHAwVkjZr"
    "4AscylP3v7sEodkRAErumC2q44vdgJY096st5BQ==\n"
    "— witness1.smartit.nu/witness1 pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtm"
    "JbqmNWVuE0tgh0XwzdZsDsUAQ==\n"
    "— remora.n621.de 2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBx"
    "tqB0DrAWfBw==\n"
    "— witness.stagemole.eu Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7"
    "cUiOvKFYe/TmN9DAg==\n"
)
ARCHE_KEY = "arche2025h1.staging.ct.transparency.dev+ba2f06c0+AU0vHmlGCS/PdN8b2OaGmKprLI8HKM+dJ472xgFYh15f"
WITNESSES = (
    "transparency.dev/DEV:witness-little-garden+d8042a87+BCtusOxINQNUTN5Oj8HObRkh2yHf/MwYaGX4CPdiVEPM",
    "witness1.smartit.nu/witness1+a48c820f+BPSFWg9G6KPiO7QPryYO5Xq4oYJJ+kAvLKLSimDhoxMO",
    "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
    "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv",
)
COSIGNED_S = 1_779_573_024

LOG = Signer("log.example/log", Ed25519PrivateKey.from_private_bytes(bytes(32)))
WITNESS = Signer("witness.example/w", Ed25519PrivateKey.from_private_bytes(b"w" * 32), COSIGNATURE_V1)
CHECKPOINT = Checkpoint("log.example/log", 7, b"\x07" * 32)
NOTE = sign_checkpoint(CHECKPOINT, LOG)
OTHER = WITNESS.sign("other\n", 5)


def key(text: str) -> VerifierKey:
    return VerifierKey.parse(text)


def opened(note: str, *keys: str) -> set[str]:
    return {each.name for each in verified(Note.parse(note.encode()), [key(each) for each in keys])}


def test_a_note_of_go_verifies_and_is_made_again() -> None:
    signer = Signer("PeterNeumann", Ed25519PrivateKey.from_private_bytes(PETER_SEED))
    assert str(signer.key) == PETER
    assert str(sign_note(TEXT, [signer])) == f"{TEXT}\n{PETER_LINE}"
    assert opened(f"{TEXT}\n{PETER_LINE}{ENOCH_LINE}", PETER) == {"PeterNeumann"}
    assert opened(f"{TEXT}\n{PETER_LINE}{ENOCH_LINE}", PETER, ENOCH) == {"PeterNeumann", "EnochRoot"}


def test_unknown_signatures_are_ignored() -> None:
    assert opened(f"{TEXT}\n{PETER_LINE}{ENOCH_LINE}") == set()
    broken = ENOCH_LINE[:60] + "ABCD" + ENOCH_LINE[60:]
    assert opened(f"{TEXT}\n{PETER_LINE}{PETER_LINE}{broken}", PETER) == {"PeterNeumann"}


def test_a_signature_of_a_known_key_that_fails_refuses_the_note() -> None:
    with pytest.raises(LogSignatureError, match="PeterNeumann"):
        opened(f"{TEXT}\n{PETER_LINE[:60]}ABCD{PETER_LINE[60:]}", PETER)


@pytest.mark.parametrize(
    "note",
    [
        TEXT,
        TEXT + "\n",
        f"{TEXT}\n{PETER_LINE[:-1]}",
        f"\x01{TEXT}\n{PETER_LINE}",
        f"{TEXT}\r\n{PETER_LINE}",
        f"{TEXT}\n— Bad Name {PETER_LINE.split(' ')[2]}",
        f"{TEXT}\n— a+b {PETER_LINE.split(' ')[2]}",
        f"{TEXT}\n—  {PETER_LINE.split(' ')[2]}",
        f"{TEXT}\n— a\u00a0b {PETER_LINE.split(' ')[2]}",
        f"{TEXT}\n- PeterNeumann {PETER_LINE.split(' ')[2]}",
        f"{TEXT}\n{PETER_LINE}Unexpected line.\n",
        f"{TEXT}\n{PETER_LINE}\n",
        f"{TEXT}\n— PeterNeumann x08gow==\n",
        f"{TEXT}\n— PeterNeumann !!!!\n",
        f"{TEXT}\n— PeterNeumann x08go/Z=\n",
        f"{TEXT}\n{PETER_LINE * 101}",
        "x" * MAX_NOTE + f"\n\n{PETER_LINE}",
        "",
        "\n",
        "\n\n",
    ],
)
def test_a_malformed_note_is_refused(note: str) -> None:
    with pytest.raises(LogFormatError):
        Note.parse(note.encode())


def test_a_note_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(LogFormatError):
        Note.parse(b"\xff" + f"{TEXT}\n{PETER_LINE}".encode())


@pytest.mark.parametrize("at", range(len(PETER)))
def test_a_mistyped_key_is_refused(at: int) -> None:
    """As in Go's test: each character in turn, and each part of it."""
    with pytest.raises(LogFormatError):
        key(PETER[:at] + chr(ord(PETER[at]) + 1) + PETER[at + 1 :])
    with pytest.raises(LogFormatError):
        key(PETER[:at])


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER + "\n",
        " " + PETER,
    ],
)
def test_a_key_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(LogFormatError):
        key(text)


@given(st.text(max_size=200))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    with suppress(LogFormatError):
        assert str(key(text)) == text


@given(st.one_of(st.binary(max_size=300), st.text(alphabet="—\n aA=+/019", max_size=80).map(str.encode)))
def test_any_bytes_are_a_note_or_refused(data: bytes) -> None:
    with suppress(LogFormatError):
        assert str(Note.parse(data)).encode() == data


@given(st.text(alphabet="\nab01=/+é", max_size=60))
def test_any_text_is_a_checkpoint_or_refused(text: str) -> None:
    with suppress(LogFormatError):
        assert str(Checkpoint.parse(text)) == text


@given(st.binary(max_size=120))
def test_any_answer_of_a_witness_is_read_or_refused(data: bytes) -> None:
    with suppress(LogFormatError):
        assert parse_lines(data)


@given(st.text(alphabet="0123456789+-_ ١", max_size=22))
def test_any_text_is_a_number_or_refused(text: str) -> None:
    with suppress(LogFormatError):
        assert str(decode_number(text)) == text


def test_a_checkpoint_of_others_verifies_with_its_witnesses() -> None:
    signed = read_signed(ARCHE.encode(), [ARCHE_KEY])
    assert signed.checkpoint.size == 1_432_088_532
    assert str(signed.note) == ARCHE
    assert str(signed.checkpoint) == signed.note.text
    keys = [key(each) for each in WITNESSES]
    assert cosignatures(signed.note, keys) == dict.fromkeys(keys, COSIGNED_S)


@pytest.mark.parametrize("of", [0, 1])
def test_an_edited_checkpoint_of_others_is_refused(of: int) -> None:
    """By its log's key and by its witnesses'."""
    note = Note.parse(ARCHE.replace("1432088532", "1432088533").encode())
    with pytest.raises(LogSignatureError):
        open_checkpoint(note, [key(ARCHE_KEY)]) if of == 0 else cosignatures(note, [key(WITNESSES[2])])


def test_a_checkpoint_is_signed_and_opened() -> None:
    signed = open_checkpoint(str(NOTE).encode(), [LOG.key])
    assert signed.checkpoint == CHECKPOINT
    assert signed.key == LOG.key


def test_a_checkpoint_of_another_key_is_refused() -> None:
    other = Signer(LOG.key.name, Ed25519PrivateKey.generate())
    with pytest.raises(LogSignatureError, match="trusted"):
        open_checkpoint(NOTE, [other.key])


def test_a_checkpoint_of_another_origin_is_refused() -> None:
    """The log's key signed it, for an origin that is not the key's."""
    note = sign_note(str(Checkpoint("other.example", 7, b"\x07" * 32)), [LOG])
    with pytest.raises(LogSignatureError, match=r"other\.example"):
        open_checkpoint(note, [LOG.key])


def test_a_witness_does_not_sign_for_a_log() -> None:
    """Even if its key is among those of logs, and the origin is its name."""
    note = Note(str(Checkpoint(WITNESS.key.name, 7, b"\x07" * 32)), ())
    note = note.with_signatures([WITNESS.sign(note.text, 1)])
    with pytest.raises(LogSignatureError):
        open_checkpoint(note, [WITNESS.key])


@pytest.mark.parametrize(
    "text",
    [
        "log\n7\n",
        "log\n07\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "log\n+7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "log\n-7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "log\n9223372036854775808\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "log\n7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw==\n",
        "log\n7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwd=\n",
        "\n7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
        "log\n7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\n",
        "log\n7\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        "log\n0\nBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n",
    ],
)
def test_a_malformed_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(LogFormatError):
        Checkpoint.parse(text)


def test_a_checkpoint_may_have_more_lines_and_may_be_empty() -> None:
    text = str(Checkpoint("log", 0, EMPTY_ROOT, ("more",)))
    assert Checkpoint.parse(text).extension == ("more",)


def test_no_checkpoint_is_signed_that_says_something_else() -> None:
    with pytest.raises(LogFormatError):
        sign_checkpoint(Checkpoint("log.example/log\n9", 7, b"\x07" * 32), LOG)


def cosigned(at_s: int = 1_700_000_000) -> Note:
    return NOTE.with_signatures([WITNESS.sign(NOTE.text, at_s)])


def test_a_cosignature_has_its_time() -> None:
    assert cosignatures(cosigned(), [WITNESS.key]) == {WITNESS.key: 1_700_000_000}
    assert cosignatures(NOTE, [WITNESS.key]) == {}


def test_a_cosignature_of_another_checkpoint_is_refused() -> None:
    """One that the witness gave for an earlier size, pasted under this one."""
    other = sign_checkpoint(Checkpoint(CHECKPOINT.origin, 6, b"\x06" * 32), LOG)
    replayed = NOTE.with_signatures([WITNESS.sign(other.text, 1_700_000_000)])
    with pytest.raises(LogSignatureError):
        cosignatures(replayed, [WITNESS.key])


def test_a_cosignature_with_another_time_is_refused() -> None:
    line = cosigned().signatures[-1]
    later = (1_800_000_000).to_bytes(8, "big") + line.value[8:]
    edited = NOTE.with_signatures([Signature(line.name, line.key_id, later)])
    with pytest.raises(LogSignatureError):
        cosignatures(edited, [WITNESS.key])


def test_a_cosignature_from_the_future_is_refused() -> None:
    with pytest.raises(LogSignatureError, match="future"):
        cosignatures(cosigned(), [WITNESS.key], not_after_s=1_699_999_999)
    assert cosignatures(cosigned(), [WITNESS.key], not_after_s=1_700_000_000)


@pytest.mark.parametrize("value", [b"", b"\0" * 71, b"\xff" * 72, b"\0" * 73])
def test_a_cosignature_of_another_form_is_refused(value: bytes) -> None:
    edited = NOTE.with_signatures([Signature(WITNESS.key.name, WITNESS.key.key_id, value or b"\0")])
    with pytest.raises(LogSignatureError):
        cosignatures(edited, [WITNESS.key])


def test_the_signature_of_a_log_is_no_cosignature() -> None:
    """A key that signs as both kinds: the kinds do not stand for each other."""
    both = Signer(WITNESS.key.name, Ed25519PrivateKey.from_private_bytes(b"w" * 32))
    note = sign_note(NOTE.text, [both])
    assert cosignatures(note, [WITNESS.key, both.key]) == {}


def test_the_answer_of_a_witness_is_taken() -> None:
    line = WITNESS.sign(NOTE.text, 5)
    assert verify_answer(f"{ENOCH_LINE}{line}\n".encode(), NOTE, WITNESS.key) == line


def test_the_answer_of_another_witness_is_refused() -> None:
    with pytest.raises(LogSignatureError, match="no cosignature"):
        verify_answer(ENOCH_LINE.encode(), NOTE, WITNESS.key)


def test_the_answer_for_another_checkpoint_is_refused() -> None:
    with pytest.raises(LogSignatureError):
        verify_answer(f"{OTHER}\n".encode(), NOTE, WITNESS.key)


def test_a_new_signature_takes_the_place_of_an_old_one() -> None:
    note = cosigned(1).with_signatures([WITNESS.sign(NOTE.text, 2)])
    assert cosignatures(note, [WITNESS.key]) == {WITNESS.key: 2}
    assert len(note.signatures) == 2


@given(st.integers(0, len(str(cosigned()).encode()) - 1), st.integers(0, 7))
def test_no_bit_of_a_cosigned_checkpoint_can_be_turned(at: int, bit: int) -> None:
    """Whatever is altered, either it is refused, or a signature is one of nobody known."""
    data = bytearray(str(cosigned()).encode())
    data[at] ^= 1 << bit
    with suppress(LogError):
        signed = open_checkpoint(bytes(data), [LOG.key])
        assert signed.checkpoint == CHECKPOINT
        assert set(cosignatures(signed.note, [WITNESS.key])) <= {WITNESS.key}
