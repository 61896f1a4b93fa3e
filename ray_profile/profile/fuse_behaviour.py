"""The behaviour facet's profile columns: recency, frequency, monetary value, habits, affinities, price level."""

from __future__ import annotations

import numpy as np
import polars as pl

from ray_profile import segments
from ray_profile.profile import behaviour, statistics
from ray_profile.profile.facet import FuseContext, entries, entries_and_evidence, explained, listed, ranked
from ray_profile.profile.items import PATH_SEPARATOR
from ray_profile.segments import Runs, places, words
from ray_profile.state import OTHER, PART, TIME, MapSum, TopK, VectorSum, distinct_keys, join_intervals

MAX_AFFINITIES = 30
MAX_SEARCHES = 20
MAX_BOUGHT = 500
DAY_US = 86_400_000_000

_INT, _FLOAT, _TEXT = pl.Int64(), pl.Float64(), pl.String()
_ACTS = pl.List(pl.Struct({"id": _TEXT, "weight": _FLOAT, "ts": TIME, "item_id": _TEXT, "kind": _TEXT}))


def _affinity(name: str) -> dict[str, pl.DataType]:
    # `share` is of the decayed weight of all categories of the same depth, or of all brands.
    return {name: _TEXT, "share": _FLOAT, "n": _INT, "spend": _FLOAT, "last": TIME, "evidence": _ACTS}


def _habit(name: str) -> dict[str, pl.DataType]:
    return {name: _TEXT, "share": _FLOAT, "n": _INT, "last": TIME, "evidence": _ACTS}


_KIND: dict[str, pl.DataType] = {"kind": _TEXT, "n": _INT, "quantity": _FLOAT, "last": TIME}
_SEARCH: dict[str, pl.DataType] = {"query": _TEXT, "n": _INT, "last": TIME, "evidence": _ACTS}
_BAND: dict[str, pl.DataType] = {"low": _FLOAT, "high": _FLOAT, "share": _FLOAT}
_BOUGHT: dict[str, pl.DataType] = {"item_id": _TEXT, "n": _INT, "last": TIME}
_LATEST: dict[str, pl.DataType] = {"ts": TIME, "item_id": _TEXT, "kind": _TEXT, "price": _FLOAT, "id": _TEXT}

DTYPES: dict[str, pl.DataType] = {
    "rows": _INT,
    "first_ts": TIME,
    "last_ts": TIME,
    "recency_days": _FLOAT,  # from the last row to as_of
    "kinds": pl.List(pl.Struct(_KIND)),
    "frequency": _FLOAT,  # distinct orders; estimated beyond 256 in a period
    "monetary": _FLOAT,  # spent less returned, in the shop's currency
    "returns": pl.Struct({"n": _INT, "value": _FLOAT}),
    "basket_size": _FLOAT,  # pieces an order
    "sessions": _INT,
    "session_minutes": _FLOAT,  # mean
    "hours": pl.List(_FLOAT),  # rows by local hour, 24 numbers; empty where no time of day is known
    "weekdays": pl.List(_FLOAT),  # rows by local weekday from Monday, 7 numbers
    "categories": pl.List(pl.Struct(_affinity("category"))),
    "brands": pl.List(pl.Struct(_affinity("brand"))),
    "price_bands": pl.List(pl.Struct(_BAND)),  # share of spend
    "price_rank": _FLOAT,  # 0 cheapest to 1 dearest: mean rank of what was bought within its category
    "places": pl.List(pl.Struct(_habit("place"))),
    "devices": pl.List(pl.Struct(_habit("device"))),
    "searches": pl.List(pl.Struct(_SEARCH)),
    "last_items": pl.List(pl.Struct(_LATEST)),
    "bought": pl.List(pl.Struct(_BOUGHT)),  # or reviewed or returned: `n` such rows; the newest first
}


def fuse(states: pl.DataFrame, context: FuseContext) -> list[pl.DataFrame]:
    """States with `u` and `scale` (see facet.py) -> frames [u, ...] of this facet's profile columns."""
    as_of = pl.lit(context.as_of, dtype=TIME)
    times = states.group_by("u").agg(pl.col("rows").sum(), pl.col("first_ts").min(), pl.col("last_ts").max())
    recency = (as_of - pl.col("last_ts")).dt.total_microseconds() / DAY_US
    return [
        times.with_columns(recency.alias("recency_days")),
        *_money(states),
        _sessions(states),
        *(
            _histogram(states, column, name)
            for column, name in ((behaviour.HOURS, "hours"), (behaviour.WEEKDAYS, "weekdays"))
        ),
        _affinities(states, behaviour.CATEGORIES, behaviour.CATEGORY_EVIDENCE, "category", "categories"),
        _affinities(states, behaviour.BRANDS, behaviour.BRAND_EVIDENCE, "brand", "brands"),
        *_prices(states, context.statistics),
        _habits(states, behaviour.PLACES, behaviour.PLACE_EVIDENCE, "place", "places"),
        _habits(states, behaviour.DEVICES, behaviour.DEVICE_EVIDENCE, "device", "devices"),
        _searches(states),
        _latest(states),
        _bought(states),
    ]


def _money(states: pl.DataFrame) -> list[pl.DataFrame]:
    kinds = ranked(entries(states, behaviour.KINDS), "n", "key")
    bought, back = pl.col("key") == "purchase", pl.col("key") == "return"
    spent = kinds.group_by("u").agg(
        (pl.col("spend").filter(bought).sum() - pl.col("spend").filter(back).sum()).alias("monetary"),
        pl.struct(pl.col("n").filter(back).sum().alias("n"), pl.col("spend").filter(back).sum().alias("value")).alias(
            "returns"
        ),
        pl.col("quantity").filter(bought).sum().alias("pieces"),
    )
    money = spent.join(_orders(states), on="u", how="left").with_columns(pl.col("frequency").fill_null(0.0))
    basket = pl.when(pl.col("frequency") > 0).then(pl.col("pieces") / pl.col("frequency"))
    return [
        money.select("u", "frequency", "monetary", "returns", basket.alias("basket_size")),
        listed(kinds.rename({"key": "kind"}), "kinds", _KIND),
    ]


def _orders(states: pl.DataFrame) -> pl.DataFrame:
    """[u, frequency]: distinct orders; exact, except for users with a period whose orders outgrew the map.

    For those the periods' estimates add up, so that an order across a month's end counts twice.
    """
    named = entries(states, behaviour.ORDERS).with_columns((pl.col("key") == OTHER).any().over("u").alias("full"))
    exact = named.filter(~pl.col("full")).group_by("u").agg(pl.len().cast(_FLOAT).alias("frequency"))
    busy = states.select("u", behaviour.ORDERS.name).join(named.filter("full").select("u").unique(), on="u")
    guessed = busy.select("u", distinct_keys(busy, behaviour.ORDERS).alias("frequency"))
    return pl.concat([exact, guessed.group_by("u").agg(pl.col("frequency").sum())])


def _sessions(states: pl.DataFrame) -> pl.DataFrame:
    """Intervals are joined over all periods, so that a session across a month's end is one."""
    spread = behaviour.SESSIONS.spread(states.select(pl.col("u").alias("g"), behaviour.SESSIONS.name))
    spans = join_intervals(spread)
    minutes = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 60_000_000
    counted = spans.group_by(pl.col("g").alias("u")).agg(
        pl.len().cast(_INT).alias("sessions"), minutes.mean().alias("session_minutes")
    )
    return states.select("u").unique().join(counted, on="u", how="left").with_columns(pl.col("sessions").fill_null(0))


def _histogram(states: pl.DataFrame, column: VectorSum, name: str) -> pl.DataFrame:
    summed = column.gather(states.select(pl.col("u").alias("g"), column.name))
    return summed.rename({"g": "u", column.name: name})


def _affinities(states: pl.DataFrame, column: MapSum, acts_column: TopK, name: str, to: str) -> pl.DataFrame:
    liked, acts = entries_and_evidence(states, column, acts_column, scaled=("weight",))
    liked = liked.filter(pl.col("n") > 0)
    depth = pl.zeros(liked.height, pl.UInt32, eager=True)
    if column is behaviour.CATEGORIES:  # the rest holds all depths together, so no depth's share can count it
        liked = liked.filter(pl.col("key") != OTHER)
        names = liked["key"].dtype.categories  # type: ignore[attr-defined]
        depth = names.str.count_matches(PATH_SEPARATOR, literal=True).gather(liked["key"].to_physical())
    level = words(liked["u"].to_numpy(), depth.to_numpy())
    liked = liked.with_columns((pl.col("weight") / Runs.of(level).over(liked["weight"], "sum")).alias("share"))
    liked = ranked(liked.filter((pl.col("weight") > 0) & (pl.col("key") != OTHER)), "share", "key")
    liked = liked.filter(places(liked["u"].to_numpy()) < MAX_AFFINITIES)
    return listed(explained(liked, acts, name, _ACTS), to, _affinity(name))


def _prices(states: pl.DataFrame, corpus: pl.DataFrame) -> list[pl.DataFrame]:
    parts = pl.col("key").str.split_exact(PART, 1).struct.rename_fields(["category", "band"])
    paid = (
        entries(states, behaviour.PRICES).filter(pl.col("key") != OTHER).with_columns(parts.alias("key")).unnest("key")
    )
    paid = paid.with_columns(pl.col("band").cast(pl.Int32))
    bands = paid.group_by("u", "band").agg(pl.col("spend").sum()).sort("u", "band")
    edge = pl.lit(2.0).pow(pl.col("band") / behaviour.BANDS_PER_DOUBLING)
    bands = bands.with_columns(
        edge.alias("low"),
        (edge * 2.0 ** (1 / behaviour.BANDS_PER_DOUBLING)).alias("high"),
        (pl.col("spend") / pl.col("spend").sum().over("u")).alias("share"),
    )
    shop = statistics.of(corpus, "price").with_columns(parts.alias("key")).unnest("key")
    shop = shop.with_columns(pl.col("band").cast(pl.Int32)).sort("category", "band")
    below = pl.col("value").cum_sum().over("category") - pl.col("value") / 2
    shop = shop.select("category", "band", (below / pl.col("value").sum().over("category")).alias("rank"))
    ranked = paid.join(shop, on=["category", "band"])
    rank = (pl.col("rank") * pl.col("n")).sum() / pl.col("n").sum()
    return [listed(bands, "price_bands", _BAND), ranked.group_by("u").agg(rank.alias("price_rank"))]


def _habits(states: pl.DataFrame, column: MapSum, acts_column: TopK, name: str, to: str) -> pl.DataFrame:
    seen, acts = entries_and_evidence(states, column, acts_column)
    rows = Runs.of(seen["u"].to_numpy().astype(np.uint64)).over(seen["n"], "sum")
    seen = seen.with_columns((pl.col("n") / rows).alias("share"))
    seen = ranked(seen.filter(pl.col("key") != OTHER), "n", "key")
    return listed(explained(seen, acts, name, _ACTS), to, _habit(name))


def _searches(states: pl.DataFrame) -> pl.DataFrame:
    asked, acts = entries_and_evidence(states, behaviour.SEARCHES, behaviour.SEARCH_EVIDENCE)
    asked = asked.filter(pl.col("key") != OTHER)
    asked = asked.sort(["u", "n", "last", "key"], descending=[False, True, True, False])
    return listed(explained(asked, acts, "query", _ACTS), "searches", _SEARCH, at_most=MAX_SEARCHES)


def _latest(states: pl.DataFrame) -> pl.DataFrame:
    latest = behaviour.LAST_ITEMS
    gathered = latest.gather(latest.spread(states.select(pl.col("u").alias("g"), latest.name))).rename({"g": "u"})
    return listed(segments.unlisted(gathered, latest.name), "last_items", _LATEST)


def _bought(states: pl.DataFrame) -> pl.DataFrame:
    bought = entries(states, behaviour.BOUGHT).filter(pl.col("key") != OTHER).rename({"key": "item_id"})
    bought = bought.sort("u", "last", "item_id", descending=[False, True, False])
    return listed(bought, "bought", _BOUGHT, at_most=MAX_BOUGHT)
