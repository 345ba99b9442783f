"""Fits the model over the structured memory (planner/ensemble.py), and says how well it foresees.

    run_agent.py train statistical --sap ../shared/data/sap/total_video_info.json \
        --signals ../shared/data/cholec80/phase_tool_1hz --out configs/procedures/cholecystectomy

Two tables are reports of the fixed settings, refitted without the videos asked about, and nothing was chosen by them:
leave-one-video-out over all videos, and the test samples. Every run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from stream_agent.evaluation.dataset import INSTRUMENTS, TEST_VIDEOS
from stream_agent.planner.ensemble import SCHEMA, EnsembleFile
from stream_agent.training.conformal import conformal, held_to, narrowest
from stream_agent.training.forecasts import errors, gain, joined, line, risk_coverage
from stream_agent.training.planner_heads import Setting, fit_head
from stream_agent.training.planner_questions import Rows, load_rows
from stream_agent.training.planner_study import Study
from stream_agent.training.statistical import ACTIONS, Videos

CHOSEN: Final = {
    False: Setting(5.0, 100.0, share=0.2, sharpness=1.1),
    True: Setting(3.0, 50.0, 3, 0.33, share=0.05, sharpness=1.1),
}
"""What `Study.choose` finds on the 35 training videos, by whether instruments are seen: for refits without some of them."""

SET_FROM: Final = {False: 0.034, True: 0.039}
"""What `narrowest(conformal(...))` finds there."""

HEADS: Final = {False: "labels and time", True: "with instrument rows"}
"""By whether instruments are seen, in the order in which they are fitted."""

LEARNT_FROM: Final = (9, 18, 27)
"""How many videos the points of the learning curve are taught by."""

STATEMENT: Final = (
    "A forest and logistic models over label history, times and instrument use, fitted on {videos} videos of CholecT50-SAP "
    "(Xu et al. 2025), derived from CholecT50 (Nwoye et al., Medical Image Analysis 78, 2022), with 1 Hz instrument rows of "
    "Cholec80 (Twinanda et al., IEEE TMI 36, 2017); CC BY-NC-SA 4.0: non-commercial use, attribution, share alike. Weighted "
    "towards the samples of that benchmark, the clips around clipping. See docs/model_card_statistical.md."
)


def fit_ensemble(
    study: Study,
    names: Sequence[str],
    chosen: Mapping[bool, Setting] = CHOSEN,
    sets: Mapping[bool, float] = SET_FROM,
) -> EnsembleFile:
    """Both heads fitted on the videos `names`; without the full one where none of them has instrument rows."""
    seen = study.named(names, full=True, samples=False)
    return EnsembleFile(
        version=SCHEMA,
        statement=STATEMENT.format(videos=len(names)),
        actions=ACTIONS,
        instruments=INSTRUMENTS,
        labels=fit_head(study.named(names, full=False, samples=False), chosen[False], full=False, set_from=sets[False]),
        full=fit_head(seen, chosen[True], full=True, set_from=sets[True]) if seen else None,
        ending=study.ending(names) if seen else None,
    )


def run(videos: Videos, signals: Path, out: Path, training: Sequence[str], *, order: int, concentration: float) -> None:
    """Print every table and write the model."""
    rows = load_rows(signals, videos)
    study = Study(videos, rows, order=order, concentration=concentration)
    chosen: dict[bool, Setting] = {}
    sets: dict[bool, float] = {}
    for full, name in HEADS.items():
        able = [video for video in training if not full or video in rows]
        print(f"model over the memory, {name}: nested leave-one-video-out, {len(able)} training videos")
        sets[full] = _nested(study, able, full=full)
        chosen[full] = study.choose(able, full=full)
        print(f"  chosen: {chosen[full]}, sets from {sets[full]}")
        every = study.five_fold(able, chosen[full], full=full, samples=False)
        print(f"  every clip, chosen setting  {line(every.probabilities, every.targets)}")
        print(f"  every clip, the n-gram      {line(every.back_off, every.targets)}")
        if full:
            withheld = study.five_fold(able, chosen[False], full=False)
            print(f"  the same samples, instruments withheld  {line(withheld.probabilities, withheld.targets)}")
            _live(study, able, chosen[True])
        _learning(study, able, chosen[full], full=full)
    file = fit_ensemble(study, training, chosen, sets)
    _report(study, training, rows, chosen, sets)
    out.write_bytes(msgspec.json.encode(file) + b"\n")
    print(f"wrote {out}")


def _nested(study: Study, able: Sequence[str], *, full: bool) -> float:
    """Print what a head foresees where its setting is chosen again without each video; from where on its sets are drawn."""
    found = joined(study.nested(able, full=full))
    print(f"  samples           {line(found.probabilities, found.targets)}")
    print(f"  the n-gram there  {line(found.back_off, found.targets)}")
    print(f"  {gain(found)}")
    print(f"  {errors(found)}")
    print(f"  accuracy by coverage  {risk_coverage(found)}")
    made = conformal(found)
    for one in made:
        print(f"  sets{' (chosen)' if one is narrowest(made) else ''}: {one}")
    return round(narrowest(made).set_from, 3)


def _live(study: Study, able: Sequence[str], setting: Setting) -> None:
    """What the planner says live, where nobody tells when an action ends, beside one that takes it to end always."""
    for when, (told, untold) in study.live(able, setting).items():
        answers = {"told": told.probabilities, "not told": untold, "n-gram": told.back_off}
        for name, probabilities in answers.items():
            print(f"  live, {when}, {name:8}  {line(probabilities, told.targets)}")


def _learning(study: Study, able: Sequence[str], setting: Setting, *, full: bool) -> None:
    """Leave-one-video-out with only some of the other videos, chosen by a fixed draw."""
    for count in LEARNT_FROM:
        if count >= len(able):
            continue
        drawn = []
        for index, name in enumerate(able):
            if study.named([name], full=full, samples=True):
                others = sorted(set(able) - {name})
                taught = np.random.default_rng(index).permutation(others)[:count].tolist()
                drawn.append(study.forecast(taught, [name], setting, full=full))
        found = joined(drawn)
        print(f"  learning curve, {count:2d} videos  {line(found.probabilities, found.targets)}")


def _report(
    study: Study, training: Sequence[str], rows: Rows, chosen: Mapping[bool, Setting], sets: Mapping[bool, float]
) -> None:
    """All videos, each left out in turn, and the test samples: of fixed settings."""
    print("reports: nothing was chosen by these")
    for full, name in HEADS.items():
        everyone = [video for video in study.videos if not full or video in rows]
        found = study.leave_one_out(everyone, chosen[full], full=full)
        print(f"  {name}, leave-one-video-out over {len(everyone)}: {line(found.probabilities, found.targets)}")
        print(f"  {name}, the n-gram there: {line(found.back_off, found.targets)}")
        print(f"  {name}, {gain(found)}")
        print(f"  {name}, sets: {held_to(found, sets[full])}")
        print(f"  {name}, accuracy by coverage: {risk_coverage(found)}")
    tested = study.forecast(training, TEST_VIDEOS, chosen[False], full=False)
    print(f"  test samples, labels and time         {line(tested.probabilities, tested.targets)}")
    seen = [video for video in TEST_VIDEOS if video in rows]
    partly = study.forecast([video for video in training if video in rows], seen, chosen[True], full=True)
    print(f"  test samples with instrument rows     {line(partly.probabilities, partly.targets)}")
    blind = study.forecast(training, TEST_VIDEOS - set(seen), chosen[False], full=False)
    both = joined([partly, blind]) if blind.asked else partly
    print(f"  all test samples, rows where there are {line(both.probabilities, both.targets)}")
