"""Partial states that wait for their bucket: in memory up to a limit, beyond it on local disk.

The plain loop's stand-in for a shuffle. Merging what waits before it is written keeps a heavy user at one row a period;
and a merge costs as much for one bucket as for all of them, so that whatever fits into memory is merged at once.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import polars as pl

from ray_profile.segments import lengths, starts
from ray_profile.state import StateSchema


class Spill:
    """Collects states with `bucket`; a context manager whose folder is gone at its end."""

    def __init__(self, schema: StateSchema, limit_bytes: int) -> None:
        self._schema = schema
        self._limit = limit_bytes
        self._waiting: list[pl.DataFrame] = []
        self._bytes = 0
        self._files: dict[int, list[Path]] = defaultdict(list)
        self._sizes: dict[int, int] = defaultdict(int)  # bytes in memory of each bucket's files
        self._temporary = tempfile.TemporaryDirectory(prefix="ray_profile-spill-")
        self.folder = Path(self._temporary.name)

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._temporary.cleanup()

    def add(self, states: pl.DataFrame) -> None:
        """Keep some partial states."""
        self._waiting.append(states)
        self._bytes += int(states.estimated_size())
        if self._bytes > self._limit:
            self._flush()

    def buckets(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """Every bucket that has states, ascending, with its states, merged."""
        if not self._files:
            yield from merged_by_bucket(self._schema, self._taken())
            return
        self._flush()
        for group in self._groups():
            yield from merged_by_bucket(
                self._schema, (pl.read_ipc(path) for bucket in group for path in self._files[bucket])
            )

    def _flush(self) -> None:
        number = sum(map(len, self._files.values()))
        for bucket, states in merged_by_bucket(self._schema, self._taken()):
            path = self.folder / f"{bucket}-{number}.arrow"
            states.write_ipc(path)
            self._files[bucket].append(path)
            self._sizes[bucket] += int(states.estimated_size())

    def _taken(self) -> list[pl.DataFrame]:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        return waiting

    def _groups(self) -> Iterator[list[int]]:
        """The buckets with files in groups that fit into half of the limit: the other half is for what they make."""
        group: list[int] = []
        size = 0
        for bucket in sorted(self._files):
            if group and size + self._sizes[bucket] > self._limit / 2:
                yield group
                group, size = [], 0
            group.append(bucket)
            size += self._sizes[bucket]
        if group:
            yield group


def merged_by_bucket(schema: StateSchema, parts: Iterable[pl.DataFrame]) -> Iterator[tuple[int, pl.DataFrame]]:
    """States with `bucket`, in any number of parts -> by bucket, ascending, its merged states, with `bucket`."""
    found = list(parts)
    del parts  # a frame that two names hold is two frames in memory, once it is copied
    if not found:
        return
    whole = schema.merge(_joined(found), by="bucket")
    homes = whole["bucket"].to_numpy()
    for at, size in zip(begin := starts(homes), lengths(begin, len(homes)), strict=True):
        yield int(homes[at]), whole.slice(at, size)


def _joined(parts: list[pl.DataFrame]) -> pl.DataFrame:
    whole: pl.DataFrame = pl.concat(parts, rechunk=True)
    parts.clear()
    return whole
