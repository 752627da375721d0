"""How a page shows a table of routes: what verifier and router have in common of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from verifier.roles import Role
from verifier.service.access import Anyone, Route

_MARKS: Final = ("<!-- routes: written by the code -->", "<!-- end of routes -->")


def table(routes: Iterable[Route], roles: Iterable[Role]) -> list[str]:
    """Every route with who may call it, as the lines of a table; *roles* in the order in which they are named."""
    ordered = list(roles)
    lines = ["| request | | who |", "|---|---|---|"]
    lines += [
        f"| `{each.method} {_path(each)}` | {each.summary} | {_who(each, ordered)} |" for each in routes
    ]
    return lines


def filled(text: str, tables: str) -> str:
    """The page *text* with *tables* in their place."""
    start, end = _MARKS
    before, after = text.partition(start)[0], text.partition(end)[2]
    return f"{before}{start}\n{tables}\n{end}{after}"


def _path(route: Route) -> str:
    """The path without the forms of its parts, which a table cannot hold."""
    return re.sub(r"\{(\w+):.+?\}(?=/|$)", r"{\1}", route.path)


def _who(route: Route, roles: Iterable[Role]) -> str:
    if isinstance(route.allowed, Anyone):
        return f"anyone: {route.allowed.because}"
    names = ", ".join(role for role in roles if role in route.allowed)
    if route.on_loopback:
        return f"{names}; anyone on the same machine, if `[access] metrics_on_loopback`"
    return names
