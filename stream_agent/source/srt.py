"""SRT streams through an ffmpeg program, for a libav that was built without SRT, as the one in PyAV's wheels is.

    sender ══SRT══▶ ffmpeg (child process, copies packets) ──MPEG-TS in a pipe──▶ LibavSource

Our end of the pipe does not block: libav then asks it every millisecond and looks at its clock in between, so that the
open and read timeouts hold as they do for a socket. While ffmpeg runs, the address stands in this host's process list,
passphrase included: ffmpeg takes it from nowhere else.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl

import av
import av.error

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.source.address import redacted
from stream_agent.source.libav import LIVE_OPTIONS, LibavSource, not_opened_in_time
from stream_agent.source.protocol import Notice, Picture

_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the program it is told, which the kernel kills once the thread that started it is gone: PR_SET_PDEATHSIG (1)
outlives exec. An ffmpeg that waits for a caller writes nothing, so no broken pipe would end it, and it holds the port."""

_ANSWERS_WITHIN_S = 10.0
_SHORTEST_SECRET = 4


class SrtSource:
    """One srt:// address behind the `Source` protocol.

    Attributes:
        live: True.
    """

    live = True

    def __init__(self, uri: str, *, config: SourceConfig, notice: Notice) -> None:
        """Read `uri`; `config.options` are ffmpeg's options for its input."""
        self._uri = "srt" + uri[len("srt") :]  # libav's names of protocols are lower case
        self._name = redacted(uri)
        self._config = config
        self._notice = notice
        self._child: _Child | None = None
        self._libav: LibavSource | None = None

    def open(self, start_s: float) -> None:
        """Start ffmpeg, wait for its first bytes, and open them.

        Raises:
            SourceError: There is no ffmpeg with SRT, or it gave no video in time.
        """
        self.close()
        config = self._config
        try:
            self._child = _Child(_command(ffmpeg_with_srt(), self._uri, config.options))
            if not self._child.gives_data(within_s=config.open_timeout_s):
                raise not_opened_in_time(self._name, config.open_timeout_s)
            address = f"pipe:{self._child.output}"
            self._libav = LibavSource(
                address, config=config, notice=self._notice, live=True, demuxer="mpegts", name=self._name
            )
            self._libav.open(start_s)
        except SourceError as error:
            raise self._explained(error) from None
        except BaseException:
            self.close()
            raise

    def pictures(self) -> Iterator[Picture]:
        """Yield pictures until the stream is lost.

        Raises:
            SourceError: It was lost or is silent.
        """
        if self._libav is None:
            raise SourceError(f"{self._name} is not open; call open() before pictures()")
        try:
            yield from self._libav.pictures()
        except SourceError as error:
            raise self._explained(error) from None

    def close(self) -> None:
        """End ffmpeg and release the input; may be called twice."""
        child, self._child = self._child, None
        libav, self._libav = self._libav, None
        if child is not None:
            child.end()
        if libav is not None:
            libav.close()

    def _explained(self, error: SourceError) -> SourceError:
        """`error` with ffmpeg's last complaint: of what ends a pipe, only ffmpeg knows why. Closes this source."""
        child = self._child
        self.close()
        if child is None or not child.complaint:
            return error
        complaint = child.complaint.replace(self._uri, self._name)
        _, _, query = self._uri.partition("?")
        for value in (*(value for _, value in parse_qsl(query)), *self._config.options.values()):
            if len(value) >= _SHORTEST_SECRET:
                complaint = complaint.replace(value, "***")
        detail, _, remedy = str(error).rpartition("; ")
        return SourceError(f"{detail} (ffmpeg: {complaint}); {remedy}", retryable=error.retryable)


class _Child:
    """A running ffmpeg.

    Attributes:
        output: File descriptor of what it writes; reads do not block.
        complaint: Its last line on stderr that says a reason; complete after `end`.
    """

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for our parent; ffmpeg would take it for its own
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.complaint = ""
        # A full stderr would stop ffmpeg, so somebody has to read it all the time.
        self._listener = threading.Thread(target=self._listen, name="ffmpeg-stderr", daemon=True)
        self._listener.start()

    def gives_data(self, *, within_s: float) -> bool:
        """Wait for the first bytes, or for the end without any, which libav tells better."""
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        return bool(poll.poll(within_s * 1000))

    def end(self) -> None:
        """Kill and reap it."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = re.sub(r"^\[.*? @ 0x[0-9a-f]+\] ", "", line.decode(errors="replace").strip())
            if text and not text.startswith("Error opening input"):  # only repeats that it failed
                self.complaint = text


def libav_opens_srt() -> bool:
    """Whether libav was built with SRT; contacts nobody, since the address names no host."""
    try:
        av.open("srt:").close()
    except av.error.ProtocolNotFoundError:
        return False
    except (OSError, ValueError, av.error.FFmpegError):
        return True
    return True


def ffmpeg_with_srt() -> str:
    """Path of an ffmpeg program that reads srt://: the one on PATH, else the one of the package imageio-ffmpeg.

    Raises:
        SourceError: Neither is there, or neither was built with SRT.
    """
    for program in _programs():
        if _reads_srt(program):
            return program
    raise SourceError(
        "srt:// needs an ffmpeg program built with SRT, since the installed libav is not; "
        "pip install 'stream-agent[srt]' or install ffmpeg"
    )


def _programs() -> Iterator[str]:
    if on_path := shutil.which("ffmpeg"):
        yield on_path
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        yield get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # not installed, or its wheel holds no program for this machine
        return


def _reads_srt(program: str) -> bool:
    command = [program, "-hide_banner", "-protocols"]
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWERS_WITHIN_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return b"srt" in answer.stdout.split()


def _command(program: str, uri: str, options: Mapping[str, str]) -> list[str]:
    given = [part for name, value in {**LIVE_OPTIONS, **options}.items() for part in (f"-{name}", value)]
    copied = ["-map", "0:v:0", "-c", "copy", "-f", "mpegts", "-flush_packets", "1", "-"]
    return [program, "-nostdin", "-loglevel", "error", *given, "-i", uri, *copied]
