"""Compaction: buckets with many state files get one, and files that no recent version needs are deleted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import polars as pl

from ray_profile.config import Config
from ray_profile.pipelines import work
from ray_profile.pipelines.fusing import by_bucket
from ray_profile.pipelines.run import Run
from ray_profile.profile.fold import state_schema
from ray_profile.state import KEYS
from ray_profile.store.tables import DataFile, write_file
from ray_profile.store.waves import Step, ignore_step

MAX_FILES = 32
RETENTION_HOURS = 24


@dataclass(frozen=True)
class Compacted:
    """What a compaction did."""

    buckets: int
    files_before: int
    files_after: int
    files_deleted: int

    def to_json(self) -> dict[str, int]:
        """The same as plain values."""
        return asdict(self)


def compact(
    config: Config,
    max_files: int = MAX_FILES,
    retention_hours: int = RETENTION_HOURS,
    at: Step = ignore_step,
    clock: datetime | None = None,
) -> Compacted:
    """Merge the states of buckets with more than `max_files` files, then vacuum states, profiles and items.

    Profiles do not change. Raises `FencedError` where a build commits meanwhile; nothing is lost then.
    """
    now = clock or datetime.now(UTC)
    run = Run.open(config, now, at)
    crowded = {b: files for b, files in by_bucket(run.writer.handle.files()).items() if len(files) > max_files}
    removes = [file for files in crowded.values() for file in files]
    adds: list[DataFile] = []
    if crowded:
        wave = run.writer.wave("compact", now)
        run.writer.write_plan(wave)
        adds = [_merged(run, wave.uuid, bucket, files) for bucket, files in crowded.items()]
        run.writer.commit_replacement(wave, adds, removes)
        run.writer.remove_orphans(now)
    tables = (work.states_table(run.root, run.width), work.profiles_table(run.root), work.items_table(run.root))
    deleted = sum(len(table.vacuum(retention_hours)) for table in tables)
    return Compacted(len(crowded), len(removes), len(adds), deleted)


def _merged(run: Run, uuid: str, bucket: int, files: tuple[DataFile, ...]) -> DataFile:
    """One file of a bucket's states. A merged row carries the greatest wave number of its parts: whoever has not been
    fused since the last of them is still due."""
    states = work.read_states(run.root, run.width, files)
    marks = states.group_by(KEYS).agg(pl.col("wave_no").max())
    merged = state_schema(run.width).merge(states).join(marks, on=KEYS, how="left", maintain_order="left")
    newest = max(work.wave_of(file) for file in files)
    return write_file(work.states_table(run.root, run.width), bucket, work.file_name(uuid, newest), merged.to_arrow())
