"""The steps of a run as a plain loop in one process, without Ray: what a laptop runs with `--local`, and what the cost
of going through Ray is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl

from ray_profile.config import Config
from ray_profile.config import Encoder as Settings
from ray_profile.pipelines import work
from ray_profile.pipelines.engine import Progress, no_progress
from ray_profile.pipelines.report import Report
from ray_profile.pipelines.spill import Spill
from ray_profile.profile import statistics
from ray_profile.profile.fold import state_schema
from ray_profile.sources.formats import may_hold_text
from ray_profile.sources.read import Range
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile

if TYPE_CHECKING:
    from ray_profile.encode.text import Encoded, TextEncoder


class LocalEngine:
    """`engine.Engine` in this process."""

    def __init__(self, settings: Settings, progress: Progress = no_progress) -> None:
        self._settings = settings
        self._progress = progress

    @cached_property
    def _encoder(self) -> TextEncoder:
        from ray_profile.encode.text import TextEncoder

        return TextEncoder.load(self._settings)

    def close(self) -> None:
        """Nothing to give back."""

    def read_items(self, config: Config, ranges: Sequence[Range]) -> list[work.ItemsRead]:
        """See `Engine`."""
        return [work.read_items(config, range_) for range_ in ranges]

    def encode(self, texts: pl.Series) -> Encoded:
        """See `Engine`."""
        return self._encoder.encode(texts)

    def fold(self, job: work.WaveJob, ranges: Sequence[Range]) -> tuple[list[DataFile], list[Report]]:
        """See `Engine`."""
        reports: list[Report] = []
        costs = work.costs_of(job.config, ranges)
        done = 0.0
        with Spill(state_schema(job.width)) as spill:
            for range_, cost in zip(ranges, costs, strict=True):
                rows = 0
                for block in self._encoded(job, range_):
                    rows += block.rows.height
                    states, report = work.fold_block(block, job)
                    spill.add(states)
                    reports.append(report)
                    if range_.kind == "parquet":  # the others do not know how many rows they have
                        self._progress("fold", done + cost * min(rows / (range_.end - range_.start), 1.0), sum(costs))
                done += cost
                self._progress("fold", done, sum(costs))
            written = [work.write_states(job, bucket, states) for bucket, states in spill.buckets()]
        work.assert_all_arrived(written, reports)
        return [each.file for each in written], reports

    def _encoded(self, job: work.WaveJob, range_: Range) -> Iterator[work.Block]:
        """The blocks of a range, with vectors where there is text."""
        may_speak = may_hold_text(job.config.sources[range_.file.source])
        for block in work.read(job, range_):
            if not may_speak or block.rows["text"].null_count() == block.rows.height:
                yield block
                continue
            for part in work.slices(block):
                yield work.encode(work.tokenise(part, self._encoder.tokenizer), self._encoder)

    def statistics(self, root: Root, width: int, states: Mapping[int, Sequence[DataFile]]) -> pl.DataFrame:
        """See `Engine`."""
        return statistics.combine(work.statistics_of_bucket(root, width, states[bucket]) for bucket in sorted(states))

    def fuse(self, job: work.FuseJob, buckets: Sequence[int]) -> list[work.Fused]:
        """See `Engine`."""
        fused = []
        for at, bucket in enumerate(sorted(buckets), start=1):
            fused.append(work.fuse_bucket(job, bucket))
            self._progress("fuse", at, len(buckets))
        return fused
