"""A real-time agent that says what the surgeon's next action is likely to be, why, and how long that stays valid.

    source ─▶ grabber ══▶ agent: gate → recogniser → segmenter → NHFM ─▶ planners ─▶ ladder ─▶ sinks
    (own process: decode, stamp, publish)   (statistical in process; a model in a worker process)

It is advice for research, never a command to a robot.
"""

__version__ = "0.1.0"
