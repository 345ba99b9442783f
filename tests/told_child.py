"""A child process that does what its job says: the other side of the tests of `workers.py`."""

from __future__ import annotations

import os
import signal
import threading

from stream_agent.child import ChildSide, Notice, report_decoder

print("a library greets whoever imports it, without a line end", end="", flush=True)


def main() -> int:
    child = ChildSide()
    behaviour, _, rest = child.job.decode().partition(" ")
    print("a stray print before ready")
    match behaviour:
        case "fail":
            child.failed("there is no such camera", 3)
            return 3
        case "crash-at-once":
            os._exit(13)
        case "never-ready":
            child.stop.wait()
            return 0
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child.ready()
            threading.Event().wait()
        case "stray":
            for stray in (
                b"\n",
                b'{"type":"Notice","text":"\xff"}\n',
                b"[" * 100_000 + b"\n",
                os.urandom(5000) + b"\n",
            ):
                _write_all(child, stray)
            _write_all(child, b'{"type":"Reboot"}\n{"type":"Failed"}\nnull\n')
    child.ready()
    print("a stray print after ready", flush=True)
    match behaviour:
        case "crash":
            os._exit(13)
        case "end":
            return 0
        case "notice":
            child.notice(rest)
        case "measure":
            child.notice(str(len(rest)))
        case "ill":
            child.state = rest
        case "credit":
            while child.take_credit():
                child.notice("one frame")
            return 0
    child.stop.wait()
    return 0


def _write_all(child: ChildSide, data: bytes) -> None:
    out = child._out
    os.set_blocking(out, True)
    while data:
        data = data[os.write(out, data) :]
    os.set_blocking(out, False)


assert report_decoder.decode(b'{"type":"Notice","text":"x"}') == Notice("x")

if __name__ == "__main__":
    raise SystemExit(main())
