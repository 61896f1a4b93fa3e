"""What a facet is: state columns, a fold and a fuse. What folds and fuses are given besides the data.

A facet's `fold` sees prepared rows: schema.ROWS plus

    g       UInt32, the number of the row's (user_id, period)
    item    UInt32, the row's item in `Items`, null where the catalogue does not know it
    decay   Float64, forward decay to the end of the row's period
    weight  Float64, KIND_WEIGHT x decay

and returns gathered columns [g, name]. Its `fuse` sees the states of whole users (one row per user and period) with

    u       UInt32, the number of the user
    scale   Float64, the decay from the period's end to the end of the user's own last period

and returns frames [u, ...] of profile columns. Weights scaled to the user's last period never underflow together, so
that a ratio of them is never 0/0.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from ray_profile import segments
from ray_profile.encode.heads import Probe
from ray_profile.encode.terms import Gazetteer
from ray_profile.profile.items import Items
from ray_profile.profile.tagging import Tagger
from ray_profile.segments import ranks
from ray_profile.state import MapSum, TopK

SNIPPET_CHARS = 160


@dataclass(frozen=True)
class FoldContext:
    """What every fold of a run shares."""

    items: Items
    width: int  # D of the encoder
    period: str = "month"
    half_life_days: float = 90.0
    tagger: Tagger = field(default_factory=Tagger)
    probe: Probe | None = None
    gazetteer: Gazetteer | None = None


@dataclass(frozen=True)
class FuseContext:
    """What every fuse of a run shares. `statistics` is the long frame of profile/statistics.py."""

    items: Items
    as_of: dt.datetime
    statistics: pl.DataFrame
    statistics_version: int
    encoder_digest: str
    width: int
    period: str = "month"
    half_life_days: float = 90.0


def entries(states: pl.DataFrame, column: MapSum, scaled: tuple[str, ...] = ()) -> pl.DataFrame:
    """A map column over all of a user's periods: [u, key, *values], the `scaled` values decayed to the last period."""
    return _entries(_spread(states, column), column, scaled)


def best_evidence(states: pl.DataFrame, column: TopK) -> pl.DataFrame:
    """A top-k column over all of a user's periods: [u, key, id, weight, *fields], the k best per (u, key), in order."""
    return _best(_spread(states, column), column)


def entries_and_evidence(
    states: pl.DataFrame, column: MapSum, evidence: TopK, scaled: tuple[str, ...] = ()
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`entries` and `best_evidence` of two columns with the same keys, which are one sorted Enum."""
    sums, acts = _spread(states, column), _spread(states, evidence)
    keys = segments.enumerated(sums["key"], acts["key"])
    return _entries(sums.with_columns(keys[0]), column, scaled), _best(acts.with_columns(keys[1]), evidence)


def _spread(states: pl.DataFrame, column: MapSum | TopK) -> pl.DataFrame:
    return segments.unlisted(states.select("u", "scale", column.name), column.name)


def _entries(spread: pl.DataFrame, column: MapSum, scaled: tuple[str, ...]) -> pl.DataFrame:
    return column.sum(spread.with_columns(pl.col(name) * pl.col("scale") for name in scaled), by="u")


def _best(spread: pl.DataFrame, column: TopK) -> pl.DataFrame:
    best, _ = column.best(spread.with_columns(pl.col("weight") * pl.col("scale")), by="u")
    return best.drop("scale")


def explained(rows: pl.DataFrame, evidence: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.DataFrame:
    """Rows [u, key, ...] with `key` called `name` and a list `evidence` of `dtype`: of [u, key, ...], in order by u,
    those with the row's u and key. Null where there are none."""
    key = ranks(pl.concat([rows["key"], evidence["key"]]))
    pair = pl.Series("_pair", segments.words(np.r_[rows["u"].to_numpy(), evidence["u"].to_numpy()], key))
    packed = segments.listed(evidence.with_columns(pair[rows.height :]), "_pair", "evidence", dtype)
    joined = rows.with_columns(pair[: rows.height]).join(packed, on="_pair", how="left", maintain_order="left")
    return joined.drop("_pair").rename({"key": name})


def falling(name: str) -> pl.Expr:
    """A sort key: greatest first, and equal where only the order of adding could tell two sums apart."""
    return -pl.col(name).round_sig_figs(9)


def listed(
    frame: pl.DataFrame, name: str, fields: Mapping[str, pl.DataType], at_most: int | None = None
) -> pl.DataFrame:
    """Rows [u, *fields], in order of `u` -> [u, name]: a list of structs per user, the first `at_most` of them."""
    if at_most is not None:
        frame = frame.filter(segments.places(frame["u"].to_numpy()) < at_most)
    return segments.listed(frame, "u", name, pl.List(pl.Struct(dict(fields))))


def ranked(frame: pl.DataFrame, name: str, then: str) -> pl.DataFrame:
    """Rows by `u`, then by `name` as `falling` does, then by `then`."""
    keyed = frame.with_columns(falling(name).alias("_rank"))
    key = segments.words(frame["u"].to_numpy(), segments.halves(keyed["_rank"].to_numpy()))
    return frame[segments.ordered(key, keyed, {"_rank": False, then: False})]


def weighted_sum(
    g: np.ndarray, index: np.ndarray, weight: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Per group the sum of weight x vectors[index]. g, index, weight: (N,); vectors: (M, D).

    Returns the groups that occur (G,) and their sums (G, D) float64.
    """
    from scipy.sparse import csr_array

    groups, row = np.unique(g, return_inverse=True)
    used, column = np.unique(index, return_inverse=True)
    product = csr_array((weight, (row, column)), shape=(len(groups), len(used)))
    return groups, np.asarray(product @ vectors[used].astype(np.float64))
