"""Ctrl-C ends a training after its step and keeps what is best so far; a second one breaks it off.

Broken off, or killed, it goes on later from its last checkpoint; ended early, it is over and its record says so.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import transformers


class EndedEarly(transformers.TrainerCallback):  # type: ignore[misc]
    """Ends the training when it was asked to.

    Attributes:
        asked: Whether somebody did.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002, ANN401
        """Of transformers' protocol."""
        if self.asked:
            control.should_training_stop = True

    @contextlib.contextmanager
    def listening(self, say: Callable[[str], None]) -> Iterator[None]:
        """Take the first SIGINT as the wish to end; the next one does what it always does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def asked(number: int, frame: object) -> None:  # noqa: ARG001
            self.asked = True
            signal.signal(signal.SIGINT, before)
            say("ending after this step with the best one so far; Ctrl-C again breaks off, to go on later")

        signal.signal(signal.SIGINT, asked)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
