"""Collects `platform`: where the node serves, what runs there, and which work it can do."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import structlog

from attester import identity
from attester.collectors.base import EvidenceSession, Sources
from attester.engines.base import Description
from attester.evidence import Capabilities, Claims, Endpoint, Runtime, endpoint_statement
from attester.kinds import Submod
from attester.weights.quantisation import conclude

_log = structlog.get_logger("attester")


class PlatformCollector:
    """See `KindCollector`."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._conflict: str | None = None
        """What is wrong with the declared quantisation, as it was logged last."""

    async def collect(self, session: EvidenceSession) -> Mapping[str, Submod]:
        """See `KindCollector`.  Raises `EngineError` if the engine does not answer."""
        description = await self._sources.engine.describe()
        claims: dict[str, Claims] = {
            "endpoint": self.endpoint(session.nonce),
            "runtime": _runtime(description),
            "capabilities": await self._capabilities(description),
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

    async def _capabilities(self, description: Description) -> Capabilities:
        declared = self._sources.config.capabilities
        found = await self._sources.files.quantisations()
        quantisation, conflict = conclude(declared.quantisation, found, loaded_as(description))
        if conflict != self._conflict:
            self._conflict = conflict
            if conflict is not None:
                _log.warning("the evidence says how the weights are quantised", why=conflict)
        return Capabilities(
            hardware_class=declared.hardware_class,
            memory_bytes=declared.memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            context_length=description.context_length,
            quantisation=quantisation,
            features=description.features,
            region=declared.region,
        )


def loaded_as(description: Description) -> str | None:
    """How an engine says that it quantises while it loads; `None` if it does not, or does not say it."""
    value = description.arguments.get("quantization")
    return value if isinstance(value, str) and value not in ("", "None", "none") else None


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
