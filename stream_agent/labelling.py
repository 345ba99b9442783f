"""Recognised clips of a whole video as labels that a person corrects: the agent's own perception, read to the end at full speed.

The file is the timeline recogniser's CSV (`start_s,action`) with the segmenter's confidence as a third column: corrected, it
plays back (`recogniser.labels=FILE`) and trains (`train recogniser --add VIDEO FILE`).
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from stream_agent.clock import NS_PER_S
from stream_agent.config import AgentConfig
from stream_agent.errors import ConfigError
from stream_agent.memory import NearHistoryMemory
from stream_agent.messages import Clip, ClipEvent, FrameHeader
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception, build_recogniser
from stream_agent.perception.protocol import Thumbnail
from stream_agent.perception.segmenter import Segmenter
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.procedure import ProcedurePack
from stream_agent.source import open_source

_TICK_SLACK = 1e-6


def recognised_clips(
    config: AgentConfig, pack: ProcedurePack, *, notice: Callable[[str], None], at: Callable[[float], None]
) -> tuple[Clip, ...]:
    """The clips of `config.source.uri`, in order; `at` is told the media time now and then.

    Raises:
        ConfigError: The source never ends, or a model is missing or damaged.
        SourceError: It cannot be opened, or gave no picture.
    """
    perception = Perception(Gate(config.gate), build_recogniser(config.recogniser, pack, config.watched))
    segmenter = Segmenter(pack.action_names, config.segmenter, model=pack.segmenter_model)
    memory = NearHistoryMemory(config.memory, segmenter, pack.instruments)
    events: list[ClipEvent] = []
    for header, picture in _ticks(config, pack.instruments, notice):
        events += memory.observe(header, perception.evidence(header, picture))
        at(header.pts_s)
    events += memory.finish()
    return tuple(event.clip for event in events if event.kind == "closed")


def as_csv(clips: Sequence[Clip]) -> str:
    """The label file; time between clips that do not touch has no action."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("start_s", "action", "confidence"))
    end_s = None
    for clip in clips:
        if end_s is not None and clip.start_pts_s > end_s:
            lines.writerow((_seconds(end_s), "", ""))
        lines.writerow((_seconds(clip.start_pts_s), clip.action, f"{clip.confidence:.2f}"))
        end_s = clip.end_pts_s
    if end_s is not None:
        lines.writerow((_seconds(end_s), "", ""))
    return text.getvalue()


def require_new(path: Path) -> None:
    """Make sure, before minutes of work, that a label file can be written.

    Raises:
        ConfigError: It exists already, or its folder cannot be written to.
    """
    if path.exists():
        raise ConfigError(f"--out {path} exists and may hold corrections; name another file or remove it")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"--out {path} cannot be written; name a file in a writable folder")


def write_labels(path: Path, clips: Sequence[Clip]) -> None:
    """Write the label file, never over one that a person may have corrected.

    Raises:
        ConfigError: It exists already, or cannot be written.
    """
    require_new(path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(as_csv(clips))
    except OSError as error:
        raise ConfigError(
            f"--out {path} cannot be written ({error.strerror}); name a file in a writable folder"
        ) from error


def _ticks(
    config: AgentConfig, instruments: tuple[str, ...], notice: Callable[[str], None]
) -> Iterator[tuple[FrameHeader, Thumbnail | None]]:
    """The first frame of every recogniser tick, reduced."""
    rate_hz = config.recogniser.rate_hz
    next_pts_s, session = 0.0, "labelling"
    with closing(open_source(config.source, instruments=instruments, notice=notice)) as source:
        source.open(0.0)
        if source.live:
            raise ConfigError(f"{config.source.uri} is live and has no end; record it to a file first")
        for seq, picture in enumerate(source.pictures()):
            if picture.pts_s + _TICK_SLACK < next_pts_s:
                continue
            next_pts_s = (math.floor(picture.pts_s * rate_hz + _TICK_SLACK) + 1) / rate_hz
            header = FrameHeader(
                stream_id=config.source.stream_id,
                session_id=session,
                seq=seq,
                pts_s=picture.pts_s,
                captured_ns=round(picture.pts_s * NS_PER_S),
                width=picture.width,
                height=picture.height,
                rotation_deg=picture.rotation_deg,
                layout="none" if picture.write is None else "yuv420p",
                colour=picture.colour,
                signals=picture.signals,
            )
            if picture.write is None:
                yield header, None
                continue
            planes = np.empty((picture.height * 3 // 2, picture.width), dtype=np.uint8)
            picture.write(planes)
            yield header, thumbnail(planes, header)


def _seconds(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
