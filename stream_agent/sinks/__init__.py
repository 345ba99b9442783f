"""Where plans go: console, JSONL file, ZeroMQ publisher; none of them can slow the loop."""
