"""What a source holds, before anything is built: how much, how complete, how clean. Judged from a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from ray_profile.config import Source
from ray_profile.encode.terms import languages
from ray_profile.schema import ITEMS, ROWS
from ray_profile.sources.files import SourceFile
from ray_profile.sources.formats import is_catalogue
from ray_profile.sources.sample import Sample, draw

LANGUAGE_ROWS = 1_000


@dataclass(frozen=True)
class ColumnQuality:
    """One contract column over the good rows of the sample. Numbers and times have `low` and `high`, others
    `distinct`."""

    name: str
    null_share: float
    low: float | datetime | None = None
    high: float | datetime | None = None
    distinct: int | None = None


@dataclass(frozen=True)
class Quarantined:
    """A reason (a key of schema.REASONS), how many of the sample's rows have it, and one of them."""

    reason: str
    rows: int
    share: float
    file: str
    row: int
    raw: str | None


@dataclass(frozen=True)
class SourceQuality:
    """The figures of one source. Shares are of the rows read in the sample, unless their name says otherwise.

    `rows` is the number of rows in all files, counted where `rows_exact`, else estimated by bytes. `repeated_share`
    are rows that equal an earlier one in user, item, time, kind and text: reviews among them are quarantined, events
    are kept. `whole_day_share` is of the good rows: those with a date and no hour. `text_chars` are the median, the
    90th and 99th percentile and the maximum of text lengths.
    """

    name: str
    format: str
    catalogue: bool
    files: int
    bytes: int
    rows: int
    rows_exact: bool
    files_sampled: int
    rows_sampled: int
    columns: tuple[ColumnQuality, ...] = ()
    first: datetime | None = None
    last: datetime | None = None
    kinds: dict[str, float] = field(default_factory=dict)
    languages: dict[str, float] = field(default_factory=dict)
    users: int = 0
    items: int = 0
    anonymous_share: float = 0.0
    quarantined_share: float = 0.0
    quarantined: tuple[Quarantined, ...] = ()
    repeated_share: float = 0.0
    whole_day_share: float = 0.0
    text_share: float = 0.0
    text_chars: tuple[float, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()
    max_quarantine: float = 0.01

    @property
    def too_bad(self) -> bool:
        """Whether a build would stop at this source if all rows were like the sample's."""
        return self.quarantined_share > self.max_quarantine


def quality(
    name: str,
    source: Source,
    files: Sequence[SourceFile],
    clock: datetime,
    key: bytes | None,
    sample_rows: int = 20_000,
) -> SourceQuality:
    """Read about `sample_rows` rows as a build would and describe them.

    `clock` is now (aware). With `key`, user ids in examples are pseudonyms. Raises what `sample.draw` raises.
    """
    return describe(name, source, files, draw(source, files, clock, key, sample_rows))


def describe(name: str, source: Source, files: Sequence[SourceFile], sample: Sample) -> SourceQuality:
    """The figures of a sample that is drawn already."""
    items = is_catalogue(source)
    good, read = sample.good, max(sample.rows_read, 1)
    facts: dict[str, Any] = {} if good.is_empty() else (_of_items(sample) if items else _of_rows(sample))
    return SourceQuality(
        name,
        source.format,
        items,
        len(files),
        sum(file.size for file in files),
        round(sample.rows_total),
        sample.exact,
        sample.files,
        sample.rows_read,
        columns=_columns(good, sample.mapped, ITEMS.names if items else ROWS.names),
        anonymous_share=sample.anonymous / read,
        quarantined_share=sample.bad.height / read,
        quarantined=_quarantined(sample.bad, read),
        rejected=tuple((error.path, error.reason) for error in sample.rejected),
        max_quarantine=source.max_quarantine,
        **facts,
    )


def _columns(good: pl.DataFrame, mapped: Sequence[str], contract: Sequence[str]) -> tuple[ColumnQuality, ...]:
    renamed = {"category": "categories", "amount": "price", "title": "text" if "text" in contract else "title"}
    wanted = {renamed.get(name, name) for name in mapped}
    return tuple(_column(good[name]) for name in contract if name in wanted and name in good.columns and good.height)


def _column(values: pl.Series) -> ColumnQuality:
    null_share = values.null_count() / len(values)
    if values.dtype.is_numeric() or values.dtype.is_temporal():
        low, high = values.min(), values.max()
        assert low is None or isinstance(low, (int, float, datetime))
        assert high is None or isinstance(high, (int, float, datetime))
        return ColumnQuality(values.name, null_share, low, high)
    return ColumnQuality(values.name, null_share, distinct=values.drop_nulls().n_unique())


def _of_rows(sample: Sample) -> dict[str, Any]:
    good = sample.good
    texts = good["text"].drop_nulls()
    chars = texts.str.len_chars()
    kinds = good["kind"].value_counts(sort=True)
    same = good.height - good.select("user_id", "item_id", "ts", "kind", "text").n_unique()
    same += int((sample.bad["reason"] == "duplicate").sum())
    return {
        "first": good["ts"].min(),
        "last": good["ts"].max(),
        "kinds": {kind: rows / good.height for kind, rows in kinds.iter_rows()},
        "languages": _languages(texts),
        "users": good["user_id"].n_unique(),
        "items": good["item_id"].drop_nulls().n_unique(),
        "repeated_share": same / sample.rows_read,
        "whole_day_share": good["hour"].null_count() / good.height,
        "text_share": len(texts) / good.height,
        "text_chars": _spread(chars),
    }


def _of_items(sample: Sample) -> dict[str, Any]:
    good = sample.good
    distinct = good["item_id"].n_unique()
    titles = good["title"].drop_nulls().str.len_chars()
    return {
        "items": distinct,
        "repeated_share": (good.height + sample.repeated - distinct) / sample.rows_read,
        "text_share": len(titles) / good.height,
        "text_chars": _spread(titles),
    }


def _spread(lengths: pl.Series) -> tuple[float, ...]:
    quantiles = (lengths.quantile(q, "nearest") for q in (0.5, 0.9, 0.99, 1.0))
    return tuple(float(value) for value in quantiles if value is not None)


def _languages(texts: pl.Series) -> dict[str, float]:
    """Shares of the languages of some texts, the most frequent first; "unknown" for those that nobody can name."""
    if texts.is_empty():
        return {}
    chosen = texts.gather_every(max(len(texts) // LANGUAGE_ROWS, 1)).head(LANGUAGE_ROWS)
    counts = languages(chosen).fill_null("unknown").alias("code").value_counts(sort=True)
    return {code: rows / len(chosen) for code, rows in counts.iter_rows()}


def _quarantined(bad: pl.DataFrame, read: int) -> tuple[Quarantined, ...]:
    reasons = bad.group_by("reason", maintain_order=True).agg(pl.len().alias("rows"), pl.all().first())
    return tuple(
        Quarantined(each["reason"], each["rows"], each["rows"] / read, each["file"], each["row"], each["raw"])
        for each in reasons.sort("rows", "reason", descending=[True, False]).iter_rows(named=True)
    )
