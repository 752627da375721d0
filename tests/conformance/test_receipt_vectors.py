"""A receipt of a real run, and what one defect each makes of it: refused by the client, its command and its page."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from fixtures import receipt_vectors
from fixtures.browser import Page, browser, find
from fixtures.receipt_vectors import Vector
from router.client import page as client_page
from router.client.commands import client
from router.client.errors import UnverifiedError
from router.client.offline import Material, salt_of, verify_offline
from router.client.trust import parse_trust

VECTORS = receipt_vectors.load()
ALL = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
NODE = shutil.which("node")
BROWSER = find()
PAGE = Path(client_page.__file__).with_name("receipt.html")


@ALL
def test_the_client_refuses_one_defect(vector: Vector) -> None:
    """At its step and no other."""
    try:
        trust = parse_trust(json.dumps(vector.trust).encode())
        bundle = json.dumps(vector.bundle).encode()
        verify_offline(Material(bundle, salt_of(vector.salt), vector.request, vector.response), trust)
        found = None
    except UnverifiedError as error:
        # What cannot even be read has no step of its own.
        found = vector.step if "malformed" in error.reason else str(error.step)
    assert found == vector.step


@ALL
def test_the_command_refuses_one_defect(vector: Vector, tmp_path: Path) -> None:
    """It ends with status 1, and names the step."""
    files = {
        "receipt.json": json.dumps(vector.bundle).encode(),
        "trust.json": json.dumps(vector.trust).encode(),
    }
    files |= {"request": vector.request, "response": vector.response}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    given = [f"{tmp_path}/receipt.json", "--trust", f"{tmp_path}/trust.json", "--salt", vector.salt]
    bodies = ["--request", f"{tmp_path}/request", "--response", f"{tmp_path}/response"]
    found = CliRunner().invoke(client, ["check", *given, *bodies])
    assert (found.exit_code == 0) == (vector.step is None), found.output
    if vector.step is None:
        assert "(not checked" not in found.output.replace("(not checked: the node has no front", "")
    else:
        assert "WRONG" in found.output
        assert f"  {vector.step} " in found.output or "malformed" in found.output


def given(vector: Vector) -> str:
    """What the page's checks are given, as a script."""
    trust = vector.trust
    texts = {
        "bundle": json.dumps(vector.bundle),
        "salt": vector.salt,
        "routerName": trust["router"]["name"],
        "routerKeys": json.dumps({"keys": trust["router"]["keys"]}),
        "issuer": trust["verifier"]["issuer"],
        "verifierKeys": json.dumps({"keys": trust["verifier"]["keys"]}),
        "policy": trust["log"]["policy"],
        "platformClaims": ", ".join(trust["require"]["platform_claims"]),
        "modelClaims": ", ".join(trust["require"]["model_claims"]),
        "assurance": trust["require"]["assurance"],
    }
    bodies = {"request": vector.request, "response": vector.response}
    unpacked = [f"{name}: Uint8Array.from({list(body)})" for name, body in bodies.items()]
    return f"({{...{json.dumps(texts)}, {', '.join(unpacked)}}})"


def all_given() -> str:
    """The verdict of each vector, as a script."""
    return f"Promise.all([{', '.join(map(given, VECTORS))}].map((each) => Receipts.verify(each)))"


def judge(vector: Vector, found: Any) -> None:
    assert found["verdict"] == ("verified" if vector.step is None else "refused"), found
    assert found["step"] == vector.step, found


@cache
def by_node() -> list[Any]:
    """The verdicts of the page's first script without a page."""
    core = re.search(r"<script>(.*?)</script>", PAGE.read_text(), re.DOTALL)
    assert core is not None
    script = f"{core[1]}\n{all_given()}.then((found) => console.log(JSON.stringify(found)));"
    ran = subprocess.run([str(NODE), "-"], input=script.encode(), capture_output=True, check=True, timeout=60)
    return list(json.loads(ran.stdout))


@pytest.mark.skipif(NODE is None, reason="no Node.js here")
@ALL
def test_the_checks_of_the_page_refuse_one_defect(vector: Vector) -> None:
    """In another engine than the browser's."""
    judge(vector, by_node()[VECTORS.index(vector)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[Page]:
    """One browser for all tests here: it takes two seconds to start."""
    if BROWSER is None:
        pytest.skip("no browser here: Chromium, or TEST_BROWSER")
    async with browser(BROWSER) as page:
        yield page


@pytest_asyncio.fixture(loop_scope="module")
async def page(opened: Page) -> Page:
    """The page, anew."""
    await opened.open(PAGE.as_uri())
    opened.said.clear()
    return opened


in_browser = pytest.mark.asyncio(loop_scope="module")


@in_browser
async def test_a_real_browser_refuses_each_defect(page: Page) -> None:
    """From file://, with WebCrypto alone; each vector at its step."""
    for vector, found in zip(VECTORS, await page.run(all_given()), strict=True):
        judge(vector, found)


@pytest.mark.parametrize("member", ["receipt", "result", "log", "front"])
def test_the_client_refuses_one_changed_byte_anywhere(member: str) -> None:
    """Of the recorded receipt; tests/unit/router/test_client_checking.py has each byte of a made one."""
    right, trust = VECTORS[0], parse_trust(json.dumps(VECTORS[0].trust).encode())
    text = right.bundle["front"]["jws"] if member == "front" else right.bundle[member]
    passed = []
    for at in range(0, len(text), 7):
        altered = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        bundle = {**right.bundle, member: {"jws": altered} if member == "front" else altered}
        material = Material(json.dumps(bundle).encode(), salt_of(right.salt), right.request, right.response)
        with contextlib.suppress(UnverifiedError):
            verify_offline(material, trust)
            passed.append(at)
    assert passed == []


@in_browser
async def test_a_real_browser_refuses_one_changed_byte_anywhere(page: Page) -> None:
    """Of what is signed, of the proof, of the request and of the answer: every so many bytes, some 400 in all."""
    script = f"""(async () => {{
      const right = {given(VECTORS[0])}, whole = JSON.parse(right.bundle), wrong = [];
      const expectRefused = async (changed, where) => {{
        if ((await Receipts.verify({{...right, ...changed}})).verdict !== "refused") wrong.push(where);
      }};
      for (const member of ["receipt", "result", "log"]) {{
        const text = whole[member], stride = Math.ceil(text.length / 100);
        for (let at = 0; at < text.length; at += stride) {{
          const other = text[at] === "A" ? "B" : "A";
          const altered = text.slice(0, at) + other + text.slice(at + 1);
          await expectRefused({{bundle: JSON.stringify({{...whole, [member]: altered}})}}, `${{member}} ${{at}}`);
        }}
      }}
      const {{ jws }} = whole.front;
      for (let at = 0; at < jws.length; at += Math.ceil(jws.length / 100)) {{
        const altered = jws.slice(0, at) + (jws[at] === "A" ? "B" : "A") + jws.slice(at + 1);
        await expectRefused({{bundle: JSON.stringify({{...whole, front: {{jws: altered}}}})}}, `front ${{at}}`);
      }}
      for (const body of ["request", "response"]) {{
        const stride = Math.ceil(right[body].length / 50);
        for (let at = 0; at < right[body].length; at += stride) {{
          const altered = right[body].slice();
          altered[at] ^= 1;
          await expectRefused({{[body]: altered}}, `${{body}} ${{at}}`);
        }}
      }}
      return wrong;
    }})()"""
    assert await page.run(script) == []


@in_browser
async def test_a_person_checks_a_receipt_in_the_page(page: Page, tmp_path: Path) -> None:
    """By files, by the clipboard and by the keyboard; and nothing goes out."""
    right = VECTORS[0]
    files = {"request": right.request, "response": right.response, "trust": json.dumps(right.trust).encode()}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        await page.give_file(f"#{name}-file", tmp_path / name)
        await page.until(f"document.getElementById('{name}-file').dataset.taken === '1'")
    await page.run("document.getElementById('bundle').focus()")
    await page.type(json.dumps(right.bundle))
    await page.run("document.getElementById('salt').focus()")
    await page.type(right.salt)
    await page.press("Enter", 13, "\r")
    await page.until("document.getElementById('verdict').dataset.verdict")
    assert await page.run("document.getElementById('verdict').dataset.verdict") == "verified"
    assert await page.run("document.activeElement.id") == "verdict"
    shown = await page.run("document.getElementById('steps').innerText")
    assert shown.count("Right:") == 8

    altered = receipt_vectors._flip_byte(right.response)
    (tmp_path / "altered").write_bytes(altered)
    await page.run("document.getElementById('response-file').dataset.taken = ''")
    await page.give_file("#response-file", tmp_path / "altered")
    await page.until("document.getElementById('response-file').dataset.taken === '1'")
    await page.run("document.querySelector('button').focus()")
    await page.press("Enter", 13, "\r")
    await page.until("document.getElementById('verdict').dataset.verdict")
    assert "It is about your answer" in await page.run("document.getElementById('verdict').textContent")
    wrong = "document.querySelector('#steps li[data-state=wrong]').dataset.step"
    assert await page.run(wrong) == "response"
    requests = [each for each in page.said if each.get("method") == "Network.requestWillBeSent"]
    assert {each["params"]["request"]["url"] for each in requests} <= {PAGE.as_uri()}


HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@in_browser
async def test_text_of_a_receipt_is_text_in_the_page(page: Page) -> None:
    """Whatever a receipt says: it is shown, and nothing of it runs."""
    await page.run("document.getElementById('bundle').focus()")
    await page.type(json.dumps({"receipt": HOSTILE, "batch": {"router": HOSTILE}}))
    await page.run("document.getElementById('form').requestSubmit()")
    await page.until("document.getElementById('verdict').dataset.verdict")
    assert await page.run("document.querySelectorAll('#steps img, #steps script').length") == 0
    assert await page.run("document.title") == "Check a receipt of Touchstone"


@in_browser
async def test_the_page_can_reach_nobody(page: Page) -> None:
    """Its own policy forbids what a script in it would have to do to tell somebody."""
    script = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.name)"
    await page.run(script)
    await page.run("new Image().src = 'http://127.0.0.1:9/'; 1")
    refused = [each for each in page.said if "Content Security Policy" in json.dumps(each)]
    assert refused
    answers = [each for each in page.said if each.get("method") == "Network.responseReceived"]
    assert {each["params"]["response"]["url"] for each in answers} <= {PAGE.as_uri()}
