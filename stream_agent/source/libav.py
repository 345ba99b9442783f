"""Files, cameras and network streams through libav (PyAV): one reader for all that it can open."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import cast

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.source.address import NETWORK_SCHEMES, redacted, scheme_of
from stream_agent.source.media_time import MediaTime
from stream_agent.source.planes import PlaneWriter, colour_of
from stream_agent.source.protocol import Notice, Picture

LIVE_OPTIONS = {"analyzeduration": "1000000"}
"""Defaults for low latency; by itself libav looks at up to 5 s of a stream before it hands out the first packet.

`fflags=nobuffer` is not among them: it throws away what was looked at, and with it the first key picture. Measured with
one every 2 s: first picture after 2.15 s instead of 0.48 s, and no difference in latency once the stream runs.
"""

_SCHEME_OPTIONS = {
    "rtsp": {"rtsp_transport": "tcp"},
    "rtsps": {"rtsp_transport": "tcp"},
    "udp": {"overrun_nonfatal": "1"},
}

_KEY_PICTURES_WITHIN_S = 10.0
"""How far apart key pictures of a live stream may be; until the first one nothing can be decoded."""

_MAX_READ_ERRORS = 16
"""Reads that may fail one after the other before a file counts as ended."""

_SEEK_BACK_S = (0.0, 4.0, 16.0, 64.0, math.inf)
"""How far before `start_s` to look for a key picture: MPEG-TS has no index and a seek may land behind one."""

_NOT_RETRYABLE = (
    av.error.ProtocolNotFoundError,
    av.error.DemuxerNotFoundError,
    av.error.OptionNotFoundError,
    av.error.HTTPUnauthorizedError,
    av.error.HTTPForbiddenError,
    av.error.PermissionError,
)


class LibavSource:
    """One libav input behind the `Source` protocol.

    Attributes:
        live: Whether its own clock drives it; settled once `open` returned, since http:// may be a file or a camera.
    """

    def __init__(
        self,
        address: str,
        *,
        config: SourceConfig,
        notice: Notice,
        live: bool,
        demuxer: str | None = None,
        name: str | None = None,
    ) -> None:
        """Read `address`, a path, URL, device or pipe:FD; `demuxer` names libav's input format, `name` what to call it."""
        self.live = live
        self._address = address
        self._name = name or redacted(address)
        self._config = config
        self._notice = notice
        self._demuxer = demuxer
        self._is_file = not live and demuxer is None
        # Key pictures of slow encoders are 10 s apart, so silence ends sooner than data that cannot be decoded.
        self._no_picture_s = _KEY_PICTURES_WITHIN_S + config.read_timeout_s
        self._container: InputContainer | None = None
        self._stream: VideoStream | None = None
        self._start_s = 0.0
        self._promised = 0  # Pictures according to the file's header; 0 if it does not say.
        self._decoded = 0
        self._skipped_packets = 0
        self._read_errors = 0
        self._at_end = False

    def open(self, start_s: float) -> None:
        """Open it; a file is sought so that the first picture has `pts_s >= start_s`.

        Raises:
            SourceError: It cannot be opened, or holds no video stream that can be decoded.
        """
        self.close()
        self._decoded = self._skipped_packets = self._read_errors = 0
        self._at_end = False
        container = self._opened()
        self._container = container
        try:
            self._stream = self._video_of(container)
            self._promised = self._stream.frames
            if scheme_of(self._address) in ("http", "https"):
                # A length known beforehand means a file on a web server: paced and finite like one on a disk.
                self.live = not container.duration
            self._start_s = 0.0 if self.live else start_s
            if self._start_s > 0:
                self._seek(container, self._stream)
        except BaseException:
            self.close()
            raise

    def pictures(self) -> Iterator[Picture]:
        """Yield pictures until the end of a file; packets that cannot be decoded are skipped and told once, at the end.

        Raises:
            SourceError: A live source was lost or is silent, or a file gave not a single picture.
        """
        container, stream = self._container, self._stream
        if container is None or stream is None:
            raise SourceError(f"{self._name} is not open; call open() before pictures()")
        media_time = MediaTime(origin_s=self._origin_s(container, stream), interval_s=_interval_s(stream))
        writer = PlaneWriter()
        last_s = 0.0
        yielded = 0
        try:
            for frame in self._frames(container, stream):
                last_s = media_time.advance(_stamp_s(frame, stream))
                width, height = frame.width & ~1, frame.height & ~1
                if last_s < self._start_s - 1e-6 or not width or not height:
                    continue
                yielded += 1
                yield Picture(
                    pts_s=last_s,
                    width=width,
                    height=height,
                    write=partial(writer.write, frame),
                    rotation_deg=-round(frame.rotation / 90) * 90 % 360,
                    colour=colour_of(frame),
                )
        finally:
            self._tell(media_time)
        if self.live:
            raise SourceError(
                f"{self._name} was lost: the sender ended the stream; check the sender, trying again may help",
                retryable=True,
            )
        if not yielded:
            raise self._nothing(last_s)

    def close(self) -> None:
        """Release the input; may be called twice."""
        container, self._container, self._stream = self._container, None, None
        if container is not None:
            container.close()

    def _opened(self) -> InputContainer:
        config = self._config
        if self._is_file and not Path(self._address).exists():
            raise SourceError(f"{self._name} does not exist; correct source.uri")
        options = {**self._defaults(), **config.options}
        # libav takes a file name with a colon for an address, hence the explicit protocol.
        address = f"file:{os.path.abspath(self._address)}" if self._is_file else self._address  # noqa: PTH100
        began_s = time.monotonic()
        try:
            return av.open(
                address,
                "r",
                format=self._demuxer,
                options=options,
                timeout=None if self._is_file else (config.open_timeout_s, config.read_timeout_s),
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, ValueError, OSError) as error:
            # Suppressing the cause is deliberate: libav's message repeats the address with its password.
            raise self._unopened(error, after_s=time.monotonic() - began_s) from None

    def _defaults(self) -> dict[str, str]:
        options = {**(LIVE_OPTIONS if self.live else {}), **_SCHEME_OPTIONS.get(scheme_of(self._address), {})}
        if self._config.options.get("rtsp_flags") == "listen":
            # Left alone, libav 62 turns its "no limit" of -1 s into a value that it then refuses.
            options["listen_timeout"] = str(math.ceil(self._config.open_timeout_s))
        return options

    def _unopened(self, error: Exception, *, after_s: float) -> SourceError:
        scheme = scheme_of(self._address)
        reason = (getattr(error, "strerror", None) or type(error).__name__).lower()
        remote = self.live or scheme in NETWORK_SCHEMES
        retryable = remote and not isinstance(error, (*_NOT_RETRYABLE, ValueError))
        if isinstance(error, av.error.ProtocolNotFoundError):
            return SourceError(
                f"{self._name}: the installed libav has no {scheme}:// support; install a PyAV built with it, or have a "
                "gateway pass the stream on as rtsp:// or udp://"
            )
        if self._demuxer is not None and self._demuxer not in " ".join(av.formats_available).replace(",", " ").split():
            return SourceError(
                f"device:{self._demuxer}:{self._name}: the installed libav has no input format {self._demuxer!r}; use one "
                "it has, such as v4l2, or install a PyAV built with it"
            )
        # An interrupted RTSP handshake is reported as invalid data, hence the look at the clock.
        if isinstance(error, av.error.ExitError) or (remote and after_s >= self._config.open_timeout_s):
            return not_opened_in_time(self._name, self._config.open_timeout_s)
        if remote:
            return SourceError(
                f"{self._name} cannot be opened: {reason}; check the address, that the sender runs, and access rights",
                retryable=retryable,
            )
        if isinstance(error, PermissionError):
            return SourceError(f"{self._name} cannot be opened: {reason}; give this user read access to it")
        if self._is_file and Path(self._address).stat().st_size == 0:
            return SourceError(f"{self._name} cannot be opened: the file is empty (0 bytes); copy or record it again")
        return SourceError(
            f"{self._name} cannot be opened: {reason}; it is not a video that libav reads, or was cut short: copy it again"
        )

    def _video_of(self, container: InputContainer) -> VideoStream:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream) or container.format.name == "tty":  # libav plays text files as "tty".
            raise SourceError(
                f"{self._name} has no video stream; give a file or address with video",
                retryable=self.live and stream is None,
            )
        decoder = cast("VideoCodecContext | None", stream.codec_context)  # PyAV's annotation forgets the None.
        if decoder is None:
            raise SourceError(f"{self._name}: the installed libav cannot decode its codec; convert it to H.264")
        for other in container.streams:
            # What is discarded inside libav cannot keep a stream whose video stopped looking alive.
            other.discard = Discard.default if other.index == stream.index else Discard.all
        stream.thread_count = self._config.decode_threads
        # Frame threads are fastest but hold back a picture per thread, which a live stream pays as latency.
        stream.thread_type = "SLICE" if self.live else "AUTO"
        decoder.options = dict(self._config.options)
        return stream

    def _origin_s(self, container: InputContainer, stream: VideoStream) -> float | None:
        """The timestamp that is media time 0; None takes the first picture's."""
        if self.live:
            return None
        if stream.start_time is not None and stream.time_base is not None:
            return float(stream.start_time * stream.time_base)
        start = cast("int | None", container.start_time)  # PyAV's annotation forgets the None.
        if start is not None:
            return start / av.time_base
        return 0.0 if self._start_s > 0 else None

    def _seek(self, container: InputContainer, stream: VideoStream) -> None:
        """Go to the last key picture at or before `start_s`; without seeking the file is decoded from its start."""
        origin_s = self._origin_s(container, stream) or 0.0
        time_base = stream.time_base or Fraction(1, av.time_base)
        for back_s in _SEEK_BACK_S:
            target_s = max(self._start_s - back_s, 0.0)
            offset = math.floor((origin_s + target_s) / time_base)
            try:
                container.seek(offset, stream=stream)
                first = next(iter(container.decode(stream)), None)
                container.seek(offset, stream=stream)
            except av.error.FFmpegError:
                continue
            stamp_s = None if first is None else _stamp_s(first, stream)
            if target_s == 0 or (stamp_s is not None and stamp_s - origin_s <= self._start_s):
                return

    def _frames(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        picture_s = time.monotonic()
        for packet in self._packets(container, stream):
            try:
                frames = stream.decode(packet)
            except av.error.FFmpegError:
                frames = []
                # A live stream is joined anywhere: what comes before its first key picture is no error.
                if self._decoded or not self.live:
                    self._skipped_packets += 1
            if frames:
                self._decoded += len(frames)
                yield from frames
                if self._container is not container:  # Closed meanwhile: PyAV would read freed memory.
                    return
                picture_s = time.monotonic()
            elif self.live and time.monotonic() - picture_s > self._no_picture_s:
                raise SourceError(
                    f"{self._name} was lost: what arrives gave no picture for {self._no_picture_s:g} s; check that the sender "
                    "sends key pictures",
                    retryable=True,
                )

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream] | None]:
        """Packets, then None, which flushes the decoder."""
        failed_in_a_row = 0
        incomplete: Packet[VideoStream] | None = None
        while failed_in_a_row <= _MAX_READ_ERRORS:
            try:
                for packet in container.demux(stream):
                    failed_in_a_row = 0
                    if packet.size == 0:
                        continue  # PyAV's own mark of the end; in mid stream it would stop the decoder for good.
                    if incomplete is not None:
                        yield incomplete
                    incomplete = packet if self._is_file and packet.is_corrupt else None
                    if incomplete is None:
                        yield packet
                break
            except av.error.FFmpegError as error:
                if not self._is_file:
                    raise self._lost(error) from None  # The cause's message repeats the address with its password.
                self._read_errors += 1
                failed_in_a_row += 1
        # Half a packet at the very end of a file would cost the pictures still in the decoder's other threads.
        self._skipped_packets += incomplete is not None
        self._at_end = True
        yield None

    def _lost(self, error: av.error.FFmpegError) -> SourceError:
        if isinstance(error, av.error.ExitError):
            return SourceError(
                f"{self._name} was lost: silent for source.read_timeout_s={self._config.read_timeout_s:g} s; check the "
                "sender and the line, trying again may help",
                retryable=True,
            )
        reason = (error.strerror or type(error).__name__).lower()
        return SourceError(
            f"{self._name} was lost: {reason}; check the sender and the line, trying again may help", retryable=True
        )

    def _tell(self, media_time: MediaTime) -> None:
        """Sum up what was survived, one notice per reading."""
        oddities = []
        if self._skipped_packets:
            oddities.append(f"skipped packets that cannot be decoded: {self._skipped_packets}")
        if self._read_errors:
            oddities.append(f"failed reads: {self._read_errors}")
        if media_time.restarts:
            oddities.append(f"timestamps that jumped back: {media_time.restarts}")
        if self._ended_early():
            oddities.append(f"it ended after {self._decoded} of {self._promised} pictures, the file was cut short")
        if oddities:
            self._notice(f"{self._name}: {'; '.join(oddities)}")

    def _ended_early(self) -> bool:
        """Whether a file read from start to end gave clearly fewer pictures than its header promises."""
        missing = self._promised - self._decoded - self._skipped_packets
        return self._at_end and self._start_s == 0 and missing > max(2, self._promised // 50)

    def _nothing(self, last_s: float) -> SourceError:
        if self._decoded:
            return SourceError(
                f"{self._name} has no picture at or after source.start_s={self._start_s:g}; its last is at {last_s:.2f} s, "
                "lower source.start_s",
                at_end=True,
            )
        return SourceError(f"{self._name} gave not a single picture: its video data is damaged; copy it again")


def not_opened_in_time(name: str, open_timeout_s: float) -> SourceError:
    """The error of a live source that gave nothing."""
    return SourceError(
        f"{name} did not open within source.open_timeout_s={open_timeout_s:g}; check that the sender runs and can be "
        "reached, or raise the timeout",
        retryable=True,
    )


def _stamp_s(frame: VideoFrame, stream: VideoStream) -> float | None:
    """The frame's timestamp; its time base is the stream's (PyAV sets none on frames that flushing gave)."""
    return None if frame.pts is None or stream.time_base is None else float(frame.pts * stream.time_base)


def _interval_s(stream: VideoStream) -> float:
    """Seconds between pictures; 1/25 when the stream does not say, or says nonsense such as 90000 fps."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate and 0.01 <= rate <= 1000 else 1 / 25
