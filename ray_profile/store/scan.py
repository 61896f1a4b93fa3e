"""Rows of some users, out of files that hold many more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from ray_profile.store.root import asking
from ray_profile.store.tables import BUCKET, DataFile, Table


def scan_files(table: Table, files: Sequence[DataFile]) -> pl.LazyFrame:
    """The rows of some files (at least one), without `bucket`, to be read as far as a query needs."""
    return pl.scan_parquet(
        [table.root.uri(table.name, file.path) for file in files],
        glob=False,
        hive_partitioning=False,
        storage_options=table.root.storage_options or None,
    )


def read_users(
    table: Table, files: Sequence[DataFile], users: pl.Series, how: Literal["semi", "anti"] = "semi"
) -> pl.DataFrame:
    """The rows of some files whose `user_id` is one of `users`, or (anti) none of them; without `bucket`, in no order.

    One scan of all files: it takes less than half of the time of `read_files` and a join.
    """
    names = [name for name in table.schema.names if name != BUCKET]
    if not files:
        return pl.DataFrame(table.schema.empty_table().select(names))
    wanted = users.unique().alias("user_id").to_frame().lazy()
    with asking(table.uri, "read the table"):
        return scan_files(table, files).select(names).join(wanted, on="user_id", how=how).collect()
