"""Frames and captions of training samples from files: what `data.py` is given for the direct and the indirect form.

Frames lie as CholecT50's own, `VIDnn/nnnnnn.png` (or `.jpg`), named by their second. A near frame is the newest one not after the
last second that may be seen, of the current clip, and at most `NEAR_S` old. Captions are lines of JSON: `video`, `second`, `text`;
teachers write them (`distill.py`), people may. No file of a test video is opened, whatever a link to it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import msgspec

from stream_agent.config import PlannerConfig
from stream_agent.errors import UNDECODABLE, ConfigError
from stream_agent.evaluation.samples import Question
from stream_agent.messages import NearPicture
from stream_agent.planner.near_picture import reduced_size
from stream_agent.training.data import require_training_only, videos_named

NEAR_S: Final = 10
"""A frame older than this is not what the camera shows now."""

_SUFFIXES = (".png", ".jpg")


class NearFrames:
    """Frames under a folder, as the agent would have them at a question."""

    def __init__(self, folder: Path, config: PlannerConfig) -> None:
        """Look for the folder.

        Raises:
            ConfigError: There is none.
        """
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; name the one that holds VIDnn/nnnnnn.png")
        self._folder = folder
        self._config = config
        self._seconds: dict[str, dict[int, Path]] = {}

    def __call__(self, question: Question) -> tuple[NearPicture, ...]:
        """The near frame last; before it, with memory=all_frames_with_labels, the last frame of each recent clip.

        Raises:
            ConfigError: A frame is of a test video, or no picture.
        """
        require_training_only([question.video])
        begun = question.starts_s[-1] if question.starts_s else 0
        near = self._newest(question.video, max(begun, question.now_s - NEAR_S), question.now_s)
        if near is None:
            return ()
        wanted = [(near, question.now_s, question.current)]
        if self._config.memory == "all_frames_with_labels":
            clips = zip(question.labels, question.starts_s, question.starts_s[1:], strict=False)
            for label, start_s, end_s in list(clips)[::-1][: self._config.max_frames - 1]:
                last = self._newest(question.video, start_s, end_s - 1)
                if last is not None:
                    wanted.insert(0, (last, end_s - 1, label))
        # The near frame's number is that of the memory's newest header, or it would not be taken for the near frame.
        return tuple(self._read(path, second, label) for path, second, label in wanted)

    def _newest(self, video: str, first_s: int, last_s: int) -> Path | None:
        seconds = self._of(video)
        return next((seconds[second] for second in range(last_s, first_s - 1, -1) if second in seconds), None)

    def _of(self, video: str) -> dict[int, Path]:
        if video not in self._seconds:
            folder = self._folder / video
            paths = [path for path in folder.iterdir() if path.suffix in _SUFFIXES] if folder.is_dir() else []
            self._seconds[video] = {int(path.stem): path for path in sorted(paths) if path.stem.isdecimal()}
        return self._seconds[video]

    def _read(self, path: Path, second: int, label: str | None) -> NearPicture:
        require_training_only(name for name in videos_named(str(path.resolve())))
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ConfigError(f"{path} is no picture; copy it again or remove it")
        config = self._config
        width, height = reduced_size(
            picture.shape[1], picture.shape[0], max_pixels=config.max_pixels, side_multiple=config.side_multiple
        )
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        return NearPicture(
            seq=second, pts_s=float(second), action=label, width=width, height=height, rgb=small.tobytes()
        )


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    video: str
    second: int
    text: str


class NearCaptions:
    """Captions from a file of lines; that of a question is the newest of the seconds that a near frame may be of."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: It cannot be read, a line is none, or one is about a test video.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); name a file of captions") from error
        self._said: dict[str, dict[int, str]] = {}
        for number, line in enumerate(lines, 1):
            try:
                said = msgspec.json.decode(line, type=_Line)
            except UNDECODABLE as error:
                raise ConfigError(
                    f'{path}:{number}: {error}; write lines as {{"video": "VID01", "second": 7, "text": "…"}}'
                ) from error
            require_training_only([said.video])
            self._said.setdefault(said.video, {})[said.second] = said.text

    def __call__(self, question: Question) -> str:
        """What the near frame shows; empty where nobody said."""
        said = self._said.get(question.video, {})
        begun = question.starts_s[-1] if question.starts_s else 0
        oldest = max(begun, question.now_s - NEAR_S)
        return next((said[s] for s in range(question.now_s, oldest - 1, -1) if s in said), "")
