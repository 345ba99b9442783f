"""The planner worker process: sockets around `Serving`, one asyncio loop, heartbeats from a thread of their own.

An engine computes in threads or processes of its own, so aborts reach the loop while it does. One that blocks the loop leaves the
heartbeat alive, and the agent finds out by the deadline. An engine that is lost ends the process, and the agent starts it again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from stream_agent.child import ChildSide, die_with_parent
from stream_agent.config import PlannerConfig
from stream_agent.errors import UNDECODABLE, BackendError, ConfigError, StreamAgentError
from stream_agent.messages import FromWorker, ToWorker
from stream_agent.planner.scripted import ScriptedPlanner
from stream_agent.planner.serving import Serving, WorkerPlanner

_POLL_MS = 100
_CLOSE_S = 5.0

_decoder = msgspec.msgpack.Decoder(ToWorker)
_encoder = msgspec.msgpack.Encoder()


class WorkerJob(msgspec.Struct, frozen=True):
    """What a planner worker is told to do.

    Attributes:
        planner: `PlannerConfig` as JSON.
        actions: The closed set, in pack order.
        requests: ipc address to pull requests from.
        answers: ipc address to push answers to.
        pack: Folder of the procedure pack; only a language model needs it.
    """

    planner: str
    actions: tuple[str, ...]
    requests: str
    answers: str
    pack: str = ""


def build_planner(job: WorkerJob, config: PlannerConfig, notice: Callable[[str], None]) -> WorkerPlanner:
    """The planner of a job, not started; `notice` is told of events while it runs.

    Raises:
        ConfigError: The kind is none, or what it needs is missing.
    """
    if config.kind == "scripted":
        return ScriptedPlanner(job.actions, config.script, valid_s=config.valid_s)
    from stream_agent.planner.backends import build_backend
    from stream_agent.planner.language import LanguagePlanner
    from stream_agent.procedure import load_pack

    captioner = None
    if config.form == "indirect" and config.captioner is not None:
        captioner = build_backend(config.captioner, notice)
    return LanguagePlanner(load_pack(Path(job.pack)), config, build_backend(config, notice), captioner)


async def serve(job: WorkerJob, child: ChildSide) -> None:
    """Answer requests until told to stop.

    Raises:
        ConfigError: The planner cannot start, and a restart would not help.
        BackendError: The engine is lost, or did not start.
    """
    config = PlannerConfig.model_validate_json(job.planner)
    planner = build_planner(job, config, child.notice)
    try:
        for line in await planner.start():
            child.notice(line)
        await _answer(job, child, planner, config)
    finally:
        await asyncio.wait_for(planner.close(), _CLOSE_S)


async def _answer(job: WorkerJob, child: ChildSide, planner: WorkerPlanner, config: PlannerConfig) -> None:
    context = zmq.asyncio.Context()
    requests = context.socket(zmq.PULL)
    blocking: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
    answers = blocking.socket(zmq.PUSH)
    requests.linger = answers.linger = 0

    def send(message: FromWorker) -> None:
        try:
            answers.send(_encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            pass  # the agent does not listen any more; its deadline speaks for itself

    serving = Serving(planner, config, send, asyncio.get_running_loop().create_future())
    try:
        requests.connect(job.requests)
        answers.connect(job.answers)
        child.ready()
        while not child.stopped() and not serving.lost.done():
            if not await requests.poll(_POLL_MS):
                continue
            try:
                message = _decoder.decode(await requests.recv())
            except UNDECODABLE as error:
                child.notice(f"planner worker: a message that is no request was ignored ({error})")
                continue
            serving.take(message)
        if serving.lost.done():
            serving.lost.result()
    finally:
        await serving.close()
        requests.close()
        answers.close(linger=200)
        context.term()


def main() -> int:
    """Body of the planner worker process."""
    child = ChildSide()
    job = msgspec.json.decode(child.job, type=WorkerJob)
    try:
        asyncio.run(serve(job, child))
    except ConfigError as error:
        child.failed(str(error), error.exit_code)
        return error.exit_code
    except BackendError as error:  # a new process may help
        child.notice(f"planner worker: {error}")
        return error.exit_code
    except StreamAgentError as error:
        child.failed(str(error), error.exit_code)
        return error.exit_code
    finally:
        child.stop.set()
    return 0


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    # A process that an engine spawned from this one. It holds the GPU's memory, and vLLM's would outlive a killed worker.
    die_with_parent()
