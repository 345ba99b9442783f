"""Tests of `stream_agent.perception`."""
