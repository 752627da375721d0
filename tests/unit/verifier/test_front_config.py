"""Settings of the socket that verifier and router share."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from router.config import ServiceSection
from verifier.config import ServiceConfig

TLS = {"tls_certificate": "chain.pem", "tls_key": "key.pem"}
both = pytest.mark.parametrize("kind", [ServiceConfig, ServiceSection])


@both
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tls_certificate": "chain.pem"}, "go together"),
        ({"tls_key": "key.pem"}, "go together"),
        ({"client_ca": "ca.pem"}, "client_ca needs"),
        ({"trusted_proxies": ["10.0.0.1/8"]}, "host bits"),
        ({"trusted_proxies": ["proxy.example"]}, "proxy.example"),
        ({"connections": 100, "stranger_connections": 100}, "must be less"),
        ({"head_s": 0}, "head_s"),
        ({"body_budget_mib": 0}, "body_budget_mib"),
        ({"body_reserved_percent": 100}, "body_reserved_percent"),
        ({"listen": "127.0.0.1:0"}, "port"),
    ],
)
def test_what_cannot_be_meant_is_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    """With a message that says which setting."""
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({**given}, kind)


def test_a_verifier_with_tls_has_no_plain_url() -> None:
    """Nobody could reach it by the URL that its results name."""
    with pytest.raises(msgspec.ValidationError, match="write https://"):
        msgspec.convert({"url": "http://verifier.example", **TLS}, ServiceConfig)
    assert msgspec.convert({"url": "https://verifier.example", **TLS}, ServiceConfig).speaks_tls


def test_behind_a_proxy_with_tls_the_url_is_the_proxys() -> None:
    """The service itself speaks plainly then."""
    assert not msgspec.convert({"url": "https://verifier.example"}, ServiceConfig).speaks_tls
