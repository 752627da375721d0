"""
Prompts of our own, for an operator who has no file of them.  Pure.

They are put together from lists that everybody can read, so a node that knows them can recognise them: they are worth
little against somebody who tries.  Prompts from an operator's own file are what a check should be made of.
"""

from __future__ import annotations

from typing import Any, Final

from verifier.answers.draws import Draws

SYSTEMS: Final = (
    "You are a helpful assistant.",
    "Answer in one short paragraph.",
    "You are a patient teacher. Explain step by step, and keep it short.",
    "You help customers of an online shop. Be polite and brief.",
    "You are an experienced software engineer. Answer with code where it helps.",
    "Answer only from the text that the user gives. If the text does not say it, say so.",
)
_THINGS: Final = (
    "a bicycle", "a bridge", "a small company", "a public library", "a garden", "a database", "a river", "a school play",
    "a train station", "a recipe", "a rental contract", "a web server", "a power plant", "a football club", "a museum",
    "a solar panel", "a hospital ward", "a harbour", "a sorting algorithm", "a mountain village", "a budget", "a ferry",
    "a weather station", "a bakery", "a spreadsheet", "a telescope", "a translation", "a battery", "a law firm", "a farm",
)  # fmt: skip
_PEOPLE: Final = (
    "a child of ten", "my grandmother", "a new colleague", "a customer", "the city council", "a student of biology",
    "somebody who has never seen one", "an engineer", "a tourist", "a journalist", "the board", "a neighbour",
)  # fmt: skip
_TASKS: Final = (
    "Explain {thing} to {person}.",
    "Write a short letter to {person} about {thing}.",
    "What are three things that {person} should know about {thing}?",
    "Compare {thing} and {other}. Which one costs more to keep, and why?",
    "List the steps to repair {thing}, for {person}.",
    "Write a Python function that stores the cost of {thing} by {unit}, with a test.",
    "Make a table with the advantages and disadvantages of {thing} and {other}.",
    "What went wrong when {person} bought {thing} without looking at it first? Tell it as a story.",
    "Suggest a title and a first sentence for an article about {thing} and {person}.",
    "How much {unit} does {thing} need in {number} days if it needs {small} each day?",
    "Translate into French: {person} has sold {thing} and wants {other} instead.",
    "Summarise in one sentence:",
)
_UNITS: Final = ("hours", "litres", "euros", "kilograms", "kilowatt hours", "pages", "kilometres")
_SENTENCES: Final = (
    "We have had {thing} for {number} years, and {person} looks after it.",
    "Last week {person} asked me about {other}, and I had no answer.",
    "It cost {number} {unit}, which was more than {person} expected.",
    "There is {thing} next to {other}, and nobody uses either of them on a Sunday.",
    "In the first {small} days everything went well; then {person} complained.",
    "The report says that {thing} takes {number} {unit} in a month.",
    "{person} would rather have {other}, but there is no money for it this year.",
    "Please keep in mind that {person} will read the answer, and that there is little time.",
    "Of the {number} people who were asked, {small} had never heard of {thing}.",
)

LEFT_OUT: Final = 6
"""Characters that a prompt may be shorter than it was to be."""


def write(draws: Draws, length: int) -> str:
    """Write a prompt of *length* characters, or some fewer: it ends with a word."""
    text = _fill(draws, draws.pick(_TASKS))
    while len(text) < length:
        sentence = _fill(draws, draws.pick(_SENTENCES))
        text += " " + sentence[0].upper() + sentence[1:]
    if len(text) <= length:
        return text
    whole, space, _ = text[: length + 1].rpartition(" ")
    # Where a word is longer than what may be left out, it is cut.
    return whole if space and len(whole) >= length - LEFT_OUT else text[:length]


def _fill(draws: Draws, pattern: str) -> str:
    return pattern.format(
        thing=draws.pick(_THINGS),
        other=draws.pick(_THINGS),
        person=draws.pick(_PEOPLE),
        unit=draws.pick(_UNITS),
        number=10 + draws.below(990),
        small=2 + draws.below(8),
    )


def _tool(name: str, about: str, **parameters: str) -> dict[str, Any]:
    properties = {
        parameter: {"type": kind, "description": parameter.replace("_", " ")}
        for parameter, kind in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(parameters)[:1]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}


TOOLS: Final = (
    _tool("get_weather", "Get the weather of a place.", location="string", unit="string"),
    _tool("search", "Search the web.", query="string", limit="integer"),
    _tool("read_file", "Read a file of the project.", path="string"),
    _tool("send_email", "Send an e-mail.", to="string", subject="string", body="string"),
    _tool("get_order", "Look up an order.", order_id="string"),
    _tool("run_query", "Run a query on the database.", sql="string"),
    _tool(
        "create_event", "Put an event into the calendar.", title="string", start="string", minutes="integer"
    ),
    _tool("convert_currency", "Convert an amount of money.", amount="number", currency="string", to="string"),
)
