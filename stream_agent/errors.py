"""Every error this package raises on purpose.

StreamAgentError
├── ConfigError    a configuration value, file or procedure pack is wrong
├── SourceError    a video source cannot be opened or read
├── WireError      bytes from a socket or the ring are not one of our messages
├── WorkerError    a child process did not start, stopped, or ran out of restarts
├── RecordingError a recording cannot be written or read
├── GateError      a model may not be put to use: its record proves nothing, or it is worse
└── BackendError   a planner's model failed or gave an answer that does not meet the schema

A message names the value, the rule and the remedy. Whoever catches one prints `str(error)` and no traceback:
these are mistakes of the outside world, not of this code.
"""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are none of our messages: text that is no UTF-8 and deep nesting each in its own way."""


class StreamAgentError(Exception):
    """Base of all errors a user can cause or meet; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(StreamAgentError):
    """A configuration value, file or procedure pack is wrong."""

    exit_code = 2


class SourceError(StreamAgentError):
    """A video source cannot be opened or read.

    Attributes:
        retryable: Whether trying again later may help (a camera unplugged), or not (no such file).
        at_end: Whether the source is sound and only ends before the time that was asked for.
    """

    exit_code = 3

    def __init__(self, message: str, *, retryable: bool = False, at_end: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.at_end = at_end


class WireError(StreamAgentError):
    """Bytes from a socket or the ring are not one of our messages."""

    exit_code = 4


class WorkerError(StreamAgentError):
    """A child process did not start, stopped, or ran out of restarts."""

    exit_code = 5


class RecordingError(StreamAgentError):
    """A recording cannot be written or read, or is none."""

    exit_code = 7


class BackendError(StreamAgentError):
    """A planner's model failed, or its answer does not meet the schema.

    Attributes:
        lost: Whether the engine is gone for good, so that only a new process helps.
        too_long: Whether the prompt does not fit the model: the engine is well, and a new process would not help.
    """

    exit_code = 6

    def __init__(self, message: str, *, lost: bool = False, too_long: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        self.too_long = too_long


class GateError(StreamAgentError):
    """A model may not be put to use: its evaluation record proves nothing, or shows it to be worse."""

    exit_code = 8
