from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_agent.config import SegmenterConfig
from stream_agent.errors import ConfigError
from stream_agent.messages import ClipEvent
from stream_agent.perception.segmenter import Segmenter
from stream_agent.perception.segmenter_model import ClipLength, SegmenterModel, load_segmenter_model

ACTIONS = ("a", "b", "c", "d")


def one_hot(index: int) -> tuple[float, ...]:
    return tuple(float(k == index) for k in range(len(ACTIONS)))


FITTED = SegmenterModel(
    about="made up",
    actions=ACTIONS,
    lengths=tuple(ClipLength(median_s=40.0, log_sd=0.8, mean_s=40.0, loose=0.5) for _ in ACTIONS),
    following=((0.0, 0.8, 0.1, 0.1), (0.2, 0.0, 0.4, 0.4), (0.3, 0.3, 0.0, 0.4), (0.5, 0.25, 0.25, 0.0)),
)


def segmenter(
    mean_clip_s: float = 60.0,
    min_dwell_s: float = 2.0,
    evidence_per_s: float = 1000.0,
    model: SegmenterModel | None = None,
) -> Segmenter:
    config = SegmenterConfig(mean_clip_s=mean_clip_s, min_dwell_s=min_dwell_s, evidence_per_s=evidence_per_s)
    return Segmenter(ACTIONS, config, model=model)


def check_events(events: list[ClipEvent]) -> None:
    """Alternately opened and closed; ordered, touching, never the same label twice."""
    open_action, open_start, decided = None, -math.inf, -math.inf
    last_end, last_action = -math.inf, None
    for event in events:
        clip = event.clip
        assert all(map(math.isfinite, (clip.start_pts_s, clip.end_pts_s, event.decided_pts_s)))
        assert clip.start_pts_s <= clip.end_pts_s <= event.decided_pts_s
        assert event.decided_pts_s >= decided
        assert 0.0 <= clip.confidence <= 1.0
        decided = event.decided_pts_s
        if event.kind == "opened":
            assert open_action is None
            assert clip.action != last_action
            assert last_action is None or clip.start_pts_s == last_end
            open_action, open_start = clip.action, clip.start_pts_s
        else:
            assert (clip.action, clip.start_pts_s) == (open_action, open_start)
            assert clip.end_pts_s > clip.start_pts_s or event is events[-1]
            open_action, last_action, last_end = None, clip.action, clip.end_pts_s


posteriors = st.one_of(
    st.just(()),
    st.tuples(*[st.floats(0, 1)] * len(ACTIONS)),
    st.integers(0, len(ACTIONS) - 1).map(one_hot),
    st.tuples(*[st.sampled_from([math.nan, math.inf, 0.0, 0.5])] * len(ACTIONS)),
)
steps = st.lists(st.tuples(st.floats(0, 200), posteriors), max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    steps,
    st.sampled_from([0.0, 0.5, 2.0]),
    st.sampled_from([0.1, 1.0]),
    st.floats(0.1, 1000),
    st.sampled_from([None, FITTED]),
)
def test_clips_are_ordered_touching_and_never_repeat_a_label(
    items: list[tuple[float, tuple[float, ...]]], dwell: float, weight: float, mean: float, model: SegmenterModel | None
) -> None:
    filter_ = segmenter(mean, dwell, weight, model)
    events: list[ClipEvent] = []
    now = 0.0
    for dt_s, posterior in items:
        now += dt_s
        new = filter_.step(now, posterior)
        if not posterior:
            assert new == ()
        events += new
        assert 0.0 <= filter_.confidence <= 1.0
        assert filter_.current_start_pts_s <= now
    events += filter_.finish(now)
    check_events(events)
    assert len([event for event in events if event.kind == "opened"]) * 2 == len(events)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(1e-6, 1e4)), min_size=1, max_size=40),
    st.floats(0, 1e5),
    st.sampled_from([None, FITTED]),
)
def test_certain_evidence_without_dwell_reproduces_the_timeline_exactly(
    frames: list[tuple[int, float]], start: float, model: SegmenterModel | None
) -> None:
    filter_ = segmenter(min_dwell_s=0.0, model=model)
    now = start
    events: list[ClipEvent] = []
    expected: list[tuple[str, float]] = []
    for index, dt_s in frames:
        if not expected or expected[-1][0] != ACTIONS[index]:
            expected.append((ACTIONS[index], now))
        events += filter_.step(now, one_hot(index))
        assert filter_.current == ACTIONS[index]
        now = math.nextafter(now, math.inf) if now + dt_s == now else now + dt_s
    events += filter_.finish(now)
    closed = [event.clip for event in events if event.kind == "closed"]
    assert [(clip.action, clip.start_pts_s) for clip in closed] == expected
    assert closed[-1].end_pts_s == now


def test_a_clip_begins_where_its_action_took_the_lead() -> None:
    filter_ = segmenter(min_dwell_s=2.0)
    events = [event for k in range(200) for event in filter_.step(k / 10, one_hot(0 if k < 100 else 1))]
    assert [(event.kind, event.clip.action) for event in events] == [("opened", "a"), ("closed", "a"), ("opened", "b")]
    assert events[0].clip.start_pts_s == 0.0
    assert events[1].clip.end_pts_s == events[2].clip.start_pts_s == 10.0
    assert events[2].decided_pts_s == 12.0


def test_a_lead_shorter_than_the_dwell_opens_nothing() -> None:
    filter_ = segmenter(min_dwell_s=2.0)
    for k in range(300):
        filter_.step(k / 10, one_hot(1 if 100 <= k < 115 else 0))
    assert (filter_.current, filter_.current_start_pts_s) == ("a", 0.0)


def test_weak_evidence_sticks_to_the_open_clip() -> None:
    filter_ = segmenter(min_dwell_s=0.0)
    filter_.step(0.0, one_hot(0))
    assert filter_.step(0.1, (0.2, 0.4, 0.2, 0.2)) == ()
    assert filter_.current == "a"


def test_time_without_evidence_spreads_the_belief_and_does_not_count_as_a_lead() -> None:
    filter_ = segmenter(min_dwell_s=2.0)
    for k in range(50):
        filter_.step(k / 10, one_hot(0))
    assert filter_.confidence > 0.9
    filter_.step(5.0, one_hot(1))
    for k in range(300):
        assert filter_.step(5.1 + k / 10, ()) == ()
    assert filter_.confidence < 0.3
    assert filter_.step(35.2, one_hot(1)) == ()
    assert filter_.current == "a"


def test_cutting_blind_time_in_pieces_changes_nothing() -> None:
    beliefs = []
    for pieces in (1, 600):
        filter_ = segmenter(min_dwell_s=0.0)
        filter_.step(0.0, one_hot(2))
        for k in range(pieces):
            filter_.step(30.0 * (k + 1) / pieces, ())
        beliefs.append(filter_.confidence)
    assert beliefs[0] == pytest.approx(beliefs[1], rel=1e-9)
    gone = 1.0 - math.exp(-0.5)  # left in half a mean clip; half of that time has no memory of what followed
    assert beliefs[0] == pytest.approx(1.0 - gone + gone * gone / 4.0)


@pytest.mark.parametrize("posterior", [(math.nan, 0.0, 1.0, 0.0), (math.inf, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0), ()])
def test_what_is_no_distribution_is_no_evidence(posterior: tuple[float, ...]) -> None:
    filter_ = segmenter(min_dwell_s=0.0)
    assert filter_.step(0.0, posterior) == ()
    assert filter_.current is None
    assert filter_.confidence == 0.0


def test_our_own_mistakes_are_errors() -> None:
    filter_ = segmenter()
    with pytest.raises(ValueError, match="posterior of 2 values for 4 actions"):
        filter_.step(0.0, (0.5, 0.5))
    with pytest.raises(ValueError, match="negative"):
        filter_.step(0.0, (-0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="pts_s=nan"):
        filter_.step(math.nan, ())
    with pytest.raises(ValueError, match="distinct"):
        Segmenter(("a", "a"), SegmenterConfig())
    with pytest.raises(ValueError, match="prior"):
        Segmenter(("a", "b"), SegmenterConfig(), prior=(1.0, 0.0))


def test_a_frame_that_is_not_later_is_ignored() -> None:
    filter_ = segmenter(min_dwell_s=0.0)
    filter_.step(5.0, one_hot(0))
    assert filter_.step(5.0, one_hot(1)) == ()
    assert filter_.step(4.0, one_hot(1)) == ()
    assert filter_.current == "a"


def test_a_common_action_needs_more_evidence_when_the_prior_is_known() -> None:
    config = SegmenterConfig(min_dwell_s=0.0, declare_odds=1.0)
    with_prior = Segmenter(("a", "b"), config, prior=(0.9, 0.1))
    with_prior.step(0.0, (0.6, 0.4))
    without = Segmenter(("a", "b"), config)
    without.step(0.0, (0.6, 0.4))
    assert (with_prior.current, without.current) == ("b", "a")


def test_finishing_closes_the_clip_and_a_new_session_starts_empty() -> None:
    filter_ = segmenter(min_dwell_s=0.0)
    filter_.step(1.0, one_hot(0))
    filter_.step(2.0, one_hot(0))
    (event,) = filter_.finish(3.0)
    assert (event.kind, event.clip.start_pts_s, event.clip.end_pts_s) == ("closed", 1.0, 3.0)
    assert filter_.current is None
    assert filter_.finish(4.0) == ()
    assert filter_.step(0.0, one_hot(1))[0].kind == "opened"


def test_a_single_action_is_one_clip_for_ever() -> None:
    filter_ = Segmenter(("only",), SegmenterConfig(min_dwell_s=0.0))
    events = [event for k in range(100) for event in filter_.step(float(k), (1.0,))]
    assert [event.kind for event in events] == ["opened"]


def test_a_step_takes_a_tenth_of_a_millisecond() -> None:
    """The bound is 100 us; ten times that here, for a busy machine."""
    filter_ = segmenter(model=FITTED)
    began = time.process_time()
    for k in range(5000):
        filter_.step(k / 60, (0.4, 0.3, 0.2, 0.1) if k // 500 % 2 else (0.1, 0.2, 0.3, 0.4))
    assert (time.process_time() - began) / 5000 < 1000e-6


@pytest.mark.parametrize("model", [None, FITTED])
def test_weak_evidence_begins_a_clip_in_the_past_and_says_the_same_at_any_frame_rate(
    model: SegmenterModel | None,
) -> None:
    found = []
    for rate_hz in (1, 10, 60):
        filter_ = segmenter(evidence_per_s=0.5, model=model)
        events: list[ClipEvent] = []
        for k in range(100 * rate_hz):
            events += filter_.step(k / rate_hz, (0.7, 0.1, 0.1, 0.1) if k < 40 * rate_hz else (0.1, 0.7, 0.1, 0.1))
        check_events([*events, *filter_.finish(100.0)])
        opened = [event for event in events if event.kind == "opened"]
        assert [event.clip.action for event in opened] == ["a", "b"]
        assert opened[1].clip.start_pts_s == pytest.approx(40.0, abs=0.51)
        found.append(opened[1].decided_pts_s)
    assert max(found) - min(found) <= 1.5
    assert 42.0 < min(found) < 60.0


def test_a_short_burst_of_weak_evidence_is_no_clip() -> None:
    filter_ = segmenter(evidence_per_s=0.5, model=FITTED)
    opened = 0
    for k in range(200):
        posterior = (0.1, 0.7, 0.1, 0.1) if k % 40 in (30, 31, 32) else (0.7, 0.1, 0.1, 0.1)
        opened += sum(event.kind == "opened" for event in filter_.step(float(k), posterior))
    assert opened == 1


def test_higher_odds_declare_later() -> None:
    decided = []
    for odds in (2.0, 50.0):
        filter_ = Segmenter(ACTIONS, SegmenterConfig(declare_odds=odds), model=FITTED)
        events = [
            event
            for k in range(120)
            for event in filter_.step(float(k), (0.7, 0.1, 0.1, 0.1) if k < 60 else (0.1, 0.7, 0.1, 0.1))
        ]
        decided.append(events[-1].decided_pts_s)
        assert events[-1].clip.start_pts_s == 60.0
    assert decided[0] < decided[1]


def test_a_model_of_other_actions_is_refused() -> None:
    with pytest.raises(ValueError, match="not for"):
        Segmenter(("x", "y"), SegmenterConfig(), model=FITTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": ("a", "b", "c", "x")}, "the pack has a, b, c, d"),
        ({"lengths": FITTED.lengths[:3]}, "one entry for each of 4 actions"),
        ({"following": ((0.5, 0.5, 0.0, 0.0), *FITTED.following[1:])}, "must sum to 1 and hold 0 for itself"),
        ({"following": ((0.0, 0.5, 0.0, 0.0), *FITTED.following[1:])}, "must sum to 1"),
    ],
)
def test_a_damaged_model_names_the_remedy(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "segmenter.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(FITTED, **change)))
    with pytest.raises(ConfigError, match=message):
        load_segmenter_model(path, ACTIONS)
    with pytest.raises(ConfigError, match="rebuild it"):
        load_segmenter_model(tmp_path / "none.json", ACTIONS)


def test_survival_falls_from_one_and_half_of_the_clips_outlast_the_median() -> None:
    length = ClipLength(median_s=40.0, log_sd=0.7, mean_s=60.0, loose=0.0)
    assert length.log_survival(0.0) == 0.0
    assert length.log_survival(40.0) == pytest.approx(math.log(0.5))
    loose = msgspec.structs.replace(length, loose=1.0)
    assert loose.log_survival(60.0) == pytest.approx(-1.0)
