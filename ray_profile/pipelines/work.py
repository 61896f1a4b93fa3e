"""What one task of a wave does: the steps that Ray's workers and the plain loop both call, in the same order.

    read -> tokenise -> encode -> fold     a range of a source file  -> partial states by bucket
    write_states                           merged states of a bucket -> one file

Every function can be run again after a crash: each attempt writes files of its own, named by the run's uuid, and only
those that the driver commits count.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from socket import gethostname
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_profile.config import Config
from ray_profile.encode.terms import Gazetteer
from ray_profile.encode.tokens import Tokenizer
from ray_profile.errors import ConfigError, FileRejected
from ray_profile.pipelines.report import MAX_EXAMPLES, Report
from ray_profile.pipelines.tables import frame_of, load_items, states_table
from ray_profile.profile.facet import FoldContext
from ray_profile.profile.fold import fold, state_schema
from ray_profile.profile.tagging import Tagger
from ray_profile.schema import ITEMS, ROWS
from ray_profile.sources.blocks import BLOCK_BYTES
from ray_profile.sources.formats import is_catalogue, may_hold_text
from ray_profile.sources.ingest import ingest, ingest_items
from ray_profile.sources.read import Range
from ray_profile.sources.redact import bucket_of, fingerprint
from ray_profile.state import MapSum, states_at_cap
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile, write_file
from ray_profile.store.waves import file_name

if TYPE_CHECKING:  # torch and scikit-learn are for the workers that encode, not for those that read
    from ray_profile.encode.heads import Probe
    from ray_profile.encode.text import TextEncoder

#: Enough for full token batches, few enough that every encoder has work soon and progress can be seen.
ROWS_PER_TEXT_BLOCK = 2_048
#: A byte of reviews costs about this many bytes of events (measured on two CPU cores: 80; a GPU makes it less).
TEXT_COST = 50.0
#: A gzip holds about so many times its size: what its progress is reckoned by.
UNPACKED = 4.0


@dataclass(frozen=True, eq=False)
class WaveJob:
    """What every task of a wave is told. Holds no secret: workers read the pseudonym key where the config names it.

    Its wave's uuid names it: a worker that is told the same job again knows it.
    """

    config: Config
    root: Root
    uuid: str
    number: int  # the wave_no its state rows carry
    clock: datetime
    width: int
    items: tuple[DataFile, ...]
    tagger: Tagger
    probe: Probe | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WaveJob) and self.uuid == other.uuid

    def __hash__(self) -> int:
        return hash(self.uuid)


@dataclass
class Block:
    """Rows on their way (schema.ROWS, then `ids`, then `vector`), and what is known of them."""

    rows: pl.DataFrame
    report: Report


@dataclass(frozen=True)
class ItemsRead:
    """The items of one range, and the rows of it that name none (schema.QUARANTINE); or why its file was rejected."""

    items: pl.DataFrame
    nameless: list[pa.Table]
    rejected: FileRejected | None = None


@dataclass(frozen=True)
class Written:
    """A file of states, how many source rows are folded into it, its newest period, and how many of its states have a
    map that is full, by column."""

    file: DataFile
    rows: int
    newest: int  # proleptic ordinal of the period's start
    full: dict[str, int]


def read(job: WaveJob, range_: Range, cost: float = 0.0) -> Iterator[Block]:
    """Read, check and redact a range; quarantined rows go to a file of their own.

    A file that cannot be read whole ends in a block whose report says so. Each report carries its part of the range's
    `cost`, as far as it can be told before the end is seen.
    """
    name, source = range_.file.source, job.config.sources[range_.file.source]
    key = job.config.privacy.key()
    if fingerprint(key) != job.root.facts.key_fingerprint:
        raise ConfigError(
            f"the pseudonym key on this node ({gethostname()}) is not the one that {job.root.address} was made with "
            f"(fingerprint {job.root.facts.key_fingerprint}, here {fingerprint(key)}); put it where [privacy] says"
        )
    blocks = ingest(range_, source, job.clock, key, job.config.privacy.redact)
    at = 0
    while True:
        report = Report(name, range_.file.path)
        try:
            with report.timed("read"):
                ingested = next(blocks, None)
        except FileRejected as error:
            report.rejected, report.transient = error.reason, error.transient
            yield Block(pl.DataFrame(schema=_row_dtypes()), report)
            return
        if ingested is None:
            return
        report.rows_read, report.rows_anonymous = ingested.rows_read, ingested.anonymous
        report.rows_folded = ingested.rows.num_rows
        report.cost = cost * _share(range_, ingested.rows_read)
        _quarantine(job, range_, at, ingested.quarantined, report)
        report.assert_balanced()
        yield Block(frame_of(ingested.rows), report)
        at += 1


def read_items(config: Config, range_: Range) -> ItemsRead:
    """The items that a range states or mentions, each once."""
    source = config.sources[range_.file.source]
    nameless: list[pa.Table] = []
    try:
        tables = list(ingest_items(range_, source, nameless))
    except FileRejected as error:
        return ItemsRead(pl.DataFrame(frame_of(ITEMS.empty_table())), [], error)
    frames = [frame_of(table) for table in tables] or [frame_of(ITEMS.empty_table())]
    whole = pl.concat(frames)
    if is_catalogue(source):
        return ItemsRead(whole.unique("item_id", keep="last", maintain_order=True), nameless)
    return ItemsRead(whole.unique("item_id", keep="first", maintain_order=True), nameless)


def costs_of(config: Config, ranges: Sequence[Range]) -> list[float]:
    """What each range may cost, for progress only: its part of its file's bytes, dearer where there is text."""
    parts = Counter(range_.file for range_ in ranges)
    dear = {name: TEXT_COST if may_hold_text(source) else 1.0 for name, source in config.sources.items()}
    return [range_.file.size / parts[range_.file] * dear[range_.file.source] for range_ in ranges]


def _share(range_: Range, rows: int) -> float:
    """About what part of a range a block of some rows is: Parquet knows its rows, text is parsed by the megabyte."""
    if range_.kind == "parquet":
        return rows / max(range_.end - range_.start, 1)
    size = (range_.end - range_.start) * (UNPACKED if range_.file.path.endswith(".gz") else 1.0)
    return 1 / max(1, math.ceil(size / BLOCK_BYTES))


def slices(block: Block) -> Iterator[Block]:
    """The block in pieces of at most `ROWS_PER_TEXT_BLOCK` rows, to be encoded one after the other."""
    first = block.report
    cost, height = first.cost, max(block.rows.height, 1)
    for at, rows in enumerate(block.rows.iter_slices(ROWS_PER_TEXT_BLOCK)):
        report = Report(first.source, first.file) if at else first
        report.cost = cost * rows.height / height
        yield Block(rows, report)


def tokenise(block: Block, tokenizer: Tokenizer) -> Block:
    """Add `ids` (List(Int32)): the tokens of each text where it stands first in the block, else null."""
    with block.report.timed("tokenise"):
        texts = block.rows["text"]
        first = texts.is_first_distinct() & texts.is_not_null()
        tokens = tokenizer.tokenise(texts.filter(first))
        rows = block.rows.with_row_index("row")
        ids = pl.DataFrame({"row": rows["row"].filter(first), "ids": pl.Series(tokens.ids, dtype=pl.List(pl.Int32))})
        block.rows = rows.join(ids, on="row", how="left", maintain_order="left").drop("row")
    block.report.texts += len(texts) - texts.null_count()
    block.report.tokens += len(tokens.ids.values)
    block.report.truncated += tokens.truncated
    block.report.characters += tokens.characters
    block.report.unknown_characters += tokens.unknown_characters
    return block


def encode(block: Block, encoder: TextEncoder) -> Block:
    """Replace `ids` by `vector` (Array(Float16, D)): of every row with a text, also where the text stands again."""
    with block.report.timed("encode"):
        # Ray may hand over several tokenised blocks as one, so that a text may have its tokens twice.
        first = block.rows.filter(pl.col("ids").is_not_null()).select("text", "ids")
        first = first.unique("text", keep="first", maintain_order=True)
        ids = first["ids"].to_arrow()
        assert isinstance(ids, pa.LargeListArray)
        vectors = encoder.encode_tokens(ids)
        known = first.select("text").with_columns(
            pl.Series("vector", vectors, dtype=pl.Array(pl.Float16, encoder.width))
        )
        block.rows = block.rows.drop("ids").join(known, on="text", how="left", maintain_order="left")
    return block


def fold_block(block: Block, job: WaveJob) -> tuple[pl.DataFrame, Report]:
    """The block's partial states, with `bucket` (Int32)."""
    with block.report.timed("fold"):
        states = fold(block.rows, fold_context(job))
        buckets = bucket_of(states["user_id"], job.root.facts.buckets).cast(pl.Int32).alias("bucket")
    return states.with_columns(buckets), block.report


def write_states(job: WaveJob, bucket: int, states: pl.DataFrame) -> Written:
    """Write the merged states of a bucket as one file of the wave."""
    schema = state_schema(job.width)
    rows = states.select(*schema.dtypes).with_columns(pl.lit(job.number, pl.Int64).alias("wave_no")).to_arrow()
    file = write_file(states_table(job.root, job.width), bucket, file_name(job.uuid, job.number), rows)
    newest = states["period"].max()
    assert isinstance(newest, date), "a file of states has a row"
    full = {column.name: states_at_cap(states, column) for column in schema.columns if isinstance(column, MapSum)}
    return Written(
        file, int(states["rows"].sum()), newest.toordinal(), {name: count for name, count in full.items() if count}
    )


def assert_all_arrived(written: Iterable[Written], reports: Iterable[Report]) -> None:
    """Every row that a block folded is in exactly one file: nothing was lost or doubled on the way."""
    arrived, folded = sum(each.rows for each in written), sum(report.rows_folded for report in reports)
    assert arrived == folded, f"{folded} rows were folded, but the files written hold {arrived}"


@lru_cache(maxsize=1)
def fold_context(job: WaveJob) -> FoldContext:
    """The catalogue and the heads, read once a process and wave."""
    items = load_items(job.root, job.items, job.width, with_vectors=False)
    catalogue = items.frame
    names = Gazetteer.from_names(
        catalogue["brand"].drop_nulls().unique().to_list(),
        catalogue["categories"].explode().drop_nulls().unique().to_list(),
        catalogue["attributes"].explode().drop_nulls().unique().to_list(),
    )
    facts = job.root.facts
    return FoldContext(items, job.width, facts.period, facts.half_life_days, job.tagger, job.probe, names)


def _quarantine(job: WaveJob, range_: Range, at: int, rows: pa.Table, report: Report) -> None:
    if rows.num_rows == 0:
        return
    frame = frame_of(rows)
    report.quarantined = dict(frame["reason"].value_counts().sort("reason").iter_rows())
    first = frame.head(MAX_EXAMPLES)
    report.examples = [f"row {row} ({reason})" for row, reason in zip(first["row"], first["reason"], strict=True)]
    mark = f"{range_.row_group}\n{range_.start}\n{at}"
    name = f"{_mark_of(range_.file.source, range_.file.path)}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.parquet"
    write_quarantined(job.root, job.uuid, name, rows)


def write_quarantined(root: Root, uuid: str, name: str, rows: pa.Table) -> None:
    """Keep rejected rows (schema.QUARANTINE) of a wave under a name of their own."""
    folder = root.path("quarantine", uuid)
    root.fs.makedirs(folder, exist_ok=True)
    with root.fs.open(f"{folder}/{name}", "wb") as file:
        pq.write_table(rows, file, compression="zstd")


def drop_quarantined(root: Root, uuid: str, source: str, path: str) -> None:
    """Forget the quarantined rows of a file that is rejected whole after all."""
    mine = _mark_of(source, path)
    root.delete(entry.path for entry in root.list("quarantine", uuid) if entry.path.rsplit("/", 1)[-1].startswith(mine))


def _mark_of(source: str, path: str) -> str:
    return hashlib.sha256(f"{source}\n{path}".encode()).hexdigest()[:16]


def _row_dtypes() -> dict[str, pl.DataType]:
    return dict(frame_of(ROWS.empty_table()).schema)
