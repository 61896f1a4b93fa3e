"""What one task of a run does: the steps that Ray's workers and the plain loop both call, in the same order.

    read -> tokenise -> encode -> fold     a range of a source file  -> partial states by bucket
    write_states                           partial states of a bucket -> one file
    fuse_bucket, statistics_of_bucket      a bucket's states          -> its profiles, its share of the statistics

Every function can be run again after a crash: each attempt writes files of its own, named by the run's uuid, and only
those that the driver commits count.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
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
from ray_profile.profile import statistics
from ray_profile.profile.facet import FoldContext, FuseContext
from ray_profile.profile.fold import fold, state_schema
from ray_profile.profile.fuse import PROFILE_DTYPES, fuse
from ray_profile.profile.items import ITEM_DTYPES, Items
from ray_profile.profile.periods import period_end
from ray_profile.profile.tagging import Tagger
from ray_profile.schema import ITEMS, ROWS
from ray_profile.sources.formats import is_catalogue, may_hold_text
from ray_profile.sources.ingest import ingest, ingest_items
from ray_profile.sources.read import Range
from ray_profile.sources.redact import bucket_of, fingerprint
from ray_profile.state import StateSchema
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile, Table, read_files, write_file

if TYPE_CHECKING:  # torch and scikit-learn are for the workers that encode, not for those that read
    from ray_profile.encode.heads import Probe
    from ray_profile.encode.text import TextEncoder

#: Enough for full token batches, few enough that every encoder has work soon and progress can be seen.
ROWS_PER_TEXT_BLOCK = 2_048
#: A byte of reviews costs about this many bytes of events (measured on two CPU cores: 80; a GPU makes it less).
TEXT_COST = 50.0

STATISTIC_COLUMNS = ("terms", "tag_sums", "taggable", "prices")


@dataclass(frozen=True)
class WaveJob:
    """What every task of a wave is told. Holds no secret: workers read the pseudonym key where the config names it."""

    config: Config
    root: Root
    uuid: str
    number: int  # the wave_no its state rows carry
    clock: datetime
    width: int
    items: tuple[DataFile, ...]
    tagger: Tagger
    probe: Probe | None


@dataclass(frozen=True)
class FuseJob:
    """What every task of a fuse is told."""

    root: Root
    uuid: str
    fused: int  # the last wave that is in the profiles already; -1: fuse everybody
    as_of: datetime
    width: int
    items: tuple[DataFile, ...]
    statistics: pl.DataFrame
    statistics_version: int
    encoder_digest: str
    states: dict[int, tuple[DataFile, ...]]
    profiles: dict[int, tuple[DataFile, ...]]


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
    """A file of states, and how many source rows are folded into it."""

    file: DataFile
    rows: int


@dataclass(frozen=True)
class Fused:
    """What fusing a bucket gave."""

    file: DataFile | None
    bucket: int
    written: int
    new: int
    changed: int


def states_table(root: Root, width: int) -> Table:
    """The states table: StateSchema and `wave_no`."""
    dtypes = {**state_schema(width).dtypes, "wave_no": pl.Int64()}
    return Table(root, "states", pl.DataFrame(schema=dtypes).to_arrow().schema)


def profiles_table(root: Root) -> Table:
    """The profiles table."""
    return Table(root, "profiles", pl.DataFrame(schema=PROFILE_DTYPES).to_arrow().schema)


def items_table(root: Root) -> Table:
    """The catalogue."""
    return Table(root, "items", pl.DataFrame(schema=ITEM_DTYPES).to_arrow().schema, partitioned=False)


def read(job: WaveJob, range_: Range) -> Iterator[Block]:
    """Read, check and redact a range; quarantined rows go to a file of their own.

    A file that cannot be read whole ends in a block whose report says so.
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


def slices(block: Block) -> Iterator[Block]:
    """The block in pieces of at most `ROWS_PER_TEXT_BLOCK` rows, to be encoded one after the other."""
    report = block.report
    for rows in block.rows.iter_slices(ROWS_PER_TEXT_BLOCK):
        yield Block(rows, report)
        report = Report(report.source, report.file)


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
        states = fold(block.rows, fold_context(job.root, job.items, job.width, job.uuid, job))
        buckets = bucket_of(states["user_id"], job.root.facts.buckets).cast(pl.Int32).alias("bucket")
    return states.with_columns(buckets), block.report


def write_states(job: WaveJob, bucket: int, states: pl.DataFrame) -> Written:
    """Merge partial states of a bucket and write them as one file of the wave."""
    merged = state_schema(job.width).merge(states)
    rows = merged.with_columns(pl.lit(job.number, pl.Int64).alias("wave_no")).to_arrow()
    file = write_file(states_table(job.root, job.width), bucket, file_name(job.uuid, job.number), rows)
    return Written(file, int(merged["rows"].sum()))


def assert_all_arrived(written: Sequence[Written], reports: Sequence[Report]) -> None:
    """Every row that a block folded is in exactly one file: nothing was lost or doubled on the way."""
    arrived, folded = sum(each.rows for each in written), sum(report.rows_folded for report in reports)
    assert arrived == folded, f"{folded} rows were folded, but the files written hold {arrived}"


def file_name(uuid: str, wave: int | None = None) -> str:
    """A new name for a data file: an attempt that comes late must not overwrite what another one has committed."""
    return f"{uuid}-{secrets.token_hex(4)}" + (f"-w{wave}" if wave is not None else "")


def wave_of(file: DataFile) -> int:
    """The greatest wave number among the rows of a states file, which its name carries."""
    return int(file.path.rsplit("-w", 1)[1].removesuffix(".parquet"))


def read_states(
    root: Root, width: int, files: Sequence[DataFile], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """State rows of some files in the dtypes of the state (and `wave_no`), not merged."""
    dtypes = {**state_schema(width).dtypes, "wave_no": pl.Int64()}
    names = list(dtypes) if columns is None else list(columns)
    frame = frame_of(read_files(states_table(root, width), list(files), columns=names))
    return frame.select(names).cast({name: dtypes[name] for name in names})


def statistics_of_bucket(
    root: Root, width: int, files: Sequence[DataFile], before: datetime | None = None
) -> pl.DataFrame:
    """A bucket's part of the corpus statistics (profile/statistics.py), of all periods or those that end by then."""
    wanted = StateSchema(tuple(c for c in state_schema(width).columns if c.name in STATISTIC_COLUMNS))
    states = read_states(root, width, files, ["user_id", "period", *STATISTIC_COLUMNS])
    if before is not None:
        states = states.filter(period_end(pl.col("period"), root.facts.period) <= before)
    return statistics.of_states(wanted.merge(states))


def fuse_bucket(job: FuseJob, bucket: int) -> Fused:
    """Fuse the users that changed since the last fuse, copy the bucket's other profiles, write one file."""
    files = job.states.get(bucket, ())
    marks = read_states(job.root, job.width, files, ["user_id", "wave_no"])
    changed = marks.filter(pl.col("wave_no") > job.fused).select("user_id").unique()
    old = _read_profiles(job.root, job.profiles.get(bucket, ()))
    if changed.is_empty():
        return Fused(None, bucket, 0, 0, 0)
    states = read_states(job.root, job.width, files).join(changed, on="user_id", how="semi")
    fused = fuse(state_schema(job.width).merge(states), fuse_context(job))
    rows = pl.concat([old.join(changed, on="user_id", how="anti"), fused]).sort("user_id")
    file = write_file(profiles_table(job.root), bucket, file_name(job.uuid), rows.to_arrow())
    known = old.join(fused.select("user_id"), on="user_id", how="semi").height
    return Fused(file, bucket, fused.height, fused.height - known, known)


def fold_context(root: Root, items: tuple[DataFile, ...], width: int, uuid: str, job: WaveJob) -> FoldContext:
    """The catalogue and the heads, read once a process and wave."""
    return _fold_context(_ByKey((root.address, items, width, uuid), job))


def fuse_context(job: FuseJob) -> FuseContext:
    """The catalogue with its vectors and the statistics."""
    return FuseContext(
        _items_with_vectors(_ByKey((job.root.address, job.items, job.width), job.root)),
        job.as_of,
        job.statistics,
        job.statistics_version,
        job.encoder_digest,
        job.width,
        job.root.facts.period,
        job.root.facts.half_life_days,
    )


def load_items(root: Root, files: Sequence[DataFile], width: int, with_vectors: bool = True) -> Items:
    """The catalogue of some files; without vectors it is a tenth of the size, and a fold needs none."""
    if not files:
        return Items.none(width)
    names = [name for name in ITEM_DTYPES if with_vectors or name != "vector"]
    frame = frame_of(read_files(items_table(root), list(files), columns=names))
    if not with_vectors:
        frame = frame.with_columns(pl.lit(None, pl.Binary).alias("vector"))
    return Items.of(frame.select(*ITEM_DTYPES).cast(pl.Schema(ITEM_DTYPES)), width)


class _ByKey:
    """A value that `lru_cache` tells apart by a key of its own, for values that cannot be hashed."""

    def __init__(self, key: tuple[object, ...], value: object) -> None:
        self.key, self.value = key, value

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByKey) and self.key == other.key


@lru_cache(maxsize=1)
def _fold_context(wrapped: _ByKey) -> FoldContext:
    job = wrapped.value
    assert isinstance(job, WaveJob)
    items = load_items(job.root, job.items, job.width, with_vectors=False)
    catalogue = items.frame
    names = Gazetteer.from_names(
        catalogue["brand"].drop_nulls().unique().to_list(),
        catalogue["categories"].explode().drop_nulls().unique().to_list(),
        catalogue["attributes"].explode().drop_nulls().unique().to_list(),
    )
    facts = job.root.facts
    return FoldContext(items, job.width, facts.period, facts.half_life_days, job.tagger, job.probe, names)


@lru_cache(maxsize=1)
def _items_with_vectors(wrapped: _ByKey) -> Items:
    root, (_, files, width) = wrapped.value, wrapped.key
    assert isinstance(root, Root)
    assert isinstance(files, tuple)
    assert isinstance(width, int)
    return load_items(root, files, width)


def _quarantine(job: WaveJob, range_: Range, at: int, rows: pa.Table, report: Report) -> None:
    if rows.num_rows == 0:
        return
    frame = frame_of(rows)
    report.quarantined = dict(frame["reason"].value_counts().sort("reason").iter_rows())
    first = frame.head(MAX_EXAMPLES)
    report.examples = [f"row {row} ({reason})" for row, reason in zip(first["row"], first["reason"], strict=True)]
    mark = f"{range_.row_group}\n{range_.start}\n{at}"
    name = f"{_mark_of(range_.file.source, range_.file.path)}-{hashlib.sha256(mark.encode()).hexdigest()[:16]}.parquet"
    folder = job.root.path("quarantine", job.uuid)
    job.root.fs.makedirs(folder, exist_ok=True)
    with job.root.fs.open(f"{folder}/{name}", "wb") as file:
        pq.write_table(rows, file, compression="zstd")


def drop_quarantined(root: Root, uuid: str, source: str, path: str) -> None:
    """Forget the quarantined rows of a file that is rejected whole after all."""
    mine = _mark_of(source, path)
    root.delete(entry.path for entry in root.list("quarantine", uuid) if entry.path.rsplit("/", 1)[-1].startswith(mine))


def _mark_of(source: str, path: str) -> str:
    return hashlib.sha256(f"{source}\n{path}".encode()).hexdigest()[:16]


def _read_profiles(root: Root, files: Sequence[DataFile]) -> pl.DataFrame:
    if not files:
        return pl.DataFrame(schema=PROFILE_DTYPES)
    frame = frame_of(read_files(profiles_table(root), list(files), columns=list(PROFILE_DTYPES)))
    return frame.select(*PROFILE_DTYPES).cast(pl.Schema(PROFILE_DTYPES))


def _row_dtypes() -> dict[str, pl.DataType]:
    return dict(frame_of(ROWS.empty_table()).schema)


def frame_of(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a Polars frame, sharing its memory."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
