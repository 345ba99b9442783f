"""Files through libav: whatever the container and codec, right pixels at right times, or one clear error."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from made_videos import add_video, grey_level, picture, read, write_video

from stream_agent.config import SourceConfig
from stream_agent.errors import SourceError
from stream_agent.source import open_source


def test_a_file_gives_its_pictures_at_their_times(tmp_path: Path) -> None:
    reading = read(write_video(tmp_path / "v.mp4"))
    assert not reading.source.live
    assert reading.times_s == [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28, 0.32, 0.36]
    assert reading.lumas == pytest.approx([grey_level(index) for index in range(10)], abs=2)
    assert reading.notices == []


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_planes_are_what_libav_decoded(shared_data: Path, threads: int) -> None:
    """854 px wide rows are padded in libav's buffers: the padding must not end up in ours."""
    path = shared_data / "odd" / "resolution_change_854x480_to_640x360.ts"
    ours = read(path, at_most=5, decode_threads=threads)
    with av.open(str(path)) as container:
        for planes, frame in zip(ours.planes, container.decode(video=0), strict=False):
            np.testing.assert_array_equal(planes, frame.to_ndarray(format="yuv420p"))


def test_variable_frame_rate_keeps_each_time(tmp_path: Path) -> None:
    times_ms = [0, 40, 1040, 1050, 5000, 104_000]
    reading = read(write_video(tmp_path / "v.mkv", times_ms=times_ms))
    assert reading.times_s == [ms / 1000 for ms in times_ms]


@pytest.mark.parametrize("ending", ["ts", "mkv", "mp4"])
def test_media_time_counts_from_the_streams_start(tmp_path: Path, ending: str) -> None:
    reading = read(write_video(tmp_path / f"v.{ending}", times_ms=range(7000, 7400, 40)))
    assert reading.times_s == pytest.approx([index * 0.04 for index in range(10)], abs=1e-4)


def test_pictures_without_timestamps_follow_the_frame_rate(tmp_path: Path) -> None:
    reading = read(write_video(tmp_path / "v.h264"))
    assert len(reading.times_s) == 10
    assert np.diff(reading.times_s) == pytest.approx(np.full(9, 0.04), abs=1e-6)


def test_timestamps_that_jump_back_go_on_from_the_last(tmp_path: Path) -> None:
    """Two recordings copied into one file: time once stood still until the second had caught up with the first."""
    first = write_video(tmp_path / "a.ts", times_ms=range(60_000, 60_400, 40))
    second = write_video(tmp_path / "b.ts", times_ms=range(0, 400, 40))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    reading = read(joined)
    assert len(reading.times_s) == 20
    assert np.diff(reading.times_s) == pytest.approx(np.full(19, 0.04), abs=0.01)
    assert reading.notices == [f"{joined}: timestamps that jumped back: 1"]


@pytest.mark.parametrize(("counter_clockwise", "clockwise"), [(90, 270), (180, 180), (-90, 90)])
def test_rotation_is_the_clockwise_turn_that_shows_it_upright(
    tmp_path: Path, counter_clockwise: int, clockwise: int
) -> None:
    reading = read(write_video(tmp_path / "v.mp4", rotation_ccw_deg=counter_clockwise))
    assert {one.rotation_deg for one in reading.pictures} == {clockwise}
    assert set(reading.sizes) == {(64, 48)}


def test_a_resolution_change_in_mid_stream_is_followed(shared_data: Path) -> None:
    reading = read(shared_data / "odd" / "resolution_change_854x480_to_640x360.ts")
    assert reading.sizes == [(854, 480)] * 150 + [(640, 360)] * 150
    assert reading.times_s[0] == 0
    assert np.diff(reading.times_s) == pytest.approx(np.full(299, 0.04), abs=1e-4)


def test_odd_sizes_lose_their_last_row_and_column(tmp_path: Path) -> None:
    reading = read(write_video(tmp_path / "v.mkv", size=(65, 49), codec="ffv1"))
    assert set(reading.sizes) == {(64, 48)}
    assert reading.lumas == pytest.approx([grey_level(index) for index in range(10)], abs=1)


@pytest.mark.parametrize(
    ("pixel_format", "codec"),
    [
        ("yuv420p10le", "ffv1"),
        ("yuv422p", "ffv1"),
        ("yuv444p", "libx264"),
        ("gray", "ffv1"),
        ("bgr0", "ffv1"),
        ("nv12", "rawvideo"),
        ("yuv420p", "libvpx-vp9"),
    ],
)
def test_other_pixel_formats_give_the_same_luma_and_no_tint(tmp_path: Path, pixel_format: str, codec: str) -> None:
    path = tmp_path / ("v.nut" if codec == "rawvideo" else "v.mkv")
    # Grey has no studio range of its own in libswscale, which widens it when the test video is made.
    reading = read(write_video(path, codec=codec, pixel_format=pixel_format))
    expected = [grey_level(index) for index in range(10)]
    if pixel_format == "gray":
        expected = [round((level - 16) * 255 / 219) for level in expected]
    assert reading.lumas == pytest.approx(expected, abs=3)
    assert {one.colour for one in reading.pictures} == {"bt601"}
    for planes in reading.planes:
        assert np.abs(planes[48:].astype(int) - 128).max() <= 2


def test_full_range_is_kept_as_it_is(tmp_path: Path) -> None:
    reading = read(write_video(tmp_path / "v.mkv", codec="mjpeg", pixel_format="yuvj420p"))
    assert {one.colour for one in reading.pictures} == {"bt601-full"}
    wide = read(write_video(tmp_path / "w.mkv", codec="mjpeg", pixel_format="yuvj422p"))
    assert wide.lumas == pytest.approx(reading.lumas, abs=2)
    assert {one.colour for one in wide.pictures} == {"bt601-full"}


@pytest.mark.parametrize(
    ("height", "tag", "colour"), [(48, 1, "bt709"), (720, 2, "bt709"), (720, 6, "bt601"), (48, 2, "bt601")]
)
def test_colour_follows_the_tag_or_else_the_height(tmp_path: Path, height: int, tag: int, colour: str) -> None:
    def mark(stream: av.VideoStream) -> None:
        stream.codec_context.colorspace = tag

    reading = read(write_video(tmp_path / "v.mp4", size=(64, height), times_ms=[0, 40], tune=mark))
    assert {one.colour for one in reading.pictures} == {colour}


@pytest.mark.parametrize("ending", ["mp4", "ts", "mkv"])
@pytest.mark.parametrize("start_s", [0.5, 0.99, 1.0])
def test_start_s_is_exact_to_the_picture(tmp_path: Path, ending: str, start_s: float) -> None:
    reading = read(write_video(tmp_path / f"v.{ending}", times_ms=range(0, 2000, 40)), start_s=start_s)
    first = next(index for index in range(50) if index * 0.04 >= start_s - 1e-6)
    assert reading.times_s == pytest.approx([index * 0.04 for index in range(first, 50)], abs=1e-4)
    assert reading.lumas[0] == pytest.approx(grey_level(first), abs=3)


def test_start_s_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no picture at or after source.start_s=9; its last is at 0.36 s, lower"):
        read(write_video(tmp_path / "v.mp4"), start_s=9)


def test_real_time_gaps_of_a_real_recording_survive(shared_data: Path) -> None:
    reading = read(shared_data / "odd" / "VID74_realtime_VFR_706x396.mp4")
    assert len(reading.times_s) == 449
    assert reading.times_s[-1] == 1627
    assert np.diff(reading.times_s).max() == 104
    assert all(time_s == round(time_s) for time_s in reading.times_s)


@pytest.mark.parametrize("threads", [1, 2])
def test_bit_flips_cost_only_the_packets_they_hit(shared_data: Path, threads: int) -> None:
    reading = read(shared_data / "odd" / "bitflips_mid_stream.mp4", decode_threads=threads)
    assert len(reading.times_s) == 798
    assert reading.times_s[-1] == 31.96
    assert len(reading.notices) == 1
    assert reading.notices[0].endswith("bitflips_mid_stream.mp4: skipped packets that cannot be decoded: 2")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_file_cut_short_gives_what_is_there_and_says_so(shared_data: Path, threads: int) -> None:
    """Half a packet at the end once cost the pictures that the decoder's other threads still held."""
    reading = read(shared_data / "odd" / "truncated_faststart.mp4", decode_threads=threads)
    assert len(reading.times_s) == 206
    assert len(reading.notices) == 1
    assert "ended after 206 of 800 pictures" in reading.notices[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("upstream_empty_VID47_13_and_VID43_301_b.mp4", "has no video stream; give"),
        ("zero_byte.mp4", r"the file is empty \(0 bytes\); copy"),
        (
            "truncated_no_moov.mp4",
            "cannot be opened: invalid data .*; it is not a video that libav reads, or was cut short: copy",
        ),
        ("truncated_000249.png", "gave not a single picture: its video data is damaged; copy"),
        ("truncated_VID73.json", "cannot be opened: .*; it is not a video"),
        ("nothing_here.mp4", "does not exist; correct source.uri"),
    ],
)
def test_what_is_no_video_is_one_error_naming_file_reason_and_remedy(shared_data: Path, name: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as caught:
        read(shared_data / "odd" / name)
    assert name in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize("name", ["notes.txt", "notes.mp4", "notes.nfo", "notes.srt"])
def test_a_text_file_is_no_video(tmp_path: Path, name: str) -> None:
    """Libav takes some endings at their word and plays the text as a terminal."""
    (tmp_path / name).write_text("1\n00:00:01,000 --> 00:00:02,000\nNot a video.\n\n" * 50)
    with pytest.raises(SourceError, match=name):
        read(tmp_path / name)


def test_a_file_with_sound_only_has_no_video_stream(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(SourceError, match="has no video stream"):
        read(tmp_path / "v.wav")


def test_names_and_tags_may_hold_anything(tmp_path: Path) -> None:
    """A colon looks like a protocol to libav, and a title in Latin-1 once raised UnicodeDecodeError."""
    plain = write_video(tmp_path / "v.mkv", metadata={"title": "Vésicule"})
    odd = tmp_path / "case:1 %03d é.mkv"
    odd.write_bytes(plain.read_bytes().replace("Vésicule".encode(), b"V\xe9\xe9sicule"))
    assert len(read(odd).pictures) == 10
    assert len(read(f"file://{odd}").pictures) == 10


def test_relative_paths_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "v.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(read("v.mp4").pictures) == 10


def test_a_source_opens_again_and_closes_twice(tmp_path: Path) -> None:
    source = open_source(SourceConfig(uri=str(write_video(tmp_path / "v.mp4"))), instruments=(), notice=print)
    for _ in range(2):
        source.open(0)
        assert len(list(source.pictures())) == 10
    source.close()
    source.close()
    with pytest.raises(SourceError, match=r"is not open; call open\(\)"):
        next(source.pictures())


def test_closing_under_a_reader_ends_its_pictures(tmp_path: Path) -> None:
    """An error while a picture is handled closes the source before the generator: PyAV then read freed memory."""
    source = open_source(
        SourceConfig(uri=str(write_video(tmp_path / "v.mp4", times_ms=range(0, 4000, 40)))),
        instruments=(),
        notice=print,
    )
    source.open(0)
    pictures = source.pictures()
    next(pictures)
    source.close()
    assert len(list(pictures)) < 100


def test_no_file_handle_is_left_behind(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    descriptors = Path("/proc/self/fd")
    read(path)
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        read(path, at_most=2)
        with pytest.raises(SourceError):
            read(tmp_path / "text.mp4")
    assert len(list(descriptors.iterdir())) == before


def test_a_picture_larger_than_before_is_announced_before_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "v.ts"
    joined = b""
    for size in ((64, 48), (128, 96)):
        with av.open(str(path), "w") as container:
            stream = add_video(container, size=size)
            for index in range(5):
                container.mux(stream.encode(picture(index, size=size, pts_ms=40 * index)))
            container.mux(stream.encode())
        joined += path.read_bytes()
    path.write_bytes(joined)
    assert read(path).sizes == [(64, 48)] * 5 + [(128, 96)] * 5
