"""How fast do pictures get from a file into the ring, and what does a used frame cost?

Two decoder threads. The physical limit is the decoder itself: `ffmpeg -f null` where the binary is installed, and PyAV
decoding without touching the pictures, which is the same library in the same process. Ours puts every picture into a slot of
the ring, ready to be announced; OpenCV's `read` returns a BGR array, which is what one would use without us. Each method
reads the whole file in turn within each round, and rounds are short, so that what disturbs one disturbs its neighbour; p50
and p99 are the time from one picture to the next.

`serve_N_per_s`: CPU per second of 1080p60 video when N frames a second are used, reduced to what the recogniser sees. All
pictures have to be decoded, for most refer to others; what is not used need not be converted.
"""  # noqa: D400

from __future__ import annotations

import dataclasses
import resource
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.inputs import KINDS, Kind, write_video
from benchmarks.report import Report, Row, arguments, first_line, not_installed, row_of, run_main
from stream_agent.config import SourceConfig
from stream_agent.messages import FrameHeader
from stream_agent.perception.protocol import THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.source.libav import LibavSource
from stream_agent.transport.ring import RingWriter, planes_bytes

_QUESTION = first_line(__doc__)
_THREADS = 2
_USED_PER_S = (1, 2, 5, 10)
_USED_QUICK = (1, 10)
_REFERENCE = "pyav_no_arrays"
_SERVING = "pyav_convert_used"
_QUICK = ("480p25_h264", "1080p60_h264", "1080p60_hevc", "1080p60_intra")


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--cases", default=None, help=f"comma-separated, of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=None)
    options = parser.parse_args()
    cases = options.cases.split(",") if options.cases else _QUICK if options.quick else tuple(KINDS)
    if unknown := set(cases) - set(KINDS):
        parser.error(f"--cases {','.join(sorted(unknown))}: choose from {', '.join(KINDS)}")
    rounds = options.rounds or (3 if options.quick else 9)
    report = Report(
        "decode",
        _QUESTION,
        {"rounds": rounds, "threads": _THREADS, "cases": list(cases), "input": {}},
        columns=("fps", "x_real_time", "cpu_ms_per_s", "spread"),
        better="higher",
    )
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            kind = KINDS[case]
            path = Path(folder, f"{case}.mp4")
            pictures = 20 if kind.height > 2000 or options.quick else kind.fps
            seconds = (1.0 if kind.height < 2000 else 0.5) * (1 if options.quick else 3)
            report.settings["input"][case] = write_video(path, kind, pictures=pictures, seconds=seconds)
            _read_all(report, case, kind, path, round(seconds * kind.fps), rounds)
            if case == "1080p60_h264":
                _serve(report, path, seconds, rounds, _USED_QUICK if options.quick else _USED_PER_S)
            path.unlink()
    report.notes.append("ratio: pictures per second over pyav_no_arrays; x_real_time: over the file's own rate")
    report.notes.append(
        "serve_N_per_s: p50 is CPU ms per used frame, ratio CPU over that of pyav_convert_used, lower is better"
    )
    return report.finish(options)


def _read_all(report: Report, case: str, kind: Kind, path: Path, total: int, rounds: int) -> None:
    """One row per method: the whole file, as fast as it goes."""
    methods = _methods(report, kind)
    stamps: dict[str, list[list[float]]] = defaultdict(list)
    for _ in range(rounds):
        for method, read in methods.items():
            began_s = time.perf_counter()
            stamps[method].append([began_s, *read(path)])
    per_picture = {name: [[(one[-1] - one[0]) / total] for one in passes] for name, passes in stamps.items()}
    for method, passes in stamps.items():
        fps = [total / (one[-1] - one[0]) for one in passes]
        # The first entry is the start of the pass, the second waits for the decoder to fill.
        steps_ms = [[1000 * (after - before) for before, after in pairwise(one[1:])] for one in passes]
        # Seconds of the reference over ours: how many times as many pictures per second.
        ratios = [ref[0] / own[0] for own, ref in zip(per_picture[method], per_picture[_REFERENCE], strict=True)]
        row = row_of(
            method,
            case,
            steps_ms,
            fps=median(fps),
            x_real_time=median(fps) / kind.fps,
            rounds_fps=fps,
            round_ratios=ratios,
            spread=(max(fps) - min(fps)) / median(fps),
        )
        report.rows.append(row if method == _REFERENCE else _with_ratio(row, median(ratios)))


def _with_ratio(row: Row, ratio: float) -> Row:
    return dataclasses.replace(row, ratio=ratio)


def _methods(report: Report, kind: Kind) -> dict[str, Callable[[Path], list[float]]]:
    """Those that can run here."""
    methods: dict[str, Callable[[Path], list[float]]] = {}
    ffmpeg = _ffmpeg()
    if ffmpeg is None:
        report.not_run["ffmpeg_null"] = "there is no ffmpeg on the path; install one, or pip install imageio-ffmpeg"
    else:
        methods["ffmpeg_null"] = lambda path: _ffmpeg_null(ffmpeg, path)
    methods |= {
        "pyav_no_arrays": _pyav_no_arrays,
        "ours": lambda path: _ours(path, kind),
        "pyav_to_ndarray": _pyav_to_ndarray,
        "opencv_read": _opencv_read,
    }
    try:
        from torchcodec.decoders import VideoDecoder

        def torchcodec(path: Path) -> list[float]:
            return [time.perf_counter() for _ in VideoDecoder(str(path), num_ffmpeg_threads=_THREADS)]

        methods["torchcodec"] = torchcodec
    except ImportError as error:
        report.not_run["torchcodec"] = not_installed(error, "torchcodec")
    except (OSError, RuntimeError) as error:  # it is there, its FFmpeg libraries are not
        said = str(error).strip().splitlines()[0].partition(". ")[0][:120]
        report.not_run["torchcodec"] = (
            f"it does not load here ({said}); install FFmpeg's shared libraries: apt-get install ffmpeg"
        )
    return methods


def _serve(report: Report, path: Path, seconds: float, rounds: int, each: Sequence[int]) -> None:
    """CPU of this process and its threads per second of video."""
    serve: dict[str, Callable[[Path, int], int]] = {
        "ours": _serve_ours,
        "pyav_convert_used": _serve_pyav,
        "pyav_skip_nonref": _serve_skipping,
        "opencv_read_all": _serve_opencv,
    }
    for used in each:
        cpu: dict[str, list[list[float]]] = defaultdict(list)
        frames: dict[str, int] = {}
        for _ in range(rounds):
            for method, read in serve.items():
                before = _cpu_s()
                frames[method] = max(1, read(path, used))
                cpu[method].append([1000 * (_cpu_s() - before) / frames[method]])
        for method, rounds_ms in cpu.items():
            per_s = median(one[0] for one in rounds_ms) * frames[method] / seconds
            report.rows.append(
                row_of(
                    f"{method}_serves",
                    f"serve_{used}_per_s",
                    rounds_ms,
                    reference_ms=None if method == _SERVING else cpu[_SERVING],
                    cpu_ms_per_s=per_s,
                    frames=frames[method],
                    better="lower",
                )
            )


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _every(fps: float, used_per_s: int) -> int:
    return max(1, round(fps / used_per_s))


def _serve_ours(path: Path, used_per_s: int) -> int:
    """The grabber's part, every picture into its slot, and the agent's, the used ones reduced."""
    config = SourceConfig(uri=str(path), decode_threads=_THREADS)
    ring = RingWriter(8, planes_bytes(1920, 1080))
    served = 0
    with closing(ring), closing(LibavSource(str(path), config=config, notice=print, live=False)) as source:
        source.open(0.0)
        for index, picture in enumerate(source.pictures()):
            assert picture.write is not None
            planes = ring.reserve(picture.width, picture.height)
            picture.write(planes)
            ring.commit(index + 1)
            if index % _every(60, used_per_s) == 0:
                header = FrameHeader(
                    stream_id="",
                    session_id="",
                    seq=0,
                    pts_s=0.0,
                    captured_ns=0,
                    width=picture.width,
                    height=picture.height,
                )
                thumbnail(planes, header)
                served += 1
    return served


def _serve_pyav(path: Path, used_per_s: int, skip: Literal["DEFAULT", "NONREF"] = "DEFAULT") -> int:
    served = 0
    every_s = 1 / used_per_s
    due_s = 0.0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = _THREADS, "AUTO"
        stream.codec_context.skip_frame = skip
        for frame in container.decode(stream):
            if frame.time is not None and frame.time + 1e-6 >= due_s:
                due_s += every_s
                _small(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                served += 1
    return served


def _serve_skipping(path: Path, used_per_s: int) -> int:
    return _serve_pyav(path, used_per_s, "NONREF")


def _serve_opencv(path: Path, used_per_s: int) -> int:
    served = 0
    for index, picture in enumerate(_opencv_pictures(path)):
        if index % _every(60, used_per_s) == 0:
            _small(picture)
            served += 1
    return served


def _small(picture: NDArray[np.uint8]) -> None:
    cv2.resize(picture, (THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA)


def _ours(path: Path, kind: Kind) -> list[float]:
    stamps: list[float] = []
    config = SourceConfig(uri=str(path), decode_threads=_THREADS)
    ring = RingWriter(8, planes_bytes(kind.width, kind.height))
    with closing(ring), closing(LibavSource(str(path), config=config, notice=print, live=False)) as source:
        source.open(0.0)
        for picture in source.pictures():
            assert picture.write is not None
            picture.write(ring.reserve(picture.width, picture.height))
            ring.commit(len(stamps) + 1)
            stamps.append(time.perf_counter())
    return stamps


def _pyav_no_arrays(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = _THREADS, "AUTO"
        return [time.perf_counter() for _ in container.decode(stream)]


def _pyav_to_ndarray(path: Path) -> list[float]:
    stamps: list[float] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = _THREADS, "AUTO"
        for frame in container.decode(stream):
            frame.to_ndarray(format="yuv420p")
            stamps.append(time.perf_counter())
    return stamps


def _opencv_read(path: Path) -> list[float]:
    return [time.perf_counter() for _ in _opencv_pictures(path)]


def _opencv_pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, _THREADS])
    while (read := video.read())[0]:
        yield np.asarray(read[1], np.uint8)
    video.release()


def _ffmpeg() -> str | None:
    """An ffmpeg binary: the system's, or the one that a Python package brought."""
    found = shutil.which("ffmpeg")
    if found is not None:
        return found
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return str(get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def _ffmpeg_null(ffmpeg: str, path: Path) -> list[float]:
    command = [ffmpeg, "-v", "error", "-threads", str(_THREADS), "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return [time.perf_counter()]


if __name__ == "__main__":
    run_main(main)
