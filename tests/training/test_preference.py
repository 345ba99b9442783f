"""Pairs out of examples: right and allowed against what breaks a rule or is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from stream_agent.config import PlannerConfig
from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import SapClip
from stream_agent.evaluation.samples import samples
from stream_agent.procedure import ProcedurePack, load_pack
from stream_agent.prompts import PromptFactory
from stream_agent.training.data import Example, Task, examples
from stream_agent.training.distill import Response
from stream_agent.training.preference import PreferenceConfig, pairs, situation_of
from stream_agent.training.rewards import RewardConfig, objections, ranked_by, reward

_ACTIONS = ("Tissue Retraction", "Dissection", "Vessel Clipping", "Dissection", "Coagulation", "Dissection")


@pytest.fixture(scope="module")
def pack() -> ProcedurePack:
    return load_pack(Path("cholecystectomy"))


def made(
    pack: ProcedurePack,
    *tasks: Task,
    video: str = "VID01",
    actions: tuple[str, ...] = _ACTIONS,
    question: Literal["plain", "coded"] = "plain",
) -> list[Example]:
    clips = [
        SapClip(video, index, 90 * index, action, action, is_sample=index > 0, next_action="")
        for index, action in enumerate(actions)
    ]
    factory = PromptFactory(pack, PlannerConfig(memory="labels_only", question=question))
    return examples(samples(clips, track="causal", history="ground_truth"), factory, tasks=tasks)


def test_every_pair_is_right_and_allowed_against_worse(pack: ProcedurePack) -> None:
    asked = made(pack, "rank", "plan")
    found, none = pairs(asked, pack, PreferenceConfig(per_sample=9), RewardConfig())
    assert not none
    assert {pair.example.task for pair in found} == {"rank", "plan"}
    for pair in found:
        judged = situation_of(pair.example, pack)
        assert objections(pair.chosen, judged) == ()
        assert objections(pair.rejected, judged) not in ((), ("format",)), "the agent would accept it, and it is wrong"
        assert reward(pair.chosen, judged, RewardConfig()).total > reward(pair.rejected, judged, RewardConfig()).total
    assert len(found) == 3 * len(asked), "every other choice makes a pair"


def test_what_is_going_on_is_neither_chosen_nor_rejected(pack: ProcedurePack) -> None:
    """The coded question lists it; run time masks it, so that there is nothing to learn about it."""
    asked = made(pack, "rank", question="coded")
    found, _ = pairs(asked, pack, PreferenceConfig(per_sample=9), RewardConfig())
    assert all(pair.example.memory.current in pair.example.choices for pair in found)
    for pair in found:
        for text in (pair.chosen, pair.rejected):
            assert ranked_by(text, "rank", pair.example.choices) != (pair.example.memory.current,)
    assert len(found) == 3 * len(asked)


def test_what_breaks_a_rule_is_rejected_first(pack: ProcedurePack) -> None:
    """Nothing but retraction so far: clipping now breaks two rules, whatever the label model holds of it."""
    first = made(pack, "rank")[:1]
    [pair], _ = pairs(first, pack, PreferenceConfig(per_sample=1), RewardConfig())
    assert ranked_by(pair.rejected, "rank", first[0].choices) == ("Vessel Clipping",)
    assert pair.why == "dissection-before-clipping"


def test_among_allowed_ones_the_most_tempting_is_rejected(pack: ProcedurePack) -> None:
    [asked] = [example for example in made(pack, "rank") if example.target == "Coagulation"]
    [pair], _ = pairs([asked], pack, PreferenceConfig(per_sample=1), RewardConfig())
    likely = pack.next_action_probabilities(asked.memory.labels)
    tempting = max((name for name in asked.choices if name != "Coagulation"), key=likely.__getitem__)
    assert ranked_by(pair.rejected, "rank", asked.choices) == (tempting,)
    assert pair.why == "label"


def test_a_truth_that_breaks_a_rule_makes_no_pair(pack: ProcedurePack) -> None:
    hasty = made(pack, "rank", actions=("Tissue Retraction", "Vessel Clipping", "Dissection"))
    found, none = pairs(hasty, pack, PreferenceConfig(), RewardConfig())
    assert none == {"dissection-before-clipping": 1}
    assert {pair.example.target for pair in found} == {"Dissection"}


def test_what_a_teacher_wrote_is_taken_before_what_is_made_up(pack: ProcedurePack) -> None:
    [asked] = [example for example in made(pack, "plan") if example.target == "Coagulation"]

    def said(*names: str) -> str:
        told = {"ranked": [{"action": name, "why": "w"} for name in names], "progress": "p", "safety": ["s"]}
        return json.dumps(told)

    right, wrong = (
        said("Coagulation", "Aspiration", "Vessel Clipping"),
        said("Aspiration", "Coagulation", "Vessel Clipping"),
    )
    rows = [
        Response(video=asked.video, index=asked.index, task="plan", text=right),
        Response(video=asked.video, index=asked.index, task="plan", text=wrong, reasons=("label",)),
        Response(video=asked.video, index=asked.index, task="plan", text="{", reasons=("format",)),
        Response(video=asked.video, index=asked.index + 1, task="plan", text=said("x"), reasons=("label",)),
    ]
    found, _ = pairs([asked], pack, PreferenceConfig(per_sample=2), RewardConfig(), written=rows)
    assert [pair.chosen for pair in found] == [right, right]
    assert found[0].rejected == wrong
    assert found[1].rejected not in (wrong, "{")


def test_no_pair_is_made_of_a_test_video(pack: ProcedurePack) -> None:
    [first, *_] = made(pack, "rank")
    with pytest.raises(ConfigError, match="VID73"):
        pairs([replace(first, video="VID73")], pack, PreferenceConfig(), RewardConfig())
    with pytest.raises(ConfigError, match="VID73"):
        row = Response(video="VID73", index=1, task="plan", text="{}")
        pairs([first], pack, PreferenceConfig(), RewardConfig(), written=[row])


def test_a_task_without_a_reward_is_refused(pack: ProcedurePack) -> None:
    [first, *_] = made(pack, "rank")
    with pytest.raises(ValueError, match="no reward"):
        situation_of(replace(first, task="caption"), pack)
