"""Node keys that are read from the database once: a kept key is the key of exactly these bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attester import cbor
from attester.cose import ED25519, ES256, PrivateKey, PublicKey
from attester.errors import CBORError, COSEError
from verifier.store import nodes

KEYS = {alg: PrivateKey.generate(alg).public for alg in (ES256, ED25519)}
ALGORITHMS = pytest.mark.parametrize("alg", [ES256, ED25519], ids=["ES256", "Ed25519"])


@ALGORITHMS
def test_the_same_bytes_give_the_same_key(alg: int) -> None:
    """Also if they are another object, as the database gives them."""
    data = KEYS[alg].encode()
    assert nodes.read_key(bytes(bytearray(data))) is nodes.read_key(bytes(bytearray(data)))
    assert nodes.read_key(data) == KEYS[alg]


@given(st.sampled_from([ES256, ED25519]), st.integers(0, 76), st.integers(1, 255))
def test_other_bytes_never_give_a_kept_key(alg: int, place: int, change: int) -> None:
    """One byte changed: refused, or the key of the changed bytes."""
    data = bytearray(KEYS[alg].encode())
    nodes.read_key(bytes(data))
    data[place % len(data)] ^= change
    try:
        other = nodes.read_key(bytes(data))
    except (CBORError, COSEError):
        return
    assert other.encode() == bytes(data)
    assert other != KEYS[alg]


def test_bytes_that_are_no_key_are_refused_each_time_and_never_kept() -> None:
    """A failure takes no room."""
    nodes.read_key.cache_clear()
    off_the_curve = cbor.encode(PublicKey(ES256, bytes(64)).to_map())
    for _ in range(2):
        with pytest.raises(COSEError, match="not a point of its curve"):
            nodes.read_key(off_the_curve)
    assert nodes.read_key.cache_info().currsize == 0


def test_the_number_of_kept_keys_is_bounded() -> None:
    """A fleet of any size takes bounded memory."""
    assert nodes.read_key.cache_info().maxsize == nodes._KEPT_KEYS
