"""How fast do pictures get from an H.264 file into the ring?

1080p60, two decoder threads. The physical limit is the decoder itself: `ffmpeg -f null` where the binary is installed, and
PyAV decoding without touching the pictures, which is the same library in the same process. Ours puts every picture into a
slot of the ring, ready to be announced; OpenCV's `read` returns a BGR array, which is what one would use without us.
Each method reads the whole file in turn within each round, and rounds are short, so that what disturbs
one disturbs its neighbour; p50 and p99 are the time from one picture to the next.
"""  # noqa: D400

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from statistics import median

import av
import cv2

from benchmarks.inputs import video_1080p60
from benchmarks.report import Report, Row, Target, arguments, first_line, paired_ratio, quantiles_ms, spread
from stream_agent.config import SourceConfig
from stream_agent.source.libav import LibavSource
from stream_agent.transport.ring import RingWriter, planes_bytes

_QUESTION = first_line(__doc__)
_THREADS = 2
DECODER_SHARE = 0.9


def main() -> int:
    options = arguments(_QUESTION).parse_args()
    pictures, seconds, rounds = (120, 2.0, 4) if options.quick else (240, 4.0, 15)
    ffmpeg = _ffmpeg()
    report = Report("decode", _QUESTION, {"rounds": rounds, "threads": _THREADS}, columns=("fps", "spread"))
    methods: dict[str, Callable[[Path], list[float]]] = {
        "pyav_no_arrays": _pyav_no_arrays,
        "ours": _ours,
        "pyav_to_ndarray": _pyav_to_ndarray,
        "opencv_read": _opencv_read,
    }
    stamps: dict[str, list[list[float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "video.mp4")
        report.settings["input"] = video_1080p60(path, pictures=pictures, seconds=seconds)
        total = round(seconds * 60)
        for _ in range(rounds):
            if ffmpeg is not None:
                stamps["ffmpeg_null"].append(_ffmpeg_null(ffmpeg, path, total))
            for method, read in methods.items():
                began_s = time.perf_counter()
                stamps[method].append([began_s, *read(path)])
    if ffmpeg is None:
        report.not_run["ffmpeg_null"] = "no ffmpeg binary on the path"
    fps = {method: [_fps(one) for one in all_stamps] for method, all_stamps in stamps.items()}
    for method, all_stamps in stamps.items():
        steps_ms = [] if method == "ffmpeg_null" else [step for one in all_stamps for step in _steps_ms(one)]
        p50, p95, p99 = quantiles_ms(steps_ms)
        ratio = None if method == "pyav_no_arrays" else paired_ratio(fps[method], fps["pyav_no_arrays"])
        target = None
        if method == "ours" and ratio is not None:
            target = Target("ours / PyAV without arrays, pictures per second", ratio, DECODER_SHARE, ">=")
            if ffmpeg is not None:
                against = paired_ratio(fps["ours"], fps["ffmpeg_null"])
                report.targets.append(
                    Target("ours / ffmpeg -f null, pictures per second", against, DECODER_SHARE, ">=")
                )
        pictures_read = sum(len(one) - 1 for one in all_stamps) if steps_ms else total * rounds
        more = {"fps": median(fps[method]), "spread": spread(fps[method])}
        report.rows.append(Row(method, "1080p60_h264", p50, p95, p99, pictures_read, ratio, target, more))
    return report.finish(options)


def _fps(stamps: list[float]) -> float:
    """Pictures per second of one pass; a pass of `ffmpeg` has its count as the third entry."""
    if len(stamps) == 3:
        return stamps[2] / (stamps[1] - stamps[0])
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def _steps_ms(stamps: list[float]) -> list[float]:
    """From one picture to the next; the first entry is the start of the pass, the second waits for the decoder to fill."""
    return [1000 * (after - before) for before, after in pairwise(stamps[1:])]


def _ours(path: Path) -> list[float]:
    stamps: list[float] = []
    config = SourceConfig(uri=str(path), decode_threads=_THREADS)
    ring = RingWriter(8, planes_bytes(1920, 1080))
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
    stamps: list[float] = []
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, _THREADS])
    while video.read()[0]:
        stamps.append(time.perf_counter())
    video.release()
    return stamps


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


def _ffmpeg_null(ffmpeg: str, path: Path, total: int) -> list[float]:
    began_s = time.perf_counter()
    command = [ffmpeg, "-v", "error", "-threads", str(_THREADS), "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return [began_s, time.perf_counter(), float(total)]


if __name__ == "__main__":
    raise SystemExit(main())
