"""The behaviour facet: what people do, how often, when, where, for how much, with which categories and brands."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from ray_profile.profile.facet import FoldContext
from ray_profile.segments import enumerated
from ray_profile.state import PART, TIME, Aggregate, Column, Intervals, LastN, MapSum, Scalar, TopK, VectorSum

#: Price bands are half powers of two: band b holds 2^(b/2) <= price < 2^((b+1)/2).
BANDS_PER_DOUBLING = 2

_INT, _FLOAT, _TEXT = pl.Int64(), pl.Float64(), pl.String()
_SEEN: dict[str, tuple[Aggregate, pl.DataType]] = {"n": ("sum", _INT), "last": ("max", TIME)}
_AFFINITY: dict[str, tuple[Aggregate, pl.DataType]] = {
    **_SEEN,
    "weight": ("sum", _FLOAT),
    "spend": ("sum", _FLOAT),
}

KINDS = MapSum("kind_sums", {**_SEEN, "quantity": ("sum", _FLOAT), "spend": ("sum", _FLOAT)}, cap=16)
ORDERS = MapSum("orders", {"n": ("sum", _INT)}, cap=256)
SESSIONS = Intervals("session_spans")
HOURS = VectorSum("hour_counts", 24)
WEEKDAYS = VectorSum("weekday_counts", 7)
CATEGORIES = MapSum("category_sums", _AFFINITY, cap=256)  # every level of the path
BRANDS = MapSum("brand_sums", _AFFINITY, cap=256)
_ACT: dict[str, pl.DataType] = {"ts": TIME, "item_id": _TEXT, "kind": _TEXT}
#: Evidence keeps the keys that the sums it is for keep, so that none is without.
CATEGORY_EVIDENCE = TopK("category_evidence", _ACT, k=3, cap=CATEGORIES.cap)
BRAND_EVIDENCE = TopK("brand_evidence", _ACT, k=3, cap=BRANDS.cap)
PRICES = MapSum("prices", {"n": ("sum", _INT), "spend": ("sum", _FLOAT)}, cap=512)  # key: finest category, band
PLACES = MapSum("place_sums", _SEEN, cap=64)
DEVICES = MapSum("device_sums", _SEEN, cap=32)
SEARCHES = MapSum("search_sums", _SEEN, cap=256)
PLACE_EVIDENCE = TopK("place_evidence", _ACT, k=1, cap=PLACES.cap)
DEVICE_EVIDENCE = TopK("device_evidence", _ACT, k=1, cap=DEVICES.cap)
SEARCH_EVIDENCE = TopK("search_evidence", _ACT, k=1, cap=SEARCHES.cap)
ITEMS = MapSum("item_sums", {**_SEEN, "weight": ("sum", _FLOAT)}, cap=512)
BOUGHT = MapSum("bought_sums", _SEEN, cap=512)  # apart from ITEMS: who browses a lot would fill it
BUYING = ("purchase", "review", "return")  # kinds of rows that tell of a purchase
LAST_ITEMS = LastN("latest_items", {"item_id": _TEXT, "kind": _TEXT, "price": _FLOAT}, n=100)

COLUMNS: tuple[Column, ...] = (
    Scalar("rows", "sum", _INT),
    Scalar("first_ts", "min", TIME),
    Scalar("last_ts", "max", TIME),
    KINDS,
    ORDERS,
    SESSIONS,
    HOURS,
    WEEKDAYS,
    CATEGORIES,
    BRANDS,
    CATEGORY_EVIDENCE,
    BRAND_EVIDENCE,
    PRICES,
    PLACES,
    DEVICES,
    SEARCHES,
    PLACE_EVIDENCE,
    DEVICE_EVIDENCE,
    SEARCH_EVIDENCE,
    ITEMS,
    BOUGHT,
    LAST_ITEMS,
)


def fold(rows: pl.DataFrame, context: FoldContext) -> list[pl.DataFrame]:
    """Prepared rows (see facet.py) -> gathered columns."""
    pieces = pl.col("quantity").fill_null(1.0)
    rows = rows.with_columns(
        pl.lit(1, _INT).alias("n"),
        pl.col("ts").alias("last"),
        pieces.alias("quantity"),
        (pl.col("price").fill_null(0.0) * pieces).alias("spend"),
    )
    rows = rows.join(context.items.keys, on="item", how="left", maintain_order="left")
    bought = rows.filter(pl.col("kind") == "purchase")
    timed = rows.filter(pl.col("hour").is_not_null())
    asked = pl.col("text").str.to_lowercase().str.slice(0, 100)
    return [
        rows.group_by("g").agg(
            pl.len().cast(_INT).alias("rows"), pl.col("ts").min().alias("first_ts"), pl.col("ts").max().alias("last_ts")
        ),
        KINDS.gather(rows.with_columns(pl.col("kind").alias("key"))),
        ORDERS.gather(bought.with_columns(_basket().alias("key"))),
        SESSIONS.gather(timed.select("g", pl.col("ts").alias("start"), pl.col("ts").alias("end"))),
        _histogram(timed, "hour", "hour_counts", 24),
        _histogram(rows, "weekday", "weekday_counts", 7),
        *_affinities(rows),
        PRICES.gather(bought.filter(pl.col("price") > 0).with_columns(_price_key().alias("key"))),
        *_seen(rows.with_columns(pl.col("place").alias("key")), PLACES, PLACE_EVIDENCE),
        *_seen(rows.with_columns(pl.col("device").alias("key")), DEVICES, DEVICE_EVIDENCE),
        *_seen(rows.filter(pl.col("kind") == "search").with_columns(asked.alias("key")), SEARCHES, SEARCH_EVIDENCE),
        *_items(rows),
    ]


def band_edges(band: int) -> tuple[float, float]:
    """The prices that a band holds, lowest inclusive, highest exclusive."""
    return math.pow(2, band / BANDS_PER_DOUBLING), math.pow(2, (band + 1) / BANDS_PER_DOUBLING)


def _basket() -> pl.Expr:
    return pl.coalesce(pl.col("order_id"), pl.col("ts").dt.to_string("iso"))


def _price_key() -> pl.Expr:
    band = (pl.col("price").log(2) * BANDS_PER_DOUBLING).floor().cast(pl.Int32).cast(_TEXT)
    return pl.concat_str(pl.col("finest").fill_null(""), band, separator=PART)


def _histogram(rows: pl.DataFrame, column: str, name: str, width: int) -> pl.DataFrame:
    """Counts of the values 0..width-1 per group, as one vector."""
    groups, row = np.unique(rows["g"].to_numpy(), return_inverse=True)
    cell = row * width + rows[column].to_numpy().astype(np.int64)
    counts = np.bincount(cell, minlength=len(groups) * width).reshape(len(groups), width).astype(np.float64)
    return pl.DataFrame(
        {"g": pl.Series(groups, dtype=pl.UInt32), name: pl.Series(counts, dtype=pl.Array(pl.Float64, width))}
    )


def _seen(rows: pl.DataFrame, column: MapSum, evidence: TopK) -> list[pl.DataFrame]:
    """What rows with a `key` name, and the latest of them in each period that does."""
    named = rows.filter(pl.col("key").is_not_null())
    named = named.with_columns(*enumerated(named["key"]), pl.col("decay").alias("weight"))
    return [column.gather(named), evidence.gather(named)]


def _affinities(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """Categories and brands with their evidence. A return takes its spend back and says nothing about liking."""
    fields = ("g", "id", "ts", "last", "item_id", "kind", "n", "weight", "spend")
    signed = rows.with_columns(
        pl.when(pl.col("kind") == "return").then(-pl.col("spend"))
        .when(pl.col("kind") == "purchase").then(pl.col("spend"))
        .otherwise(0.0).alias("spend"),
        pl.when(pl.col("kind") == "return").then(0).otherwise(pl.col("n")).alias("n"),
    )  # fmt: skip
    categories = signed.select(*fields, pl.col("levels").alias("key")).explode("key")
    categories = categories.filter(pl.col("key").is_not_null())
    brands = signed.filter(pl.col("brand").is_not_null()).select(*fields, pl.col("brand").alias("key"))
    liking = pl.col("weight") > 0
    return [
        CATEGORIES.gather(categories),
        BRANDS.gather(brands),
        CATEGORY_EVIDENCE.gather(categories.filter(liking)),
        BRAND_EVIDENCE.gather(brands.filter(liking)),
    ]


def _items(rows: pl.DataFrame) -> list[pl.DataFrame]:
    acted = rows.filter(pl.col("item_id").is_not_null())
    keyed = acted.with_columns(pl.col("item_id").alias("key"))
    bought = keyed.filter(pl.col("kind").is_in(BUYING))
    return [ITEMS.gather(keyed), BOUGHT.gather(bought), LAST_ITEMS.gather(acted)]
