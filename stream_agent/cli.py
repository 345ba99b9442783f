"""The command line: `run`, `grab`, `doctor`, `keys`, `config`, `dataset`, `evaluate`, `ablate`, `train`, `replay` and others.

A mistake of the outside world is one message on stderr, never a traceback; the exit code tells its kind (errors.py).
Options and `section.key=value` overrides may come in any order.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stream_agent import __version__
from stream_agent.benchmarking import bench
from stream_agent.errors import StreamAgentError
from stream_agent.evaluation import commands as evaluation
from stream_agent.models import commands as gate
from stream_agent.recording import commands as recordings
from stream_agent.training import commands as training

if TYPE_CHECKING:
    from stream_agent.config import AgentConfig

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
_INTERRUPTED = 130
_BROKEN_PIPE = 1


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        exit_code = commands.main(args=argv, prog_name="run_agent.py", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _complain(error.format_message())
        exit_code = error.exit_code
    except StreamAgentError as error:
        _complain(str(error))
        exit_code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        exit_code = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter complains at its exit
        exit_code = _BROKEN_PIPE
    sys.exit(exit_code or 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stream_agent")
def commands() -> None:
    """Watch an endoscope feed and keep saying what the surgeon's next action is likely to be.

    Advice for research, never a command to a robot.
    """


commands.add_command(evaluation.dataset)
commands.add_command(evaluation.evaluate)
commands.add_command(evaluation.ablate)
commands.add_command(training.train)
commands.add_command(gate.models)
commands.add_command(bench)
commands.add_command(recordings.recording)
commands.add_command(recordings.replay)


def configured(command: FunctionT) -> FunctionT:
    """`--config FILE` and overrides, for commands that take a configuration."""
    command = click.argument("settings", nargs=-1, metavar="[VIDEO] [section.key=value]...")(command)
    return click.option(
        "--config", "preset", type=click.Path(path_type=Path), help="A YAML preset: a file, or a name in configs/."
    )(command)


@commands.command()
@configured
@click.option("--summary", type=click.Path(path_type=Path), help="Write the end-of-run summary to this file as JSON.")
def run(preset: Path | None, settings: tuple[str, ...], summary: Path | None) -> int:
    """Watch a source and show plans until it ends or Ctrl-C.

    VIDEO is short for source.uri=VIDEO. Without any, a drawn scene is watched.
    """
    loaded = _load(preset, settings)
    from stream_agent import agent

    return agent.run(loaded, summary=summary)


@commands.command()
@configured
def grab(preset: Path | None, settings: tuple[str, ...]) -> int:
    """Publish a source's frames to agents on other hosts (transport.bind)."""
    loaded = _load(preset, settings)
    from stream_agent import grabber

    return grabber.grab(loaded)


@commands.command()
@configured
@click.option("--model", type=click.Path(path_type=Path), help="Check this model's folder instead, and tell its cost.")
@click.option(
    "--device", help="With --model: the GPU to tell memory and least latency for; this machine's when left out."
)
@click.option("--frame", default="854x480", show_default=True, help="With --model: the size of the source's pictures.")
@click.option("--pin", is_flag=True, help="With --model: write the sha256 sums of its files beside them.")
def doctor(
    preset: Path | None, settings: tuple[str, ...], model: Path | None, device: str | None, frame: str, pin: bool
) -> int:
    """Check this machine, and what the given configuration needs; each failure names its fix."""
    if model is not None:
        from stream_agent.planner.model_report import examine_model

        return examine_model(model, device=device, frame=frame, pin=pin)
    if device is not None or pin:
        raise click.UsageError("--device and --pin are about a model; name its folder with --model DIR")
    loaded = _load(preset, settings)
    from stream_agent.doctor import examine

    return examine(loaded)


@commands.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory to make; never overwritten.")
@click.option("--name", "names", multiple=True, help="A host: the one that serves first, then each client.")
def keys(out: Path, names: tuple[str, ...]) -> int:
    """Make CURVE keys for hosts that talk over a network."""
    from stream_agent.transport.keys import DEFAULT_NAMES, make_keys

    elsewhere = make_keys(out, names or DEFAULT_NAMES)
    click.echo(f"{out}  for the host that serves: transport.keys={out} (or sinks.publisher.keys={out})")
    for folder in elsewhere:
        click.echo(f"{folder}  move to host {folder.name} by a safe way, and name it there: transport.keys=DIR")
    click.echo(f"{out / 'allowed'}  lists who may connect; delete a file to shut its host out")
    return 0


@commands.group()
def config() -> None:
    """The configuration: what is set, what may be."""


@config.command()
@configured
def show(preset: Path | None, settings: tuple[str, ...]) -> int:
    """Print the resolved configuration as YAML, which --config takes again."""
    import yaml

    tree = _load(preset, settings).model_dump(mode="json")
    click.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), nl=False)
    return 0


@config.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON schema.")
def schema(as_json: bool) -> int:
    """List every section.key with its type, default and meaning."""
    from stream_agent.config import AgentConfig
    from stream_agent.config_table import config_lines

    if as_json:
        click.echo(json.dumps(AgentConfig.model_json_schema(), indent=2))
        return 0
    click.echo("\n".join(config_lines()))
    return 0


def _load(preset: Path | None, settings: Sequence[str]) -> AgentConfig:
    """The configuration from `--config` and the arguments after it.

    Raises:
        ConfigError: A file, key or value is wrong.
        click.UsageError: Two sources are named.
    """
    from stream_agent.config import load_config

    videos = [setting for setting in settings if not _OVERRIDE.match(setting)]
    if len(videos) > 1:
        raise click.UsageError(
            f"{videos[0]} and {videos[1]} are both sources, and one run watches one; settings are section.key=value"
        )
    overrides = [setting for setting in settings if _OVERRIDE.match(setting)]
    # Quoted, for the override is read as YAML, and a video may be called 0012.
    return load_config(
        preset, [*(f"source.uri={json.dumps(video, ensure_ascii=False)}" for video in videos), *overrides]
    )


def _complain(message: str) -> None:
    for line in message.splitlines() or [""]:
        print(f"error: {line}", file=sys.stderr)
