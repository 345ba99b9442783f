"""Do browsers that watch slow the agent down?

One running agent with its dashboard; in turn nobody watches, and ten browsers do, one of them frozen: it takes its first batch
and never answers. The browsers here take every picture and every section as fast as they are given, and draw nothing: what a
real one draws, it draws on a machine of its own. Time is from a frame's capture to its published plan, by the agent's own
stamps. Conditions alternate every few seconds, so that whatever else the machine does meets both. The limit to compare with is
no browser at all: a ratio of 1.
"""  # noqa: D400

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import ROOT, Report, Row, arguments, first_line, paired_ratio, quantiles_ms, run_main, spread

_QUESTION = first_line(__doc__)
_BROWSERS = 10
_SETTLE_S = 0.7
"""Left out after each change: connections are made and broken."""
_START_S = 60.0


def main() -> int:
    parser = arguments(_QUESTION)
    parser.add_argument("--seconds", type=float, default=None, help="of each condition, each time")
    parser.add_argument("--rounds", type=int, default=None, help="how often each condition comes")
    options = parser.parse_args()
    seconds = options.seconds or (3.0 if options.quick else 10.0)
    rounds = options.rounds or (3 if options.quick else 12)
    settings = {
        "seconds": seconds,
        "rounds": rounds,
        "browsers": _BROWSERS,
        "frozen": 1,
        "size": "960x540 at 30 fps, every frame looked at",
    }
    report = Report("dashboard", _QUESTION, settings, columns=("max_ms", "watched_ratio_p99", "ratio_spread"))
    with tempfile.TemporaryDirectory(prefix="sa") as name:
        alone, watched = _measured(Path(name), seconds, rounds)
    for case, latencies in (("nobody", alone), ("10_browsers_1_frozen", watched)):
        every = [latency for one in latencies for latency in one]
        p50, p95, p99 = quantiles_ms(every)
        more: dict[str, object] = {"max_ms": max(every)}
        if latencies is watched:
            ratios = [quantiles_ms(b)[2] / quantiles_ms(a)[2] for a, b in zip(alone, watched, strict=True)]
            pooled = p99 / quantiles_ms([latency for one in alone for latency in one])[2]
            more |= {
                "watched_ratio_p99": pooled,
                "ratio_spread": spread(ratios),
                "ratio_median_of_rounds": paired_ratio(ratios, [1.0] * len(ratios)),
            }
        report.rows.append(Row("ours", case, p50, p95, p99, len(every), more=more))
    report.notes.append("watched_ratio_p99: the p99 of all rounds with browsers over that of all rounds without")
    return report.finish(options)


def _measured(folder: Path, seconds: float, rounds: int) -> tuple[list[list[float]], list[list[float]]]:
    """Milliseconds from capture to plan, per round, without and with browsers."""
    plans, log = folder / "plans.jsonl", folder / "stderr"
    lasts_s = int(2 * rounds * (seconds + 5) + _START_S)
    command = [sys.executable, str(ROOT / "run_agent.py"), "run", "--config", "demo.yaml", "sinks.console=off"]
    command += [f"source.synthetic_duration_s={lasts_s}", "source.synthetic_speed=1", "recogniser.rate_hz=30"]
    command += [f"sinks.jsonl={plans}", "sinks.dashboard.enabled=true", "sinks.dashboard.port=0"]
    alone: list[tuple[int, int]] = []
    watched: list[tuple[int, int]] = []
    with log.open("w") as stderr:
        agent = subprocess.Popen(command, cwd=folder, stderr=stderr, env={**os.environ, "XDG_RUNTIME_DIR": str(folder)})
    try:
        port = _port(log)
        time.sleep(2.0)
        for _ in range(rounds):
            alone.append(_span(seconds))
            watching = [sys.executable, "-m", "benchmarks.dashboard", "--watch", str(port)]
            with subprocess.Popen(watching, cwd=ROOT, stdout=subprocess.PIPE) as browsers:
                assert browsers.stdout is not None
                browsers.stdout.readline()  # all of them are there
                watched.append(_span(seconds))
                browsers.terminate()
    finally:
        agent.terminate()
        agent.wait(20)
    stamps = _stamps(plans)
    within = [
        [
            [(published - captured) / 1e6 for captured, published in stamps if begin <= captured < end]
            for begin, end in spans
        ]
        for spans in (alone, watched)
    ]
    return within[0], within[1]


def _span(seconds: float) -> tuple[int, int]:
    """Let so many seconds go by; their beginning and end."""
    time.sleep(_SETTLE_S)
    begin_ns = time.monotonic_ns()
    time.sleep(seconds)
    return begin_ns, time.monotonic_ns()


def _port(log: Path) -> int:
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s:
        found = re.search(r"dashboard: http://[^:]+:(\d+)/", log.read_text())
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise TimeoutError(f"the dashboard told no address: {log.read_text()}")


def _stamps(plans: Path) -> list[tuple[int, int]]:
    """When each plan's frame was captured, and the plan published."""
    stamps: dict[int, int] = {}
    for line in plans.read_bytes().splitlines():
        plan = json.loads(line)
        if not plan["abstained"]:
            stamps.setdefault(plan["captured_ns"], plan["published_ns"])
    return sorted(stamps.items())


# ------------------------------------------------------------------------------------------------ the browsers' process


def watch(port: int) -> None:
    """Ten browsers until ended, one of them frozen; a line on stdout tells that all are there."""
    os.nice(19)  # they stand for other machines
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    asyncio.run(_watch(port))


async def _watch(port: int) -> None:
    there = asyncio.Barrier(_BROWSERS + 1)
    async with asyncio.TaskGroup() as browsers:
        for number in range(_BROWSERS):
            browsers.create_task(_browse(port, there, frozen=number == 0))
        await there.wait()
        print("watching", flush=True)


async def _browse(port: int, there: asyncio.Barrier, *, frozen: bool) -> None:
    """As little as a browser can do: a WebSocket by hand, since a library's work would be taken for the dashboard's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET /live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    batch = await _message(reader)
    await there.wait()
    if frozen:
        await asyncio.sleep(3600)
    while True:
        if b'"picture":true' in batch[:200]:
            await _message(reader)
        number = batch[: batch.index(b",")].rpartition(b":")[2].decode()
        ack = f'{{"type":"ack","n":{number}}}'.encode()
        writer.write(bytes((0x81, 0x80 | len(ack), 0, 0, 0, 0)) + ack)  # masked with zeros
        batch = await _message(reader)


async def _message(reader: asyncio.StreamReader) -> bytes:
    """The next text or picture."""
    while True:
        kind, length = await reader.readexactly(2)
        if length >= 126:
            length = int.from_bytes(await reader.readexactly(2 if length == 126 else 8))
        content = await reader.readexactly(length)
        if kind in (0x81, 0x82):
            return content


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        watch(int(sys.argv[2]))
        sys.exit(0)
    run_main(main)
