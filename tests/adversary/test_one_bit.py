"""
One bit changed anywhere in the weights: contraindicated on `executables`, on every tensor.

The published MiniLM, its own 104 tensors, one bit each, at a place drawn from a seed; the
whole core (check, the default policy in its worker, conclude) judges the answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attester.evidence import Capabilities, Token, WalkAnswer
from attester.kinds import write_submod
from attester.weights import possession
from attester.weights.folder import open_folder
from attester.weights.kernels import row_words
from attester.weights.manifest import measure
from attester.weights.select import kernel
from attester.weights.tensors import Tensor, TensorFiles
from fixtures.minilm import MODEL
from fixtures.simulator import SimulatedNode
from verifier import appraisal, opening
from verifier.appraisal import NodeSnapshot, ResultSettings
from verifier.challenges.minting import Minter
from verifier.challenges.pool_key import PoolKey, WalkParameters
from verifier.challenges.posing import pose
from verifier.config import default_policy
from verifier.policy import bundle
from verifier.policy.engine import Limits, WorkerPool
from verifier.policy.engine import opened as workers
from verifier.schemes.context import Answers, Context, ModelReference, Node, ReferenceFile, Session

KEY = PoolKey(bytes(range(32)))
NOW = 1_795_000_000
CAPABILITIES = Capabilities(hardware_class="cpu", memory_bytes=1, context_length=1, quantisation="none")


class Judge:
    """Appraises walks of MiniLM against a minted challenge."""

    def __init__(self, folder: Path) -> None:
        opened = open_folder(folder)
        self.tensors = TensorFiles(opened)
        minter = Minter(model=MODEL, folder=opened, tensors=self.tensors, key=KEY, kernel=kernel(), batch=1)
        (entries,) = minter.walks(0, 1, WalkParameters(rows=4))
        self.asked = pose(entries, {}, KEY)
        self.manifest = measure(opened).to_claim()
        self.policy = bundle.load(default_policy())
        self.simulated = SimulatedNode(folder, model=MODEL, audience="v", ueid=b"\x01" + bytes(16))
        self.reference = ModelReference(
            digest="r",
            files={f.name: ReferenceFile(f.size, {"sha256": f.sha256}) for f in self.manifest.files},
            tensor_bytes=self.tensors.total,
        )

    def walk(self, tensors: list[Tensor]) -> WalkAnswer:
        challenge = self.asked[MODEL].walk
        assert challenge is not None
        seed = bytes.fromhex(challenge.seed)
        words = [row_words(seed, row) for row in range(challenge.rows)]
        answers = possession.walk(tensors, words, challenge.passes, kernel())
        return WalkAnswer(answers=tuple(answers), source="engine", device="cpu", micros=1)

    async def executables(self, engine: WorkerPool, walk: WalkAnswer) -> int:
        claims = {"manifest": self.manifest, "walk": walk}
        platform = write_submod({"capabilities": CAPABILITIES})
        submods = {"platform": platform, f"model/{MODEL}": write_submod(claims)}
        token = Token(bytes(32), self.simulated.ueid, NOW, "v", submods)
        sealed = opening.read_envelope("application/eat+cwt", token.sign(self.simulated.key))
        answers = {MODEL: Answers(walk=tuple(answer.hex() for answer in walk.answers))}
        session = Session(
            id="s",
            channel="call",
            nonce=bytes(32),
            issued_ms=NOW * 1000,
            expires_ms=NOW * 1000 + 1,
            asked=self.asked,
            answers=answers,
            answer_ms=10,
        )
        context = Context(
            now_ms=NOW * 1000,
            audience="v",
            skew_s=30,
            session=session,
            node=Node(
                id="n",
                ueid=self.simulated.ueid,
                key=self.simulated.key.public,
                operator="o",
                models=(MODEL,),
                hardware_class="cpu",
                state="active",
            ),
            references={MODEL: self.reference},
            history={},
            thresholds=self.policy.thresholds,
        )
        checked = appraisal.check(opening.authenticate(sealed, context.node), context)
        raw = await engine.evaluate(checked.policy_input(context))
        outcome = appraisal.read_outcome(raw, checked.submods)
        terms = ResultSettings("v", 300, "{jti}")
        result = appraisal.conclude(
            checked, outcome, context, NodeSnapshot(), terms, jti="0" * 32, policy_id="p"
        )
        return result.value(f"model/{MODEL}", "executables")


@pytest.mark.timeout(400)
async def test_one_bit_in_every_tensor(minilm: Path) -> None:
    """All of them are caught; the untouched weights pass."""
    judge = Judge(minilm)
    tensors = list(judge.tensors)
    places = np.random.default_rng(26)
    async with workers(judge.policy, Limits(1, 10)) as engine:
        assert await judge.executables(engine, judge.walk(tensors)) == -2
        missed = []
        for number, tensor in enumerate(tensors):
            if tensor.data.size == 0:
                continue
            changed = tensor.data.copy()
            changed[places.integers(changed.size)] ^= np.int8(1 << places.integers(7))
            altered = [*tensors[:number], Tensor(tensor.name, changed), *tensors[number + 1 :]]
            if await judge.executables(engine, judge.walk(altered)) != 96:
                missed.append(tensor.name)
    assert missed == []
    assert len(tensors) == 104
