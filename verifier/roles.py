"""Roles, and the caller of a request: who proved what.  Which role may call what is in `verifier.service.access`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

HOME_ADMIN: Final = "home-admin"
HOME_ROUTER: Final = "home-router"


def with_note(reason: str, name: str, named: str | None) -> str:
    """
    The reason of a step of *name*, with the person whom the step *named*: a note, which nobody proved.

    Whose step it is, the credential says.
    """
    note = "" if named is None else named.strip()
    return reason if note in ("", name) or not reason.strip() else f"{reason} (on behalf of {note})"


class Role(StrEnum):
    """What a caller may be to the verifier."""

    NODE = "node"
    OPERATOR = "operator"
    RELYING_PARTY = "relying-party"
    ROUTER = "router"
    POLICY_AUTHOR = "policy-author"
    POLICY_APPROVER = "policy-approver"
    REVIEWER = "reviewer"
    AUDITOR = "auditor"
    ADMINISTRATOR = "administrator"

    @property
    def meaning(self) -> str:
        """One sentence for people."""
        return _MEANINGS[self]


_MEANINGS: Final = {
    Role.NODE: "A node, by the signature of its key. It reads what is about itself.",
    Role.OPERATOR: "An operator of nodes. It sees its own nodes, their results and incidents.",
    Role.RELYING_PARTY: "Reads results, reference values and policies.",
    Role.ROUTER: "Reads results, events and incidents, and reports what it has seen.",
    Role.POLICY_AUTHOR: "Publishes policies, tries them on recordings, compares and shadows them.",
    Role.POLICY_APPROVER: "Puts policies in force in steps, rolls them back, and blocks in an emergency.",
    Role.REVIEWER: "Decides about incidents.",
    Role.AUDITOR: "Reads everything and changes nothing.",
    Role.ADMINISTRATOR: "May do everything that people may do.",
}

ROLES: Final = {role.value: role for role in Role}
"""Roles by their names."""
GRANTED: Final = tuple(role for role in Role if role is not Role.NODE)
"""The roles that a key or a token may have.  Only the key of an enrolled node makes a node."""


@dataclass(frozen=True)
class Caller:
    """Who calls, as the credential proves it."""

    name: str
    """
    The name of the credential.  It is the actor of every step that the caller takes.

    A key has its own name, the tokens of the home are `HOME_ADMIN` and `HOME_ROUTER`, a token of an issuer is
    ``ISSUER#SUB``, a node is ``node:ID``, and a person at the command line is ``os:USER``.
    """
    roles: frozenset[Role] = frozenset()
    operator: str | None = None
    """The operator to whom the role `Role.OPERATOR` is limited."""
    node: str | None = None
    """The id of the node that signed."""
    key: bytes | None = None
    """The digest of the key in the database, if it is one: the key may be revoked while a stream is open."""
    until_ms: int | None = None
    """When the credential expires, if it does."""

    def acting_as(self, allowed: frozenset[Role]) -> Caller:
        """The same caller with those of its roles only that are in *allowed*: no other may help it further on."""
        return replace(self, roles=self.roles & allowed)

    def sees(self, node_id: str | None, operator: str | None) -> bool:
        """Whether it may see what is about a node of *operator*: a node sees itself, an operator its own."""
        if self.roles == {Role.NODE}:
            return node_id is not None and node_id == self.node
        return self.only_operator is None or (operator is not None and operator == self.only_operator)

    @property
    def only_operator(self) -> str | None:
        """The operator whose nodes alone it sees; `None` if it sees all."""
        return (self.operator or "") if self.roles == {Role.OPERATOR} else None
