"""The commit protocol on real Delta tables, on a disk and on a real S3 server."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from ray_profile.errors import ChangedFileError, FencedError, RootError, StorageError
from ray_profile.store.root import Root, RootFacts
from ray_profile.store.tables import DataFile, Handle, Table, read_files, write_file
from ray_profile.store.waves import Fuse, PlannedFile, RejectedFile, Writer, ignore_step, pending

FACTS = RootFacts(1, 3, "month", 90.0, None)
SCHEMA = pa.schema([("user_id", pa.large_string()), ("wave_no", pa.int64())])
CLOCK = datetime(2026, 3, 1, tzinfo=UTC)
TWO_FILES_GB = 20e-9
DIGESTS = {"encoder": "e1", "schema": "s1"}

DAYS: list[dict[str, list[str]]] = [
    {"a.csv": ["安娜", "bob"], "b.csv": ["carol"], "c.csv": ["安娜"]},
    {"d.csv": ["bob", "bob"]},
    {"e.csv": []},
]
Step = Callable[[str], None]


class Died(BaseException):
    """The process is gone."""


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    address = str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("s3").fresh()
    return Root.open(address, FACTS)


def states(root: Root) -> Table:
    return Table(root, "states", SCHEMA)


def profiles(root: Root) -> Table:
    return Table(root, "profiles", SCHEMA)


def opened(table: Table) -> Handle:
    handle = table.open()
    assert handle is not None
    return handle


def planned(sources: Mapping[str, list[str]]) -> list[PlannedFile]:
    return [PlannedFile("reviews", path, 10, f"{path} {len(rows)}") for path, rows in sources.items()]


def build(root: Root, sources: Mapping[str, list[str]], at: Step = ignore_step) -> None:
    """Fold each row as itself, and fuse by copying."""
    states(root).create()
    profiles(root).create()
    writer = Writer(root, states(root), at)
    plan = writer.plan(planned(sources), DIGESTS, {}, CLOCK, TWO_FILES_GB)
    for wave in plan.waves:
        writer.write_plan(wave)
        users = [user for file in wave.files for user in sources[file.path]]
        adds = write(states(root), wave.uuid, users, wave.number, at)
        rejected = [
            RejectedFile("reviews", file.path, file.size, file.tag, "no rows at all")
            for file in wave.files
            if not sources[file.path]
        ]
        writer.commit_wave(wave, adds, rejected)
    fuse(root, writer, at)
    writer.remove_orphans(CLOCK)


def fuse(root: Root, writer: Writer, at: Step) -> None:
    work = Fuse(root, writer.handle, profiles(root), at)
    if work.since >= work.number:
        return
    handle = opened(states(root))
    rows = read_files(states(root), handle.files())
    changed = {row["bucket"] for row in rows.to_pylist() if row["wave_no"] > work.since}
    users = [row["user_id"] for row in rows.to_pylist() if row["bucket"] in changed]
    work.commit(write(profiles(root), work.uuid, users, 0, at), changed)
    work.remove_orphans()


def write(table: Table, wave_uuid: str, users: list[str], wave_no: int, at: Step) -> list[DataFile]:
    adds = []
    for bucket in sorted({bucket_of(user) for user in users}):
        mine = [user for user in users if bucket_of(user) == bucket]
        data = pa.table({"user_id": mine, "wave_no": [wave_no] * len(mine)}, SCHEMA)
        at("write.before")
        adds.append(write_file(table, bucket, f"{wave_uuid}-{uuid.uuid4().hex[:8]}", data))
        at("write.after")
    return adds


def bucket_of(user: str) -> int:
    return sum(user.encode()) % FACTS.buckets


def users(table: Table) -> Counter[str]:
    return Counter(read_files(table, opened(table).files(), ["user_id"])["user_id"].to_pylist())


def everything() -> dict[str, list[str]]:
    return {path: rows for day in DAYS for path, rows in day.items()}


def expected() -> Counter[str]:
    return Counter(user for rows in everything().values() for user in rows)


def unnamed(root: Root) -> list[str]:
    """Data files that no version names."""
    found = []
    for table in (states(root), profiles(root)):
        handle = opened(table)
        named = {file.path for file in handle.files()} | handle.tombstones()
        paths = [entry.path.removeprefix(f"{table.name}/") for entry in root.list(table.name)]
        found += [path for path in paths if path.startswith("bucket=") and path not in named]
    return found


def assert_whole(root: Root) -> None:
    assert users(states(root)) == expected()
    assert users(profiles(root)) == expected()
    assert pending(opened(states(root)), opened(profiles(root)))[0] == opened(states(root)).transaction("writer")


def test_day_by_day_equals_all_at_once_and_a_second_run_does_nothing(root: Root) -> None:
    sources: dict[str, list[str]] = {}
    for day in DAYS:
        sources |= day
        build(root, sources)
    assert_whole(root)
    versions = (opened(states(root)).version, opened(profiles(root)).version)
    listed = root.list()
    build(root, sources)
    assert (opened(states(root)).version, opened(profiles(root)).version) == versions
    assert root.list() == listed
    build(root, {"d.csv": DAYS[1]["d.csv"]})  # folded files that vanish change nothing
    assert_whole(root)


def test_a_changed_file_is_named(root: Root) -> None:
    build(root, DAYS[0])
    with pytest.raises(ChangedFileError, match=r"a\.csv has changed since wave 1"):
        build(root, {"a.csv": ["安娜", "bob", "new"]})
    assert users(states(root)) == Counter({"安娜": 2, "bob": 1, "carol": 1})


def test_a_rejected_file_is_remembered_and_a_mended_one_folded(root: Root) -> None:
    build(root, {"e.csv": []})
    plan = Writer(root, states(root)).plan(planned({"e.csv": []}), DIGESTS, {}, CLOCK, 1)
    assert [(file.path, file.reason) for file in plan.rejected] == [("e.csv", "no rows at all")]
    assert plan.waves == ()
    build(root, {"e.csv": ["late"]})
    assert users(profiles(root)) == Counter({"late": 1})


def test_another_encoder_is_refused(root: Root) -> None:
    build(root, DAYS[0])
    with pytest.raises(RootError, match="the encoder has changed since wave 2"):
        Writer(root, states(root)).plan([], {**DIGESTS, "encoder": "e2"}, {}, CLOCK, 1)


def test_a_lost_plan_is_an_error_and_no_second_fold(root: Root) -> None:
    build(root, DAYS[0])
    root.delete([entry.path for entry in root.list("waves")][:1])
    with pytest.raises(RootError, match=r"lacks the plans of the committed waves [12].*restore waves/"):
        build(root, DAYS[0])


def _steps(root: Root) -> list[str]:
    steps: list[str] = []
    build(root, everything(), steps.append)
    assert_whole(root)
    return steps


def _die_at(number: int) -> Step:
    seen: list[str] = []

    def at(step: str) -> None:
        seen.append(step)
        if len(seen) > number:
            raise Died

    return at


def _crash(fresh: Callable[[], Root], every: int) -> None:
    steps = _steps(fresh())
    assert {"open.after", "plan.before", "write.after", "reject.after", "commit.before", "fuse.after"} <= set(steps)
    for number, step in list(enumerate(steps))[::every]:
        root = fresh()
        with pytest.raises(Died):
            build(root, everything(), _die_at(number))
        build(root, everything())
        assert_whole(root)
        build(root, {**everything(), "f.csv": ["bob"]})  # the next commit, at the latest, takes the orphans away
        assert unnamed(root) == [], f"died at {step}"


def test_dying_at_any_step_changes_nothing_in_the_end(tmp_path: Path) -> None:
    _crash(lambda: Root.open(str(tmp_path / uuid.uuid4().hex), FACTS), every=1)


@pytest.mark.slow
def test_dying_at_any_step_changes_nothing_in_the_end_on_s3(s3: Any) -> None:
    _crash(lambda: Root.open(s3.fresh(), FACTS), every=3)


def test_two_runs_at_once_the_later_is_fenced_and_loses_nothing(root: Root) -> None:
    build(root, DAYS[0])
    more = DAYS[0] | DAYS[1]

    def other_run(step: str) -> None:
        if step == "commit.before":
            build(root, more)

    with pytest.raises(FencedError, match="run it again"):
        build(root, more, other_run)
    assert users(states(root)) == users(profiles(root)) == Counter({"安娜": 2, "bob": 3, "carol": 1})
    build(root, everything())
    build(root, everything() | {"f.csv": ["f"]})
    assert unnamed(root) == []


def test_a_run_with_several_waves_is_fenced_between_them(root: Root) -> None:
    commits: list[str] = []

    def other_run(step: str) -> None:
        if step == "commit.after":
            commits.append(step)
            if len(commits) == 1:
                build(root, everything())

    with pytest.raises(FencedError):
        build(root, everything(), other_run)
    assert_whole(root)
    assert len(commits) == 1


def test_the_files_of_a_live_run_are_never_deleted(root: Root) -> None:
    build(root, DAYS[0])
    more = DAYS[0] | DAYS[1]

    def other_run(step: str) -> None:
        if step == "commit.before":
            build(root, DAYS[0])  # a run that has nothing to commit
            assert Writer(root, states(root)).remove_orphans(CLOCK + timedelta(days=99)) == []

    build(root, more, other_run)
    assert users(states(root)) == Counter({"安娜": 2, "bob": 3, "carol": 1})


@pytest.mark.parametrize("error", [OSError("connection reset"), None])
def test_a_commit_whose_answer_was_lost_counts_once(
    root: Root, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    original = DeltaTable.create_write_transaction
    lost: list[int] = []

    def commit(self: DeltaTable, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if len(lost) < 3:
            lost.append(1)
            if error is not None:
                raise error
            original(self, *args, **kwargs)  # the client tries again and conflicts with itself

    monkeypatch.setattr(DeltaTable, "create_write_transaction", commit)
    build(root, everything())
    assert len(lost) == 3
    assert_whole(root)


def test_a_commit_that_the_store_refuses_is_a_storage_error(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("503 slow down")

    with monkeypatch.context() as patch:
        states(root).create()
        patch.setattr(DeltaTable, "create_write_transaction", refuse)
        with pytest.raises(StorageError, match="503 slow down"):
            build(root, everything())
    build(root, everything())
    assert_whole(root)


def test_a_compaction_keeps_the_rows_and_fences_a_run(root: Root) -> None:
    for day in range(len(DAYS)):
        build(root, {path: rows for each in DAYS[: day + 1] for path, rows in each.items()})
    stale = Writer(root, states(root))
    late = stale.plan(planned(everything() | {"f.csv": ["f"]}), DIGESTS, {}, CLOCK, 1).waves[0]
    stale.write_plan(late)

    writer = Writer(root, states(root))
    wave = writer.wave("compact", CLOCK)
    writer.write_plan(wave)
    removes = opened(states(root)).files()
    rows = read_files(states(root), removes)
    adds = write(states(root), wave.uuid, rows["user_id"].to_pylist(), 4, ignore_step)
    writer.commit_replacement(wave, adds, removes)
    assert len(opened(states(root)).files()) == len(adds) < len(removes)
    assert users(states(root)) == expected()
    with pytest.raises(FencedError):
        stale.commit_wave(late, write(states(root), late.uuid, ["f"], late.number, ignore_step))
    assert pending(opened(states(root)), opened(profiles(root))) == (4, 5)
    build(root, everything())
    assert_whole(root)


def test_an_older_fuse_never_follows_a_newer_one(root: Root) -> None:
    build(root, DAYS[0])
    old = opened(states(root))
    build(root, everything())
    late = Fuse(root, old, profiles(root))
    with pytest.raises(FencedError, match="later wave"):
        late.commit([], [])
    assert_whole(root)


def test_the_plan_of_a_dead_run_is_kept_for_a_week(root: Root) -> None:
    states(root).create()
    dead = Writer(root, states(root))
    plan = dead.plan(planned({"x.csv": ["x"]}), DIGESTS, {}, CLOCK, 1)
    dead.write_plan(plan.waves[0])
    orphan = write(states(root), plan.waves[0].uuid, ["x"], 1, ignore_step)[0]
    root.create_json([], "quarantine", plan.waves[0].uuid, "0.parquet")
    (written,) = root.list("waves")

    def commit(path: str) -> Writer:
        writer = Writer(root, states(root))
        wave = writer.plan(planned({path: ["y"]}), DIGESTS, {}, CLOCK, 1).waves[0]
        writer.write_plan(wave)
        writer.commit_wave(wave, [])
        return writer

    gone = commit("y.csv").remove_orphans(written.modified + timedelta(days=6))
    assert set(gone) == {f"states/{orphan.path}", f"quarantine/{plan.waves[0].uuid}/0.parquet"}
    assert written.path in {entry.path for entry in root.list("waves")}
    gone = commit("z.csv").remove_orphans(written.modified + timedelta(days=8))
    assert gone == [written.path]
    assert len(root.list("waves")) == 2


def test_files_of_others_are_left_alone(root: Root) -> None:
    build(root, DAYS[0])
    root.create_json({}, "states", "README.json")
    root.create_json({}, "states", "bucket=0", "notes.json")
    build(root, everything())
    assert {"states/README.json", "states/bucket=0/notes.json"} <= {entry.path for entry in root.list("states")}


def test_the_order_of_steps_is_asserted(root: Root) -> None:
    states(root).create()
    writer = Writer(root, states(root))
    wave = writer.plan(planned({"a.csv": ["a"]}), DIGESTS, {}, CLOCK, 1).waves[0]
    with pytest.raises(AssertionError, match="is not written"):
        writer.commit_wave(wave, [])
    writer.write_plan(wave)
    with pytest.raises(AssertionError, match="in its name"):
        writer.commit_wave(wave, write(states(root), "f" * 32, ["a"], 1, ignore_step))
    foreign = RejectedFile("reviews", "z.csv", 1, "t", "?")
    with pytest.raises(AssertionError, match="rejected unplanned"):
        writer.commit_wave(wave, [], [foreign])


@pytest.mark.slow
def test_killed_processes_leave_whole_tables(tmp_path: Path) -> None:
    address = str(tmp_path / "root")
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import test_waves; test_waves.main({address!r})"
    draw = random.Random(7)
    killed = 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        try:
            process.wait(draw.uniform(0, 0.25))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed > 3
    root = Root.open(address, FACTS)
    build(root, everything())
    assert_whole(root)
    build(root, {**everything(), "f.csv": ["bob"]})
    assert unnamed(root) == []


def main(address: str) -> None:
    """What the killed processes run."""
    print("started", flush=True)
    build(Root.open(address, FACTS), everything())
