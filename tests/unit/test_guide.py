"""The guide to a closed deployment names commands and options that there are; `python -m fixtures.guide` runs it."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from fixtures.guide import plain, steps
from touchstone import main

# What the shell puts in is replaced by a word that every option takes.
COMMANDS = [
    found
    for command, _ in steps()
    for found in re.findall(
        r"touchstone ((?:verifier|attester|router|policy|reference|challenges) [^;|&>)]*)",
        re.sub(r"\$\(cat [^)]*\)|\$role|\$token", "auditor", command),
    )
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guide_can_be_read(command: str) -> None:
    """By the command line itself, with all its options."""
    words = shlex.split(command.replace("\\\n", " ").removesuffix(" 2"))
    group: click.Command = main
    context = click.Context(group)
    while isinstance(group, click.Group):
        found = group.get_command(context, words.pop(0))
        assert found is not None
        group = found
    group.make_context("touchstone", words)


def test_every_role_is_in_the_guide() -> None:
    """Each asks for something, and somebody else is refused."""
    asked = [(command, shown) for command, shown in steps() if command.startswith("ask ")]
    roles = {command.split()[1] for command, _ in asked}
    created = " ".join(command for command, _ in steps() if "key create" in command)
    assert len(roles) == 8
    assert all(role in created for role in roles)
    assert all(len(shown) == 2 and shown[1] == "403" != shown[0] for _, shown in asked)


def test_ids_and_figures_may_differ() -> None:
    """And nothing else."""
    assert plain(["node 49d6ab9d1e4d38ba, +0.1 s"]) == plain(["node 0f6f0c3010a5a2b5, -2.0 s"])
    assert plain(["200"]) != plain(["403"])
