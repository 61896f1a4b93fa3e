"""The commit protocol: what makes a run exactly once, and two runs on one root harmless.

A **claim** is a table opened once, before a run looks at anything. All that the run does rests on that version, and its
commit carries an application id that every other run's commit carries too ("writer" on states, "fused" on profiles).
Whoever commits first bumps the id; every handle opened before is then stale for good and its commit is refused.

From that follows which files may be deleted. A file that lay there *before our commit* and that no version has named
*after our commit* was written by a run whose handle is older than our commit: it can never be committed. Any other file
may belong to a live run and stays. A run with several waves reopens the table after each of its own commits, and goes
on only if the id still has its own number, so its later waves are fenced just the same.

A file is folded if and only if its wave's uuid is in the states log. Nothing here knows Delta or a file system: a table
with the semantics of `Version` will do, which is how the tests run thousands of schedules.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from ray_profile.errors import BuildFailed, FencedError, RootError
from ray_profile.store.plan import Found, Kind, PastWave, Plan, PlannedFile, RejectedFile, Wave, make_plan
from ray_profile.store.root import Listing
from ray_profile.store.tables import DataFile

__all__ = [
    "Claim",
    "Fuse",
    "Plan",
    "PlannedFile",
    "RejectedFile",
    "Wave",
    "Writer",
    "file_name",
    "pending",
    "unfused",
    "wave_of",
]

WRITER = "writer"
FUSED = "fused"
WAVES = "waves"
QUARANTINE = "quarantine"
GB = 1e9

#: How long the plan of a wave that was never committed is kept for whoever asks what happened.
PLAN_DAYS = 7

_UUID = re.compile(r"[0-9a-f]{32}")


class Files(Protocol):
    """What is asked of a root."""

    def create_json(self, value: Any, *parts: str) -> bool: ...
    def read_jsons(self, paths: Iterable[str]) -> list[Any | None]: ...
    def list(self, *parts: str) -> list[Listing]: ...
    def delete(self, paths: Iterable[str]) -> None: ...
    def settle(self) -> None: ...


class Version(Protocol):
    """What is asked of a table at one version: `tables.Handle`."""

    def transaction(self, app_id: str) -> int | None: ...
    def transactions(self, app_ids: Collection[str]) -> dict[str, int]: ...
    def files(self) -> list[DataFile]: ...
    def tombstones(self) -> set[str]: ...
    def append(self, adds: Sequence[DataFile], transactions: Mapping[str, int]) -> int: ...
    def replace_files(
        self, adds: Sequence[DataFile], removes: Sequence[DataFile], transactions: Mapping[str, int]
    ) -> int: ...
    def replace_buckets(
        self, adds: Sequence[DataFile], buckets: Collection[int], transactions: Mapping[str, int]
    ) -> int: ...


class Log(Protocol):
    """What is asked of a table: `tables.Table`."""

    @property
    def name(self) -> str: ...
    def open(self) -> Version | None: ...
    def committed(self, app_id: str, value: int) -> bool: ...


Step = Callable[[str], None]
Act = Callable[[Version, Mapping[str, int]], int]


def ignore_step(step: str) -> None:
    """The default of `at`, which is told every numbered step: tests stop there, the CLI shows progress."""


class Claim:
    """A table as a run found it, and the only way that the run commits to it."""

    def __init__(self, files: Files, log: Log, shared_id: str) -> None:
        handle = log.open()
        assert handle is not None, f"table {log.name} must be created before a run claims it"
        self.handle: Version = handle
        self.number = handle.transaction(shared_id) or 0
        self._files = files
        self._log = log
        self._shared_id = shared_id
        self._usable = True
        self.committed = False
        self._seen = _with_uuid(files.list(log.name))

    def commit(self, wave_uuid: str, number: int, act: Act) -> None:
        """Commit by `act(handle, transactions)`, then stand on the new version. A lost answer is looked up in the log.

        Raises `FencedError` where another run came first, `StorageError` where the store failed; then the claim is
        spent, and the run plans again on a new one.
        """
        if not self._usable:
            raise FencedError("another run has committed to this root since this one opened it; run it again")
        assert number >= self.number, f"{self._shared_id} would go back from {self.number} to {number}"
        self._usable = False
        try:
            act(self.handle, {wave_uuid: 1, self._shared_id: number})
        except BuildFailed:
            if not self._log.committed(wave_uuid, 1):
                raise
        self.committed = True
        self.number = number
        after = self._log.open()
        assert after is not None, f"table {self._log.name} has vanished"
        self.handle = after
        self._usable = after.transaction(self._shared_id) == number

    def orphans(self, own: Collection[str] = ()) -> list[str]:
        """Data files that nobody can commit any more, as paths under the root. Only to be asked after a commit.

        `own` names the run's waves that are not committed yet.
        """
        assert self.committed, "before this run's own commit any file may be a live run's"
        named = {file.path for file in self.handle.files()} | self.handle.tombstones()
        start = len(self._log.name) + 1
        return [path for path in self._seen if path[start:] not in named and _uuid_of(path) not in own]


class Writer:
    """One run's hold on the states: it plans, writes its plans, commits its waves one after the other, and tidies up.

    Make it before listing the sources. `at` is called with the name of every step: open, plan, reject, commit and
    orphans, each followed by ".before" or ".after".
    """

    def __init__(self, files: Files, states: Log, at: Step = ignore_step) -> None:
        self.at = at
        at("open.before")
        self._files = files
        self._claim = Claim(files, states, WRITER)
        self._plans = files.list(WAVES)
        self._leftovers = _with_uuid(files.list(QUARANTINE))
        self._own: set[str] = set()  # waves that this run has planned and not committed
        self._written: set[str] = set()
        at("open.after")

    @property
    def handle(self) -> Version:
        """The states that this run's next commit rests on."""
        return self._claim.handle

    @property
    def number(self) -> int:
        """The number of the last committed wave, compaction or erasure."""
        return self._claim.number

    def past(self) -> list[PastWave]:
        """Every wave in the log. Raises `RootError` where a plan is missing: its files would be folded in twice."""
        listed = {entry.path for entry in self._files.list(WAVES)}
        plans = [path for path in sorted(listed) if _UUID.fullmatch(_stem(path)) and path == _plan_path(_stem(path))]
        committed = self.handle.transactions([_stem(path) for path in plans])
        plans = [path for path in plans if _stem(path) in committed]
        waves = [Wave.from_json(value or {}) for value in self._files.read_jsons(plans)]
        missing = sorted(set(range(1, self.number + 1)) - {wave.number for wave in waves})
        if missing:
            raise RootError(
                f"waves/ lacks the plans of the committed waves {', '.join(map(str, missing))}, so nobody knows which "
                "files they folded in; restore waves/ from a copy, or build into a new root"
            )
        with_rejects = [path for path in map(_rejects_path, (wave.uuid for wave in waves)) if path in listed]
        rejects = dict(zip(with_rejects, self._files.read_jsons(with_rejects), strict=True))
        return [
            PastWave(wave, tuple(RejectedFile(**each) for each in rejects.get(_rejects_path(wave.uuid)) or ()))
            for wave in sorted(waves, key=lambda wave: wave.number)
        ]

    def plan(
        self,
        found: Iterable[Found],
        digests: Mapping[str, str | None],
        config: Mapping[str, Any],
        clock: datetime,
        wave_gb: float,
        replaceable: Collection[str] = (),
        describing: Collection[str] = (),
    ) -> Plan:
        """What is to be folded in of the files that the sources list now: see `plan.make_plan`."""
        plan = make_plan(found, self.past(), self.number, digests, config, clock, wave_gb * GB, replaceable, describing)
        self._own.update(wave.uuid for wave in plan.waves)
        return plan

    def wave(self, kind: Kind, clock: datetime, config: Mapping[str, Any] | None = None) -> Wave:
        """A wave without source files, for a compaction or an erasure."""
        wave = Wave(uuid.uuid4().hex, self.number + 1, clock.isoformat(), kind, config=config or {})
        self._own.add(wave.uuid)
        return wave

    def write_plan(self, wave: Wave) -> None:
        """Write waves/<uuid>.json; no file of the wave may be written before."""
        self.at("plan.before")
        created = self._files.create_json(wave.to_json(), WAVES, f"{wave.uuid}.json")
        assert created, f"the plan of wave {wave.uuid} was there already"
        self._written.add(wave.uuid)
        self.at("plan.after")

    def commit_wave(
        self,
        wave: Wave,
        adds: Sequence[DataFile],
        rejected: Sequence[RejectedFile] = (),
        facts: Mapping[str, int] | None = None,
    ) -> None:
        """Fold a wave in: append its files, none if it has no rows, and remember the source files that it rejected.

        `facts` are further application ids that the commit carries, for the fuse to read.

        Raises `FencedError`, or `RootError` where another first run has fixed other facts of the root: then nothing of
        the wave is in the table. Or `StorageError`, then the next run looks into the log: whatever happened, it plans
        exactly the files that are not in the table.
        """
        assert wave.kind == "fold", f"wave {wave.uuid} is a {wave.kind}"
        assert {(f.source, f.path) for f in rejected} <= {(f.source, f.path) for f in wave.files}, "rejected unplanned"
        if rejected:
            # Before the commit, and believed only with it: a crash between the two leaves a list that nobody reads.
            self.at("reject.before")
            values = [dataclasses.asdict(file) for file in rejected]
            created = self._files.create_json(values, WAVES, f"{wave.uuid}.rejected.json")
            assert created, f"wave {wave.uuid} has rejected other files already"
            self.at("reject.after")
        self._commit(wave, adds, lambda handle, transactions: handle.append(adds, {**transactions, **(facts or {})}))

    def commit_replacement(self, wave: Wave, adds: Sequence[DataFile], removes: Sequence[DataFile]) -> None:
        """Put `adds` in the place of exactly `removes`: a compaction's or an erasure's commit, fenced like a wave's."""
        assert wave.kind != "fold", f"wave {wave.uuid} folds files in"
        self._commit(wave, adds, lambda handle, transactions: handle.replace_files(adds, removes, transactions))

    def remove_orphans(self, now: datetime) -> list[str]:
        """Delete what dead or fenced runs left behind and return the paths; nothing unless this run has committed.

        Plans that were never committed stay for `PLAN_DAYS`.
        """
        if not self._claim.committed:
            return []
        uuids = {_uuid_of(path) for path in (*self._leftovers, *(entry.path for entry in self._plans))}
        dead = {each for each in uuids if each is not None} - self._own
        dead -= self.handle.transactions(dead).keys()
        orphans = self._claim.orphans(self._own)
        orphans += [path for path in self._leftovers if _uuid_of(path) in dead]
        late = now - timedelta(days=PLAN_DAYS)
        orphans += [entry.path for entry in self._plans if _uuid_of(entry.path) in dead and entry.modified < late]
        self.at("orphans.before")
        self._files.delete(orphans)
        self.at("orphans.after")
        return orphans

    def _commit(self, wave: Wave, adds: Sequence[DataFile], act: Act) -> None:
        assert wave.uuid in self._written, f"the plan of wave {wave.uuid} is not written"
        assert wave.number == self.number + 1, f"wave {wave.uuid} was planned as number {wave.number}"
        assert all(_uuid_of(file.path) == wave.uuid for file in adds), f"a file without {wave.uuid} in its name"
        self.at("commit.before")
        self._files.settle()
        self._claim.commit(wave.uuid, wave.number, act)
        self._own.discard(wave.uuid)
        self.at("commit.after")


class Fuse:
    """One run's hold on the profiles: open it before reading the states of the users that changed.

    `since` and `number` are M and N of `pending`: users with wave_no > M are to be fused, as of the states' wave N. Its
    steps are fuse.before and fuse.after.
    """

    def __init__(self, files: Files, states: Version, profiles: Log, at: Step = ignore_step) -> None:
        self.at = at
        self._files = files
        self._claim = Claim(files, profiles, FUSED)
        self.uuid = uuid.uuid4().hex  # in the name of every file that this fuse writes
        self.since, self.number = pending(states, self._claim.handle)

    @property
    def handle(self) -> Version:
        """The profiles that this fuse's commit rests on."""
        return self._claim.handle

    def commit(
        self, adds: Sequence[DataFile], buckets: Collection[int], facts: Mapping[str, int] | None = None
    ) -> None:
        """Put `adds` in the place of all that `buckets` hold; without buckets, only note that the states are fused.

        `facts` are further application ids that the commit carries, for the next run to read.

        Raises `FencedError` where another run has fused since, `StorageError` where the store fails.
        """
        assert all(_uuid_of(file.path) == self.uuid for file in adds), f"a file without {self.uuid} in its name"
        assert buckets or not adds, "files without a bucket to replace"
        if self.since > self.number:
            raise FencedError("another run has fused a later wave than this one read; run it again")
        self.at("fuse.before")

        def act(handle: Version, transactions: Mapping[str, int]) -> int:
            transactions = {**transactions, **(facts or {})}
            if buckets:
                return handle.replace_buckets(adds, buckets, transactions)
            return handle.append([], transactions)

        self._claim.commit(self.uuid, self.number, act)
        self.at("fuse.after")

    def remove_orphans(self) -> list[str]:
        """Delete profile files that dead or fenced runs left behind and return the paths; none before the commit."""
        orphans = self._claim.orphans() if self._claim.committed else []
        self._files.delete(orphans)
        return orphans


def pending(states: Version, profiles: Version | None) -> tuple[int, int]:
    """(M, N): the wave up to which profiles are fused, and the last wave in the states. M < N: there is work to do."""
    fused = None if profiles is None else profiles.transaction(FUSED)
    return fused or 0, states.transaction(WRITER) or 0


def unfused(states: Version, profiles: Version | None) -> set[int]:
    """The waves whose rows are not in the profiles yet. A compaction moves rows, and makes none due."""
    fused, _ = pending(states, profiles)
    return {wave for wave in map(wave_of, states.files()) if wave > fused}


def file_name(wave_uuid: str, wave: int | None = None) -> str:
    """A new name for a data file: an attempt that comes late must not overwrite what another one has committed."""
    return f"{wave_uuid}-{secrets.token_hex(4)}" + (f"-w{wave}" if wave is not None else "")


def wave_of(file: DataFile) -> int:
    """The greatest wave number among the rows of a states file, which its name carries."""
    return int(file.path.rsplit("-w", 1)[1].removesuffix(".parquet"))


def _uuid_of(path: str) -> str | None:
    """The wave in a path under the root: quarantine/<uuid>/..., or a file name that starts with it."""
    folder, _, rest = path.partition("/")
    match = _UUID.match(rest if folder == QUARANTINE else path.rsplit("/", 1)[-1])
    return match[0] if match else None


def _with_uuid(listings: Iterable[Listing]) -> list[str]:
    paths = (listing.path for listing in listings)
    return [path for path in paths if _uuid_of(path) is not None and "/_delta_log/" not in path]


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".")[0]


def _plan_path(wave_uuid: str) -> str:
    return f"{WAVES}/{wave_uuid}.json"


def _rejects_path(wave_uuid: str) -> str:
    return f"{WAVES}/{wave_uuid}.rejected.json"
