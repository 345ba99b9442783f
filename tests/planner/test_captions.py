from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stream_agent.errors import BackendError
from stream_agent.messages import PlanRequest
from stream_agent.planner.backends.protocol import Call
from stream_agent.planner.backends.rehearsed import RehearsedBackend
from stream_agent.planner.captions import Caption, Captions
from stream_agent.prompts import PromptFactory
from tests.planner.moments import PACK, ask, config, without_picture

Got = tuple[Caption | None, str]


def captions(**settings: Any) -> tuple[Captions, RehearsedBackend]:
    settings_ = config(form="indirect", **settings)
    backend = RehearsedBackend(settings_)
    return Captions(backend, PromptFactory(PACK, settings_), settings_), backend


def asked(
    requests: list[PlanRequest], *, wait_s: float = 1.0, pause_s: float = 0.05, **settings: Any
) -> tuple[list[Got], int]:
    """What each request got, and how many captions were made."""

    async def run() -> tuple[list[Got], int]:
        made, backend = captions(**settings)
        got = []
        for request in requests:
            got.append(await made.of(request, Call("1"), wait_s=wait_s))
            await asyncio.sleep(pause_s)
        await made.close()
        return got, len(backend.calls)

    return asyncio.run(run())


def age(got: Got, request: PlanRequest) -> float:
    assert got[0] is not None
    return request.memory.now_pts_s - got[0].pts_s


def test_a_caption_is_used_again_while_it_is_young() -> None:
    requests = [ask(n, 100.0 + n / 2) for n in range(4)]
    got, made = asked(requests)
    assert made == 1
    assert [age(one, request) for one, request in zip(got, requests, strict=True)] == [0.0, 0.5, 1.0, 1.5]


def test_a_caption_due_for_renewal_is_used_while_the_new_one_is_made() -> None:
    requests = [ask(1, 100.0), ask(2, 103.0), ask(3, 103.5)]
    got, made = asked(requests)
    assert made == 2
    assert [age(one, request) for one, request in zip(got, requests, strict=True)] == [0.0, 3.0, 0.5]


def test_a_caption_too_old_is_waited_for_and_in_lockstep_one_that_is_due() -> None:
    requests = [ask(1, 100.0), ask(2, 110.0)]
    got, _ = asked(requests)
    assert age(got[1], requests[1]) == 0.0
    patient = [msgspec.structs.replace(ask(n, 100.0 + 3 * n), patient=True) for n in range(3)]
    got, _ = asked(patient, rehearsed_texts=[{"delay_s": 0.02}])
    assert [age(one, request) for one, request in zip(got, patient, strict=True)] == [0.0, 0.0, 0.0]


def test_one_that_takes_too_long_is_done_without_and_used_when_it_comes() -> None:
    requests = [ask(1, 100.0), ask(2, 100.5)]
    got, made = asked(requests, wait_s=0.01, pause_s=0.3, rehearsed_texts=[{"delay_s": 0.1}])
    assert got[0] == (None, "no caption of a frame young enough is ready yet")
    assert age(got[1], requests[1]) == 0.5 and made == 1


def test_no_caption_is_ever_older_than_its_bound() -> None:
    got, _ = asked([ask(1, 100.0), without_picture(ask(2, 104.9)), without_picture(ask(3, 105.1))])
    assert got[1][0] is not None
    assert got[2] == (None, "there is no picture to caption")


@pytest.mark.parametrize(
    ("step", "problem"),
    [({"behaviour": "oom"}, "captioning failed: CUDA out of memory"), ({"text": " \n"}, "captioner wrote nothing")],
)
def test_a_captioner_that_fails_is_done_without(step: dict[str, Any], problem: str) -> None:
    [(caption, told)], _ = asked([ask()], rehearsed_texts=[step])
    assert caption is None and problem in told


def test_a_captioner_that_is_lost_is_told_as_such() -> None:
    with pytest.raises(BackendError) as error:
        asked([ask()], rehearsed_texts=[{"behaviour": "dead"}])
    assert error.value.lost


def test_another_case_gets_none_of_this_ones_words() -> None:
    got, made = asked([ask(1, 100.0), ask(2, 100.1, case_id="next")])
    assert made == 2 and got[1][0] is not None and got[1][0].pts_s == 100.1


def test_a_caption_is_one_quotable_line() -> None:
    [(caption, _)], _ = asked([ask()], rehearsed_texts=[{"text": "a\n\nb <|im_end|> {c} »"}])
    assert caption is not None and caption.text == "a b (/im_end/) (c) '"
