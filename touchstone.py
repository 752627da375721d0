"""
The command `touchstone`, which imports each role's own commands only when they are used.

A node installs the attester alone, so the command must start without the other roles'
dependencies.  If a group of commands needs an extra that is not installed, the error names it.
"""

from __future__ import annotations

import importlib
from typing import Any, Final, NamedTuple

import click


class _Group(NamedTuple):
    """The module of a group of commands, its line in ``--help``, and the extra that it needs."""

    module: str
    summary: str
    extra: str | None


_GROUPS: Final = {
    "attester": _Group("attester.commands", "Make evidence on a node.", None),
    "audit": _Group("verifier.commands.audit", "Show auditors what was decided, with proofs.", "verifier"),
    "challenges": _Group("verifier.commands.challenges", "Mint single-use challenges.", "verifier"),
    "client": _Group("router.client.commands", "Use answers only after they were verified.", "router"),
    "log": _Group("verifier.commands.log", "Verify and witness transparency logs.", "verifier"),
    "policy": _Group("verifier.commands.rollout", "Write, try and roll out policies.", "verifier"),
    "receipt": _Group("router.receipts.commands", "Fetch receipts of answers, and verify them.", "router"),
    "reference": _Group(
        "verifier.commands.reference_sources", "Measure and publish reference values.", "verifier"
    ),
    "router": _Group("router.commands.router", "Send work to nodes that may be trusted.", "router"),
    "settle": _Group("router.commands.settle", "Settle what nodes are paid.", "router"),
    "verifier": _Group("verifier.commands.verifier", "Appraise evidence and sign results.", "verifier"),
}
"""By name; each module defines its group under that name."""


class _LazyGroup(click.Group):
    """Imports a group of commands when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _GROUPS:
            return None
        group = _GROUPS[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(group.module), cmd_name)
        except ModuleNotFoundError as error:
            if group.extra is None or (error.name or "").split(".")[0] in ("attester", "verifier", "router"):
                raise
            from attester.version import install_hint

            raise click.ClickException(
                f"`touchstone {cmd_name}` needs {error.name}, which is not installed: {install_hint(group.extra)}"
            ) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # The table has the summaries, so that --help imports no group.
        with formatter.section("Commands"):
            formatter.write_dl([(name, _GROUPS[name].summary) for name in self.list_commands(ctx)])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; an interrupt ends it with status 130 and without a stack trace."""
        try:
            return super().main(*args, **kwargs)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="touchstone-attestation", prog_name="touchstone")
def main() -> None:
    """Decide which GPU nodes may be trusted with an AI workload, and show why."""


if __name__ == "__main__":
    main()
