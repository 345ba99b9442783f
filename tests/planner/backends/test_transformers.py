"""The reference backend on tiny models with random weights: every short cut gives what the long way gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llguidance")

import torch

from stream_agent.config import BackendConfig, PlannerConfig
from stream_agent.errors import BackendError, ConfigError
from stream_agent.planner.backends.causal import CausalModel
from stream_agent.planner.backends.chat import chat_turns
from stream_agent.planner.backends.protocol import Call, Message, Picture, Prompt
from stream_agent.planner.backends.transformers import TransformersBackend
from stream_agent.planner.language import LanguagePlanner
from stream_agent.planner.model_files import verified
from stream_agent.prompts import rationale_schema
from tests.planner.backends.tiny_models import Family
from tests.planner.moments import PACK, ask

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings(
        "default::DeprecationWarning:torch"
    ),  # torch warns of its own parts when they are imported
]

Tiny = Callable[[Family], Path]
SEEING: tuple[Family, ...] = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CODES = tuple("ABCD")
T = TypeVar("T")


def picture(seed: int = 0, size: tuple[int, int] = (84, 112)) -> Picture:
    image = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    return Picture(image, f"noise-{seed}-{size}")


def prompts(*questions: str, shown: Picture | None = None, history: str = "Dissection, 40 s\n") -> list[Prompt]:
    system = Message("system", ("You assist. " + "The triangle is cleared first. " * 10,))
    parts = ("Done so far:\n", history, *(("The frame now:\n", shown, "\n") if shown is not None else ()))
    return [Prompt((system, Message("user", (*parts, question)))) for question in questions]


QUESTIONS = ("Next?\nA: Dissection\nB: Clipping", "Next?\nA: Clipping\nB: Dissection and more", "Next?")


@asynccontextmanager
async def started(model: Path, **settings: Any) -> AsyncIterator[TransformersBackend]:
    backend = TransformersBackend(BackendConfig(kind="transformers", model=model, device="cpu", **settings))
    try:
        await backend.start()
        yield backend
    finally:
        await backend.close()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def score(
    backend: TransformersBackend, asked: list[Prompt], salt: str = "case", **call: Any
) -> Coroutine[Any, Any, Any]:
    return backend.score(asked, [CODES] * len(asked), Call("1", salt=salt, **call))


async def written(backend: TransformersBackend, prompt: Prompt, *, max_tokens: int = 40, **more: Any) -> str:
    pieces = [piece async for piece in backend.generate(prompt, Call("1", salt="case"), max_tokens=max_tokens, **more)]
    return "".join(pieces)


@pytest.mark.parametrize("family", SEEING)
def test_prompts_are_encoded_as_the_model_s_own_processor_does(family: Family, tiny: Tiny) -> None:
    from transformers import AutoProcessor

    pytest.importorskip("torchvision")  # the processor needs it, the backend does not
    model = CausalModel(verified(tiny(family)), device="cpu", dtype="auto", threads=1)
    processor = AutoProcessor.from_pretrained(tiny(family))
    [prompt] = prompts("Next?", shown=picture())
    text = processor.apply_chat_template(chat_turns(prompt), tokenize=False, add_generation_prompt=True)
    wanted = processor(text=[text], images=[picture().image], return_tensors="pt")
    encoded = model.encode(prompt)
    assert list(encoded.ids) == wanted["input_ids"][0].tolist()
    torch.testing.assert_close(model.pixels(picture())["pixel_values"], wanted["pixel_values"], atol=1e-2, rtol=0)


@pytest.mark.parametrize("family", SEEING)
def test_shared_beginnings_give_what_the_plain_forward_gives(family: Family, tiny: Tiny) -> None:
    """The model's own forward over each whole prompt, with nothing kept, shared or padded, is the measure."""
    from transformers import AutoProcessor

    pytest.importorskip("torchvision")  # the processor needs it, the backend does not
    model = CausalModel(verified(tiny(family)), device="cpu", dtype="auto", threads=1)
    processor = AutoProcessor.from_pretrained(tiny(family))
    asked = prompts(*QUESTIONS, shown=picture())
    for history in ("Dissection, 40 s\n", "Dissection, 40 s\nClipping, 10 s\n"):
        asked = prompts(*QUESTIONS, shown=picture(), history=history)
        logits, _, _ = model.logits([model.encode(prompt) for prompt in asked], "case")
        for row, prompt in zip(logits, asked, strict=True):
            text = processor.apply_chat_template(chat_turns(prompt), tokenize=False, add_generation_prompt=True)
            given = processor(text=[text], images=[picture().image], return_tensors="pt")
            if "mm_token_type_ids" not in given:
                given["mm_token_type_ids"] = (given["input_ids"] == model.image_token).int()
            with torch.inference_mode():
                wanted = model.model(**given).logits[0, -1]
            torch.testing.assert_close(row, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl", "qwen3_vl"])
def test_keeping_changes_nothing_but_the_cost(family: Family, tiny: Tiny) -> None:
    async def scene() -> None:
        shown = None if family == "qwen2" else picture()
        async with started(tiny(family)) as backend:
            first = await score(backend, prompts(*QUESTIONS, shown=shown))
            before = backend.usage().cached_tokens
            again = await score(backend, prompts(*QUESTIONS, shown=shown))
            assert backend.usage().cached_tokens > before
            fresh = await score(backend, prompts(*QUESTIONS, shown=shown), salt="other case")
            alone = [
                (await score(backend, [one], salt=f"alone {at}"))[0]
                for at, one in enumerate(prompts(*QUESTIONS, shown=shown))
            ]
            for other in (again, fresh, alone):
                np.testing.assert_allclose(other, first, atol=1e-4)
            assert np.ptp(first, axis=0).max() > 1e-3, "the prompts differ"

    run(scene())


@pytest.mark.parametrize("family", SEEING)
def test_another_picture_is_another_beginning(family: Family, tiny: Tiny) -> None:
    async def scene() -> None:
        async with started(tiny(family)) as backend:
            one = await score(backend, prompts("Next?", shown=picture(1)))
            two = await score(backend, prompts("Next?", shown=picture(2)))
            larger = await score(backend, prompts("Next?", shown=picture(1, (112, 168))))
            back = await score(backend, prompts("Next?", shown=picture(1)))
            assert np.abs(one - two).max() > 1e-3 and np.abs(one - larger).max() > 1e-3
            np.testing.assert_allclose(back, one, atol=1e-4)

    run(scene())


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl", "qwen3_vl"])
def test_what_is_written_is_what_the_model_s_own_generate_writes(family: Family, tiny: Tiny) -> None:
    async def scene() -> None:
        async with started(tiny(family)) as backend:
            model = backend._model
            [prompt] = prompts("Describe.", shown=None if family == "qwen2" else picture())
            text = await written(backend, prompt, max_tokens=12)
            encoded = model.encode(prompt)
            given: dict[str, Any] = {"input_ids": torch.tensor([encoded.ids])}
            if encoded.pictures:
                given |= model.pixels(encoded.pictures[0])
                given["mm_token_type_ids"] = (given["input_ids"] == model.image_token).int()
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            ids = model.model.generate(**given, do_sample=False, max_new_tokens=12)[0, len(encoded.ids) :]
            assert text == model.tokenizer.decode(ids, skip_special_tokens=True).removesuffix("\ufffd") or text

    run(scene())


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl"])
def test_a_schema_is_kept_whatever_the_model_would_rather_write(family: Family, tiny: Tiny) -> None:
    async def scene() -> None:
        choices = ("Dissection", "Vessel Clipping", "Coagulation")
        async with started(tiny(family)) as backend:
            [prompt] = prompts("Write JSON.", shown=None if family == "qwen2" else picture())
            schema = rationale_schema(choices)
            schema["properties"]["ranked"]["items"]["properties"]["why"]["maxLength"] = 8
            for key in ("progress", "safety"):
                line = schema["properties"][key]
                (line if key == "progress" else line["items"])["maxLength"] = 8
            text = await written(backend, prompt, max_tokens=400, schema=schema)
            said = json.loads(text)
            assert {entry["action"] for entry in said["ranked"]} <= set(choices) and len(said["ranked"]) == 3
            assert list(said) == ["ranked", "progress", "safety"]
            cut = await written(backend, prompt, max_tokens=5, schema=schema)
            assert text.startswith(cut) and len(cut) < len(text)

    run(scene())


def test_a_ranking_overtakes_a_text_between_two_tokens(tiny: Tiny) -> None:
    async def scene() -> None:
        async with started(tiny("qwen2")) as backend:
            [prompt] = prompts("Describe.")
            text = backend.generate(prompt, Call("1", priority=3), max_tokens=400)
            await anext(text)
            before = backend.usage().written_tokens
            await score(backend, prompts(*QUESTIONS), priority=0)
            assert backend.usage().written_tokens - before <= len(QUESTIONS) + 2
            await text.aclose()  # type: ignore[attr-defined]
            assert backend.usage().calls["aborted"] == 1

    run(scene())


def test_a_call_past_its_deadline_is_not_begun(tiny: Tiny) -> None:
    async def scene() -> None:
        async with started(tiny("qwen2")) as backend:
            with pytest.raises(BackendError, match="deadline"):
                await score(backend, prompts("Next?"), deadline_ns=1)
            assert backend.usage().calls["expired"] == 1
            await score(backend, prompts("Next?"))

    run(scene())


def test_memory_that_ran_out_is_had_again_and_a_broken_gpu_is_told_as_lost(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with started(tiny("qwen2")) as backend:
            whole = CausalModel.logits
            for error, lost in (
                (torch.OutOfMemoryError("CUDA out of memory"), False),
                (RuntimeError("CUDA error: device-side assert"), True),
            ):

                def broken(*_: Any, error: Exception = error) -> Any:
                    raise error

                monkeypatch.setattr(CausalModel, "logits", broken)
                with pytest.raises(BackendError) as told:
                    await score(backend, prompts("Next?"))
                assert told.value.lost == lost
            monkeypatch.setattr(CausalModel, "logits", whole)
            assert np.isfinite(await score(backend, prompts("Next?"))).all()

    run(scene())


def test_weights_that_are_no_numbers_are_an_error(tiny: Tiny) -> None:
    async def scene() -> None:
        async with started(tiny("qwen2")) as backend:
            with torch.no_grad():
                backend._model.model.get_output_embeddings().weight[3] = torch.nan
            with pytest.raises(BackendError, match="NaN"):
                await score(backend, prompts("Next?"))
            with pytest.raises(BackendError, match="NaN"):
                await written(backend, prompts("Describe.")[0])

    run(scene())


def test_a_step_that_never_comes_back_loses_the_engine(tiny: Tiny) -> None:
    async def scene() -> None:
        import threading

        held = threading.Event()
        async with started(tiny("qwen2"), request_timeout_s=0.2) as backend:
            stuck = asyncio.ensure_future(backend._steps.run(0, held.wait))
            await asyncio.sleep(0.3)
            with pytest.raises(BackendError) as told:
                await score(backend, prompts("Next?"))
            assert told.value.lost
            held.set()
            await stuck

    run(scene())


def test_a_prompt_too_long_and_a_picture_for_a_blind_model_are_errors(tiny: Tiny) -> None:
    async def scene() -> None:
        async with started(tiny("qwen2"), context_tokens=512) as backend:
            with pytest.raises(BackendError, match="context_tokens") as caught:
                await score(backend, prompts("Next? " * 400))
            assert caught.value.too_long
            with pytest.raises(BackendError, match="no pictures"):
                await score(backend, prompts("Next?", shown=picture()))

    run(scene())


def test_what_does_not_belong_here_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="quantization"):
        run(TransformersBackend(BackendConfig(kind="transformers", model=tiny("qwen2"), quantization="fp8")).start())
    with pytest.raises(ConfigError, match="digest"):
        run(TransformersBackend(BackendConfig(kind="transformers", model=tiny("qwen2"), digest="0" * 12)).start())


def test_of_a_case_only_what_is_new_is_computed(tiny: Tiny) -> None:
    """Knowledge base, goal and history come from the cache; the moment, its picture and the choices do not."""

    async def scene() -> tuple[list[int], list[int]]:
        settings = PlannerConfig(
            kind="transformers",
            model=tiny("qwen2_5_vl"),
            device="cpu",
            context_tokens=8192,
            rationale=False,
            chain=False,
        )
        backend = TransformersBackend(settings)
        planner = LanguagePlanner(PACK, settings, backend)
        await planner.start()
        prompt, computed = [], []
        try:
            for number in range(4):
                before = (backend.usage().prompt_tokens, backend.usage().cached_tokens)
                await planner.plan(ask(number, 100.0 + number / 2, case_id="a" if number < 3 else "b"))
                after = backend.usage()
                prompt.append(after.prompt_tokens - before[0])
                computed.append(after.prompt_tokens - before[0] - (after.cached_tokens - before[1]))
        finally:
            await planner.close()
        return prompt, computed

    prompt, computed = run(scene())
    assert computed[0] == prompt[0] and computed[3] == prompt[3], "the first of a case, and the first of another"
    assert computed[1] < prompt[1] / 8 and computed[2] < prompt[2] / 8


@pytest.mark.parametrize("family", SEEING)
def test_a_model_that_sees_is_proved_to_see(family: Family, tiny: Tiny) -> None:
    async def scene() -> None:
        backend = TransformersBackend(BackendConfig(kind="transformers", model=tiny(family), device="cpu"))
        able = await backend.start()
        await backend.close()
        assert able.pictures and able.digest

    run(scene())
