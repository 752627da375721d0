"""Collects `platform`: where the node serves, what runs there, and which work it can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from attester import identity
from attester.collectors.base import EvidenceSession, Sources
from attester.engines.base import Description
from attester.evidence import Capabilities, Claims, Endpoint, Runtime, endpoint_statement
from attester.kinds import Submod


class PlatformCollector:
    """See `KindCollector`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    async def collect(self, session: EvidenceSession) -> Mapping[str, Submod]:
        """See `KindCollector`.  Raises `EngineError` if the engine does not answer."""
        description = await self._sources.engine.describe()
        claims: dict[str, Claims] = {
            "endpoint": self.endpoint(session.nonce),
            "runtime": _runtime(description),
            "capabilities": self._capabilities(description),
        }
        look = self._sources.exposure
        exposure = None if look is None else await look()
        if exposure is not None:
            claims["exposure"] = exposure
        return {"platform": claims}

    def endpoint(self, nonce: bytes) -> Endpoint:
        """Where the node serves, signed by its TLS key."""
        url, tls_key = self._sources.config.serve.url, self._sources.tls_key
        return Endpoint(
            url=url,
            spki=identity.spki(tls_key),
            signature=tls_key.sign(endpoint_statement(url, nonce, self._sources.kid)),
        )

    def _capabilities(self, description: Description) -> Capabilities:
        declared = self._sources.config.capabilities
        return Capabilities(
            hardware_class=declared.hardware_class,
            memory_bytes=declared.memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            context_length=description.context_length,
            quantisation=declared.quantisation,
            features=description.features,
            region=declared.region,
        )


def _runtime(description: Description) -> Runtime:
    return Runtime(
        engine=description.engine,
        version=description.version,
        arguments=description.arguments,
        packages=description.packages,
        python=description.python,
        kernel=f"{platform.system()} {platform.release()}"[:128],
        container=description.container,
        driver=description.driver,
    )
