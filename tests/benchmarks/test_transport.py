"""The transport benchmark around made-up pairs: in which order they are asked, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from benchmarks import transport
from benchmarks.pair import Collect, Round

MEDIANS_MS = {"ours": 0.3, "floor_8_bytes": 0.2, "memcpy": 0.1, "imagezmq_pubsub": 3.3}


class MadeUp:
    """A pair that answers at once; the machine is twice as slow in every other round."""

    def __init__(self, method: str, asked: list[str]) -> None:
        self.method = method
        self._asked = asked
        self._rounds = 0

    def run(self, interval_s: float, task: Collect, *, waits: bool = False) -> Round:
        self._asked.append(self.method)
        self._rounds += 1
        latencies = [MEDIANS_MS[self.method] * (1 + self._rounds % 2)] * task.count
        return Round(latencies, latencies, task.count + 1, [0.0] * task.count)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    order: list[str] = []

    @contextmanager
    def opened(methods: Sequence[str], case: str) -> Iterator[tuple[dict[str, MadeUp], dict[str, str]]]:
        known = {method: MadeUp(method, order) for method in methods if method in MEDIANS_MS}
        yield known, {method: "x is not installed; pip install x" for method in methods if method not in known}

    monkeypatch.setattr(transport, "opened", opened)
    return order


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    monkeypatch.setattr("sys.argv", ["transport", *arguments])
    transport.main()
    result: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_all_methods_run_in_turn_within_every_round(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(monkeypatch, capsys, "--sizes", "1080p", "--rounds", "3")
    one_round = ["ours", "floor_8_bytes", "memcpy", "imagezmq_pubsub"]
    assert asked == one_round * 3


def test_a_slow_round_moves_both_sides_of_a_ratio(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = printed(monkeypatch, capsys, "--quick")
    rows = result["rows"]
    assert isinstance(rows, list)
    places = {(row["method"], row["case"]): row for row in rows}
    assert {case for _, case in places} == {"480p", "1080p", "2160p"}
    ours, peer = places["ours", "1080p"], places["imagezmq_pubsub", "1080p"]
    assert ours["ratio"] == 1.5
    assert ours["round_ratios"] == [1.5] * 4
    assert peer["x_ours"] == 11.0
    assert ours["lost"] == 4  # one frame of each round was due and never came
    assert ours["spread"] > 0.5  # the machine moved, and it is told
    assert "ratio" not in places["floor_8_bytes", "1080p"]
    not_run = result["not_run"]
    assert isinstance(not_run, dict)
    assert not_run["netgear_raw"].endswith("pip install x")
    targets = result["targets"]
    assert isinstance(targets, list)
    met = {target["name"]: target["met"] for target in targets}
    assert met["a 1080p frame over an 8-byte message"]
    assert met["imagezmq PUB/SUB over ours, 1080p"]
    assert "NetGear over ours, 1080p" not in met
