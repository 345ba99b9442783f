"""Replaying for a person: at its own pace into the live view, or as fast as it goes for an answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import click
import numpy as np

from stream_agent.clock import NS_PER_S
from stream_agent.config import AgentConfig, SinksConfig, load_config, overridden
from stream_agent.errors import ConfigError, RecordingError
from stream_agent.grabber import scene_timeline
from stream_agent.models.in_use import pack_in_use, pack_of_session
from stream_agent.perception.gate import Gate
from stream_agent.perception.perceive import Perception, build_recogniser
from stream_agent.perception.thumbnail import thumbnail
from stream_agent.procedure import ProcedurePack
from stream_agent.recording.mcap_file import Entry
from stream_agent.recording.reader import RecordingFile
from stream_agent.recording.video import planes_of
from stream_agent.replay import Replay, Tally, what_if
from stream_agent.runtime import RuntimeDirectory
from stream_agent.sinks.console_process import ConsoleProcess
from stream_agent.sinks.publisher import Publisher
from stream_agent.sinks.topics import unpack

_REPUBLISHED = ("/health", "/counters", "/memory", "/notice", "/plan_update")
_CHANGEABLE = ("planner", "memory", "segmenter", "procedure", "models")
_SUBSCRIBE_S = 0.3


def play(recording: RecordingFile, settings: Sequence[str], *, factor: float | None, from_s: float) -> Tally:
    """Replay from `from_s` on at `factor` times real time (None: at once), shown by the sinks that `settings` name.

    What comes before `from_s` is replayed too, at once and unseen: the memory at `from_s` is that of the session.

    Raises:
        ConfigError: A setting is none of the sinks'.
    """
    sinks = _sinks(settings)
    pack = _pack_of(recording, recording.config)
    replay = Replay(recording, pack)
    with ExitStack() as resources:
        publisher = None
        if factor is not None or sinks.publisher.bind is not None:
            publisher = _open(resources, sinks, recording, pack)
        began: tuple[int, float] | None = None
        for entry in replay.run():
            if publisher is None or replay.pts_s < from_s:
                continue
            if factor is not None:
                began = began or (entry.log_ns, time.monotonic())
                due_s = began[1] + (entry.log_ns - began[0]) / NS_PER_S / factor
                time.sleep(max(0.0, due_s - time.monotonic()))
            _republish(publisher, replay, entry)
    if from_s > replay.pts_s:
        raise ConfigError(f"--from {from_s:g} is beyond the recording's last frame at {replay.pts_s:.1f} s; lower it")
    return replay.tally


def verified(recording: RecordingFile, tally: Tally, *, strict: bool) -> int:
    """Tell whether every decision was the same; the exit code."""
    click.echo(f"replayed {tally}")
    _warn_of_another_pack(recording)
    if not tally.differing:
        how = f"within 1e-9 ({tally.nearly} not to the last bit)" if tally.nearly else "to the last bit"
        click.echo(f"every decision is the same, {how}")
        return 0
    click.echo(f"{tally.differing} decisions differ; the first: {tally.differences[0]}")
    return 1 if strict else 0


def tell_what_if(recording: RecordingFile, overrides: Sequence[str], *, changes: int) -> Iterator[str]:
    """Lines that say what another configuration would have changed.

    Raises:
        ConfigError: A setting is wrong, or of a part that a recording cannot do again.
    """
    for override in overrides:
        if override.partition(".")[0] not in _CHANGEABLE:
            raise ConfigError(
                f"--what-if {override}: evidence and worker answers come from the recording, so only "
                f"{', '.join(_CHANGEABLE)} can differ; for the rest run it again: run {recording.path} source.pace=max {override}"
            )
    session = recording.config
    config = overridden(session, overrides)
    if config.planner.kind not in ("none", session.planner.kind):
        raise ConfigError(
            f"--what-if planner.kind={config.planner.kind}: the recording holds no answers of that planner; ask it anew: run "
            f"{recording.path} source.pace=max planner.kind={config.planner.kind}"
        )
    found = what_if(recording, _pack_of(recording, config), config)
    yield f"{'':<28}{'session':>10}{'what if':>10}"
    for name, label in (("clips", "clips closed"), ("plans", "plans shown"), ("abstained", "of them abstentions")):
        yield f"{label:<28}{found.session[name]:>10}{found.other[name]:>10}"
    rates = [f"{one['right'] / one['judged']:.1%}" if one["judged"] else "–" for one in (found.session, found.other)]
    yield f"{'first choice came next':<28}{rates[0]:>10}{rates[1]:>10}"
    yield "(judged by the clips that the session recognised)"
    yield f"{found.changed} of {found.moments} moments show another first choice"
    last = ""
    shown = 0
    for pts_s, before, after in found.changes:
        if f"{before}{after}" != last and shown < changes:
            shown += 1
            yield f"  {pts_s:9.1f} s  {before} → {after}"
        last = f"{before}{after}"


def perceived_again(recording: RecordingFile) -> Iterator[str]:
    """Lines that say how the recogniser sees the recorded video, beside what it saw then.

    Raises:
        RecordingError: There are no pictures.
    """
    config = recording.config
    pack = _pack_of(recording, config)
    perception = Perception(
        Gate(config.gate),
        build_recogniser(config.recogniser, pack, config.watched, scene_timeline(config.source, pack)),
    )
    frames = pictures = gates = tops = compared = 0
    gaps: list[float] = []
    session = ""
    for frame, decoded in recording.pictures():
        frames += 1
        if decoded is None and frame.pixels:
            continue
        pictures += 1
        if frame.session_id != session:
            session = frame.session_id
            perception.reset()
        header = frame.header()
        evidence = perception.evidence(header, None if decoded is None else thumbnail(planes_of(decoded), header))
        gates += evidence.gate == frame.gate
        if evidence.actions and frame.actions:
            compared += 1
            tops += int(np.argmax(evidence.actions)) == int(np.argmax(frame.actions))
            gaps.append(float(np.abs(np.subtract(evidence.actions, frame.actions)).max()))
    if not pictures:
        raise RecordingError(f"{recording.path} has no pictures to look at; record with sinks.recorder.video=true")
    yield f"{pictures} of {frames} frames have what their recogniser saw; the video is lossy, so this is near and not the same"
    yield f"gate as then: {gates / pictures:.2%} of frames"
    if compared:
        yield f"likeliest action as then: {tops / compared:.2%} of {compared} frames"
        half, most, all_of_them = np.quantile(gaps, (0.5, 0.95, 1.0))
        yield f"largest change of a probability per frame: median {half:.4f}, 95 % {most:.4f}, most {all_of_them:.4f}"


def _open(resources: ExitStack, sinks: SinksConfig, recording: RecordingFile, pack: ProcedurePack) -> Publisher:
    runtime = resources.enter_context(RuntimeDirectory())
    private = runtime.endpoint("plans")
    public = [sinks.publisher.bind] if sinks.publisher.bind is not None else []
    publisher = Publisher([private, *public], keys=sinks.publisher.keys)
    resources.callback(publisher.close, linger_s=0.2)
    console = ConsoleProcess(
        sinks.console,
        private,
        title=f"{pack.title} · replay of {recording.path.name}",
        lockstep=True,  # its clock is the recording's
        codes=[(action.name, action.code) for action in pack.actions],
    )
    resources.callback(console.stop)
    time.sleep(_SUBSCRIBE_S)  # a subscriber connects to what is there; a first message to nobody is no loss, but odd
    return publisher


def _republish(publisher: Publisher, replay: Replay, entry: Entry) -> None:
    for made in replay.made:
        publisher.send(made, now_ns=0)
    if entry.topic in _REPUBLISHED:
        message = unpack(entry.topic[1:].encode() + b" " + entry.data)
        if message is not None:
            publisher.send(message, now_ns=0)


def _sinks(settings: Sequence[str]) -> SinksConfig:
    for setting in settings:
        if not setting.startswith("sinks."):
            raise ConfigError(
                f"'{setting}': a replay takes its configuration from the recording, only sinks.key=value may be given; use "
                "--what-if for what plans"
            )
    return load_config(None, settings).sinks


def _pack_of(recording: RecordingFile, config: AgentConfig) -> ProcedurePack:
    if config.models == recording.config.models:
        pack = pack_of_session(config.models, config.procedure, recording.described.pack_digest)
    else:
        pack = pack_in_use(config.models, config.procedure)
    if pack.action_names != recording.pack.actions or pack.instruments != recording.pack.instruments:
        raise ConfigError(
            f"procedure pack {pack.name} has other actions or instruments than the session's; name the session's pack with "
            "--what-if procedure.pack=FOLDER"
        )
    return pack


def _warn_of_another_pack(recording: RecordingFile) -> None:
    digest = _pack_of(recording, recording.config).digest()
    if digest != recording.described.pack_digest:
        click.echo(
            f"note: the procedure pack is {digest} now, and was {recording.described.pack_digest} when this was recorded",
            err=True,
        )
