"""Sources of pictures: file, camera, network, frame folder, signals, recording and synthetic behind one protocol.

`open_source` is the only name the grabber needs; each kind of source lives in a file of its own, imported when chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.messages import Clip
from stream_agent.source.address import NETWORK_SCHEMES, redacted, scheme_of
from stream_agent.source.protocol import Notice, Picture, Planes, Source

__all__ = ["Notice", "Picture", "Planes", "Source", "open_source", "redacted"]

_CAMERA = re.compile(r"/dev/video\d+")


def _draw_nothing(_action: str) -> tuple[str, ...]:
    return ()


def open_source(
    config: SourceConfig,
    *,
    instruments: Sequence[str],
    notice: Notice,
    timeline: Sequence[Clip] = (),
    instruments_of: Callable[[str], Sequence[str]] = _draw_nothing,
) -> Source:
    """The source that `config.uri` names, not opened yet: call its `open` next.

    Args:
        config: The source section.
        instruments: The procedure pack's instruments; they fix the order of `Picture.signals`.
        notice: Gets one line per oddity survived.
        timeline: Ground truth that the synthetic source plays; others ignore it.
        instruments_of: Action → instruments the synthetic source draws; others ignore it.

    Raises:
        SourceError: The address is of no known kind.
    """
    uri = config.uri
    if uri == "synthetic" or uri.startswith("synthetic:"):
        from stream_agent.source.synthetic import SyntheticSource

        return SyntheticSource(config, timeline=timeline, instruments=instruments, instruments_of=instruments_of)

    from stream_agent.source.libav import LibavSource

    if uri.startswith("device:"):
        _, _, rest = uri.partition(":")
        name, _, device = rest.partition(":")
        if not name or not device:
            raise SourceError(
                f"source.uri={redacted(uri)} is not device:FORMAT:NAME; write for example device:v4l2:/dev/video0"
            )
        # lavfi draws as fast as it is asked to: it has no clock of its own, so the grabber paces it like a file.
        return LibavSource(device, config=config, notice=notice, live=name != "lavfi", demuxer=name)
    scheme = scheme_of(uri)
    if scheme == "srt":
        from stream_agent.source.srt import SrtSource, libav_opens_srt

        if not libav_opens_srt():
            return SrtSource(uri, config=config, notice=notice)
    if scheme in NETWORK_SCHEMES:
        return LibavSource(uri, config=config, notice=notice, live=True)
    if scheme not in ("", "file"):
        raise SourceError(
            f"source.uri={redacted(uri)} has the unknown scheme {scheme}://; use one of "
            f"{', '.join(f'{known}://' for known in sorted(NETWORK_SCHEMES))}, device:FORMAT:NAME, synthetic: or a path"
        )
    path = Path(uri.removeprefix("file://")).expanduser()
    if _CAMERA.fullmatch(str(path)):
        return LibavSource(str(path), config=config, notice=notice, live=True, demuxer="v4l2")
    if path.is_dir():
        from stream_agent.source.frames import FrameFolderSource

        return FrameFolderSource(path, fps=config.fps, notice=notice)
    if path.suffix.lower() == ".csv":
        from stream_agent.source.signals import SignalsSource

        return SignalsSource(path, instruments=instruments)
    if path.suffix.lower() == ".mcap":
        from stream_agent.source.recording import RecordingSource

        return RecordingSource(path, notice=notice)
    return LibavSource(str(path), config=config, notice=notice, live=False)
