from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream_agent.config import AgentConfig, configs_directory, is_lockstep, load_config, pace_factor
from stream_agent.errors import ConfigError

OTHERS = ("targets.yaml", "model_gate.yaml")  # of the benchmarks, and of the model gate
PRESETS = sorted(
    path
    for path in configs_directory().glob("*.yaml")
    if path.name not in OTHERS and not path.name.startswith("train_")  # which is another tree, training's
)


def complaint(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_by_path_and_by_name(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, AgentConfig)
    assert load_config(Path(path.name)) == config
    assert path.read_text(encoding="utf-8").startswith("#"), "says why it differs from the defaults"


def test_there_are_presets() -> None:
    assert {"demo", "live", "replay"} <= {path.stem for path in PRESETS}


def test_the_defaults_need_no_file() -> None:
    assert load_config() == AgentConfig()
    assert load_config(None, ["source.seed=7"]) == AgentConfig()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("sinks.console=off", "off"),
        ("sinks.console=plain", "plain"),
        ("source.uri=synthetic:", "synthetic:"),
        ("source.uri=rtsp://user:secret@10.0.0.7:554/stream?x=1&y=2", "rtsp://user:secret@10.0.0.7:554/stream?x=1&y=2"),
        ("source.uri=/dev/video0", "/dev/video0"),
        ("source.uri={odd}.mp4", "{odd}.mp4"),
        ("source.pace=2x", 2.0),
        ("source.pace=2", 2.0),
        ("source.pace=0.5", 0.5),
        ("source.pace=max", "max"),
        ("source.pace=realtime", "realtime"),
        ("source.loop=true", True),
        ("source.stop_s=", None),
        ("source.stop_s=null", None),
        ("source.stop_s=12.5", 12.5),
        ("source.options={rtsp_transport: udp}", {"rtsp_transport": "udp"}),
        ("source.options.rtsp_transport=udp", {"rtsp_transport": "udp"}),
        ("sinks.jsonl=plans.jsonl", Path("plans.jsonl")),
        ("sinks.jsonl=", None),
        ("telemetry.prometheus=127.0.0.1:9000", "127.0.0.1:9000"),
        ("memory.max_clips=32", 32),
    ],
)
def test_a_value_on_the_command_line_gets_its_fields_type(override: str, value: Any) -> None:
    config = load_config(None, [override])
    section, _, key = override.partition("=")[0].partition(".")
    got = getattr(getattr(config, section), key.partition(".")[0])
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("case_id", ["007", "12345", "1e3", "no", "2024-01-31", "2024-13-45", "0x1F", "a: b", "a #3"])
def test_text_is_taken_as_it_was_written(case_id: str) -> None:
    """Case 007 was once refused as the number 7, and 2024-13-45 ended in a traceback: YAML reads them so."""
    assert load_config(None, [f"memory.case_id={case_id}"]).memory.case_id == case_id
    assert load_config(None, [f"memory.case_id='{case_id}'"]).memory.case_id == case_id


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=60))
def test_any_address_survives_the_command_line(uri: str) -> None:
    assert load_config(None, [f"source.uri={json.dumps(uri, ensure_ascii=False)}"]).source.uri == uri
    if uri[0] not in "\"'" and uri.strip().casefold() not in ("", "~", "null") and not uri.startswith("#"):
        assert load_config(None, [f"source.uri={uri}"]).source.uri == uri


@given(
    st.sampled_from(["source.start_s", "source.pace", "source.options", "planner.script", "a.b", "sinks"]), st.text()
)
def test_nothing_on_the_command_line_is_worse_than_an_error(key: str, text: str) -> None:
    try:
        load_config(None, [f"{key}={text}"])
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("override", "key", "suggestion"),
    [
        ("sorce.uri=x", "sorce", "source"),
        ("source.ury=x", "source.ury", "uri"),
        ("sinks.publisher.bnd=x", "sinks.publisher.bnd", "bind"),
        ("planner.script=[{delay: 3}]", "planner.script.0.delay", "delay_s"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(override: str, key: str, suggestion: str) -> None:
    text = complaint(override)
    assert text.startswith(f"{key} is not a known key")
    assert text.endswith(f"did you mean {suggestion}?")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["source.pace=abc"], ["source.pace=abc", "realtime, max, or N", "choose"]),
        (["source.pace=0"], ["source.pace=0", "up to 1000", "choose"]),
        (["source.pace=true"], ["source.pace=True", "choose"]),
        (["source.start_s=-1"], ["source.start_s=-1", "greater than or equal to 0", "correct it"]),
        (["source.start_s=.nan"], ["source.start_s=nan", "finite", "correct it"]),
        (["source.start_s=2024-13-45"], ["source.start_s=2024-13-45", "valid number", "correct it"]),
        (["sinks.console=loud"], ["sinks.console=loud", "'auto', 'live', 'plain' or 'off'", "correct it"]),
        (["memory.max_clips=1"], ["memory.max_clips=1", "greater than or equal to 2", "correct it"]),
        (["memory.evict_block=64"], ["memory.evict_block=64", "smaller than memory.max_clips=64", "lower it"]),
        (["planner.deadline_ms=5000"], ["planner.deadline_ms=5000", "later than planner.valid_s=2", "raise valid_s"]),
        (["planner.script=[]"], ["planner.script=[]", "no step", "give at least one"]),
        (
            ["source.start_s=9", "source.stop_s=5"],
            ["source.stop_s=5.0", "not after source.start_s=9.0", "raise it or leave it out"],
        ),
        (
            ["transport.connect=tcp://127.0.0.1:5", "source.pace=max"],
            ["source.pace=max", "transport.connect", "unset one of them"],
        ),
        (
            ["recogniser.kind=timeline", "source.uri=a.mp4"],
            ["recogniser.kind=timeline", "recogniser.labels", "kind=auto"],
        ),
        (["source.uri"], ["'source.uri'", "is not section.key=value", "write for example"]),
        (["pace=max"], ["'pace=max'", "is not section.key=value", "write for example"]),
        (["source..uri=x"], ["'source..uri=x'", "is not section.key=value", "write for example"]),
    ],
)
def test_a_message_names_the_value_the_rule_and_the_remedy(overrides: list[str], parts: list[str]) -> None:
    text = complaint(*overrides)
    assert "\n" not in text, "one mistake, one line"
    for part in parts:
        assert part in text


def test_every_mistake_is_told_at_once() -> None:
    assert len(complaint("source.pace=fast", "memory.max_clips=0", "gate.luma=3").splitlines()) == 3


def test_a_value_is_not_taken_for_a_section() -> None:
    assert "source.uri" in complaint("source.uri.host=x")
    assert "is a value, not a section" in complaint("source.seed=1", "source.seed.x=2")


def test_a_later_override_wins_over_earlier_ones_and_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("source:\n  seed: 1\n  loop: true\n", encoding="utf-8")
    config = load_config(path, ["source.seed=2", "source.seed=3"])
    assert (config.source.seed, config.source.loop) == (3, True)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"source: [", ["is not readable YAML", "correct the line it names"]),
        (b"source:\n  start_s: 2024-13-45\n", ["is not readable YAML", "month", "correct"]),
        (b"\xff\xfe\xfd", ["is not readable YAML"]),
        (b"- a\n- b\n", ["holds a list, not sections", "start with"]),
        (b"source: 3\n", ["source=3", "valid dictionary"]),
        (b"1: 2\n", ["1=1", "should be strings"]),
    ],
)
def test_a_broken_file_is_an_error_that_says_so(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    text = complaint(path=path)
    for part in parts:
        assert part in text


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert load_config(path) == AgentConfig()


def test_a_missing_file_lists_the_presets() -> None:
    text = complaint(path=Path("nowhere.yaml"))
    assert "nowhere.yaml does not exist" in text
    assert "demo.yaml" in text


def test_a_section_cannot_be_changed() -> None:
    config = load_config()
    with pytest.raises(ValidationError):
        config.source.uri = "other"


@pytest.mark.parametrize(
    "override", ["sinks.console=off", "telemetry.prometheus=127.0.0.1:1", "transport.slots=9", "memory.journal=j"]
)
def test_where_plans_go_is_no_part_of_the_digest(override: str) -> None:
    assert load_config(None, [override]).digest() == load_config().digest()


@pytest.mark.parametrize(
    "override", ["source.seed=8", "memory.case_id=x", "memory.max_clips=9000", "planner.kind=scripted", "gate.blur_s=1"]
)
def test_whatever_decides_plans_is_part_of_the_digest(override: str) -> None:
    digest = load_config(None, [override]).digest()
    assert digest != load_config().digest()
    assert len(digest) == 12 and int(digest, 16) >= 0


def test_a_config_survives_being_written_and_read() -> None:
    config = load_config(None, ["source.pace=2x", "planner.script=[{behaviour: hang, delay_s: 2}]", "sinks.jsonl=j"])
    assert AgentConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("overrides", "factor", "lockstep"),
    [
        (["source.uri=a.mp4"], 1.0, False),
        (["source.uri=a.mp4", "source.pace=3x"], 3.0, False),
        (["source.uri=a.mp4", "source.pace=max"], math.inf, True),
        (["source.uri=synthetic:", "source.synthetic_speed=12", "source.pace=2x"], 24.0, False),
        (["source.uri=synthetic:", "source.pace=max"], math.inf, True),
    ],
)
def test_the_pace_in_media_seconds_per_second(overrides: list[str], factor: float, lockstep: bool) -> None:
    source = load_config(None, overrides).source
    assert pace_factor(source) == factor
    assert is_lockstep(source) == lockstep
