"""Gate, recogniser, gate: one frame's evidence, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from stream_agent.config import RecogniserConfig
from stream_agent.errors import ConfigError
from stream_agent.messages import Clip, Evidence, FrameHeader
from stream_agent.perception.gate import Gate
from stream_agent.perception.protocol import Recogniser, Thumbnail


class PackNames(Protocol):
    """What perception needs of a procedure pack."""

    @property
    def action_names(self) -> tuple[str, ...]:
        """The closed set, in pack order."""
        ...

    @property
    def instruments(self) -> tuple[str, ...]:
        """Instrument names, in pack order."""
        ...

    @property
    def folder(self) -> Path:
        """Where the pack's models lie."""
        ...


class Perception:
    """One stream's way from a reduced picture to evidence; used by one thread."""

    def __init__(self, gate: Gate, recogniser: Recogniser) -> None:
        self.recogniser = recogniser
        self._gate = gate

    def reset(self) -> None:
        """Forget what was seen: a new session begins."""
        self._gate.reset()
        self.recogniser.reset()

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:
        """Evidence of one frame; behind a closed gate only the reason, and no recogniser's work for a bad picture."""
        if thumbnail is not None and self.recogniser.name != "recorded":  # whose gate has spoken, on better pictures
            reason = self._gate.picture(thumbnail, header.pts_s)
            if reason:
                return Evidence(seq=header.seq, pts_s=header.pts_s, gate=reason)
        evidence = self.recogniser.evidence(header, thumbnail)
        reason = self._gate.evidence(evidence)
        if reason:
            return msgspec.structs.replace(evidence, gate=reason, recogniser="", actions=(), instruments=())
        return evidence


def build_recogniser(
    config: RecogniserConfig, pack: PackNames, source_uri: str, timeline: Iterable[Clip] | None = None
) -> Recogniser:
    """The configured recogniser; `auto` goes by the source.

    That is the timeline for a synthetic one, signals for a .csv, what was perceived for a recorded .mcap, else the model.
    `timeline` is the synthetic source's own; `recogniser.labels` comes before it.

    Raises:
        ConfigError: A label file, signals table or model is missing, damaged or for another pack.
    """
    kind = config.kind
    if kind == "auto":
        kind = "timeline" if source_uri.startswith("synthetic:") else "onnx"
        if source_uri.lower().endswith(".csv"):
            kind = "signals"
        elif source_uri.lower().endswith(".mcap"):
            kind = "recorded"
    if kind == "timeline":
        from stream_agent.perception.timeline import TimelineRecogniser, load_labels

        if config.labels is not None:
            return TimelineRecogniser(load_labels(config.labels, pack.action_names), pack.action_names)
        if timeline is None:
            raise ConfigError(
                f"recogniser.kind=timeline has no labels for {source_uri}; set recogniser.labels=FILE or another recogniser.kind"
            )
        return TimelineRecogniser.of_clips(timeline, pack.action_names)
    if kind == "recorded":
        from stream_agent.perception.recorded import RecordedRecogniser

        path = Path(source_uri.removeprefix("file://")).expanduser()
        return RecordedRecogniser(path, pack.action_names, pack.instruments)
    if kind == "signals":
        from stream_agent.perception.signals import SignalsRecogniser, load_signals_table

        return SignalsRecogniser(*load_signals_table(pack.folder / "signals.json", pack.action_names, pack.instruments))
    # ONNX Runtime takes a while to import, and the synthetic demo does without it.
    from stream_agent.perception.onnx import OnnxRecogniser

    model = config.model if config.model is not None else pack.folder / "recogniser.onnx"
    return OnnxRecogniser(model, actions=pack.action_names, instruments=pack.instruments, threads=config.threads)
