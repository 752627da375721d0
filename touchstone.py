"""
The door: one command, `touchstone`, that opens each role's own commands lazily.

A node has the attester alone installed, and starting it must not import the rest; so a
group's module is imported when the group is used, and a missing extra is said plainly.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

_GROUPS = {
    "attester": ("attester.commands", "attester", "Make evidence on a node.", None),
    "challenges": ("verifier.commands.challenges", "challenges", "Mint single-use challenges.", "verifier"),
    "policy": ("verifier.commands.rollout", "policy", "Write, try and roll out policies.", "verifier"),
    "reference": (
        "verifier.commands.references",
        "reference",
        "Measure and publish reference values.",
        "verifier",
    ),
    "router": ("router.commands", "router", "Send work to nodes that may be trusted.", "router"),
    "verifier": ("verifier.commands.verifier", "verifier", "Appraise evidence and sign results.", "verifier"),
}


class _Door(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _GROUPS:
            return None
        module, attribute, _, extra = _GROUPS[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if extra is None or (error.name or "").split(".")[0] in ("attester", "verifier", "router"):
                raise
            from attester.version import install_hint

            raise click.ClickException(
                f"`touchstone {cmd_name}` needs {error.name}, which is not installed: {install_hint(extra)}"
            ) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, so that --help imports no group.
        with formatter.section("Commands"):
            formatter.write_dl([(name, _GROUPS[name][2]) for name in self.list_commands(ctx)])

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; an interrupted one ends quietly."""
        try:
            return super().main(*args, **kwargs)
        except KeyboardInterrupt:
            raise SystemExit(130) from None


@click.group(cls=_Door, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="touchstone-attestation", prog_name="touchstone")
def main() -> None:
    """Decide which GPU nodes may be trusted with an AI workload, and show why."""


if __name__ == "__main__":
    main()
