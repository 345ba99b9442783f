"""Nothing goes on after a call's deadline, and how each call ended is counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator

from stream_agent.errors import BackendError


class ExpiredError(BackendError):
    """The deadline of a call came before its answer."""


@contextlib.asynccontextmanager
async def until(deadline_ns: int) -> AsyncGenerator[None, None]:
    """Cancel what runs in here when `time.monotonic_ns()` reaches the deadline; 0 for none.

    Raises:
        ExpiredError: It did.
    """
    if not deadline_ns:
        yield
        return
    try:
        async with asyncio.timeout((deadline_ns - time.monotonic_ns()) / 1e9):
            yield
    except TimeoutError as error:
        raise ExpiredError("the answer did not come before its deadline and was given up") from error


@contextlib.contextmanager
def counted(calls: dict[str, int], kind: str) -> Iterator[None]:
    """Count what runs in here as one call of its kind, or as `expired`, `aborted` or `failed` if it ended so."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, ExpiredError):
            kind = "expired"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            kind = "aborted"
        else:
            kind = "failed"
        raise
    finally:
        calls[kind] = calls.get(kind, 0) + 1
