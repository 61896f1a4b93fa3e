"""Partial states that wait for their bucket: in memory up to a limit, beyond it on local disk.

The plain loop's stand-in for a shuffle. Merging what waits before it is written keeps a heavy user at one row a period.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import polars as pl

from ray_profile.state import StateSchema

SPILL_BYTES = 512 << 20


class Spill:
    """Collects states with `bucket`; a context manager whose folder is gone at its end."""

    def __init__(self, schema: StateSchema, limit_bytes: int = SPILL_BYTES) -> None:
        self._schema = schema
        self._limit = limit_bytes
        self._waiting: list[pl.DataFrame] = []
        self._bytes = 0
        self._files: dict[int, list[Path]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="ray_profile-spill-")

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, states: pl.DataFrame) -> None:
        """Keep some partial states."""
        self._waiting.append(states)
        self._bytes += int(states.estimated_size())
        if self._bytes > self._limit:
            self._flush()

    def buckets(self) -> Iterator[tuple[int, pl.DataFrame]]:
        """Every bucket that has states, ascending, with all of its partial states, not merged."""
        if not self._files:
            yield from self._in_memory()
            return
        self._flush()
        for bucket in sorted(self._files):
            yield bucket, pl.concat([pl.read_ipc(path) for path in self._files[bucket]])

    def _in_memory(self) -> Iterator[tuple[int, pl.DataFrame]]:
        if not self._waiting:
            return
        whole = pl.concat(self._waiting).sort("bucket", maintain_order=True)
        self._waiting.clear()
        for (bucket,), states in whole.group_by("bucket", maintain_order=True):
            yield int(str(bucket)), states

    def _flush(self) -> None:
        number = sum(len(paths) for paths in self._files.values())
        for bucket, states in self._in_memory():
            path = Path(self._folder.name) / f"{bucket}-{number}.arrow"
            merged = self._schema.merge(states).with_columns(pl.lit(bucket, pl.Int32).alias("bucket"))
            merged.write_ipc(path)
            self._files.setdefault(bucket, []).append(path)
        self._bytes = 0
