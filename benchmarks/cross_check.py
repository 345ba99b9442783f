"""The same server asked by vLLM's own benchmark: `vllm bench serve` beside our client, on prompts of the same length.

Time to first token of requests that share nothing with one another, one after the other. Ours are the rationale lane's: the real
prompt, a schema to hold to, the log-probabilities that the product asks for; vLLM's are random tokens and free text. So ours may
take longer by what the schema costs the server, and a larger difference would mean that our clock or our client is wrong.
It needs vLLM in this environment and the model's directory, for its tokenizer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_LIMIT_S = 600
OUTPUT_TOKENS = 16
# What `vllm bench serve` does; its command line looks for a distribution called vllm, which the CPU build is not.
_BENCH = """
import sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""


def why_not(model: Path | None, endpoint: str | None) -> str:
    """What is missing for a cross-check; empty when nothing is."""
    if endpoint is None:
        return "it asks a server; run it with planner.kind=openai planner.endpoint=http://HOST:PORT/v1"
    if model is None:
        return "its random prompts need the tokenizer; add planner.model=DIR of the served model"
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed here; run it in vLLM's environment (docs/serving.md)"
    return ""


def vllm_bench_ms(*, endpoint: str, served_model: str, model: Path, prompt_tokens: int, count: int) -> dict[str, Any]:
    """Times to first token and between tokens, in ms, as vLLM's benchmark measured them.

    Raises:
        RuntimeError: It failed; the message is its last line.
    """
    parts = urlsplit(endpoint)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _BENCH, "--backend", "openai", "--endpoint", f"{parts.path}/completions"]
        command += ["--base-url", f"{parts.scheme}://{parts.netloc}", "--model", str(model)]
        command += ["--served-model-name", served_model, "--tokenizer", str(model), "--dataset-name", "random"]
        command += ["--random-input-len", str(prompt_tokens), "--random-output-len", str(OUTPUT_TOKENS)]
        command += ["--num-prompts", str(count), "--num-warmups", "1", "--max-concurrency", "1", "--ignore-eos"]
        command += ["--disable-tqdm", "--save-result", "--save-detailed", "--result-dir", folder]
        command += ["--result-filename", "result.json", "--temperature", "0"]
        done = subprocess.run(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        result = Path(folder, "result.json")
        if done.returncode or not result.is_file():
            said = (done.stderr.strip().splitlines() or ["it wrote no result"])[-1]
            raise RuntimeError(f"vllm bench serve ended with {done.returncode}: {said[:200]}")
        return figures(json.loads(result.read_bytes()), count)


def figures(result: dict[str, Any], count: int) -> dict[str, Any]:
    """What its detailed result says, in ms.

    Raises:
        RuntimeError: Not every request was answered.
    """
    if result["completed"] != count:
        errors = [error for error in result.get("errors", ()) if error]
        raise RuntimeError(f"vllm bench serve had {result['completed']} of {count} answered: {str(errors[:1])[:200]}")
    return {
        "first_ms": [1000 * seconds for seconds in result["ttfts"]],
        "next_ms": [1000 * seconds for steps in result["itls"] for seconds in steps],
        "prompt_tokens": sum(result["input_lens"]) / count,
    }
