"""One range of a file -> rows of the contract: read, check, clean, redact, identify. Nothing vanishes on the way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl
import polars_hash as plh
import pyarrow as pa

from ray_profile.config import Source
from ray_profile.errors import SourceError
from ray_profile.schema import QUARANTINE, ROWS
from ray_profile.sources.check import Checked, Seen, check
from ray_profile.sources.formats import ITEM_COLUMNS
from ray_profile.sources.items import item_ids, items
from ray_profile.sources.read import Chunk, Range, read
from ray_profile.sources.redact import pseudonyms, redact, redact_distinct, telling
from ray_profile.sources.values import as_text, identifiers

RAW_CHARS = 2_000  # of each text in a quarantined row; the rest stands in the source file
_CUT_MARGIN = 256  # an e-mail address or a number that a cut goes through lies within

#: What an id is made of, in this order. Another order or another field makes other ids: that is another schema version.
_IDENTITY = ("user_id", "item_id", "ts", "kind", "text", "rating", "quantity", "price", "order_id", "place", "device")


@dataclass(frozen=True)
class Ingested:
    """A block of one range: `rows` (schema.ROWS), `quarantined` (schema.QUARANTINE), and the counts that add up."""

    rows: pa.Table
    quarantined: pa.Table
    rows_read: int
    anonymous: int


def ingest(
    range_: Range, source: Source, clock: datetime, key: bytes | None, redact_text: bool = True
) -> Iterator[Ingested]:
    """The rows of a range, block by block: checked, cleaned, redacted, ids that tell whose a row is as pseudonyms.

    Without a key, ids are unchanged.

    `rows_read` is always rows + quarantined + anonymous. A quarantined row is kept as JSON of the columns that were
    read, its text redacted and its user a pseudonym; a line that cannot be parsed is redacted text, or, where there
    is a key, left out, since nobody can tell where in it the user stands. Raises what `read` raises.
    """
    seen = Seen()
    for chunk in read(range_, source):
        if chunk.layout.items:
            raise SourceError(f"[sources.{range_.file.source}] is a catalogue ({source.format}), it holds no events")
        checked = check(chunk, source, clock, seen)
        rows = identified(_private(checked.good, chunk.layout.columns, key, redact_text))
        quarantined = _quarantine(range_, chunk, checked, key, redact_text)
        assert chunk.rows_read == rows.num_rows + checked.anonymous + quarantined.num_rows
        yield Ingested(rows, quarantined, chunk.rows_read, checked.anonymous)


def ingest_items(range_: Range, source: Source, rejected: list[pa.Table] | None = None) -> Iterator[pa.Table]:
    """The items of a range, block by block (schema.ITEMS), each once a block.

    Of a catalogue the last row of an item counts, of an event source that describes its items the first; nothing
    comes from one that does not. A catalogue's broken lines and rows without an id are appended to `rejected`
    (schema.QUARANTINE); those of an event source are left to `ingest`, which meets them too.
    """
    for chunk in read(range_, source):
        made = chunk.layout
        if "item_id" not in made.columns or not (made.items or any(name in made.columns for name in ITEM_COLUMNS)):
            continue
        nameless = item_ids(chunk.frame, made).is_null()
        if made.items and rejected is not None and (nameless.any() or chunk.broken.height):
            rejected.append(_rejected_items(range_, chunk, nameless))
        yield items(chunk.frame, made)


def identified(rows: pl.DataFrame) -> pa.Table:
    """Rows of the contract as a table of schema.ROWS, those without an id given the SHA-256 of their fields (128 bits).

    Fields are joined by U+001F, which is escaped inside them as absence is (U+001B S, E and N), and numbers are
    written as their IEEE bits: no two different rows are written alike, and no library's way to print changes an id.
    """
    lacking = rows["id"].is_null()
    if lacking.any():
        unnamed = rows if lacking.all() else rows.filter(lacking)
        fields = [_field(unnamed, name) for name in _IDENTITY]
        written = unnamed.select(row=pl.concat_str(fields, separator="\x1f"))
        ids = written.select(plh.col("row").chash.sha2_256().str.head(32)).to_series()
        rows = rows.with_columns(id=ids if lacking.all() else rows["id"].scatter(lacking.arg_true(), ids))
    return rows.select(ROWS.names).to_arrow().cast(ROWS)


def _field(rows: pl.DataFrame, name: str) -> pl.Expr:
    """One field as unambiguous text."""
    values, column = rows[name], pl.col(name)
    if values.null_count() == len(values):
        return pl.lit("\x1bN")
    if values.dtype.is_float():
        column = column.cast(pl.Float64).reinterpret(dtype=pl.Int64)
    if values.dtype != pl.String:
        return column.cast(pl.Int64).cast(pl.String).fill_null("\x1bN")
    for character, escaped in (("\x1b", "\x1bE"), ("\x1f", "\x1bS")):
        if values.str.contains(character, literal=True).any():
            column = column.str.replace_all(character, escaped, literal=True)
    return column.fill_null("\x1bN")


def _private(
    rows: pl.DataFrame, columns: Mapping[str, tuple[str, ...]], key: bytes | None, redact_text: bool
) -> pl.DataFrame:
    """Ids made of what tells whose a row is as pseudonyms, and personal data out of free text."""
    secret = telling(columns)
    named = [name for name in ("id", "user_id", "order_id") if secret.intersection(columns.get(name, ()))]
    rows = rows.with_columns(pseudonyms(rows[name], key).alias(name) for name in named)
    if not redact_text:
        return rows
    rare = [redact_distinct(rows[name]).alias(name) for name in ("place", "device")]
    return rows.with_columns(redact(rows["text"]).alias("text"), *rare)


def _quarantine(range_: Range, chunk: Chunk, checked: Checked, key: bytes | None, redact_text: bool) -> pa.Table:
    raw = _raw(checked, chunk, key, redact_text)
    rows = pl.DataFrame({"row": checked.numbers, "reason": checked.reasons, "raw": raw}).cast({"row": pl.Int64})
    return _table(range_, rows, _lines(chunk.broken, key, redact_text))


def _rejected_items(range_: Range, chunk: Chunk, nameless: pl.Series) -> pa.Table:
    """What a catalogue rejects, redacted as a catalogue's texts are; a line that cannot be parsed is left out."""
    raw = _as_json(_redacted_strings(chunk.frame.filter(nameless)))
    rows = pl.DataFrame({"row": chunk.numbers.filter(nameless), "raw": raw}).select(
        "row", pl.lit("item_missing").alias("reason"), "raw"
    )
    return _table(range_, rows, chunk.broken.with_columns(raw=pl.lit(None, pl.String)))


def _redacted_strings(frame: pl.DataFrame, leave: Collection[str] = ()) -> pl.DataFrame:
    names = [name for name, dtype in frame.schema.items() if dtype == pl.String and name not in leave]
    return frame.with_columns(_redacted(_cut(frame[name])).alias(name) for name in names)


def _table(range_: Range, rows: pl.DataFrame, broken: pl.DataFrame) -> pa.Table:
    both = pl.concat([rows, broken]).sort("row")
    return (
        both.select(
            pl.lit(range_.file.source).alias("source"),
            pl.lit(range_.file.path).alias("file"),
            pl.lit(range_.offset, pl.Int64).alias("offset"),
            "row",
            "reason",
            "raw",
        )
        .to_arrow()
        .cast(QUARANTINE)
    )


def _raw(checked: Checked, chunk: Chunk, key: bytes | None, redact_text: bool) -> pl.Series:
    """The rejected rows as JSON, without what must not be stored."""
    bad, columns = checked.bad, chunk.layout.columns
    if not bad.height:
        return pl.Series("raw", [], dtype=pl.String)
    for name in (*columns.get("title", ()), *columns.get("text", ())):
        text = _cut(as_text(bad[name]))
        bad = bad.with_columns((_redacted(text) if redact_text else text).alias(name))
    secret = telling(columns)
    for name in secret:
        bad = bad.with_columns(pseudonyms(identifiers(bad[name]), key).alias(name))
    return _as_json(_redacted_strings(bad, secret) if redact_text else bad)


def _as_json(frame: pl.DataFrame) -> pl.Series:
    return frame.select(pl.struct(pl.all()).struct.json_encode().alias("raw")).to_series()


def _lines(broken: pl.DataFrame, key: bytes | None, redact_text: bool) -> pl.DataFrame:
    if key is not None:
        return broken.with_columns(raw=pl.lit(None, pl.String))
    text = _cut(broken["raw"])
    return broken.with_columns((_redacted(text) if redact_text else text).alias("raw"))


def _cut(texts: pl.Series) -> pl.Series:
    return texts.str.head(RAW_CHARS)


def _redacted(texts: pl.Series) -> pl.Series:
    """Redact texts that `_cut` may have cut in the middle of an address: then the last characters go."""
    safe = redact(texts)
    was_cut = (texts.str.len_chars() == RAW_CHARS).fill_null(False)
    return safe.zip_with(~was_cut, safe.str.head(RAW_CHARS - _CUT_MARGIN)) if was_cut.any() else safe
