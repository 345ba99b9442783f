"""One promotion from beginning to end: candidate and record in, a version in use out, or a reason why not."""

from __future__ import annotations

from pathlib import Path

from stream_agent.errors import GateError
from stream_agent.models.gate import Judgement, judge, objections
from stream_agent.models.margins import load_margins
from stream_agent.models.model_files import Kind, digest_of, file_sha256, kind_of, model_files
from stream_agent.models.record import EvaluationRecord, read_record
from stream_agent.models.registry import RECORD, Registry, Slot, Version
from stream_agent.planner.backends.adapters import WEIGHTS, adapter_directory
from stream_agent.planner.model_files import read_header
from stream_agent.procedure import ProcedurePack, load_pack

_CARD_SUFFIXES = (".md",)


def promote(
    candidate: Path, record_file: Path, *, registry: Path, pack: Path, margins_file: Path | None = None
) -> tuple[Version, Judgement]:
    """Put the candidate to use when its record is sound and shows that it is not inferior to the model in use.

    All is judged under the registry's lock: what was in use when it was judged is what it replaces.

    Raises:
        GateError: The record proves nothing, or the candidate is inferior; a line per reason.
        ConfigError: A file is missing or damaged.
    """
    kind = kind_of(candidate)
    files = model_files(candidate)
    record_sha256 = file_sha256(record_file) if record_file.is_file() else ""
    record = read_record(record_file)
    margins = getattr(load_margins(margins_file), kind)
    loaded = _require_usable(kind, candidate, pack)
    shelf = Registry(registry)
    with shelf.changing():
        slot = shelf.slot(kind, loaded.name)
        in_use = _files_in_use(kind, slot, loaded)
        reasons = [*_about_the_files(record, kind, files, in_use, slot), *objections(record, margins)]
        reasons += _covers_less(record, kind, slot, shelf, loaded.name)
        if reasons:
            raise GateError("\n".join(f"record {record_file}: {reason}" for reason in reasons))
        judgement = judge(record, margins)
        if not judgement.passed:
            raise GateError(
                "\n".join(
                    f"{candidate} is {'not inferior' if axis.passed else 'not shown to be as good'} on {axis.name}: {axis.finding}"
                    for axis in judgement.axes
                    if not axis.passed
                )
            )
        version = shelf.add(
            kind,
            loaded.name,
            source=candidate,
            model=files,
            cards=[path for path in sorted(candidate.iterdir()) if path.suffix in _CARD_SUFFIXES and path.is_file()],
            record=record_file,
            record_sha256=record_sha256,
            base=record.candidate.base,
            findings=[f"{axis.name}: {axis.finding}" for axis in judgement.axes],
        )
    return version, judgement


def _require_usable(kind: Kind, candidate: Path, pack: Path) -> ProcedurePack:
    """The pack, after a look whether a run could load the candidate with it."""
    if kind == "statistical":
        load_pack(pack, fitted=candidate)
    else:
        read_header(adapter_directory(candidate) / WEIGHTS)
    return load_pack(pack)


def _files_in_use(kind: Kind, slot: Slot, pack: ProcedurePack) -> dict[str, str]:
    version = slot.version(slot.in_use)
    if version is not None:
        return {name: version.files[name] for name in version.model}
    return model_files(pack.folder) if kind == "statistical" else {}


def _about_the_files(
    record: EvaluationRecord, kind: Kind, files: dict[str, str], in_use: dict[str, str], slot: Slot
) -> list[str]:
    """What is wrong between the record and the models it claims to be about."""
    if record.kind != kind:
        return [f"kind={record.kind}, but the candidate is of kind {kind}; name the candidate's own record"]
    found = []
    if record.candidate.files != files:
        claimed, there = digest_of(kind, record.candidate.files), digest_of(kind, files)
        found.append(f"it is about {claimed or 'no model'}, the candidate is {there}; evaluate this candidate")
    if record.in_use.files != in_use:
        compared, now = digest_of(kind, record.in_use.files), digest_of(kind, in_use)
        found.append(
            f"it compares with {compared or 'the base model'}, in use is version {slot.in_use}, "
            f"{now or 'the base model'}; evaluate again beside that"
        )
    elif files == in_use:
        found.append(f"the candidate {digest_of(kind, files)} is in use already; there is nothing to promote")
    return found


def _covers_less(record: EvaluationRecord, kind: Kind, slot: Slot, shelf: Registry, procedure: str) -> list[str]:
    """Videos that the model in use was judged on and the candidate was not: nobody may choose the easy ones."""
    version = slot.version(slot.in_use)
    if version is None:
        return []
    before = read_record(shelf.intact(kind, procedure, version) / RECORD)
    lacking = {one.video for one in before.candidate.answers} - {one.video for one in record.candidate.answers}
    if not lacking:
        return []
    return [
        f"{', '.join(sorted(lacking)[:4])} ({len(lacking)} videos) is not asked, on which version {version.number} was judged; "
        "evaluate on all of them"
    ]
