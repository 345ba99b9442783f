"""The recogniser of a recording: what was perceived of each frame then."""

from __future__ import annotations

from pathlib import Path

import msgspec

from stream_agent.errors import ConfigError, RecordingError
from stream_agent.messages import Evidence, FrameHeader
from stream_agent.perception.protocol import Thumbnail

_TICK_S = 1e-6


class RecordedRecogniser:
    """Evidence by media time; a gate that was closed then is closed again."""

    name = "recorded"

    def __init__(self, path: Path, actions: tuple[str, ...], instruments: tuple[str, ...]) -> None:
        """Read the evidence of a whole recording, some 300 bytes a frame.

        Raises:
            ConfigError: It is no recording, or of another procedure.
        """
        try:
            from stream_agent.recording.reader import RecordingFile
        except ImportError as error:
            raise ConfigError(f"{path} is a recording, which needs mcap; install stream-agent[record]") from error
        try:
            with RecordingFile(path) as recording:
                if (recording.pack.actions, recording.pack.instruments) != (actions, instruments):
                    raise ConfigError(
                        f"{path} was recorded with the procedure pack {recording.pack.name}, whose actions or instruments "
                        "differ; choose it with procedure.pack, or look again with recogniser.kind=onnx"
                    )
                self._known = {
                    round(frame.pts_s / _TICK_S): frame.evidence() for frame, _ in recording.pictures(decode=False)
                }
        except RecordingError as error:
            raise ConfigError(str(error)) from error

    def reset(self) -> None:
        """Nothing to forget: each frame has its own evidence."""

    def evidence(self, header: FrameHeader, thumbnail: Thumbnail | None) -> Evidence:  # noqa: ARG002 - the protocol's
        """What was perceived at this media time; no action where nothing was."""
        known = self._known.get(round(header.pts_s / _TICK_S))
        if known is None:
            return Evidence(seq=header.seq, pts_s=header.pts_s, recogniser=self.name)
        return msgspec.structs.replace(known, seq=header.seq, pts_s=header.pts_s)
