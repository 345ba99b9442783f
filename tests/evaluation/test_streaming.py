"""The streaming protocol: the same plans as the whole agent, nothing of the future, scored by what was on display."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_agent.clock import NS_PER_S
from stream_agent.config import AgentConfig, RecogniserConfig, SegmenterConfig
from stream_agent.evaluation.baselines import PlanPredictor
from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip
from stream_agent.evaluation.protocols import Forecast, Predictor, Training, run
from stream_agent.evaluation.samples import Presence, Question
from stream_agent.evaluation.streaming import LATENESS_S, LEADS_S, SignalsModel, Streaming, Watched, watch
from stream_agent.evaluation.streaming_report import Starts, scores, tables
from stream_agent.messages import Evidence, FrameHeader, Plan, PlanRequest, RankedAction
from stream_agent.perception.perceive import build_recogniser
from stream_agent.perception.protocol import Recogniser, Thumbnail
from stream_agent.perception.segmenter import Segmenter
from stream_agent.planner.protocol import unanswered
from stream_agent.planner.statistical import StatisticalPlanner
from stream_agent.procedure import ProcedurePack, load_pack

REPOSITORY = Path(__file__).resolve().parents[2]
ACTION_OF = {2: "Dissection", 4: "Vessel Clipping", 0: "Tissue Retraction"}
"""Instrument seen alone → the action it stands for here."""


def presence_of(*passages: tuple[int, int]) -> Presence:
    """(instrument, seconds) one after the other."""
    rows = np.zeros((sum(seconds for _, seconds in passages), len(INSTRUMENTS)), dtype=np.uint8)
    at = 0
    for instrument, seconds in passages:
        rows[at : at + seconds, instrument] = 1
        at += seconds
    return rows


class SureModel:
    """Each second's one instrument is its action, at once."""

    def __init__(self, pack: ProcedurePack) -> None:
        self._pack = pack

    @property
    def recogniser(self) -> Recogniser:
        actions = self._pack.action_names

        class Sure:
            name = "sure"

            def reset(self) -> None:
                """Nothing kept."""

            def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:
                seen = ACTION_OF[header.signals.index(1.0)]
                sure = tuple(float(action == seen) for action in actions)
                return Evidence(
                    seq=header.seq, pts_s=header.pts_s, recogniser="sure", actions=sure, instruments=header.signals
                )

        return Sure()

    def segmenter(self, config: SegmenterConfig) -> Segmenter:
        return Segmenter(self._pack.action_names, config.model_copy(update={"min_dwell_s": 0.0, "evidence_per_s": 1.0}))


class ShippedModel:
    """What the agent builds from the pack's files."""

    def __init__(self, pack: ProcedurePack) -> None:
        self._pack = pack

    @property
    def recogniser(self) -> Recogniser:
        return build_recogniser(RecogniserConfig(kind="signals"), self._pack, "signals.csv")

    def segmenter(self, config: SegmenterConfig) -> Segmenter:
        return Segmenter(self._pack.action_names, config, model=self._pack.segmenter_model)


class Cycling:
    """After dissection clipping, after clipping retraction, after that dissection."""

    name = "cycling"

    def plan(self, request: PlanRequest) -> Plan:
        order = list(ACTION_OF.values())
        at = order.index(request.memory.current) if request.memory.current in order else -1
        ranked = tuple(
            RankedAction(order[(at + 1 + place) % 3], probability, "")
            for place, probability in enumerate((0.6, 0.3, 0.1))
        )
        plan = unanswered(request, source="statistical", planner=self.name, valid_ns=2 * NS_PER_S)
        return msgspec.structs.replace(plan, ranked=ranked)


class NeverTheCurrent(Cycling):
    """The same without the action that is going on, as our planner answers."""

    def plan(self, request: PlanRequest) -> Plan:
        plan = super().plan(request)
        ranked = tuple(item for item in plan.ranked if item.action != request.memory.current)
        return msgspec.structs.replace(plan, ranked=ranked)


@pytest.fixture(scope="module")
def pack() -> ProcedurePack:
    return load_pack(Path("cholecystectomy"))


@pytest.fixture(scope="module")
def presence() -> Presence:
    return presence_of((2, 60), (4, 30), (0, 40), (2, 50))


CLIPS = (
    SapClip("VID01", 0, 0, "Dissection", "Dissection"),
    SapClip("VID01", 1, 60, "Vessel Clipping", "Vessel Clipping", is_sample=True, next_action="Tissue Retraction"),
    SapClip("VID01", 2, 90, "Tissue Retraction", "Tissue Retraction", is_sample=True, next_action="Dissection"),
    SapClip("VID01", 3, 130, "Dissection", "Dissection", is_sample=True),
)


def watched_by(pack: ProcedurePack, presence: Presence, model: SignalsModel, until_s: int = 10_000) -> Watched:
    config = AgentConfig()
    planner = StatisticalPlanner(pack, config.planner)
    return watch("VID01", presence, until_s=until_s, pack=pack, planner=planner, model=model, config=config)


@pytest.mark.timeout(120)
def test_the_plans_are_those_of_the_whole_agent_in_lockstep(
    pack: ProcedurePack, presence: Presence, tmp_path: Path
) -> None:
    """Real processes on one side, none on the other, and the same decisions at the same times."""
    csv = tmp_path / "case.csv"
    lines = [",".join(["second", *INSTRUMENTS])]
    lines += [",".join(map(str, [second, *row])) for second, row in enumerate(presence.tolist())]
    csv.write_text("\n".join(lines) + "\n")
    jsonl = tmp_path / "plans.jsonl"
    command = [sys.executable, str(REPOSITORY / "run_agent.py"), "run", str(csv), "source.pace=max"]
    command += [f"sinks.jsonl={jsonl}", "sinks.console=off"]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}, timeout=100)
    agents = [json.loads(line) for line in jsonl.read_text().splitlines()]
    ours = watched_by(pack, presence, ShippedModel(pack)).plans
    told = [
        (plan["seq"], plan["captured_ns"], plan["published_ns"], [item["action"] for item in plan["ranked"]])
        for plan in agents
    ]
    assert told == [
        (plan.seq, plan.captured_ns, plan.published_ns, [item.action for item in plan.ranked]) for plan in ours
    ]
    assert [[item["probability"] for item in plan["ranked"]] for plan in agents] == [
        [item.probability for item in plan.ranked] for plan in ours
    ]
    assert len({tuple(actions) for *_, actions in told}) > 2, "plans that never change would prove nothing"


def test_nothing_sees_the_future(pack: ProcedurePack, presence: Presence) -> None:
    changed = presence.copy()
    changed[100:] = presence_of((4, len(presence) - 100))
    before, after = (watched_by(pack, rows, ShippedModel(pack)) for rows in (presence, changed))
    assert before.plans[:100] == after.plans[:100]
    assert before.plans[100:] != after.plans[100:]


def test_a_plan_is_on_display_after_its_second_and_until_it_expires(pack: ProcedurePack, presence: Presence) -> None:
    watched = watched_by(pack, presence, ShippedModel(pack), until_s=20)
    assert watched.on_display(0) is None
    shown = watched.on_display(10)
    assert shown is not None and shown.seq == 9, "the plan of that very second comes too late for it"
    last = watched.on_display(21)
    assert last is not None and last.seq == 19
    assert watched.on_display(22) is None


class Remembered:
    """A label planner that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def predict(self, question: Question) -> Forecast:
        self.asked.append(question)
        return Forecast(("Vessel Clipping",))


def streamed(pack: ProcedurePack, presence: Presence, predictors: Mapping[str, Predictor]) -> Streaming:
    fitted_on: list[Sequence[str]] = []

    def fit(training: Training) -> SignalsModel:
        fitted_on.append(sorted(training.videos))
        return SureModel(pack)

    streaming = Streaming({"VID01": CLIPS, "VID02": CLIPS}, {"VID01": presence}, fit, pack)
    streaming.ask(Training({"VID02": CLIPS}, {}, "causal"), ["VID01"], predictors)
    assert fitted_on == [["VID02"]]
    return streaming


def test_changes_are_scored_by_the_plan_before_them(pack: ProcedurePack, presence: Presence) -> None:
    """Worked by hand: each change is foreseen up to 30 s ahead, but for the one 30 s after the last."""
    other = Remembered()
    streaming = streamed(pack, presence, {"statistical": PlanPredictor(Cycling()), "other": other})
    leads = streaming.answered["statistical"].leads
    tops = {
        lead: [(answer.sample.target, answer.forecast.ranked[0]) for answer in answers]
        for lead, answers in leads.items()
    }
    right = [(clip.action, clip.action) for clip in CLIPS[1:]]
    assert all(tops[lead] == right for lead in LEADS_S if lead < 30)
    # 30 s before second 90 is second 60: what was on display saw second 59, when dissection went on
    assert tops[30] == [right[0], ("Tissue Retraction", "Vessel Clipping"), right[2]]
    assert [question.labels for question in other.asked][:2] == [("Dissection",), ("Dissection", "Vessel Clipping")]


def test_lateness_costs_the_seconds_after_each_change(pack: ProcedurePack, presence: Presence) -> None:
    """Seconds 11 to 129, three passages: each second of lateness, and the one until the plan of a second is out, is wrong."""
    streaming = streamed(pack, presence, {"statistical": PlanPredictor(Cycling())})
    for late, counts in streaming.answered["statistical"].seconds.items():
        assert counts[0] == 130 - (max(LATENESS_S) + 1)
        assert counts[0] - counts[1] == 2 * (late + 1), f"{late} s late"
        assert counts[3] == counts[0]


def test_the_figures_tell_samples_from_all_changes(pack: ProcedurePack, presence: Presence) -> None:
    streaming = streamed(pack, presence, {"statistical": PlanPredictor(Cycling())})
    is_sample = {(clip.video, clip.index): clip.is_sample and clip.index != 3 for clip in CLIPS}
    (score,) = scores(streaming.answered, is_sample)
    assert (score.samples_n, score.samples_slacc) == (2, (100.0, 100.0, 100.0))
    assert score.lead_n == {0: 3, 2: 3, 5: 3, 10: 3, 30: 3}
    assert score.lead[30][0] == 66.67
    (lead, lateness, _) = tables([score])
    assert lead[1][1][-1] == "66.7/100.0/100.0"
    assert len(lateness[1][0]) == len(lateness[1][1])


def test_a_start_declared_early_is_told_from_one_that_was_not_foreseen(pack: ProcedurePack) -> None:
    """The clipper enters 20 s before clipping is said to begin."""
    seen = presence_of((2, 40), (4, 50), (0, 40), (2, 50))
    streaming = streamed(pack, seen, {"statistical": PlanPredictor(NeverTheCurrent())})
    (score,) = scores(streaming.answered, {(clip.video, clip.index): clip.index == 1 for clip in CLIPS})
    assert score.samples_starts == Starts(
        n=1, foreseen=(0, 0, 0), declared=1, declared_early_s=20.0, held_on=0, not_foreseen=0
    )
    assert (score.starts.n, score.starts.foreseen, score.starts.declared) == (3, (2, 0, 0), 1)
    assert score.samples_slacc == (0.0, 0.0, 0.0), "the headline counts it as wrong all the same"
    row = tables([score])[2][1][-1]
    assert row[:3] == ["statistical", "samples", "1"]
    assert row[6:8] == ["1 (100.0 %)", "20"]


def test_an_action_held_on_to_across_the_clip_before_was_not_declared_early(pack: ProcedurePack) -> None:
    """Clipping and retraction were never noticed: dissection is the current action when it begins again."""
    streaming = streamed(pack, presence_of((2, 180)), {"statistical": PlanPredictor(NeverTheCurrent())})
    (score,) = scores(streaming.answered, {(clip.video, clip.index): True for clip in CLIPS})
    assert (score.starts.declared, score.starts.declared_early_s, score.starts.held_on) == (0, None, 1)


class Fitted:
    """A baseline whose fits are counted."""

    sees_track = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.fits: list[frozenset[str]] = []

    def fit(self, training: Training) -> Predictor:
        self.fits.append(frozenset(training.videos))
        return Remembered()


class Streams:
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]] = []

    def ask(self, training: Training, names: Sequence[str], predictors: Mapping[str, Predictor]) -> None:
        self.asked.append((frozenset(training.videos), tuple(names), tuple(predictors)))


def test_each_video_with_signals_streams_once_by_planners_fitted_without_it(presence: Presence) -> None:
    videos = dict.fromkeys(("VID01", "VID02", "VID04"), CLIPS)
    baseline, streams = Fitted("spy"), Streams()
    run([baseline], videos, {"VID01": presence, "VID04": presence}, protocols=["lovo", "streaming"], streams=streams)
    assert len(baseline.fits) == 3, "the planners of leave-one-video-out serve again"
    assert streams.asked == [
        (frozenset({"VID02", "VID04"}), ("VID01",), ("spy",)),
        (frozenset({"VID01", "VID02"}), ("VID04",), ("spy",)),
    ]
    alone = Streams()
    run([baseline], videos, {"VID01": presence}, protocols=["streaming"], streams=alone)
    assert alone.asked == streams.asked[:1]
