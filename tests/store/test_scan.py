"""Rows of some users, on a disk and on a real S3 server, against reading everything and keeping what is wanted."""

from __future__ import annotations

import uuid
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from ray_profile.errors import StorageError
from ray_profile.store.root import Root, RootFacts
from ray_profile.store.scan import read_users
from ray_profile.store.tables import DataFile, Table, read_files, write_file

FACTS = RootFacts(1, 4, "month", 90.0, None)
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.large_string()),
        pa.field("seen", pa.timestamp("us", tz="UTC")),
        pa.field("vector", pa.list_(pa.float64(), 2)),
        pa.field("acts", pa.list_(pa.struct([pa.field("id", pa.large_string()), pa.field("weight", pa.float64())]))),
    ]
)


@pytest.fixture(params=["local", "s3"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Table:
    address = (
        str(tmp_path / "根 #1 bucket=2") if request.param == "local" else request.getfixturevalue("s3").fresh("根 1")
    )
    table = Table(Root.open(address, FACTS), "states", SCHEMA)
    table.create()
    return table


def write(table: Table, bucket: int, *users: str) -> DataFile:
    columns = [
        list(users),
        [1_700_000_000_000_000 + at for at in range(len(users))],
        [None if at == 0 else [float(at), 0.5] for at in range(len(users))],
        [[{"id": user, "weight": 1.0}] * at for at, user in enumerate(users)],
    ]
    return write_file(table, bucket, uuid.uuid4().hex, pa.table(columns, schema=SCHEMA))


@pytest.mark.parametrize("how", ["semi", "anti"])
def test_it_gives_what_reading_everything_and_joining_gives(table: Table, how: str) -> None:
    files = [write(table, 0, "安娜", "bob", "cy"), write(table, 3, "bob", "dan"), write(table, 1, "eve")]
    users = pl.Series("any name", ["bob", "eve", "bob", "nobody"])
    found = read_users(table, files, users, how)  # type: ignore[arg-type]
    whole = pl.DataFrame(read_files(table, files)).drop("bucket")
    wanted = whole.join(users.alias("user_id").to_frame(), on="user_id", how=how)  # type: ignore[arg-type]
    assert found.schema == whole.schema
    assert found.sort("user_id", "seen").equals(wanted.sort("user_id", "seen"))
    assert found.height == {"semi": 3, "anti": 3}[how]


def test_no_files_and_no_users(table: Table) -> None:
    file = write(table, 0, "a", "b")
    nobody = pl.Series([], dtype=pl.String)
    assert read_users(table, [], pl.Series(["a"])).schema == read_users(table, [file], pl.Series(["a"])).schema
    assert read_users(table, [file], nobody).is_empty()
    assert read_users(table, [file], nobody, "anti").height == 2


def test_a_file_that_is_gone_or_damaged_is_said_in_words(table: Table) -> None:
    file = write(table, 0, "a")
    table.root.delete([f"states/{file.path}"])
    with pytest.raises(StorageError, match="cannot read the table"):
        read_users(table, [file], pl.Series(["a"]))
    table.root.create_bytes(b"PAR1 no such thing PAR1", "states", *file.path.split("/"))
    with pytest.raises(StorageError, match="the file is damaged"):
        read_users(table, [file], pl.Series(["a"]))
