"""The counters and quantiles of one run for Prometheus, read at each scrape by a server thread of its own."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream_agent.errors import ConfigError
from stream_agent.telemetry import Telemetry

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

_ADDRESS = re.compile(r"(?:(?P<host>\[[^\]]+\]|[^:\[\]]*):)?(?P<port>\d{1,5})")
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")
_LOOPBACK = "127.0.0.1"


class PrometheusEndpoint:
    """Serves `http://HOST:PORT/metrics` until closed.

    Attributes:
        port: The port served on; tells which when port 0 was asked for.
    """

    def __init__(self, telemetry: Telemetry, address: str) -> None:
        """Listen; without a host on loopback only.

        Raises:
            ConfigError: The address is malformed, in use or not of this host.
        """
        parts = _ADDRESS.fullmatch(address)
        if parts is None or int(parts["port"]) > 65535:
            raise ConfigError(f"telemetry.prometheus={address} is not HOST:PORT; write for example 127.0.0.1:9464")
        registry = CollectorRegistry()
        registry.register(_RunCollector(telemetry))
        self._server: WSGIServer
        self._thread: threading.Thread
        try:
            self._server, self._thread = start_http_server(
                int(parts["port"]), addr=(parts["host"] or _LOOPBACK).strip("[]"), registry=registry
            )
        except OSError as error:
            remedy = (
                "another program uses that port; choose another"
                if error.errno == errno.EADDRINUSE
                else f"{error.strerror or error}; choose an address of this host and a port from 1024 on"
            )
            raise ConfigError(f"telemetry.prometheus={address} cannot be served: {remedy}") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


class _RunCollector(Collector):
    """Reads the telemetry when asked; nothing is kept twice."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterable[Metric]:
        """All counters by reason; latency and age as quantiles in seconds."""
        counts = self._telemetry.counts()
        for name in sorted({name for name, _ in counts}):
            family = CounterMetricFamily(f"stream_agent_{_NOT_A_NAME.sub('_', name)}", name, labels=["reason"])
            for (counted, reason), n in counts.items():
                if counted == name:
                    family.add_metric([reason], n)
            yield family
        summary = self._telemetry.summary()
        latency = GaugeMetricFamily(
            "stream_agent_latency_seconds", "Time per stage since the start.", labels=["stage", "quantile"]
        )
        for stage, quantiles in summary["latency_ms"].items():
            _add(latency, [stage], quantiles)
        yield latency
        age = GaugeMetricFamily("stream_agent_age_seconds", "Age of the frame behind the plan.", labels=["quantile"])
        _add(age, [], summary["age_ms"])
        yield age


def _add(family: GaugeMetricFamily, labels: list[str], quantiles: dict[str, float]) -> None:
    for name in ("p50", "p95", "p99", "max"):
        family.add_metric([*labels, name], quantiles[name] / 1000)
