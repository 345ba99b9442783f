from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

from stream_agent.errors import ConfigError
from stream_agent.prometheus import PrometheusEndpoint
from stream_agent.telemetry import Telemetry


def test_an_idle_run_has_every_key_and_only_zeros() -> None:
    assert Telemetry().summary() == {
        "frames": {"published": 0, "received": 0, "gated": {}, "dropped": {}},
        "plans": {"published": 0, "by_source": {}, "abstained": {}, "due": 0, "missed": 0, "expired": 0},
        "latency_ms": {},
        "age_ms": {"p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0, "n": 0},
        "worker": {},
        "clips": 0,
    }


def test_counts_are_sorted_into_sections_by_reason() -> None:
    telemetry = Telemetry()
    telemetry.count("plans_published", 5, reason="statistical")
    telemetry.count("plans_published", reason="abstain")
    telemetry.count("plans_abstained", reason="gate: black")
    telemetry.count("plans_due", 3)
    telemetry.count("worker_skipped", reason="busy")
    telemetry.count("worker_due", 2)
    telemetry.count("restarts", reason="grabber")
    telemetry.count("sink_dropped", 4, reason="jsonl_queue_full")
    telemetry.count("clips", 7)
    summary = telemetry.summary()
    assert summary["plans"] == {
        "published": 6,
        "by_source": {"statistical": 5, "abstain": 1},
        "abstained": {"gate: black": 1},
        "due": 3,
        "missed": 0,
        "expired": 0,
    }
    assert summary["worker"] == {"due": 2, "skipped": {"busy": 1}}
    assert summary["sinks"] == {"dropped": {"jsonl_queue_full": 4}}
    assert summary["other"] == {"restarts": {"grabber": 1}}
    assert summary["clips"] == 7
    assert json.loads(json.dumps(summary)) == summary


def test_frames_are_accounted_for_when_published_is_received_plus_dropped() -> None:
    telemetry = Telemetry()
    telemetry.set_total("frames_published", 100)
    telemetry.count("frames_received", 60)
    telemetry.count("frames_gated", 10, reason="black")
    telemetry.set_total("frames_dropped", 30, reason="superseded")
    telemetry.set_total("frames_dropped", 35, reason="superseded")
    assert telemetry.unaccounted() == 5
    telemetry.count("frames_dropped", 5, reason="lost")
    assert telemetry.unaccounted() == 0
    assert telemetry.summary()["frames"]["dropped"] == {"lost": 5, "superseded": 35}


def test_quantiles_are_those_of_the_spans_within_a_thousandth() -> None:
    telemetry = Telemetry()
    for milliseconds in range(1, 1001):
        telemetry.span("gate", milliseconds * 1_000_000)
    quantiles = telemetry.summary()["latency_ms"]["gate"]
    assert quantiles["n"] == 1000
    for name, exact in {"p50": 500, "p95": 950, "p99": 990, "max": 1000}.items():
        assert quantiles[name] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(("duration_ns", "microseconds"), [(-5, 0), (0, 0), (400, 0), (1999, 1), (10**16, 3.6e9)])
def test_a_span_out_of_range_is_kept_at_the_edge_of_it(duration_ns: int, microseconds: float) -> None:
    telemetry = Telemetry()
    telemetry.span("odd", duration_ns)
    assert telemetry.summary()["latency_ms"]["odd"]["max"] == pytest.approx(microseconds / 1000, rel=1e-3)


def test_the_newest_span_of_each_stage_is_at_hand() -> None:
    telemetry = Telemetry()
    telemetry.span("gate", 2_000_000)
    telemetry.span("gate", 3_500_000)
    assert telemetry.spans_ms == {"gate": 3.5}


def test_recording_costs_microseconds() -> None:
    """The budget is 5 µs; the bound here leaves room for a busy machine, since the least of several rounds counts."""
    telemetry = Telemetry()

    def round_us(n: int = 2000) -> float:
        begun = time.perf_counter()
        for i in range(n):
            telemetry.span("gate", i * 1000)
        return (time.perf_counter() - begun) / n * 1e6

    assert min(round_us() for _ in range(10)) < 15


def test_a_viewer_gets_the_counts_without_the_histograms() -> None:
    telemetry = Telemetry()
    telemetry.count("frames_received", 3)
    telemetry.count("frames_dropped", 2, reason="lost")
    telemetry.count("plans_published", 2, reason="vlm")
    telemetry.count("plans_published", 1, reason="abstain")
    counters = telemetry.counters("endoscope")
    assert (counters.frames["received"], counters.dropped, counters.plans["published"]) == (3, {"lost": 2}, 3)


def test_prometheus_serves_what_was_counted_on_loopback_until_closed() -> None:
    telemetry = Telemetry()
    telemetry.count("frames_dropped", 2, reason="lost")
    telemetry.span("gate", 2_000_000)
    endpoint = PrometheusEndpoint(telemetry, ":0")
    url = f"http://127.0.0.1:{endpoint.port}/metrics"
    try:
        telemetry.count("frames_dropped", 1, reason="lost")
        with urllib.request.urlopen(url, timeout=5) as answer:
            text = answer.read().decode()
    finally:
        endpoint.close()
    assert 'stream_agent_frames_dropped_total{reason="lost"} 3.0' in text
    assert 'stream_agent_latency_seconds{quantile="p50",stage="gate"} 0.002' in text
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_a_prometheus_port_in_use_names_the_remedy() -> None:
    first = PrometheusEndpoint(Telemetry(), "127.0.0.1:0")
    try:
        with pytest.raises(ConfigError, match="another program uses that port; choose another"):
            PrometheusEndpoint(Telemetry(), f"127.0.0.1:{first.port}")
    finally:
        first.close()


@pytest.mark.parametrize("address", ["", "localhost", "host:", "host:99999", "http://host:1"])
def test_a_malformed_prometheus_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="is not HOST:PORT"):
        PrometheusEndpoint(Telemetry(), address)
