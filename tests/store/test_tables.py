"""Delta tables on a disk and on a real S3 server: what delta-rs does, and what is built on it."""

from __future__ import annotations

import pickle
import resource
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import seaweedfs

from ray_profile.errors import FencedError, RootError, StorageError
from ray_profile.store import parquet
from ray_profile.store.root import Root, RootFacts
from ray_profile.store.tables import DataFile, Handle, Table, read_files, write_file

FACTS = RootFacts(1, 4, "month", 90.0, None)
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.large_string(), nullable=False),
        pa.field("n", pa.int64()),
        pa.field("vector", pa.list_(pa.float64(), 2)),
        pa.field("tags", pa.map_(pa.large_string(), pa.float64())),
        pa.field("raw", pa.large_binary()),
    ]
)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    address = str(tmp_path / "根 #1") if request.param == "local" else request.getfixturevalue("s3").fresh("根 1")
    return Root.open(address, FACTS)


@pytest.fixture
def table(root: Root) -> Table:
    table = Table(root, "states", SCHEMA)
    table.create()
    return table


def rows(*users: str) -> pa.Table:
    return pa.table(
        [
            list(users),
            list(range(len(users))),
            [[float(i), 0.5] for i in range(len(users))],
            [{"琴弦": 1.0} for _ in users],
            [b"\x00\xff" for _ in users],
        ],
        schema=SCHEMA,
    )


def write(table: Table, bucket: int, *users: str) -> DataFile:
    return write_file(table, bucket, f"{uuid.uuid4().hex}-0", rows(*users))


def opened(table: Table) -> Handle:
    handle = table.open()
    assert handle is not None
    return handle


def users(table: Table, *buckets: int) -> list[str]:
    found = read_files(table, opened(table).files(buckets or None), ["user_id"])
    return sorted(found["user_id"].to_pylist())


def test_a_table_is_absent_until_it_is_created(root: Root) -> None:
    table = Table(root, "states", SCHEMA)
    assert table.open() is None
    assert not table.committed("writer", 1)
    assert table.create().files() == []
    assert table.create().version == 0  # creating again opens
    with pytest.raises(RootError, match="there is no table"):
        _ = Table(root, "profiles").schema


def test_rows_come_back_as_declared(table: Table) -> None:
    file = write(table, 3, "安娜", "bob")
    assert file.path.startswith("bucket=3/")
    assert (file.bucket, file.rows) == (3, 2)
    opened(table).append([file], {"a": 1})
    found = opened(table).files()
    assert found == [file]
    back = read_files(table, found)
    assert back["bucket"].to_pylist() == [3, 3]
    assert back.schema.field("user_id").type == pa.large_string()
    assert back.schema.field("vector").type == pa.list_(pa.float64())
    assert back.drop_columns(["bucket"]).to_pylist() == rows("安娜", "bob").to_pylist()
    some = read_files(table, found, ["n", "bucket"], pc.field("user_id") == "bob")
    assert some.to_pylist() == [{"n": 1, "bucket": 3}]


def test_reading_no_files_gives_no_rows_of_the_same_shape(table: Table) -> None:
    assert read_files(table, []).schema.equals(table.schema)
    assert read_files(table, [], ["n"]).column_names == ["n"]


def test_a_reader_without_a_schema_takes_the_tables_own(table: Table) -> None:
    opened(table).append([write(table, 0, "a")], {"a": 1})
    reader = pickle.loads(pickle.dumps(Table(table.root, "states")))
    back = read_files(reader, opened(reader).files())
    assert back.select(["user_id", "n", "vector", "tags", "raw"]).to_pylist() == rows("a").to_pylist()
    assert back.schema.field("user_id").type == pa.large_string()


def test_nulls_survive_fixed_size_lists(table: Table) -> None:
    data = pa.table([["a", "b"], [None, 1], [None, [1.0, 2.0]], [None, {}], [None, b""]], schema=SCHEMA).slice(0, 2)
    opened(table).append([write_file(table, 0, f"{uuid.uuid4().hex}-0", data)], {"a": 1})
    back = read_files(table, opened(table).files(), SCHEMA.names)
    assert back.to_pylist() == data.to_pylist()


def test_writing_leaves_only_the_whole_file(table: Table) -> None:
    before = {listing.path for listing in table.root.list("states")}
    file = write(table, 1, "a")
    after = {listing.path for listing in table.root.list("states")}
    assert after - before == {f"states/{file.path}"}
    listed = {listing.path: listing.size for listing in table.root.list("states")}
    assert listed[f"states/{file.path}"] == file.size


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    root = Root.open(str(tmp_path / "root"), FACTS)
    table = Table(root, "states", SCHEMA)
    table.create()
    before = root.list("states")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))  # bytes a file: as on a full disk, the write stops early
    try:
        with pytest.raises(StorageError, match="space left on the disk"):
            write(table, 1, "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert root.list("states") == before


def test_a_bucket_of_many_row_groups_finds_one_user(table: Table) -> None:
    names = [f"user {at:05}" for at in range(3 * parquet.ROWS_PER_GROUP + 1)]
    file = write(table, 2, *names)
    for name in (names[0], names[parquet.ROWS_PER_GROUP], names[-1]):
        found = read_files(table, [file], ["user_id", "n"], pc.field("user_id") == name)
        assert found.to_pylist() == [{"user_id": name, "n": names.index(name)}]


def test_a_table_of_other_columns_is_refused(table: Table) -> None:
    with pytest.raises(RootError, match=r"n \(int64 there, double here\).*new root"):
        Table(table.root, "states", SCHEMA.set(1, pa.field("n", pa.float64()))).create()


@pytest.mark.parametrize("kind", [pa.float16(), pa.uint32(), pa.list_(pa.float16(), 2)])
def test_types_that_delta_would_change_are_refused(root: Root, kind: pa.DataType) -> None:
    with pytest.raises(TypeError, match="column x: Delta has no"):
        Table(root, "t", pa.schema([("x", kind)]))


def test_missing_columns_and_foreign_buckets_are_not_written(table: Table) -> None:
    with pytest.raises(AssertionError, match="missing or in excess"):
        write_file(table, 0, "x", rows("a").drop_columns(["n"]))
    with pytest.raises(AssertionError, match="another bucket"):
        write_file(table, 0, "x", rows("a").append_column("bucket", pa.array([1], pa.int32())))


def test_two_writers_on_one_version_are_fenced(table: Table) -> None:
    first, second, third = opened(table), opened(table), opened(table)
    mine, theirs = write(table, 0, "mine"), write(table, 0, "theirs")
    first.append([mine], {"u1": 1, "writer": 1})
    with pytest.raises(FencedError, match="another run committed"):
        second.append([theirs], {"u2": 1, "writer": 1})
    with pytest.raises(FencedError):
        third.append([], {"u3": 1, "writer": 1})  # an empty commit too
    assert users(table) == ["mine"]
    assert table.committed("u1", 1)
    assert not table.committed("u2", 1)
    assert first.version == 0  # a handle does not move


def test_a_refreshed_handle_would_double_the_rows(table: Table) -> None:
    opened(table).append([write(table, 0, "a")], {"u1": 1, "writer": 1})
    opened(table).append([write(table, 0, "a")], {"u2": 1, "writer": 1})
    assert users(table) == ["a", "a"]  # why a handle is never refreshed between plan and commit


def test_a_handle_is_good_for_one_commit(table: Table) -> None:
    handle = opened(table)
    handle.append([], {"a": 1})
    with pytest.raises(AssertionError, match="one commit"):
        handle.append([], {"b": 1})


def test_an_empty_append_carries_its_transactions(table: Table) -> None:
    opened(table).append([], {"u1": 1, "writer": 7})
    after = opened(table)
    assert (after.version, after.transaction("writer"), after.transaction("u1"), after.files()) == (1, 7, 1, [])
    assert after.transaction("nobody") is None


def test_overwriting_several_buckets_in_one_version(table: Table) -> None:
    opened(table).append([write(table, bucket, f"old{bucket}") for bucket in range(4)], {"fused": 1})
    stale = opened(table)
    opened(table).replace_buckets([write(table, 0, "new0"), write(table, 2, "new2")], {0, 2, 3}, {"fused": 2})
    assert users(table) == ["new0", "new2", "old1"]  # bucket 3 is emptied
    assert opened(table).version == 2
    with pytest.raises(FencedError):
        stale.replace_buckets([write(table, 1, "late")], {1}, {"fused": 2})
    assert users(table, 1) == ["old1"]


def test_an_overwrite_asserts_its_buckets(table: Table) -> None:
    file = write(table, 1, "a")
    with pytest.raises(AssertionError, match="outside the buckets"):
        opened(table).replace_buckets([file], {0}, {"fused": 1})
    with pytest.raises(AssertionError, match="no bucket"):
        opened(table).replace_buckets([], (), {"fused": 1})


def test_exactly_the_named_files_are_removed(table: Table) -> None:
    first, second, third = (write(table, 0, name) for name in ("a", "b", "c"))
    opened(table).append([first, second, third], {"u1": 1})
    stale, mine = opened(table), opened(table)
    opened(table).append([write(table, 0, "d")], {"u2": 1})  # shares no id, so nothing is fenced
    mine.replace_files([write(table, 0, "a", "b")], [first, second], {"writer": 2})
    assert users(table) == ["a", "b", "c", "d"]
    with pytest.raises(FencedError):
        stale.append([write(table, 0, "e")], {"other": 1})  # a file that it holds was removed, under whatever id
    with pytest.raises(AssertionError, match="not in this version"):
        opened(table).replace_files([], [first], {"writer": 3})


def test_vacuum_takes_removed_files_and_leaves_what_no_version_named(table: Table) -> None:
    old, live = write(table, 0, "old"), write(table, 0, "a live run's")
    opened(table).append([old], {"u1": 1})
    opened(table).replace_files([write(table, 0, "new")], [old], {"writer": 1})
    assert opened(table).tombstones() == {old.path}
    assert table.vacuum(24) == []
    assert table.vacuum(0) == [old.path]
    left = {listing.path for listing in table.root.list("states")}
    assert f"states/{old.path}" not in left
    assert f"states/{live.path}" in left
    assert users(table) == ["new"]


def test_transactions_and_counts_survive_a_checkpoint(table: Table) -> None:
    file = write(table, 2, "a", "b", "c")
    opened(table).append([file], {"u0": 1, "writer": 1})
    for number in range(2, 22):
        opened(table).append([], {f"u{number}": 1, "writer": number})
    assert any("checkpoint.parquet" in listing.path for listing in table.root.list("states", "_delta_log"))
    after = opened(table)
    assert (after.transaction("u0"), after.transaction("writer")) == (1, 21)
    assert after.files() == [file]


def test_a_handle_behind_a_cleaned_log_is_fenced(table: Table) -> None:
    opened(table).append([], {"u0": 1, "writer": 1})
    stale = opened(table)
    for number in (2, 3):
        opened(table).append([], {f"u{number}": 1, "writer": number})
    log = opened(table)._delta
    log.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
    log = opened(table)._delta
    log.create_checkpoint()
    log.cleanup_metadata()
    names = {listing.path.rsplit("/", 1)[1] for listing in table.root.list("states", "_delta_log")}
    assert "00000000000000000002.json" not in names
    with pytest.raises(FencedError):
        stale.append([write(table, 0, "lost")], {"u9": 1, "writer": 2})
    assert not table.committed("u9", 1)
    assert users(table) == []


def test_one_of_many_writers_wins(table: Table) -> None:
    handles = [opened(table) for _ in range(6)]
    files = [write(table, 0, f"user{number}") for number in range(6)]

    def commit(number: int) -> bool:
        try:
            handles[number].append([files[number]], {f"u{number}": 1, "writer": 1})
        except FencedError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(commit, range(6)))
    assert sum(won) == 1
    assert users(table) == [f"user{won.index(True)}"]


def test_many_creators_make_one_table(root: Root) -> None:
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(lambda _: Table(root, "states", SCHEMA).create().version, range(6)))
    assert versions == [0] * 6


def test_a_table_without_buckets(root: Root) -> None:
    schema = pa.schema([("item_id", pa.large_string())])
    table = Table(root, "items", schema, partitioned=False)
    table.create()
    file = write_file(table, 0, f"{uuid.uuid4().hex}-0", pa.table({"item_id": ["x", "y"]}, schema=schema))
    assert "/" not in file.path
    opened(table).append([file], {"u": 1})
    assert opened(table).files() == [file]
    assert read_files(table, [file])["item_id"].to_pylist() == ["x", "y"]
    other = write_file(table, 0, f"{uuid.uuid4().hex}-0", pa.table({"item_id": ["z"]}, schema=schema))
    opened(table).replace_files([other], [file], {"v": 1})
    assert read_files(table, opened(table).files())["item_id"].to_pylist() == ["z"]
    with pytest.raises(AssertionError, match="no buckets"):
        opened(table).replace_buckets([other], {0}, {"w": 1})


def test_no_value_stands_in_the_log(table: Table) -> None:
    opened(table).append([write(table, 0, "安娜的秘密")], {"u": 1})
    log = [listing.path for listing in table.root.list("states", "_delta_log")]
    bodies = [table.root.fs.cat_file(table.root.path(path)) for path in log]
    assert bodies
    assert not any("安娜的秘密".encode() in body for body in bodies)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_polars_reads_the_table_as_a_stranger(request: pytest.FixtureRequest, tmp_path: Path, where: str) -> None:
    # Polars 2.1 looks for a table under a name with spaces or Han characters by its escaped name, so this one is plain.
    address = str(tmp_path / "root") if where == "local" else request.getfixturevalue("s3").fresh()
    table = Table(Root.open(address, FACTS), "states", SCHEMA)
    table.create()
    opened(table).append([write(table, 1, "安娜"), write(table, 2, "bob")], {"u": 1})
    frame = pl.read_delta(table.uri, storage_options=table.root.storage_options).sort("bucket")
    assert frame["user_id"].to_list() == ["安娜", "bob"]
    assert frame["bucket"].to_list() == [1, 2]


def test_wrong_keys_are_a_storage_error(s3: seaweedfs.S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Root.open(s3.fresh(), FACTS)
    table = Table(root, "states", SCHEMA)
    handle = table.create()
    file = write(table, 0, "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    blind = Table(Root(root.address, FACTS), "states", SCHEMA)
    for attempt in (blind.open, lambda: write(blind, 0, "b"), lambda: read_files(blind, [file])):
        with pytest.raises(StorageError, match=r"s3://.*AWS_SECRET_ACCESS_KEY"):
            attempt()
    monkeypatch.undo()
    assert handle.append([file], {"u": 1}) == 1


def test_a_damaged_file_is_a_storage_error(table: Table) -> None:
    file = write(table, 0, "a")
    table.root.fs.pipe_file(table.root.path("states", file.path), b"PAR1 and then nothing")
    with pytest.raises(StorageError, match=r"states: cannot read the table.*damaged.*copy"):
        read_files(table, [file])


def test_a_lost_table_is_a_storage_error_on_commit(tmp_path: Path) -> None:
    table = Table(Root.open(str(tmp_path / "root"), FACTS), "states", SCHEMA)
    handle = table.create()
    file = write(table, 0, "a")
    shutil.rmtree(tmp_path / "root" / "states")
    with pytest.raises(StorageError):
        handle.append([file], {"u": 1})
