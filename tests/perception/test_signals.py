from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stream_agent.config import configs_directory
from stream_agent.errors import ConfigError
from stream_agent.messages import FrameHeader
from stream_agent.perception.signals import EmissionTable, SignalsRecogniser, load_emission_table

Make = Callable[..., FrameHeader]
TABLE = EmissionTable(
    about="made up",
    actions=("cut", "wash"),
    instruments=("hook", "pump"),
    presence=((0.9, 0.1), (0.2, 0.8)),
    counts={"10": (90.0, 5.0), "01": (5.0, 90.0)},
    back_off_s=10.0,
)


def test_the_posterior_is_the_hand_worked_one(header: Make) -> None:
    evidence = SignalsRecogniser(TABLE).evidence(header(signals=(1.0, 0.0)), None)
    cut = (90 + 10 * 0.9 * 0.9) / (95 + 10)
    wash = (5 + 10 * 0.2 * 0.2) / (95 + 10)
    assert evidence.actions == pytest.approx((cut / (cut + wash), wash / (cut + wash)))
    assert (evidence.recogniser, evidence.instruments) == ("signals", (1.0, 0.0))


def test_a_set_never_seen_falls_back_to_instruments_as_independent(header: Make) -> None:
    evidence = SignalsRecogniser(TABLE).evidence(header(signals=(1.0, 1.0)), None)
    assert evidence.actions == pytest.approx((0.09 / 0.25, 0.16 / 0.25))


@pytest.mark.parametrize("signals", [(), (math.nan, 0.0), (math.inf, 0.0)])
def test_without_usable_signals_nothing_is_known(header: Make, signals: tuple[float, ...]) -> None:
    evidence = SignalsRecogniser(TABLE).evidence(header(signals=signals), None)
    assert (evidence.actions, evidence.instruments) == ((), ())


def test_signals_of_another_pack_are_refused(header: Make) -> None:
    with pytest.raises(ConfigError, match=r"3 signals.*2 instruments \(hook, pump\)"):
        SignalsRecogniser(TABLE).evidence(header(signals=(1.0, 0.0, 1.0)), None)


def test_a_table_is_loaded_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "signals.json"
    path.write_bytes(msgspec.json.encode(TABLE))
    table, digest = load_emission_table(path, TABLE.actions, TABLE.instruments)
    assert table == TABLE
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": ("cut", "sew")}, "has actions cut, sew, the pack has cut, wash"),
        ({"instruments": ("hook",)}, "has instruments hook, the pack has hook, pump"),
        ({"presence": ((0.9, 0.1),)}, "rows of a wrong length"),
        ({"counts": {"1": (1.0, 2.0)}}, "rows of a wrong length"),
        ({"counts": {"10": (1.0,)}}, "rows of a wrong length"),
        ({"counts": {"1x": (1.0, 2.0)}}, "rows of a wrong length"),
        ({"presence": ((0.0, 0.1), (0.5, 0.5))}, r"cannot be used.*presence"),
        ({"back_off_s": -1.0}, r"cannot be used.*back_off_s"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "signals.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(TABLE, **change)))
    with pytest.raises(ConfigError, match=message):
        load_emission_table(path, TABLE.actions, TABLE.instruments)


@pytest.mark.parametrize("text", ["", "{}", "not json", "[1, 2"])
def test_a_damaged_table_names_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signals.json"
    with pytest.raises(ConfigError, match="rebuild it"):
        load_emission_table(path, (), ())
    path.write_text(text)
    with pytest.raises(ConfigError, match="rebuild it"):
        load_emission_table(path, (), ())


def test_the_packs_own_table_knows_what_each_instrument_is_for(
    header: Make, actions: tuple[str, ...], instruments: tuple[str, ...]
) -> None:
    folder = configs_directory() / "procedures" / "cholecystectomy"
    recogniser = SignalsRecogniser(*load_emission_table(folder / "signals.json", actions, instruments))
    expected = {"Hook": "Dissection", "Clipper": "Vessel Clipping", "Bipolar": "Coagulation", "Irrigator": "Aspiration"}
    for instrument, action in expected.items():
        signals = tuple(float(name in (instrument, "Grasper")) for name in instruments)
        posterior = recogniser.evidence(header(signals=signals), None).actions
        assert math.fsum(posterior) == pytest.approx(1.0)
        assert actions[posterior.index(max(posterior))] == action
