"""Compaction: buckets with many state files get one, and files that no recent version needs are deleted."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ray_profile.config import Config
from ray_profile.pipelines import catalogue
from ray_profile.pipelines.buckets import MergeJob
from ray_profile.pipelines.build import engine_of
from ray_profile.pipelines.fusing import by_bucket
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.tables import items_table, profiles_table, states_table
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile
from ray_profile.store.waves import Step, ignore_step

MAX_FILES = 32
RETENTION_HOURS = 24


@dataclass(frozen=True)
class Compacted:
    """What a compaction did: the buckets whose states it merged, and the files of states and items before and after."""

    buckets: int
    files_before: int
    files_after: int
    files_deleted: int

    def to_json(self) -> dict[str, int]:
        """The same as plain values."""
        return asdict(self)


def compact(
    config: Config,
    local: bool = False,
    max_files: int = MAX_FILES,
    retention_hours: int = RETENTION_HOURS,
    at: Step = ignore_step,
    clock: datetime | None = None,
) -> Compacted:
    """Merge the states of buckets with more than `max_files` files, and so the catalogue; then vacuum all tables.

    Profiles do not change, and nobody is fused anew. Raises `FencedError` where a build commits meanwhile; nothing is
    lost then. Raises `RootError` where there is no such root, or the config is not that of its waves.
    """
    now = clock or datetime.now(UTC)
    Root.existing(config.root)  # a build may begin a root, and a mistyped one here would be another
    run = Run.open(config, now, at)
    run.check()
    crowded = {b: files for b, files in by_bucket(run.writer.handle.files()).items() if len(files) > max_files}
    before = sum(map(len, crowded.values()))
    if crowded:
        _merge(run, crowded, local, now)
    items_before, items_after = catalogue.compact(run.root, uuid.uuid4().hex, max_files)
    tables = (states_table(run.root, run.width), profiles_table(run.root), items_table(run.root))
    deleted = sum(len(table.vacuum(retention_hours)) for table in tables)
    return Compacted(len(crowded), before + items_before, len(crowded) + items_after, deleted)


def _merge(run: Run, crowded: dict[int, tuple[DataFile, ...]], local: bool, now: datetime) -> None:
    wave = run.writer.wave("compact", now)
    run.writer.write_plan(wave)
    engine = engine_of(run.config, local)
    try:
        adds = engine.merge(MergeJob(run.root, wave.uuid, run.width, crowded))
    finally:
        engine.close()
    run.writer.commit_replacement(wave, adds, [file for files in crowded.values() for file in files])
    run.writer.remove_orphans(now)
