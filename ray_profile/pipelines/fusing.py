"""Fuse the users that changed: statistics where they are due, then the profiles, in one commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import BytesIO

import polars as pl

from ray_profile.pipelines.buckets import FuseJob
from ray_profile.pipelines.engine import Engine
from ray_profile.pipelines.run import NEWEST, Run
from ray_profile.pipelines.tables import items_table, profiles_table
from ray_profile.profile.periods import end_of
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile
from ray_profile.store.waves import Fuse, Version, wave_of

#: Application ids that the fuse's commit carries beside its number: what the profiles are made with.
STATISTICS, AS_OF = "statistics", "as_of"
FOLDER = "statistics"


@dataclass(frozen=True)
class FuseResult:
    """How many profiles a fuse made, and how many it changed."""

    new: int = 0
    changed: int = 0


def fuse_changed(run: Run, engine: Engine, refresh: bool) -> FuseResult:
    """Fuse every user with a wave since the last fuse (everybody on `refresh`) and commit their buckets at once.

    Raises `FencedError` where another run has fused meanwhile, `StorageError` where the store fails.
    """
    profiles = profiles_table(run.root)
    profiles.create()
    fuse = Fuse(run.root, run.writer.handle, profiles, run.at)
    states = by_bucket(run.writer.handle.files())
    since = -1 if refresh else fuse.since
    due = {bucket: files for bucket, files in states.items() if any(wave_of(f) > since for f in files)}
    if fuse.since > fuse.number:
        return FuseResult()  # a later run has fused what this one sees, and more
    if not due:
        fuse.commit([], [])
        return FuseResult()
    version, corpus = _statistics(run, engine, states, fuse.handle, refresh)
    as_of = _as_of(run, fuse.handle)
    job = FuseJob(
        run.root,
        fuse.uuid,
        since,
        as_of,
        run.width,
        tuple(_items(run.root)),
        corpus,
        version,
        run.encoder_digest,
        due,
        by_bucket(fuse.handle.files(), due),
    )
    fused = [each for each in engine.fuse(job) if each.file is not None]
    adds = [each.file for each in fused if each.file is not None]
    fuse.commit(adds, [each.bucket for each in fused], {STATISTICS: version, AS_OF: int(as_of.timestamp())})
    fuse.remove_orphans()
    return FuseResult(sum(each.new for each in fused), sum(each.changed for each in fused))


def by_bucket(
    files: Sequence[DataFile], buckets: Mapping[int, object] | None = None
) -> dict[int, tuple[DataFile, ...]]:
    """Files by their bucket, all buckets or those named."""
    groups: dict[int, list[DataFile]] = defaultdict(list)
    for file in files:
        if buckets is None or file.bucket in buckets:
            groups[file.bucket].append(file)
    return {bucket: tuple(groups[bucket]) for bucket in sorted(groups)}


def read_statistics(root: Root, version: int) -> pl.DataFrame:
    """The statistics of a version that profiles name."""
    with root.fs.open(root.path(FOLDER, f"{version}.parquet"), "rb") as file:
        return pl.read_parquet(file)


def _statistics(
    run: Run, engine: Engine, states: Mapping[int, Sequence[DataFile]], profiles: Version, refresh: bool
) -> tuple[int, pl.DataFrame]:
    """The corpus statistics and their version: derived at the first fuse and on refresh, else those in use.

    They are written before the commit that names them. A run that died in between left the same ones, and its number
    is taken again, so that it leaves no trace.
    """
    used = profiles.transaction(STATISTICS)
    if used is not None and not refresh:
        return used, read_statistics(run.root, used)
    corpus = engine.statistics(run.root, run.width, states)
    version = (used or 0) + 1
    body = BytesIO()
    corpus.write_parquet(body)
    while not run.root.create_bytes(body.getvalue(), FOLDER, f"{version}.parquet"):
        if read_statistics(run.root, version).equals(corpus):
            break
        version += 1
    return version, corpus


def _as_of(run: Run, profiles: Version) -> datetime:
    """The end of the newest period, never the clock: the same files give the same profiles on any day."""
    newest = run.writer.handle.transaction(NEWEST)
    assert newest is not None, "states have rows, so their commits name the newest period"
    end = end_of(date.fromordinal(newest), run.root.facts.period)
    before = profiles.transaction(AS_OF)
    return max(end, datetime.fromtimestamp(before, UTC)) if before is not None else end


def _items(root: Root) -> list[DataFile]:
    handle = items_table(root).open()
    return [] if handle is None else handle.files()
