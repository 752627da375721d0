"""
Answers of real engines, honest and cheating, recorded: what the rates of `verifier.answers.tables` were measured on.

    python -m bench.answer_recordings FOLDER [--count 240] [--only NAME …]

Each run is one engine with one file and one way to serve: `RUNS`.  Its answers are lines of JSON in FOLDER/NAME.jsonl.
`bench.answer_rates` compares them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from fixtures import chat_prompts, llama_server, smollm, smollm_variants, vllm_server

_MAX_TOKENS: Final = 48
_TOP: Final = 5
_PORT: Final = 18761
_READY_S: Final = 240.0


class Run(NamedTuple):
    """One way to serve: engine, file, requests at a time, temperature, prompt cache, threads."""

    engine: str
    file: str
    at_once: int = 1
    temperature: float = 0.0
    cached: bool = False
    threads: int = 1


RUNS: Final[dict[str, Run]] = {
    # The reference first: one request at a time, nothing remembered.
    "bf16": Run("llama.cpp", "bf16"),
    "bf16-4": Run("llama.cpp", "bf16", 4, cached=True),
    "q4_0-4": Run("llama.cpp", "q4_0", 4, cached=True),
    "q8_0-4": Run("llama.cpp", "q8_0", 4, cached=True),
    "pruned-4": Run("llama.cpp", "pruned", 4, cached=True),
    "bf16-8": Run("llama.cpp", "bf16", 8, cached=True, threads=2),
    "vllm-bf16": Run("vllm", "smollm2"),
    "bf16-warm": Run("llama.cpp", "bf16", temperature=0.8),
    "bf16-warm-4": Run("llama.cpp", "bf16", 4, 0.8, cached=True),
    "q4_0-warm-4": Run("llama.cpp", "q4_0", 4, 0.8, cached=True),
    "f32-4": Run("llama.cpp", "f32", 4, cached=True),
    "q8_0": Run("llama.cpp", "q8_0"),
    "noise-4": Run("llama.cpp", "noise", 4, cached=True),
    "vllm-bf16-4": Run("vllm", "smollm2", 4, cached=True),
    "bf16-warm-8": Run("llama.cpp", "bf16", 8, 0.8, cached=True),
    "q8_0-warm-4": Run("llama.cpp", "q8_0", 4, 0.8, cached=True),
    "pruned-warm-4": Run("llama.cpp", "pruned", 4, 0.8, cached=True),
    "f16-4": Run("llama.cpp", "f16", 4, cached=True),
    "bf16-cached": Run("llama.cpp", "bf16", 1, cached=True),
    "q4_0": Run("llama.cpp", "q4_0"),
    "published-4": Run("llama.cpp", "published", 4, cached=True),
    "vllm-warm": Run("vllm", "smollm2", temperature=0.8),
    "vllm-warm-4": Run("vllm", "smollm2", 4, 0.8, cached=True),
}


def record(folder: Path, name: str, count: int) -> None:
    """Record the answers of the run *name* to the first *count* prompts."""
    run, file = RUNS[name], folder / f"{name}.jsonl"
    prompts = chat_prompts.draw(480)[:count]
    started = time.monotonic()
    with _serving(run, folder) as url:
        bodies = [_body(run, index, messages) for index, messages in enumerate(prompts)]
        with concurrent.futures.ThreadPoolExecutor(run.at_once) as pool:
            answers = list(pool.map(lambda body: _ask(url, body), bodies))
    unfinished = file.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    unfinished.rename(file)
    print(f"{name}: {count} answers in {time.monotonic() - started:.0f} s", flush=True)


@contextlib.contextmanager
def _serving(run: Run, folder: Path) -> Iterator[str]:
    log = folder / "engine.log"
    if run.engine == "llama.cpp":
        file = smollm.published_file() if run.file == "published" else smollm_variants.write(folder, run.file)
        slots = ("--slots", str(run.at_once), "--threads", str(run.threads))
        with llama_server.running(file, f"127.0.0.1:{_PORT}", "m", log, *slots) as url:
            yield url
        return
    more = () if run.cached else ("--no-enable-prefix-caching",)
    command = vllm_server.command(vllm_server.model(run.file), _PORT, "m", *more, extension="")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            env=vllm_server.environment(VLLM_CPU_OMP_THREADS_BIND="0"), start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _READY_S
        while not vllm_server.is_ready(f"http://127.0.0.1:{_PORT}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vLLM is not ready: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{_PORT}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait(30)


def _body(run: Run, index: int, messages: list[dict[str, Any]]) -> dict[str, Any]:
    mine = {"cache_prompt": run.cached} if run.engine == "llama.cpp" else {}
    return {
        "model": "m", "messages": messages, "temperature": run.temperature, "max_tokens": _MAX_TOKENS,
        "logprobs": True, "top_logprobs": _TOP, "seed": index, **mine,
    }  # fmt: skip


def _ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One answer: text, finish reason, usage, and each token with the logarithms of its top choices' probabilities."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        answer = json.load(response)
    choice = answer["choices"][0]
    tokens = [
        [at["token"], [[top["token"], round(top["logprob"], 6)] for top in at["top_logprobs"]]]
        for at in choice["logprobs"]["content"]
    ]
    return {
        "body": {name: value for name, value in body.items() if name != "model"},
        "text": choice["message"]["content"] or "",
        "finish_reason": choice["finish_reason"],
        "prompt_tokens": answer["usage"]["prompt_tokens"],
        "completion_tokens": answer["usage"]["completion_tokens"],
        "tokens": tokens,
    }


def main() -> None:
    """Record every run that FOLDER does not have yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--only", nargs="*", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        if not (args.folder / f"{name}.jsonl").exists():
            record(args.folder, name, args.count)


if __name__ == "__main__":
    main()
