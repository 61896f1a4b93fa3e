"""Who does the work of a run: the seam between what a run decides (build.py) and where its tasks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import polars as pl

from ray_profile.config import Config
from ray_profile.pipelines.buckets import Fused, FuseJob, IndexJob, MergeJob
from ray_profile.pipelines.report import Report
from ray_profile.pipelines.work import ItemsRead, WaveJob, Written
from ray_profile.sources.read import Range
from ray_profile.store.index import Part
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile

if TYPE_CHECKING:
    from ray_profile.encode.text import Encoded

#: Told as work gets done: the stage, how much is done and how much there is (of no unit), and the rows or profiles
#: among what is done.
Progress = Callable[[str, float, float, int], None]


def no_progress(stage: str, done: float, total: float, rows: int) -> None:
    """The default: nobody is watching."""


class Engine(Protocol):
    """Runs the tasks of work.py: `local.LocalEngine` in a loop, `rays.RayEngine` on a cluster."""

    def read_items(self, config: Config, ranges: Sequence[Range]) -> Iterator[ItemsRead]:
        """What `work.read_items` gives for each range, in the order of the ranges."""
        ...

    def encode(self, texts: pl.Series) -> Encoded:
        """Vectors of texts without nulls, in their order."""
        ...

    def fold(self, job: WaveJob, ranges: Sequence[Range]) -> tuple[list[Written], list[Report]]:
        """Fold ranges into one file a bucket, not committed, sorted by bucket; and the sum of reports of each file."""
        ...

    def statistics(self, root: Root, width: int, states: Mapping[int, Sequence[DataFile]]) -> pl.DataFrame:
        """The statistics of all buckets."""
        ...

    def fuse(self, job: FuseJob) -> list[Fused]:
        """Fuse the buckets of the job. Sorted by bucket."""
        ...

    def merge(self, job: MergeJob) -> list[DataFile]:
        """Merge the files of each bucket of the job, not committed."""
        ...

    def index(self, job: IndexJob) -> list[Part]:
        """Write each part of the job into the serving index, not published. In the order of the job."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...
