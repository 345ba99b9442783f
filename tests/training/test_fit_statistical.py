"""The fit of the label model: what it counts, that test videos stay out, and that the shipped file is its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.evaluation.dataset import TEST_VIDEOS, TRAIN_VIDEOS, SapClip, load_sap
from stream_agent.planner.ngram import START, NgramModel, encode_model, load_model
from stream_agent.training.statistical import Moment, all_moments, choose, fit, folds, sample_moments, score

SHIPPED = configs_directory() / "procedures" / "cholecystectomy" / "planner.json"
D, C, R = "Dissection", "Vessel Clipping", "Tissue Retraction"


def video(name: str, *labels: str) -> tuple[SapClip, ...]:
    return tuple(SapClip(name, place, 30 * place, label, label) for place, label in enumerate(labels))


VIDEOS = {"VID01": video("VID01", R, D, C), "VID02": video("VID02", D, C), "VID06": video("VID06", C, R, D)}


def test_every_clip_is_counted_in_every_context_up_to_the_order() -> None:
    file = fit(VIDEOS, ["VID01", "VID02"], order=3, concentration=1.0)
    counts = {entry.context: entry.next for entry in file.counts}
    assert counts[()] == {D: 2, C: 2, R: 1}
    assert counts[(D,)] == {C: 2}
    assert counts[(START,)] == {D: 1, R: 1}
    assert counts[(START, D)] == {C: 1}
    assert counts[(R, D)] == {C: 1}
    assert file.procedures == 2


def test_the_last_clip_of_a_case_has_no_duration() -> None:
    file = fit(VIDEOS, ["VID01", "VID02"], order=2, concentration=1.0)
    assert {action: value.n for action, value in file.durations.items() if value.n} == {D: 2, R: 1}


def test_a_test_video_is_never_fitted_on() -> None:
    with pytest.raises(ConfigError, match="VID06 is a test video"):
        fit(VIDEOS, ["VID01", "VID06"], order=2, concentration=1.0)
    with pytest.raises(ConfigError, match="VID04 is not in the annotation file"):
        fit(VIDEOS, ["VID04"], order=2, concentration=1.0)


def test_folds_are_a_partition_and_the_same_every_time() -> None:
    parts = folds(TRAIN_VIDEOS)
    assert sorted(name for part in parts for name in part) == sorted(TRAIN_VIDEOS)
    assert parts == folds(sorted(TRAIN_VIDEOS, reverse=True))


def test_a_score_counts_hits_by_rank() -> None:
    model = NgramModel(fit(VIDEOS, ["VID01", "VID02"], order=2, concentration=1.0))
    found = score([(model, [Moment((D,), C), Moment((D,), R), Moment((D,), D)])])
    assert found.n == 3
    assert found.hits == (1, 2, 2)
    assert "top-1/2/3 33.3/66.7/66.7 %" in str(found)


def test_the_shipped_model_is_the_fit_of_the_training_videos_to_the_byte(shared_data: Path) -> None:
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    training = {name: clips for name, clips in videos.items() if name not in TEST_VIDEOS}
    order, concentration = choose(training, TRAIN_VIDEOS)
    assert encode_model(fit(training, TRAIN_VIDEOS, order=order, concentration=concentration)) == SHIPPED.read_bytes()


def test_the_shipped_model_reaches_what_the_model_card_says(shared_data: Path) -> None:
    videos = load_sap(shared_data / "sap" / "total_video_info.json")
    found = score([(load_model(SHIPPED), sample_moments(videos, sorted(TEST_VIDEOS)))])
    assert (found.n, found.hits) == (57, (34, 52, 57))
    assert len(all_moments(videos, TRAIN_VIDEOS)) == 288
