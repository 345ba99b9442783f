"""The command line of data sets and of the evaluation: `dataset build`, `verify`, `stats` and `label`, `evaluate`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_agent import __version__
from stream_agent.errors import ConfigError

if TYPE_CHECKING:
    from stream_agent.evaluation.ablation import Ablation, Answered, Skipped, Study
    from stream_agent.evaluation.dataset import SapClip
    from stream_agent.evaluation.protocols import ProtocolName, Run
    from stream_agent.evaluation.samples import Videos
    from stream_agent.evaluation.triplets import Labels

_FILE = click.Path(path_type=Path)
_FILE_COLUMNS = 160
"""Width of a table that goes to a file or another program."""

_PROTOCOLS = ("official", "5fold", "lovo", "streaming")


@click.group()
def dataset() -> None:
    """The annotations: made from CholecT50's labels, compared with the authors', counted."""


@dataset.command()
@click.option("--cholect50", type=_FILE, required=True, help="CholecT50's folder, with labels/VIDnn.json.")
@click.option("--sap", type=_FILE, help="The authors' total_video_info.json, for the videos that --cholect50 lacks.")
@click.option("--out", type=_FILE, required=True, help="File to write, in the format of total_video_info.json.")
def build(cholect50: Path, sap: Path | None, out: Path) -> int:
    """Make clips and samples from triplet labels, by rule; `evaluate --sap` reads the result."""
    from stream_agent.evaluation.dataset import load_sap
    from stream_agent.evaluation.triplets import clips, encode_videos, load_labels

    labelled = load_labels(cholect50)
    made: dict[str, tuple[SapClip, ...]] = {name: clips(labels) for name, labels in labelled.items()}
    made = {name: chosen for name, chosen in made.items() if chosen}
    taken: dict[str, tuple[SapClip, ...]] = {}
    if sap is not None:
        authors = load_sap(sap)
        taken = {name: chosen for name, chosen in authors.items() if name not in labelled}
        if authors.keys() & labelled.keys():
            _print_agreement(labelled, authors, clip_by_clip=False)
    _write(out, encode_videos(made | taken))
    click.echo(
        f"{out}: {len(made)} videos by rule, {len(taken)} as the authors annotated them; {_counted(made | taken)}"
    )
    return 0


@dataset.command()
@click.option("--cholect50", type=_FILE, required=True, help="CholecT50's folder, with labels/VIDnn.json.")
@click.option("--sap", type=_FILE, required=True, help="The authors' total_video_info.json.")
def verify(cholect50: Path, sap: Path) -> int:
    """Compare the rule's actions with the authors' clip by clip, on the labelled frames."""
    from stream_agent.evaluation.dataset import load_sap
    from stream_agent.evaluation.triplets import load_labels

    _print_agreement(load_labels(cholect50), load_sap(sap), clip_by_clip=True)
    return 0


@dataset.command()
@click.option(
    "--sap", type=_FILE, required=True, help="total_video_info.json, the authors' or one from `dataset build`."
)
def stats(sap: Path) -> int:
    """Count clips, samples and durations per action."""
    from rich.console import Console
    from rich.table import Table

    from stream_agent.evaluation.dataset import ACTIONS, TEST_VIDEOS, load_sap

    videos = load_sap(sap)
    table = Table("action", "clips", "samples", "of them test", "median s", "10 % s", "90 % s")
    for action in ACTIONS:
        clips = [clip for chosen in videos.values() for clip in chosen if clip.action == action]
        samples = [clip for clip in clips if clip.is_sample]
        lengths = sorted(
            following.start_s - clip.start_s
            for chosen in videos.values()
            for clip, following in pairwise(chosen)
            if clip.action == action
        )
        spread = [f"{lengths[round(level * (len(lengths) - 1))]}" for level in (0.1, 0.9)] if lengths else ["–", "–"]
        table.add_row(
            action,
            str(len(clips)),
            str(len(samples)),
            str(sum(clip.video in TEST_VIDEOS for clip in samples)),
            f"{statistics.median(lengths):.0f}" if lengths else "–",
            *spread,
        )
    Console().print(table)
    differing = sum(clip.action != clip.action_reg for chosen in videos.values() for clip in chosen)
    click.echo(f"{len(videos)} videos, {_counted(videos)}; recognised label differs in {differing} clips")
    return 0


@dataset.command()
@click.argument("video")
@click.option("--out", type=_FILE, required=True, help="CSV to write: start_s,action,confidence; never overwritten.")
@click.option("--set", "settings", multiple=True, metavar="section.key=value", help="As for run.")
def label(video: str, out: Path, settings: tuple[str, ...]) -> int:
    """Write the clips that are recognised in VIDEO, for a person to correct and train with."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    from stream_agent.config import load_config
    from stream_agent.labelling import recognised_clips, require_new, write_labels
    from stream_agent.procedure import load_pack

    require_new(out)
    config = load_config(None, [f"source.uri={json.dumps(video)}", *settings])
    pack = load_pack(config.procedure.pack)
    errors = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=errors) as progress:
        task = progress.add_task(video)
        clips = recognised_clips(
            config,
            pack,
            notice=errors.print,
            at=lambda pts_s: progress.update(task, description=f"{video}: {pts_s:.0f} s"),
        )
    write_labels(out, clips)
    click.echo(
        f"{out}: {len(clips)} clips; correct start_s and action (one of {', '.join(pack.action_names)}, or none), then play "
        f"it with recogniser.labels={out} or train with it: train recogniser --add {video} {out}"
    )
    return 0


@click.command()
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--signals", type=_FILE, help="Folder of videoNN.csv: instruments at 1 Hz.")
@click.option("--frames", type=_FILE, help="Folder of VIDnn/nnnnnn.png, for the ps baseline.")
@click.option("--text-backend", help="A program that reads a prompt on stdin and answers on stdout, for antgpt.")
@click.option("--exclude", multiple=True, metavar="VID,…", help="Videos neither fitted on nor scored.")
@click.option("--only", multiple=True, metavar="VID,…", help="Score these alone, after fitting without them.")
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    type=click.Choice(_PROTOCOLS),
    help="Default: all; streaming needs --signals.",
)
@click.option("--planner", "planners", multiple=True, metavar="NAME", help="Run these planners alone.")
@click.option("--out", type=_FILE, required=True, help="Folder to write results.json, report.md and the plots to.")
def evaluate(
    sap: Path,
    signals: Path | None,
    frames: Path | None,
    text_backend: str | None,
    exclude: tuple[str, ...],
    only: tuple[str, ...],
    protocols: tuple[ProtocolName, ...],
    planners: tuple[str, ...],
    out: Path,
) -> int:
    """Fit and score every planner on CholecT50-SAP, beside Table 1 of LLM-SAP as published."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from stream_agent.evaluation import report
    from stream_agent.evaluation.baselines import AntGpt, CommandBackend
    from stream_agent.evaluation.dataset import load_presence, load_sap, read_annotation
    from stream_agent.evaluation.lineup import all_baselines, signals_model, statistical_planner
    from stream_agent.evaluation.outcomes import FILE_NAME, write_outcomes
    from stream_agent.evaluation.protocols import PROTOCOLS, run, steps
    from stream_agent.evaluation.streaming import Streaming
    from stream_agent.evaluation.streaming_report import tables
    from stream_agent.models.model_files import file_sha256
    from stream_agent.models.record import code_version
    from stream_agent.procedure import load_pack

    began = time.monotonic()
    videos = load_sap(sap)
    presence = load_presence(signals, videos) if signals is not None else {}
    baselines = all_baselines(frames=frames, backend=CommandBackend(text_backend) if text_backend else None)
    unknown = set(planners) - {baseline.name for baseline in baselines}
    if unknown:
        names = ", ".join(baseline.name for baseline in baselines)
        raise ConfigError(f"--planner {', '.join(sorted(unknown))}: there is no such planner; choose from {names}")
    baselines = tuple(baseline for baseline in baselines if not planners or baseline.name in planners)
    left_out, scored = _names(exclude), _names(only)
    if "streaming" in protocols and signals is None:
        raise ConfigError("--protocol streaming runs the agent on 1 Hz signals; name their folder with --signals")
    chosen = tuple(
        name
        for name in PROTOCOLS
        if (name in protocols or not protocols) and (name != "streaming" or signals is not None)
    )
    streaming = Streaming(videos, presence, signals_model, load_pack(Path("cholecystectomy")))
    total = steps(baselines, videos, protocols=chosen, exclude=left_out, only=scored)
    _make(out)
    columns = (TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("loading", total=total)
        done = run(
            baselines,
            videos,
            presence,
            protocols=chosen,
            exclude=left_out,
            only=scored,
            streams=streaming if "streaming" in chosen else None,
            on_step=lambda what: progress.update(task, advance=1, description=what),
        )
    made = report.report(done, videos, streaming.answered)
    about: dict[str, object] = {
        "command": _command(
            "evaluate",
            sap=[sap],
            signals=[signals],
            frames=[frames],
            text_backend=[text_backend],
            exclude=left_out,
            only=scored,
            protocol=protocols,
            planner=planners,
        ),
        "version": __version__,
        "commit": code_version(),
        "annotation": f"{sap.name}, sha256 {hashlib.sha256(read_annotation(sap)).hexdigest()[:12]}",
        "videos": len(videos),
        "videos with signals": len(presence),
        "excluded": ", ".join(left_out) or "none",
        "scored only": ", ".join(scored) or "all",
        "seconds": round(time.monotonic() - began, 1),
    }
    if any(baseline.name == report.HEADLINE for baseline in baselines):
        about[report.HEADLINE] = statistical_planner()[1]
        click.echo(f"{report.HEADLINE}: {about[report.HEADLINE]}")
    for baseline in baselines:
        if isinstance(baseline, AntGpt) and baseline.asked:
            about["antgpt"] = f"{baseline.failures} words in {baseline.asked} answers name no action"
    plots = _plots(done, videos, out)
    data = {sap.name: file_sha256(sap)}
    if signals is not None:
        data |= {path.name: file_sha256(path) for path in sorted(signals.glob("video*.csv"))}
    given = report.all_answers(done, streaming.answered)
    written = (
        *report.write(made, out, about=about, plots=plots),
        write_outcomes(given, out / FILE_NAME, about=about, data=data),
    )
    for protocol in report.protocols_of(made):
        _show(report.title(protocol), report.headline(made, protocol))
    for title, lines in tables(made.streaming):
        _show(title, lines)
    if "official" in report.protocols_of(made):
        _show("Table 1 as published, and ours on its track, history and split", report.beside(made))
    if "antgpt" in about:
        click.echo(f"antgpt: {about['antgpt']}")
    for name, reason in made.not_run.items():
        click.echo(f"not run: {name}: {reason}")
    if not made.rows:
        raise ConfigError("no sample was scored: every fold lacks videos to fit on or to ask; exclude fewer videos")
    click.echo(f"wrote {', '.join(path.name for path in (*written, *plots))} to {out}")
    return 0


@click.command()
@click.option("--sap", type=_FILE, required=True, help="total_video_info.json of CholecT50-SAP.")
@click.option("--only", multiple=True, metavar="NAME", help="These ablations alone; all when left out.")
@click.option("--videos", multiple=True, metavar="VID,…", help="Ask about these videos alone; all when left out.")
@click.option("--signals", type=_FILE, help="Folder of videoNN.csv: instruments at 1 Hz, for the statistical planner.")
@click.option("--frames", type=_FILE, help="Folder of VIDnn/nnnnnn.png of training videos, for models that see.")
@click.option("--captions", type=_FILE, help="Captions as lines of JSON, for planner.form=indirect.")
@click.option(
    "--model", "models", multiple=True, type=_FILE, help="A model of another size; for model_size, twice or more."
)
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="An adapter; for mixed_tasks.")
@click.option("--config", "preset", type=_FILE, help="YAML preset that names the model.")
@click.option("--out", type=_FILE, required=True, help="Folder to write report.md, results.json and figures to.")
@click.argument("settings", nargs=-1, metavar="[section.key=value]...")
def ablate(
    sap: Path,
    only: tuple[str, ...],
    videos: tuple[str, ...],
    signals: Path | None,
    frames: Path | None,
    captions: Path | None,
    models: tuple[Path, ...],
    adapters: tuple[str, ...],
    preset: Path | None,
    out: Path,
    settings: tuple[str, ...],
) -> int:
    """Ask a language model about every sample, one thing changed at a time: memory, knowledge, noise, orders, fusion."""
    import asyncio

    from stream_agent.config import load_config
    from stream_agent.evaluation.ablation import Study, ablations
    from stream_agent.evaluation.dataset import load_presence, load_sap
    from stream_agent.models.in_use import planner_in_use
    from stream_agent.procedure import load_pack
    from stream_agent.training.near_frames import NearCaptions

    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("matplotlib is not installed, and figures need it; pip install stream-agent[eval]")
    config = load_config(preset, settings)
    if config.planner.kind in ("none", "scripted"):
        raise ConfigError(
            f"planner.kind={config.planner.kind} is no language model; choose transformers, vllm, openai or rehearsed"
        )
    known = ablations(models if len(models) > 1 else (), _adapters(adapters))
    chosen = list(dict.fromkeys(name.strip() for part in only for name in part.split(","))) or list(known)
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"--only {','.join(unknown)}: no such ablation; there are {', '.join(known)}")
    all_videos = load_sap(sap)
    asked = _names(videos) or sorted(all_videos)
    if unknown := [name for name in asked if name not in all_videos]:
        raise ConfigError(
            f"--videos {','.join(unknown)}: no such video in {sap}; it has {', '.join(sorted(all_videos)[:4])} …"
        )
    kept = {name: all_videos[name] for name in asked}
    _make(out)
    pack = load_pack(config.procedure.pack)
    study = Study(
        config=config.model_copy(update={"planner": planner_in_use(config.models, config.planner, pack.name)}),
        pack=pack,
        videos=kept,
        presence=load_presence(signals, kept) if signals is not None else {},
        frames=frames,
        captions=NearCaptions(captions) if captions is not None else None,
        tell=click.echo,
    )
    about: dict[str, object] = {
        "command": _command(
            "ablate",
            settings,
            sap=[sap],
            only=[",".join(chosen)],
            videos=[",".join(_names(videos)) or None],
            signals=[signals],
            frames=[frames],
            captions=[captions],
            model=models,
            adapter=adapters,
            config=[preset],
        ),
        "model": "",
        "videos": f"{len(kept)}, {_counted(kept)}",
        "version": __version__,
    }
    paths = asyncio.run(_ablated(study, [known[name] for name in chosen], out, about))
    click.echo(f"wrote {', '.join(path.name for path in paths)} to {out}")
    return 0


async def _ablated(study: Study, chosen: Sequence[Ablation], out: Path, about: dict[str, object]) -> list[Path]:
    """One ablation after another; the report is written after each, so that a run that is stopped leaves what it has."""
    from stream_agent.evaluation.ablation_report import write

    results: list[tuple[Ablation, list[Answered | Skipped]]] = []
    paths: list[Path] = []
    try:
        for ablation in chosen:
            click.echo(f"{ablation.name}: {ablation.question}")
            results.append((ablation, [await study.answer(variant) for variant in ablation.variants]))
            about["model"] = study.model_name
            paths = write(results, out, study.pack.action_names, about)
    finally:
        await study.close()
    return paths


def _adapters(given: Sequence[str]) -> dict[str, Path]:
    found = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name.isidentifier() and equals and path):
            raise ConfigError(f"--adapter {one} is not NAME=DIR; write for example plan=runs/sft/adapter")
        found[name] = Path(path)
    return found


def _plots(done: Run, videos: Videos, out: Path) -> tuple[Path, ...]:
    try:
        from stream_agent.evaluation import plots
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        click.echo("no plots: matplotlib is not installed; pip install stream-agent[eval]", err=True)
        return ()
    from stream_agent.evaluation.report import HEADLINE

    return plots.draw(done, videos, out, planner=HEADLINE)


def _print_agreement(
    labelled: dict[str, Labels], authors: dict[str, tuple[SapClip, ...]], *, clip_by_clip: bool
) -> None:
    from rich.console import Console
    from rich.table import Table

    from stream_agent.evaluation.triplets import agreement

    table = Table("video", "clip", "start s", "authors' action", "frames", "agree", "our start")
    frames = agreeing = videos = 0
    for name, labels in labelled.items():
        if name in authors:
            videos += 1
            for part in agreement(labels, authors[name]):
                frames += part.frames
                agreeing += part.agreeing
                table.add_row(
                    name,
                    str(part.clip.index),
                    str(part.clip.start_s),
                    part.clip.action,
                    str(part.frames),
                    str(part.agreeing),
                    "–" if part.start_offset_s is None else f"{part.start_offset_s:+d} s",
                )
    if videos == 0:
        raise ConfigError("the authors' file and the label folder have no video in common; name another folder")
    if clip_by_clip:
        Console().print(table)
    share = f"{100 * agreeing / frames:.1f} %" if frames else "none"
    click.echo(
        f"{share} of {frames} labelled frames inside the authors' clips agree with the rule, in {videos} videos "
        "(each video's last clip has no known end and is left out)"
    )


def _names(given: Iterable[str]) -> list[str]:
    return sorted({name.strip() for part in given for name in part.split(",") if name.strip()})


def _command(name: str, settings: Sequence[str] = (), **options: Sequence[object]) -> str:
    """The command line that gives the same numbers."""
    words = ["run_agent.py", name]
    for option, values in options.items():
        for value in values:
            if value is not None:
                words += [f"--{option.replace('_', '-')}", str(value)]
    return f"`{shlex.join([*words, *settings])} --out DIR`"


def _counted(videos: Videos) -> str:
    clips = [clip for chosen in videos.values() for clip in chosen]
    actions = Counter(clip.action for clip in clips if clip.is_sample)
    parts = ", ".join(f"{action} {count}" for action, count in actions.most_common())
    return f"{len(clips)} clips, {sum(actions.values())} samples ({parts})"


def _show(title: str, lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*lines[0], title=title, title_justify="left")
    for line in lines[1:]:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_COLUMNS)
    console.print(table)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {folder} cannot be made ({error.strerror}); name a folder that can be written"
        ) from error


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(
            f"--out {path} cannot be written ({error.strerror}); name a file in an existing folder"
        ) from error
