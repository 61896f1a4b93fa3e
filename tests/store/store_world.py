"""A store and its processes in memory, where a test decides which process makes the next request, and who dies.

Every request to the store (list, read, write, delete, open, commit) is a point at which a process can be interrupted
or killed. Commits follow what delta-rs was seen to do: test_memory_log.py compares the two.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from ray_profile.errors import ChangedFileError, FencedError, RayProfileError, StorageError
from ray_profile.store import plan, waves
from ray_profile.store.plan import PlannedFile, RejectedFile
from ray_profile.store.root import Listing
from ray_profile.store.tables import DataFile
from ray_profile.store.waves import Fuse, Writer

BUCKETS = 3
FILE_BYTES = 10
WAVE_GB = 2 * FILE_BYTES / waves.GB  # two files a wave, so that runs have several
BROKEN = 2  # the tag of a file that no run can read whole
DIGESTS = {"encoder": "e", "schema": "s"}

Row = tuple[str, int]  # (path, tag) of the source file that it came from


class Killed(BaseException):
    """The process is gone; not an Exception, so that nobody handles it."""


class Process:
    """A body of code that makes as many requests to the store as it is allowed, and then waits, or dies."""

    def __init__(self, body: Callable[[Process], None], faults: Iterable[str | None] = ()) -> None:
        self.faults = list(faults)  # of its commits, in order; none: they go well
        self.alive = True
        self.error: RayProfileError | None = None
        self._failure: BaseException | None = None
        self._allowed = 0.0
        self._killed = False
        self._go, self._back = threading.Lock(), threading.Lock()  # each held until the other side hands over
        self._go.acquire()
        self._back.acquire()
        threading.Thread(target=self._run, args=(body,), daemon=True).start()

    def _run(self, body: Callable[[Process], None]) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                body(self)
        except Killed:
            pass
        except RayProfileError as error:
            self.error = error
        except BaseException as error:
            self._failure = error
        self.alive = False
        self._back.release()

    def request(self) -> None:
        """Called by the store before it serves a request."""
        if self._allowed == 0 and not self._killed:
            self._back.release()
            self._go.acquire()
        if self._killed:
            raise Killed
        self._allowed -= 1

    def advance(self, requests: float) -> None:
        """Let the process make some requests and compute up to its next one."""
        if self.alive:
            self._allowed = requests
            self._go.release()
            self._back.acquire()
            if self._failure is not None:
                raise self._failure

    def finish(self) -> Process:
        self.advance(float("inf"))
        return self

    def kill(self) -> None:
        self._killed = True
        self.advance(0)


@dataclass
class Commit:
    transactions: dict[str, int]
    adds: tuple[DataFile, ...] = ()
    removes: frozenset[str] = frozenset()


@dataclass
class Stored:
    value: Any
    modified: datetime


@dataclass
class World:
    """The object store, the sources, and the clock."""

    files: dict[str, Stored] = field(default_factory=dict)
    logs: dict[str, list[Commit]] = field(default_factory=lambda: {"states": [], "profiles": []})
    delayed: list[tuple[str, int, Commit]] = field(default_factory=list)  # puts of version n that may yet arrive
    sources: dict[str, int] = field(default_factory=dict)  # path -> tag
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    number: int = 0
    happened: Counter[str] = field(default_factory=Counter)  # proof that a schedule tried something

    def name_waves_in_order(self) -> None:
        """Make uuids count up, so that a schedule replays exactly."""

        def uuid4() -> UUID:
            self.number += 1
            return UUID(int=self.number)

        plan.uuid = waves.uuid = SimpleNamespace(uuid4=uuid4)  # type: ignore[attr-defined]

    def live(self, log: str, version: int | None = None) -> dict[str, DataFile]:
        found: dict[str, DataFile] = {}
        for commit in self.logs[log][:version]:
            for path in commit.removes:
                found.pop(path, None)
            found.update((file.path, file) for file in commit.adds)
        return found

    def removed(self, log: str, version: int | None = None) -> set[str]:
        return {path for commit in self.logs[log][:version] for path in commit.removes}

    def value(self, log: str, app_id: str, version: int | None = None) -> int | None:
        found = None
        for commit in self.logs[log][:version]:
            found = commit.transactions.get(app_id, found)
        return found

    def rows(self, log: str, version: int | None = None) -> Counter[Row]:
        return Counter(row for path in self.live(log, version) for row in self.files[f"{log}/{path}"].value["rows"])

    def put(self, path: str, value: Any) -> None:
        self.files[path] = Stored(value, self.now)

    def land(self) -> None:
        """A put whose client has given up arrives at last; the store takes it only if the version is free."""
        log, version, commit = self.delayed.pop(0)
        if len(self.logs[log]) == version:
            self.commit(log, commit)
            self.happened["landed late"] += 1

    def commit(self, log: str, commit: Commit) -> None:
        self.logs[log].append(commit)
        self.happened[f"commit to {log}"] += 1
        check(self)


class MemoryFiles:
    """A root's files, as `waves.Files` wants them."""

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process

    def create_json(self, value: Any, *parts: str) -> bool:
        self.process.request()
        path = "/".join(parts)
        if path in self.world.files:
            return bool(self.world.files[path].value == value)
        self.world.put(path, value)
        return True

    def read_jsons(self, paths: Iterable[str]) -> list[Any | None]:
        self.process.request()
        found = [self.world.files.get(path) for path in paths]
        return [None if each is None else each.value for each in found]

    def list(self, *parts: str) -> list[Listing]:
        self.process.request()
        start = "/".join(parts) + "/"
        files = sorted(self.world.files.items())
        return [Listing(path, FILE_BYTES, stored.modified) for path, stored in files if path.startswith(start)]

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self.process.request()
            self.world.files.pop(path, None)
            self.world.happened["deleted"] += 1
            check(self.world)

    def settle(self) -> None:
        self.process.request()


class MemoryLog:
    """A Delta table, as `waves.Log` wants it."""

    def __init__(self, world: World, process: Process, name: str) -> None:
        self.world = world
        self.process = process
        self.name = name

    def open(self) -> MemoryHandle:
        self.process.request()
        return MemoryHandle(self, len(self.world.logs[self.name]))

    def committed(self, app_id: str, value: int) -> bool:
        self.process.request()
        found = self.world.value(self.name, app_id)
        return found is not None and found >= value


class MemoryHandle:
    """A table at one version, with delta-rs's rules of conflict."""

    def __init__(self, log: MemoryLog, version: int) -> None:
        self.log = log
        self.version = version
        self.world = log.world

    def transaction(self, app_id: str) -> int | None:
        self.log.process.request()
        return self.world.value(self.log.name, app_id, self.version)

    def transactions(self, app_ids: Collection[str]) -> dict[str, int]:
        self.log.process.request()
        found = {app_id: self.world.value(self.log.name, app_id, self.version) for app_id in app_ids}
        return {app_id: value for app_id, value in found.items() if value is not None}

    def files(self) -> list[DataFile]:
        self.log.process.request()
        return list(self.world.live(self.log.name, self.version).values())

    def tombstones(self) -> set[str]:
        self.log.process.request()
        return self.world.removed(self.log.name, self.version)

    def append(self, adds: Sequence[DataFile], transactions: Mapping[str, int]) -> int:
        return self._commit(Commit(dict(transactions), tuple(adds)))

    def replace_files(
        self, adds: Sequence[DataFile], removes: Sequence[DataFile], transactions: Mapping[str, int]
    ) -> int:
        return self._commit(Commit(dict(transactions), tuple(adds), frozenset(file.path for file in removes)))

    def replace_buckets(
        self, adds: Sequence[DataFile], buckets: Collection[int], transactions: Mapping[str, int]
    ) -> int:
        held = self.world.live(self.log.name, self.version).values()
        removes = frozenset(file.path for file in held if file.bucket in buckets)
        return self._commit(Commit(dict(transactions), tuple(adds), removes))

    def _commit(self, commit: Commit) -> int:
        process = self.log.process
        process.request()
        fault = process.faults.pop(0) if process.faults else None
        if fault == "fail":
            raise StorageError("the store did not answer")
        commits = self.world.logs[self.log.name]
        held = self.world.live(self.log.name, self.version).keys()
        for other in commits[self.version :]:
            if other.transactions.keys() & commit.transactions.keys() or other.removes & held:
                self.world.happened["fenced"] += 1
                raise FencedError("a concurrent commit")
        if fault == "delayed":
            self.world.delayed.append((self.log.name, len(commits), commit))
            raise StorageError("timed out")
        self.world.commit(self.log.name, commit)
        if fault is not None:
            self.world.happened[fault] += 1
        if fault == "lost":
            raise StorageError("the answer was lost")
        if fault == "lost and retried":
            raise FencedError("a concurrent commit: our own first try")
        return len(commits)


FAULTS = (None, "fail", "delayed", "lost", "lost and retried")


def _etag(path: str, content: int | None) -> str:
    """No two files have one: else one that vanishes and another that comes would be a file that was renamed."""
    return f"{content} of {path}"


def _content(file: PlannedFile) -> int:
    return int(file.tag.split()[0])


def build(world: World, retry: bool = False) -> Callable[[Process], None]:
    """What `ray-profile build` does, with rows that say which file they came from. `retry`: tasks run twice."""

    def body(process: Process) -> None:
        files = MemoryFiles(world, process)
        writer = Writer(files, MemoryLog(world, process, "states"))
        process.request()
        found = [
            PlannedFile("reviews", path, FILE_BYTES, _etag(path, tag)) for path, tag in sorted(world.sources.items())
        ]
        folded = dict(world.rows("states", writer.handle.version).keys())  # type: ignore[attr-defined]
        changed = [file.path for file in found if folded.get(file.path, _content(file)) != _content(file)]
        try:
            todo = writer.plan(found, DIGESTS, {}, world.now, WAVE_GB)
        except ChangedFileError:
            assert changed, "no folded file has changed"
            world.happened["changed file"] += 1
            raise
        assert not changed, f"{changed} changed unnoticed"
        for wave in todo.waves:
            writer.write_plan(wave)
            rows, rejected = _read(world, process, wave.files)
            for attempt in range(1 + retry):
                adds = _write(world, process, "states", f"{wave.uuid}-{attempt}", rows, wave.number)
            process.request()
            world.put(f"quarantine/{wave.uuid}/0.parquet", {})
            writer.commit_wave(wave, adds, rejected)
        _fuse(world, process, writer)
        writer.remove_orphans(world.now)

    return body


def compact(world: World) -> Callable[[Process], None]:
    """What `ray-profile compact` does: one file a bucket."""

    def body(process: Process) -> None:
        writer = Writer(MemoryFiles(world, process), MemoryLog(world, process, "states"))
        wave = writer.wave("compact", world.now)
        writer.write_plan(wave)
        removes = writer.handle.files()
        rows: dict[int, list[Row]] = {}
        for file in removes:
            process.request()
            rows.setdefault(file.bucket, []).extend(world.files[f"states/{file.path}"].value["rows"])
        newest = max((world.files[f"states/{file.path}"].value["wave_no"] for file in removes), default=0)
        adds = _write(world, process, "states", f"{wave.uuid}-0", rows, newest)
        writer.commit_replacement(wave, adds, removes)
        writer.remove_orphans(world.now)

    return body


def _read(
    world: World, process: Process, planned: Iterable[PlannedFile]
) -> tuple[dict[int, list[Row]], list[RejectedFile]]:
    rows: dict[int, list[Row]] = {}
    rejected = []
    for file in planned:
        process.request()
        if _etag(file.path, world.sources.get(file.path)) != file.tag:
            rejected.append(RejectedFile(file.source, file.path, file.size, file.tag, "changed or gone", True))
            continue
        if _content(file) == BROKEN:
            rejected.append(RejectedFile(file.source, file.path, file.size, file.tag, "a broken gzip"))
            world.happened["rejected"] += 1
            continue
        rows.setdefault(_bucket(file.path), []).append((file.path, _content(file)))
    return rows, rejected


def _write(
    world: World, process: Process, table: str, name: str, rows: Mapping[int, list[Row]], wave_no: int
) -> list[DataFile]:
    adds = []
    for bucket, held in sorted(rows.items()):
        process.request()
        path = f"bucket={bucket}/{name}.parquet"
        world.put(f"{table}/{path}", {"rows": tuple(held), "wave_no": wave_no})
        adds.append(DataFile(path, bucket, FILE_BYTES, len(held)))
    return adds


def _fuse(world: World, process: Process, writer: Writer) -> None:
    fuse = Fuse(MemoryFiles(world, process), writer.handle, MemoryLog(world, process, "profiles"))
    if fuse.since >= fuse.number:
        return
    states: dict[int, list[Row]] = {}
    changed = set()
    for file in writer.handle.files():
        process.request()
        content = world.files[f"states/{file.path}"].value
        states.setdefault(file.bucket, []).extend(content["rows"])
        if content["wave_no"] > fuse.since:
            changed.add(file.bucket)
    rows = {bucket: states[bucket] for bucket in changed}
    fuse.commit(_write(world, process, "profiles", f"{fuse.uuid}-0", rows, 0), changed)
    fuse.remove_orphans()


def _bucket(path: str) -> int:
    return sum(path.encode()) % BUCKETS


def check(world: World) -> None:
    """What must hold after every commit and every deletion, whoever is half way through what."""
    for log in ("states", "profiles"):
        named = world.live(log).keys() | world.removed(log)
        lost = [path for path in sorted(named) if f"{log}/{path}" not in world.files]
        assert not lost, f"{log} names {lost}, which were deleted"
    rows = world.rows("states")
    assert all(count == 1 for count in rows.values()), f"folded more than once: {rows}"
    paths = Counter(path for path, _ in rows)
    assert all(count == 1 for count in paths.values()), f"folded in two editions: {rows}"
    fused = world.value("profiles", "fused") or 0
    version = next((v for v in range(len(world.logs["states"]) + 1) if (_writer(world, v)) == fused), None)
    assert version is not None, f"profiles are fused to wave {fused}, which the states do not have"
    assert world.rows("profiles") == world.rows("states", version), "profiles are not those of any states version"


def _writer(world: World, version: int) -> int:
    return world.value("states", "writer", version) or 0


def converge(world: World) -> None:
    """With everybody dead and the sources at rest, the next runs fold all, fuse all and remove every orphan."""
    while world.delayed:
        world.land()
    folded = dict(world.rows("states").keys())
    world.sources = {path: folded.get(path, tag % BROKEN) for path, tag in world.sources.items()}  # all mended
    world.now += timedelta(days=waves.PLAN_DAYS + 1)
    for last in ("z1", "z2"):  # the first run's commit seals every earlier run's fate; orphans go with it at the latest
        world.sources[last] = 0
        process = Process(build(world)).finish()
        assert process.error is None, process.error
    rows = world.rows("states")
    missing = [path for path, tag in world.sources.items() if rows[path, tag] != 1]
    assert not missing, f"never folded: {missing}"
    assert world.rows("profiles") == rows
    _assert_tidy(world)


def _assert_tidy(world: World) -> None:
    committed = {app_id for commit in world.logs["states"] for app_id in commit.transactions}
    for path in world.files:
        folder, rest = path.split("/", 1)
        if folder in world.logs:
            assert rest in world.live(folder).keys() | world.removed(folder), f"orphan {path}"
        else:
            assert rest.partition("/" if folder == "quarantine" else ".")[0] in committed, f"orphan {path}"
