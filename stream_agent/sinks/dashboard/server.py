"""The dashboard process: one page, its live WebSocket, and the browsers' commands.

    publisher, private line ─▶ state ─sections▶ hub ─▶ one mailbox per browser ─▶ WebSocket
    grabber's frames ─▶ pictures ──────────────▶
    WebSocket ─commands, checked▶ private line ─▶ agent

Everything but the pictures is done by one thread; the process is nicer than the console: an old page is better than a late plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import uvicorn
from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect

from stream_agent import __version__
from stream_agent.child import ChildSide
from stream_agent.config import DashboardConfig
from stream_agent.errors import UNDECODABLE, ConfigError, StreamAgentError
from stream_agent.procedure import load_pack
from stream_agent.sinks.dashboard.control import Command, Line, NewCase, Pause, SetGoal, ToDashboard
from stream_agent.sinks.dashboard.guard import App, Guard, allowed_hosts
from stream_agent.sinks.dashboard.hub import Client, Hub
from stream_agent.sinks.dashboard.picture import PictureReader
from stream_agent.sinks.dashboard.process import DashboardJob
from stream_agent.sinks.dashboard.prompt_text import prompt_renderer
from stream_agent.sinks.dashboard.state import DashboardState
from stream_agent.sinks.dashboard.verdicts import VerdictBook
from stream_agent.sinks.subscriber import Subscriber

_STATIC = Path(__file__).with_name("static")
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_LOOK_S = 0.05
_NICENESS = 10
_FORCE_S = 0.3
_LONGEST_MESSAGE = 16_384
_PING_S = 20.0
_TOO_MANY = 1013


class Ack(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="ack"):
    """The browser has dealt with batch `n`."""

    n: int


class Judge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="judge"):
    """The closed clip that began at `start_s` is `action`; empty: whatever it is, not what it was recognised as."""

    start_s: float
    action: str


FromBrowser: TypeAlias = Ack | Judge | SetGoal | NewCase | Pause
_from_browser: msgspec.json.Decoder[FromBrowser] = msgspec.json.Decoder(FromBrowser)


class Server:
    """State, browsers and the agent's line, for one event loop."""

    def __init__(self, job: DashboardJob, config: DashboardConfig) -> None:
        """Connect to the agent.

        Raises:
            ConfigError: The pack or the kept verdicts cannot be read.
        """
        pack = load_pack(Path(job.pack))
        self.job = job
        self._actions = pack.action_names
        self.hub = Hub()
        self.state = DashboardState(
            lockstep=job.lockstep,
            codes={action.name: action.code for action in pack.actions},
            prompt_of=prompt_renderer(job.planner, Path(job.pack)) if job.planner else None,
        )
        try:
            self._book = VerdictBook(config.verdicts, job.stream_id) if config.verdicts is not None else None
        except OSError as error:
            raise ConfigError(
                f"sinks.dashboard.verdicts={config.verdicts} cannot be read ({error.strerror}); name another folder"
            ) from error
        self._subscriber = Subscriber(job.plans)
        self._line: Line[Command, ToDashboard] = Line(job.control, ToDashboard, bind=False)
        self._picture: bytes | None = None
        self._hello = msgspec.json.encode(
            {
                "title": job.title,
                "version": __version__,
                "lockstep": job.lockstep,
                "actions": [{"name": action.name, "code": action.code} for action in pack.actions],
                "instruments": pack.instruments,
                "verdicts": self._book is not None,
                "asks_a_model": bool(job.planner),
            }
        )

    def look(self) -> None:
        """Take in what came from the agent and put it into the mailboxes."""
        now_ns = time.monotonic_ns()
        for message in self._subscriber.newest(0.0):
            self.state.take(message, arrived_ns=now_ns)
        for private in self._line.received():
            self.state.take_private(private, arrived_ns=now_ns)
        if self._book is not None:
            self.state.take_verdicts(self._book.of_case(self.state.case_id))
        picture, self._picture = self._picture, None
        changed = self.state.changed() if len(self.hub) else {}
        if changed or picture is not None:
            self.hub.broadcast(changed, picture)

    def take_picture(self, picture: bytes | None) -> None:
        """The newest picture; None when the newest frame has none."""
        self.state.take_pixels(there_are=picture is not None)
        self._picture = picture

    def times(self, now_ns: int) -> bytes:
        """What every batch says of time."""
        heard_ms = self.state.heard_ms()
        return b'"now_ms":%.3f,"session_ms":%.3f,"heard_ms":%s' % (
            now_ns / 1e6,
            self.state.session_ms(now_ns),
            b"null" if heard_ms is None else b"%.3f" % heard_ms,
        )

    async def attend(self, browser: WebSocket) -> None:
        """One browser, until it leaves."""
        client = self.hub.join({"hello": self._hello, **self.state.everything()})
        if client is None:
            await browser.close(_TOO_MANY)
            return
        await browser.accept()
        tasks = {asyncio.create_task(client.write(browser, self)), asyncio.create_task(self._read(browser, client))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.exception()  # its connection is gone, one way or the other
        finally:
            self.hub.leave(client)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, browser: WebSocket, client: Client) -> None:
        while True:
            text = await browser.receive_text()
            try:
                message = _from_browser.decode(text)
            except UNDECODABLE as error:
                self._answer(client, f"Refused: {error}")
                continue
            match message:
                case Ack(number):
                    client.ack(number)
                case Judge(start_s, action):
                    self._judge(client, start_s, action)
                case SetGoal() | NewCase() | Pause():
                    if not self._line.send(message):
                        self._answer(client, "Refused: the agent takes no commands at the moment")

    def _judge(self, client: Client, start_s: float, action: str) -> None:
        found = self.state.clip_at(start_s)
        if self._book is None:
            self._answer(client, "Refused: set sinks.dashboard.verdicts=FOLDER to keep verdicts")
        elif found is None:
            self._answer(client, "Refused: this label is not known any more")
        elif action and action not in self._actions:
            self._answer(client, f"Refused: {action[:40]} is no action of this procedure")
        else:
            recognised, end_s = found
            try:
                verdict = self._book.judge(
                    case_id=self.state.case_id, start_s=start_s, end_s=end_s, recognised=recognised, action=action
                )
            except OSError as error:
                self._answer(client, f"Not kept: {error.strerror}")
                return
            self._answer(client, f"{recognised}: {verdict.word}")

    def _answer(self, client: Client, text: str) -> None:
        client.put({"answer": msgspec.json.encode({"text": text, "at_ms": time.monotonic_ns() / 1e6})})

    def close(self) -> None:
        """Let go of the agent."""
        self._subscriber.close()
        self._line.close()


def application(server: Server, config: DashboardConfig, token: str) -> App:
    """The page, its files and its WebSocket, guarded."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    files = {path.name: path.read_bytes() for path in _STATIC.iterdir() if path.suffix in _TYPES}

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:
        return Response(files["index.html"], media_type=_TYPES[".html"])

    @app.api_route("/static/{name}", methods=["GET", "HEAD"])
    async def file(name: str) -> Response:
        content = files.get(name)
        if content is None:
            return Response("no such file", status_code=404, media_type="text/plain")
        return Response(content, media_type=_TYPES[Path(name).suffix])

    @app.websocket("/live")
    async def live(browser: WebSocket) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            await server.attend(browser)

    return Guard(
        app,
        hosts=allowed_hosts(config.host, config.allowed_hosts),
        token=token,
        secure=config.certificate is not None,
        login=files["login.html"],
    )


class _Uvicorn(uvicorn.Server):
    """Without signal handlers: the lifeline and SIGTERM are `ChildSide`'s."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(config: DashboardConfig) -> socket.socket:
    """The listening socket.

    Raises:
        ConfigError: The address is taken or not of this host.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the dashboard cannot listen on {config.host}:{config.port} ({error.strerror}); choose another "
            "sinks.dashboard.port, or 0 for a free one"
        ) from error
    return listener


def address(config: DashboardConfig, listener: socket.socket) -> str:
    """Where the page is, for a person."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.certificate is not None else 'http'}://{host}:{listener.getsockname()[1]}/"


async def serve(server: Server, config: DashboardConfig, listener: socket.socket, token: str, child: ChildSide) -> None:
    """Until told to stop."""
    web = _Uvicorn(
        uvicorn.Config(
            application(server, config, token),
            http="h11",
            ws="websockets-sansio",
            ws_max_size=_LONGEST_MESSAGE,
            ws_per_message_deflate=False,
            ws_ping_interval=_PING_S,
            ws_ping_timeout=_PING_S,
            lifespan="off",
            access_log=False,  # it would hold tokens
            log_config=None,
            server_header=False,
            ssl_certfile=config.certificate,
            ssl_keyfile=config.certificate_key,
        )
    )
    loop = asyncio.get_running_loop()
    reader = PictureReader(
        server.job.frames,
        keys=Path(server.job.frame_keys) if server.job.frame_keys else None,
        fps=config.fps,
        max_pixels=config.max_pixels,
        wanted=lambda: len(server.hub) > 0,
        taken=lambda picture: _call(loop, server, picture),
        stopped=child.stop,
    )
    serving = asyncio.create_task(web.serve(sockets=[listener]))
    reader.start()
    child.notice(f"dashboard: {address(config, listener)}" + (" (token needed)" if token else ""))
    child.ready()
    while not (child.stopped() or serving.done()):
        server.look()
        await asyncio.sleep(_LOOK_S)
    web.should_exit = True
    loop.call_later(_FORCE_S, lambda: setattr(web, "force_exit", True))
    await serving
    child.stop.set()
    reader.join(_FORCE_S)


def _call(loop: asyncio.AbstractEventLoop, server: Server, picture: bytes | None) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(server.take_picture, picture)


def _give_way() -> None:
    """Leave the processor to the agent: a batch process (Linux) does not interrupt another when it wakes up."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
        if sys.platform == "linux":
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> int:
    """Serve until told to stop; the exit code."""
    child = ChildSide()
    job = msgspec.json.decode(child.job, type=DashboardJob)
    config = DashboardConfig.model_validate_json(job.config)
    _give_way()
    token = os.environ.get(config.token_env, "") if config.token_env else ""
    try:
        listener = listen(config)
        server = Server(job, config)
    except StreamAgentError as error:
        child.notice(str(error))
        child.failed(str(error), error.exit_code)
        return error.exit_code
    try:
        asyncio.run(serve(server, config, listener, token, child))
    finally:
        server.close()
        listener.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
