"""`run_agent.py train`: what is missing is said in one line, and what is fitted is written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stream_agent.cli import main
from stream_agent.evaluation.dataset import INSTRUMENTS, SapClip
from stream_agent.evaluation.triplets import encode_videos

_LENGTH_S = {"Dissection": 60, "Vessel Clipping": 20, "Tissue Retraction": 30}
_SEEN = {"Dissection": (0, 2), "Vessel Clipping": (0, 4), "Tissue Retraction": (0,)}


def train(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[Path, Path]:
    """An annotation of four training videos and two test videos, and the folder of their signals."""
    signals = tmp_path / "signals"
    signals.mkdir()
    videos = {}
    for number in (1, 2, 4, 13, 6, 8):
        order = list(_LENGTH_S) * 2 if number % 2 else [*list(_LENGTH_S)[::-1], *_LENGTH_S]
        clips: list[SapClip] = []
        rows: list[str] = []
        for index, action in enumerate(order):
            following = order[index + 1] if index + 1 < len(order) else ""
            if index and order[index - 1] == action:
                continue
            clips.append(
                SapClip(
                    f"VID{number:02d}",
                    len(clips),
                    len(rows),
                    action,
                    action,
                    is_sample=len(clips) > 1,
                    next_action=following if following != action else "",
                )
            )
            row = ",".join(str(int(place in _SEEN[action])) for place in range(len(INSTRUMENTS)))
            rows += [row] * _LENGTH_S[action]
        videos[f"VID{number:02d}"] = tuple(clips)
        lines = [
            ",".join(["second", "phase", *INSTRUMENTS]),
            *(f"{second},Preparation,{row}" for second, row in enumerate(rows)),
        ]
        (signals / f"video{number:02d}.csv").write_text("\n".join(lines) + "\n")
    sap = tmp_path / "sap.json"
    sap.write_bytes(encode_videos(videos))
    return sap, signals


def test_signals_writes_a_pack_s_files_and_prints_its_figures(
    annotated: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sap, signals = annotated
    out = tmp_path / "pack"
    out.mkdir()
    assert train("signals", "--sap", sap, "--signals", signals, "--out", out, "--exclude", "VID13") == 0
    assert {path.name for path in out.iterdir()} == {"signals.json", "segmenter.json"}
    assert '"training_left_out"' in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("signals", "--sap", "{sap}", "--signals", "{signals}", "--out", "/nowhere"), "--out /nowhere is no folder"),
        (("signals", "--sap", "{sap}", "--signals", "/nowhere", "--out", "{tmp}"), "/nowhere is no folder"),
        (("signals", "--sap", "/nowhere", "--signals", "{signals}", "--out", "{tmp}"), "/nowhere cannot be read"),
        (("statistical", "--sap", "/nowhere", "--out", "{tmp}"), "/nowhere cannot be read"),
        (("statistical", "--sap", "{sap}", "--out", "{tmp}", "--exclude", "VID99"), "VID99: not a training video"),
        (("statistical", "--sap", "{sap}", "--out", "{tmp}", "--exclude", "VID06"), "VID06: not a training video"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(
    annotated: tuple[Path, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    names = {"sap": annotated[0], "signals": annotated[1], "tmp": tmp_path}
    assert train(*(part.format(**names) for part in arguments)) == 2
    errors = capfd.readouterr().err
    assert said in errors and "Traceback" not in errors


def test_a_missing_library_is_named_with_what_installs_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert train("recogniser", "--data", tmp_path, "--out", tmp_path) == 2
    assert "pip install stream-agent[train]" in capfd.readouterr().err
