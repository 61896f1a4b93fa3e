"""A profile of rows that somebody sends: the check, redaction, fold and fuse of `build`, and nothing is stored."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl

from ray_profile.config import Source
from ray_profile.encode.heads import Probe
from ray_profile.encode.text import TextEncoder
from ray_profile.errors import FileRejected
from ray_profile.pipelines import work
from ray_profile.pipelines.fusing import STATISTICS, read_statistics
from ray_profile.pipelines.report import Report
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.tables import frame_of, items_table, load_items, profiles_table
from ray_profile.profile.document import documents
from ray_profile.profile.facet import FuseContext
from ray_profile.profile.fold import state_schema
from ray_profile.profile.fuse import fuse
from ray_profile.profile.periods import end_of
from ray_profile.profile.tagging import Tagger
from ray_profile.schema import REASONS
from ray_profile.serve.problems import Problem
from ray_profile.sources.files import SourceFile
from ray_profile.sources.ingest import ingest
from ray_profile.sources.read import ranges
from ray_profile.store.tables import DataFile

#: What a row may have, by the names of the contract.
COLUMNS = (
    "id", "item_id", "ts", "kind", "title", "text", "rating", "quantity", "price", "order_id", "place", "device",
)  # fmt: skip
NOBODY = "posted"  # whose rows they are
_SOURCE = Source(format="columns", paths=(NOBODY,), columns={name: name for name in ("user_id", *COLUMNS)})


@dataclass(frozen=True)
class Computing:
    """What profiles are computed with: the root's catalogue, statistics and heads as they are when it is first used."""

    run: Run
    encoder: TextEncoder
    tagger: Tagger
    probe: Probe | None

    def __call__(self, rows: Sequence[Mapping[str, Any]], clock: datetime) -> dict[str, Any]:
        """N rows of one person -> {"profile", "why"}, as of the end of the newest period among them.

        Raises `Problem` 422 for a row that `build` would quarantine.
        """
        job = work.WaveJob(
            self.run.config, self.run.root, uuid4().hex, 0, clock, self.run.width, self._items, self.tagger, self.probe
        )
        schema = state_schema(self.run.width)
        states = [self._folded(block, job) for block in _blocks(rows, clock, self.run.config.privacy.redact)]
        merged = schema.merge(pl.concat(states)) if states else pl.DataFrame(schema=schema.dtypes)
        if merged.is_empty():
            raise Problem(422, "there is no row to make a profile of; send one with a kind and a ts")
        facts = self.run.root.facts
        newest = merged["period"].max()
        assert newest is not None
        context = FuseContext(
            load_items(self.run.root, self._items, self.run.width),
            end_of(newest, facts.period),  # type: ignore[arg-type]
            self._statistics[1],
            self._statistics[0],
            self.run.encoder_digest,
            self.run.width,
            facts.period,
            facts.half_life_days,
        )
        (row,) = documents(fuse(merged, context)).to_dicts()
        profile = {**json.loads(row["json"]), "user_id": None}
        return {"profile": profile, "why": json.loads(row["why"])}

    @cached_property
    def _items(self) -> tuple[DataFile, ...]:
        handle = items_table(self.run.root).open()
        return () if handle is None else tuple(handle.files())

    @cached_property
    def _statistics(self) -> tuple[int, pl.DataFrame]:
        handle = profiles_table(self.run.root).open()
        version = None if handle is None else handle.transaction(STATISTICS)
        assert version is not None, "an index is of profiles, and these name their statistics"
        return version, read_statistics(self.run.root, version)

    def _folded(self, block: work.Block, job: work.WaveJob) -> pl.DataFrame:
        if block.rows["text"].null_count() < block.rows.height:
            block = work.encode(work.tokenise(block, self.encoder.tokenizer), self.encoder)
        states, _ = work.fold_block(block, job)
        return states.drop("bucket")


def _blocks(rows: Sequence[Mapping[str, Any]], clock: datetime, redact: bool) -> Iterator[work.Block]:
    """The rows as `build` would read them from a file, which they are for a moment."""
    with tempfile.TemporaryDirectory(prefix="posted-") as made:
        path = Path(made) / "rows.jsonl"
        body = "\n".join(json.dumps({**row, "user_id": NOBODY}) for row in rows)
        path.write_text(body, encoding="utf-8")
        listed = path.stat()
        file = SourceFile(NOBODY, str(path), listed.st_size, str(listed.st_mtime_ns))
        try:
            for part in ranges(file, _SOURCE) if rows else ():
                for found in ingest(part, _SOURCE, clock, None, redact):
                    _insist(frame_of(found.quarantined))
                    yield work.Block(frame_of(found.rows), Report(NOBODY, NOBODY))
        except FileRejected as error:
            raise Problem(422, f"the rows cannot be read: {error.reason}") from error


def _insist(quarantined: pl.DataFrame) -> None:
    if quarantined.height:
        row, reason = quarantined.select("row", "reason").row(0)
        raise Problem(422, f"rows.{row}: {REASONS[reason]}")
