"""Language models behind one protocol: vLLM in process, any OpenAI-compatible server, Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Final

from stream_agent.config import BackendConfig
from stream_agent.errors import ConfigError
from stream_agent.planner.backends.protocol import Backend

_CLASSES: Final = {
    "rehearsed": "RehearsedBackend",
    "transformers": "TransformersBackend",
    "vllm": "VllmBackend",
    "openai": "OpenAiBackend",
}


_TELLS: Final = ("vllm", "openai")
"""Kinds that tell of events while they run: a server lost, a server back."""

_INSTALL: Final = {
    "vllm": "docs/serving.md makes an environment for it",
    "transformers": "pip install 'stream-agent[transformers]'",
}


def build_backend(config: BackendConfig, notice: Callable[[str], None] = lambda _line: None) -> Backend:
    """The backend of `config`, not started; its file, and with it any heavy library, is imported only here.

    Raises:
        ConfigError: The kind is no language model, or what it needs is not installed.
    """
    if config.kind not in _CLASSES:
        raise ConfigError(f"planner.kind={config.kind} is no language model; choose one of {', '.join(_CLASSES)}")
    try:
        module = import_module(f"{__name__}.{config.kind}")
    except ImportError as error:
        raise ConfigError(
            f"planner.kind={config.kind} needs {error.name}, which is not installed here; {_INSTALL.get(config.kind, 'install it')}"
        ) from error
    named = {"notice": notice} if config.kind in _TELLS else {}
    backend: Backend = getattr(module, _CLASSES[config.kind])(config, **named)
    return backend
