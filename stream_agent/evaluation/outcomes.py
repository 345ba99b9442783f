"""Every answer of an evaluation, one JSON object per line, so that whoever compares planners can pair them sample by sample.

The first line says how they were made: `{"about": {…}, "data": {file: sha256}}`. Each other line is one answer of one row of
`results.json`: planner, track, history and protocol, the sample (video and index), what came, what was ranked with which
probabilities, and the milliseconds it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from stream_agent.evaluation.protocols import Answer, Setting

FILE_NAME = "outcomes.jsonl"


def write_outcomes(
    answers: Mapping[Setting, Sequence[Answer]], path: Path, *, about: Mapping[str, object], data: Mapping[str, str]
) -> Path:
    """Write the answers; `path` again."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        file.write(encoder.encode({"about": about, "data": data}) + b"\n")
        for line in _lines(answers):
            file.write(encoder.encode(line) + b"\n")
    return path


def _lines(answers: Mapping[Setting, Sequence[Answer]]) -> Iterator[dict[str, object]]:
    for setting, given in answers.items():
        row = {
            "planner": setting.planner,
            "track": setting.track,
            "history": setting.history,
            "protocol": setting.protocol,
        }
        for answer in given:
            outcome = answer.outcome
            yield row | {
                "video": outcome.video,
                "index": outcome.index,
                "target": outcome.target,
                "following": outcome.following,
                "ranked": outcome.ranked,
                "probabilities": outcome.probabilities,
                "elapsed_ms": round(answer.elapsed_ms, 4),
            }
