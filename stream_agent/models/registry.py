"""The registry of promoted models: versions that never change, and one small file that says which is in use.

    DIR/registry.json                                   what is in use, every version and every event; replaced as a whole
    DIR/versions/statistical-cholecystectomy-0001/      the model's files, its model card, and record.json, its evidence
    DIR/lock                                            held by whoever changes anything

A promotion copies into a folder without a name, asks the disk to keep it, gives it its name, and then replaces registry.json:
that replacement is the promotion. Killed before it, nothing has changed but a folder that nobody names, which the next
promotion removes; killed after it, all has. Readers take no lock: they see the file of before or of after.

Version 0 is what is there without a registry: the procedure pack's own statistical model, or the base model without adapter.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from stream_agent.errors import UNDECODABLE, ConfigError
from stream_agent.models.model_files import Kind, digest_of, file_sha256
from stream_agent.models.record import Sha256

SCHEMA: Final = 1
STATE: Final = "registry.json"
RECORD: Final = "record.json"
_LOCK: Final = "lock"
_VERSIONS: Final = "versions"
_PART: Final = ".part-"
_WAIT_S: Final = 10.0
_POLL_S: Final = 0.05


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One promoted model.

    Attributes:
        number: From 1 within its slot.
        digest: Its name in plans (`digest_of`).
        files: sha256 of everything in its folder by name: the model, its record and its card.
        model: Names of those files that answer.
        base: An adapter's base model by its digest; empty for a statistical model.
        before: The version that was in use when this was promoted, which a rollback goes back to.
        promoted_at: UTC, ISO 8601.
        findings: What the gate said, one line per axis.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    digest: str
    files: dict[str, Sha256]
    model: tuple[str, ...]
    base: str
    before: Annotated[int, msgspec.Meta(ge=0)]
    promoted_at: str
    findings: tuple[str, ...]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was put to use when, and why."""

    at: str
    what: Literal["promote", "rollback"]
    number: int


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The versions of one kind of model for one procedure."""

    in_use: Annotated[int, msgspec.Meta(ge=0)] = 0
    versions: tuple[Version, ...] = ()
    events: tuple[Event, ...] = ()

    def version(self, number: int) -> Version | None:
        """The version of that number; None for 0, which is what there is without a registry.

        Raises:
            ConfigError: There is no such version.
        """
        if number == 0:
            return None
        for version in self.versions:
            if version.number == number:
                return version
        raise ConfigError(f"version {number} is none of 0 … {len(self.versions)}; `models list` shows them")


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int = SCHEMA
    slots: dict[str, Slot] = {}


class Registry:
    """A registry's folder; nothing is kept between calls, so what is read is what is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ------------------------------------------------------------------------------------------------ reading

    def slots(self) -> dict[str, Slot]:
        """Every slot by its name, `statistical/cholecystectomy` say; empty where nothing was ever promoted.

        Raises:
            ConfigError: The folder holds a registry that cannot be read.
        """
        path = self.folder / STATE
        remedy = "restore the file from a backup, or name another registry"
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            if self.folder.exists() and not self.folder.is_dir():
                raise ConfigError(f"registry {self.folder} is no folder; name one") from None
            if (self.folder / _VERSIONS).is_dir() and any((self.folder / _VERSIONS).glob("[!.]*")):
                raise ConfigError(f"{path} is gone, but versions are there; {remedy}") from None
            return {}
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        try:
            state = msgspec.json.decode(raw, type=_State)
        except UNDECODABLE as error:
            raise ConfigError(f"{path} is no registry ({error}); {remedy}") from error
        if state.version != SCHEMA:
            raise ConfigError(f"{path} has version {state.version}, this program reads {SCHEMA}; use the newer program")
        return state.slots

    def slot(self, kind: Kind, procedure: str) -> Slot:
        """The slot of a kind of model for a procedure; an empty one where nothing was promoted."""
        return self.slots().get(slot_name(kind, procedure), Slot())

    def version_folder(self, kind: Kind, procedure: str, number: int) -> Path:
        """Where a version's files lie."""
        return self.folder / _VERSIONS / f"{kind}-{procedure}-{number:04d}"

    def intact(self, kind: Kind, procedure: str, version: Version) -> Path:
        """The version's folder after its sums were checked: exactly its files, each as promoted.

        Raises:
            ConfigError: One is missing, changed or added.
        """
        folder = self.version_folder(kind, procedure, version.number)
        if not folder.is_dir():
            raise ConfigError(f"{folder} is gone; restore it from a backup, or go back with `models rollback`")
        there = {path.name for path in folder.iterdir()}
        for name in sorted(there | set(version.files)):
            problem = ""
            if name not in there:
                problem = "is gone"
            elif name not in version.files:
                problem = "was added"
            elif (folder / name).is_symlink() or file_sha256(folder / name) != version.files[name]:
                problem = "is not the file that was promoted"
            if problem:
                raise ConfigError(
                    f"{folder / name} {problem}; restore the folder from a backup, or go back with `models rollback`"
                )
        return folder

    # ------------------------------------------------------------------------------------------------ changing

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the registry's lock; it dies with the process.

        Raises:
            ConfigError: Another process holds it for too long, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"registry {self.folder} cannot be written ({error.strerror}); name a folder of your own"
            ) from error
        try:
            self._wait_for(lock)
            yield
        except OSError as error:
            raise ConfigError(
                f"registry {self.folder} cannot be written ({error.strerror}); what is in use has not changed: make room "
                "or name another folder"
            ) from error
        finally:
            os.close(lock)

    def _wait_for(self, lock: int) -> None:
        until = time.monotonic() + _WAIT_S
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            if time.monotonic() >= until:
                raise ConfigError(
                    f"registry {self.folder} is being changed by another process for more than {_WAIT_S:g} s; try again"
                )
            time.sleep(_POLL_S)  # flock has no timeout of its own

    def add(
        self,
        kind: Kind,
        procedure: str,
        *,
        source: Path,
        model: Mapping[str, str],
        cards: Iterable[Path],
        record: Path,
        record_sha256: str,
        base: str,
        findings: Iterable[str],
    ) -> Version:
        """Copy a model in and put it to use; the caller holds `changing()`.

        Args:
            kind: Statistical model or adapter.
            procedure: The procedure pack's name.
            source: Folder that the model's files are copied from.
            model: Their sha256 sums by name; a copy with another sum stops the promotion.
            cards: Further files to keep beside it.
            record: The evaluation record's file.
            record_sha256: Its sum when it was judged.
            base: An adapter's base model by its digest.
            findings: What the gate said.

        Raises:
            ConfigError: A file is not what was judged.
            OSError: The disk does not take it; `changing()` tells.
        """
        slots = self.slots()
        name = slot_name(kind, procedure)
        slot = slots.get(name, Slot())
        number = len(slot.versions) + 1
        final = self.version_folder(kind, procedure, number)
        unnamed = final.with_name(f"{_PART}{final.name}")
        if not (self.folder / STATE).exists():
            self._write(slots)  # so that versions without it always mean that it was lost
        for left_behind in (final, unnamed):  # by a promotion that was killed: no version has this number yet
            if left_behind.exists():
                shutil.rmtree(left_behind)
        unnamed.mkdir(parents=True)
        files = {item: _copied(source / item, unnamed / item, expected=sum_) for item, sum_ in model.items()}
        files[RECORD] = _copied(record, unnamed / RECORD, expected=record_sha256)
        files |= {card.name: _copied(card, unnamed / card.name) for card in cards if card.name not in files}
        _keep(unnamed)
        unnamed.rename(final)
        _keep(final.parent)
        version = Version(
            number=number,
            digest=digest_of(kind, model),
            files=files,
            model=tuple(model),
            base=base,
            before=slot.in_use,
            promoted_at=_now(),
            findings=tuple(findings),
        )
        event = Event(version.promoted_at, "promote", number)
        slots[name] = Slot(in_use=number, versions=(*slot.versions, version), events=(*slot.events, event))
        self._write(slots)
        return version

    def roll_back(self, kind: Kind, procedure: str) -> tuple[Version, Version | None]:
        """Go back to the version before the one in use; (the one left, the one gone back to). The caller holds `changing()`.

        Raises:
            ConfigError: None was ever promoted, or the version before is damaged.
        """
        slots = self.slots()
        name = slot_name(kind, procedure)
        slot = slots.get(name, Slot())
        left = slot.version(slot.in_use)
        if left is None:
            raise ConfigError(
                f"{name} is at version 0, there is no version before it; `models list` shows what there is"
            )
        back = slot.version(left.before)
        if back is not None:
            self.intact(kind, procedure, back)
        event = Event(_now(), "rollback", left.before)
        slots[name] = Slot(in_use=left.before, versions=slot.versions, events=(*slot.events, event))
        self._write(slots)
        return left, back

    def _write(self, slots: Mapping[str, Slot]) -> None:
        unfinished = self.folder / f".{STATE}.part"
        content = msgspec.json.format(msgspec.json.encode(_State(slots=dict(slots))), indent=1) + b"\n"
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / STATE)
        _keep(self.folder)


def slot_name(kind: Kind, procedure: str) -> str:
    """`statistical/cholecystectomy`, say."""
    return f"{kind}/{procedure}"


def split_slots(slots: Mapping[str, Slot]) -> Iterator[tuple[Kind, str, Slot]]:
    """Kind, procedure and slot, by name."""
    for name in sorted(slots):
        kind, _, procedure = name.partition("/")
        yield ("adapter" if kind == "adapter" else "statistical"), procedure, slots[name]


def _copied(source: Path, target: Path, *, expected: str | None = None) -> str:
    """Copy a file, ask the disk to keep it, and say its sum."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    found = file_sha256(target)
    if expected is not None and found != expected:
        raise ConfigError(f"{source} changed while it was judged; leave it alone and promote it again")
    return found


def _keep(folder: Path) -> None:
    """Ask the disk to keep the names in a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
