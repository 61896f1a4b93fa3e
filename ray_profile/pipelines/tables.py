"""The tables of a root with their dtypes, and how tasks read them as frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import polars as pl
import pyarrow as pa

from ray_profile.profile.fold import state_schema
from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.profile.items import ITEM_DTYPES, Items
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile, Table, read_files


@lru_cache(maxsize=8)  # turning a hundred columns into an Arrow schema takes milliseconds, and every bucket asks
def states_table(root: Root, width: int) -> Table:
    """The states table."""
    return Table(root, "states", pl.DataFrame(schema=states_dtypes(width)).to_arrow().schema)


def states_dtypes(width: int) -> pl.Schema:
    """Its columns: StateSchema and `wave_no`."""
    return pl.Schema({**state_schema(width).dtypes, "wave_no": pl.Int64()})


@lru_cache(maxsize=8)
def profiles_table(root: Root) -> Table:
    """The profiles table."""
    return Table(root, "profiles", pl.DataFrame(schema=PROFILE_DTYPES).to_arrow().schema)


@lru_cache(maxsize=8)
def items_table(root: Root) -> Table:
    """The catalogue."""
    return Table(root, "items", pl.DataFrame(schema=ITEM_DTYPES).to_arrow().schema, partitioned=False)


def read_states(
    root: Root, width: int, files: Sequence[DataFile], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """State rows of some files in the dtypes of the state (and `wave_no`), not merged."""
    dtypes = states_dtypes(width)
    names = list(dtypes) if columns is None else list(columns)
    frame = frame_of(read_files(states_table(root, width), list(files), columns=names))
    return frame.select(names).cast({name: dtypes[name] for name in names})


@lru_cache(maxsize=2)
def load_items(root: Root, files: tuple[DataFile, ...], width: int, with_vectors: bool = True) -> Items:
    """The catalogue of some files, read once a process; without vectors it is a tenth of the size, and a fold needs
    none."""
    if not files:
        return Items.none(width)
    names = [name for name in ITEM_DTYPES if with_vectors or name != "vector"]
    frame = frame_of(read_files(items_table(root), list(files), columns=names))
    if not with_vectors:
        frame = frame.with_columns(pl.lit(None, pl.Binary).alias("vector"))
    return Items.of(frame.select(*ITEM_DTYPES).cast(pl.Schema(ITEM_DTYPES)), width)


def frame_of(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a Polars frame, sharing its memory."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
