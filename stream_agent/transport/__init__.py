"""Frames between processes: the shared-memory ring on one host, encoded pictures over CURVE between hosts."""
