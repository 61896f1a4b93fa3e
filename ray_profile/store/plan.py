"""What a wave reads, and which of the files that lie in the sources are still to be read.

Pure: given the waves that are in the log and the files that exist now, says what is new, folded, rejected or changed.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from ray_profile.errors import ChangedFileError, RootError
from ray_profile.sources.files import NEVER_EMPTY

Kind = Literal["fold", "compact", "erase"]

#: Digests that must not change within a root, and what to do about a change; others are recorded only.
FIXED_DIGESTS = {
    "encoder": "vectors of two encoders cannot be compared; set the old encoder, or rebuild: build into a new root",
    "schema": "the columns differ; use the release that made the root, or rebuild: build into a new root",
    "key": "users would get other pseudonyms; name the old key under [privacy], or rebuild: build into a new root",
    "taxonomy": "folded reviews carry the old tags; set the old taxonomy, or re-tag: build into a new root",
}


class Found(Protocol):
    """A file that a source lists: `sources.files.SourceFile`, or `PlannedFile`."""

    @property
    def source(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def tag(self) -> str: ...


@dataclass(frozen=True)
class PlannedFile:
    """A source file as it was when it was planned; `tag` is the S3 ETag, or the local mtime in ns."""

    source: str
    path: str
    size: int  # bytes
    tag: str


@dataclass(frozen=True)
class RejectedFile:
    """A file that could not be read whole, so that nothing of it is folded in.

    It is not tried again until its size or tag changes, unless `transient`: it vanished or changed while being read.
    """

    source: str
    path: str
    size: int  # bytes, as planned
    tag: str
    reason: str
    transient: bool = False


@dataclass(frozen=True)
class Wave:
    """What one commit to the states table takes in. Kept as root/waves/<uuid>.json, written before anything else."""

    uuid: str  # 32 hex digits; in the name of every file that the wave writes
    number: int  # the "writer" transaction that it commits as: wave_no of its state rows
    clock: str  # ISO 8601 in UTC: the plan's now
    kind: Kind = "fold"
    files: tuple[PlannedFile, ...] = ()
    digests: Mapping[str, str | None] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Wave:
        """The reverse of `to_json`. Raises `RootError` for a file that is no plan."""
        try:
            files = tuple(PlannedFile(**each) for each in value["files"])
            return cls(**{**value, "files": files})
        except (KeyError, TypeError) as error:
            raise RootError(f"a file under waves/ is no plan ({error}); restore it from a copy") from error


@dataclass(frozen=True)
class PastWave:
    """A committed wave and what it rejected."""

    wave: Wave
    rejected: tuple[RejectedFile, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run has to do, and what it leaves alone. Every listed file that has bytes is in exactly one of the three.

    A text of no bytes is not written yet: it is in none of them, and planned once it has some.
    """

    waves: tuple[Wave, ...]
    folded: tuple[PlannedFile, ...]  # in the states already
    rejected: tuple[RejectedFile, ...]  # rejected before and not changed since: not tried again


@dataclass(frozen=True)
class _Past:
    file: PlannedFile
    wave: Wave
    rejected: RejectedFile | None  # None: folded


def make_plan(
    found: Iterable[Found],
    past: Sequence[PastWave],
    number: int,
    digests: Mapping[str, str | None],
    config: Mapping[str, Any],
    clock: datetime,
    wave_bytes: float,
    replaceable: Collection[str] = (),
    describing: Collection[str] = (),
) -> Plan:
    """Split the files that no wave of `past` has folded into waves of at most `wave_bytes`, numbered from `number` + 1.

    A larger file is a wave of its own. Files of `replaceable` sources (catalogues) may change: they are read again.
    They and the `describing` sources, whose rows say what their items are, come first.
    A file of the name, size and tag of a folded one that is no longer listed is that one, moved with its folder.
    Raises `ChangedFileError` for any other folded file whose size or tag differs, or that seems to be renamed, and
    `RootError` for a digest that must not change or a source that was renamed.
    """
    assert clock.tzinfo is not None, "the clock must carry its zone"
    # Whoever describes items comes first: however small the waves are, no row is folded before its item is known.
    files = sorted(
        (PlannedFile(f.source, f.path, f.size, f.tag) for f in found),
        key=lambda f: (f.source not in replaceable, f.source not in describing, f.source, f.path),
    )
    listed = {(file.source, file.path) for file in files}
    assert len(listed) == len(files), "a source lists a file twice"
    check_digests(past, digests, config)
    known = _history(past)
    owners = {path: source for source, path in known}
    gone = _gone(known, listed)
    new: list[PlannedFile] = []
    folded: list[PlannedFile] = []
    rejected: list[RejectedFile] = []
    for file in files:
        before = known.get((file.source, file.path))
        if _is_unwritten(file) and (before is None or before.rejected is not None or file.source in replaceable):
            continue
        if before is None:
            _check_source(file, owners.get(file.path, file.source), listed)
            alike = gone.get(_mark(file), {})
            if alike and _name(file) not in alike:
                raise _renamed(next(iter(alike.values())), file)
            (folded if alike else new).append(file)
        elif before.rejected is not None and (before.file != file or before.rejected.transient):
            new.append(file)
        elif before.rejected is not None:
            rejected.append(before.rejected)
        elif before.file == file:
            folded.append(file)
        elif file.source in replaceable:
            new.append(file)
        else:
            raise _changed(before, file)
    waves = (
        Wave(uuid.uuid4().hex, number + place, clock.isoformat(), "fold", batch, digests, config)
        for place, batch in enumerate(_batches(new, wave_bytes), start=1)
    )
    return Plan(tuple(waves), tuple(folded), tuple(rejected))


def _history(past: Sequence[PastWave]) -> dict[tuple[str, str], _Past]:
    known: dict[tuple[str, str], _Past] = {}
    for each in sorted(past, key=lambda each: each.wave.number):
        rejected = {(file.source, file.path): file for file in each.rejected}
        for file in (file for file in each.wave.files if not _is_unwritten(file)):  # of which nothing was folded
            known[file.source, file.path] = _Past(file, each.wave, rejected.get((file.source, file.path)))
    return known


def check_digests(
    past: Sequence[PastWave], digests: Mapping[str, str | None], config: Mapping[str, Any] | None = None
) -> None:
    """Raise `RootError` for one of these digests that must stay the same and is not that of the last fold.

    `config` is the run's, as waves keep theirs: it says what another encoder is called.
    """
    folds = [each.wave for each in past if each.wave.kind == "fold"]
    if not folds:
        return
    last = max(folds, key=lambda wave: wave.number)
    for name in FIXED_DIGESTS:
        there, here = last.digests.get(name), digests.get(name)
        if name in digests and there != here:
            raise RootError(
                f"the {name} has changed since wave {last.number} ({last.clock}): digest {there!r} there, {here!r} "
                f"now; {_mend(name, last.config, config or {})}"
            )


def _mend(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    old, new = (each.get("encoder", {}).get("model") for each in (then, now))
    if name != "encoder" or not old or not new or old == new:
        return FIXED_DIGESTS[name]
    # A new root has no models yet, so that there "root:<name>" would name nothing: both are named by their addresses.
    return (
        f"vectors of two encoders cannot be compared; keep the old one with encoder.model = {old!r}, or rebuild with "
        f"the new one: build into a new root with encoder.model = {new!r}"
    )


def _check_source(file: PlannedFile, owner: str, listed: Collection[tuple[str, str]]) -> None:
    # A file may be read by two sources, but a source that merely got another name must not fold its files twice.
    if owner != file.source and (owner, file.path) not in listed:
        raise RootError(
            f"{file.path} is folded in as a file of source {owner!r}, which no longer lists it, and now belongs to "
            f"{file.source!r}; give the source its old name back, or build into a new root"
        )


def _is_unwritten(file: PlannedFile) -> bool:
    return file.size == 0 and not file.path.lower().endswith(NEVER_EMPTY)


def _gone(
    known: Mapping[tuple[str, str], _Past], listed: Collection[tuple[str, str]]
) -> dict[tuple[str, int, str], dict[str, _Past]]:
    """The folded files that are no longer listed, by what tells them apart wherever they lie, and by name."""
    gone: dict[tuple[str, int, str], dict[str, _Past]] = defaultdict(dict)
    for key, before in known.items():
        if before.rejected is None and key not in listed:
            gone[_mark(before.file)][_name(before.file)] = before
    return gone


def _mark(file: PlannedFile) -> tuple[str, int, str]:
    return file.source, file.size, file.tag


def _name(file: PlannedFile) -> str:
    return file.path.rsplit("/", 1)[-1]


def _renamed(before: _Past, file: PlannedFile) -> ChangedFileError:
    return ChangedFileError(
        f"{file.path} has the size and tag of {before.file.path}, which wave {before.wave.number} folded in and which "
        "is gone: its rows would count twice. Give it its old name back; if it is another file, write it anew"
    )


def _changed(before: _Past, file: PlannedFile) -> ChangedFileError:
    wave = before.wave
    return ChangedFileError(
        f"{file.path} has changed since wave {wave.number} ({wave.uuid}, {wave.clock}) folded it in: "
        f"{before.file.size} bytes and tag {before.file.tag} then, {file.size} bytes and tag {file.tag} now; put the "
        "old file back and new rows into a file of their own, or build into a new root"
    )


def _batches(files: Sequence[PlannedFile], wave_bytes: float) -> list[tuple[PlannedFile, ...]]:
    batches: list[list[PlannedFile]] = []
    room = 0.0
    for file in files:
        if not batches or file.size > room:
            batches.append([])
            room = wave_bytes
        batches[-1].append(file)
        room -= file.size
    return [tuple(batch) for batch in batches]
