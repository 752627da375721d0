import asyncio, time
import pytest
from fixtures.streaming import KINDS, Behaviour
from tests.integration.gateway import *
PACED={"stalls","cuts","cuts-mid-chunk","resets","truncates","bad-json","error-event","control","no-finish","no-done","slow"}
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["stream","whole","text","vec"])
async def test_probe(tmp_path, kind, what):
    async with opened(tmp_path) as fleet:
        a = await fleet.engine("a", Behaviour(kind, token_s=0.01 if kind in PACED else 0))
        b = await fleet.engine("b", Behaviour(tokens=5))
        await fleet.start(attempt_timeout_s=0.6, stall_s=0.3, timeout_s=3)
        body, path = {"stream": (STREAM|{"max_tokens":16}, CHATS), "whole": (CHAT, CHATS), "text": (TEXT|{"stream":True}, TEXTS), "vec": (WORK, VECTORS)}[what]
        t=time.monotonic()
        heard = await fleet.ask(body, path)
        took=time.monotonic()-t
        rec = await fleet.record(heard.headers)
        first=rec[0]
        try:
            text = heard.text
            gets = "whole" if text==story(16) else "next" if text==story(5) else f"part:{len(text)}"
            if heard.streamed: gets += " done" if heard.done else f" err {heard.error}"
            else: gets += f" {heard.status} {heard.error}"
        except Exception as e: gets=repr(e)
        with open("/tmp/probe.txt","a") as f:
            f.write(f"{what:7}{kind:16}{first['outcome']:10} {first['blame']:8} {first.get('unclean','')} failed={fleet.failed('a')} rej={fleet.standing('a').rejects} n={[(r['node'],r['outcome']) for r in rec][1:]} {gets} {took:.2f} {first['detail']}\n")
