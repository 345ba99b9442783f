from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.cells import cell_len
from rich.console import Console

from stream_agent.messages import Clip, ClipEvent, Health, Notice, Plan, RankedAction, RungReport
from stream_agent.sinks.console_plain import PlainView
from stream_agent.sinks.console_state import ConsoleState
from stream_agent.sinks.console_view import FOOTER, PALETTE, live_view
from stream_agent.telemetry import Counters

MakePlan = Callable[..., Plan]
S = 1_000_000_000
NOW = 100 * S + 132_000_000
SIZES = [(80, 24), (100, 30), (115, 50), (116, 24), (200, 60), (60, 14), (40, 8)]


def screen(state: ConsoleState, *, now_ns: int = NOW, width: int = 80, height: int = 24, styles: bool = False) -> str:
    console = Console(
        record=True, width=width, height=height, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(live_view(state, now_ns=now_ns, width=width, height=height, title="stream_agent"), end="")
    return console.export_text(styles=styles).removesuffix("\n")


def full_state(plan: Plan) -> ConsoleState:
    state = ConsoleState()
    start_s = 0.0
    for i in range(40):
        clip = Clip(("Tissue Retraction", "Coagulation", "Dissection")[i % 3], start_s, start_s + 17.0, 0.9)
        state.take(ClipEvent("closed", clip, clip.end_pts_s + 2), arrived_ns=100 * S)
        start_s = clip.end_pts_s
    state.take(ClipEvent("opened", Clip("Dissection", start_s, start_s + 2, 0.9), start_s + 2), arrived_ns=100 * S)
    counters = Counters(
        stream_id="e",
        frames={"published": 18240, "received": 7310},
        dropped={"superseded": 10920, "lost": 10},
        plans={"published": 7279, "expired": 2},
    )
    state.take(counters, arrived_ns=100 * S)
    state.take(Health(stream_id="e", sent_ns=100 * S, state="ok", parts={"source": "ok"}), arrived_ns=100 * S)
    state.take(plan, arrived_ns=100 * S)
    return state


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("empty", [False, True])
def test_the_screen_is_filled_and_never_overflows(make_plan: MakePlan, width: int, height: int, empty: bool) -> None:
    state = ConsoleState() if empty else full_state(make_plan())
    lines = screen(state, width=width, height=height).split("\n")
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width
    assert lines[-1].strip().startswith(FOOTER[: width - 2])


def test_a_small_terminal_shows_all_that_matters(make_plan: MakePlan) -> None:
    text = screen(full_state(make_plan()))
    for words in (
        "DISSECTION",
        "1:14",
        "93% sure",
        "1  Clipping",
        "62%",
        "2  Coagulation",
        "3  Tissue Retraction",
        "in about 24 s (12 s to 48 s)",
        "132 ms",
        "1.9 s",
        "BY statistical",
        "vlm: no worker",
        "Confirm the critical view of safety",
        "Both structures are free.",
        "74 %",
        "DIS▸",
        "12.3 ms",
        "recognise 8.1",
        "7,310 of 18,240 seen",
        "10,930 dropped (superseded 10,920, lost 10)",
        "2 expired",
        "HEALTH  ok",
        "Advice for research, never a command to a robot.",
    ):
        assert words in text, words


def test_reasons_that_differ_from_the_ranking_are_said_to(make_plan: MakePlan) -> None:
    contrary = make_plan(contradiction="the rationale puts Coagulation first, the ranking Clipping")
    assert "its reasons differ from this ranking" in screen(full_state(contrary), width=140, height=50)


@pytest.mark.parametrize("width", [80, 140])
def test_an_expired_plan_is_struck_out_and_said_to_be(make_plan: MakePlan, width: int) -> None:
    """The agent hangs: no message comes, and the plan still loses its claim, by the viewer's own clock."""
    state = full_state(make_plan())
    state.take(Notice("alive"), arrived_ns=103 * S)
    before, after = (
        screen(state, styles=True, width=width),
        screen(state, now_ns=103 * S + S // 2, styles=True, width=width),
    )
    assert "EXPIRED" not in before
    assert "EXPIRED 1.5 s ago: do not use this plan" in after
    struck = "\x1b[9;38;2;138;138;138mClipping"
    assert struck not in before
    assert struck in after
    assert "in about 24 s" not in after


def test_silence_of_the_agent_outranks_everything(make_plan: MakePlan) -> None:
    text = screen(full_state(make_plan()), now_ns=109 * S)
    assert text.count("NO WORD FROM THE AGENT") == 2
    assert "NO WORD FROM THE AGENT FOR 9 s: do not use this plan" in text


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("gate: out_of_body", "the camera is outside the body"),
        ("no frame for 3 s", "no frame for 3 s"),
        ("", "no reason given"),
    ],
)
def test_an_abstention_says_that_there_is_no_advice_and_why(make_plan: MakePlan, reason: str, words: str) -> None:
    plan = make_plan(abstained=True, abstain_reason=reason, ranked=(), source="abstain")
    text = screen(full_state(plan))
    assert "NO ADVICE" in text
    assert words in text
    assert "in about" not in text


def test_trouble_is_named_with_its_part(make_plan: MakePlan) -> None:
    state = full_state(make_plan())
    parts = {"source": "ok", "planner worker": "restarting after signal 9"}
    health = Health(stream_id="e", sent_ns=NOW, state="degraded", parts=parts, restarts={"planner worker": 2})
    state.take(health, arrived_ns=NOW)
    state.take(Notice("skipped 3 packets"), arrived_ns=NOW)
    text = " ".join(screen(state, height=30).split())
    assert "DEGRADED" in text
    assert "planner worker: restarting after signal 9; planner worker restarted 2x" in text
    assert "skipped 3 packets" in text


def test_nothing_from_outside_can_command_the_terminal(make_plan: MakePlan) -> None:
    """Model output and labels reach the screen; an escape sequence among them must not."""
    evil = "\x1b]0;owned\x07\x1b[2J[bold]\r\n\u202eabc"
    state = full_state(
        make_plan(
            stream_id=evil,
            current_action=evil,
            ranked=(RankedAction(evil, 0.5, evil), RankedAction("b" + evil, 0.3), RankedAction("c", 0.1)),
            progress=evil,
            safety=(evil,),
            rungs=(RungReport("fused", evil), RungReport("statistical", "used")),
            spans_ms={evil: 1.0},
        )
    )
    state.take(Health(stream_id="e", sent_ns=NOW, state="degraded", parts={evil: evil}), arrived_ns=NOW)
    for text in (screen(state, height=40), PlainView().line(state, now_ns=NOW) or ""):
        assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "[bold]" in screen(state)
    assert "\n" not in (PlainView().line(state, now_ns=NOW) or "")


def test_wide_characters_keep_the_columns(make_plan: MakePlan) -> None:
    names = ("胆嚢管のクリッピング", "剥離操作" * 20, "é" * 90)
    ranked = tuple(RankedAction(name, 0.3) for name in names)
    text = screen(full_state(make_plan(current_action="胆嚢三角の剥離" * 9, ranked=ranked)))
    assert max(cell_len(line) for line in text.split("\n")) <= 80


def test_the_palette_has_no_two_equal_colours() -> None:
    assert len(set(PALETTE)) == len(PALETTE) >= 8


def test_plain_lines_come_at_changes_and_every_two_seconds_at_most(make_plan: MakePlan) -> None:
    view, state = PlainView(), ConsoleState()
    assert view.line(state, now_ns=0) is None
    lines = []
    for tick in range(80):  # ten seconds at eight looks a second, a new plan each time
        now_ns = 100 * S + tick * S // 8
        state.take(make_plan(seq=tick, captured_ns=now_ns, valid_until_ns=now_ns + 2 * S), arrived_ns=now_ns)
        lines.append(view.line(state, now_ns=now_ns))
    assert sum(line is not None for line in lines) == 5
    now_ns = 110 * S
    swapped = (RankedAction("Coagulation", 0.5), RankedAction("Clipping", 0.4), RankedAction("X", 0.1))
    state.take(make_plan(seq=99, captured_ns=now_ns, valid_until_ns=now_ns + 2 * S, ranked=swapped), arrived_ns=now_ns)
    assert "next: Coagulation 50%, Clipping 40%, X 10%" in (view.line(state, now_ns=now_ns) or "")
    assert view.line(state, now_ns=now_ns + 1) is None


def test_a_plain_line_tells_expiry_silence_and_trouble_once_each(make_plan: MakePlan) -> None:
    view, state = PlainView(), ConsoleState()
    state.take(make_plan(), arrived_ns=100 * S)
    assert "valid 1.9 s" in (view.line(state, now_ns=NOW) or "")
    assert "NO WORD FROM THE AGENT FOR 2 s" in (view.line(state, now_ns=101 * S + S * 6 // 10) or "")
    assert "EXPIRED 500 ms ago" in (view.line(state, now_ns=102 * S + S // 2) or "")
    assert view.line(state, now_ns=110 * S) is None
    state.take(Health(stream_id="e", sent_ns=NOW, state="degraded", parts={"source": "lost"}), arrived_ns=110 * S)
    assert "DEGRADED source: lost" in (view.line(state, now_ns=110 * S) or "")
