"""The command line of the model gate: `models record`, `promote`, `rollback`, `list`, `show`, `verify`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_agent.errors import ConfigError

if TYPE_CHECKING:
    from stream_agent.models.model_files import Kind
    from stream_agent.models.registry import Registry, Slot
    from stream_agent.models.statistical_record import Contender

_FILE = click.Path(path_type=Path)
_PACK = "cholecystectomy"
_KINDS = click.Choice(["statistical", "adapter"])

_registry = click.option(
    "--registry", "folder", type=_FILE, default=Path("models"), show_default=True, help="The registry's folder."
)
_pack = click.option(
    "--pack", type=_FILE, default=Path(_PACK), show_default=True, help="The procedure pack: its folder, or its name."
)


@click.group()
def models() -> None:
    """Put a model to use that is not inferior to the one in use, and go back."""


@models.command()
@click.argument("candidate", type=_FILE)
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--signals", type=_FILE, help="Folder of videoNN.csv: instruments at 1 Hz.")
@click.option("--without", multiple=True, metavar="VID,…", help="Training videos the candidate was fitted without.")
@click.option(
    "--in-use-without", multiple=True, metavar="VID,…", help="The same of the pack's own model, while none is promoted."
)
@click.option(
    "--protocol",
    type=click.Choice(["lovo", "5fold"]),
    default="lovo",
    show_default=True,
    help="Cross-validation over the training videos.",
)
@_registry
@_pack
@click.option("--out", type=_FILE, required=True, help="File to write, which `models promote --record` takes.")
def record(
    candidate: Path,
    sap: Path,
    signals: Path | None,
    without: tuple[str, ...],
    in_use_without: tuple[str, ...],
    protocol: str,
    folder: Path,
    pack: Path,
    out: Path,
) -> int:
    """Evaluate a statistical model beside the one in use, cross-validated on the training videos, and write the record.

    CANDIDATE is the folder that `train statistical` wrote to. The record of an adapter is written by its training.
    """
    import importlib.util

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from stream_agent.models.model_files import kind_of
    from stream_agent.models.record import write_record
    from stream_agent.models.statistical_record import Bench, Contender, statistical_record

    if kind_of(candidate) != "statistical":
        raise ConfigError(f"{candidate} is an adapter; its record is written by the training's own gate")
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError(
            "scikit-learn is not installed, and the models are fitted again; pip install stream-agent[train]"
        )
    in_use = _statistical_in_use(folder, pack, _names(in_use_without))
    bench = Bench(pack, sap, signals, "5fold" if protocol == "5fold" else "lovo")
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("loading", total=2 * bench.fits)
        made = statistical_record(
            Contender("candidate", candidate, _names(without)),
            in_use,
            bench,
            command=_command(
                candidate, sap=sap, signals=signals, without=without, in_use_without=in_use_without, protocol=protocol
            ),
            on_fit=lambda name: progress.update(task, advance=1, description=f"fitting {name}"),
        )
    write_record(made, out)
    ours, theirs = made.digests
    videos = len({one.video for one in made.candidate.answers})
    click.echo(f"{out}: {ours} beside {theirs}, {len(made.candidate.answers)} samples of {videos} training videos")
    return 0


@models.command()
@click.argument("candidate", type=_FILE)
@click.option("--record", "record_file", type=_FILE, required=True, help="Its evaluation record.")
@click.option("--margins", type=_FILE, help="What counts as not inferior; configs/model_gate.yaml when left out.")
@_registry
@_pack
def promote(candidate: Path, record_file: Path, margins: Path | None, folder: Path, pack: Path) -> int:
    """Put CANDIDATE to use if its record shows that it is not inferior to the model in use."""
    from stream_agent.models.promotion import promote as put_to_use
    from stream_agent.models.record import read_record

    version, judgement = put_to_use(candidate, record_file, registry=folder, pack=pack, margins_file=margins)
    for axis in judgement.axes:
        click.echo(f"{axis.name}: {axis.finding}")
    adapter = ""
    if version.base:
        temperature = read_record(record_file).candidate.temperature
        adapter = f" planner.adapter=promoted planner.digest={version.base} planner.temperature={temperature:g}"
    click.echo(
        f"in use now: version {version.number}, {version.digest}; runs take it with models.registry={folder}{adapter}"
    )
    return 0


@models.command()
@click.option("--kind", type=_KINDS, help="Needed where both kinds were promoted.")
@_registry
@_pack
def rollback(kind: Kind | None, folder: Path, pack: Path) -> int:
    """Go back to the version that was in use before the present one was promoted."""
    from stream_agent.models.registry import Registry

    registry = Registry(_existing(folder))
    procedure = _procedure(pack)
    chosen = kind or _only_kind(registry, procedure)
    with registry.changing():
        left, back = registry.roll_back(chosen, procedure)
    without = "the pack's own model" if chosen == "statistical" else "the base model without adapter"
    click.echo(
        f"{chosen}/{procedure}: back from version {left.number} ({left.digest}) to "
        f"{f'version {back.number} ({back.digest})' if back else f'version 0, {without}'}; runs that are going on keep theirs"
    )
    return 0


@models.command(name="list")
@_registry
def list_(folder: Path) -> int:
    """List every version, and which is in use."""
    from stream_agent.models.registry import Registry, split_slots

    slots = Registry(_existing(folder)).slots()
    if not slots:
        click.echo(f"{folder}: nothing was promoted yet")
    for kind, procedure, slot in split_slots(slots):
        click.echo(f"{kind}/{procedure}")
        without = "the pack's own" if kind == "statistical" else "the base model without adapter"
        click.echo(f"  {'*' if slot.in_use == 0 else ' '} 0  {without}")
        for version in slot.versions:
            mark = "*" if version.number == slot.in_use else " "
            click.echo(
                f"  {mark} {version.number}  {version.digest}  {version.promoted_at}  after version {version.before}"
            )
    return 0


@models.command()
@click.argument("number", type=int, required=False)
@click.option("--kind", type=_KINDS, help="Needed where both kinds were promoted.")
@_registry
@_pack
def show(number: int | None, kind: Kind | None, folder: Path, pack: Path) -> int:
    """Show version NUMBER, or the one in use: its files, what the gate said, when it was in use."""
    from stream_agent.models.registry import Registry

    registry = Registry(_existing(folder))
    procedure = _procedure(pack)
    chosen = kind or _only_kind(registry, procedure)
    slot: Slot = registry.slot(chosen, procedure)
    wanted = slot.in_use if number is None else number
    version = slot.version(wanted)
    click.echo(f"{chosen}/{procedure} version {wanted}{', in use' if wanted == slot.in_use else ''}")
    if version is not None:
        click.echo(f"  digest    {version.digest}")
        if version.base:
            click.echo(f"  base      {version.base}")
        click.echo(f"  promoted  {version.promoted_at}, in the place of version {version.before}")
        click.echo(f"  folder    {registry.version_folder(chosen, procedure, version.number)}")
        for name, digest in version.files.items():
            click.echo(f"  sha256    {digest}  {name}")
        for finding in version.findings:
            click.echo(f"  {finding}")
    for event in slot.events:
        if event.number == wanted:
            click.echo(f"  {event.at}  {event.what}")
    return 0


@models.command()
@_registry
def verify(folder: Path) -> int:
    """Check every version's files against their sums; each damaged one is told, and the exit code is 1."""
    from stream_agent.models.registry import Registry, split_slots

    registry = Registry(_existing(folder))
    checked = damaged = 0
    for kind, procedure, slot in split_slots(registry.slots()):
        for version in slot.versions:
            checked += 1
            try:
                registry.intact(kind, procedure, version)
            except ConfigError as error:
                damaged += 1
                in_use = ", in use" if version.number == slot.in_use else ""
                click.echo(f"damaged: {kind}/{procedure} version {version.number}{in_use}: {error}")
    click.echo(f"{checked} version{'' if checked == 1 else 's'}, {damaged} damaged")
    return int(damaged > 0)


def _statistical_in_use(folder: Path, pack: Path, without: frozenset[str]) -> Contender:
    """The statistical model that a run would take now."""
    from stream_agent.models.record import read_record
    from stream_agent.models.registry import RECORD, Registry
    from stream_agent.models.statistical_record import Contender
    from stream_agent.procedure import load_pack

    loaded = load_pack(pack)
    registry = Registry(folder)
    slot = registry.slot("statistical", loaded.name)
    version = slot.version(slot.in_use)
    if version is None:
        return Contender("the pack's own model", loaded.folder, without, "--in-use-without")
    if without:
        raise ConfigError(
            f"--in-use-without is about the pack's own model, but version {version.number} is in use; leave the option out"
        )
    made = read_record(registry.intact("statistical", loaded.name, version) / RECORD)
    left_out = _training_videos() - set(made.candidate.fitted_on)
    where = registry.version_folder("statistical", loaded.name, version.number)
    return Contender(f"version {version.number}", where, left_out, record=made)


def _training_videos() -> frozenset[str]:
    from stream_agent.evaluation.dataset import TRAIN_VIDEOS

    return TRAIN_VIDEOS


def _only_kind(registry: Registry, procedure: str) -> Kind:
    from stream_agent.models.registry import split_slots

    kinds: list[Kind] = [kind for kind, name, _ in split_slots(registry.slots()) if name == procedure]
    if len(kinds) > 1:
        raise ConfigError(f"{registry.folder} holds models of both kinds; choose one with --kind")
    if not kinds:
        raise ConfigError(f"{registry.folder} holds no model for {procedure}; promote one, or name another registry")
    return kinds[0]


def _procedure(pack: Path) -> str:
    from stream_agent.procedure import load_pack

    return load_pack(pack).name


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise ConfigError(f"--registry {folder} does not exist; `models promote` makes it, or name another")
    return folder


def _names(given: tuple[str, ...]) -> frozenset[str]:
    return frozenset(name.strip() for part in given for name in part.split(",") if name.strip())


def _command(candidate: Path, **options: object) -> str:
    """The command line that gives the same record."""
    words = ["run_agent.py", "models", "record", str(candidate)]
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                words += [f"--{name.replace('_', '-')}", str(one)]
    return f"{shlex.join(words)} --out RECORD.json"
