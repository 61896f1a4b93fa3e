"""Three ways to keep profiles: this package's Delta tables, plain Parquet files, and Lance. Local folders and S3.

Each keeps rows of fuse.PROFILE_DTYPES, and can write all, replace some users' rows, delete some users and read one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Protocol

import lance
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_profile.sources.redact import bucket_of
from ray_profile.store.root import Root, RootFacts
from ray_profile.store.scan import read_users
from ray_profile.store.tables import DataFile, Handle, Table, read_files, write_file

BUCKETS = 16


class Store(Protocol):
    """What is measured."""

    def write(self, rows: pl.DataFrame) -> None: ...
    def upsert(self, rows: pl.DataFrame) -> None: ...
    def delete(self, users: list[str]) -> None: ...
    def read(self, user: str) -> pa.Table: ...
    def count(self) -> int: ...


def by_bucket(rows: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows of each bucket, sorted by user."""
    placed = rows.with_columns(bucket_of(rows["user_id"], BUCKETS).cast(pl.Int32).alias("bucket")).sort("user_id")
    for (bucket,), part in placed.group_by("bucket", maintain_order=True):
        yield int(str(bucket)), part.drop("bucket")


class Ours:
    """The profiles table as a build writes it: touched buckets are read, copied and committed at once."""

    def __init__(self, address: str) -> None:
        self._root = Root.open(address, RootFacts(1, BUCKETS, "month", 90.0, None))
        self._table: Table | None = None
        self._commits = 0

    @property
    def table(self) -> Table:
        assert self._table is not None, "nothing is written yet"
        return self._table

    def write(self, rows: pl.DataFrame) -> None:
        self._table = Table(self._root, "profiles", rows.head(0).to_arrow().schema)
        handle = self.table.create()
        self._commit(handle, [self._file(bucket, part) for bucket, part in by_bucket(rows)])

    def upsert(self, rows: pl.DataFrame) -> None:
        handle = self._opened()
        merged = (
            (bucket, pl.concat([self._others(handle, bucket, part["user_id"]), part]))
            for bucket, part in by_bucket(rows)
        )
        self._commit(handle, [self._file(bucket, part.sort("user_id")) for bucket, part in merged])

    def delete(self, users: list[str]) -> None:
        handle = self._opened()
        left = (
            (bucket, self._others(handle, bucket, part["user_id"]))
            for bucket, part in by_bucket(pl.DataFrame({"user_id": users}))
        )
        self._commit(handle, [self._file(bucket, part.sort("user_id")) for bucket, part in left])

    def erase(self) -> None:
        """Delete what older versions hold."""
        self.table.vacuum(0)

    def read(self, user: str) -> pa.Table:
        bucket = int(bucket_of(pl.Series([user]), BUCKETS)[0])
        return read_files(self.table, self._reader().files([bucket]), filters=pc.field("user_id") == user)

    def count(self) -> int:
        return sum(file.rows for file in self._opened().files())

    def _reader(self) -> Handle:
        """A handle of the newest version, opened once: what a service that reads profiles holds."""
        if getattr(self, "_read_at", None) != self._commits:
            self._read_at, self._held = self._commits, self._opened()
        return self._held

    def _opened(self) -> Handle:
        handle = self.table.open()
        assert handle is not None
        return handle

    def _others(self, handle: Handle, bucket: int, users: pl.Series) -> pl.DataFrame:
        return read_users(self.table, handle.files([bucket]), users, "anti")

    def _file(self, bucket: int, rows: pl.DataFrame) -> DataFile:
        return write_file(self.table, bucket, uuid.uuid4().hex, rows.to_arrow())

    def _commit(self, handle: Handle, adds: list[DataFile]) -> None:
        """Put the files in the place of all that their buckets hold."""
        self._commits += 1
        handle.replace_buckets(adds, {file.bucket for file in adds}, {uuid.uuid4().hex: 1, "fused": self._commits})


class PlainParquet:
    """One file a bucket, overwritten in place: no versions, and a reader may meet half of an update."""

    def __init__(self, address: str) -> None:
        self._root = Root.open(address, RootFacts(1, BUCKETS, "month", 90.0, None))
        self._fs = self._root.arrow_fs

    def write(self, rows: pl.DataFrame) -> None:
        self._fs.create_dir(self._root.path("parquet"))
        for bucket, part in by_bucket(rows):
            self._put(bucket, part.to_arrow())

    def upsert(self, rows: pl.DataFrame) -> None:
        for bucket, part in by_bucket(rows):
            new = part.to_arrow()
            whole = pa.concat_tables([self._without(bucket, new["user_id"]), new])
            self._put(bucket, whole.sort_by("user_id"))

    def delete(self, users: list[str]) -> None:
        for bucket, part in by_bucket(pl.DataFrame({"user_id": users})):
            self._put(bucket, self._without(bucket, part["user_id"].to_arrow()))

    def erase(self) -> None:
        """Nothing is left of what was overwritten."""

    def read(self, user: str) -> pa.Table:
        bucket = int(bucket_of(pl.Series([user]), BUCKETS)[0])
        return pq.read_table(self._path(bucket), filesystem=self._fs, filters=pc.field("user_id") == user)

    def count(self) -> int:
        paths = [self._path(bucket) for bucket in range(BUCKETS)]
        return sum(pq.read_metadata(path, filesystem=self._fs).num_rows for path in paths)

    def _path(self, bucket: int) -> str:
        return self._root.path("parquet", f"{bucket}.parquet")

    def _without(self, bucket: int, users: Any) -> pa.Table:
        found = pq.read_table(self._path(bucket), filesystem=self._fs)
        return found.filter(
            pc.invert(pc.is_in(found["user_id"], value_set=pa.array(users.to_pylist(), pa.large_string())))
        )

    def _put(self, bucket: int, rows: pa.Table) -> None:
        pq.write_table(rows, self._path(bucket), filesystem=self._fs, compression="zstd")


class Lance:
    """A Lance dataset with a B-tree on the user."""

    def __init__(self, address: str) -> None:
        root = Root.open(address, RootFacts(1, BUCKETS, "month", 90.0, None))
        self._uri, self._options = root.uri("profiles.lance"), root.storage_options
        self._data: Any = None

    def write(self, rows: pl.DataFrame) -> None:
        table = rows.sort("user_id").to_arrow()
        self._data = lance.write_dataset(table, self._uri, mode="overwrite", storage_options=self._options)
        self._data.create_scalar_index("user_id", "BTREE")

    def upsert(self, rows: pl.DataFrame) -> None:
        merge = self._data.merge_insert("user_id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows.to_arrow())
        self._data.optimize.optimize_indices()

    def delete(self, users: list[str]) -> None:
        self._data.delete(f"user_id IN ({', '.join(map(repr, users))})")

    def erase(self) -> None:
        """Rewrite the fragments with deleted rows and drop the versions before."""
        self._data.optimize.compact_files(materialize_deletions_threshold=0.0)
        self._data.optimize.optimize_indices()
        self._data.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def read(self, user: str) -> pa.Table:
        return self._data.to_table(filter=f"user_id = '{user}'")

    def count(self) -> int:
        return int(self._data.count_rows())


STORES: dict[str, type[Ours] | type[PlainParquet] | type[Lance]] = {
    "ours": Ours,
    "parquet": PlainParquet,
    "lance": Lance,
}
