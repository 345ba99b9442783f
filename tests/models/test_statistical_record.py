"""The record of a statistical model: no answer by a model that has seen the video, and about these very files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from stream_agent import cli
from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_sap
from stream_agent.evaluation.triplets import encode_videos
from stream_agent.models.gate import objections
from stream_agent.models.margins import load_margins
from stream_agent.models.record import EvaluationRecord, read_record
from stream_agent.models.statistical_record import Bench, Contender, statistical_record
from stream_agent.planner.ngram import encode_model, load_model
from stream_agent.training import statistical as trainer
from tests.models.made_models import SHIPPED

PACK = Path("cholecystectomy")
ORDERS = (
    ("Tissue Retraction", "Dissection", "Vessel Clipping", "Dissection", "Coagulation", "Aspiration", "Dissection"),
    ("Dissection", "Tissue Retraction", "Dissection", "Vessel Clipping", "Tissue Retraction", "Dissection"),
    ("Dissection", "Coagulation", "Dissection", "Vessel Clipping", "Dissection", "Aspiration", "Coagulation"),
)


@pytest.fixture
def sap(tmp_path: Path) -> Path:
    """An annotation of made-up videos under the names of all fifty."""
    videos = {}
    for place, name in enumerate(sorted(TRAIN_VIDEOS | TEST_VIDEOS)):
        actions = ORDERS[place % 3]
        videos[name] = tuple(
            SapClip(name, index, (30 + place % 7) * index, action, action, is_sample=index > 0)
            for index, action in enumerate(actions)
        )
    path = tmp_path / "sap.json"
    path.write_bytes(encode_videos(videos))
    return path


def fitted(sap: Path, folder: Path, *, without: frozenset[str] = frozenset()) -> Path:
    """A label model, fitted as `train statistical` does."""
    videos = load_sap(sap)
    names = sorted(TRAIN_VIDEOS - without)
    order, concentration = trainer.choose(videos, names)
    folder.mkdir()
    (folder / "planner.json").write_bytes(
        encode_model(trainer.fit(videos, names, order=order, concentration=concentration))
    )
    return folder


@pytest.fixture
def bench(sap: Path) -> Bench:
    return Bench(PACK, sap, None, "5fold")


FEWER = frozenset(sorted(TRAIN_VIDEOS)[:9])


def test_a_record_of_two_models_is_sound(sap: Path, bench: Bench, tmp_path: Path) -> None:
    ours = Contender("candidate", fitted(sap, tmp_path / "ours", without=FEWER), FEWER)
    theirs = Contender("the pack's own model", fitted(sap, tmp_path / "theirs"))
    fits: list[str] = []
    made = statistical_record(ours, theirs, bench, command="made up", on_fit=fits.append)
    assert len(fits) == 2 * bench.fits
    assert objections(made, load_margins().statistical) == []
    assert set(made.candidate.fitted_on) == TRAIN_VIDEOS - FEWER
    assert {one.video for one in made.candidate.answers} == TRAIN_VIDEOS, "also those it was fitted without"
    assert all(one.elapsed_ms and len(one.ranked) == 3 for one in (*made.candidate.answers, *made.in_use.answers))
    for fold in (*made.candidate.folds, *made.in_use.folds):
        assert not TEST_VIDEOS & {*fold.fitted_on, *fold.asked}
        assert not set(fold.fitted_on) & set(fold.asked)


def test_the_videos_must_be_those_the_counts_are_of(sap: Path, bench: Bench, tmp_path: Path) -> None:
    folder = fitted(sap, tmp_path / "ours", without=FEWER)
    with pytest.raises(ConfigError, match="holds the counts of 26 procedures, and not those of the 35"):
        bench.side(Contender("candidate", folder), lambda _: None)
    others = frozenset(sorted(TRAIN_VIDEOS)[1:10])
    with pytest.raises(ConfigError, match="not those of the 26"):
        bench.side(Contender("candidate", folder, others), lambda _: None)
    with pytest.raises(ConfigError, match="VID06 is not a training video"):
        bench.side(Contender("candidate", folder, frozenset({"VID06"})), lambda _: None)


def test_files_that_answer_otherwise_than_their_recipe_are_refused(sap: Path, bench: Bench, tmp_path: Path) -> None:
    folder = fitted(sap, tmp_path / "ours")
    file = load_model(folder / "planner.json").file
    (folder / "planner.json").write_bytes(encode_model(replace(file, concentration=1000.0)))
    with pytest.raises(ConfigError, match="is not what this program fits on those 35 videos"):
        bench.side(Contender("candidate", folder), lambda _: None)


def promoted_before(sap: Path, bench: Bench, tmp_path: Path) -> tuple[Contender, EvaluationRecord]:
    """A model that is in use with its record, and whose recipe this program no longer has."""
    folder = fitted(sap, tmp_path / "theirs", without=FEWER)
    theirs = Contender("version 1", folder, FEWER)
    made = statistical_record(theirs, Contender("own", fitted(sap, tmp_path / "own")), bench, command="made up")
    file = load_model(folder / "planner.json").file
    (folder / "planner.json").write_bytes(encode_model(replace(file, concentration=1000.0)))
    return dataclasses.replace(theirs, record=made), made


def test_a_model_in_use_of_an_older_recipe_brings_its_own_answers(sap: Path, bench: Bench, tmp_path: Path) -> None:
    theirs, before = promoted_before(sap, bench, tmp_path)
    ours = Contender("candidate", fitted(sap, tmp_path / "ours"))
    made = statistical_record(ours, theirs, bench, command="made up")
    assert [one.outcome for one in made.in_use.answers] == [one.outcome for one in before.candidate.answers]
    assert all(one.elapsed_ms for one in made.in_use.answers), "times are always taken anew, side by side"
    other = dataclasses.replace(theirs, record=replace(before, data={"sap.json": "1" * 64}))
    with pytest.raises(ConfigError, match="its own record is about other data"):
        statistical_record(ours, other, bench, command="made up")
    with pytest.raises(ConfigError, match="is not what this program fits"):
        statistical_record(ours, dataclasses.replace(theirs, record=None), bench, command="made up")


def test_from_fit_to_promotion_by_commands(sap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*arguments: str | Path) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(["models", *map(str, arguments)])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    pack, folder, record = tmp_path / "pack", tmp_path / "registry", tmp_path / "record.json"
    fitted(sap, pack, without=FEWER)
    for path in SHIPPED.glob("*.[ym]*"):
        (pack / path.name).write_bytes(path.read_bytes())
    candidate = fitted(sap, tmp_path / "candidate")
    rest = ("--registry", folder, "--pack", pack)
    command = ("record", candidate, "--sap", sap, "--protocol", "5fold", "--out", record, *rest)
    assert call(*command) == 2
    told = capsys.readouterr().err
    assert "not those of the 35 training videos that the pack's own model" in told
    assert "name those left out with --in-use-without" in told
    assert call(*command, "--in-use-without", ",".join(sorted(FEWER))) == 0
    assert "beside" in capsys.readouterr().out
    made = read_record(record)
    assert f"--in-use-without {','.join(sorted(FEWER))}" in made.command
    assert list(made.data) == ["sap.json"]
    assert call("promote", candidate, "--record", record, *rest) == 0
    again = fitted(sap, tmp_path / "again", without=FEWER)
    assert (
        call("record", again, "--sap", sap, "--without", ",".join(FEWER), "--protocol", "5fold", "--out", record, *rest)
        == 0
    )
    assert read_record(record).in_use.name == "version 1"
    assert call(*command, "--in-use-without", "VID01") == 2
    assert "version 1 is in use" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_model_is_what_the_gate_fits_again(shared_data: Path, tmp_path: Path) -> None:
    """Byte by byte where the numerical libraries are the same; the gate asks for the same answers only."""
    pytest.importorskip("sklearn")
    sap, signals = shared_data / "sap" / "total_video_info.json", shared_data / "cholec80" / "phase_tool_1hz"
    bench = Bench(PACK, sap, signals, "5fold")
    bench.require_same_answers(Contender("own", SHIPPED))
    tree = msgspec.json.decode((SHIPPED / "ensemble.json").read_bytes())
    tree["full"]["sharpness"] = 3.0
    (tmp_path / "planner.json").write_bytes((SHIPPED / "planner.json").read_bytes())
    (tmp_path / "ensemble.json").write_bytes(msgspec.json.encode(tree))
    with pytest.raises(ConfigError, match="is not what this program fits"):
        bench.require_same_answers(Contender("surer", tmp_path))
