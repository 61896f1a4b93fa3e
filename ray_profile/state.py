"""The state of a user: a commutative monoid, one row per (user_id, period).

A facet names its columns once, with their kind; the kind is all that batch, incremental, as-of, erasure and live
updates need to know. Every kind is a pair of functions, so that merging is right by construction:

    gather   entries, each with the group `g` it belongs to  ->  one value per group
    spread   values  ->  entries

A fold gathers entries made from rows; `merge` gathers what `spread` makes of states, so folding rows in any number of
blocks and waves and in any order gives one result (floats to their last bits). A frame of entries has the column `g`
(UInt32, the row number of the group) and the columns that the kind names; a gathered frame is sorted by `g`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import polars as pl
import polars_hash as plh

from ray_profile.segments import Aggregate as Aggregate  # facets name it with the kinds
from ray_profile.segments import (
    Index,
    Runs,
    first_of_each,
    halves,
    lengths,
    listed,
    lists,
    ordered,
    places,
    ranks,
    spaced,
    starts,
    unlisted,
    words,
)
from ray_profile.threads import mapped

KEYS = ("user_id", "period")
PART = "\x1f"  # joins the parts of a map's key: tag and source, tag and item
OTHER = PART + "other"  # the key under which a map keeps what it has no room for; no word, name or id of a shop is it
SESSION_GAP_MINUTES = 30

TIME = pl.Datetime("us", "UTC")


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
        runs = Runs.of(entries["g"].to_numpy().astype(np.uint64))
        reduced = runs.reduce(entries[self.name].cast(self.dtype), self.how)
        return pl.DataFrame([entries["g"].gather(runs.firsts), reduced])

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return states.filter(pl.col(self.name).is_not_null())


@dataclass(frozen=True)
class VectorSum:
    """A float64 vector of `width` numbers under addition; null where nothing was added. Entries: [g, name]."""

    name: str
    width: int

    @property
    def dtype(self) -> pl.DataType:
        return pl.List(pl.Float64())  # not Array, which takes its width in memory even where it is null

    def gather(self, entries: pl.DataFrame) -> pl.DataFrame:
        entries = entries.filter(pl.col(self.name).is_not_null())
        runs = Runs.of(entries["g"].to_numpy().astype(np.uint64))
        matrix = entries[self.name].explode().to_numpy().astype(np.float64).reshape(-1, self.width)[runs.order]
        sums = np.add.reduceat(matrix, runs.starts, axis=0) if len(runs.starts) < len(matrix) else matrix
        column = lists(np.full(len(sums), self.width), pl.Series(self.name, sums.ravel()), self.dtype)
        return pl.DataFrame([entries["g"].gather(runs.firsts), column])

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return states.filter(pl.col(self.name).is_not_null())


@dataclass(frozen=True)
class MapSum:
    """Keys with values under their own aggregates. Entries: [g, key, *values].

    At most `cap` keys stay: those whose SHA-256 is smallest; the values of all others add up exactly under `OTHER`.
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
        sums = self.sum(entries).with_columns(pl.col("key").cast(pl.String))
        group = sums["g"].to_numpy()
        keys = lengths(starts(group), len(group))
        if (keys > self.cap).any():
            over = np.repeat(keys > self.cap, keys)
            sums = pl.concat([sums.filter(~over), self.sum(self._cap(sums.filter(over)))]).sort(
                "g", maintain_order=True
            )
        return listed(sums, "g", self.name, self.dtype)

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return unlisted(states, self.name)

    def sum(self, entries: pl.DataFrame, by: str = "g") -> pl.DataFrame:
        """[by, key, *values]: the entries of each key of each group as one, in order; no key is left out."""
        runs = Runs.of(words(entries[by].to_numpy(), ranks(entries["key"])))
        keys = entries["key"].gather(runs.firsts)
        values = (runs.reduce(entries[name].cast(dtype), how) for name, (how, dtype) in self.values.items())
        return pl.DataFrame([entries[by].gather(runs.firsts), keys, *values])

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
        group = entries["g"].to_numpy()
        latest = halves(entries["ts"].to_physical().to_numpy(), falling=True)
        order = ordered(words(group, latest), entries, {"ts": True, "id": False, **dict.fromkeys(self.fields, False)})
        order = order[places(group[order]) < self.n]
        return listed(entries.select("g", "ts", "id", *self.fields)[order], "g", self.name, self.dtype)

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return unlisted(states, self.name)


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
        best, run = self.best(entries.select("g", "key", pl.col("id").cast(pl.String), "weight", *self.fields))
        best = best.with_columns(pl.col("key").cast(pl.String))
        first = starts(run)
        group = best["g"].to_numpy()[first]
        keys = lengths(starts(group), len(group))
        over = np.repeat(keys > self.cap, keys)
        if over.any():
            ranked = _ranked(best[first[over]].select("g", "key"), self.by_first)
            kept = np.ones(len(first), np.bool_)
            kept[over] = (ranked["rank"] <= self.cap).to_numpy()
            best = best.filter(np.repeat(kept, lengths(first, len(run))))
        return listed(best, "g", self.name, self.dtype)

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return unlisted(states, self.name)

    def best(self, entries: pl.DataFrame, by: str = "g") -> tuple[pl.DataFrame, Index]:
        """The k best entries of each key of each group, in order; and the number (N,) of the pair that each is of."""
        pair = Runs.of(words(entries[by].to_numpy(), ranks(entries["key"]))).of_rows
        greatest = halves(entries["weight"].to_numpy(), falling=True)
        rank = {"weight": True, "id": False, **dict.fromkeys(self.fields, False)}
        order = ordered(words(pair, greatest), entries, rank)
        order = order[first_of_each(pair[order], entries["id"].gather(order))]
        order = order[places(pair[order]) < self.k]
        return entries[order], pair[order]


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
        return listed(joined, "g", self.name, self.dtype)

    def spread(self, states: pl.DataFrame) -> pl.DataFrame:
        return unlisted(states, self.name)


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
        """Put gathered columns [g, name] beside `keys` [g, user_id, period]; a column without a piece is empty."""
        made: dict[str, pl.Series] = {}
        for piece in pieces:
            piece = piece if piece["g"].is_sorted() else piece.sort("g")
            groups = piece["g"].to_numpy()
            made |= {column.name: spaced(groups, column, keys.height) for column in piece.drop("g")}
        for column in self.columns:
            if column.name not in made:
                made[column.name] = spaced(np.zeros(0, np.int64), pl.Series(column.name, [], column.dtype), keys.height)
        sums = [column.name for column in self.columns if isinstance(column, Scalar) and column.how == "sum"]
        out = keys.with_columns(made.values()).with_columns(pl.col(name).fill_null(0) for name in sums)
        return out.select(*self.dtypes).cast(pl.Schema(self.dtypes))

    def merge(self, states: pl.DataFrame, by: str | None = None) -> pl.DataFrame:
        """States with any number of rows per key -> one row per key, sorted by key. Extra columns are dropped.

        `by` names a number that goes with a user, their bucket: it is kept, and comes first in the order.
        """
        home = states[by].rechunk() if by else None
        states = states.select(*self.dtypes).rechunk()  # Polars gathers lists from one chunk many times as fast
        g, keys = group(states, home)
        order = np.argsort(g.to_numpy(), kind="stable")
        rows = np.bincount(g.to_numpy(), minlength=keys.height)
        row = order[np.cumsum(rows) - rows]  # of each key the only one, or the first of several
        homes = [] if home is None else [home.gather(row)]
        if (again := np.repeat(rows > 1, rows)).any():
            merged = self._merged(states[order[again]], None if home is None else home.gather(order[again]))
            row[rows > 1] = states.height + np.arange(merged.height)
            states = pl.concat([states, merged], rechunk=True)
        if not (row == np.arange(states.height)[: len(row)]).all():
            states = states[row]
        return states.with_columns(homes)

    def _merged(self, states: pl.DataFrame, home: pl.Series | None) -> pl.DataFrame:
        g, keys = group(states, home)
        states = states.with_columns(g)
        pieces = mapped(lambda column: column.gather(column.spread(states.select("g", column.name))), self.columns)
        return self.assemble(keys, pieces)


def group(rows: pl.DataFrame, home: pl.Series | None = None) -> tuple[pl.Series, pl.DataFrame]:
    """Number the (user_id, period) of each row. Returns `g` (UInt32, one a row) and the frame [g, user_id, period].

    They are in order of the users' `home` number, where each row's is given, and then of the keys.
    """
    users: Index = ranks(rows["user_id"]).astype(np.int64)
    if home is not None:
        users = Runs.of(words(home.to_numpy(), users)).of_rows
    days = rows["period"].to_physical().to_numpy().astype(np.int64) + 2**31
    runs = Runs.of(words(users, days))
    return pl.Series("g", runs.of_rows, dtype=pl.UInt32), rows[runs.firsts].select(KEYS).with_row_index("g")


def join_intervals(entries: pl.DataFrame, gap_minutes: int = SESSION_GAP_MINUTES) -> pl.DataFrame:
    """Intervals [g, start, end] -> the joined ones, sorted by g and start."""
    keys = words(entries["g"].to_numpy(), halves(entries["start"].to_physical().to_numpy()))
    entries = entries[ordered(keys, entries, {"start": False, "end": False})]
    group, start, end = (entries[name].to_physical().to_numpy() for name in ("g", "start", "end"))
    # The latest end so far in each group: groups ascend, so a running maximum over both never looks back past one.
    moments, rank = np.unique(end, return_inverse=True)
    reach = moments[np.maximum.accumulate(words(group, rank)).astype(np.uint32)]
    opens = np.r_[True, (group[1:] != group[:-1]) | (start[1:] - reach[:-1] > gap_minutes * 60_000_000)][: len(group)]
    first = np.flatnonzero(opens)
    last = np.r_[first[1:], len(group)][: len(first)] - 1
    return entries[first].with_columns(pl.Series("end", reach[last]).cast(TIME))


def states_at_cap(states: pl.DataFrame, column: MapSum) -> int:
    """How many states have a map that has reached its cap, so that `OTHER` holds some of their keys."""
    long = states.lazy().select(column.name).filter(pl.col(column.name).list.len() > column.cap)  # no other can have it
    other = pl.element().struct.field("key") == OTHER
    return int(long.select(pl.col(column.name).list.eval(other).list.any().sum()).collect().item())


def distinct_keys(states: pl.DataFrame, column: MapSum) -> pl.Series:
    """How many distinct keys a `MapSum` has seen: exact below its cap, else the KMV estimate (cap - 1) / h_cap.

    h_cap is the largest kept hash as a share of the hash range (Bar-Yossef et al., RANDOM 2002). Float64, one a row.
    """
    numbered = states.select(pl.col(column.name)).with_row_index("g")
    entries = unlisted(numbered, column.name).select("g", "key")
    share = _key_hash("key").str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64).cast(pl.Float64) / 2.0**64
    full = pl.col("key").is_in([OTHER]).any()
    named = pl.col("key") != OTHER
    estimate = pl.when(full).then((named.sum() - 1) / pl.col("share").filter(named).max()).otherwise(named.sum())
    counted = entries.with_columns(share.alias("share")).group_by("g").agg(estimate.cast(pl.Float64).alias("n"))
    return numbered.select("g").join(counted, on="g", how="left", maintain_order="left")["n"].fill_null(0.0)


def _ranked(frame: pl.DataFrame, by_first: bool) -> pl.DataFrame:
    """Add `rank`: the place of each key's (first part's) hash within its group, from 1; equal ones share a place."""
    counted = pl.col("key").str.split(PART).list.first() if by_first else pl.col("key")
    rank = _key_hash("counted").rank("dense").over("g").cast(pl.UInt32)
    return frame.with_columns(counted.alias("counted")).with_columns(rank.alias("rank")).drop("counted")


def _key_hash(name: str) -> pl.Expr:
    hashed: pl.Expr = plh.col(name).chash.sha2_256()
    return hashed
