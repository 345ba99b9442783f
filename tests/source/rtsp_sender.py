"""The RTSP camera of the tests: sends to argv[1], goes silent after a line on stdin, leaves at its end."""

from __future__ import annotations

import sys

from network_sender import Sender

if __name__ == "__main__":
    sender = Sender(sys.argv[1], "rtsp", {"rtsp_transport": "tcp"})
    sys.stdin.readline()
    sender.go_silent()
    sys.stdin.read()
    sender.leave()
