"""
The file of a router's receipt key: PKCS #8 PEM that only its owner can read, beside the router's identity.

It is a key of its own, because nodes must be able to replace what they know of an identity without receipts becoming
void, and because the identity's key signs TLS handshakes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attester import cose
from attester.cose import PrivateKey
from attester.errors import ConfigError, KeyFileError
from attester.identity import create_key, load_key
from router.config import RouterConfig

_END: Final = "-receipts.pem"


def receipt_key_path(config: Path, name: str | None) -> Path:
    """
    Where the receipt key of the router with this configuration file is.

    Args:
        config: The configuration file.  Two of them in one folder are two routers.
        name: The setting ``key_file`` of ``[receipts]``.
    """
    return config.parent / (name or f"{config.stem}{_END}")


def find_receipt_key(path: Path, config: RouterConfig, *, makes_it: bool) -> PrivateKey | None:
    """
    Read the receipt key, if there is one, or make it.

    A router without a store has none that is kept: its chains end with the process, and another process must not give
    their numbers again.

    Args:
        path: The configuration file.
        config: What it holds.
        makes_it: Whether one that is missing is made.

    Raises:
        ConfigError: it cannot be read or made, or the file holds another kind of key.
    """
    if not (config.receipts.enabled and config.store.is_kept):
        return None
    return _find(receipt_key_path(path, config.receipts.key_file), makes_it=makes_it)


def _find(path: Path, *, makes_it: bool) -> PrivateKey | None:
    if not path.exists():
        if not makes_it:
            return None
        try:
            create_key(path, cose.ED25519)
        except KeyFileError as error:
            # Another process may have made it at the same moment: then that one is read.
            if not path.exists():
                raise ConfigError(
                    f"{error}. The router keeps the key of its receipts there: name a file in a folder that it may"
                    " write to, key_file in [receipts]"
                ) from None
    try:
        key = load_key(path)
    except KeyFileError as error:
        raise ConfigError(str(error)) from None
    if key.public.alg != cose.ED25519:
        raise ConfigError(f"{path} does not hold a key of Ed25519. Delete it, and the router makes a new one")
    return key
