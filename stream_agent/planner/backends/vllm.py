"""vLLM in this process: the production backend on a GPU, and the same code on vLLM's CPU build.

`AsyncLLM` batches whatever is running; lower `priority` goes first, and a rank request overtakes a rationale at the next step.
Prompts are rendered and tokenised here, so that what is text stays text; the engine gets tokens, pictures under ids of their own,
and the case's salt for its prefix cache. The model's own directory decides nothing about sampling, and nothing is fetched.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_agent.config import BackendConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.adapters import LARGEST_RANK, adapter_directory
from stream_agent.planner.backends.chat import pictures_of, rendered
from stream_agent.planner.backends.deadline import counted, until
from stream_agent.planner.backends.proof import prove
from stream_agent.planner.backends.protocol import (
    TOO_LONG,
    TOO_LONG_REMEDY,
    Call,
    Capabilities,
    Message,
    Picture,
    Prompt,
    Usage,
)
from stream_agent.planner.backends.together import together
from stream_agent.planner.model_files import ModelFiles, go_offline, verified

_WARM_UP_SIZE = (224, 448)
_BATCHES = (1, 2, 4, 8)
_CPU_BLOCK = 32  # the CPU attention takes multiples of it
_PICTURES_PER_PROMPT = 16
_SHUTDOWN_S = 3.0
_ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, and a fork of it may hang
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "PASSIVE",
}


class VllmBackend:
    """The backend of `planner.kind=vllm`.

    Args:
        config: Of the planner or its captioner.
        notice: Told of events, one line each.
    """

    name = "vllm"

    def __init__(self, config: BackendConfig, *, notice: Callable[[str], None] = lambda _line: None) -> None:
        go_offline()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # For the CPU build: a cache that does not take a share of the machine's memory, and threads that neither sit on
        # processors of their own choice nor spin on them while others wait.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(config.kv_cache_gb or 1))))
        os.environ.setdefault("OMP_NUM_THREADS", str(config.threads))
        import vllm  # noqa: F401  an absent package is told before anything is loaded

        self._config = config
        self._notice = notice
        self._engine: Any = None
        self._tokenizer: Any = None
        self._renderer: Any = None
        self._control: tuple[str, ...] = ()
        self._ids: dict[str, int] = {}
        self._adapters: dict[str, Any] = {}
        self._usage = Usage()

    async def start(self) -> Capabilities:
        """Load the model, run every shape once, and prove what it can do.

        Raises:
            ConfigError: The model's files may not be loaded, or it cannot do what is needed.
            BackendError: The engine did not start.
        """
        if self._config.model is None:
            raise ConfigError("planner.kind=vllm needs planner.model=DIR, a local directory")
        files = await asyncio.to_thread(verified, self._config.model, digest=self._config.digest)
        adapters = {
            name: await asyncio.to_thread(adapter_directory, path) for name, path in self._config.adapters.items()
        }
        self._engine = await asyncio.to_thread(self._load, files)
        from vllm.lora.request import LoRARequest

        for number, (name, path) in enumerate(adapters.items(), 1):
            self._adapters[name] = LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(path))
            await self._engine.add_lora(self._adapters[name])
        self._tokenizer = self._engine.get_tokenizer()
        self._renderer = await asyncio.to_thread(self._template_owner, files)
        self._control = tuple(dict.fromkeys(map(str, self._tokenizer.all_special_tokens)))
        proof = await prove(self)
        if proof.missing:
            await self.close()
            raise ConfigError(f"{files.directory} in vLLM lacks " + "; and ".join(proof.missing))
        await self._warm_up(with_picture=proof.pictures)
        self._usage = Usage()
        return Capabilities(
            model=files.name,
            digest=files.digest,
            pictures=proof.pictures,
            context_tokens=int(self._engine.model_config.max_model_len),
            notes=(*self._notes(files), *proof.notes),
        )

    def tokens(self, text: str) -> tuple[int, ...] | None:
        """The tokens of a text without special ones."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    async def score(
        self, prompts: Sequence[Prompt], candidates: Sequence[Sequence[str]], call: Call
    ) -> NDArray[np.float64]:
        """As the protocol says; the engine runs the prompts as one batch."""
        if not prompts:
            return np.empty((0, 0))
        with counted(self._usage.calls, "score"):
            async with until(call.deadline_ns):
                rows = await together(
                    self._score_one(prompt, texts, call, f"{call.id}-{index}")
                    for index, (prompt, texts) in enumerate(zip(prompts, candidates, strict=True))
                )
        return np.array(rows)

    async def generate(
        self, prompt: Prompt, call: Call, *, max_tokens: int, schema: Mapping[str, Any] | None = None
    ) -> AsyncIterator[str]:
        """As the protocol says."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        held = StructuredOutputsParams(json=dict(schema), disable_any_whitespace=True) if schema is not None else None
        params = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, structured_outputs=held, output_kind=RequestOutputKind.DELTA
        )
        with counted(self._usage.calls, "generate"):
            outputs = self._run(prompt, params, call, call.id)
            first = True
            try:
                while True:
                    async with until(call.deadline_ns):
                        output = await anext(outputs, None)
                    if output is None:
                        return
                    if first:
                        self._count_prompt(output)
                        first = False
                    self._usage.written_tokens += len(output.outputs[0].token_ids)
                    if output.outputs[0].text:
                        yield output.outputs[0].text
            finally:
                await outputs.aclose()

    def usage(self) -> Usage:
        """By the engine's own counts."""
        return self._usage

    async def close(self) -> None:
        """End the engine and its processes."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown, _SHUTDOWN_S)
            await asyncio.sleep(0)  # its task, cancelled by now, still holds it
            del engine
            gc.collect()  # it is part of a cycle, and its own clean-up fails at the interpreter's end

    def _load(self, files: ModelFiles) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        config, on_cpu = self._config, bool(current_platform.is_cpu())
        if config.device != "auto" and (config.device == "cpu") != on_cpu:
            raise ConfigError(
                f"planner.device={config.device}, but this vLLM is built for {'the CPU' if on_cpu else 'a GPU'}; "
                "set planner.device=auto or install the other build"
            )
        given: dict[str, Any] = {
            "model": str(files.directory),
            "tokenizer": str(files.directory),
            "load_format": "safetensors",
            "trust_remote_code": False,
            "generation_config": "vllm",  # not the model's own: its repetition penalty would change a greedy answer
            "allowed_local_media_path": "",
            "seed": 0,
            "dtype": ("float32" if on_cpu else "bfloat16") if config.dtype == "auto" else config.dtype,
            "quantization": config.quantization,
            "kv_cache_dtype": config.kv_cache_dtype,
            "max_model_len": config.context_tokens,
            "max_num_seqs": config.parallel,
            "enforce_eager": config.eager or on_cpu,
            "enable_prefix_caching": True,
            "scheduling_policy": "priority",
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
            "max_logprobs": 64,
            "enable_lora": bool(config.adapters),
            "disable_log_stats": True,
        }
        if config.adapters:
            given |= {"max_loras": len(config.adapters), "max_lora_rank": LARGEST_RANK}
        if files.has_vision:
            given["limit_mm_per_prompt"] = {"image": _PICTURES_PER_PROMPT, "video": 0}
        if on_cpu:
            given["block_size"] = _CPU_BLOCK
        else:
            given["gpu_memory_utilization"] = config.gpu_memory
        if config.kv_cache_gb is not None:
            given["kv_cache_memory_bytes"] = round(config.kv_cache_gb * 2**30)
        try:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**given))
        except Exception as error:  # vLLM raises whatever its parts raise; the last line says most
            raise BackendError(f"vLLM did not start with {files.directory}: {_brief(error)}") from error

    def _template_owner(self, files: ModelFiles) -> Any:
        """The processor of a model with eyes, its tokenizer otherwise: whichever holds the chat template."""
        if not files.has_vision:
            return self._tokenizer
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(str(files.directory), local_files_only=True, trust_remote_code=False)
        return processor if getattr(processor, "chat_template", None) else self._tokenizer

    async def _input(self, prompt: Prompt, call: Call) -> Any:
        from vllm.inputs import TokensPrompt

        tokens = self._tokenizer.encode(rendered(prompt, self._renderer, self._control), add_special_tokens=False)
        given = TokensPrompt(prompt_token_ids=tokens)
        pictures = pictures_of([prompt])
        if pictures:
            given["multi_modal_data"] = {"image": [_as_pil(picture) for picture in pictures]}
            # The engine hands out what it computed for an id whatever the picture is; a case's ids are its own.
            given["multi_modal_uuids"] = {"image": [f"{call.cache_salt[:16]}-{picture.id}" for picture in pictures]}
        if call.salt:
            given["cache_salt"] = call.cache_salt
        (ready,) = await self._engine.renderer.render_cmpl_async([given])
        return ready

    async def _score_one(self, prompt: Prompt, candidates: Sequence[str], call: Call, request: str) -> list[float]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        ids = [self._id(text) for text in candidates]
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async for output in self._run(prompt, params, call, request):
            self._count_prompt(output)
            self._usage.written_tokens += 1
            told = (output.outputs[0].logprobs or [{}])[0]
            values = [told[token].logprob if token in told else -np.inf for token in ids]
            if np.isnan(values).any():
                raise BackendError("the engine gave log-probabilities that are not numbers (NaN)")
            return values
        raise BackendError("the engine gave nothing for a rank request")

    async def _run(self, prompt: Prompt, params: Any, call: Call, request: str) -> AsyncGenerator[Any, None]:
        """The engine's outputs; leaving early aborts the request in it.

        Raises:
            BackendError: It refused or failed; `lost` if it is dead.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._engine is None or self._engine.errored:
            raise BackendError("vLLM's engine is not running; the worker must be started again", lost=True)
        outputs: Any = None
        try:
            outputs = self._engine.generate(
                await self._input(prompt, call),
                params,
                request,
                lora_request=self._adapter(call.adapter),
                priority=call.priority,
            )
            async for output in outputs:
                yield output
        except EngineDeadError as error:
            raise BackendError(
                f"vLLM's engine died: {_brief(error)}; the worker must be started again", lost=True
            ) from error
        except BackendError:
            raise
        except Exception as error:  # refused prompts and failed steps come as many types
            if TOO_LONG.search(str(error)):
                raise BackendError(
                    f"the prompt is too long: {_brief(error)}; {TOO_LONG_REMEDY}", too_long=True
                ) from error
            raise BackendError(f"vLLM failed: {_brief(error)}") from error
        finally:
            if outputs is not None:
                await outputs.aclose()

    def _adapter(self, name: str) -> Any:
        if not name:
            return None
        if name not in self._adapters:
            raise BackendError(f"adapter {name} is none of planner.adapters={sorted(self._adapters)}")
        return self._adapters[name]

    def _id(self, text: str) -> int:
        if text not in self._ids:
            tokens = self.tokens(text) or ()
            if len(tokens) != 1:
                raise BackendError(
                    f"{text!r} is {len(tokens)} tokens of this model, a candidate must be one; choose other codes"
                )
            self._ids[text] = tokens[0]
        return self._ids[text]

    async def _warm_up(self, *, with_picture: bool) -> None:
        """Run the batches that rank requests come in, so that no first request compiles anything."""
        height, width = _WARM_UP_SIZE
        image = np.full((height, width, 3), 127, np.uint8)
        filler = "Lorem ipsum dolor sit amet. " * 32
        for size in (size for size in _BATCHES if size <= self._config.parallel):
            parts: tuple[str | Picture, ...] = (filler, "Which?")
            if with_picture:
                parts = (filler, Picture(image, f"warm-up-{size}"), "Which?")
            prompt = Prompt((Message("user", parts),))
            await self.score([prompt] * size, [tuple("ABCDEFGH")] * size, Call(f"warm-up-{size}", salt="warm-up"))

    def _notes(self, files: ModelFiles) -> tuple[str, ...]:
        own = files.config.get("quantization_config")
        quantised = self._config.quantization or (own.get("quant_method") if isinstance(own, Mapping) else None)
        return (
            f"weights {quantised or self._engine.model_config.dtype}, cache {self._config.kv_cache_dtype}",
            "sums checked against its manifest"
            if files.pinned
            else "no manifest; `doctor --model DIR --pin` writes one",
        )

    def _count_prompt(self, output: Any) -> None:
        self._usage.prompt_tokens += len(output.prompt_token_ids or ())
        self._usage.cached_tokens += output.num_cached_tokens or 0


def _as_pil(picture: Picture) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(picture.image))


def _brief(error: BaseException) -> str:
    """The last line of an error, in which vLLM says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
