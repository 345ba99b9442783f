"""The agent's hold on its dashboard: the supervised process, and the line on which its commands come in."""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections.abc import Callable

import msgspec

from stream_agent.config import AgentConfig, DashboardConfig
from stream_agent.errors import ConfigError
from stream_agent.messages import PlanRequest
from stream_agent.procedure import ProcedurePack
from stream_agent.sinks.dashboard.control import Command, Line, Session, ToDashboard
from stream_agent.source import redacted
from stream_agent.workers import Worker

SHORTEST_TOKEN = 16
PACKAGES = ("fastapi", "uvicorn", "websockets")
_READY_S = 30.0
_RESTARTS_PER_MINUTE = 3


class DashboardJob(msgspec.Struct, frozen=True):
    """What a dashboard is told to do.

    Attributes:
        config: `DashboardConfig` as JSON.
        planner: `PlannerConfig` as JSON, for the prompts that the inspector shows; empty when no model is asked.
        pack: Folder of the procedure pack.
        plans: ipc address of the agent's publisher.
        control: ipc address of the line to the agent.
        frames: Address that frames come from; empty when there are none.
        frame_keys: Directory of CURVE keys for it; empty without.
        title: Procedure and source, for the page.
        stream_id: Names the camera in kept verdicts.
        lockstep: Whether the session's clock is virtual.
    """

    config: str
    planner: str
    pack: str
    plans: str
    control: str
    frames: str
    frame_keys: str
    title: str
    stream_id: str
    lockstep: bool


class Dashboard:
    """What the agent calls; `worker` is the dashboard process."""

    def __init__(
        self, config: AgentConfig, pack: ProcedurePack, endpoint: Callable[[str], str], *, plans: str, lockstep: bool
    ) -> None:
        """Make the line; nothing is started yet.

        Raises:
            ConfigError: A package or the token is missing, or the folder of verdicts cannot be made.
        """
        dashboard, transport = config.sinks.dashboard, config.transport
        require_usable(dashboard)
        self._line: Line[ToDashboard, Command] = Line(endpoint("control"), Command, bind=True)
        job = DashboardJob(
            config=dashboard.model_dump_json(),
            planner=config.planner.model_dump_json() if config.planner.kind not in ("none", "scripted") else "",
            pack=str(pack.folder.resolve()),
            plans=plans,
            control=endpoint("control"),
            frames=transport.connect or endpoint("frames"),
            frame_keys=str(transport.keys.absolute()) if transport.connect and transport.keys else "",
            title=f"{pack.title} · {redacted(config.watched)}",
            stream_id=config.source.stream_id,
            lockstep=lockstep,
        )
        self._told_request = 0
        self._session: Session | None = None
        self.worker = Worker(
            "dashboard",
            "stream_agent.sinks.dashboard.server",
            lambda: msgspec.json.encode(job),
            restarts_per_minute=_RESTARTS_PER_MINUTE,
            ready_timeout_s=_READY_S,
        )

    def commands(self) -> list[Command]:
        """What users asked for since the last call."""
        return self._line.received()

    def tell(self, session: Session) -> None:
        """What the page shows of the session's settings."""
        self._line.send(session)

    def tell_request(self, request: PlanRequest | None) -> None:
        """What a model is asked, for the inspector; pictures stay here."""
        if request is None or request.request_id == self._told_request:
            return
        self._told_request = request.request_id
        pictures = tuple(msgspec.structs.replace(picture, rgb=b"") for picture in request.pictures)
        self._line.send(msgspec.structs.replace(request, pictures=pictures))

    def close(self) -> None:
        """Stop the process and let go of the line."""
        self.worker.stop()
        self._line.close()


def require_usable(dashboard: DashboardConfig) -> None:
    """Make sure, before anything starts, that the dashboard can be served.

    Raises:
        ConfigError: A package, the token or a file is missing, or the folder of verdicts cannot be written.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"sinks.dashboard.enabled=true needs {', '.join(missing)}, not installed; install stream-agent[dashboard]"
        )
    if dashboard.token_env is not None:
        token = os.environ.get(dashboard.token_env, "")
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
            raise ConfigError(
                f"sinks.dashboard.token_env={dashboard.token_env} holds {len(token)} characters, and a token needs "
                f"{SHORTEST_TOKEN} or more of plain ASCII; export {dashboard.token_env}=$(openssl rand -hex 16)"
            )
    _require_certificate(dashboard)
    if dashboard.verdicts is not None:
        try:
            dashboard.verdicts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"sinks.dashboard.verdicts={dashboard.verdicts} cannot be made ({error.strerror}); name a writable folder"
            ) from error
        if not os.access(dashboard.verdicts, os.W_OK):
            raise ConfigError(
                f"sinks.dashboard.verdicts={dashboard.verdicts} cannot be written; name a writable folder"
            )


def _require_certificate(dashboard: DashboardConfig) -> None:
    """Load the certificate and its key as the server will, which otherwise finds out when it is too late to say."""
    if dashboard.certificate is None or dashboard.certificate_key is None:
        return
    for path in (dashboard.certificate, dashboard.certificate_key):
        if not os.access(path, os.R_OK):
            raise ConfigError(
                f"sinks.dashboard: {path} cannot be read; name the PEM file of the certificate or its key"
            )
    try:
        # An empty pass phrase: without one, a key that is encrypted would be asked for on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            dashboard.certificate, dashboard.certificate_key, password=lambda: ""
        )
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"sinks.dashboard.certificate={dashboard.certificate} with certificate_key={dashboard.certificate_key} does not load "
            f"({getattr(error, 'reason', None) or error}); name PEM files of one certificate and of its own key without pass phrase"
        ) from error
