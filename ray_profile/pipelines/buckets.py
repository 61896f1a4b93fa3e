"""What one task does with a bucket: fuse its changed users, count for the statistics, merge its files.

Like the tasks of a wave (work.py), each can be run again: every attempt writes files of its own, and only those that
the driver commits count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from ray_profile.pipelines.tables import frame_of, load_items, profiles_table, read_states, states_dtypes, states_table
from ray_profile.profile import statistics
from ray_profile.profile.document import documents, item_documents
from ray_profile.profile.facet import FuseContext
from ray_profile.profile.fold import state_schema
from ray_profile.profile.fuse import PROFILE_DTYPES, fuse
from ray_profile.profile.periods import period_end
from ray_profile.sources.redact import bucket_of
from ray_profile.state import KEYS, StateSchema
from ray_profile.store.index import Part, write_part
from ray_profile.store.root import Root
from ray_profile.store.scan import read_users
from ray_profile.store.tables import DataFile, read_files, write_file
from ray_profile.store.waves import file_name, wave_of

#: New states of one fuse task. A process fuses as many at once as it has threads.
STATES_AT_ONCE = 10_000


@dataclass(frozen=True)
class FuseJob:
    """What every task of a fuse is told."""

    root: Root
    uuid: str
    fused: int  # the last wave that is in the profiles already; -1: fuse everybody
    as_of: datetime
    width: int
    items: tuple[DataFile, ...]
    statistics: pl.DataFrame
    statistics_version: int
    encoder_digest: str
    states: dict[int, tuple[DataFile, ...]]
    profiles: dict[int, tuple[DataFile, ...]]


@dataclass(frozen=True)
class Fused:
    """What fusing a bucket gave: its new file and how many profiles were new or changed; no file, nobody changed."""

    file: DataFile | None
    bucket: int
    new: int = 0
    changed: int = 0


@dataclass(frozen=True)
class MergeJob:
    """What every task of a compaction is told."""

    root: Root
    uuid: str
    width: int
    states: dict[int, tuple[DataFile, ...]]


@dataclass(frozen=True)
class IndexJob:
    """What every task of an indexing is told, and the parts that are due: buckets, and None for the catalogue."""

    root: Root
    width: int
    due: dict[int | None, tuple[DataFile, ...]]


def groups_of(job: FuseJob, at_least: int) -> list[list[int]]:
    """The due buckets in groups of about `STATES_AT_ONCE` new states, each fused by one task: a facet's call costs the
    same for ten users as for a thousand. There are `at_least` groups, if there are as many buckets.
    """
    most = max(1, len(job.states) // at_least)
    groups: list[list[int]] = []
    room = 0
    for bucket, files in sorted(job.states.items()):
        new = sum(file.rows for file in files if wave_of(file) > job.fused)
        if not groups or new > room or len(groups[-1]) == most:
            groups.append([])
            room = STATES_AT_ONCE
        groups[-1].append(bucket)
        room -= new
    return groups


def fuse_buckets(job: FuseJob, buckets: Sequence[int]) -> list[Fused]:
    """Fuse the users of some buckets that changed since the last fuse, copy the other profiles, write one file each."""
    states = _changed(job, [file for bucket in buckets for file in job.states[bucket]])
    fused = fuse(state_schema(job.width).merge(states), _context(job))
    fused = fused.with_columns(bucket_of(fused["user_id"], job.root.facts.buckets).alias("bucket"))
    return [_written(job, bucket, fused.filter(pl.col("bucket") == bucket).drop("bucket")) for bucket in buckets]


def _changed(job: FuseJob, files: Sequence[DataFile]) -> pl.DataFrame:
    """All states of those users who have one of a wave that is not fused."""
    late = [file for file in files if wave_of(file) > job.fused]
    if len(late) == len(files) and job.fused <= 0:  # nobody is fused yet
        return read_states(job.root, job.width, files)
    marks = read_states(job.root, job.width, late, ["user_id", "wave_no"])
    users = marks.filter(pl.col("wave_no") > job.fused)["user_id"].unique()
    dtypes = states_dtypes(job.width)
    return read_users(states_table(job.root, job.width), files, users, "semi").select(*dtypes).cast(dtypes)


def _written(job: FuseJob, bucket: int, fused: pl.DataFrame) -> Fused:
    if fused.is_empty():
        return Fused(None, bucket)
    files = job.profiles.get(bucket, ())
    kept = read_users(profiles_table(job.root), files, fused["user_id"], "anti")
    rows = pl.concat([kept.select(*PROFILE_DTYPES).cast(pl.Schema(PROFILE_DTYPES)), fused]).sort("user_id")
    file = write_file(profiles_table(job.root), bucket, file_name(job.uuid), rows.to_arrow())
    changed = sum(each.rows for each in files) - kept.height
    return Fused(file, bucket, fused.height - changed, changed)


def statistics_of_bucket(
    root: Root, width: int, files: Sequence[DataFile], before: datetime | None = None
) -> pl.DataFrame:
    """A bucket's part of the corpus statistics (profile/statistics.py), of all periods or those that end by then."""
    wanted = StateSchema(tuple(c for c in state_schema(width).columns if c.name in statistics.STATE_COLUMNS))
    states = read_states(root, width, files, [*KEYS, *statistics.STATE_COLUMNS])
    if before is not None:
        states = states.filter(period_end(pl.col("period"), root.facts.period) <= before)
    return statistics.of_states(wanted.merge(states))


def merge_bucket(job: MergeJob, bucket: int) -> DataFile:
    """One file of a bucket's states. A merged row carries the greatest wave number of its parts: whoever has not been
    fused since the last of them is still due."""
    files = job.states[bucket]
    states = read_states(job.root, job.width, files)
    marks = states.group_by(KEYS).agg(pl.col("wave_no").max())
    merged = state_schema(job.width).merge(states).join(marks, on=KEYS, how="left", maintain_order="left")
    name = file_name(job.uuid, max(wave_of(file) for file in files))
    return write_file(states_table(job.root, job.width), bucket, name, merged.to_arrow())


def _context(job: FuseJob) -> FuseContext:
    return FuseContext(
        load_items(job.root, job.items, job.width),
        job.as_of,
        job.statistics,
        job.statistics_version,
        job.encoder_digest,
        job.width,
        job.root.facts.period,
        job.root.facts.half_life_days,
    )


def index_part(job: IndexJob, bucket: int | None) -> Part:
    """Write a bucket's profiles, or the catalogue, into the serving index."""
    files = job.due[bucket]
    if bucket is None:
        items = load_items(job.root, files, job.width)
        rows, vectors = item_documents(items), items.vectors
    else:
        profiles = frame_of(read_files(profiles_table(job.root), files, columns=list(PROFILE_DTYPES)))
        rows = documents(profiles)
        vectors = np.zeros((rows.height, job.width), np.float16)
        known = rows["vector"].is_not_null()
        if known.any():
            vectors[known.to_numpy()] = rows["vector"].drop_nulls().list.to_array(job.width).to_numpy()
        rows = rows.drop("vector")
    return write_part(bucket, rows, vectors, [file.path for file in files], job.root)
