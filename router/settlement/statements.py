"""
The statement of an operator for a period: what its nodes are paid, and the receipts that this rests on.  Pure.

A statement that is made never changes: it is signed, and its id is the digest of its bytes.  A correction is a new
statement with the next number, which names the one before and says who corrected what, and why.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct, structs

from attester.cose import PrivateKey
from router.model.errors import SettlementError
from router.model.usage import Tolerance, of
from router.receipts.payload import MOST
from router.settlement.accounts import Accounts, Amount, Digest, Line, Name, Tokens
from router.settlement.amounts import exact, rounded
from router.settlement.exchanges import Exchange
from router.settlement.periods import Period, read_period
from router.settlement.reconciling import Gap, Judgement
from verifier import canonical
from verifier.errors import CanonicalError, RequestError
from verifier.result_keys import b64url
from verifier.router_receipts import ReceiptKey, unb64url

TYPE: Final = "touchstone-statement+jwt"
MAX_STATEMENT: Final = 64 << 20
MAX_REASON: Final = 1000
_Count = Tokens
_Text = Name


class _Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of a statement."""


class Claim(_Part, frozen=True, kw_only=True):
    """What a node has claimed for a model, and what came of it."""

    node: _Text
    model: _Text
    verdict: _Text
    what: _Text
    """Which tokens were claimed too high; empty if none were."""
    claimed_exchanges: _Count
    claimed_prompt: _Count
    claimed_completion: _Count
    metered_exchanges: _Count
    metered_prompt: _Count
    metered_completion: _Count


class Adjustment(_Part, frozen=True, kw_only=True):
    """A person's change to what a line comes to."""

    line: _Count
    amount: Amount
    actor: _Text
    reason: Annotated[str, Meta(min_length=1, max_length=2 * MAX_REASON)]
    dispute: _Text = ""


class LostReceipts(_Part, frozen=True, kw_only=True):
    """A time of which a router may have lost receipts."""

    router: _Text
    from_ms: _Count
    to_ms: _Count
    lost: _Count
    why: _Text


class Statement(_Part, frozen=True, kw_only=True):
    """All of it, as it is signed."""

    v: Annotated[int, Meta(ge=1, le=1)]
    operator: _Text
    period: Annotated[str, Meta(max_length=16)]
    from_ms: _Count
    to_ms: _Count
    number: Annotated[int, Meta(ge=1, le=1_000_000)]
    """1, and one more for each correction."""
    previous: Digest | None = None
    made_ms: _Count
    router: _Text
    """Which router has made it."""
    unit: _Text
    decimals: Annotated[int, Meta(ge=0, le=12)]
    lines: tuple[Line, ...]
    claims: tuple[Claim, ...]
    adjustments: tuple[Adjustment, ...] = ()
    lost: tuple[LostReceipts, ...] = ()
    unreadable: _Count = 0
    """Receipts of the period that could not be read, of whatever operator."""
    missing: _Count = 0
    """Receipts that were in batches of the period, of whatever operator, and are kept no longer."""
    amount: Amount
    """Of all lines."""
    deductions: Amount
    """What adjustments add; mostly negative or 0."""
    total: Amount
    total_exact: _Text
    total_rounded: _Text
    """The exact total, rounded: not the sum of what was rounded."""
    correction: _Text = ""
    """Why there is a correction, and who made it."""


def make(
    accounts: Accounts,
    operator: str,
    judgements: Sequence[Judgement],
    *,
    made_ms: int,
    router: str,
    unit: str,
    decimals: int,
    gaps: Sequence[Gap] = (),
    previous: tuple[str, Statement] | None = None,
    adjustments: Sequence[Adjustment] = (),
    correction: str = "",
) -> Statement:
    """
    Make a statement from what was summed.

    Args:
        accounts: All receipts of the period.
        operator: Whose statement.
        judgements: Of all nodes; those of the operator are kept.
        made_ms: When.
        router: Which router makes it.
        unit: The name of the unit of account.
        decimals: To which what is shown is rounded.
        gaps: When routers may have lost receipts.
        previous: The id and the statement that is corrected.
        adjustments: All that hold, those of the statement before among them.
        correction: Why.

    Raises:
        SettlementError: an adjustment names a line that is not there.
    """
    lines, period = accounts.lines(operator, decimals), accounts.period
    if any(not 1 <= each.line <= len(lines) for each in adjustments):
        raise SettlementError(f"the statement has the lines 1 to {len(lines)}")
    return Statement(
        v=1,
        operator=plain(operator),
        period=period.name,
        from_ms=period.from_ms,
        to_ms=period.to_ms,
        number=1 if previous is None else previous[1].number + 1,
        previous=None if previous is None else previous[0],
        made_ms=made_ms,
        router=plain(router),
        unit=plain(unit),
        decimals=decimals,
        lines=lines,
        claims=tuple(_claim(each) for each in judgements if each.operator == operator),
        adjustments=tuple(adjustments),
        lost=tuple(_lost(gap) for gap in gaps),
        unreadable=accounts.unreadable,
        missing=accounts.missing,
        correction=plain(correction),
        **_sums(lines, adjustments, decimals),
    )


def _sums(lines: Sequence[Line], adjustments: Sequence[Adjustment], decimals: int) -> dict[str, str]:
    """What the lines and the adjustments come to."""
    amount = sum(int(line.amount) for line in lines)
    deductions = sum(int(each.amount) for each in adjustments)
    return {
        "amount": str(amount),
        "deductions": str(deductions),
        "total": str(amount + deductions),
        "total_exact": exact(amount + deductions),
        "total_rounded": rounded(amount + deductions, decimals),
    }


def encode(statement: Statement) -> bytes:
    """The one form of a statement; absent members are left out."""
    return canonical.encode({k: v for k, v in msgspec.to_builtins(statement).items() if v is not None})


def decode(data: bytes) -> Statement:
    """
    Read a statement in its one form.

    Raises:
        SettlementError: it is no statement.
    """
    try:
        plain = canonical.decode(data, dict[str, Any], max_size=MAX_STATEMENT)
        statement = msgspec.convert(plain, Statement)
    except (CanonicalError, msgspec.ValidationError) as error:
        raise SettlementError(f"it is no statement: {error}") from None
    if encode(statement) != data:
        raise SettlementError("it is no statement: it is not in its one form")
    return statement


def digest(data: bytes) -> str:
    """The id of a statement: of its bytes."""
    return hashlib.sha256(data).hexdigest()


def sign(data: bytes, key: PrivateKey) -> str:
    """The signed statement: a compact JWS by the router's receipt key."""
    signed = f"{_header(ReceiptKey(key.public).kid)}.{b64url(data)}"
    return f"{signed}.{b64url(key.sign(signed.encode()))}"


def open_signed(token: str, keys: Mapping[str, ReceiptKey]) -> tuple[bytes, Statement]:
    """
    Verify the signature of a statement, and read it.

    Raises:
        SettlementError: it is malformed, altered, or by none of *keys*.
    """
    head, _, rest = token.partition(".")
    body, _, tail = rest.partition(".")
    key = next((each for each in keys.values() if _header(each.kid) == head), None)
    if key is None:
        raise SettlementError("the statement is by none of the given keys, or is no statement")
    try:
        data, signature = unb64url(body), unb64url(tail)
    except RequestError:
        raise SettlementError("the statement is malformed") from None
    if not key.verify(signature, f"{head}.{body}".encode()):
        raise SettlementError("the signature is wrong: the statement was altered")
    return data, decode(data)


def content(token: str) -> Statement:
    """
    What a signed statement says, without a look at its signature: of one's own store.

    Raises:
        SettlementError: it is malformed.
    """
    try:
        return decode(unb64url(token.split(".")[1]))
    except (IndexError, RequestError):
        raise SettlementError("the statement is malformed") from None


def _header(kid: str) -> str:
    return b64url(f'{{"alg":"Ed25519","kid":"{kid}","typ":"{TYPE}"}}'.encode())


def check(statement: Statement, exchanges: Iterable[Exchange]) -> None:
    """
    Compute every number of a statement again from its receipts.

    Args:
        statement: What is checked.
        exchanges: From the receipts that it is said to rest on.  Those of other operators and times are passed over.

    Raises:
        SettlementError: a number is another one; the message names the first.
    """
    period = _period(statement)
    accounts = Accounts(period)
    for each in exchanges:
        if each.operator == statement.operator:
            accounts.add(each)
    lines = accounts.lines(statement.operator, statement.decimals)
    if len(lines) != len(statement.lines):
        raise SettlementError(f"its receipts make {len(lines)} lines, and it has {len(statement.lines)}")
    for ours, theirs in zip(lines, statement.lines, strict=True):
        for name in Line.__struct_fields__:
            found, told = getattr(ours, name), getattr(theirs, name)
            if found != told:
                raise SettlementError(
                    f"line {theirs.number}: {name} is {told}, and its receipts make {found}"
                )
    sums = _sums(lines, statement.adjustments, statement.decimals)
    for name, found in sums.items():
        if getattr(statement, name) != found:
            raise SettlementError(f"{name} is {getattr(statement, name)}, and its lines make {found}")


def _period(statement: Statement) -> Period:
    period = read_period(statement.period)
    if (period.from_ms, period.to_ms) != (statement.from_ms, statement.to_ms):
        raise SettlementError("its times are not those of its period")
    return period


def _claim(judged: Judgement) -> Claim:
    return Claim(
        node=plain(judged.node),
        model=plain(judged.model),
        verdict=str(judged.verdict),
        what="" if judged.part is None else judged.part,
        claimed_exchanges=min(judged.claimed_exchanges, MOST),
        claimed_prompt=min(judged.claimed.prompt, MOST),
        claimed_completion=min(judged.claimed.completion, MOST),
        metered_exchanges=min(judged.metered_exchanges, MOST),
        metered_prompt=min(judged.metered.prompt, MOST),
        metered_completion=min(judged.metered.completion, MOST),
    )


def _lost(gap: Gap) -> LostReceipts:
    return LostReceipts(
        router=plain(gap.router), from_ms=gap.from_ms, to_ms=gap.to_ms, lost=gap.lost, why=plain(gap.why)
    )


def plain(text: str) -> str:
    """A text in printable ASCII: what is not is written as Python escapes it."""
    ascii_only = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in ascii_only)


def renumbered(adjustment: Adjustment, line: int) -> Adjustment:
    """The same for a line that has another number in a correction."""
    return structs.replace(adjustment, line=line)


def evidence_of(judged: Judgement, tolerance: Tolerance, period: str) -> dict[str, Any]:
    """What an incident about claims rests on."""
    part = judged.part or "completion"
    return {
        "period": period,
        "model": judged.model,
        "of": part,
        "claimed_tokens": of(judged.claimed, part),
        "metered_tokens": of(judged.metered, part),
        "allowed_tokens": of(tolerance.with_slack(judged.allowed, judged.allowed_exchanges), part),
        "claimed_exchanges": judged.claimed_exchanges,
        "metered_exchanges": judged.metered_exchanges,
    }
