"""Each way in which OPA lets the outcome be written: the worker gives what OPA gives, or lint refuses it as OPA does."""

from __future__ import annotations

import dataclasses
import json

import pytest
import regorus

from fixtures.record_outcomes import FORMS, INPUTS, RECORDED, ask_opa
from verifier.config import default_policy
from verifier.policy import bundle as bundles
from verifier.policy import lint
from verifier.policy.engine import Limits, opened

DEFAULT = bundles.load(default_policy())
OPA = json.loads(RECORDED.read_text())


@pytest.mark.parametrize("name", FORMS)
async def test_outcome_is_opas_however_it_is_written(name: str) -> None:
    """`outcome[name].trust_vector := … if …` was linted, tested and published, and failed on every evaluation."""
    files = [(f"{number}.rego", source) for number, source in enumerate(FORMS[name])]
    engine = regorus.Engine()
    for file, source in files:
        engine.add_policy(file, source)
    found = lint.check(json.loads(engine.get_ast_as_json()), tests=frozenset())
    refused = {f.rule for f in found if f.level is lint.Level.ERROR} - {"tests-missing"}
    if isinstance(OPA[name], str):
        assert refused, OPA[name]
        return
    assert refused == set()
    bundle = dataclasses.replace(DEFAULT, modules=tuple(files), statement=name.encode())
    async with opened(bundle, Limits(1, 20.0)) as pool:
        assert [await pool.evaluate(json.dumps(given).encode()) for given in INPUTS] == OPA[name]


def test_recording_is_of_these_forms() -> None:
    """Whoever adds a form records it."""
    assert OPA.keys() == FORMS.keys()


def test_recording_is_what_opa_gives() -> None:
    """Where OPA's library can be imported."""
    pytest.importorskip("opa_bindings")
    assert {name: ask_opa(modules) for name, modules in FORMS.items()} == OPA
