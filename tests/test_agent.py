"""Whole agents: the real command line, real children, real sockets; killed, starved, fed garbage."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

from stream_agent.config import load_config

REPOSITORY = Path(__file__).resolve().parent.parent
PROMISED = set(
    "seq pts_s captured_ns published_ns valid_until_ns source abstained ranked progress safety current_action "  # noqa: SIM905
    "expected_onset_s chain spans_ms".split()
)
SMALL = ["source.synthetic_width=160", "source.synthetic_height=96", "sinks.console=off"]


class Running:
    """One agent process, and what it publishes."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.jsonl = folder / "plans.jsonl"
        self.summary = folder / "summary.json"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.subscribe(b"")
        self._socket.connect(f"ipc://{folder}/public")
        self.seen: list[dict[str, Any]] = []
        command = [sys.executable, str(REPOSITORY / "run_agent.py"), "run", "--config", "demo.yaml"]
        command += ["--summary", str(self.summary), f"sinks.jsonl={self.jsonl}"]
        command += [f"sinks.publisher.bind=ipc://{folder}/public", *SMALL, *settings]
        self.stderr = (folder / "stderr").open("w")
        self.process = subprocess.Popen(
            command, env={**os.environ, "XDG_RUNTIME_DIR": str(folder)}, stderr=self.stderr, cwd=folder
        )

    def child(self, module: str) -> psutil.Process:
        """The running child whose command line names `module`."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = [
                one
                for one in psutil.Process(self.process.pid).children()
                if one.status() != psutil.STATUS_ZOMBIE and any(module in part for part in one.cmdline())
            ]
            return bool(found)

        until(there, what=f"a child {module}")
        return found[0]

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 10.0) -> dict[str, Any]:
        """The next published message that is wanted."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._socket.poll(100):
                _, _, body = self._socket.recv().partition(b" ")
                message: dict[str, Any] = json.loads(body)
                self.seen.append(message)
                if wanted(message):
                    return message
        raise AssertionError(f"not published within {timeout_s} s; last: {self.seen[-1:]}; {self.errors()}")

    def plan(
        self, wanted: Callable[[dict[str, Any]], bool] = lambda _: True, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        return self.wait_for(lambda message: message["type"] == "plan" and wanted(message), timeout_s)

    def health(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 10.0) -> dict[str, Any]:
        return self.wait_for(lambda message: message["type"] == "health" and wanted(message), timeout_s)

    def plans(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.jsonl.read_text().splitlines()]

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.summary.read_text())
        return report

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def finish(self, timeout_s: float = 60.0) -> int:
        return self.process.wait(timeout_s)

    def interrupt(self) -> float:
        """Ctrl-C; how long the agent took to stop."""
        begun_s = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        assert self.finish(10) == 0, self.errors()
        return time.monotonic() - begun_s

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.stderr.close()
        self._socket.close()
        self._context.term()


def until(condition: Callable[[], bool], *, timeout_s: float = 10.0, what: str = "it") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout_s} s"
        time.sleep(0.005)  # the pause between two looks, not a wait for a result


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    agents: list[Running] = []

    def begin(*settings: str) -> Running:
        folder = tmp_path / f"{len(agents)}"
        folder.mkdir()
        agents.append(Running(folder, *settings))
        return agents[-1]

    yield begin
    for agent in agents:
        agent.close()


def balanced(report: dict[str, Any]) -> bool:
    frames = report["frames"]
    return bool(frames["published"] == frames["received"] + sum(frames["dropped"].values()))


# ---------------------------------------------------------------------------------------------------- the contract


def test_lockstep_gives_the_same_plans_on_every_run(start: Callable[..., Running]) -> None:
    runs = [start("source.pace=max", "source.synthetic_duration_s=20") for _ in range(2)]
    assert [run.finish() for run in runs] == [0, 0], runs[0].errors()
    assert runs[0].jsonl.read_bytes() == runs[1].jsonl.read_bytes()
    plans = runs[0].plans()
    report = runs[0].report()
    assert len(plans) == report["plans"]["published"] == report["frames"]["received"] > 500
    assert len({plan["current_action"] for plan in plans}) > 1
    assert balanced(report)
    assert all(set(plan) >= PROMISED for plan in plans)
    for plan in plans:
        assert plan["abstained"] or len({entry["action"] for entry in plan["ranked"]}) == 3
        assert plan["current_action"] not in [entry["action"] for entry in plan["ranked"]]
        assert [report["rung"] for report in plan["rungs"]] == ["fused", "vlm", "statistical", "abstain"]
    assert {"p50", "p95", "p99", "max"} <= set(report["latency_ms"]["perceive"])
    assert "p99" in report["age_ms"]


def test_lockstep_with_a_worker_is_the_same_on_every_run(start: Callable[..., Running]) -> None:
    script = "planner.script=[{behaviour: answer, delay_s: 0.01}, {behaviour: error}, {behaviour: garbage}]"
    settings = ("source.pace=max", "source.synthetic_duration_s=10", "planner.kind=scripted", "planner.charged_ms=200")
    runs = [start(*settings, script) for _ in range(2)]
    assert [run.finish() for run in runs] == [0, 0], runs[0].errors()
    assert runs[0].jsonl.read_bytes() == runs[1].jsonl.read_bytes()
    from_worker = [plan for plan in runs[0].plans() if plan["source"] == "vlm"]
    assert from_worker
    assert all(plan["published_ns"] - plan["captured_ns"] >= 200e6 for plan in from_worker)


@pytest.mark.parametrize("form", ["direct", "indirect"])
def test_lockstep_with_a_language_model_is_the_same_on_every_run(
    start: Callable[..., Running], shared_data: Path, form: str
) -> None:
    """Rankings, captions, chains, rationales and what came of earlier plans: all of it on the virtual clock."""
    settings = (
        f"source.uri={shared_data / 'video' / 'VID43_147_and_VID42_3625_a.mp4'}",
        "source.pace=max",
        "source.stop_s=12",
        "planner.kind=rehearsed",
        f"planner.form={form}",
        "planner.charged_ms=200",
        "planner.rehearsed_scores=[{delay_s: 0.01}, {}, {behaviour: nan}, {}]",
    )
    runs = [start(*settings) for _ in range(2)]
    assert [run.finish(100) for run in runs] == [0, 0], runs[0].errors()
    assert runs[0].jsonl.read_bytes() == runs[1].jsonl.read_bytes()
    fused = [plan for plan in runs[0].plans() if plan["source"] == "fused"]
    assert fused and all(plan["published_ns"] - plan["captured_ns"] >= 200e6 for plan in fused)
    assert any(plan["rationale_age_s"] is not None for plan in fused)
    assert any(len(plan["chain"]) == 3 for plan in fused)
    assert all((plan["caption_age_s"] is not None) == (form == "indirect") for plan in fused)


def test_real_video_is_planned_from_its_pixels_alone(start: Callable[..., Running], shared_data: Path) -> None:
    video = shared_data / "video" / "VID43_147_and_VID42_3625_a.mp4"
    run = start(f"source.uri={video}", "source.pace=max", "source.stop_s=12")
    assert run.finish() == 0, run.errors()
    plans = run.plans()
    assert run.report()["frames"]["published"] == 300
    assert len(plans) == 120 - 20 or len(plans) >= 100
    assert any(plan["current_action"] for plan in plans)


def test_a_black_passage_is_no_ground_for_a_plan(start: Callable[..., Running], shared_data: Path) -> None:
    video = shared_data / "video" / "VID15_1911_and_VID18_1261_a.mp4"
    run = start(f"source.uri={video}", "source.pace=max", "source.start_s=25")
    assert run.finish() == 0, run.errors()
    dark = [plan for plan in run.plans() if plan["pts_s"] > 28]
    assert dark and all(plan["abstained"] and plan["abstain_reason"] == "gate: black" for plan in dark)
    assert all(plan["ranked"] == [] for plan in dark)


def test_a_gap_in_media_time_takes_the_plan_down_when_it_expires(start: Callable[..., Running], tmp_path: Path) -> None:
    """In lockstep the clock jumped over the expiry, and a plan of 104 s stood as current."""
    table = tmp_path / "signals.csv"
    head = "second,phase,Grasper,Bipolar,Hook,Scissors,Clipper,Irrigator,SpecimenBag\n"
    table.write_text(head + "".join(f"{second},Preparation,1,0,0,0,0,0,0\n" for second in (0, 1, 9)))
    run = start(f"source.uri={table}", "source.pace=max")
    assert run.finish() == 0, run.errors()
    told = [(plan["pts_s"], plan["published_ns"] / 1e9, plan["abstain_reason"]) for plan in run.plans()]
    assert [entry[1] for entry in told] == pytest.approx([0, 1, 3, 5, 7, 9])
    assert [entry[2] for entry in told] == ["", "", "no new frame", "no new frame", "no new frame", ""]


def test_another_hosts_frames_are_planned_from_over_an_encrypted_socket(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """The grabber of a remote source is started by hand; the agent once took its frames for the drawn scene's."""
    agent = [sys.executable, str(REPOSITORY / "run_agent.py")]
    subprocess.run([*agent, "keys", "--out", str(tmp_path / "keys")], check=True, stdout=subprocess.DEVNULL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    run = start(f"transport.connect={address}", f"transport.keys={tmp_path}/keys/agent", "transport.stall_s=0.5")
    run.health(lambda message: "nothing yet from" in message["parts"]["source"])
    grabber = subprocess.Popen([*agent, "grab", f"transport.bind={address}", f"transport.keys={tmp_path}/keys", *SMALL])
    try:
        run.plan()
        run.health(lambda message: message["parts"]["source"] == "ok")
        grabber.kill()
        run.health(lambda message: "no frame for" in message["parts"]["source"])
        run.plan(lambda plan: plan["abstained"])
    finally:
        grabber.kill()
        grabber.wait()
    run.interrupt()
    assert balanced(run.report())


def test_a_remote_source_is_recognised_from_its_pixels() -> None:
    """Its own `source.uri` is not what an agent watches then; the drawn scene's labels were taken for the truth."""
    remote = load_config(None, ["transport.connect=tcp://127.0.0.1:5570"])
    assert remote.watched == "tcp://127.0.0.1:5570"
    assert load_config(None, []).watched == "synthetic:"


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("source.uri=/no/such/file.mp4", "/no/such/file.mp4"),
        ("procedure.pack=no_such_pack", "no_such_pack"),
        ("sinks.jsonl=/no/such/folder/plans.jsonl", "/no/such/folder"),
        ("sinks.publisher.bind=tcp://0.0.0.0:5999", "keys"),
        ("memory.journal=/no/such/folder/journal", "memory.journal"),
        ("recogniser.model=/no/such/model.onnx", "/no/such/model.onnx"),
    ],
)
def test_a_mistake_is_one_message_and_no_trace(start: Callable[..., Running], setting: str, said: str) -> None:
    kind = ["recogniser.kind=onnx"] if "model" in setting else []
    run = start(*kind, setting)
    assert run.finish(20) != 0
    assert said in run.errors()
    assert "Traceback" not in run.errors()
    assert "error: " in run.errors()


def test_a_journal_cannot_bring_in_an_action_that_the_pack_does_not_know(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    clip = {"action": "Reboot The Robot", "start_pts_s": 0.0, "end_pts_s": 9.0, "confidence": 1.0}
    journal.write_text(f'{{"case_id":"case","pack":"cholecystectomy"}}\n{json.dumps(clip)}\n')
    run = start(f"memory.journal={journal}")
    assert run.finish(20) == 2
    assert "Reboot The Robot" in run.errors() and "Traceback" not in run.errors()


# ---------------------------------------------------------------------------------------------------- faults


def test_ctrl_c_stops_cleanly_within_two_seconds(start: Callable[..., Running]) -> None:
    run = start("planner.kind=scripted")
    run.plan()
    children = psutil.Process(run.process.pid).children()
    assert run.interrupt() < 2.0
    assert not psutil.wait_procs(children, timeout=1)[1]
    assert balanced(run.report())
    assert not list((run.folder / "stream_agent").iterdir())


def test_signals_on_top_of_each_other_stop_it_just_as_well(start: Callable[..., Running]) -> None:
    """`timeout` sends two; the second found the event half set by the first and waited for it for ever."""
    run = start()
    run.plan()
    for _ in range(200):
        run.process.send_signal(signal.SIGTERM)
    assert run.finish(10) == 0, run.errors()


def test_a_killed_grabber_is_back_and_every_frame_is_accounted_for(start: Callable[..., Running]) -> None:
    run = start()
    first = run.plan()
    run.child("grabber").kill()
    killed_s = time.monotonic()
    health = run.health(lambda message: message["state"] == "degraded")
    assert time.monotonic() - killed_s < 1.0
    assert "signal 9" in health["parts"]["source"]
    later = run.plan(lambda plan: plan["session_id"] != first["session_id"])
    assert later["pts_s"] > first["pts_s"], "media time goes on"
    run.health(lambda message: message["state"] == "ok" and message["restarts"].get("grabber") == 1)
    run.interrupt()
    assert balanced(run.report())


def test_a_plan_is_never_current_past_its_expiry_even_when_frames_stop(start: Callable[..., Running]) -> None:
    run = start("planner.valid_s=0.6", "planner.deadline_ms=500")
    run.plan()
    grabber = run.child("grabber")
    grabber.send_signal(signal.SIGSTOP)
    try:
        last = run.plan(lambda plan: plan["abstained"])
        stopped = [plan for plan in run.seen if plan["type"] == "plan"][-2]
        assert last["published_ns"] - stopped["valid_until_ns"] < 0.2e9, "the expired plan was replaced at once"
        assert "source" in last["abstain_reason"] or "no new frame" in last["abstain_reason"]
        run.health(lambda message: "no sign of life" in message["parts"]["source"], timeout_s=2)
    finally:
        grabber.send_signal(signal.SIGCONT)
    run.plan(lambda plan: not plan["abstained"])
    run.interrupt()
    assert all(plan["published_ns"] <= plan["valid_until_ns"] for plan in run.plans())


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("hang", "missed its deadline"), ("crash", "exit code 13"), ("error", "the script says"), ("garbage", "ranks 2")],
)
def test_the_ladder_drops_a_rung_and_says_why(start: Callable[..., Running], behaviour: str, reason: str) -> None:
    run = start(
        "planner.kind=scripted",
        f"planner.script=[{{behaviour: answer}}, {{behaviour: {behaviour}}}]",
        "planner.valid_s=0.8",
        "planner.deadline_ms=300",
        "scheduler.min_interval_s=0.1",
    )
    run.plan(lambda plan: plan["source"] == "vlm")
    fallen = run.plan(lambda plan: plan["source"] == "statistical" and reason in plan["rungs"][1]["reason"])
    assert not fallen["abstained"]
    run.plan(lambda plan: plan["source"] == "vlm", timeout_s=15)
    run.interrupt()
    assert balanced(run.report())
    assert run.report()["worker"]["missed"] >= 1
    assert all(plan["published_ns"] <= plan["valid_until_ns"] for plan in run.plans())


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("nan", "no numbers"), ("oom", "out of memory"), ("dead", "exit code 6"), ("stuck", "missed its deadline")],
)
def test_a_language_model_that_fails_costs_a_rung_and_comes_back(
    start: Callable[..., Running], behaviour: str, reason: str
) -> None:
    run = start(
        "planner.kind=rehearsed",
        f"planner.rehearsed_scores=[{{}}, {{}}, {{}}, {{behaviour: {behaviour}}}]",
        "planner.chain=false",
        "planner.valid_s=0.8",
        "planner.deadline_ms=300",
        "scheduler.min_interval_s=0.1",
    )
    run.plan(lambda plan: plan["source"] == "fused")
    fallen = run.plan(lambda plan: plan["source"] == "statistical" and reason in plan["rungs"][1]["reason"])
    assert not fallen["abstained"] and fallen["rungs"][0]["reason"]
    back = run.plan(lambda plan: plan["source"] == "fused", timeout_s=20)
    assert back["fusion"]["model_weight"] == 0.2 and back["hashes"]["prompt"]
    run.interrupt()
    assert all(plan["published_ns"] <= plan["valid_until_ns"] for plan in run.plans())


def test_a_workers_answer_is_taken_down_when_it_expires(start: Callable[..., Running]) -> None:
    """Its abstention carried the same request id and was taken for the answer on display, which stayed up for ever."""
    run = start(
        "planner.kind=scripted", "planner.valid_s=1", "planner.deadline_ms=300", "scheduler.min_interval_s=0.05"
    )
    run.plan(lambda plan: plan["source"] == "vlm")
    grabber = run.child("grabber")
    grabber.send_signal(signal.SIGSTOP)
    try:
        run.plan(lambda plan: plan["abstained"])
    finally:
        grabber.send_signal(signal.SIGCONT)
    run.interrupt()


def test_a_worker_that_keeps_dying_is_given_up_and_the_agent_goes_on(start: Callable[..., Running]) -> None:
    run = start("planner.kind=scripted", "planner.script=[{behaviour: crash}]", "planner.restarts_per_minute=1")
    health = run.health(lambda message: "failed" in message["parts"]["planner worker"])
    assert health["state"] == "degraded"
    run.plan(lambda plan: plan["source"] == "statistical" and "failed" in plan["rungs"][1]["reason"])
    run.interrupt()
    assert "giving it up" in run.errors()


def test_a_killed_agent_leaves_nothing_behind_and_loses_no_closed_clip(start: Callable[..., Running]) -> None:
    run = start("memory.journal=journal", "planner.kind=scripted", "source.synthetic_speed=60")
    closed = run.wait_for(lambda message: message["type"] == "clip" and message["kind"] == "closed")
    children = psutil.Process(run.process.pid).children()
    assert len(children) == 2
    run.process.kill()
    assert not psutil.wait_procs(children, timeout=3)[1], "the kernel ends the children of a dead agent"
    journal = (run.folder / "journal").read_text()
    assert json.dumps(closed["clip"]["start_pts_s"]) in journal

    again = start(f"memory.journal={run.folder}/journal", "source.synthetic_speed=60", f"memory.case_id={'case'}")
    memory = again.wait_for(lambda message: message["type"] == "memory" and message["clips"])
    assert memory["clips"][0]["action"] == closed["clip"]["action"]
    again.interrupt()


def test_a_full_disk_is_told_and_survived(start: Callable[..., Running]) -> None:
    run = start("memory.journal=/dev/full")
    run.health(lambda message: "disk" in message["parts"]["journal"] or "space" in message["parts"]["journal"])
    run.plan()
    run.interrupt()


def test_random_bytes_on_every_socket_never_stop_a_process(start: Callable[..., Running]) -> None:
    run = start("planner.kind=scripted", "source.synthetic_duration_s=120")
    run.plan(lambda plan: plan["source"] == "vlm")
    children = {one.pid for one in psutil.Process(run.process.pid).children()}
    paths = [path for path in (run.folder / "stream_agent").glob("*/*") if path.is_socket()]
    assert {path.name for path in paths} >= {"frames", "plans", "requests-0", "answers-0"}
    rng = random.Random(3)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for path in paths:
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(str(path))
                try:
                    raw.sendall(rng.randbytes(rng.randrange(1, 4000)))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # refused by the protocol's greeting, as it should be
        for kind in (zmq.PUSH, zmq.SUB, zmq.XSUB, zmq.PUB):
            with context.socket(kind) as peer:
                peer.linger = 0
                peer.connect(f"ipc://{path}")
                if kind != zmq.SUB:
                    for _ in range(50):
                        try:
                            peer.send(rng.randbytes(rng.randrange(0, 400)), zmq.NOBLOCK)
                        except zmq.Again:
                            break
    context.destroy(linger=0)
    seq = run.plan()["seq"]
    run.plan(lambda plan: plan["seq"] > seq)
    run.plan(lambda plan: plan["source"] == "vlm")
    assert {one.pid for one in psutil.Process(run.process.pid).children()} == children
    run.interrupt()
    assert balanced(run.report())


def test_the_grabber_waits_for_nobody(start: Callable[..., Running]) -> None:
    """The agent is stopped for two of four seconds; the source's clock goes on, and what was missed is counted."""
    run = start("source.synthetic_duration_s=4")
    run.plan()
    begun_s = time.monotonic()
    run.process.send_signal(signal.SIGSTOP)
    grabber = run.child("grabber")
    spent_s = sum(grabber.cpu_times()[:2])
    until(lambda: time.monotonic() - begun_s > 2.0, what="two seconds")  # the stimulus itself, not a wait for a result
    assert sum(grabber.cpu_times()[:2]) > spent_s, "it went on publishing"
    run.process.send_signal(signal.SIGCONT)
    assert run.finish(10) == 0
    assert time.monotonic() - begun_s < 5.5
    report = run.report()
    assert report["frames"]["published"] == 120
    assert balanced(report)
    missed = report["frames"]["dropped"]
    assert missed.get("superseded", 0) + missed.get("overwritten", 0) + missed.get("lost", 0) >= 40


def test_nothing_leaves_the_host_that_no_configuration_line_names(start: Callable[..., Running]) -> None:
    run = start("planner.kind=scripted")
    run.plan(lambda plan: plan["source"] == "vlm")
    agent = psutil.Process(run.process.pid)
    for process in (agent, *agent.children(recursive=True)):
        assert process.net_connections(kind="inet") == []
    run.interrupt()


def test_two_agents_at_once_do_not_disturb_each_other(start: Callable[..., Running]) -> None:
    runs = [start(), start()]
    for run in runs:
        run.plan(lambda plan: plan["pts_s"] > 5)
    for run in runs:
        run.interrupt()
        assert balanced(run.report())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills_at_random_moments(start: Callable[..., Running]) -> None:
    """Grabber, worker and agent killed at random: no zombie, no shared memory, no closed clip lost."""
    rng = random.Random(11)
    told: list[dict[str, Any]] = []
    run: Running | None = None
    journal = ""
    kills = 0
    while kills < 50:
        if run is None:
            run = start(
                *([f"memory.journal={journal}"] if journal else ["memory.journal=journal"]),
                "planner.kind=scripted",
                "planner.restarts_per_minute=100",
                "source.restarts_per_minute=100",
                "source.synthetic_speed=60",
                "source.synthetic_duration_s=600",
            )
            journal = journal or str(run.folder / "journal")
        first = len(run.seen)
        moment = rng.randrange(1, 40)
        for _ in range(moment):
            run.plan()
        victim = rng.choice(["stream_agent.grabber", "stream_agent.planner.worker", "agent"])
        kills += 1
        if victim != "agent":
            run.child(victim).kill()
            run.plan(lambda plan: plan["source"] == "statistical")
        told += [m["clip"] for m in run.seen[first:] if m["type"] == "clip" and m["kind"] == "closed"]
        if victim == "agent":
            children = psutil.Process(run.process.pid).children()
            run.process.kill()
            run.process.wait()
            assert not psutil.wait_procs(children, timeout=3)[1]
            run = None
    if run is not None:
        children = psutil.Process(run.process.pid).children()
        assert run.interrupt() < 2.0
        assert not psutil.wait_procs(children, timeout=1)[1]
    kept = [json.loads(line) for line in Path(journal).read_text().splitlines()[1:]]
    lengths = [(clip["action"], round(clip["end_pts_s"] - clip["start_pts_s"], 6)) for clip in kept]
    missing = [c for c in told if (c["action"], round(c["end_pts_s"] - c["start_pts_s"], 6)) not in lengths]
    assert told and not missing
    assert not [path for path in Path("/dev/shm").iterdir() if "stream_agent" in path.name]
