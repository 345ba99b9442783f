"""The dashboard of a running agent, over real sockets: what it shows, what it obeys, whom it refuses."""

from __future__ import annotations

import csv
import json
import struct
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.sinks.dashboard.agents import SMALL, TOKEN, DashboardAgent, StartDashboard, run_to_the_end


class Browser:
    """What a page does, without a page."""

    def __init__(self, port: int, **headers: str) -> None:
        self._connecting = connect(
            f"ws://127.0.0.1:{port}/live",
            origin=Origin(f"http://127.0.0.1:{port}"),
            additional_headers=headers,
            compression=None,
            max_size=None,
        )
        self.sections: dict[str, Any] = {}
        self.pictures: list[bytes] = []
        self.batches = 0

    def turn(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Take one batch and ask for the next."""
        batch: dict[str, Any] = json.loads(self.socket.recv(timeout_s))
        self.batches += 1
        self.sections.update(batch["sections"])
        if batch["picture"]:
            picture = self.socket.recv(timeout_s)
            assert isinstance(picture, bytes)
            self.pictures.append(picture)
        self.send(type="ack", n=batch["n"])
        return batch

    def until(self, wanted: Callable[[Browser], object], timeout_s: float = 20.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not wanted(self):
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s; knows {self.sections}"
            self.turn()

    def send(self, **message: object) -> None:
        self.socket.send(json.dumps(message))

    def __enter__(self) -> Browser:
        self.socket = self._connecting.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._connecting.__exit__(*error)


def test_a_browser_sees_plans_pictures_clips_and_the_state_of_the_machine(start_dashboard: StartDashboard) -> None:
    agent = start_dashboard(*SMALL)
    with Browser(agent.port) as browser:
        browser.until(
            lambda b: b.sections.get("plan") and b.pictures and b.sections["session"] and b.sections["health"]
        )
        plan = browser.sections["plan"]
        assert len(plan["ranked"]) == 3
        assert plan["valid_until_ns"] > plan["captured_ns"]
        assert browser.sections["hello"]["title"].startswith("Laparoscopic cholecystectomy")
        assert browser.sections["health"]["parts"]["dashboard"] in ("ok", "starting")
        captured_ms, _, _ = struct.unpack_from("<ddd", browser.pictures[0])
        batch = browser.turn()
        assert 0 <= batch["now_ms"] - captured_ms < 10_000
        assert browser.pictures[0][24:26] == b"\xff\xd8"  # a JPEG
        browser.until(lambda b: b.sections["clips"]["open"] is not None)
    assert agent.stop() == 0


def test_goal_pause_and_new_case_reach_the_agent(start_dashboard: StartDashboard) -> None:
    agent = start_dashboard(*SMALL)
    with Browser(agent.port) as browser:
        browser.until(lambda b: b.sections.get("plan") and b.sections["session"])
        browser.send(type="goal", text="Only look.")
        browser.until(lambda b: b.sections["session"]["goal"] == "Only look.")
        browser.send(type="pause", paused=True)
        browser.until(lambda b: b.sections["plan"]["abstained"] and "paused" in b.sections["plan"]["abstain_reason"])
        browser.send(type="pause", paused=False)
        browser.until(lambda b: not b.sections["plan"]["abstained"])
        browser.send(type="new_case", case_id="another one")
        browser.until(lambda b: b.sections["plan"]["case_id"] == "another one")
        browser.until(lambda b: b.sections["session"]["case_id"] == "another one")
    assert agent.stop() == 0


@pytest.mark.parametrize(
    "message",
    [
        {"type": "goal", "text": ""},
        {"type": "goal", "text": "x" * 601},
        {"type": "goal", "text": "two\nlines"},
        {"type": "new_case", "case_id": "../../etc"},
        {"type": "pause", "paused": "yes"},
        {"type": "pause", "paused": True, "also": 1},
        {"type": "run", "what": "rm"},
        {"type": "judge", "start_s": 0.0, "action": "Dissection"},
    ],
)
def test_what_is_no_command_is_refused_and_the_line_stays_open(
    message: dict[str, Any], one_agent: DashboardAgent
) -> None:
    with Browser(one_agent.port) as browser:
        browser.turn()
        browser.send(**message)
        browser.until(lambda b: "Refused" in b.sections.get("answer", {}).get("text", ""))


def test_verdicts_are_kept_as_a_label_file(start_dashboard: StartDashboard) -> None:
    agent = start_dashboard(*SMALL, "source.synthetic_speed=60", "sinks.dashboard.verdicts=kept")
    with Browser(agent.port) as browser:
        browser.until(lambda b: len(b.sections.get("clips", {}).get("closed", ())) >= 2 and b.sections["session"], 40)
        first, second = browser.sections["clips"]["closed"][:2]
        browser.send(type="judge", start_s=first["start_pts_s"], action=first["action"])
        browser.send(type="judge", start_s=second["start_pts_s"], action="")
        browser.until(lambda b: len(b.sections["verdicts"]) == 2)
        browser.send(type="judge", start_s=second["start_pts_s"], action="No such action")
        browser.until(lambda b: "no action of this procedure" in b.sections["answer"]["text"])
    rows = list(csv.DictReader((agent.folder / "kept" / "endoscope_case.csv").read_text().splitlines()))
    assert [row["action"] for row in rows] == [first["action"], ""]
    assert float(rows[0]["start_s"]) == pytest.approx(first["start_pts_s"], abs=0.011)
    assert len((agent.folder / "kept" / "verdicts.jsonl").read_text().splitlines()) == 2


def test_a_browser_that_never_answers_holds_up_nobody_and_gets_one_batch(one_agent: DashboardAgent) -> None:
    with Browser(one_agent.port) as frozen, Browser(one_agent.port) as other:
        frozen.socket.recv(5)
        other.until(lambda b: b.batches >= 30)
        rest = []
        try:
            while True:
                rest.append(frozen.socket.recv(0.3))
        except TimeoutError:
            pass
        assert len(rest) <= 1  # the picture of the first batch


def test_the_page_loads_nothing_from_elsewhere_and_says_so(one_agent: DashboardAgent) -> None:
    page = httpx.get(one_agent.url)
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200
    assert "default-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert "<script>" not in page.text
    assert " style=" not in page.text
    assert "//" not in page.text.replace("</", "")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert httpx.get(f"{one_agent.url}/static/app.js").headers["content-type"].startswith("text/javascript")
    assert httpx.get(f"{one_agent.url}/static/../server.py").status_code == 404
    assert httpx.get(f"{one_agent.url}/static/%2e%2e%2fserver.py").status_code == 404
    assert httpx.get(f"{one_agent.url}/docs").status_code == 404


def test_another_name_for_this_host_is_refused(one_agent: DashboardAgent) -> None:
    """DNS rebinding: a stranger's name that points here."""
    assert httpx.get(one_agent.url, headers={"Host": f"evil.example:{one_agent.port}"}).status_code == 421
    assert httpx.get(one_agent.url, headers={"Host": ""}).status_code in (400, 421)
    assert httpx.get(one_agent.url, headers={"Host": f"localhost:{one_agent.port}"}).status_code == 200
    with pytest.raises(InvalidStatus), Browser(one_agent.port, Host="evil.example"):
        pass


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", None])
def test_another_sites_page_gets_no_websocket(origin: Any, one_agent: DashboardAgent) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{one_agent.port}/live", origin=origin):
        pass
    assert refused.value.response.status_code == 403


def test_without_the_token_nothing_is_shown(start_dashboard: StartDashboard) -> None:
    agent = start_dashboard(*SMALL, "sinks.dashboard.token_env=DASHBOARD_TOKEN")
    assert httpx.get(agent.url).status_code == 401
    assert "needs its token" in httpx.get(agent.url).text
    for wrong in ("", "a", TOKEN[:-1], TOKEN + "x"):
        assert httpx.get(agent.url, params={"token": wrong}).status_code == 401
    assert httpx.get(agent.url, cookies={"stream_agent_dashboard": "0" * 64}).status_code == 401
    with pytest.raises(InvalidStatus), Browser(agent.port):
        pass
    right = httpx.get(agent.url, params={"token": TOKEN})
    assert right.status_code == 303
    assert right.headers["location"] == "/"
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    value = cookie.partition(";")[0]
    assert httpx.get(agent.url, headers={"Cookie": value}).status_code == 200
    with Browser(agent.port, Cookie=value) as browser:
        browser.turn()
    origin = {"Origin": agent.url}
    form = httpx.post(f"{agent.url}/login", data={"token": TOKEN}, headers=origin)
    assert form.status_code == 303
    assert httpx.post(f"{agent.url}/login", data={"token": "no"}, headers=origin).status_code == 401
    assert httpx.post(f"{agent.url}/login", data={"token": TOKEN}).status_code == 403
    assert TOKEN not in agent.told()


def test_a_dashboard_that_dies_comes_back_and_the_agent_goes_on(start_dashboard: StartDashboard) -> None:
    import psutil

    agent = start_dashboard(*SMALL)
    child = next(
        one for one in psutil.Process(agent.process.pid).children() if "dashboard.server" in " ".join(one.cmdline())
    )
    child.kill()
    deadline_s = time.monotonic() + 30
    while agent.told().count("dashboard: http://") < 2:
        assert time.monotonic() < deadline_s, agent.told()
        time.sleep(0.05)
    assert agent.process.poll() is None
    assert agent.stop() == 0


def test_an_address_that_is_taken_is_told_and_the_agent_goes_on_without(
    start_dashboard: StartDashboard, one_agent: DashboardAgent
) -> None:
    with pytest.raises(AssertionError, match="cannot listen on 127"):
        start_dashboard(*SMALL, f"sinks.dashboard.port={one_agent.port}", "source.loop=false", "source.stop_s=60")


def test_only_an_agent_with_a_dashboard_has_a_socket_that_takes_commands(start_dashboard: StartDashboard) -> None:
    agent = start_dashboard(*SMALL)
    sockets = list(agent.folder.rglob("control"))
    assert len(sockets) == 1
    assert sockets[0].parent.stat().st_mode & 0o077 == 0
    assert agent.stop() == 0
    assert not list(agent.folder.rglob("control"))


def test_in_lockstep_a_watched_session_gives_the_same_plans(start_dashboard: StartDashboard) -> None:
    lockstep = (*SMALL, "source.pace=max", "source.loop=false", "source.synthetic_duration_s=150", "sinks.jsonl=plans")
    agent = start_dashboard(*lockstep)
    with Browser(agent.port) as browser:
        browser.until(lambda b: b.sections.get("plan"))
    agent.process.wait(60)
    alone = run_to_the_end(agent.folder, *lockstep[:-1], "sinks.jsonl=alone")
    assert alone == 0
    assert (agent.folder / "plans").read_bytes() == (agent.folder / "alone").read_bytes()
