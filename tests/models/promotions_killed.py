"""Promotions that die, each a little later than the one before; a process of its own, started by test_registry.py.

    promotions_killed.py ROOT CANDIDATE RECORD

ROOT/0 is a registry. For N = 1, 2, … it is copied to ROOT/N, and a forked child promotes CANDIDATE there and kills itself with
SIGKILL at the Nth touch of the disk, counting before and after each; the first child that lives to its end is the last.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream_agent.models.model_files import file_sha256, model_files
from stream_agent.models.registry import Registry, Version

left = 0


def put(candidate: Path, record: Path, folder: Path) -> Version:
    """What a promotion does to the disk, after it was judged."""
    registry = Registry(folder)
    with registry.changing():
        return registry.add(
            "statistical",
            "cholecystectomy",
            source=candidate,
            model=model_files(candidate),
            cards=[candidate / "model_card.md"],
            record=record,
            record_sha256=file_sha256(record),
            base="",
            findings=[],
        )


def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, with a tick before and after."""

    def called(*arguments: Any, **options: Any) -> Any:
        tick()
        result = real(*arguments, **options)
        tick()
        return result

    return called


def tick() -> None:
    """Die at the last one."""
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: int, candidate: Path, record: Path, registry: Path) -> None:
    """Promote, but not to the end if `moment` comes before."""
    global left
    left = moment
    os.fsync = deadly(os.fsync)
    shutil.copyfile = deadly(shutil.copyfile)
    for name in ("rename", "replace", "mkdir"):
        setattr(Path, name, deadly(getattr(Path, name)))
    put(candidate, record, registry)


def main(root: Path, candidate: Path, record: Path) -> None:
    """Until a promotion lives."""
    for moment in itertools.count(1):
        shutil.copytree(root / "0", root / str(moment))
        child = os.fork()
        if child == 0:
            die_at(moment, candidate, record, root / str(moment))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            shutil.rmtree(root / str(moment))
            return
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"moment {moment} ended with status {status}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
