"""A statement as others read it: CSV (RFC 4180), JSON, and a page without scripts.  Pure."""

from __future__ import annotations

import csv
import datetime as dt
import io
from html import escape
from typing import Any, Final

import msgspec

from router.settlement.accounts import Line
from router.settlement.amounts import exact, rounded, share
from router.settlement.statements import Statement

COLUMNS: Final = (
    "statement", "operator", "period", "line", "node", "model", "workload", "tier", "exchanges", "prompt_tokens",
    "completion_tokens", "price_input", "price_output", "unit", "amount", "amount_exact", "deductions", "total_exact",
    "total_rounded", "disputed", "completed", "per_exchange", "per_completed", "per_million_tokens", "receipts_root",
)  # fmt: skip
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""How a text begins that a spreadsheet would compute (OWASP, CSV injection)."""


def to_csv(name: str, statement: Statement, disputed: frozenset[int] = frozenset()) -> str:
    """
    The lines as a table.

    Args:
        name: The statement's id.
        statement: What is shown.
        disputed: The numbers of lines with an open dispute.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for line in statement.lines:
        deductions, total = _adjusted(statement, line)
        writer.writerow(
            [
                name, _cell(statement.operator), statement.period, line.number, _cell(line.node), _cell(line.model),
                _cell(line.workload), _cell(line.tier), line.exchanges, line.prompt, line.completion,
                line.price_input, line.price_output, _cell(statement.unit), line.amount, line.amount_exact,
                exact(deductions), exact(total), rounded(total, statement.decimals),
                "yes" if line.number in disputed else "no", line.completed, *_costs(line, total), line.receipts_root,
            ]
        )  # fmt: skip
    return text.getvalue()


def to_json(name: str, statement: Statement, token: str, disputes: list[dict[str, Any]]) -> dict[str, Any]:
    """All of it, with the signed form and what is disputed by now."""
    return {
        "id": name,
        "statement": msgspec.to_builtins(statement),
        "signed": token,
        "disputes": disputes,
    }


def to_html(name: str, statement: Statement, disputed: frozenset[int] = frozenset()) -> str:
    """A page to read and to print.  Whatever comes from a node or an operator is escaped."""
    rows = []
    for line in statement.lines:
        deductions, total = _adjusted(statement, line)
        cells = [
            str(line.number), line.node, line.model, line.tier, f"{line.exchanges:,}", f"{line.prompt:,}",
            f"{line.completion:,}", f"{line.price_input:,} / {line.price_output:,}", exact(line_amount(line)),
            exact(deductions) if deductions else "", rounded(total, statement.decimals),
            "disputed" if line.number in disputed else "",
        ]  # fmt: skip
        rows.append(_row("td", cells))
    costs = [
        _row("td", [str(line.number), f"{line.completed:,}", *_costs(line, _adjusted(statement, line)[1])])
        for line in statement.lines
    ]
    claims = [
        _row(
            "td",
            [
                each.node, each.model or "all models", each.verdict,
                f"{each.claimed_exchanges:,}", f"{each.claimed_prompt:,}", f"{each.claimed_completion:,}",
                f"{each.metered_exchanges:,}", f"{each.metered_prompt:,}", f"{each.metered_completion:,}",
            ],
        )
        for each in statement.claims
    ]  # fmt: skip
    changed = [
        _row("td", [str(each.line), exact(int(each.amount)), each.actor, each.reason])
        for each in statement.adjustments
    ]
    unit = escape(statement.unit)
    head = [
        f"<p>Operator: <b>{escape(statement.operator) or '(none)'}</b>. Number {statement.number}.</p>",
        f"<p>From {_time(statement.from_ms)} up to {_time(statement.to_ms)}, UTC.</p>",
        f"<p>Total: <b>{statement.total_rounded} {unit}</b>, exactly {statement.total_exact} {unit}.</p>",
        f"<p>Id: <code>{escape(name)}</code>. Made {_time(statement.made_ms)} by {escape(statement.router)}.</p>",
    ]
    if statement.previous is not None:
        head.append(
            f"<p>It corrects <code>{escape(statement.previous)}</code>: {escape(statement.correction)}</p>"
        )
    if statement.lost:
        head.append(
            f"<p>Routers may have lost receipts {len(statement.lost)} times; claims were allowed for that.</p>"
        )
    if statement.unreadable or statement.missing:
        lost = statement.unreadable + statement.missing
        head.append(
            f"<p>{lost} receipts of the period could not be read or are gone, and are in no line.</p>"
        )
    return _PAGE.format(
        title=f"Statement of {escape(statement.operator)} for {escape(statement.period)}",
        head="\n".join(head),
        lines=_table(_LINES, rows),
        costs=_table(_COSTS, costs),
        claims="" if not claims else "<h2>What nodes have claimed</h2>" + _table(_CLAIMS, claims),
        changed="" if not changed else "<h2>Changed by people</h2>" + _table(_CHANGED, changed),
    )


def to_text(name: str, statement: Statement, disputed: frozenset[int] = frozenset()) -> str:
    """For a terminal."""
    lines = [
        f"Statement {name}",
        f"{statement.operator or '(no operator)'}, {statement.period}, number {statement.number}",
    ]
    if statement.previous is not None:
        lines.append(f"It corrects {statement.previous}: {statement.correction}")
    for line in statement.lines:
        deductions, total = _adjusted(statement, line)
        changed = f", deductions {exact(deductions)}" if deductions else ""
        mark = ", disputed" if line.number in disputed else ""
        lines.append(
            f"  {line.number}. {line.node}  {line.model} ({line.tier})  {line.exchanges} exchanges,"
            f" {line.prompt} + {line.completion} tokens at {line.price_input} / {line.price_output}:"
            f" {exact(total)}{changed}{mark}"
        )
    lines += [
        f"  claims of {each.node} for {each.model or 'all models'}: {each.verdict}"
        f" ({each.claimed_prompt} + {each.claimed_completion} tokens claimed,"
        f" {each.metered_prompt} + {each.metered_completion} metered)"
        for each in statement.claims
    ]
    lines.append(f"Total {statement.total_rounded} {statement.unit}, exactly {statement.total_exact}")
    return "\n".join(lines) + "\n"


def line_amount(line: Line) -> int:
    """The exact amount of a line."""
    return int(line.amount)


def _adjusted(statement: Statement, line: Line) -> tuple[int, int]:
    deductions = sum(int(each.amount) for each in statement.adjustments if each.line == line.number)
    return deductions, int(line.amount) + deductions


def _costs(line: Line, total: int) -> tuple[str, str, str]:
    """What an exchange, a completed answer and a million tokens have come to."""
    tokens = line.prompt + line.completion
    return share(total, line.exchanges), share(total, line.completed), share(total * 1_000_000, tokens)


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _time(ms: int) -> str:
    return dt.datetime.fromtimestamp(ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _table(names: tuple[str, ...], rows: list[str]) -> str:
    return (
        "<table><thead>" + _row("th", list(names)) + "</thead><tbody>" + "\n".join(rows) + "</tbody></table>"
    )


_LINES: Final = (
    "Line", "Node", "Model", "Tier", "Exchanges", "Prompt tokens", "Completion tokens", "Price in / out", "Exactly",
    "Deductions", "Rounded", "",
)  # fmt: skip
_COSTS: Final = ("Line", "Completed answers", "An exchange", "A completed answer", "A million tokens")
_CLAIMS: Final = (
    "Node", "Model", "Verdict", "Claimed exchanges", "Prompt", "Completion", "Metered exchanges", "Prompt",
    "Completion",
)  # fmt: skip
_CHANGED: Final = ("Line", "Amount", "By", "Why")
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.4 sans-serif;margin:2em}}table{{border-collapse:collapse}}
td,th{{border:1px solid #999;padding:.2em .5em;text-align:right}}td:nth-child(-n+4),th{{text-align:left}}</style>
</head><body><h1>{title}</h1>
{head}
<h2>Lines</h2>
<p>Prices are in millionths of the unit for a million tokens. Each line is exact; what is rounded is rounded once,
half to even.</p>
{lines}
<h2>What it came to</h2>
{costs}
{claims}
{changed}
</body></html>
"""
