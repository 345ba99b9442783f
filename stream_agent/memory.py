"""NHFM, the near-history focus memory: action labels for the past, the full picture only for the newest moment.

LLM-SAP (Xu et al. 2025), eq. 1 to 3: distant history {a_1 … a_t-1} as labels, near history ⟨v_t, a_t⟩ as the newest
frame with its action. Departures from the paper: clips carry their durations and confidence, instrument use is summed,
and the oldest clips fold into per-action totals, so that the memory of a procedure of any length is bounded.

Pure: media time comes with the frame. One clip is at most a few hundred bytes; no pixels are held, only the header that
says where they are.
"""

from __future__ import annotations

import msgspec

from stream_agent.config import MemoryConfig
from stream_agent.instrument_use import InstrumentUseTracker
from stream_agent.messages import ActionTotal, Clip, ClipEvent, Evidence, FrameHeader, Memory
from stream_agent.perception.segmenter import Segmenter

_PRESENT = 0.5
_LONGEST_STEP_S = 5.0


class NearHistoryMemory:
    """What the planners may know of one case."""

    def __init__(self, config: MemoryConfig, segmenter: Segmenter, instruments: tuple[str, ...]) -> None:
        self._config = config
        self._segmenter = segmenter
        self._instruments = instruments
        self._case_id = config.case_id
        self._clear()

    def _clear(self) -> None:
        self._clips: list[Clip] = []
        self._clips_seen: tuple[Clip, ...] | None = ()
        self._folded: dict[str, ActionTotal] = {}
        self._instrument_s = [0.0] * len(self._instruments)
        self._use = InstrumentUseTracker(len(self._instruments))
        self._use_observed = False
        self._present: tuple[float, ...] = ()
        self._near: FrameHeader | None = None
        self._now_pts_s = 0.0
        self._evictions = 0
        self._restored = False

    def observe(self, frame: FrameHeader, evidence: Evidence) -> tuple[ClipEvent, ...]:
        """Take in the newest frame; the clips that it opened and closed.

        Evidence behind a closed gate moves time on and nothing else.
        """
        if self._restored:
            self._place_restored_before(frame.pts_s)
        step_s = min(max(0.0, frame.pts_s - self._now_pts_s), _LONGEST_STEP_S) if self._near is not None else 0.0
        self._near = frame
        self._now_pts_s = max(self._now_pts_s, frame.pts_s)
        self._present = () if evidence.gate else evidence.instruments
        for index, presence in enumerate(self._present[: len(self._instrument_s)]):
            if presence >= _PRESENT:
                self._instrument_s[index] += step_s
        if self._present:
            self._use_observed = True
            self._use.observe(self._present, pts_s=self._now_pts_s, step_s=step_s)
        events = self._segmenter.step(self._now_pts_s, () if evidence.gate else evidence.actions)
        self._take(events)
        return events

    def finish(self) -> tuple[ClipEvent, ...]:
        """Close the open clip at the end of the stream."""
        events = self._segmenter.finish(self._now_pts_s)
        self._take(events)
        return events

    def restore(self, clips: tuple[Clip, ...]) -> None:
        """Start from the closed clips of an earlier run of the same case.

        Their times are moved, if need be, to end where the new stream begins. An action that goes on there is one clip
        with the last of them: neighbours never share an action.
        """
        for clip in clips:
            self._remember(clip)
        self._restored = bool(clips)

    def new_case(self, case_id: str) -> None:
        """Forget everything: a new case shares nothing with the last."""
        self._case_id = case_id
        self._segmenter.reset()
        self._clear()

    @property
    def case_id(self) -> str:
        """The patient case."""
        return self._case_id

    def snapshot(self) -> Memory:
        """An immutable copy for the planners; closed clips are shared between snapshots."""
        if self._clips_seen is None:
            self._clips_seen = tuple(self._clips)
        near = self._near
        clips, current = self._clips_seen, self._segmenter.current
        start_pts_s = self._segmenter.current_start_pts_s
        if clips and clips[-1].action == current:  # the open clip began before a restart
            clips, start_pts_s = clips[:-1], clips[-1].start_pts_s
        return Memory(
            stream_id=near.stream_id if near is not None else "",
            session_id=near.session_id if near is not None else "",
            case_id=self._case_id,
            now_pts_s=self._now_pts_s,
            clips=clips,
            folded=tuple(self._folded.values()),
            current=current,
            current_start_pts_s=start_pts_s,
            current_confidence=self._segmenter.confidence,
            instrument_s=tuple(self._instrument_s),
            instrument_use=self._use.snapshot() if self._use_observed else (),
            instruments=self._present,
            near=near,
            evictions=self._evictions,
        )

    def _take(self, events: tuple[ClipEvent, ...]) -> None:
        for event in events:
            if event.kind == "closed":
                self._remember(event.clip)

    def _remember(self, clip: Clip) -> None:
        self._clips_seen = None
        if self._clips and self._clips[-1].action == clip.action:
            self._clips[-1] = _joined(self._clips[-1], clip)
            return
        self._clips.append(clip)
        if len(self._clips) > self._config.max_clips:
            block, self._clips = self._clips[: self._config.evict_block], self._clips[self._config.evict_block :]
            for old in block:
                total = self._folded.get(old.action, ActionTotal(old.action, 0, 0.0))
                self._folded[old.action] = ActionTotal(old.action, total.count + 1, total.duration_s + old.duration_s)
            self._evictions += 1

    def _place_restored_before(self, pts_s: float) -> None:
        self._restored = False
        late_s = self._clips[-1].end_pts_s - pts_s
        if late_s > 0:
            self._clips = [
                msgspec.structs.replace(clip, start_pts_s=clip.start_pts_s - late_s, end_pts_s=clip.end_pts_s - late_s)
                for clip in self._clips
            ]
            self._clips_seen = None


def _joined(first: Clip, second: Clip) -> Clip:
    """The two halves of a clip that a restart cut in two."""
    first_s, second_s = first.duration_s, second.duration_s
    weight = first_s / (first_s + second_s) if first_s + second_s > 0 else 0.5
    confidence = weight * first.confidence + (1 - weight) * second.confidence
    return Clip(first.action, first.start_pts_s, second.end_pts_s, confidence)
