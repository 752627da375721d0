"""What a router is made from: its configuration and the files that it names."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from attester.authorities import client_context
from attester.cose import PrivateKey
from attester.errors import ConfigError
from attester.version import install_hint
from router.config import RouterConfig, load_table, load_tokenisers, read_token
from router.model.tokens import Tokeniser
from router.model.workload import Table
from router.state.identity import Identity, find_identity
from router.state.receipt_key import find_receipt_key
from verifier.service.tls import ServerTLS


@dataclass(frozen=True)
class RouterSetup:
    """What a router is made from."""

    config: RouterConfig
    table: Table
    folder: Path = Path()
    """The folder of the files that the configuration names."""
    identity: Identity | None = None
    """By which nodes know the router; `None`: a new one, for this process alone."""
    receipt_key: PrivateKey | None = None
    """It signs receipts; `None`: a new one, for this process alone."""

    @property
    def authorities(self) -> Path | None:
        """The file of the authorities that may sign the verifier's certificate; `None`: the system's."""
        name = self.config.verifier.ca_file
        return None if name is None else self.folder / name

    def tokenisers(self) -> dict[str, Tokeniser]:
        """The tokenisers of the table, by workload.  Raises `ConfigError`."""
        return load_tokenisers(self.table, self.folder)


def load(path: Path, config: RouterConfig, *, makes_identity: bool = False) -> RouterSetup:
    """
    Read the table and the router's identity, and check every other file that the configuration names.

    Args:
        path: The configuration's file.
        config: What it holds.
        makes_identity: Whether an identity that is missing is made.

    Raises:
        ConfigError: a file cannot be read or made, or does not hold what it should.
    """
    folder = path.parent
    identity = find_identity(path, config.gateway.identity_file, makes_it=makes_identity)
    receipt_key = find_receipt_key(path, config, makes_it=makes_identity)
    setup = RouterSetup(
        config, load_table(folder / config.workloads), folder, identity=identity, receipt_key=receipt_key
    )
    setup.tokenisers()
    client_context(setup.authorities)
    if config.verifier.router_token_file is None:
        raise ConfigError(
            "verifier.router_token_file is missing: the verifier gives results only to routers with a key. "
            "There: touchstone verifier key create NAME --role router"
        )
    read_token(folder, config.verifier.router_token_file)
    read_token(folder, config.verifier.admin_token_file)
    if config.service.speaks_tls:
        ServerTLS(*config.service.files(folder))
    if config.ext_proc is not None:
        if find_spec("grpc") is None:
            raise ConfigError(f"[ext_proc] needs grpcio and protobuf: {install_hint('envoy')}")
        if (files := config.ext_proc.files(folder)) is not None:
            ServerTLS(*files)
    return setup


def verifier_token(setup: RouterSetup) -> str | None:
    """The router's credential of the verifier, as its file has it now.  Raises `ConfigError`."""
    return read_token(setup.folder, setup.config.verifier.router_token_file)
