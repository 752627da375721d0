"""
A client that verifies answers before it gives them out: a library, a proxy on loopback, and a page.

All but `session`, `awaiting`, `kept`, `client`, `proxy`, `trusting` and `commands` is pure.
"""

from router.client.client import Client
from router.client.errors import RefusedError, TrustError, UnreachableError, UnverifiedError
from router.client.session import AsyncClient

__all__ = [
    "AsyncClient",
    "Client",
    "RefusedError",
    "TrustError",
    "UnreachableError",
    "UnverifiedError",
]
