"""Key files: private, whole, never overwritten, and read only where nobody else could."""

from __future__ import annotations

import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519

from attester import identity
from attester.cose import ED25519, ES256, PrivateKey
from attester.errors import COSEError, KeyFileError

ALGORITHMS = pytest.mark.parametrize("alg", [ES256, ED25519], ids=["ES256", "Ed25519"])
PKCS8 = serialization.PrivateFormat.PKCS8


def pem(key, encryption=None, form=PKCS8) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, encryption or serialization.NoEncryption())


def keep(path, data: bytes, mode: int = 0o600):
    path.write_bytes(data)
    path.chmod(mode)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of its own, under a umask that hides nothing."""
    before = os.umask(0)
    yield tmp_path
    os.umask(before)


@ALGORITHMS
def test_a_key_is_read_back(folder, alg):
    """The key on disk is the key that was made."""
    made = identity.create_key(folder / "key", alg)
    assert identity.load_key(folder / "key").public == made.public


@ALGORITHMS
def test_a_new_key_is_its_owners_alone(folder, alg):
    """Mode 0600 whatever the umask is."""
    identity.create_key(folder / "key", alg)
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600


def test_a_new_key_was_never_open_to_others(folder, monkeypatch):
    """The file is made with its mode, not given it afterwards."""
    modes = []
    link = os.link
    monkeypatch.setattr(
        os, "link", lambda a, b: (modes.append(stat.S_IMODE(a.stat().st_mode)), link(a, b))[1]
    )
    identity.create_key(folder / "key", ES256)
    assert modes == [0o600]


def test_nothing_but_the_key_stays_behind(folder):
    """The other name it was written under is gone, and the file has one name."""
    identity.create_key(folder / "key", ES256)
    assert [(p.name, p.stat().st_nlink) for p in folder.iterdir()] == [("key", 1)]


def test_a_key_is_in_pkcs8(folder):
    """Other tools can read it."""
    identity.create_key(folder / "key", ES256)
    assert (folder / "key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


def test_a_key_is_never_overwritten(folder):
    """The second key is refused, and the first is what it was."""
    identity.create_key(folder / "key", ES256)
    before = (folder / "key").read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        identity.create_key(folder / "key", ES256)
    assert (folder / "key").read_bytes() == before


def test_nothing_stays_behind_where_a_key_was_there(folder):
    """A refused key leaves no private bytes under another name."""
    keep(folder / "key", b"first")
    with pytest.raises(KeyFileError):
        identity.create_key(folder / "key", ES256)
    assert [p.name for p in folder.iterdir()] == ["key"]


def test_a_link_is_not_written_through(folder):
    """A dangling link under the key's name does not lead the key elsewhere."""
    (folder / "key").symlink_to(folder / "elsewhere")
    with pytest.raises(KeyFileError, match="exists already"):
        identity.create_key(folder / "key", ES256)
    assert not (folder / "elsewhere").exists()


@pytest.mark.parametrize("name", ["link", "fsync"])
def test_a_failed_write_leaves_nothing_behind(folder, monkeypatch, name):
    """Where a step fails, neither the key nor its other name is there."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(KeyFileError, match="cannot be written: No space left on device"):
        identity.create_key(folder / "key", ES256)
    assert list(folder.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_behind(folder, monkeypatch):
    """Nor where the operator stops it."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", stop)
    with pytest.raises(KeyboardInterrupt):
        identity.create_key(folder / "key", ES256)
    assert list(folder.iterdir()) == []


def test_a_key_is_on_the_disk_before_it_has_its_name(folder, monkeypatch):
    """The bytes are synced, then named, then the folder is synced: a crash leaves all or nothing."""
    steps = []
    link, sync = os.link, os.fsync

    def noted_sync(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def noted_link(a, b):
        steps.append("link")
        link(a, b)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "link", noted_link)
    identity.create_key(folder / "key", ES256)
    assert steps == ["file", "link", "folder"]


def test_a_folder_that_is_not_there(folder):
    """Said in a sentence."""
    with pytest.raises(KeyFileError, match="cannot be written: No such file"):
        identity.create_key(folder / "no" / "key", ES256)


def test_a_key_of_another_algorithm_is_not_made(folder):
    """Nothing is written for an algorithm the profile does not have."""
    with pytest.raises(COSEError):
        identity.create_key(folder / "key", -8)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o660, 0o644, 0o666, 0o440, 0o777]
)
def test_a_key_that_others_can_reach_is_refused(folder, mode):
    """Any right of the group or of others may have let the key be copied or replaced."""
    keep(folder / "key", pem(PrivateKey.generate().native), mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}"):
        identity.load_key(folder / "key")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_that_only_its_owner_can_reach_is_read(folder, mode):
    """What the owner may do is the owner's business."""
    key = PrivateKey.generate()
    keep(folder / "key", pem(key.native), mode)
    assert identity.load_key(folder / "key").public == key.public


def test_the_mode_is_that_of_the_file_behind_a_link(folder):
    """A link of one's own does not vouch for what it leads to."""
    keep(folder / "open", pem(PrivateKey.generate().native), 0o644)
    (folder / "key").symlink_to("open")
    with pytest.raises(KeyFileError, match="mode 0644"):
        identity.load_key(folder / "key")


def test_a_folder_is_no_key(folder):
    """Only a regular file is read."""
    (folder / "key").mkdir(mode=0o700)
    with pytest.raises(KeyFileError, match="not a regular file"):
        identity.load_key(folder / "key")


def test_a_pipe_is_no_key(folder):
    """Whoever writes into a pipe could say another key each time."""
    os.mkfifo(folder / "key", 0o600)
    held = os.open(folder / "key", os.O_RDWR)
    try:
        with pytest.raises(KeyFileError, match="not a regular file"):
            identity.load_key(folder / "key")
    finally:
        os.close(held)


def test_a_pipe_without_a_writer_is_not_waited_for(folder, monkeypatch):
    """The file is opened so that even a pipe nobody writes to is refused at once."""
    keep(folder / "key", pem(PrivateKey.generate().native))
    flags = []
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, flag, *a: (flags.append(flag), opened(path, flag, *a))[1])
    identity.load_key(folder / "key")
    assert [bool(flag & os.O_NONBLOCK) for flag in flags] == [True]


def test_a_device_is_no_key(folder):
    """Nor what never ends."""
    with pytest.raises(KeyFileError, match="not a regular file"):
        identity.read_private(type(folder)("/dev/zero"))


def test_a_missing_key_is_said(folder):
    """With its path."""
    with pytest.raises(KeyFileError, match=f"{folder / 'key'} does not exist"):
        identity.load_key(folder / "key")


def test_a_link_in_a_circle_is_said(folder):
    """In a sentence."""
    (folder / "key").symlink_to("key")
    with pytest.raises(KeyFileError, match="cannot be read"):
        identity.load_key(folder / "key")


def test_a_file_too_large_is_refused(folder):
    """One byte more than a key file may have, valid PEM or not."""
    data = pem(PrivateKey.generate().native)
    keep(folder / "key", data + b"\n" * (8193 - len(data)))
    with pytest.raises(KeyFileError, match="8193 bytes, but a key file has at most 8192"):
        identity.load_key(folder / "key")


def test_the_largest_file_is_read(folder):
    """The bound itself is allowed."""
    key = PrivateKey.generate()
    data = pem(key.native)
    keep(folder / "key", data + b"\n" * (8192 - len(data)))
    assert identity.load_key(folder / "key").public == key.public


P256 = ec.generate_private_key(ec.SECP256R1())
GARBAGE = {
    "empty": b"",
    "text": b"not a key",
    "NUL": bytes(100),
    "armour alone": b"-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n",
    "base64 of nothing": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "cut": pem(P256)[:120],
    "DER": P256.private_bytes(serialization.Encoding.DER, PKCS8, serialization.NoEncryption()),
    "public": P256.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ),
    "encrypted": pem(P256, serialization.BestAvailableEncryption(b"secret")),
    "encrypted, old form": pem(
        P256, serialization.BestAvailableEncryption(b"secret"), serialization.PrivateFormat.TraditionalOpenSSL
    ),
    "OpenSSH": pem(P256, form=serialization.PrivateFormat.OpenSSH),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_unencrypted_pem_is_refused(folder, name):
    """In a sentence with the path, not with a library's error."""
    keep(folder / "key", GARBAGE[name])
    with pytest.raises(KeyFileError, match="is not an unencrypted PEM private key"):
        identity.load_key(folder / "key")


OTHER_KEYS = {
    "RSA": rsa.generate_private_key(65537, 1024),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "brainpool": ec.generate_private_key(ec.BrainpoolP256R1()),
    "Ed448": ed448.Ed448PrivateKey.generate(),
    "X25519": x25519.X25519PrivateKey.generate(),
}


@pytest.mark.parametrize("name", OTHER_KEYS)
def test_a_key_of_another_kind_is_refused(folder, name):
    """Two algorithms, whatever else the library can read."""
    keep(folder / "key", pem(OTHER_KEYS[name]))
    with pytest.raises(KeyFileError, match="holds neither a P-256 nor an Ed25519 key"):
        identity.load_key(folder / "key")


def of_object(old: bytes, new: bytes, native) -> bytes:
    """A key file under another object identifier, of the same length."""
    import base64

    der = native.private_bytes(serialization.Encoding.DER, PKCS8, serialization.NoEncryption())
    body = base64.encodebytes(der.replace(old, new))
    return b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize("last", [2, 3, 9], ids=["prime192v2", "prime192v3", "unassigned"])
def test_a_curve_the_library_does_not_know_is_refused(folder, last):
    """A key of a curve that was compiled out is a KeyFileError too."""
    curve = bytes.fromhex("06082a8648ce3d0301")
    keep(folder / "key", of_object(curve + b"\x07", curve + bytes([last]), P256))
    with pytest.raises(KeyFileError):
        identity.load_key(folder / "key")


def test_an_algorithm_the_library_does_not_know_is_refused(folder):
    """As a key of tomorrow would be."""
    native = ed25519.Ed25519PrivateKey.generate()
    keep(folder / "key", of_object(b"\x06\x03\x2b\x65\x70", b"\x06\x03\x2b\x65\x55", native))
    with pytest.raises(KeyFileError):
        identity.load_key(folder / "key")


@ALGORITHMS
def test_an_spki_is_the_public_half(alg):
    """What a pin is made from is read back by the library as the same key."""
    key = PrivateKey.generate(alg)
    assert serialization.load_der_public_key(identity.spki(key)) == key.native.public_key()
