"""Delta tables under a root: files written by workers, commits made by one driver on a handle that is never refreshed.

What delta-rs 1.6.6 does, and what is built on it (tests/store/test_tables.py and test_memory_log.py try each): a commit
conflicts if a version after the handle's carries one of its application ids, or removed a file that the handle holds.
Otherwise two appends, or an overwrite after an append, pass unnoticed: hence the shared ids. A handle keeps its version
after its own commit, and reads the log afresh for each question about a transaction. Files that are not in the table
are "removed" without complaint, and adds outside an overwrite's filter are accepted, so both are asserted here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from ray_profile.errors import FencedError, RootError, StorageError
from ray_profile.store import parquet
from ray_profile.store.columns import at_rest, differing, large
from ray_profile.store.root import Root, asking

BUCKET = "bucket"
LOG_READERS = 16
CONFLICT_WORDS = ("concurrent", "changed since")  # how delta-rs begins the sentence of every conflict

#: No user id may stand in the log, or erasing would have to rewrite it: hence no column statistics. Removed files stay
#: in checkpoints as long as the log does, so that `Handle.tombstones` is complete.
CONFIGURATION = {
    "delta.dataSkippingNumIndexedCols": "0",
    "delta.checkpointInterval": "20",
    "delta.logRetentionDuration": "interval 30 days",
    "delta.deletedFileRetentionDuration": "interval 30 days",
}


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table; `path` is relative to the table: "bucket=3/<uuid>-0.parquet"."""

    path: str
    bucket: int  # 0 in a table without buckets
    size: int  # bytes
    rows: int


class Table:
    """The Delta table at root/<name>, partitioned by an int32 column `bucket` unless `partitioned` is False.

    `schema` may hold any Arrow type that `at_rest` can store; without one the table's own is read from its log.
    Constructing a table touches no storage, and it pickles.
    """

    def __init__(self, root: Root, name: str, schema: pa.Schema | None = None, partitioned: bool = True) -> None:
        self.root = root
        self.name = name
        self.partitioned = partitioned
        self._declared = None if schema is None else at_rest(_with_bucket(schema) if partitioned else schema)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "schema"}

    @property
    def uri(self) -> str:
        """The table's address, as any Delta reader takes it."""
        return self.root.uri(self.name)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns at rest, `bucket` among them. Raises `RootError` where there is neither declaration nor table."""
        if self._declared is not None:
            return self._declared
        handle = self.open()
        if handle is None:
            raise RootError(f"there is no table {self.uri}; `ray-profile build` makes it")
        return handle.schema

    def open(self) -> Handle | None:
        """The table as it is now, or None where there is none."""
        with asking(self.uri, "open the table"):
            try:
                return Handle(self, DeltaTable(self.uri, storage_options=self.root.storage_options))
            except TableNotFoundError:
                return None

    def create(self) -> Handle:
        """Open the table, making it if absent. Raises `RootError` where it has other columns than declared."""
        assert self._declared is not None, f"table {self.name} was given no schema to be created with"
        handle = self.open()
        if handle is None:
            with asking(self.uri, "create the table"), suppress(CommitFailedError):  # of two creators the later fails
                DeltaTable.create(
                    self.uri,
                    self._declared,
                    mode="ignore",
                    partition_by=[BUCKET] if self.partitioned else None,
                    configuration=CONFIGURATION,
                    storage_options=self.root.storage_options,
                    commit_properties=CommitProperties(max_commit_retries=0),  # else it creates it anew as version 1
                )
            handle = self.open()
            if handle is None:
                raise StorageError(f"{self.uri}: the table cannot be made; run it again when the store is well")
        differ = differing(handle.schema, self._declared)
        if differ:
            raise RootError(
                f"{self.uri} differs from what this release keeps in {differ}; use the release that made it, "
                "or build into a new root"
            )
        return handle

    def committed(self, app_id: str, value: int) -> bool:
        """Whether the log, read afresh, has reached this application transaction: how a lost answer is resolved."""
        handle = self.open()
        found = None if handle is None else handle.transaction(app_id)
        return found is not None and found >= value

    def vacuum(self, retention_hours: int) -> list[str]:
        """Delete the files that were removed from the table at least so many hours ago; their paths.

        Files that no version ever named are left alone: they may be a live run's (`waves` deletes those).
        """
        handle = self.open()
        return [] if handle is None else handle.vacuum(retention_hours, dry_run=False)


class Handle:
    """The table at one version. Good for one commit: it is never refreshed, which is what fences two writers."""

    def __init__(self, table: Table, delta: DeltaTable) -> None:
        self._table = table
        self._delta = delta
        self._spent = False

    @property
    def version(self) -> int:
        """The Delta version that this handle sees, before and after its own commit."""
        return int(self._delta.version())

    @cached_property
    def schema(self) -> pa.Schema:
        """The table's own columns, in Arrow's 64-bit types for strings, binaries and lists."""
        stored: Any = self._delta.schema().to_arrow()  # another library's schema, which pa.schema takes over
        return large(pa.schema(stored))

    def transaction(self, app_id: str) -> int | None:
        """The last value committed under an application id up to this version, or None. Reads the log each time."""
        with asking(self._table.uri, "read the log"):
            return self._delta.transaction_version(app_id)

    def transactions(self, app_ids: Collection[str]) -> dict[str, int]:
        """The values of those ids that are in the log; asked at once, for each question costs a store some requests."""
        with ThreadPoolExecutor(LOG_READERS) as pool:
            found = zip(app_ids, pool.map(self.transaction, app_ids), strict=True)
            return {app_id: value for app_id, value in found if value is not None}

    def files(self, buckets: Collection[int] | None = None) -> list[DataFile]:
        """The files of the table (or of some buckets), sorted by path."""
        actions = pa.table(self._delta.get_add_actions(flatten=True))
        names = ["path", "size_bytes", "num_records", *([f"partition.{BUCKET}"] if self._table.partitioned else [])]
        columns: list[list[Any]] = [actions[name].to_pylist() for name in names]
        columns = [columns[0], columns[3] if self._table.partitioned else [0] * len(columns[0]), *columns[1:3]]
        found = (DataFile(path, bucket, size, rows) for path, bucket, size, rows in zip(*columns, strict=True))
        wanted = None if buckets is None else set(buckets)
        return sorted((file for file in found if wanted is None or file.bucket in wanted), key=lambda file: file.path)

    def tombstones(self) -> set[str]:
        """Paths that were removed from the table and that older versions, hence slow readers, may still need."""
        return set(self.vacuum(0, dry_run=True))

    def append(self, adds: Sequence[DataFile], transactions: Mapping[str, int]) -> int:
        """Commit new files, or none: then only the transactions. Returns the new version.

        Raises `FencedError` where another commit since this handle's opening carries one of the application ids,
        `StorageError` where the store fails; after either, ask `Table.committed` whether it went through all the same.
        """
        return self._commit([_add(file, self._table.partitioned) for file in adds], "append", transactions)

    def replace_files(
        self, adds: Sequence[DataFile], removes: Sequence[DataFile], transactions: Mapping[str, int]
    ) -> int:
        """Commit new files and remove exactly these, in one version. Errors as for `append`."""
        present = {file.path for file in self.files()}
        assert all(file.path in present for file in removes), "a file to remove is not in this version of the table"
        partitioned = self._table.partitioned
        actions = [_add(file, partitioned) for file in adds] + [_remove(file, partitioned) for file in removes]
        return self._commit(actions, "append", transactions)

    def replace_buckets(
        self, adds: Sequence[DataFile], buckets: Collection[int], transactions: Mapping[str, int]
    ) -> int:
        """Commit new files in place of all that these buckets hold, in one version. Errors as for `append`."""
        assert self._table.partitioned, f"table {self._table.name} has no buckets"
        assert buckets, "no bucket to replace"
        assert {file.bucket for file in adds} <= set(buckets), "a file lies outside the buckets to replace"
        # One "in" filter: several "=" filters are ANDed, match no file and would leave the old rows in place.
        only = [(BUCKET, "in", [str(bucket) for bucket in sorted(buckets)])]
        return self._commit([_add(file, True) for file in adds], "overwrite", transactions, only)

    def vacuum(self, retention_hours: int, dry_run: bool) -> list[str]:
        """The removed files older than this; deleted unless `dry_run`."""
        with asking(self._table.uri, "vacuum"):
            return self._delta.vacuum(
                retention_hours=retention_hours,
                dry_run=dry_run,
                enforce_retention_duration=False,
                full=False,
            )

    def _commit(
        self,
        actions: list[AddAction | RemoveAction],
        mode: str,
        transactions: Mapping[str, int],
        only: list[tuple[str, str, list[str]]] | None = None,
    ) -> int:
        assert not self._spent, "a handle is good for one commit; open the table again"
        self._spent = True
        try:
            self._delta.create_write_transaction(
                actions,
                mode,
                self._delta.schema(),
                partition_by=[BUCKET] if self._table.partitioned else None,
                partition_filters=only,  # any list will do for "in"
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(app_id, value) for app_id, value in transactions.items()]
                ),
            )
        except (DeltaError, OSError) as error:
            raise self._explained(error, transactions) from error
        return self._verified(transactions)

    def _verified(self, transactions: Mapping[str, int]) -> int:
        """Read the commit back: a cleaned log has free numbers behind its checkpoint, and a commit there is lost."""
        after = self._table.open()
        if after is None or any((after.transaction(name) or 0) < value for name, value in transactions.items()):
            raise FencedError(f"{self._table.uri}: the log was cleaned while this run wrote; run it again")
        return after.version

    def _explained(self, error: Exception, transactions: Mapping[str, int]) -> FencedError | StorageError:
        uri = self._table.uri
        try:
            after = self._table.open()
        except StorageError as unanswered:
            return StorageError(f"{uri}: the commit failed ({error}), and reading the log too: {unanswered}")
        conflict = isinstance(error, CommitFailedError) and any(word in str(error).lower() for word in CONFLICT_WORDS)
        if conflict or (after is not None and self._overtaken(after, transactions)):
            return FencedError(f"{uri}: another run committed after this one had opened the table; run it again")
        return StorageError(f"{uri}: cannot commit; the store said {error}; run it again when the store is well")

    def _overtaken(self, after: Handle, transactions: Mapping[str, int]) -> bool:
        try:
            return any(after.transaction(name) != self.transaction(name) for name in transactions)
        except StorageError:
            return after.version > self.version  # the log up to this handle's version is gone


def write_file(table: Table, bucket: int, name: str, data: pa.Table) -> DataFile:
    """Write rows (the table's columns, with or without `bucket`) as one Parquet file, which is in no version yet.

    The file appears whole or not at all. Within a bucket `name` must be new, and hold the uuid of its wave.
    """
    schema = pa.schema([field for field in table.schema if not (table.partitioned and field.name == BUCKET)])
    if table.partitioned and BUCKET in data.column_names:
        assert set(pc.unique(data[BUCKET]).to_pylist()) <= {bucket}, "rows of another bucket"
        data = data.drop_columns([BUCKET])
    assert set(data.column_names) == set(schema.names), (
        f"{table.name}: columns {sorted(set(data.column_names) ^ set(schema.names))} are missing or in excess"
    )
    data = data.select(schema.names).cast(schema)
    path = f"{BUCKET}={bucket}/{name}.parquet" if table.partitioned else f"{name}.parquet"
    with asking(table.uri, f"write {path}"):
        size = parquet.write(table.root, table.root.path(table.name, path), data)
    return DataFile(path, bucket if table.partitioned else 0, size, data.num_rows)


def read_files(
    table: Table,
    files: Sequence[DataFile],
    columns: Sequence[str] | None = None,
    filters: ds.Expression | None = None,
) -> pa.Table:
    """The rows of some files, in the order of `files`, with the table's columns at rest (or some of them).

    `filters` is an Arrow expression on any column; row groups that cannot match are not read.
    """
    schema = table.schema
    if not files:
        return schema.empty_table().select(list(columns) if columns is not None else schema.names)
    layout = ds.ParquetFileFormat()
    with asking(table.uri, "read the table"):
        # Fragments of a known bucket: a dataset of paths would ask the store about each and read buckets from names.
        fragments = [
            layout.make_fragment(
                table.root.path(table.name, file.path),
                filesystem=table.root.arrow_fs,
                partition_expression=pc.field(BUCKET) == pa.scalar(file.bucket, pa.int32())
                if table.partitioned
                else None,
            )
            for file in files
        ]
        dataset = ds.FileSystemDataset(fragments, schema, layout, table.root.arrow_fs)
        return dataset.to_table(columns=None if columns is None else list(columns), filter=filters)


def _with_bucket(schema: pa.Schema) -> pa.Schema:
    if BUCKET in schema.names:
        assert schema.field(BUCKET).type == pa.int32(), "the bucket column is int32"
        return schema
    return schema.append(pa.field(BUCKET, pa.int32()))


def _add(file: DataFile, partitioned: bool) -> AddAction:
    stats = json.dumps({"numRecords": file.rows})
    return AddAction(file.path, file.size, _values(file, partitioned), _now_ms(), True, stats)


def _remove(file: DataFile, partitioned: bool) -> RemoveAction:
    return RemoveAction(file.path, True, _now_ms(), file.size, _values(file, partitioned))


def _values(file: DataFile, partitioned: bool) -> dict[str, str | None]:
    return {BUCKET: str(file.bucket)} if partitioned else {}


def _now_ms() -> int:
    return int(time.time() * 1000)
