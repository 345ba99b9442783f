from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from stream_agent import grabber as grabber_module
from stream_agent.config import SourceConfig, TransportConfig, load_config
from stream_agent.errors import SourceError
from stream_agent.grabber import REST_S, Grabber, GrabJob, Pacer, grab_job
from stream_agent.messages import FrameHeader
from stream_agent.procedure import load_pack
from stream_agent.source.frame_index import read_index
from stream_agent.source.protocol import Picture, Planes
from stream_agent.transport.receiver import FrameReceiver
from stream_agent.transport.wire import StreamEnd
from stream_agent.workers import Worker

# ---------------------------------------------------------------------------------------------------- the pacer


def test_the_first_picture_is_due_at_once_and_the_others_by_their_media_time() -> None:
    pacer = Pacer(1.0)
    assert pacer.wait_s(5.0, 100.0) == 0.0
    assert pacer.wait_s(5.5, 100.1) == pytest.approx(0.4)
    assert pacer.wait_s(6.0, 101.2) == pytest.approx(-0.2), "late, and told so"
    assert pacer.wait_s(7.0, 101.5) == pytest.approx(0.5), "a little late does not shift what follows"


@given(st.floats(0.1, 100), st.lists(st.floats(0, 5), max_size=20))
def test_the_pace_multiplies(factor: float, steps: list[float]) -> None:
    pacer = Pacer(factor)
    pts_s = 0.0
    for step_s in steps:
        pacer.wait_s(pts_s, 0.0)
        pts_s += step_s
        assert pacer.wait_s(pts_s, 0.0) == pytest.approx(pts_s / factor)


def test_more_than_a_second_late_starts_a_new_origin() -> None:
    pacer = Pacer(1.0)
    pacer.wait_s(0.0, 0.0)
    assert pacer.wait_s(1.0, 10.0) == pytest.approx(-9.0)
    assert pacer.wait_s(1.5, 10.0) == pytest.approx(0.5), "no rush to catch up"


def test_an_infinite_pace_never_waits() -> None:
    pacer = Pacer(math.inf)
    assert pacer.wait_s(0.0, 0.0) == 0.0
    assert pacer.wait_s(1e6, 0.0) == 0.0


# ---------------------------------------------------------------------------------------------------- with a fake source


class FakeSource:
    """Plays one script per opening: pictures' times, then the end or an error."""

    def __init__(self, sessions: list[Sequence[float | SourceError]], *, live: bool, size: tuple[int, int]) -> None:
        self.live = live
        self._sessions = sessions
        self._size = size
        self.opened_at: list[float] = []
        self.closed = 0
        self.exhausted = False

    def open(self, start_s: float) -> None:
        self.opened_at.append(start_s)
        self.exhausted = not self._sessions
        if self._sessions and self._sessions[0] and isinstance(self._sessions[0][0], SourceError):
            raise self._sessions.pop(0)[0]  # type: ignore[misc]

    def pictures(self) -> Iterator[Picture]:
        width, height = self._size
        for entry in self._sessions.pop(0) if self._sessions else ():
            if isinstance(entry, SourceError):
                raise entry
            yield Picture(
                entry, width, height, None if not width else lambda planes: planes.fill(7), signals=(1.0, 0.0)
            )

    def close(self) -> None:
        self.closed += 1


class FakeOutlet:
    def __init__(self) -> None:
        self.sent: list[FrameHeader] = []
        self.ends: list[StreamEnd] = []
        self.buffer: Planes = np.zeros((0, 0), np.uint8)

    def planes(self, width: int, height: int) -> Planes:
        self.buffer = np.zeros((height * 3 // 2, width), np.uint8)
        return self.buffer

    def publish(self, header: FrameHeader) -> None:
        assert header.layout == "none" or np.all(self.buffer == 7), "published before it was written"
        self.sent.append(header)

    def end(self, end: StreamEnd) -> None:
        self.ends.append(end)

    @property
    def sessions(self) -> list[list[FrameHeader]]:
        found: dict[str, list[FrameHeader]] = {}
        for header in self.sent:
            found.setdefault(header.session_id, []).append(header)
        return list(found.values())


class Run:
    """One grabber over a fake source, and all that came of it."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        sessions: list[Sequence[float | SourceError]],
        *,
        live: bool = False,
        size: tuple[int, int] = (0, 0),
        resume_pts_s: float | None = None,
        stop_after: int = 10_000,
        frames: int | None = None,
        **source: Any,
    ) -> None:
        self.source = FakeSource(sessions, live=live, size=size)
        monkeypatch.setattr(grabber_module, "open_source", lambda *_, **__: self.source)
        config = SourceConfig(**({"uri": "fake.mp4", "pace": "max"} | source))
        self.outlet = FakeOutlet()
        self.notices: list[str] = []
        self.states: list[str] = []
        self.waits: list[float] = []
        self.credits = 0
        self.opened = 0
        self.error: SourceError | None = None
        grabber = Grabber(
            GrabJob(
                source=config.model_dump_json(),
                transport=TransportConfig().model_dump_json(),
                endpoint="",
                resume_pts_s=resume_pts_s,
            ),
            self.outlet,
            stopped=lambda: len(self.outlet.sent) >= stop_after or self.source.exhausted,
            wait=self._wait,
            credit=lambda: self._credit(frames),
            notice=self.notices.append,
            state=self.states.append,
        )
        try:
            grabber.run(self._open)
        except SourceError as error:
            self.error = error

    def _wait(self, wait_s: float) -> bool:
        self.waits.append(wait_s)
        return False

    def _credit(self, frames: int | None) -> bool:
        self.credits += 1
        return frames is None or self.credits <= frames

    def _open(self) -> None:
        self.opened += 1


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def run(*sessions: Sequence[float | SourceError], **options: Any) -> Run:
        return Run(monkeypatch, list(sessions), **options)

    return run


Play = Callable[..., Run]


def test_a_source_is_published_frame_by_frame_with_its_end(play: Play) -> None:
    run = play([0.0, 0.5, 1.0], size=(64, 48))
    (session,) = run.outlet.sessions
    assert [(header.seq, header.pts_s) for header in session] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    first = session[0]
    assert (first.stream_id, first.width, first.height, first.layout) == ("endoscope", 64, 48, "yuv420p")
    assert (first.signals, first.discontinuity, first.host_id != "") == ((1.0, 0.0), False, True)
    assert run.outlet.ends == [StreamEnd("endoscope", first.session_id, 3, True, "end of the source")]
    assert (run.opened, run.states, run.source.closed, run.error) == (1, ["ok"], 1, None)


def test_a_source_without_pixels_needs_no_place_for_them(play: Play) -> None:
    run = play([0.0, 1.0])
    assert [header.layout for header in run.outlet.sent] == ["none", "none"]


def test_in_lockstep_each_frame_costs_a_credit_and_is_stamped_with_media_time(play: Play) -> None:
    run = play([0.0, 0.5, 1.0])
    assert run.credits == 3
    assert [header.captured_ns for header in run.outlet.sent] == [0, 500_000_000, 1_000_000_000]
    assert run.waits == []


def test_without_credit_nothing_more_is_sent(play: Play) -> None:
    run = play([0.0, 0.5, 1.0], frames=2)
    assert [header.seq for header in run.outlet.sent] == [0, 1]
    assert run.outlet.ends[-1].published == 2


def test_in_lockstep_session_ids_are_the_same_on_every_run(play: Play) -> None:
    def ids(**options: Any) -> list[str]:
        run = play([0.0, 1.0], [0.0], [0.0], loop=True, stop_after=4, **options)
        return [session[0].session_id for session in run.outlet.sessions]

    first = ids()
    assert first == ids()
    assert len(set(first)) == len(first) == 3
    assert set(first).isdisjoint(ids(seed=8))
    assert set(first).isdisjoint(ids(uri="other.mp4"))


def test_in_real_time_no_session_id_comes_twice(play: Play) -> None:
    runs = [play([0.0], pace="realtime") for _ in range(2)]
    assert len({run.outlet.sent[0].session_id for run in runs}) == 2


def test_in_real_time_frames_wait_until_they_are_due(play: Play) -> None:
    before_ns = time.monotonic_ns()
    run = play([0.0, 10.0, 20.0], pace=2.0)
    assert run.credits == 0
    due = [wait_s for wait_s in run.waits if wait_s != REST_S]
    assert due == [pytest.approx(5.0, abs=0.5), pytest.approx(10.0, abs=0.5)]
    assert run.waits.count(REST_S) == 2, "with time to spare it rests before it decodes the next"
    assert all(before_ns <= header.captured_ns <= time.monotonic_ns() for header in run.outlet.sent)


def test_stopping_at_a_media_time(play: Play) -> None:
    run = play([0.0, 1.0, 2.0, 3.0], stop_s=2.0)
    assert [header.pts_s for header in run.outlet.sent] == [0.0, 1.0]
    assert run.outlet.ends[-1].final


def test_a_loop_is_a_new_session_that_says_so_and_media_time_goes_on(play: Play) -> None:
    run = play([0.0, 1.0, 2.0], [0.0, 1.0], [0.0], loop=True, stop_after=6)
    first, second, third = run.outlet.sessions
    assert [header.seq for header in second] == [0, 1]
    assert [header.discontinuity for header in run.outlet.sent] == [False, False, False, True, False, True]
    assert [end.final for end in run.outlet.ends] == [False, False, True]
    assert (first[0].pts_s, second[0].pts_s, third[0].pts_s) == (0.0, 3.0, 5.0)
    assert run.opened == 1
    assert run.waits == [], "a finite source starts again at once"


def test_a_loop_over_a_part_leaves_no_hole_in_media_time(play: Play) -> None:
    """Each round once began `start_s` too late, as if the part before it had been seen again."""
    run = play([100.0, 101.0], [100.0, 101.0], loop=True, start_s=100.0, stop_after=4)
    assert [header.pts_s for header in run.outlet.sent] == [100.0, 101.0, 102.0, 103.0]
    assert run.source.opened_at[:2] == [100.0, 100.0]


def test_a_loop_without_a_picture_ends(play: Play) -> None:
    """A part in which no picture lies was once opened again and again as fast as the machine could."""
    run = play([5.0], [5.0], [5.0], [5.0], loop=True, start_s=1.0, stop_s=2.0)
    assert len(run.source.opened_at) == 1
    assert [end.final for end in run.outlet.ends] == [True]


LOST = SourceError("the camera was unplugged", retryable=True)


def test_a_lost_camera_is_opened_again_with_growing_patience(play: Play) -> None:
    """A camera lost by an error, as every camera is, once kept the patience of its worst moment: 8 s at each loss."""
    run = play([0.0], [LOST], [LOST], [LOST], [0.0, 1.0, LOST], [0.0], live=True, pace="realtime", reconnect_max_s=0.75)
    assert [len(session) for session in run.outlet.sessions] == [1, 2, 1]
    assert run.waits[:5] == [0.25, 0.5, 0.75, 0.75, 0.25], "and patience starts anew once there were pictures"
    assert run.opened == 1
    assert "the camera was unplugged" in run.notices[1] and "in 0.5 s" in run.notices[1]
    states = [state for state in run.states if state != "connecting"]
    assert states[:4] == ["ok", *["reconnecting"] * 3]
    assert [state for state in run.states if state == "ok"] == ["ok"] * 4


def test_a_reconnected_camera_is_a_new_session_and_media_time_does_not_fall_back(play: Play) -> None:
    run = play([0.0, 40.0, LOST], [0.0, 1.0], [0.0], live=True, pace="realtime")
    assert [header.discontinuity for header in run.outlet.sent] == [False, False, True, False, True]
    times = [header.pts_s for header in run.outlet.sent]
    assert times == sorted(times)
    assert times[2] == pytest.approx(40.0, abs=0.5)
    assert [(end.final, end.reason) for end in run.outlet.ends][:1] == [(False, "the camera was unplugged")]


def test_an_error_that_trying_again_cannot_mend_ends_the_grabber(play: Play) -> None:
    for options in ({"live": True, "pace": "realtime"}, {"live": False}):
        run = play([SourceError("wrong password")], [0.0], **options)
        assert str(run.error) == "wrong password"
        assert run.outlet.sent == []


def test_a_finite_source_that_breaks_is_an_error_after_what_was_good(play: Play) -> None:
    run = play([0.0, 1.0, LOST], [0.0], pace="max")
    assert str(run.error) == "the camera was unplugged"
    assert [(end.published, end.final) for end in run.outlet.ends] == [(2, False)]
    assert run.source.closed == 1


def test_a_restarted_grabber_goes_on_where_the_last_one_ended(play: Play) -> None:
    run = play([8.5, 9.0], resume_pts_s=8.3, start_s=2.0)
    assert run.source.opened_at == [8.3]
    assert [(header.pts_s, header.discontinuity) for header in run.outlet.sent] == [(8.5, True), (9.0, False)]


def test_a_restarted_loop_or_camera_begins_anew_behind_the_last_frame(play: Play) -> None:
    looped = play([2.0, 3.0], resume_pts_s=8.0, start_s=2.0, loop=True, stop_after=2)
    assert looped.source.opened_at[0] == 2.0
    assert [header.pts_s for header in looped.outlet.sent] == [9.0, 10.0]
    live = play([0.0, 1.0], resume_pts_s=8.0, live=True, pace="realtime", stop_after=2)
    assert [round(header.pts_s) for header in live.outlet.sent] == [8, 9]
    assert live.outlet.sent[0].discontinuity


def test_a_grabber_restarted_behind_the_end_ends_the_stream(play: Play) -> None:
    """Killed during the last frames, it was once started again beyond the end, and its complaint ended the agent."""
    beyond = SourceError("source.start_s=99 is beyond the end", at_end=True)
    run = play([beyond], resume_pts_s=99.0)
    assert (run.error, run.outlet.sent, run.notices) == (None, [], [])
    assert play([beyond], start_s=99.0).error is beyond, "asked for by the user, it is a mistake"


# ---------------------------------------------------------------------------------------------------- the real child

SMALL = [
    "source.uri=synthetic:",
    "source.synthetic_width=96",
    "source.synthetic_height=64",
    "source.synthetic_speed=1",
]


class Child:
    """A real grabber of a small drawn scene, and a receiver of its frames."""

    def __init__(self, folder: Path, *settings: str, resume_pts_s: float | None = None) -> None:
        config = load_config(None, [*SMALL, *settings])
        pack = load_pack(config.procedure.pack)
        endpoint = f"ipc://{folder}/frames"
        self.resume_pts_s = resume_pts_s
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.receiver = FrameReceiver(self.context, endpoint)
        self.worker = Worker(
            "grabber",
            "stream_agent.grabber",
            lambda: msgspec.json.encode(grab_job(config, pack, endpoint=endpoint, resume_pts_s=self.resume_pts_s)),
        )
        self.worker.start()

    def polled(self) -> Worker:
        self.worker.poll()
        return self.worker

    def close(self) -> None:
        self.worker.stop()
        self.receiver.close()
        self.context.term()


def shared_memory() -> set[str]:
    return {entry.name for entry in os.scandir("/dev/shm")}


def memory_files(pid: int) -> int:
    """How many of our rings the process has mapped."""
    return sum("stream_agent_ring" in region.path for region in psutil.Process(pid).memory_maps(grouped=False))


def test_in_lockstep_the_grabber_sends_every_frame_on_credit(short_path: Path, eventually: Callable[..., None]) -> None:
    settings = ["source.pace=max", "source.synthetic_fps=10", "source.synthetic_duration_s=4"]
    with closing(Child(short_path, *settings)) as child:
        eventually(lambda: child.polled().ready)
        assert child.receiver.following(0.1) is None, "no credit, no frame"
        child.worker.give_credit(3)
        seen: list[int] = []
        while (frame := child.receiver.following(5.0)) is not None:
            planes = frame.planes()
            assert planes is not None
            assert frame.intact()
            assert read_index(planes) == frame.header.seq == len(seen)
            assert frame.header.captured_ns == round(frame.header.pts_s * 1e9)
            seen.append(frame.header.seq)
            child.worker.give_credit(1)
        assert len(seen) == 40
        end = child.receiver.ended
        assert end is not None
        assert (end.published, end.final, end.reason) == (40, True, "end of the source")
        assert child.receiver.published == 40 and not +child.receiver.drops
        eventually(lambda: child.polled().finished)
        assert child.worker.failure is None


def test_a_slow_reader_does_not_slow_the_grabber(short_path: Path, eventually: Callable[..., None]) -> None:
    with closing(Child(short_path, "source.synthetic_fps=100", "source.synthetic_duration_s=60")) as child:
        first = None
        while first is None:
            first = child.receiver.newest(5.0)
            child.worker.poll()
        work = threading.Event()
        began_s = time.monotonic()
        returned = 1
        newest = first
        while newest.header.seq < first.header.seq + 100:
            frame = child.receiver.newest(5.0)
            assert frame is not None
            newest = frame
            returned += 1
            work.wait(0.1)  # what a recogniser does with a frame
        passed = newest.header.seq - first.header.seq
        assert passed / (time.monotonic() - began_s) == pytest.approx(100, rel=0.3)
        age_ns = newest.received_ns - newest.header.captured_ns
        assert age_ns < 100_000_000, "what the slow reader gets is fresh"
        assert child.receiver.published == returned + child.receiver.drops.total()


def test_a_killed_grabber_leaves_nothing_behind_and_the_account_is_exact(
    short_path: Path, eventually: Callable[..., None]
) -> None:
    before = shared_memory()
    with closing(Child(short_path, "source.synthetic_fps=60", "source.synthetic_duration_s=60")) as child:
        frame = None
        returned = 0
        while frame is None or frame.header.seq < 20:
            frame = child.receiver.newest(5.0) or frame
            returned += frame is not None
            child.worker.poll()
        pid = child.worker.pid
        assert pid is not None and memory_files(pid) == 1
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not child.polled().ready)
        assert frame.planes() is not None, "the reader's mapping outlives the writer"
        while (late := child.receiver.newest(0.2)) is not None:
            frame = late
            returned += 1
        child.resume_pts_s = frame.header.pts_s + 1.0
        child.receiver.close_session()
        published = child.receiver.published
        assert published == returned + child.receiver.drops.total()
        assert published > frame.header.seq
        after = None
        while after is None:
            child.worker.poll()
            after = child.receiver.newest(0.1)
        returned += 1
        assert child.worker.restarts == 1
        assert after.header.session_id != frame.header.session_id
        assert after.header.pts_s >= child.resume_pts_s
        assert child.receiver.published == returned + child.receiver.drops.total()
    assert shared_memory() == before
    assert memory_files(os.getpid()) == 0


@pytest.mark.parametrize("pace", ["max", "realtime"])
def test_a_grabber_restarted_behind_the_end_of_a_real_source_is_done(
    pace: str, short_path: Path, eventually: Callable[..., None]
) -> None:
    with closing(Child(short_path, f"source.pace={pace}", "source.synthetic_duration_s=3", resume_pts_s=7.0)) as child:
        eventually(lambda: child.polled().finished)
        assert (child.worker.failure, child.worker.health(), child.worker.restarts) == (None, "stopped", 0)


def test_a_source_that_is_not_there_ends_the_grabber_with_the_reason(
    short_path: Path, eventually: Callable[..., None]
) -> None:
    with closing(Child(short_path, f"source.uri={short_path}/nowhere.mp4")) as child:
        eventually(lambda: child.polled().finished)
        assert child.worker.failure is not None
        assert "nowhere.mp4" in child.worker.failure.message
        assert child.worker.failure.exit_code == SourceError.exit_code
        assert child.worker.restarts == 0
