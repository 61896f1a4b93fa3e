"""Who does the work of a run: the seam between what a run decides (build.py) and where its tasks run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import polars as pl

from ray_profile.config import Config
from ray_profile.pipelines.report import Report
from ray_profile.pipelines.work import Fused, FuseJob, ItemsRead, WaveJob
from ray_profile.sources.read import Range
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile

if TYPE_CHECKING:
    from ray_profile.encode.text import Encoded

#: Told as work gets done: the stage, how much is done and how much there is (bytes of sources, or buckets).
Progress = Callable[[str, float, float], None]


def no_progress(stage: str, done: float, total: float) -> None:
    """The default: nobody is watching."""


class Engine(Protocol):
    """Runs the tasks of work.py: `local.LocalEngine` in a loop, `rays.RayEngine` on a cluster."""

    def read_items(self, config: Config, ranges: Sequence[Range]) -> list[ItemsRead]:
        """What `work.read_items` gives for each range, in the order of the ranges."""
        ...

    def encode(self, texts: pl.Series) -> Encoded:
        """Vectors of texts without nulls, in their order."""
        ...

    def fold(self, job: WaveJob, ranges: Sequence[Range]) -> tuple[list[DataFile], list[Report]]:
        """Fold ranges into one file a bucket, not committed. Sorted by bucket."""
        ...

    def statistics(self, root: Root, width: int, states: Mapping[int, Sequence[DataFile]]) -> pl.DataFrame:
        """The statistics of all buckets."""
        ...

    def fuse(self, job: FuseJob, buckets: Sequence[int]) -> list[Fused]:
        """Fuse some buckets. Sorted by bucket."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...
