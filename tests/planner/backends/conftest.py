"""Models and servers that tests with vLLM share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.planner.backends import tiny_models
from tests.planner.backends.environment import SMOLLM2
from tests.planner.backends.tiny_models import Family

_STARTS_WITHIN_S = 400.0
_ENDS_WITHIN_S = 15.0
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Two servers share two processors: neither sits on one, nor spins while the other waits.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real language model."""
    if not SMOLLM2.is_dir():
        pytest.fail(f"{SMOLLM2} does not exist; run `make test-vllm`, which makes it")
    return SMOLLM2


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("qwen3_vl")`: a model with random weights of that family, built once."""
    folder, built = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def build(family: Family, *, endless: bool = False) -> Path:
        name = f"{family}-endless" if endless else family
        if name not in built:
            built[name] = tiny_models.build(family, folder / name, endless=endless)
        return built[name]

    return build


class Server:
    """A vLLM server of its own, started as the documentation says."""

    def __init__(self, model: Path, log: Path, *more: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = log
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(self.port),
                   "--model", str(model), "--served-model-name", "planner", "--dtype", "float32", "--enforce-eager",
                   "--max-model-len", "8192", "--max-num-seqs", "16", "--block-size", "32", "--generation-config", "vllm",
                   "--scheduling-policy", "priority", "--enable-prompt-tokens-details",
                   "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}', *more]  # fmt: skip
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **_ENVIRONMENT},
            )

    def wait_until_ready(self) -> None:
        """Return when it says that it is healthy."""
        end = time.monotonic() + _STARTS_WITHIN_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                pass
            assert self.process.poll() is None, f"the server ended:\n{self._log.read_text()[-4000:]}"
            assert time.monotonic() < end, f"the server is not ready:\n{self._log.read_text()[-4000:]}"
            time.sleep(0.5)

    def kill(self) -> None:
        """End it and its children as a power cut would."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(timeout=_ENDS_WITHIN_S)


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """`start_server(model, "--more")`: a live server, which ends with the module."""
    folder, servers = tmp_path_factory.mktemp("servers"), list[Server]()

    def start(model: Path, *more: str) -> Server:
        servers.append(Server(model, folder / f"{len(servers)}.log", *more))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
