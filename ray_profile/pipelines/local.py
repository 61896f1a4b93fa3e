"""The steps of a run as a plain loop in one process, without Ray: what a laptop runs with `--local`, and what the cost
of going through Ray is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import polars as pl

from ray_profile.config import Config
from ray_profile.pipelines import buckets, work
from ray_profile.pipelines.engine import Progress, no_progress
from ray_profile.pipelines.report import Report, by_file
from ray_profile.pipelines.spill import Spill
from ray_profile.pipelines.tables import load_items
from ray_profile.profile import statistics
from ray_profile.profile.fold import state_schema
from ray_profile.sources.formats import may_hold_text
from ray_profile.sources.read import Range
from ray_profile.store.index import Part
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile
from ray_profile.store.waves import GB
from ray_profile.threads import mapped

if TYPE_CHECKING:
    from ray_profile.encode.text import Encoded, TextEncoder


class LocalEngine:
    """`engine.Engine` in this process."""

    def __init__(self, config: Config, progress: Progress = no_progress) -> None:
        self._config = config
        self._progress = progress

    @cached_property
    def _encoder(self) -> TextEncoder:
        from ray_profile.encode.text import TextEncoder

        return TextEncoder.load(self._config.encoder)

    def close(self) -> None:
        """Nothing to give back."""

    def read_items(self, config: Config, ranges: Sequence[Range]) -> Iterator[work.ItemsRead]:
        """See `Engine`."""
        return (work.read_items(config, range_) for range_ in ranges)

    def encode(self, texts: pl.Series) -> Encoded:
        """See `Engine`."""
        return self._encoder.encode(texts)

    def fold(self, job: work.WaveJob, ranges: Sequence[Range]) -> tuple[list[work.Written], list[Report]]:
        """See `Engine`."""
        costs = work.costs_of(job.config, ranges)
        total = sum(costs)
        reports: list[Report] = []
        rows, done = 0, 0.0
        # All ranges' blocks go through one pool of threads: a corpus of many small files is folded on all of them, too.
        blocks = (
            (block, end - cost, end)
            for range_, cost, end in zip(ranges, costs, accumulate(costs), strict=True)
            for block in self._encoded(job, range_, cost)
        )
        work.fold_context(job)  # here, or the first threads would each read the catalogue
        with Spill(state_schema(job.width), int(self._config.build.memory_gb * GB)) as spill:
            for (states, report), begin, end in mapped(lambda each: (work.fold_block(each[0], job), *each[1:]), blocks):
                spill.add(states)
                reports.append(report)
                rows, done = rows + report.rows_read, min(max(done, begin) + report.cost, end)
                self._progress("fold", done, total, rows)
            self._progress("fold", total, total, rows)
            written = [work.write_states(job, bucket, states) for bucket, states in spill.buckets()]
        work.assert_all_arrived(written, reports)
        return written, list(by_file(reports).values())

    def _encoded(self, job: work.WaveJob, range_: Range, cost: float) -> Iterator[work.Block]:
        """The blocks of a range, with vectors where there is text."""
        may_speak = may_hold_text(job.config.sources[range_.file.source])
        for block in work.read(job, range_, cost):
            if not may_speak or block.rows["text"].null_count() == block.rows.height:
                yield block
                continue
            for part in work.slices(block):
                yield work.encode(work.tokenise(part, self._encoder.tokenizer), self._encoder)

    def statistics(self, root: Root, width: int, states: Mapping[int, Sequence[DataFile]]) -> pl.DataFrame:
        """See `Engine`."""
        return statistics.combine(
            buckets.statistics_of_bucket(root, width, states[bucket]) for bucket in sorted(states)
        )

    def fuse(self, job: buckets.FuseJob) -> list[buckets.Fused]:
        """See `Engine`."""
        fused: list[buckets.Fused] = []
        load_items(job.root, job.items, job.width)  # here, or the first threads would each read the catalogue
        for group in mapped(lambda group: buckets.fuse_buckets(job, group), buckets.groups_of(job, 1)):
            fused += group
            self._progress("fuse", len(fused), len(job.states), sum(each.new + each.changed for each in fused))
        return fused

    def merge(self, job: buckets.MergeJob) -> list[DataFile]:
        """See `Engine`."""
        return [buckets.merge_bucket(job, bucket) for bucket in job.states]

    def index(self, job: buckets.IndexJob) -> list[Part]:
        """See `Engine`."""
        parts: list[Part] = []
        for part in mapped(lambda bucket: buckets.index_part(job, bucket), job.due):
            parts.append(part)
            self._progress("index", len(parts), len(job.due), part.documents)
        return parts
