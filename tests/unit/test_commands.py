"""What a command needs, its own help says, and so does each line of the docs that shows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from touchstone import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/**/*.md") if p.parent.name != "adr")])
UNLESS = re.compile(r"Needed unless (--[a-z-]+)(?: or (--[a-z-]+))? is given\.")
SHELL = re.compile(r"\s([|;&<>]|>>|\|\||&&|#)\s")
"""What ends the part of a line that is a command's own."""
AND_SO_ON = "…"
"""A line that ends so shows a part of a command."""


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its names."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))
    else:
        yield path, command


COMMANDS = dict(commands(main))


def options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def others_than(option: click.Option) -> set[str]:
    """The options with which *option* is not needed, as its help says."""
    found = UNLESS.search(option.help or "")
    return set() if found is None else {name for name in found.groups() if name}


def reasoned() -> list[tuple[str, ...]]:
    return [path for path, command in COMMANDS.items() if any(o.name == "reason" for o in options(command))]


@pytest.mark.parametrize("path", reasoned(), ids=" ".join)
def test_help_says_when_a_reason_is_needed(path: tuple[str, ...]) -> None:
    """Always, or unless another option of the command is given; or it has a default, which is shown."""
    command = COMMANDS[path]
    (reason,) = (option for option in options(command) if option.name == "reason")
    if not reason.required and not isinstance(reason.default, str):
        assert others_than(reason), reason.help
        assert others_than(reason) <= {name for option in options(command) for name in option.opts}
    shown = " ".join(command.get_help(click.Context(command, info_name="x")).split())
    assert re.search(r"--reason TEXT .*?(\[required\]|Needed unless|\[default: )", shown)


def lines(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of code of a page that run touchstone, each with those that it goes on in."""
    fenced, begun, start = False, "", 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            text = line.strip().removeprefix("$ ")
            if not begun:
                start = number
            begun += text.removesuffix("\\")
            if text.endswith("\\"):
                continue
            if begun.startswith("touchstone "):
                yield start, begun
            begun = ""


def shown() -> list[tuple[str, str]]:
    return [(f"{page.relative_to(ROOT)}:{number}", line) for page in PAGES for number, line in lines(page)]


def command_in(words: Sequence[str]) -> tuple[str, ...] | None:
    """The names with which a line begins; `None` if it is about a group."""
    return next((tuple(words[:n]) for n in (3, 2, 1) if tuple(words[:n]) in COMMANDS), None)


@pytest.mark.parametrize(("place", "line"), shown(), ids=lambda value: value[:60])
def test_line_of_the_docs_has_what_the_command_needs(place: str, line: str) -> None:
    """Who copies it is not told that something is missing."""
    whole = SHELL.split(line.removeprefix("touchstone "))[0].strip()
    words = shlex.split(whole)
    path = command_in(words)
    if path is None or "--help" in words:
        return
    given = {word.partition("=")[0] for word in words if word.startswith("-")}
    for option in options(COMMANDS[path]):
        needed = option.required or (others_than(option) and not given & others_than(option))
        is_there = whole.endswith(AND_SO_ON) or given & {*option.opts}
        assert is_there or not needed, f"{place}: {option.opts[-1]} is missing"
    known = {name for option in options(COMMANDS[path]) for name in (*option.opts, *option.secondary_opts)}
    assert given <= {*known, "-x"}, f"{place}: unknown options"
