"""Fit what turns 1 Hz instruments into clips, `signals.json` and `segmenter.json`, and print what they reach.

    python -m stream_agent.training.signals --sap ../shared/data/sap/total_video_info.json \
        --signals ../shared/data/cholec80/phase_tool_1hz --out configs/procedures/cholecystectomy

Each video is answered by models fitted without it, the test split also by models fitted on the training split alone, which
are the ones written. Needs nothing beyond the package itself.

How starts are counted: within 5 s of the annotated span (first to last annotated start) of each video. Declared and
annotated starts are matched one to one in the order of time, at most 5 s apart and of the same action; the clip ratio is
declared starts over annotated ones. A declared start is where the segmenter says that the clip began; its delay is the
time at which it said so, less the annotated start.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import numpy as np

from stream_agent.clock import NS_PER_S
from stream_agent.config import SegmenterConfig
from stream_agent.evaluation.dataset import ACTIONS, INSTRUMENTS, TEST_VIDEOS, SapClip, load_presence, load_sap
from stream_agent.evaluation.samples import Presence
from stream_agent.messages import FrameHeader
from stream_agent.perception.segmenter import Segmenter
from stream_agent.perception.segmenter_model import FILE_NAME, ClipLength, SegmenterModel
from stream_agent.perception.signals import SignalsRecogniser, SignalsTable, after

TOLERANCE_S: Final = 5
OVERLAP: Final = 0.25
LAST_CLIP_S: Final = 10
"""Seconds of a video's last clip that are labelled for certain: the annotation's shortest clip."""

LEADING: Final = ("Clipper", "Scissors", "Bipolar", "Irrigator", "Hook", "Grasper")
"""Clip before cut before coagulation and suction before dissection before grasping: the rule that made the labels."""

# Chosen on training-split videos, each answered by models fitted without it.
LEAD_ODDS: Final = 55.0
"""How many times as probable a leading instrument makes its action as any other, by one look."""
ALONE_ODDS: Final = 7.4
"""The same of the grasper alone, which means retraction or a pause in something else."""
LOOSE: Final = 0.5
LOOSE_MEAN_S: Final = 40.0
"""Half of the rate at which clips end is that of a law without memory, with this mean."""
ORDER_BACK_OFF: Final = 10.0
"""Clips of each other action counted beside those that followed."""
LOG_SD: Final = 0.5
"""No action's durations are taken to vary less."""

ABOUT: Final = (
    "{what} from CholecT50-SAP clips{of}; derived data, CC BY-NC-SA 4.0; made by python -m stream_agent.training.signals "
    "--sap FILE --signals DIR --out FOLDER"
)

Videos = Mapping[str, Sequence[SapClip]]
T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, eq=False)
class SignalsModel:
    """What turns 1 Hz instruments into clips, fitted on some videos.

    Attributes:
        table: What each leading instrument says.
        durations: How long clips last and what follows what.
    """

    table: SignalsTable
    durations: SegmenterModel

    @property
    def recogniser(self) -> SignalsRecogniser:
        """A new recogniser."""
        return SignalsRecogniser(self.table)

    def segmenter(self, config: SegmenterConfig) -> Segmenter:
        """A new segmenter."""
        return Segmenter(ACTIONS, config, model=self.durations)


def fit(videos: Videos, presence: Mapping[str, Presence]) -> SignalsModel:
    """Fit on those of the videos that have instrument rows."""
    known = {name: clips for name, clips in videos.items() if name in presence and clips}
    return SignalsModel(fit_table((clips, presence[name]) for name, clips in known.items()), fit_durations(known))


def fit_table(videos: Iterable[tuple[Sequence[SapClip], Presence]]) -> SignalsTable:
    """Each leading instrument's action is the one it leads in most often; so for the grasper alone after each other one."""
    seen: Counter[tuple[str, str]] = Counter()
    for clips, presence in videos:
        leads = _leads(presence)
        for clip, end_s in _labelled(clips, len(presence)):
            for key in leads[clip.start_s : end_s]:
                seen[key, clip.action] += 1
    posterior = {}
    alone = LEADING[-1]
    whole: Counter[str] = Counter()
    for before in ("", *LEADING[:-1]):
        for action in ACTIONS:
            whole[action] += seen[after(alone, before), action]
    retraction = _most(whole)
    for name in LEADING[:-1]:
        posterior[name] = _row(_most(Counter({action: seen[name, action] for action in ACTIONS})), LEAD_ODDS)
    posterior[alone] = _row(retraction, ALONE_ODDS)
    for before in LEADING[:-1]:
        counts = Counter({action: seen[after(alone, before), action] for action in ACTIONS})
        # Grasper alone after scissors is a pause in cutting: it does not speak for retraction then.
        if counts.total() and retraction and counts[retraction] < counts.total() / 4:
            posterior[after(alone, before)] = _row("", 1.0)
    return SignalsTable(
        about=ABOUT.format(what="What each instrument is used for,", of=" and Cholec80 1 Hz tool rows"),
        actions=ACTIONS,
        instruments=INSTRUMENTS,
        leading=LEADING,
        posterior=posterior,
    )


def fit_durations(videos: Videos) -> SegmenterModel:
    """Log-normal durations per action and the smoothed order of actions, from clips that another one follows."""
    lengths: dict[str, list[float]] = {action: [] for action in ACTIONS}
    order = np.full((len(ACTIONS), len(ACTIONS)), ORDER_BACK_OFF)
    for clips in videos.values():
        for clip, following in pairwise(clips):
            lengths[clip.action].append(float(following.start_s - clip.start_s))
            order[ACTIONS.index(clip.action), ACTIONS.index(following.action)] += 1.0
    np.fill_diagonal(order, 0.0)
    order /= order.sum(1, keepdims=True)

    def logs(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.log(np.maximum(np.array(values, dtype=np.float64), 1.0))

    every = logs([length for values in lengths.values() for length in values] or [60.0])
    back_off = np.quantile(every, (0.1, 0.3, 0.5, 0.7, 0.9))  # five clips of no action in particular
    fitted = []
    for action in ACTIONS:
        values = np.concatenate([logs(lengths[action]), back_off])
        fitted.append(
            ClipLength(
                median_s=round(float(np.exp(values.mean())), 2),
                log_sd=round(max(float(values.std()), LOG_SD), 3),
                mean_s=LOOSE_MEAN_S,
                loose=LOOSE,
            )
        )
    return SegmenterModel(
        about=ABOUT.format(what="Durations and order of actions", of=""),
        actions=ACTIONS,
        lengths=tuple(fitted),
        following=tuple(tuple(row) for row in order.tolist()),
    )


def _labelled(clips: Sequence[SapClip], seconds: int) -> Iterable[tuple[SapClip, int]]:
    """Each clip and the second at which its label ends."""
    for clip, following in pairwise(clips):
        yield clip, following.start_s
    yield clips[-1], min(seconds, clips[-1].start_s + LAST_CLIP_S)


def _leads(presence: Presence) -> list[str]:
    """Row of the table that each second is read by; empty where nothing leads."""
    places = [(name, INSTRUMENTS.index(name)) for name in LEADING]
    found, before = [], ""
    for row in presence.tolist():
        name = next((name for name, place in places if row[place]), "")
        if name == LEADING[-1]:
            name = after(name, before)
        elif name:
            before = name
        found.append(name)
    return found


def _most(counts: Counter[str]) -> str:
    """The action counted most; empty if none was."""
    best = max(ACTIONS, key=lambda action: counts[action])
    return best if counts[best] else ""


def _row(action: str, odds: float) -> tuple[float, ...]:
    """Equal odds but for one action."""
    weights = [odds if name == action else 1.0 for name in ACTIONS]
    return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True, slots=True)
class Declared:
    """A clip as it was declared.

    Attributes:
        action: Its action.
        start_s: Where it is said to have begun.
        decided_s: When that was said.
    """

    action: str
    start_s: float
    decided_s: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What the models said of one video.

    Attributes:
        clips: As annotated.
        declared: As declared, by time.
        best: The most probable action of each second by its evidence alone; empty where nothing is known.
        current: The segmenter's open action at each second; empty before the first.
    """

    clips: Sequence[SapClip]
    declared: tuple[Declared, ...]
    best: tuple[str, ...]
    current: tuple[str, ...]


def watch(model: SignalsModel, clips: Sequence[SapClip], presence: Presence, config: SegmenterConfig) -> Watched:
    """Feed one video second by second."""
    recogniser, segmenter = model.recogniser, model.segmenter(config)
    declared: list[Declared] = []
    best: list[str] = []
    current: list[str] = []
    for second, row in enumerate(presence.astype(float).tolist()):
        header = FrameHeader(
            stream_id="", session_id="one", seq=second, pts_s=float(second), captured_ns=second * NS_PER_S, signals=row
        )
        posterior = recogniser.evidence(header, None).actions
        declared += [
            Declared(event.clip.action, event.clip.start_pts_s, event.decided_pts_s)
            for event in segmenter.step(float(second), posterior)
            if event.kind == "opened"
        ]
        best.append(ACTIONS[posterior.index(max(posterior))] if posterior and max(posterior) > min(posterior) else "")
        current.append(segmenter.current or "")
    return Watched(clips, tuple(declared), tuple(best), tuple(current))


def in_span(watched: Watched) -> list[Declared]:
    """Declared clips that begin within the annotated span, give or take the tolerance."""
    low, high = watched.clips[0].start_s - TOLERANCE_S, watched.clips[-1].start_s + TOLERANCE_S
    return [declared for declared in watched.declared if low <= declared.start_s <= high]


def matched(
    clips: Sequence[SapClip], declared: Sequence[Declared], *, same_action: bool
) -> list[tuple[SapClip, Declared]]:
    """Starts at most `TOLERANCE_S` apart, one to one, the earliest that fits first: no matching has more pairs."""
    left = list(declared)
    pairs = []
    for clip in clips:
        fits = [
            item
            for item in left
            if abs(item.start_s - clip.start_s) <= TOLERANCE_S and (item.action == clip.action or not same_action)
        ]
        if fits:
            pairs.append((clip, fits[0]))
            left.remove(fits[0])
    return pairs


def overlaps(watched: Watched) -> tuple[int, int, int]:
    """Clips found (same action, intersection over union of `OVERLAP` or more, one to one), declared and annotated.

    Between the first and the last annotated start, since nobody knows where the last clip ends.
    """
    low, high = float(watched.clips[0].start_s), float(watched.clips[-1].start_s)
    ends = [*(item.start_s for item in watched.declared[1:]), high]
    spans = [
        (item.action, max(low, item.start_s), min(high, end)) for item, end in zip(watched.declared, ends, strict=False)
    ]
    spans = [span for span in spans if span[2] > span[1]]
    found, used = 0, set()
    for clip, following in pairwise(watched.clips):
        for place, (action, start_s, end_s) in enumerate(spans):
            both = min(end_s, following.start_s) - max(start_s, clip.start_s)
            either = max(end_s, following.start_s) - min(start_s, clip.start_s)
            if action == clip.action and place not in used and both >= OVERLAP * either:
                used.add(place)
                found += 1
                break
    return found, len(spans), len(watched.clips) - 1


def report(videos: Sequence[Watched]) -> dict[str, Any]:
    """Starts, clips and seconds over all videos together."""
    true = sum(len(watched.clips) for watched in videos)
    declared = [in_span(watched) for watched in videos]
    pairs = [
        pair
        for watched, items in zip(videos, declared, strict=True)
        for pair in matched(watched.clips, items, same_action=True)
    ]
    any_action = sum(
        len(matched(watched.clips, items, same_action=False)) for watched, items in zip(videos, declared, strict=True)
    )
    delays = np.array([item.decided_s - clip.start_s for clip, item in pairs] or [np.nan])
    found, said, there = (sum(column) for column in zip(*map(overlaps, videos), strict=True))
    seconds = [
        (clip.action, watched.best[second], watched.current[second])
        for watched in videos
        for clip, end_s in _labelled(watched.clips, len(watched.best))
        for second in range(clip.start_s, end_s)
    ]
    by_action: dict[str, list[int]] = {action: [0, 0] for action in ACTIONS}
    for watched in videos:
        for clip in watched.clips:
            by_action[clip.action][1] += 1
    for clip, _ in pairs:
        by_action[clip.action][0] += 1
    return {
        "videos": len(videos),
        "starts": true,
        "starts_within_5s": round(len(pairs) / true, 3),
        "of_any_action": round(any_action / true, 3),
        "clip_ratio": round(sum(map(len, declared)) / true, 3),
        "delay_s_median": round(float(np.median(delays)), 1),
        "delay_s_p90": round(float(np.quantile(delays, 0.9)), 1),
        "clip_f1": round(2 * found / (said + there), 3),
        "seconds": len(seconds),
        "accuracy_of_evidence": round(float(np.mean([best == label for label, best, _ in seconds])), 3),
        "accuracy_of_segmenter": round(float(np.mean([current == label for label, _, current in seconds])), 3),
        "found_by_action": {action: f"{hit}/{of}" for action, (hit, of) in by_action.items()},
    }


def limits(videos: Videos, presence: Mapping[str, Presence]) -> dict[str, str]:
    """What the instruments cannot tell, whoever looks at them.

    `shown`: annotated starts within 5 s of which an instrument of that action takes the lead, or the grasper is left alone.
    `retraction_after_*`: of the times at which the grasper stays alone for ten seconds after another instrument led, in the
    annotated span, those within 5 s of an annotated start of retraction.
    """
    table = fit_table((videos[name], rows) for name, rows in presence.items())
    says = {key: ACTIONS[row.index(max(row))] if max(row) > min(row) else "" for key, row in table.posterior.items()}
    shown, starts = 0, 0
    pauses: dict[str, list[int]] = {name: [0, 0] for name in LEADING[:-1]}
    for name, rows in presence.items():
        clips, leads = videos[name], _leads(rows)
        actions = [says.get(key, says[LEADING[-1]] if key else "") for key in leads]
        for clip in clips:
            near = range(max(1, clip.start_s - TOLERANCE_S), min(len(actions), clip.start_s + TOLERANCE_S + 1))
            shown += any(actions[k] == clip.action != actions[k - 1] for k in near)
            starts += 1
        retractions = [clip.start_s for clip in clips if clip.action == says[LEADING[-1]]]
        for second in range(max(1, clips[0].start_s), min(clips[-1].start_s, len(leads) - 10)):
            before, ahead = leads[second - 1], leads[second : second + 10]
            if before in pauses and set(ahead) == {after(LEADING[-1], before)}:
                pauses[before][0] += any(abs(second - start_s) <= TOLERANCE_S for start_s in retractions)
                pauses[before][1] += 1
    found = {"shown": f"{shown}/{starts}"}
    return found | {f"retraction_after_{name}": f"{hit}/{of}" for name, (hit, of) in pauses.items()}


def left_out(videos: Videos, presence: Mapping[str, Presence], config: SegmenterConfig) -> list[Watched]:
    """Each video by models fitted on the others."""
    return [
        watch(
            fit({other: videos[other] for other in presence if other != name}, presence),
            videos[name],
            presence[name],
            config,
        )
        for name in presence
    ]


def _written(path: Path, model: msgspec.Struct) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sap", type=Path, required=True, help="total_video_info.json of CholecT50-SAP")
    parser.add_argument("--signals", type=Path, required=True, help="folder of videoNN.csv at 1 Hz")
    parser.add_argument("--out", type=Path, required=True, help="folder for signals.json and segmenter.json")
    parser.add_argument("--exclude", default="", metavar="VID05,VID18", help="videos neither fitted nor scored")
    parser.add_argument(
        "--odds", default="", metavar="3,10,100", help="also print these segmenter.declare_odds, all videos"
    )
    options = parser.parse_args(arguments)
    train(
        options.sap,
        options.signals,
        options.out,
        exclude=filter(None, options.exclude.split(",")),
        odds=tuple(map(float, filter(None, options.odds.split(",")))),
    )


def train(sap: Path, signals: Path, out: Path, *, exclude: Iterable[str] = (), odds: Sequence[float] = ()) -> None:
    """Fit on the training videos, write `signals.json` and `segmenter.json` into `out`, print every figure as JSON.

    Videos of `exclude` are neither fitted nor scored; other `declare_odds` are scored for comparison.

    Raises:
        ConfigError: An input cannot be read.
    """
    excluded = set(exclude)
    videos = {name: clips for name, clips in load_sap(sap).items() if name not in excluded}
    presence = load_presence(signals, videos)
    training = {name: rows for name, rows in presence.items() if name not in TEST_VIDEOS}
    model = fit({name: videos[name] for name in training}, training)
    out.mkdir(parents=True, exist_ok=True)
    _written(out / "signals.json", model.table)
    _written(out / FILE_NAME, model.durations)
    results: dict[str, Any] = {"limits": limits(videos, presence)}
    config = SegmenterConfig()
    results["all_left_out"] = report(left_out(videos, presence, config))
    results["training_left_out"] = report(left_out(videos, training, config))
    results["test_by_training"] = report(
        [watch(model, videos[name], rows, config) for name, rows in presence.items() if name in TEST_VIDEOS]
    )
    for other in odds:
        results[f"all_left_out, declare_odds={other:g}"] = report(
            left_out(videos, presence, SegmenterConfig(declare_odds=other))
        )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
