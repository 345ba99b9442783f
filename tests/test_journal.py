from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_agent.errors import ConfigError
from stream_agent.journal import Journal
from stream_agent.messages import Clip
from stream_agent.workers import child_environment

CLIPS = (Clip("a", 0.0, 4.0, 0.9), Clip("b", 4.0, 9.5, 0.8), Clip("a", 9.5, 11.0, 0.7))


def journal(path: Path, case_id: str = "case-1", pack: str = "pack") -> Journal:
    return Journal(path, case_id=case_id, pack=pack)


def write(path: Path, clips: tuple[Clip, ...] = CLIPS) -> bytes:
    with closing(journal(path)) as opened:
        for clip in clips:
            opened.append(clip)
        assert opened.problem == ""
        assert opened.unwritten == 0
    return path.read_bytes()


def restored(path: Path) -> tuple[Clip, ...]:
    with closing(journal(path)) as opened:
        return opened.restored


def test_closed_clips_are_restored_and_further_ones_follow(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path)
    with closing(journal(path)) as opened:
        assert opened.restored == CLIPS
        opened.append(Clip("d", 11.0, 12.0, 0.5))
    assert restored(path) == (*CLIPS, Clip("d", 11.0, 12.0, 0.5))


def test_two_agents_cannot_share_a_journal(tmp_path: Path) -> None:
    with closing(journal(tmp_path / "j")), pytest.raises(ConfigError, match="in use by another agent; give each case"):
        journal(tmp_path / "j")


def test_a_new_journal_is_for_its_owner_alone(tmp_path: Path) -> None:
    write(tmp_path / "j")
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o600


def test_a_clip_is_in_the_file_before_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with closing(journal(path)) as opened:
        for count, clip in enumerate(CLIPS, start=1):
            opened.append(clip)
            assert path.read_bytes().count(b"\n") == 1 + count


@pytest.mark.parametrize(("case_id", "pack"), [("case-2", "pack"), ("case-1", "other")])
def test_another_case_or_pack_starts_anew(tmp_path: Path, case_id: str, pack: str) -> None:
    path = tmp_path / "j"
    write(path)
    with closing(journal(path, case_id, pack)) as opened:
        assert opened.restored == ()
        opened.append(CLIPS[0])
    with closing(journal(path, case_id, pack)) as opened:
        assert opened.restored == CLIPS[:1]
    assert restored(path) == ()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_wherever_a_crash_tears_the_file_whole_lines_are_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    path.unlink(missing_ok=True)
    whole = write(path)
    torn = whole[: cut % (len(whole) + 1)]
    path.write_bytes(torn)
    kept = CLIPS[: max(0, torn.count(b"\n") - 1)]
    with closing(journal(path)) as opened:
        assert opened.restored == kept
        opened.append(CLIPS[2])
    assert restored(path) == (*kept, CLIPS[2])


@pytest.mark.parametrize(
    "damage",
    [
        b'{"action":"a"}\n',
        b"\n",
        b"garbage\n",
        b'{"action":"\xff","start_pts_s":0,"end_pts_s":1,"confidence":1}\n',
        b"[" * 100_000 + b"\n",
        b"\0" * 40 + b"\n",
    ],
)
def test_damage_before_the_last_line_is_an_error_and_leaves_the_file_alone(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "j"
    damaged = write(path) + damage + b'{"action":"d","start_pts_s":0,"end_pts_s":1,"confidence":1}\n'
    path.write_bytes(damaged)
    with pytest.raises(ConfigError, match=r"memory\.journal=.* is not a journal .* name another file or remove it"):
        journal(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content", [b"one line without an end", b"a\nb\n", b"\x00\x00\x00\x18ftypmp42", b'{"other": 1}\n', b"\n"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file without a line end was once taken for a torn journal and emptied."""
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not a journal of this program"):
        journal(path)
    assert path.read_bytes() == content


def test_a_large_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Files over 64 MiB were once emptied unread: naming a video as the journal destroyed it."""
    path = tmp_path / "video.mp4"
    with path.open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ConfigError, match="larger than 64 MiB"):
        journal(path)
    assert path.stat().st_size == (64 << 20) + 1


@pytest.mark.parametrize("name", ["no/such/folder/j", "."])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"memory\.journal=.* cannot be opened: .*; name a writable file"):
        journal(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "j"
    write(path)
    path.chmod(0o400)
    with pytest.raises(ConfigError, match="Permission denied"):
        journal(path)


def test_a_full_disk_is_told_and_does_not_raise() -> None:
    """The half line is taken back by truncating, which a device refuses: that error once ended the agent."""
    with closing(journal(Path("/dev/full"))) as opened:
        assert "No space left on device" in opened.problem
        assert opened.unwritten == 0
        for count, clip in enumerate(CLIPS, start=1):
            opened.append(clip)
            assert "No space left on device" in opened.problem
            assert "free space" in opened.problem
            assert opened.unwritten == count


FILLS_UP = """
import json, resource, signal, sys
from pathlib import Path
from stream_agent.journal import Journal
from stream_agent.messages import Clip
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
journal = Journal(path, case_id="case-1", pack="pack")
seen = []
full = path.stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
for number in range(4):
    journal.append(Clip("a" if number % 2 else "b", float(number), number + 1.0, 0.5))
    seen.append([journal.unwritten, journal.problem])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append(Clip("a", 4.0, 5.0, 0.5))
seen.append([journal.unwritten, journal.problem])
journal.close()
print(json.dumps(seen))
"""


def test_clips_of_a_full_disk_are_written_once_there_is_room(tmp_path: Path) -> None:
    """They were once given up: the journal had a hole even though the agent still knew them."""
    path = tmp_path / "j"
    done = subprocess.run(
        [sys.executable, "-c", FILLS_UP, str(path)], env=child_environment(), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr
    assert '[0, ""], [1, "journal' in done.stdout
    assert done.stdout.strip().endswith('[0, ""]]')
    assert [clip.start_pts_s for clip in restored(path)] == [0, 1, 2, 3, 4]


WRITES_ON = """
import itertools, sys
from pathlib import Path
from stream_agent.journal import Journal
from stream_agent.messages import Clip
journal = Journal(Path(sys.argv[1]), case_id="case-1", pack="pack")
for number in itertools.count():
    journal.append(Clip("a" if number % 2 else "b", float(number), number + 1.0, 0.5))
    print(number, flush=True)
"""


def test_a_killed_writer_loses_no_appended_clip(tmp_path: Path) -> None:
    path = tmp_path / "j"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES_ON, str(path)], env=child_environment(), stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout as told:
        while int(told.readline()) < 50:
            pass
        writer.send_signal(signal.SIGKILL)
        appended = 51 + len(told.readlines())
    assert writer.wait(5) == -signal.SIGKILL
    clips = restored(path)
    assert len(clips) >= appended
    assert [clip.start_pts_s for clip in clips] == list(range(len(clips)))


def test_closing_leaves_no_thread_and_no_descriptor(tmp_path: Path, eventually: Callable[..., None]) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    write(tmp_path / "j")
    eventually(lambda: open_files() <= before)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before
