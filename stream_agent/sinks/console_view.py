"""The live view: what is known → a screen of text; pure.

Read at a glance, from the top: what goes on now, what is likely next and how likely, how fresh that is and how long it
may be used; then why and what to mind; then the history and the state of the machine. A plan past its expiry is struck
through and greyed, whoever is or is not still talking. Colours are Okabe and Ito's, distinct to colour-blind eyes; a
code or a word always says the same as the colour.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stream_agent.messages import Clip, Plan, RankedAction
from stream_agent.sinks.console_state import ConsoleState

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#4C9BE0", "#B8B8B8")
FOOTER = "Advice for research, never a command to a robot."
_INK = "#000000"
_GREY = "#8A8A8A"
_GOOD, _FAIR, _BAD = "bold #2FBF93", "bold #E69F00", "bold white on #B02A00"
_GATES = {
    "black": "the picture is black",
    "frozen": "the picture is frozen: nothing in it has changed for seconds",
    "blurred": "the picture is blurred",
    "out_of_body": "the camera is outside the body",
}
_SOURCE = re.compile(r" \([^()]*\)$")
"""The source that a caution ends with: left out where room is short."""
_WIDE = 116
_TALL = 28
_LOW = 24
_LABEL_CELLS = 9
_SOON_S = 0.5
_STALE_S = 1.0


def live_view(state: ConsoleState, *, now_ns: int, width: int, height: int, title: str) -> RenderableType:
    """The whole screen: at most `height` lines of `width` cells; 60x14 is the least of use."""
    header, footer = _header(state, now_ns, width, title), _footer(width)
    room = height - 2
    if width >= _WIDE:
        left_width = width * 3 // 5
        left = _advice(state, now_ns, left_width, room)
        right = _machine(state, now_ns, width - left_width - 3, room)
        columns = Table.grid(padding=(0, 3, 0, 0))
        columns.add_column(width=left_width)
        columns.add_column()
        columns.add_row(Group(*_filled(left, room)), Group(*_filled(right, room)))
        return Group(header, columns, footer)
    lines = _fitting(
        room,
        [
            _now(state, now_ns, width, tall=height >= _TALL),
            _next(state, now_ns, width, tall=height >= _TALL),
            _reasons(state, now_ns, width, extra=(height - _LOW) // 4),
            _history(state, width),
            _state_of_the_machine(state, now_ns, width, most=1),
        ],
        importance=(0, 1, 4, 3, 2),
    )
    return Group(header, *_filled(lines, room), footer)


def clean(text: str) -> str:
    """Text from outside without what a terminal would obey: control characters and direction marks become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def duration(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def age(seconds: float) -> str:
    """`132 ms` under a second, `3.2 s` above."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def onset(plan: Plan) -> str:
    """When the top action is expected, with its 10 % to 90 % range; empty when unknown."""
    if plan.expected_onset_s is None:
        return ""
    text = f"in about {_seconds(plan.expected_onset_s)}"
    if plan.expected_onset_interval_s is not None:
        low, high = plan.expected_onset_interval_s
        text += f" ({_seconds(low)} to {_seconds(high)})"
    return text


def passed_over(plan: Plan) -> str:
    """Why no higher rung of the ladder answered; empty when the highest did."""
    reasons = []
    for report in plan.rungs:
        if report.rung == plan.source or report.reason == "used":
            break
        reasons.append(f"{report.rung}: {report.reason}")
    return "; ".join(reversed(reasons))  # the nearest rung first: that is the news


def abstention(plan: Plan) -> str:
    """Why there is no advice, in words."""
    reason = plan.abstain_reason.removeprefix("gate: ")
    return _GATES.get(reason, reason or "no reason given")


def _advice(state: ConsoleState, now_ns: int, width: int, room: int) -> list[Text]:
    """The left column of a wide screen."""
    blocks = [
        _now(state, now_ns, width, tall=room >= _TALL - 2),
        _next(state, now_ns, width, tall=room >= _TALL - 2),
        _reasons(state, now_ns, width, extra=max(0, room - 14) // 2),
    ]
    return _fitting(room, blocks, importance=(0, 1, 2))


def _machine(state: ConsoleState, now_ns: int, width: int, room: int) -> list[Text]:
    """The right column of a wide screen."""
    machine = _state_of_the_machine(state, now_ns, width, most=4)
    history = _history_list(state, width, max(3, room - len(machine) - 1))
    return _fitting(room, [history, machine], importance=(1, 0))


def _fitting(room: int, blocks: Sequence[list[Text]], *, importance: Sequence[int]) -> list[Text]:
    """The blocks in order, without the least important ones (highest number) that do not fit in `room` lines."""
    kept = [list(block) for block in blocks]
    for i in sorted(range(len(kept)), key=lambda i: -importance[i]):
        excess = sum(map(len, kept)) - room
        if excess <= 0:
            break
        del kept[i][max(0, len(kept[i]) - excess) :]
    return [line for block in kept for line in block]


def _filled(lines: Sequence[Text], room: int) -> list[Text]:
    return [*lines[:room], *[Text() for _ in range(room - len(lines))]]


def _header(state: ConsoleState, now_ns: int, width: int, title: str) -> Text:
    plan = state.plan
    left = f" {clean(title)}"
    if plan is not None:
        left += f"  {clean(plan.stream_id)} · {clean(plan.case_id)}"
    word, style = _status(state, now_ns)
    at = duration(plan.pts_s) if plan is not None else ""
    line = Text(no_wrap=True, style="bold on #262626")
    line.append(_fit(left, width - len(word) - len(at) - 5))
    line.append(f" {at} ", style="bold on #262626")
    line.append(f" {word} ", style=style)
    line.append(" " * max(0, width - line.cell_len))
    return line


def _status(state: ConsoleState, now_ns: int) -> tuple[str, str]:
    if state.silent_s(now_ns):
        return "NO WORD FROM THE AGENT", _BAD
    if state.health is not None and state.health.state == "degraded":
        return "DEGRADED", "bold #000000 on #E69F00"
    if state.plan is None:
        return "STARTING", "bold #000000 on #B8B8B8"
    return "RUNNING", "bold #000000 on #2FBF93"


def _dead(state: ConsoleState, now_ns: int) -> bool:
    """Whether what is shown must not be taken for current."""
    return state.expired(now_ns) or bool(state.silent_s(now_ns))


def _now(state: ConsoleState, now_ns: int, width: int, *, tall: bool) -> list[Text]:
    """A full-width band: the current action and how long it has been going on."""
    plan = state.plan
    if plan is None:
        words, detail, colour = "WAITING FOR THE FIRST PLAN", "", _GREY
    elif plan.current_action is None:
        words, detail, colour = "NO ACTION RECOGNISED YET", "", _GREY
    else:
        words = clean(plan.current_action).upper()
        detail = f"{plan.current_confidence:.0%} sure"
        if state.current_s is not None:
            detail = f"{duration(state.current_s)}   {detail}"
        colour = _GREY if _dead(state, now_ns) else _colour(state, plan.current_action)
    style = f"bold {_INK} on {colour}"
    room = width - len(detail) - 3
    band = Text(no_wrap=True, style=style)
    band.append(_fit(f" NOW    {words}", room))
    band.append(f" {detail}  ")
    edge = Text(" " * width, style=style, no_wrap=True)
    return [edge.copy(), band, edge, Text()] if tall else [band]


def _next(state: ConsoleState, now_ns: int, width: int, *, tall: bool) -> list[Text]:
    """Three ranked actions with bars, the expected onset, and freshness; or why there is no advice."""
    plan = state.plan
    lines = [_rule("NEXT", width)]
    if plan is None:
        return [*lines, Text(), Text("   no plan yet", style=_GREY), Text(), Text(), Text()]
    dead = _dead(state, now_ns)
    if plan.abstained or not plan.ranked:
        reason = clean(abstention(plan))
        lines += [
            Text(),
            Text("    NO ADVICE", style=f"bold {_GREY if dead else 'white'}", no_wrap=True),
            *_wrapped("    ", reason, width, 1, _GREY if dead else _FAIR),
        ]
    else:
        names = max(cell_len(clean(item.action)) for item in plan.ranked)
        names = min(names, max(12, width // 2))
        for place, item in enumerate(plan.ranked, start=1):
            lines.append(_ranked(state, item, place, names, width, dead=dead))
            lines += [Text()] if tall else []
    lines.append(_when(state, plan, now_ns, width))
    lines.append(_freshness(state, plan, now_ns, width))
    return lines


def _ranked(state: ConsoleState, item: RankedAction, place: int, names: int, width: int, *, dead: bool) -> Text:
    colour = _GREY if dead else _colour(state, item.action)
    line = Text(no_wrap=True)
    line.append(f" {place}  ", style=_GREY if dead else ("bold" if place == 1 else ""))
    emphasis = f"strike {_GREY}" if dead else ("bold white" if place == 1 else "")
    line.append(_cut(clean(item.action), names), style=emphasis)
    line.append(" " * (names + 7 - line.cell_len))
    bar = max(5, width - line.cell_len - 8)
    eighths = round(min(max(item.probability, 0.0), 1.0) * bar * 8)
    full, part = divmod(eighths, 8)
    drawn = "█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")
    line.append(drawn, style=colour)
    line.append("·" * (bar - len(drawn)), style="#4A4A4A")
    line.append(f" {item.probability:4.0%} ", style=_GREY if dead else ("bold white" if place == 1 else ""))
    return line


def _when(state: ConsoleState, plan: Plan, now_ns: int, width: int) -> Text:
    """The expected onset; once the plan is dead, that takes its place."""
    silent_s = state.silent_s(now_ns)
    if silent_s:
        return Text(_fit(f" NO WORD FROM THE AGENT FOR {silent_s:.0f} s: do not use this plan", width), style=_BAD)
    if state.expired(now_ns):
        return Text(_fit(f" EXPIRED {age(-state.valid_for_s(now_ns))} ago: do not use this plan", width), style=_BAD)
    when = "" if plan.abstained else onset(plan)
    return _labelled("WHEN", _fit(when, width - _LABEL_CELLS), "bold") if when else Text()


def _freshness(state: ConsoleState, plan: Plan, now_ns: int, width: int) -> Text:
    age_s, left_s = state.age_s(now_ns), state.valid_for_s(now_ns)
    line = _labelled("AGE", f"{age(age_s):>7}", _GOOD if age_s < _SOON_S else _FAIR if age_s < _STALE_S else "bold")
    line.append("   VALID ", style=_GREY)
    if left_s < 0:
        line.append("expired ".ljust(14), style="bold #FF7A50")
    else:
        life_s = max((plan.valid_until_ns - plan.captured_ns) / 1e9, 1e-3)
        blocks = round(min(left_s / life_s, 1.0) * 8)
        line.append("▰" * blocks + "▱" * (8 - blocks), style=_FAIR if left_s < _SOON_S else _GOOD)
        line.append(f" {left_s:4.1f} s", style="bold")
    line.append("   BY ", style=_GREY)
    line.append(plan.source, style="bold")
    over = passed_over(plan)
    if over:
        line.append(_cut(f"  ({clean(over)})", max(0, width - line.cell_len)), style=_GREY)
    line.no_wrap = True
    return line


def _reasons(state: ConsoleState, now_ns: int, width: int, *, extra: int) -> list[Text]:
    """Cautions first, then the rationale and where the procedure stands."""
    plan = state.plan
    if plan is None:
        return []
    extra = max(0, extra)
    dead = _dead(state, now_ns)
    lines: list[Text] = []
    for caution in plan.safety[: 2 + extra]:
        words = clean(caution) if extra else _SOURCE.sub("", clean(caution))
        lines += _wrapped(" !  ", words, width, 2 + extra, _GREY if dead else _FAIR)
    lines += _wrapped("WHY", clean(state.why), width, 2 + extra, _GREY if dead else "")
    if plan.contradiction:
        lines += _wrapped(
            " !  ", f"its reasons differ from this ranking: {clean(plan.contradiction)}", width, 1 + extra, _FAIR
        )
    lines += _wrapped("STATE", clean(plan.progress), width, 1 + extra, _GREY if dead else "")
    return [_rule("WHAT TO MIND, AND WHY", width), *lines] if lines else []


def _history(state: ConsoleState, width: int) -> list[Text]:
    """A strip of the newest clips, each as wide as it was long, with its code; durations under it."""
    clips = [*state.clips, *([state.open_clip] if state.open_clip is not None else [])]
    lines = [_rule("HISTORY", width)]
    if not clips:
        return [*lines, Text("   nothing closed yet", style=_GREY), Text()]
    end_pts_s = state.plan.pts_s if state.plan is not None else clips[-1].end_pts_s
    shown, widths = _strip_widths(state, clips, end_pts_s, width - 3)
    strip, under = Text(" ", no_wrap=True), Text(" ", no_wrap=True)
    for clip, cells in zip(shown, widths, strict=True):
        going = clip is state.open_clip
        code = f" {state.style(clip.action).code}{'▸' if going else ''}"
        strip.append(_fit(code, cells), style=f"bold {_INK} on {_colour(state, clip.action)}")
        strip.append(" ")
        length = duration((end_pts_s if going else clip.end_pts_s) - clip.start_pts_s)
        under.append(_fit(f" {length}", cells + 1), style=_GREY)
    return [*lines, strip, under]


def _strip_widths(
    state: ConsoleState, clips: Sequence[Clip], end_pts_s: float, width: int
) -> tuple[list[Clip], list[int]]:
    """The newest clips that fit and the cells of each: room for code and time, the rest shared out by duration."""
    least: list[int] = []
    for clip in reversed(clips):
        cells = max(len(state.style(clip.action).code) + 3, 7)
        if sum(least) + len(least) + cells > width:
            break
        least.insert(0, cells)
    shown = list(clips[len(clips) - len(least) :])
    spare = width - sum(least) - len(least)
    lengths = [
        max(0.1, (end_pts_s if clip is state.open_clip else clip.end_pts_s) - clip.start_pts_s) for clip in shown
    ]
    total = sum(lengths)
    return shown, [cells + int(spare * length / total) for cells, length in zip(least, lengths, strict=True)]


def _history_list(state: ConsoleState, width: int, lines: int) -> list[Text]:
    """For wide screens: the clips by name, newest first."""
    shown: list[Text] = [_rule("HISTORY", width)]
    open_clip = state.open_clip
    if open_clip is not None and state.plan is not None:
        shown.append(_history_line(state, open_clip, state.plan.pts_s - open_clip.start_pts_s, "now", width))
    for clip in reversed(state.clips):
        if len(shown) > lines:
            break
        shown.append(_history_line(state, clip, clip.duration_s, duration(clip.start_pts_s), width))
    return shown[: lines + 1]


def _history_line(state: ConsoleState, clip: Clip, length_s: float, at: str, width: int) -> Text:
    line = Text(no_wrap=True)
    line.append(f" {at:>7} ", style=_GREY)
    style = state.style(clip.action)
    line.append(f" {style.code:<6}", style=f"bold {_INK} on {_colour(state, clip.action)}")
    line.append(" " + _fit(clean(clip.action), width - line.cell_len - 10))
    line.append(f" {duration(length_s):>8}", style="bold")
    return line


def _state_of_the_machine(state: ConsoleState, now_ns: int, width: int, *, most: int) -> list[Text]:
    """Health, latency and counts, each on at most `most` lines (trouble may take two)."""
    return [
        _rule("MACHINE", width),
        *_health(state, now_ns, width, most),
        *_wrapped("NOTICE", clean(state.notice(now_ns)), width, most, _FAIR),
        *_wrapped("LATENCY", _latency(state), width, most),
        *_counts(state, width, most),
    ]


def _latency(state: ConsoleState) -> str:
    """Medians of the recent plans: the total first, then its stages."""
    spans = state.latency_ms()
    total_ms = spans.pop("total", None)
    words = [] if total_ms is None else [f"{total_ms:.1f} ms"]
    words += [f"{clean(stage)} {ms:.1f}" for stage, ms in spans.items()]
    return " · ".join(words) or "not measured yet"


def _counts(state: ConsoleState, width: int, most: int) -> list[Text]:
    counters = state.counters
    if counters is None:
        newest = "none yet" if state.plan is None else f"newest {state.plan.seq:,}"
        return _wrapped("FRAMES", newest, width, most)
    frames, plans = counters.frames, counters.plans
    dropped = sum(counters.dropped.values())
    text = f"{frames.get('received', 0):,} of {frames.get('published', 0):,} seen · {dropped:,} dropped"
    text += _told(counters.dropped)
    if counters.gated:
        text += f" · {sum(counters.gated.values()):,} gated{_told(counters.gated)}"
    shown = " · ".join(f"{n:,} {clean(name)}" for name, n in plans.items())
    return [*_wrapped("FRAMES", text, width, most), *_wrapped("PLANS", shown or "none yet", width, most)]


def _told(reasons: dict[str, int]) -> str:
    told = ", ".join(f"{clean(reason)} {n:,}" for reason, n in sorted(reasons.items(), key=lambda item: -item[1]) if n)
    return f" ({told})" if told else ""


def _health(state: ConsoleState, now_ns: int, width: int, most: int) -> list[Text]:
    silent_s = state.silent_s(now_ns)
    if silent_s:
        text, style = f"no word from the agent for {silent_s:.0f} s", _BAD
    elif state.health is None:
        text, style = "not heard yet", _GREY
    else:
        text, style = health_words(state), _GOOD if state.health.state == "ok" else _FAIR
    return _wrapped("HEALTH", text, width, max(most, 2), style)


def health_words(state: ConsoleState) -> str:
    """What is wrong and what was restarted, or `ok`."""
    health = state.health
    if health is None:
        return ""
    wrong = [f"{clean(part)}: {clean(words)}" for part, words in health.parts.items() if words != "ok"]
    restarted = [f"{clean(part)} restarted {n}x" for part, n in health.restarts.items() if n]
    return "; ".join([*(wrong or [health.state]), *restarted])


def _footer(width: int) -> Text:
    return Text(_fit(f" {FOOTER}", width), style="italic #B8B8B8 on #262626", no_wrap=True)


def _rule(title: str, width: int) -> Text:
    line = Text(no_wrap=True, style="#6A6A6A")
    line.append(f" {title} ", style=f"bold {_GREY}")
    line.append("─" * max(0, width - line.cell_len - 1))
    return line


def _labelled(label: str, text: str, style: str) -> Text:
    line = Text(no_wrap=True)
    line.append(f" {label}".ljust(_LABEL_CELLS), style=_GREY)
    line.append(text, style=style)
    return line


def _wrapped(label: str, text: str, width: int, most: int, style: str = "") -> list[Text]:
    """`text` over at most `most` lines behind a label; the last ends in an ellipsis when there is more."""
    if not text:
        return []
    margin = len(label) if label.startswith(" ") else _LABEL_CELLS
    room = max(10, width - margin)
    rows = textwrap.wrap(text, room, max_lines=most, placeholder=" …")
    lines = []
    for i, row in enumerate(rows):
        line = Text(no_wrap=True)
        head = (label if label.startswith(" ") else f" {label}") if i == 0 else ""
        line.append(head.ljust(margin), style=style if label.startswith(" ") else _GREY)
        line.append(_cut(row, room), style=style)
        lines.append(line)
    return lines


def _colour(state: ConsoleState, action: str) -> str:
    return PALETTE[state.style(action).colour % len(PALETTE)]


def _fit(text: str, cells: int) -> str:
    """Exactly `cells` wide, cut with an ellipsis or padded."""
    cells = max(0, cells)
    return set_cell_size(_cut(text, cells), cells)


def _cut(text: str, cells: int) -> str:
    """At most `cells` wide; what is cut is shown to be."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, cells - 1).rstrip() + "…" if cells > 0 else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{duration(seconds)} min"


def lines_of(texts: Iterable[Text]) -> list[str]:
    """The plain words, for tests."""
    return [text.plain for text in texts]
