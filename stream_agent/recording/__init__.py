"""A session in one MCAP file: the recorder process, the reader, recovery after a crash, exports.

    agent ─frames seen, choices, everything published─▶ recorder process ─▶ FILE.mcap ─▶ replay · source · exports

Needs the package `mcap` (the extra `record`); nothing here is imported unless a recording is asked for.
"""
