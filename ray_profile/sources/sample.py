"""Some rows of a source, evenly spread over its files, read and checked exactly as a build would read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from ray_profile.config import Source
from ray_profile.errors import FileRejected
from ray_profile.sources.check import Seen, check
from ray_profile.sources.files import SourceFile
from ray_profile.sources.items import item_ids, items
from ray_profile.sources.peek import peek
from ray_profile.sources.read import Chunk, Range, ranges, read
from ray_profile.sources.redact import pseudonyms, redact, telling
from ray_profile.sources.values import identifiers

MAX_FILES = 64  # whose ranges are listed; on S3 each costs a request or two
PARTS = 8  # ranges that a large source is read at
RUNS = 10  # of neighbouring rows, in a chunk that is read in part
_RAW_CHARS = 300

T = TypeVar("T")

BAD = pl.Schema({"file": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String})


@dataclass
class Sample:
    """What was read. `good` has the contract's columns (schema.ROWS, or schema.ITEMS of a catalogue), not redacted.

    `bad` names each quarantined row; `raw` is filled, redacted, where a reason stands first. Of the readable files,
    `rows_read` = good + bad + anonymous + repeated (rows of a catalogue for an item that another row describes).
    `rows_total` is the number of rows in all files, `exact` that it was counted. `titles` are those of the items that
    the rows state or mention, one an item and place. `parts` are the ranges that were read.
    """

    good: pl.DataFrame
    bad: pl.DataFrame
    titles: pl.Series
    mapped: tuple[str, ...] = ()
    rows_read: int = 0
    anonymous: int = 0
    repeated: int = 0
    rows_total: float = 0.0
    exact: bool = True
    parts: list[Range] = field(default_factory=list)
    rejected: list[FileRejected] = field(default_factory=list)

    @property
    def files(self) -> int:
        """How many files were read from."""
        return len({part.file.path for part in self.parts})


@dataclass
class _Part:
    """The sampled rows of one range, kept only if its file turns out to be readable."""

    good: list[pl.DataFrame] = field(default_factory=list)
    bad: list[pl.DataFrame] = field(default_factory=list)
    titles: list[pl.Series] = field(default_factory=list)
    mapped: tuple[str, ...] = ()
    rows: int = 0
    anonymous: int = 0
    repeated: int = 0
    ended: bool = True


def draw(source: Source, files: Sequence[SourceFile], clock: datetime, key: bytes | None, rows: int = 20_000) -> Sample:
    """About `rows` rows from at most 8 places (more where these hold few rows).

    Raises `SourceError` and `ConfigError` for a column map that the files do not bear, `StorageError` where the store
    does not answer. A file that cannot be read whole is listed in `rejected`, none of its rows counted.
    """
    inspected = spread(files, MAX_FILES)
    rejected: list[FileRejected] = []
    parts = {file.path: _ranges(file, source, rejected) for file in inspected}
    every = [part for each in parts.values() for part in each]
    first = spread(every, PARTS)
    order = first + [part for part in every if part not in first]
    drawn: list[tuple[Range, _Part]] = []
    for at, part in enumerate(order):
        left = rows - sum(each.rows for _, each in drawn)
        if left <= 0 or (at >= PARTS and left < rows // 2):
            break
        share = -(-left // max(len(first) - at, 1))
        try:
            drawn.append((part, _read(part, source, clock, key, share)))
        except FileRejected as error:
            rejected.append(error)
    bad_paths = {error.path for error in rejected}
    kept = [(part, each) for part, each in drawn if part.file.path not in bad_paths]
    made = _together(kept)
    whole = len(kept) == len(order) and all(each.ended for _, each in kept)
    counted = len(inspected) == len(files) and (whole or all(part.kind == "parquet" for part in every))
    made.rejected, made.exact = rejected, counted and not bad_paths
    made.rows_total = float(made.rows_read) if whole and counted else _rows_total(files, inspected, parts, bad_paths)
    return made


def spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of some values, evenly spread, in their order."""
    if len(values) <= most:
        return list(values)
    return [values[at * len(values) // most] for at in range(most)]


def _ranges(file: SourceFile, source: Source, rejected: list[FileRejected]) -> list[Range]:
    try:
        return ranges(file, source)
    except FileRejected as error:
        rejected.append(error)
        return []


def _read(part: Range, source: Source, clock: datetime, key: bytes | None, rows: int) -> _Part:
    made, seen = _Part(), Seen()
    for chunk in read(part, source):
        kept = _spread_rows(chunk, rows - made.rows)
        made.mapped = tuple(kept.layout.columns)
        made.rows += kept.rows_read
        if kept.layout.items:
            nameless = item_ids(kept.frame, kept.layout).is_null()
            named = _frame(items(kept.frame, kept.layout))
            made.good.append(named)
            made.titles.append(named["title"])
            made.repeated += int((~nameless).sum()) - named.height
            reasons = pl.Series(["item_missing"]).new_from_index(0, int(nameless.sum()))
            made.bad.append(_bad(part, kept, kept.frame.filter(nameless), kept.numbers.filter(nameless), reasons, key))
        else:
            checked = check(kept, source, clock, seen)
            made.good.append(checked.good)
            made.anonymous += checked.anonymous
            if {"item_id", "item_title"} <= set(made.mapped):
                made.titles.append(_frame(items(kept.frame, kept.layout))["title"])
            made.bad.append(_bad(part, kept, checked.bad, checked.numbers, checked.reasons, key))
        if made.rows >= rows:
            made.ended = False
            break
    return made


def _spread_rows(chunk: Chunk, rows: int) -> Chunk:
    """At most `rows` rows of a chunk, broken ones included: runs of neighbours (which may repeat), evenly spread."""
    if chunk.rows_read <= rows:
        return chunk
    every = pl.concat([chunk.numbers.alias("row"), chunk.broken["row"]]).sort()
    runs = min(RUNS, rows)
    ends = np.arange(runs + 1) * rows // runs  # among the chosen; what is passed over is spread as evenly
    starts, lengths = ends[:-1] + np.arange(runs) * (len(every) - rows) // runs, np.diff(ends)
    at = np.repeat(starts, lengths) + np.concatenate([np.arange(length) for length in lengths])
    chosen = every.gather(at).implode()
    inside, broken = chunk.numbers.is_in(chosen), chunk.broken.filter(chunk.broken["row"].is_in(chosen))
    return Chunk(chunk.frame.filter(inside), chunk.numbers.filter(inside), broken, chunk.layout)


def _bad(
    part: Range, chunk: Chunk, frame: pl.DataFrame, numbers: pl.Series, reasons: pl.Series, key: bytes | None
) -> pl.DataFrame:
    first = reasons.is_first_distinct()
    shown = frame.filter(first)
    for name in telling(chunk.layout.columns):
        shown = shown.with_columns(pseudonyms(identifiers(shown[name]), key).alias(name))
    raw = shown.with_columns(redact(column).alias(column.name) for column in shown if column.dtype == pl.String)
    line = raw.select(pl.struct(pl.all()).struct.json_encode().alias("raw")).to_series() if raw.width else None
    rows = pl.DataFrame({"row": numbers, "reason": reasons}).cast({"row": pl.Int64, "reason": pl.String})
    example = rows.filter(first).with_columns(raw=pl.lit(None, pl.String) if line is None else line)
    rows = rows.join(example, on=["row", "reason"], how="left", maintain_order="left")
    # Nobody can tell where in a broken line the user stands, so with a key none of it is shown.
    text = redact(chunk.broken["raw"]) if key is None else pl.lit(None, pl.String)
    both = pl.concat([rows, chunk.broken.with_columns(raw=text)])
    cut = pl.col("raw").str.head(_RAW_CHARS)
    return both.select(pl.lit(part.file.path).alias("file"), "row", "reason", cut).cast(pl.Schema(BAD))


def _together(kept: Sequence[tuple[Range, _Part]]) -> Sample:
    good = [frame for _, part in kept for frame in part.good]
    bad = [frame for _, part in kept for frame in part.bad]
    return Sample(
        pl.concat(good) if good else pl.DataFrame(),
        pl.concat(bad) if bad else pl.DataFrame(schema=BAD),
        pl.concat([pl.Series("title", [], dtype=pl.String), *(each for _, part in kept for each in part.titles)]),
        tuple(dict.fromkeys(name for _, part in kept for name in part.mapped)),
        sum(part.rows for _, part in kept),
        sum(part.anonymous for _, part in kept),
        sum(part.repeated for _, part in kept),
        parts=[range_ for range_, _ in kept],
    )


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _rows_total(
    files: Sequence[SourceFile],
    inspected: Sequence[SourceFile],
    parts: dict[str, list[Range]],
    bad: set[str],
) -> float:
    """Rows of all files, by bytes from those of some. Parquet says how many it has, text is judged by its beginning."""
    sizes, rows = 0, 0.0
    by_text = [file for file in inspected if parts[file.path] and parts[file.path][0].kind != "parquet"]
    looked = {file.path for file in spread(by_text, PARTS)}
    for file in inspected:
        mine = parts[file.path]
        if file.path in bad or (file in by_text and file.path not in looked):
            continue
        if mine and mine[0].kind != "parquet":
            try:
                rows += file.size / peek(file).row_bytes
            except FileRejected:
                continue
        else:
            rows += sum(part.end - part.start for part in mine)
        sizes += file.size
    total = sum(file.size for file in files if file.path not in bad)
    return rows * total / sizes if sizes else 0.0
