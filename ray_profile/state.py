"""The state of a user: a commutative monoid, one row per (user_id, period).

A facet names its columns once, with their kind; the kind is all that batch, incremental, as-of, erasure and live
updates need to know. Every kind is a pair of functions, so that merging is right by construction:

    gather   entries, each with the group `g` it belongs to  ->  one value per group
    spread   values  ->  entries

A fold gathers entries made from rows; `merge` gathers what `spread` makes of states, so folding rows in any number of
blocks and waves and in any order gives one result (floats to their last bits). A frame of entries has the column `g`
(UInt32, the row number of the group) and the columns that the kind names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import polars as pl
import polars_hash as plh

KEYS = ("user_id", "period")
OTHER = "_other"  # the key under which a map keeps what it has no room for
PART = "\x1f"  # joins the parts of a map's key: tag and source, tag and item
SESSION_GAP_MINUTES = 30

TIME = pl.Datetime("us", "UTC")
Aggregate = Literal["sum", "min", "max"]


class Column(Protocol):
    """One state column. `name` is its name, `dtype` its type in Polars."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> pl.DataType: ...
    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        """Entries -> a frame [g, name] with one row for each group that has an entry."""
        ...

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        """A frame [g, name] of states -> the entries that gather them again."""
        ...


@dataclass(frozen=True)
class Scalar:
    """A number or a time under `sum`, `min` or `max`. Entries: [g, name]. Nulls are no entries."""

    name: str
    how: Aggregate
    dtype: pl.DataType = field(default_factory=pl.Float64)

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        return entries.group_by("g").agg(_aggregate(self.name, self.how).cast(self.dtype))

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return states.filter(pl.col(self.name).is_not_null())


@dataclass(frozen=True)
class VectorSum:
    """A float64 vector of `width` numbers under addition; null where nothing was added. Entries: [g, name]."""

    name: str
    width: int

    @property
    def dtype(self) -> pl.DataType:
        return pl.Array(pl.Float64, self.width)

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        entries = entries.filter(pl.col(self.name).is_not_null()).sort("g", maintain_order=True)
        if entries.is_empty():
            return pl.DataFrame(schema={"g": pl.UInt32, self.name: self.dtype})
        g = entries["g"].to_numpy()
        starts = np.flatnonzero(np.r_[True, g[1:] != g[:-1]])
        sums = np.add.reduceat(entries[self.name].to_numpy().astype(np.float64), starts, axis=0)
        return pl.DataFrame({"g": entries["g"].gather(starts), self.name: pl.Series(sums, dtype=self.dtype)})

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return states.filter(pl.col(self.name).is_not_null())


@dataclass(frozen=True)
class MapSum:
    """Keys with values under their own aggregates. Entries: [g, key, *values].

    At most `cap` keys stay: those whose SHA-256 is smallest; the values of all others add up exactly under `_other`.
    A key among the `cap` smallest of the whole is among the `cap` smallest of every part that holds it, so no part
    ever dropped any of it, and the result does not depend on the order of merging. The kept keys are also a KMV
    sketch: `distinct_keys` estimates how many there were.

    With `by_first`, what is counted and hashed is a key's part before the first `PART`, so that columns with the same
    first parts and the same cap keep the same ones.
    """

    name: str
    values: Mapping[str, tuple[Aggregate, pl.DataType]]
    cap: int
    by_first: bool = False

    @property
    def dtype(self) -> pl.DataType:
        return pl.List(pl.Struct({"key": pl.String(), **{n: d for n, (_, d) in self.values.items()}}))

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        sums = self._sum(entries.select("g", pl.col("key").cast(pl.String), *self.values))
        full = sums.filter(pl.col("key") != OTHER).group_by("g").len().filter(pl.col("len") > self.cap)
        if not full.is_empty():
            over = sums.join(full.select("g"), on="g", how="semi")
            sums = pl.concat([sums.join(full.select("g"), on="g", how="anti"), self._sum(self._cap(over))])
        packed = sums.sort("g", "key").group_by("g", maintain_order=True).agg(pl.struct("key", *self.values))
        return packed.select("g", pl.col("key").cast(self.dtype).alias(self.name))

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return _explode(states, self.name)

    def _sum(self, entries: pl.DataFrame) -> pl.DataFrame:
        return entries.group_by("g", "key").agg(_aggregate(n, how).cast(d) for n, (how, d) in self.values.items())

    def _cap(self, sums: pl.DataFrame) -> pl.DataFrame:
        kept = pl.col("key").is_in([OTHER]) | (pl.col("rank") <= self.cap)
        named = _ranked(sums.filter(pl.col("key") != OTHER), self.by_first)
        other = sums.filter(pl.col("key") == OTHER).with_columns(pl.lit(0, pl.UInt32).alias("rank"))
        ranked = pl.concat([named, other.select(named.columns).cast(named.schema)])
        return ranked.with_columns(pl.when(kept).then("key").otherwise(pl.lit(OTHER)).alias("key")).drop("rank")


@dataclass(frozen=True)
class LastN:
    """The `n` latest entries, newest first, ties by id and then by the other fields. Entries: [g, ts, id, *fields]."""

    name: str
    fields: Mapping[str, pl.DataType]
    n: int

    @property
    def dtype(self) -> pl.DataType:
        return pl.List(pl.Struct({"ts": TIME, "id": pl.String(), **self.fields}))

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        names = ["ts", "id", *self.fields]
        order = entries.select("g", *names).sort(
            ["g", *names], descending=[False, True] + [False] * (len(names) - 1), nulls_last=True
        )
        packed = order.group_by("g", maintain_order=True).head(self.n).group_by("g", maintain_order=True)
        return packed.agg(pl.struct(names).alias(self.name).cast(self.dtype.inner))  # type: ignore[attr-defined]

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return _explode(states, self.name)


@dataclass(frozen=True)
class TopK:
    """Per key the `k` entries of greatest weight with unique ids. Entries: [g, key, id, weight, *fields].

    A duplicate id keeps its greatest weight; ties go by id, then by the other fields. Of the keys, the `cap` of
    smallest hash stay, as in `MapSum` (`by_first` too), and the rest have no evidence left.
    """

    name: str
    fields: Mapping[str, pl.DataType]
    k: int
    cap: int
    by_first: bool = False

    @property
    def dtype(self) -> pl.DataType:
        return pl.List(pl.Struct({"key": pl.String(), "id": pl.String(), "weight": pl.Float64(), **self.fields}))

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        names = ["key", "id", "weight", *self.fields]
        entries = entries.select("g", *names).with_columns(pl.col("key").cast(pl.String), pl.col("id").cast(pl.String))
        order = ["g", "key", "weight", "id", *self.fields]
        falling = [name == "weight" for name in order]
        best = entries.sort(order, descending=falling, nulls_last=True).unique(
            ["g", "key", "id"], keep="first", maintain_order=True
        )
        best = best.group_by("g", "key", maintain_order=True).head(self.k)
        keys = best.select("g", "key").unique()
        if keys.group_by("g").len().filter(pl.col("len") > self.cap).height:
            kept = _ranked(keys, self.by_first).filter(pl.col("rank") <= self.cap).drop("rank")
            best = best.join(kept, on=["g", "key"], how="semi", maintain_order="left")
        packed = best.group_by("g", maintain_order=True).agg(pl.struct(names).alias(self.name))
        return packed.select("g", pl.col(self.name).cast(self.dtype))

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return _explode(states, self.name)


@dataclass(frozen=True)
class Intervals:
    """A union of closed time intervals that joins gaps of at most 30 minutes. Entries: [g, start, end]."""

    name: str
    gap_minutes: int = SESSION_GAP_MINUTES

    @property
    def dtype(self) -> pl.DataType:
        return pl.List(pl.Struct({"start": TIME, "end": TIME}))

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        joined = join_intervals(entries.select("g", "start", "end"), self.gap_minutes)
        packed = joined.group_by("g", maintain_order=True).agg(pl.struct("start", "end").alias(self.name))
        return packed.select("g", pl.col(self.name).cast(self.dtype))

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return _explode(states, self.name)


@dataclass(frozen=True)
class StateSchema:
    """All columns of the states table but `bucket` and `wave_no`, and how two of its rows become one."""

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        assert len(set(names)) == len(names), f"a state column is named twice: {names}"

    @property
    def dtypes(self) -> dict[str, pl.DataType]:
        keys: dict[str, pl.DataType] = {"user_id": pl.String(), "period": pl.Date()}
        return keys | {column.name: column.dtype for column in self.columns}

    def assemble(self, keys: pl.DataFrame, pieces: Iterable[pl.DataFrame]) -> pl.DataFrame:
        """Join gathered columns [g, name] to `keys` [g, user_id, period]; a column without a piece is empty."""
        out = keys
        for piece in pieces:
            out = out.join(piece, on="g", how="left", maintain_order="left")
        missing = [column for column in self.columns if column.name not in out.columns]
        out = out.with_columns(pl.lit(None, dtype=column.dtype).alias(column.name) for column in missing)
        lists = [column.name for column in self.columns if isinstance(column.dtype, pl.List)]
        sums = [column.name for column in self.columns if isinstance(column, Scalar) and column.how == "sum"]
        filled = out.with_columns(
            *(pl.col(name).fill_null(pl.lit([], dtype=self.dtypes[name])) for name in lists),
            *(pl.col(name).fill_null(0) for name in sums),
        )
        return filled.select(*self.dtypes).cast(pl.Schema(self.dtypes))

    def merge(self, states: pl.DataFrame) -> pl.DataFrame:
        """States with any number of rows per key -> one row per key, sorted by key. Extra columns are dropped."""
        states = states.select(*self.dtypes)
        alone = pl.struct(KEYS).is_unique()
        done, rest = states.filter(alone), states.filter(~alone)
        if rest.is_empty():
            return done.sort(KEYS)
        g, keys = group(rest)
        rest = rest.with_columns(g)
        pieces = [column.gather(column.spread(rest.select("g", column.name))) for column in self.columns]
        return pl.concat([done, self.assemble(keys, pieces)]).sort(KEYS)


def group(rows: pl.DataFrame) -> tuple[pl.Series, pl.DataFrame]:
    """Number the (user_id, period) of each row. Returns `g` (UInt32, one a row) and the frame [g, user_id, period]."""
    keys = rows.select(KEYS).unique(maintain_order=False).sort(KEYS).with_row_index("g")
    g = rows.select(KEYS).join(keys, on=KEYS, how="left", maintain_order="left")["g"]
    return g, keys.select("g", *KEYS)


def join_intervals(entries: pl.DataFrame, gap_minutes: int = SESSION_GAP_MINUTES) -> pl.DataFrame:
    """Intervals [g, start, end] -> the joined ones, sorted by g and start."""
    entries = entries.sort("g", "start", "end")
    reach = pl.col("end").cum_max().over("g").shift(1).over("g")
    opens = (pl.col("start") - reach > pl.duration(minutes=gap_minutes)).fill_null(True)
    entries = entries.with_columns(opens.cum_sum().alias("session"))
    joined = entries.group_by("g", "session", maintain_order=True).agg(pl.col("start").min(), pl.col("end").max())
    return joined.drop("session")


def distinct_keys(states: pl.DataFrame, column: MapSum) -> pl.Series:
    """How many distinct keys a `MapSum` has seen: exact below its cap, else the KMV estimate (cap - 1) / h_cap.

    h_cap is the largest kept hash as a share of the hash range (Bar-Yossef et al., RANDOM 2002). Float64, one a row.
    """
    numbered = states.select(pl.col(column.name)).with_row_index("g")
    entries = _explode(numbered, column.name).select("g", "key")
    share = _key_hash("key").str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64).cast(pl.Float64) / 2.0**64
    full = pl.col("key").is_in([OTHER]).any()
    named = pl.col("key") != OTHER
    estimate = pl.when(full).then((named.sum() - 1) / pl.col("share").filter(named).max()).otherwise(named.sum())
    counted = entries.with_columns(share.alias("share")).group_by("g").agg(estimate.cast(pl.Float64).alias("n"))
    return numbered.select("g").join(counted, on="g", how="left", maintain_order="left")["n"].fill_null(0.0)


def _explode(states: pl.DataFrame, name: str) -> pl.DataFrame:
    filled = states.select("g", name).filter(pl.col(name).list.len() > 0)
    return filled.explode(name).unnest(name)


def _aggregate(name: str, how: Aggregate) -> pl.Expr:
    column = pl.col(name)
    return column.sum() if how == "sum" else column.min() if how == "min" else column.max()


def _ranked(frame: pl.DataFrame, by_first: bool) -> pl.DataFrame:
    """Add `rank`: the place of each key's (first part's) hash within its group, from 1; equal ones share a place."""
    counted = pl.col("key").str.split(PART).list.first() if by_first else pl.col("key")
    rank = _key_hash("counted").rank("dense").over("g").cast(pl.UInt32)
    return frame.with_columns(counted.alias("counted")).with_columns(rank.alias("rank")).drop("counted")


def _key_hash(name: str) -> pl.Expr:
    hashed: pl.Expr = plh.col(name).chash.sha2_256()
    return hashed
