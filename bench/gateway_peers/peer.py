"""LiteLLM, in a venv of its own: it is measured against and never a dependency."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.gateway_peers.answers import MODEL

ROOT: Final = Path(__file__).parents[2]
VENV: Final = ROOT / ".venv-bench"
LOCK: Final = ROOT / ".ci" / "locks" / "bench.lock"
KEY: Final = "sk-3f9c1d7e5b2a4860"
"""Of no worth: for a process on loopback that answers with the same sixteen words."""


def peer_python() -> Path | None:
    """The Python that has LiteLLM, installed from its lock at the first call; `None` where it cannot be had."""
    python = VENV / "bin" / "python"
    made = VENV / ".made"
    if made.exists() and made.stat().st_mtime >= LOCK.stat().st_mtime:
        return python
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-compile", "--require-hashes"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, capture_output=True)
        (VENV / ".gitignore").write_text("*\n")
        subprocess.run(
            [str(python), *pip, "--only-binary", ":all:", "-r", str(LOCK)],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines()
        sys.stdout.write(f"  (without LiteLLM: it cannot be installed: {said[-1] if said else error})\n")
        return None
    made.touch()
    return python


def version(python: Path) -> str:
    """LiteLLM's version."""
    code = "from importlib.metadata import version; print(version('litellm'))"
    return subprocess.run(
        [str(python), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def environment() -> dict[str, str]:
    """Quiet, in production's mode, and without a look at the network."""
    return {
        **os.environ,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        "LITELLM_LOCAL_BLOG_POSTS": "True",
        "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
        "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    }


def write_config(path: Path, backend: str) -> None:
    """One deployment, no database, no callbacks; JSON is YAML."""
    deployment = {
        "model": f"openai/{MODEL}",
        "api_base": f"{backend}/v1",
        "api_key": "sk-unused",
    }
    path.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": deployment}],
                # The backend's certificate is self-signed.
                "litellm_settings": {"ssl_verify": False, "telemetry": False},
                "general_settings": {"master_key": KEY},
            }
        )
    )


def command(python: Path, config: Path, port: int) -> list[str]:
    """Its proxy with one worker."""
    given = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [str(python.parent / "litellm"), *given]
