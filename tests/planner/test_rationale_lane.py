from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from stream_agent.errors import BackendError
from stream_agent.messages import Rationale
from stream_agent.planner.backends.protocol import Call
from stream_agent.planner.backends.rehearsed import RehearsedBackend
from stream_agent.planner.rationale_lane import RationaleLane, checked, contradiction
from stream_agent.prompts import PromptFactory
from tests.planner.moments import PACK, ask, config

CHOICES = ("Dissection", "Vessel Clipping", "Tissue Retraction", "Coagulation")


def said(**changes: Any) -> str:
    whole = {
        "ranked": [{"action": action, "why": f"because {action}"} for action in CHOICES[:3]],
        "progress": "half way",
        "safety": ["mind the duct"],
    }
    return json.dumps({**whole, **changes})


def heard(**settings: Any) -> list[str | Rationale]:
    settings_ = config(**settings)
    lane = RationaleLane(
        RehearsedBackend(settings_), PromptFactory(PACK, settings_), max_tokens=settings_.rationale_tokens
    )

    async def listen() -> list[str | Rationale]:
        return [item async for item in lane.explain(ask(), CHOICES, Call("1"))]

    return asyncio.run(listen())


def test_words_stream_and_the_whole_comes_last() -> None:
    *words, whole = heard()
    assert isinstance(whole, Rationale) and len(words) > 5
    text = "".join(word for word in words if isinstance(word, str))
    assert text.startswith(f"1. {whole.ranked[0][0]}: {whole.ranked[0][1]}\n2. ")
    assert len({action for action, _ in whole.ranked}) == 3


@pytest.mark.parametrize("behaviour", ["truncated", "wrong_schema"])
def test_what_is_cut_off_or_of_another_form_is_dropped(behaviour: str) -> None:
    with pytest.raises(BackendError, match="schema"):
        heard(rehearsed_texts=[{"behaviour": behaviour}])


def test_a_rationale_is_capped_in_tokens() -> None:
    with pytest.raises(BackendError, match="schema"):
        heard(rationale_tokens=16)


def test_a_model_that_never_ends_is_stopped() -> None:
    with pytest.raises(BackendError, match="longer than"):
        heard(rehearsed_texts=[{"text": "x" * 40_000}], rationale_tokens=4096)


def test_a_whole_one_is_read_as_it_stands() -> None:
    found = checked(said(), CHOICES)
    assert found.ranked == tuple((action, f"because {action}") for action in CHOICES[:3])
    assert (found.progress, found.safety, found.contradiction) == ("half way", ("mind the duct",), "")


ENTRY = {"action": "Dissection", "why": "x"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "schema"),
        ("[]", "schema"),
        (said()[:-1], "schema"),
        (said() + "{}", "schema"),
        (said(ranked=[]), "schema"),
        (said(ranked=[ENTRY]), "ranks 1 distinct"),
        (said(ranked=[ENTRY] * 3), "ranks 1 distinct"),
        (said(ranked=[{"action": "Reboot The Robot", "why": "x"}] * 3), "Reboot The Robot"),
        (said(ranked=[{"action": "Aspiration", "why": "x"}] * 3), "no choice"),
        (said(ranked=[{**ENTRY, "extra": 1}] * 3), "schema"),
        (said(progress=""), "schema"),
        (said(progress="x" * 5000), "schema"),
        (said(actions=["Reboot The Robot"]), "schema"),
        (said(safety="none"), "schema"),
        ('{"ranked":' + "[" * 5000, "schema"),
    ],
)
def test_nothing_else_passes(text: str, complaint: str) -> None:
    with pytest.raises(BackendError, match=complaint):
        checked(text, CHOICES)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ("abc", ""),
        ("bac", "puts b first, the ranking a"),
        ("acb", "puts c before b"),
        ("abd", "leaves out c"),
    ],
)
def test_contradictions_are_told(order: str, told: str) -> None:
    found = contradiction(tuple(order), tuple("abc"))
    assert told in found and bool(found) == bool(told)
