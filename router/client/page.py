"""
The page that checks a receipt in a browser, from a file and without a network.

It is one file, ``receipt.html``.  Its policy (Content Security Policy 3) allows its own two scripts and its own style,
by their digests, and nothing else: no other script, no request, no form.

    python -m router.client.page        writes the digests anew after a change
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Final

_NAME: Final = "receipt.html"
_POLICY: Final = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")[^"]*(">)')


def read_page() -> bytes:
    """The page."""
    return resources.files("router.client").joinpath(_NAME).read_bytes()


def policy_of(page: str) -> str:
    """The policy that a page must have: of its scripts and its style as they are."""
    scripts = " ".join(_digests(page, "script"))
    styles = " ".join(_digests(page, "style"))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'"
    )


def with_policy(page: str) -> str:
    """The page with its policy."""
    return _POLICY.sub(lambda found: f"{found[1]}{policy_of(page)}{found[2]}", page, count=1)


def _digests(page: str, tag: str) -> list[str]:
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]


if __name__ == "__main__":
    path = Path(__file__).with_name(_NAME)
    path.write_text(with_policy(path.read_text()))
