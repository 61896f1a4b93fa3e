"""Statistics of the whole corpus, derived from the states: how common a term or a tag is, what a category costs.

They travel as a long frame [statistic, key, value]:

    writers   ""                     users who wrote anything
    term      term                   users whose states hold the term (document frequency)
    tag       tag                    rows that carry the tag
    taggable  ""                     rows that could
    price     category, band         purchases (see behaviour.band_edges)

All of a user's periods lie in one bucket, so the frames of buckets add up.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from ray_profile.profile import behaviour, text
from ray_profile.state import OTHER, PART, MapSum

DTYPES: dict[str, pl.DataType] = {"statistic": pl.String(), "key": pl.String(), "value": pl.Float64()}
#: What of the states they are made of.
STATE_COLUMNS = ("texts", text.TERMS.name, text.TAGS.name, "taggable", behaviour.PRICES.name)
ROWS_AT_ONCE = 1_000_000
MAX_TERMS = 500_000  # the most common ones; a term beyond them counts as one that a single user has


def of_states(states: pl.DataFrame) -> pl.DataFrame:
    """The merged states of some buckets (KEYS and STATE_COLUMNS) -> their part of the statistics."""
    writers = states.filter(pl.col("texts") > 0)["user_id"]
    terms = _spread(states, text.TERMS).select("user_id", "key").unique()
    tags = _spread(states, text.TAGS).select(
        pl.col("key").str.split(PART).list.first().alias("key"), pl.col("n").alias("value")
    )
    prices = _spread(states, behaviour.PRICES).select("key", pl.col("n").alias("value"))
    parts = [
        _said("writers", pl.DataFrame({"key": [""], "value": [writers.n_unique()]})),
        _said("term", terms.group_by("key").agg(pl.len().alias("value"))),
        _said("tag", tags),
        _said("taggable", states.select(pl.lit("").alias("key"), pl.col("taggable").sum().alias("value")).head(1)),
        _said("price", prices),
    ]
    return _added(parts)


def combine(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up the parts of all buckets and keep the most common terms; sorted by statistic and key."""
    waiting = [pl.DataFrame(schema=DTYPES)]
    for part in parts:  # added up on the way: a cluster has more buckets than a driver can hold
        waiting.append(part)
        if sum(each.height for each in waiting[1:]) > max(waiting[0].height, ROWS_AT_ONCE):
            waiting = [_added(waiting)]
    total = _added(waiting)
    is_term = pl.col("statistic") == "term"
    # A term that one user has is told apart by none of the rest, and may be what only they would say: not kept.
    common = (
        total.filter(is_term & (pl.col("value") > 1)).sort(["value", "key"], descending=[True, False]).head(MAX_TERMS)
    )
    return pl.concat([total.filter(~is_term), common]).sort("statistic", "key")


def of(statistics: pl.DataFrame, name: str) -> pl.DataFrame:
    """One statistic: [key, value]."""
    return statistics.filter(pl.col("statistic") == name).select("key", "value")


def total(statistics: pl.DataFrame, name: str) -> float:
    """The value of a statistic without keys; 0 where there is none."""
    return float(of(statistics, name)["value"].sum())


def _spread(states: pl.DataFrame, column: MapSum) -> pl.DataFrame:
    filled = states.select("user_id", column.name).filter(pl.col(column.name).list.len() > 0)
    return filled.explode(column.name).unnest(column.name).filter(pl.col("key") != OTHER)


def _added(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    added = pl.concat(parts).group_by("statistic", "key").agg(pl.col("value").sum())
    return added.select(*DTYPES).sort("statistic", "key")


def _said(statistic: str, frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(pl.lit(statistic).alias("statistic"), "key", "value").cast(pl.Schema(DTYPES))
