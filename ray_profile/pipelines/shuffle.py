"""Partial states to their buckets through Ray's object store: the one shuffle of a fold.

    blocks of partial states -> split: merged, one part a partition -> (combine) -> write: one file a bucket

It begins with the first block and adds up on the way: of a user with a million events a part holds one row a period,
however many blocks they came from. (Ray Data's own hash shuffle moves every partial state as it is, and starts worker
processes for itself: on two cores four seconds a run.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa
import ray

from ray_profile.pipelines import work
from ray_profile.pipelines.report import Report
from ray_profile.pipelines.spill import merged_by_bucket
from ray_profile.pipelines.tables import frame_of
from ray_profile.profile.fold import state_schema

REPORT = "report"
REPORT_BUCKET = -1
#: Blocks of so many bytes, or of so many seconds, are split by one task: what many encoders make is not told by the
#: block, and what one makes is seen soon.
SPLIT_BYTES = 64 << 20
SPLIT_SECONDS = 1.0
#: So many parts of a partition become one, so that the driver holds few references and no task is handed many parts.
FAN_IN = 32


class Shuffle:
    """Takes blocks of `folded` as they are made; `write` gives the files. `told` hears every report once."""

    def __init__(self, job: work.WaveJob, partitions: int, told: Callable[[Sequence[Report]], None]) -> None:
        self._job = ray.put(job)
        self._partitions = partitions
        self._told = told
        self._split = ray.remote(_split).options(num_returns=partitions + 1)
        self._combine, self._write = ray.remote(_combine), ray.remote(_write)
        self._waiting: list[Any] = []
        self._bytes, self._since = 0, 0.0
        self._reports: list[Any] = []
        self._parts: list[list[list[Any]]] = [[] for _ in range(partitions)]  # by partition and times combined

    def add(self, blocks: Sequence[Any], size: int) -> None:
        """References to blocks of `size` bytes together."""
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting += blocks
        self._bytes += size
        if self._bytes >= SPLIT_BYTES or time.monotonic() - self._since >= SPLIT_SECONDS:
            self._flush()
        ready, self._reports = ray.wait(self._reports, num_returns=len(self._reports), timeout=0)
        self._hear(ready)

    def write(self) -> list[work.Written]:
        """The files of all buckets that have states, once everything has arrived."""
        self._flush()
        calls = [
            self._write.remote(self._job, *(part for level in parts for part in level))
            for parts in self._parts
            if parts
        ]
        self._parts = []
        while self._reports:
            ready, self._reports = ray.wait(self._reports)
            self._hear(ready)
        written: list[list[work.Written]] = ray.get(calls)
        return [file for files in written for file in files]

    def _flush(self) -> None:
        if not self._waiting:
            return
        reports, *parts = self._split.remote(self._job, self._partitions, *self._waiting)
        self._waiting, self._bytes = [], 0
        self._reports.append(reports)
        for levels, part in zip(self._parts, parts, strict=True):
            self._keep(levels, 0, part)

    def _keep(self, levels: list[list[Any]], level: int, part: Any) -> None:
        if level == len(levels):
            levels.append([])
        levels[level].append(part)
        if len(levels[level]) == FAN_IN:
            combined = self._combine.remote(self._job, *levels[level])
            levels[level] = []
            self._keep(levels, level + 1, combined)

    def _hear(self, references: Sequence[Any]) -> None:
        for reports in ray.get(list(references)):
            self._told(reports)


def folded(states: pl.DataFrame, reports: Sequence[Report]) -> pa.Table:
    """A block: partial states with `bucket`, and as rows of their own the reports of the rows that are folded in.

    They travel together, so that a task that Ray runs twice is counted once.
    """
    said = pl.DataFrame({"bucket": REPORT_BUCKET, REPORT: [report.to_json() for report in reports]})
    said = said.with_columns(pl.col("bucket").cast(pl.Int32))
    return pl.concat([states.with_columns(pl.lit(None, pl.String).alias(REPORT)), said], how="diagonal").to_arrow()


def _split(job: work.WaveJob, partitions: int, *blocks: pa.Table) -> list[Any]:
    """The reports in some blocks, and for each partition, a range of buckets, its states; None where it has none."""
    frame = pl.concat([frame_of(block) for block in blocks], how="vertical")
    reports = [Report.from_json(text) for text in frame[REPORT].drop_nulls()]
    parts: list[list[pl.DataFrame]] = [[] for _ in range(partitions)]
    for bucket, states in _merged(job, frame.filter(pl.col(REPORT).is_null()).drop(REPORT)):
        parts[bucket * partitions // job.root.facts.buckets].append(states)
    return [reports, *(pl.concat(part, rechunk=True).to_arrow() if part else None for part in parts)]


def _combine(job: work.WaveJob, *parts: pa.Table | None) -> pa.Table | None:
    states = [frame for _, frame in _merged(job, *_frames(parts))]
    return pl.concat(states, rechunk=True).to_arrow() if states else None


def _write(job: work.WaveJob, *parts: pa.Table | None) -> list[work.Written]:
    return [work.write_states(job, bucket, states) for bucket, states in _merged(job, *_frames(parts))]


def _frames(parts: Sequence[pa.Table | None]) -> list[pl.DataFrame]:
    return [frame_of(part) for part in parts if part is not None]


def _merged(job: work.WaveJob, *states: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    schema = state_schema(job.width)
    dtypes = pl.Schema(schema.dtypes | {"bucket": pl.Int32()})  # Arrow has no Enum and other names for the rest
    return merged_by_bucket(schema, (frame.select(dtypes.names()).cast(dtypes) for frame in states))
