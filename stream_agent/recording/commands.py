"""The command line of recordings: `replay`, and `recording info`, `recover` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_agent.errors import ConfigError, RecordingError

if TYPE_CHECKING:
    from stream_agent.recording.reader import RecordingFile

_FILE = click.Path(path_type=Path)
_SHOWN_CHANGES = 12


@click.group()
def recording() -> None:
    """Recorded sessions: what one holds, repair after a crash, exports."""


@recording.command()
@click.argument("file", type=_FILE)
def info(file: Path) -> int:
    """Tell what FILE holds."""
    _require_mcap()
    from stream_agent.recording.describe import describe
    from stream_agent.recording.reader import RecordingFile

    with RecordingFile(file) as opened:
        click.echo("\n".join(describe(opened)))
    return 0


@recording.command()
@click.argument("file", type=_FILE)
def recover(file: Path) -> int:
    """Give FILE its index again after a crash: what was whole is kept, what was cut off is dropped."""
    _require_mcap()
    from stream_agent.recording.describe import recover as mend

    click.echo(mend(file))
    return 0


@recording.command()
@click.argument("file", type=_FILE)
@click.option("--report", type=_FILE, metavar="OUT.html", help="A self-contained session report.")
@click.option("--labels", type=_FILE, help="For the report: true actions, a file as for recogniser.labels.")
@click.option("--csv", "csv_folder", type=_FILE, metavar="DIR", help="plans.csv, clips.csv and frames.csv.")
@click.option("--parquet", type=_FILE, metavar="DIR", help="The same tables as Parquet.")
@click.option("--video", type=_FILE, metavar="OUT.mp4", help="The video with what was on display.")
def export(
    file: Path,
    report: Path | None,
    labels: Path | None,
    csv_folder: Path | None,
    parquet: Path | None,
    video: Path | None,
) -> int:
    """Write what FILE holds in forms for other programs and for people."""
    _require_mcap()
    from stream_agent.recording.reader import RecordingFile

    if not (report or csv_folder or parquet or video):
        raise click.UsageError("say what to export: --report, --csv, --parquet or --video")
    with RecordingFile(file) as opened:
        _say_if_cut(opened)
        if csv_folder is not None:
            from stream_agent.recording.tables import write_csv

            _tell_written(*write_csv(opened, csv_folder))
        if parquet is not None:
            from stream_agent.recording.tables import write_parquet

            _tell_written(*write_parquet(opened, parquet))
        if report is not None:
            from stream_agent.recording.report import report as made

            _write_text(report, made(opened, labels=None if labels is None else str(labels)))
            _tell_written(report)
        if video is not None:
            from stream_agent.recording.overlay import write_overlay

            write_overlay(opened, video)
            _tell_written(video)
    return 0


@click.command()
@click.argument("file", type=_FILE)
@click.argument("settings", nargs=-1, metavar="[sinks.key=value]...")
@click.option("--verify", is_flag=True, help="Exit with 1 and the first difference unless every decision is the same.")
@click.option("--pace", help="1 for real time, N for N times that, max; default: 1, max with --verify or --what-if.")
@click.option("--from", "from_s", type=float, default=0.0, metavar="S", help="Show from this media time on.")
@click.option(
    "--what-if",
    "overrides",
    multiple=True,
    metavar="section.key=value",
    help="Plan again with this setting (planner, memory, segmenter, procedure, models) and tell what changes.",
)
@click.option("--perceive", is_flag=True, help="Run the recogniser on the recorded video and tell what differs.")
def replay(
    file: Path,
    settings: tuple[str, ...],
    verify: bool,
    pace: str | None,
    from_s: float,
    overrides: tuple[str, ...],
    perceive: bool,
) -> int:
    """Go through the recorded session FILE again, deciding anew from what was perceived then."""
    _require_mcap()
    from stream_agent.recording.playback import perceived_again, play, tell_what_if, verified
    from stream_agent.recording.reader import RecordingFile

    if sum((verify, bool(overrides), perceive)) > 1:
        raise click.UsageError("--verify, --what-if and --perceive are three questions; ask one at a time")
    with RecordingFile(file) as opened:
        _say_if_cut(opened)
        if overrides:
            click.echo("\n".join(tell_what_if(opened, overrides, changes=_SHOWN_CHANGES)))
            return 0
        if perceive:
            click.echo("\n".join(perceived_again(opened)))
            return 0
        factor = _pace(pace, default="max" if verify else "1")
        tally = play(opened, settings, factor=factor, from_s=from_s)
        return verified(opened, tally, strict=verify)


def _pace(text: str | None, *, default: str) -> float | None:
    """N of N times real time; None for as fast as it goes."""
    text = text or default
    if text == "max":
        return None
    try:
        factor = 1.0 if text == "realtime" else float(text.removesuffix("x"))
    except ValueError:
        factor = -1.0
    if not 0 < factor <= 1000:
        raise ConfigError(f"--pace {text} is not a pace; choose 1, N up to 1000 for N times real time, or max")
    return factor


def _say_if_cut(opened: RecordingFile) -> None:
    if not opened.layout.whole:
        click.echo(
            f"{opened.path} was cut; it is read as far as it is whole, `recording recover {opened.path}` mends it",
            err=True,
        )


def _tell_written(*paths: Path) -> None:
    for path in paths:
        click.echo(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecordingError(f"{path} cannot be written: {error.strerror}; name a file in a writable folder") from error


def _require_mcap() -> None:
    import importlib.util

    if importlib.util.find_spec("mcap") is None:
        raise RecordingError("recordings need the package mcap, which is not installed; install stream-agent[record]")
