"""Checks of this machine and of what a configuration needs; each failure names its fix.

A check is a function that returns what it found; nothing is changed and nothing but the configured source is contacted.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stream_agent.config import AgentConfig
from stream_agent.errors import StreamAgentError
from stream_agent.runtime import RuntimeDirectory

State: TypeAlias = Literal["ok", "warn", "fail"]

_DISTRIBUTION = "stream-agent"
_MODULES = {
    "hdrhistogram": "hdrh.histogram",
    "opencv-python-headless": "cv2",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
    "pyzmq": "zmq",
}
_PIN = re.compile(r"([A-Za-z0-9._-]+)\s*==\s*([^\s;]+)")
_OLDEST_PYTHON = (3, 11)
_FEWEST_FILES = 256
_FEWEST_CPUS = 2
_LEAST_DISK_BYTES = 1_000_000_000
_LONGEST_SOCKET_NAME = "control-from-worker"
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found; `remedy` is empty unless there is something to do."""

    name: str
    state: State
    detail: str
    remedy: str = ""


def examine(config: AgentConfig, console: Console | None = None) -> int:
    """Run every check and print the table; 1 if any failed."""
    console = console or Console()
    checks = list(all_checks(config))
    console.print(check_table(checks))
    counts = {state: sum(check.state == state for check in checks) for state in _STYLES}
    console.print(f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed")
    return int(counts["fail"] > 0)


def all_checks(config: AgentConfig) -> Iterator[Check]:
    """Every check in order; one that fails in an unforeseen way is a failed check, not the end of the examination."""
    yield check_python(sys.version_info[:3])
    yield from check_packages(core_pins())
    steps: tuple[Callable[[AgentConfig], Sequence[Check]], ...] = (
        check_libav,
        check_shared_memory,
        check_runtime_directory,
        check_limits,
        check_disk,
        check_pack_and_recogniser,
        check_srt,
        check_source,
        check_keys,
        check_sinks,
        check_gpu,
        check_terminal,
    )
    for step in steps:
        try:
            yield from step(config)
        except Exception as error:  # a broken installation can raise anything, and the rest is still worth knowing
            name = step.__name__.removeprefix("check_").replace("_", " ")
            yield Check(name, "fail", f"{type(error).__name__}: {error}", "see the failed packages above")


def check_table(checks: Sequence[Check]) -> Table:
    """One row per check: its state in a word and a colour, what was found, what to do."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        detail = Text(check.detail)
        if check.remedy:
            detail.append(f"\n→ {check.remedy}", style="bold")
        table.add_row(Text(check.state, style=_STYLES[check.state]), Text(check.name), detail)
    return table


def check_python(version: Sequence[int]) -> Check:
    """Whether this Python is new enough."""
    shown = ".".join(map(str, version))
    if tuple(version[:2]) < _OLDEST_PYTHON:
        return Check(
            "Python", "fail", f"{shown} is too old", "install Python 3.11 or newer and make the environment anew"
        )
    return Check("Python", "ok", f"{shown} at {sys.executable}")


def core_pins() -> dict[str, str]:
    """Distribution → pinned version of the core's requirements, from the checkout or the installed package."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        required = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        required = [line for line in importlib.metadata.requires(_DISTRIBUTION) or () if "extra ==" not in line]
    return {found[1]: found[2] for line in required if (found := _PIN.match(line))}


def check_packages(pins: dict[str, str]) -> Iterator[Check]:
    """One line when all is well, else one per package that is missing, does not load, or is another version."""
    good = 0
    for distribution, pinned in pins.items():
        module = _MODULES.get(distribution.lower(), distribution.lower())
        try:
            importlib.import_module(module)
            version = importlib.metadata.version(distribution)
        except Exception as error:  # an import runs foreign code
            yield Check(
                distribution,
                "fail",
                f"does not load: {error}",
                f"pip install --force-reinstall {distribution}=={pinned}",
            )
            continue
        if version == pinned:
            good += 1
        else:
            detail = f"{version} is installed, {pinned} was tested"
            yield Check(distribution, "warn", detail, f"pip install {distribution}=={pinned}")
    yield Check("packages", "ok", f"{good} of {len(pins)} core packages load and are the tested versions")


def check_libav(_config: AgentConfig) -> Sequence[Check]:
    """What the installed PyAV can decode and open."""
    import av

    from stream_agent.source.srt import libav_opens_srt

    missing = [codec for codec in ("h264", "hevc", "mjpeg") if codec not in av.codecs_available]
    devices = [
        name.partition(",")[0] for name in sorted(av.formats_available) if name.startswith(("video4linux2", "x11"))
    ]
    version = ".".join(map(str, av.library_versions["libavformat"]))
    detail = f"libavformat {version}; RTSP {_yes('rtsp' in av.formats_available)}, SRT {_yes(libav_opens_srt())}, "
    detail += f"devices: {', '.join(devices) or 'none'}"
    if missing:
        return [
            Check("libav", "fail", f"{detail}; no decoder for {', '.join(missing)}", "pip install --force-reinstall av")
        ]
    return [Check("libav", "ok", detail)]


def check_shared_memory(_config: AgentConfig) -> Sequence[Check]:
    """Whether two processes can share an anonymous memory file through /proc."""
    try:
        file = os.memfd_create("stream_agent_doctor", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        return [
            Check("shared memory", "fail", f"memfd_create: {error}", "run on Linux 3.17 or newer, outside a sandbox")
        ]
    try:
        os.close(os.open(f"/proc/{os.getpid()}/fd/{file}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        remedy = "mount /proc without hidepid for this user, and allow opening /proc/PID/fd"
        return [Check("shared memory", "fail", f"/proc/PID/fd: {error.strerror}", remedy)]
    finally:
        os.close(file)
    return [Check("shared memory", "ok", "memfd_create and /proc/PID/fd work")]


def check_runtime_directory(_config: AgentConfig) -> Sequence[Check]:
    """Whether sockets can be made in the runtime directory."""
    try:
        with RuntimeDirectory() as runtime:
            runtime.endpoint(_LONGEST_SOCKET_NAME)
            return [Check("runtime directory", "ok", str(runtime.path.parent))]
    except StreamAgentError as error:
        return [_failed("runtime directory", error)]


def check_limits(_config: AgentConfig) -> Sequence[Check]:
    """Open files and processors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpus = len(os.sched_getaffinity(0))
    checks = [Check("open files", "ok", f"limit {'none' if soft == resource.RLIM_INFINITY else soft}")]
    if soft != resource.RLIM_INFINITY and soft < _FEWEST_FILES:
        checks = [Check("open files", "warn", f"limit {soft} is low", f"ulimit -n {_FEWEST_FILES * 4}")]
    if cpus < _FEWEST_CPUS:
        remedy = "give this process two: decoding and perception run side by side"
        return [*checks, Check("processors", "warn", f"{cpus} usable", remedy)]
    return [*checks, Check("processors", "ok", f"{cpus} usable")]


def check_disk(config: AgentConfig) -> Sequence[Check]:
    """Room where plans and the journal are written."""
    folders = {path.parent for path in (config.sinks.jsonl, config.memory.journal) if path is not None} or {Path()}
    checks = []
    for folder in sorted(folders):
        if not folder.is_dir():
            checks.append(Check("disk", "fail", f"{folder} does not exist", f"mkdir -p {folder}"))
            continue
        free = shutil.disk_usage(folder).free
        detail = f"{free / 1e9:.1f} GB free in {folder.resolve()}"
        if not os.access(folder, os.W_OK):
            checks.append(
                Check(
                    "disk",
                    "warn",
                    f"{folder.resolve()} is not writable",
                    "name output files in a directory of your own",
                )
            )
        elif free < _LEAST_DISK_BYTES:
            checks.append(Check("disk", "warn", detail, "free some space: plans of a long case take about 1 GB"))
        else:
            checks.append(Check("disk", "ok", detail))
    return checks


def check_pack_and_recogniser(config: AgentConfig) -> Sequence[Check]:
    """Whether the procedure pack and what recognises its actions load."""
    from stream_agent.models.in_use import describe, pack_in_use, planner_in_use
    from stream_agent.perception.perceive import build_recogniser

    try:
        pack = pack_in_use(config.models, config.procedure)
        planner_in_use(config.models, config.planner, pack.name)  # whether the adapter fits the base model
        promoted = describe(config.models, pack.name)
    except StreamAgentError as error:
        return [_failed("procedure pack", error)]
    detail = f"{pack.title} {pack.version}: {len(pack.actions)} actions, {len(pack.instruments)} instruments"
    checks = [Check("procedure pack", "ok", detail)]
    if promoted:
        checks.append(Check("promoted models", "ok", promoted))
    uri = config.source.uri
    if uri.startswith("synthetic:") and config.recogniser.kind == "auto":
        return [*checks, Check("recogniser", "ok", "the drawn scene's own timeline")]
    try:
        recogniser = build_recogniser(config.recogniser, pack, uri, ())
    except StreamAgentError as error:
        return [*checks, _failed("recogniser", error)]
    return [*checks, Check("recogniser", "ok", f"{recogniser.name} loads")]


def check_srt(config: AgentConfig) -> Sequence[Check]:
    """What reads the configured srt:// address; nothing for another source."""
    from stream_agent.source.address import scheme_of
    from stream_agent.source.srt import ffmpeg_with_srt, libav_opens_srt

    if scheme_of(config.source.uri) != "srt" or config.transport.connect is not None:
        return []
    try:
        reader = "libav" if libav_opens_srt() else f"{ffmpeg_with_srt()}, a program of its own"
    except StreamAgentError as error:
        return [_failed("SRT", error)]
    return [Check("SRT", "ok", f"srt:// is read by {reader}")]


def check_source(config: AgentConfig) -> Sequence[Check]:
    """Whether the configured source opens and gives a picture."""
    from stream_agent.source import open_source, redacted

    uri = redacted(config.source.uri)
    if config.source.uri.startswith("synthetic:"):
        return [Check("source", "ok", f"{uri} is drawn and needs nothing")]
    if config.transport.connect is not None:
        return [Check("source", "ok", f"{uri} is not opened here: frames come from {config.transport.connect}")]
    camera = Path(config.source.uri)
    if str(camera).startswith("/dev/") and camera.exists() and not os.access(camera, os.R_OK | os.W_OK):
        remedy = f"sudo usermod -aG {camera.group()} $USER, then log in again"
        return [Check("source", "fail", f"you may not open {uri}", remedy)]
    notices: list[str] = []
    try:
        source = open_source(config.source, instruments=(), notice=notices.append)
        try:
            source.open(config.source.start_s)
            picture = next(iter(source.pictures()), None)
        finally:
            source.close()
    except StreamAgentError as error:
        return [_failed("source", error)]
    if picture is None:
        return [
            Check(
                "source",
                "fail",
                f"{uri} opens but gives no picture",
                "try another player on it; if that fails, too, replace it",
            )
        ]
    return [Check("source", "ok", f"{uri} opens, {picture.width}x{picture.height}")]


def check_keys(config: AgentConfig) -> Sequence[Check]:
    """Whether every address outside this host is encrypted and its keys are sound."""
    import zmq

    from stream_agent.transport.keys import load_keys, require_keys_outside_loopback

    checks = []
    uses = (
        ("transport", config.transport.bind or config.transport.connect, config.transport.keys),
        ("publisher", config.sinks.publisher.bind, config.sinks.publisher.keys),
    )
    for part, endpoint, directory in uses:
        try:
            if endpoint is not None:
                require_keys_outside_loopback(endpoint, directory)
            if directory is not None:
                allowed = len(load_keys(directory).allowed)
                checks.append(Check(f"{part} keys", "ok", f"{directory}: {allowed} clients allowed"))
        except StreamAgentError as error:
            checks.append(_failed(f"{part} keys", error))
    if not zmq.has("curve"):
        checks.append(Check("encryption", "fail", "this ZeroMQ has no CURVE", "pip install --force-reinstall pyzmq"))
    return checks or [Check("encryption", "ok", "CURVE is there; nothing configured leaves this host")]


def check_sinks(config: AgentConfig) -> Sequence[Check]:
    """Whether what shows, keeps and passes on a session is installed; it must be where the configuration asks for it."""
    from stream_agent.sinks.bridges import KINDS
    from stream_agent.sinks.dashboard.process import PACKAGES, require_usable

    parts = [
        ("dashboard", PACKAGES, "pip install 'stream-agent[dashboard]'", config.sinks.dashboard.enabled),
        ("recording", ("mcap",), "pip install 'stream-agent[record]'", config.sinks.recording is not None),
        *((kind.name, (kind.package,), kind.remedy, kind.wanted(config)) for kind in KINDS),
    ]
    checks = []
    for name, packages, remedy, wanted in parts:
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        use = "asked for" if wanted else "not asked for"
        if not missing:
            checks.append(Check(name, "ok", f"{', '.join(packages)} installed; {use}"))
        elif wanted:
            checks.append(Check(name, "fail", f"{', '.join(missing)} not installed; {use}", remedy))
        else:
            checks.append(Check(name, "ok", f"{', '.join(missing)} not installed; {use}. For it: {remedy}"))
    if config.sinks.dashboard.enabled and checks[0].state == "ok":
        try:
            require_usable(config.sinks.dashboard.model_copy(update={"verdicts": None}))  # their folder would be made
        except StreamAgentError as error:
            checks[0] = _failed("dashboard", error)
    return checks


def check_gpu(_config: AgentConfig) -> Sequence[Check]:
    """Whether there is a GPU for a model planner; its absence is fine."""
    tool = shutil.which("nvidia-smi")
    torch = importlib.util.find_spec("torch") is not None
    detail = f"{'nvidia-smi found' if tool else 'none found'}; torch {'installed' if torch else 'not installed'}"
    return [Check("GPU", "ok", f"{detail} (the statistical planner needs neither)")]


def check_terminal(_config: AgentConfig) -> Sequence[Check]:
    """Whether the live view can be shown."""
    if not sys.stdout.isatty():
        return [Check("terminal", "ok", "stdout is no terminal: plans are shown as plain lines")]
    columns, lines = shutil.get_terminal_size()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding != "utf8":
        return [
            Check("terminal", "warn", f"encoding {sys.stdout.encoding}", "export LANG=C.UTF-8, or sinks.console=plain")
        ]
    if columns < 80 or lines < 24:
        return [
            Check("terminal", "warn", f"{columns}x{lines} is small", "make it at least 80x24, or sinks.console=plain")
        ]
    return [Check("terminal", "ok", f"{columns}x{lines}, {os.environ.get('TERM', 'TERM unset')}")]


def _failed(name: str, error: StreamAgentError) -> Check:
    """Our messages end with the remedy after the last semicolon."""
    detail, _, remedy = str(error).rpartition("; ")
    return Check(name, "fail", detail, remedy) if detail else Check(name, "fail", remedy)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"
