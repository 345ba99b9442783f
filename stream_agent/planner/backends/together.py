"""The prompts of one batch side by side: all answers, or the one failure that says most."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from stream_agent.errors import BackendError

AnswerT = TypeVar("AnswerT")


async def together(calls: Iterable[Coroutine[Any, Any, AnswerT]]) -> list[AnswerT]:
    """Every answer in order; when one fails, the others are cancelled.

    Raises:
        BackendError: The first failure, one of a lost engine before any other.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        known, unknown = failures.split(BackendError)
        if known is None or unknown is not None:
            raise
        told = known.exceptions
        raise next((error for error in told if isinstance(error, BackendError) and error.lost), told[0]) from failures
    return [task.result() for task in tasks]
