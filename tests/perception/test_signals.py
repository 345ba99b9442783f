from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.messages import FrameHeader
from stream_agent.perception.signals import SignalsRecogniser, SignalsTable, load_signals_table

Make = Callable[..., FrameHeader]
TABLE = SignalsTable(
    about="made up",
    actions=("cut", "wash", "hold"),
    instruments=("clamp", "hook", "pump"),
    leading=("hook", "pump", "clamp"),
    posterior={
        "hook": (0.8, 0.1, 0.1),
        "pump": (0.1, 0.8, 0.1),
        "clamp": (0.25, 0.25, 0.5),
        "clamp after pump": (0.2, 0.6, 0.2),
    },
)


def test_the_first_of_the_leading_instruments_in_view_speaks(header: Make) -> None:
    evidence = SignalsRecogniser(TABLE).evidence(header(signals=(1.0, 1.0, 1.0)), None)
    assert evidence.actions == (0.8, 0.1, 0.1)
    assert (evidence.recogniser, evidence.instruments) == ("signals", (1.0, 1.0, 1.0))


def test_what_the_last_one_alone_says_depends_on_what_led_before(header: Make) -> None:
    recogniser = SignalsRecogniser(TABLE)
    said = [
        recogniser.evidence(header(signals=signals), None).actions
        for signals in ((1.0, 0, 0), (0, 0, 1.0), (0, 0, 0), (1.0, 0, 0), (0, 1.0, 0), (1.0, 0, 0))
    ]
    assert said[0] == said[5] == TABLE.posterior["clamp"]
    assert said[3] == TABLE.posterior["clamp after pump"]
    assert len(set(said[2])) == 1


def test_another_session_starts_with_nothing_seen(header: Make) -> None:
    recogniser = SignalsRecogniser(TABLE)
    recogniser.evidence(header(signals=(0, 0, 1.0)), None)
    other = header(signals=(1.0, 0, 0), session_id="another")
    assert recogniser.evidence(other, None).actions == TABLE.posterior["clamp"]
    recogniser.reset()
    assert recogniser.evidence(header(signals=(0, 0, 0)), None).actions == ()


@pytest.mark.parametrize("signals", [(), (math.nan, 0.0, 1.0), (math.inf, 0.0, 1.0)])
def test_without_usable_signals_nothing_is_known(header: Make, signals: tuple[float, ...]) -> None:
    evidence = SignalsRecogniser(TABLE).evidence(header(signals=signals), None)
    assert (evidence.actions, evidence.instruments) == ((), ())


def test_before_any_instrument_was_seen_no_action_is_known(header: Make) -> None:
    evidence = SignalsRecogniser(TABLE).evidence(header(signals=(0.0, 0.0, 0.0)), None)
    assert (evidence.actions, evidence.instruments) == ((), (0.0, 0.0, 0.0))


def test_signals_of_another_pack_are_refused(header: Make) -> None:
    with pytest.raises(ConfigError, match=r"2 signals.*3 instruments \(clamp, hook, pump\)"):
        SignalsRecogniser(TABLE).evidence(header(signals=(1.0, 0.0)), None)


def test_a_table_is_loaded_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "signals.json"
    path.write_bytes(msgspec.json.encode(TABLE))
    table, digest = load_signals_table(path, TABLE.actions, TABLE.instruments)
    assert table == TABLE
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": ("cut", "wash", "sew")}, "has actions cut, wash, sew, the pack has cut, wash, hold"),
        ({"instruments": ("hook",)}, "has instruments hook, the pack has clamp, hook, pump"),
        ({"leading": ()}, "one or more distinct"),
        ({"leading": ("hook", "pump", "knife")}, "are no instruments"),
        ({"posterior": {"hook": (0.8, 0.1, 0.1)}}, "posterior has rows for"),
        ({"posterior": {**TABLE.posterior, "hook after pump": (0.8, 0.1, 0.1)}}, "posterior has rows for"),
        ({"posterior": {**TABLE.posterior, "hook": (0.8, 0.2)}}, "one probability per action"),
        ({"posterior": {**TABLE.posterior, "hook": (0.8, 0.1, 0.2)}}, "summing to 1"),
        ({"posterior": {**TABLE.posterior, "hook": (0.9, 0.1, 0.0)}}, r"cannot be used.*posterior"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "signals.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(TABLE, **change)))
    with pytest.raises(ConfigError, match=message):
        load_signals_table(path, TABLE.actions, TABLE.instruments)


@pytest.mark.parametrize("text", ["", "{}", "not json", "[1, 2"])
def test_a_damaged_table_names_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signals.json"
    with pytest.raises(ConfigError, match="rebuild it"):
        load_signals_table(path, (), ())
    path.write_text(text)
    with pytest.raises(ConfigError, match="rebuild it"):
        load_signals_table(path, (), ())


def test_the_packs_own_table_knows_what_each_instrument_is_for(
    header: Make, actions: tuple[str, ...], instruments: tuple[str, ...]
) -> None:
    folder = configs_directory() / "procedures" / "cholecystectomy"
    recogniser = SignalsRecogniser(*load_signals_table(folder / "signals.json", actions, instruments))
    expected = {"Hook": "Dissection", "Clipper": "Vessel Clipping", "Bipolar": "Coagulation", "Irrigator": "Aspiration"}
    for instrument, action in expected.items():
        signals = tuple(float(name in (instrument, "Grasper")) for name in instruments)
        posterior = recogniser.evidence(header(signals=signals), None).actions
        assert math.fsum(posterior) == pytest.approx(1.0)
        assert actions[posterior.index(max(posterior))] == action
