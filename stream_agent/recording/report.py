"""A session report: one HTML file with everything in it, for documentation, teaching and the review of skill.

No script, no outside asset, and a policy that forbids both; text from the recording is escaped. Colours are Okabe and Ito's,
which people with any colour vision can tell apart, and every span says its action when pointed at.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from html import escape

from stream_agent import __version__
from stream_agent.messages import ClipEvent, Health, Plan
from stream_agent.perception.timeline import load_labels
from stream_agent.recording.figures import Figures, figures
from stream_agent.recording.reader import Described, PackNames, RecordingFile
from stream_agent.recording.records import FrameRecord

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
_NOTHING = "#d9dde1"
_WIDTH, _ROW, _LEFT = 1000, 34, 96

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; vertical-align: top }
td.n, th.n { text-align: right } .quiet { opacity: .7 } svg { width: 100%; height: auto }
svg text { fill: currentColor; font-size: 13px } .key { display: inline-block; width: .9em; height: .9em; margin-right: .35em }
.legend span.item { margin-right: 1.2em; white-space: nowrap }
@media print { body { margin: 0; max-width: none } h2 { break-after: avoid } }
"""


def report(recording: RecordingFile, labels: str | None = None) -> str:
    """The report as HTML; `labels` is a label file as for `recogniser.labels`.

    Raises:
        ConfigError: The label file is missing or wrong.
        RecordingError: The recording is damaged.
    """
    from pathlib import Path

    truth = None if labels is None else load_labels(Path(labels), recording.pack.actions)
    messages = (message for _, message in recording.messages(FrameRecord, ClipEvent, Plan, Health))
    found = figures(messages, truth)
    return page(recording.described, recording.pack, found, whole=recording.layout.whole)


def page(session: Described, pack: PackNames, found: Figures, *, whole: bool = True) -> str:
    """The figures as one HTML page."""
    started = datetime.datetime.fromisoformat(session.started)
    title = f"{pack.title}, case {session.case_id}"
    sections = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="quiet">{started:%d %B %Y, %H:%M} UTC · stream {escape(session.stream_id)} · '
        f"{_clock(found.end_s - found.start_s)} of media time</p>",
        "" if whole else "<p><strong>The recording was cut; this is what was whole of it.</strong></p>",
        _section("Summary", "".join(f"<p>{escape(line)}</p>" for line in summary(session, pack, found))),
        _section("Timeline", _timeline(found, pack.actions)),
        _section("Clips", _clips(found)),
        _section("Accuracy", _accuracy(found)),
        _section("Cautions", _cautions(found)),
        _section("Abstentions and gates", _abstentions(found)),
        _section("Latency", _latencies(found)),
        _section("What went wrong", _problems(found)),
        _section("Provenance", _provenance(session)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def summary(session: Described, pack: PackNames, found: Figures) -> list[str]:
    """The session in a few sentences."""
    totals: dict[str, tuple[int, float]] = {}
    for clip in found.clips:
        number, seconds = totals.get(clip.action, (0, 0.0))
        totals[clip.action] = (number + 1, seconds + clip.duration_s)
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    lines = [
        f"{pack.title}: {found.frames} frames were looked at over {_clock(found.end_s - found.start_s)}, "
        f"in which {len(found.clips)} clips of {len(totals)} actions were recognised."
    ]
    if ordered:
        parts = [f"{action} {_clock(seconds)} in {number}" for action, (number, seconds) in ordered]
        lines.append(f"Time by action: {', '.join(parts)}.")
    accuracy = found.accuracy
    shown = found.plans - sum(found.abstentions.values())
    lines.append(
        f"{found.plans} plans were published; {shown} ranked next actions and {found.plans - shown} abstained."
    )
    if accuracy.plans:
        judge = "the labels" if found.judged_by == "labels" else "the clips that were recognised afterwards"
        lines.append(
            f"Judged by {judge}, the first choice was what came next in {_share(accuracy.hits[0], accuracy.plans)} of "
            f"{accuracy.plans} plans, and one of the three in {_share(accuracy.hits[-1], accuracy.plans)}."
        )
    if found.cautions:
        lines.append(f"{len(found.cautions)} cautions of the procedure's rules were shown.")
    if session.clock == "virtual":
        lines.append(
            "The session ran in lockstep on media time, so its latencies are those charged, not those of a machine."
        )
    return lines


def _timeline(found: Figures, actions: Sequence[str]) -> str:
    rows = [("recognised", found.recognised), ("planned next", found.planned)]
    if found.true:
        rows.insert(0, ("true", found.true))
    length_s = max(found.end_s - found.start_s, 1e-9)
    colour = _colours(actions)
    parts = []
    for number, (name, spans) in enumerate(rows):
        top = 4 + number * (_ROW + 6)
        parts.append(f'<text x="0" y="{top + _ROW / 2 + 5}">{name}</text>')
        for span in spans:
            left = _LEFT + (span.start_s - found.start_s) / length_s * (_WIDTH - _LEFT)
            width = max(0.6, (span.end_s - span.start_s) / length_s * (_WIDTH - _LEFT))
            label = f"{span.action or 'none'}, {_clock(span.start_s)} to {_clock(span.end_s)}"
            parts.append(
                f'<rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{_ROW}" '
                f'fill="{colour.get(span.action or "", _NOTHING)}"><title>{escape(label)}</title></rect>'
            )
    height = 4 + len(rows) * (_ROW + 6)
    for mark in range(6):
        at_s = found.start_s + length_s * mark / 5
        at = _LEFT + (_WIDTH - _LEFT) * mark / 5
        anchor = "end" if mark == 5 else "start" if mark == 0 else "middle"
        parts.append(f'<text x="{at:.0f}" y="{height + 16}" text-anchor="{anchor}">{_clock(at_s)}</text>')
    legend = "".join(f'<span class="item">{_key(colour[action])}{escape(action)}</span>' for action in actions)
    legend += f'<span class="item">{_key(_NOTHING)}none</span>'
    drawing = (
        f'<svg viewBox="0 0 {_WIDTH} {height + 22}" role="img" aria-label="Timeline of actions">{"".join(parts)}</svg>'
    )
    return f'{drawing}<p class="legend">{legend}</p>'


def _clips(found: Figures) -> str:
    rows = [
        (
            clip.action,
            _clock(clip.start_pts_s),
            _clock(clip.end_pts_s),
            _clock(clip.duration_s),
            f"{clip.confidence:.0%}",
        )
        for clip in found.clips
    ]
    return _table(("action", "from", "to", "lasted", "confidence"), rows, numeric=4) or "<p>No clip was recognised.</p>"


def _accuracy(found: Figures) -> str:
    judged = found.accuracy
    rows = []
    if found.judged_by == "labels":
        rows.append(("action going on recognised", _share(judged.recognised, judged.frames), f"{judged.frames} plans"))
    for place, (hits, changes) in enumerate(zip(judged.hits, judged.change_hits, strict=True), start=1):
        rows.append((f"next action among the first {place}", _share(hits, judged.plans), f"{judged.plans} plans"))
        rows.append(
            (
                f"… at the last plan before a change, first {place}",
                _share(changes, judged.changes),
                f"{judged.changes} changes",
            )
        )
    rows.sort(key=lambda row: row[0].startswith("…"))
    note = (
        "Judged by the labels given."
        if found.judged_by == "labels"
        else "No labels were given: plans are judged by the clips that the session itself recognised afterwards."
    )
    return f"<p>{note}</p>" + _table(("", "right", "of"), rows, numeric=2)


def _cautions(found: Figures) -> str:
    ordered = sorted(found.cautions.items(), key=lambda item: item[1])
    rows = [(text, _clock(first_s), str(times)) for text, (first_s, times) in ordered]
    return _table(("caution", "first at", "plans"), rows, numeric=2) or "<p>None was shown.</p>"


def _abstentions(found: Figures) -> str:
    rows = [(f"plan: {reason}", str(n)) for reason, n in found.abstentions.most_common()]
    rows += [(f"frame behind a closed gate: {reason}", str(n)) for reason, n in found.gates.most_common()]
    rows += [(f"frame not looked at: {reason}", str(n)) for reason, n in found.passed_over.most_common()]
    return _table(("", "times"), rows, numeric=1) or "<p>There were none.</p>"


def _latencies(found: Figures) -> str:
    rows = [
        (one.stage, f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.p99:.2f}", f"{one.most:.2f}", str(one.n))
        for one in found.latencies
    ]
    return _table(("milliseconds", "p50", "p95", "p99", "most", "n"), rows, numeric=1) or "<p>Nothing was measured.</p>"


def _problems(found: Figures) -> str:
    rows = [(part, state, str(n)) for (part, state), n in found.problems.most_common(20)]
    return _table(("part", "state", "reports"), rows, numeric=2) or "<p>Every part reported to be well throughout.</p>"


def _provenance(session: Described) -> str:
    rows = [
        ("recorded by", f"stream_agent {session.version}"),
        ("report by", f"stream_agent {__version__}"),
        ("configuration", session.config_digest),
        ("procedure pack", f"{session.pack}, {session.pack_digest}"),
        ("knowledge base", session.knowledge_digest),
        ("clock", session.clock),
    ]
    advice = "<p>Advice for research and teaching. It was never a command to a robot, and is no medical record.</p>"
    return _table(("", ""), rows, numeric=9) + advice


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(head: Iterable[str], rows: Sequence[Sequence[str]], *, numeric: int) -> str:
    """An HTML table, columns from `numeric` on set right; nothing without rows."""
    if not rows:
        return ""

    def cells(tag: str, row: Iterable[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if column >= numeric else ''}>{escape(str(value))}</{tag}>"
            for column, value in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', head)}</tr>{body}</table>"


def _colours(actions: Sequence[str]) -> dict[str, str]:
    return {action: _COLOURS[number % len(_COLOURS)] for number, action in enumerate(actions)}


def _key(colour: str) -> str:
    return f'<svg class="key" viewBox="0 0 9 9" style="width:.9em"><rect width="9" height="9" fill="{colour}"/></svg>'


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
