"""What a run of the streaming protocol amounts to: accuracy at each change, against lead time, and second by second."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import msgspec

from stream_agent.evaluation import metrics
from stream_agent.evaluation.protocols import Answer
from stream_agent.evaluation.streaming import Declared, Streamed


class Starts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of true clip starts, by the plan on display right before each; the counts add up to `n`.

    Attributes:
        n: Starts.
        foreseen: Where the action was ranked first, second, third.
        declared: Where it was not ranked, but the current action already, declared within the true clip before.
        declared_early_s: Median seconds from that declaration to the start; None where there is none.
        held_on: Where it was the current action since before the true clip before: that one was missed altogether.
        not_foreseen: All others, with and without a plan.
    """

    n: int
    foreseen: tuple[int, int, int]
    declared: int
    declared_early_s: float | None
    held_on: int
    not_foreseen: int


class StreamedScore(msgspec.Struct, frozen=True, kw_only=True):
    """One planner's figures, percentages.

    Attributes:
        planner: Whose.
        samples_n: True clip starts that are samples of CholecT50-SAP, to compare with leave-one-video-out.
        samples_slacc: Top-1, 2, 3 over those.
        lead: Seconds before the change → top-1, 2, 3 over every true clip start.
        lead_n: Seconds before the change → answers.
        lateness: Seconds late → top-1, 2, 3 over every second.
        seconds: Seconds that were asked.
        starts: What became of every true clip start.
        samples_starts: The same of those that are samples.
    """

    planner: str
    samples_n: int
    samples_slacc: tuple[float, ...]
    lead: dict[int, tuple[float, ...]]
    lead_n: dict[int, int]
    lateness: dict[int, tuple[float, ...]]
    seconds: int
    starts: Starts
    samples_starts: Starts


def scores(answered: Mapping[str, Streamed], is_sample: Mapping[tuple[str, int], bool]) -> tuple[StreamedScore, ...]:
    """Every planner's; `is_sample` by video and clip number."""
    made = []
    for planner, streamed in answered.items():
        every = list(zip(streamed.leads[0], streamed.declared, strict=True))
        chosen = [pair for pair in every if is_sample[pair[0].sample.question.video, pair[0].sample.index]]
        of_samples = [answer for answer, _ in chosen]
        made.append(
            StreamedScore(
                planner=planner,
                samples_n=len(of_samples),
                samples_slacc=_best(of_samples),
                lead={lead: _best(answers) for lead, answers in streamed.leads.items()},
                lead_n={lead: len(answers) for lead, answers in streamed.leads.items()},
                lateness={
                    late: tuple(round(100 * count / counts[0], 2) for count in counts[1:])
                    for late, counts in streamed.seconds.items()
                    if counts[0]
                },
                seconds=next(iter(streamed.seconds.values()))[0],
                starts=_starts(every),
                samples_starts=_starts(chosen),
            )
        )
    return tuple(made)


def _starts(pairs: Sequence[tuple[Answer, Declared | None]]) -> Starts:
    foreseen = [0, 0, 0]
    early_s: list[float] = []
    held_on = not_foreseen = 0
    for answer, declared in pairs:
        ranked = answer.forecast.ranked[:3]
        if answer.sample.target in ranked:
            foreseen[ranked.index(answer.sample.target)] += 1
        elif declared is None:
            not_foreseen += 1
        elif declared.in_clip_before:
            early_s.append(declared.early_s)
        else:
            held_on += 1
    return Starts(
        n=len(pairs),
        foreseen=(foreseen[0], foreseen[1], foreseen[2]),
        declared=len(early_s),
        declared_early_s=round(statistics.median(early_s), 1) if early_s else None,
        held_on=held_on,
        not_foreseen=not_foreseen,
    )


def tables(made: Sequence[StreamedScore]) -> list[tuple[str, list[list[str]]]]:
    """Titles and tables, header first, every cell as text."""
    if not made:
        return []
    leads, late = list(made[0].lead), list(made[0].lateness)
    by_lead = [["planner", "samples: n", "samples", *(f"{lead} s before" for lead in leads)]]
    by_lateness = [["planner", "seconds", *(f"{seconds} s late" for seconds in late)]]
    split = [["planner", "starts", "n", "1st", "2nd", "3rd", "declared early", "by, s", "held on", "not foreseen"]]
    for score in made:
        for name, starts in (("every", score.starts), ("samples", score.samples_starts)):
            split.append(_split(score.planner, name, starts))
        by_lead.append(
            [
                score.planner,
                str(score.samples_n),
                _slashed(score.samples_slacc),
                *(_slashed(score.lead[lead]) for lead in leads),
            ]
        )
        by_lateness.append([score.planner, str(score.seconds), *(_slashed(score.lateness[s]) for s in late)])
    return [
        (f"Plan on display before each of {made[0].lead_n[leads[0]]} true clip starts, by lead time", by_lead),
        ("Share of all seconds in which the plan names the next clip's action, by lateness", by_lateness),
        ("What became of the true clip starts: foreseen, or the current action already, which no plan can name", split),
    ]


def _best(answers: Sequence[Answer]) -> tuple[float, ...]:
    outcomes = [answer.outcome for answer in answers]
    return tuple(round(metrics.slacc(outcomes, best), 2) for best in (1, 2, 3))


def _split(planner: str, which: str, starts: Starts) -> list[str]:
    def share(count: int) -> str:
        return f"{count} ({100 * count / starts.n:.1f} %)" if starts.n else "0"

    early = "" if starts.declared_early_s is None else f"{starts.declared_early_s:g}"
    counts = (*map(share, starts.foreseen), share(starts.declared), early, share(starts.held_on))
    return [planner, which, str(starts.n), *counts, share(starts.not_foreseen)]


def _slashed(values: Sequence[float]) -> str:
    return "/".join(f"{value:.1f}" for value in values)
