"""
The files of private keys: the node key and the TLS key.

A key file is PKCS #8 PEM with mode 0600.  It is written under a temporary name and linked, so
that it is either complete or absent.  A key file that others can read is refused, because it
may have been copied.
"""

import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attester.cose import PrivateKey
from attester.errors import KeyFileError

_MAX_KEY_BYTES = 8192


def write_private(path: Path, data: bytes) -> None:
    """
    Write *data* to a new file *path* that only its owner can read, atomically and durably.

    Raises:
        KeyFileError: *path* exists already, or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Unlike rename, link never replaces an existing key.
            os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already. A key is never overwritten") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from None


def read_private(path: Path, *, max_size: int = _MAX_KEY_BYTES) -> bytes:
    """
    Read a file that only its owner may read.

    Raises:
        KeyFileError: the file is missing, not a regular file, too large, or readable by others.
    """
    try:
        # O_NONBLOCK: opening a pipe must not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise KeyFileError(f"{path} does not exist") from None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise KeyFileError(f"{path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_mode & 0o077:
            raise KeyFileError(
                f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}), so the key "
                "may have been copied. Make a new one or, if you are sure that it was not copied, run chmod 600"
            )
        if status.st_size > max_size:
            raise KeyFileError(f"{path} has {status.st_size} bytes, but a key file has at most {max_size}")
        return file.read(max_size)


def create_key(path: Path, alg: int) -> PrivateKey:
    """
    Make a key and write it to *path*.

    Raises:
        KeyFileError: *path* exists already, or cannot be written.
    """
    key = PrivateKey.generate(alg)
    write_private(path, key_to_pem(key))
    return key


def load_key(path: Path) -> PrivateKey:
    """
    Read the key at *path*.

    Raises:
        KeyFileError: the file is missing or readable by others, or it is not a P-256 or Ed25519 key.
    """
    data = read_private(path)
    try:
        native = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
        raise KeyFileError(f"{path} is not an unencrypted PEM private key") from None
    if isinstance(native, ed25519.Ed25519PrivateKey):
        return PrivateKey(native)
    if isinstance(native, ec.EllipticCurvePrivateKey) and isinstance(native.curve, ec.SECP256R1):
        return PrivateKey(native)
    raise KeyFileError(f"{path} holds neither a P-256 nor an Ed25519 key")


def key_to_pem(key: PrivateKey) -> bytes:
    """PKCS #8 PEM, unencrypted."""
    return key.native.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def spki(key: PrivateKey) -> bytes:
    """The public half as DER SubjectPublicKeyInfo, whose SHA-256 is a TLS pin."""
    return key.native.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
