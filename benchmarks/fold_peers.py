"""The peers of `fold.py`: the same behaviour features of all events at once, as an engineer would write them in each.

Each gives one row per user with the columns FEATURES of the profile and the ids that speak for each entry (without
their weights), and keeps no state: one more day of events means computing everything again.
"""

from __future__ import annotations

import os

import duckdb
import fold_events
import polars as pl
import pyarrow as pa

from ray_profile.profile.behaviour import BUYING
from ray_profile.profile.fuse_behaviour import MAX_BOUGHT
from ray_profile.schema import KIND_WEIGHT

HALF_LIFE_DAYS = 90.0
SESSION_GAP_MINUTES = 30
DAY_US = 86_400_000_000

FEATURES = (
    "rows", "first_ts", "last_ts", "recency_days", "kinds", "frequency", "monetary", "returns", "basket_size",
    "sessions", "session_minutes", "hours", "weekdays", "categories", "brands", "price_bands", "price_rank", "places",
    "devices", "last_items", "bought",
)  # fmt: skip
ACT = ("id", "ts", "item_id", "kind")  # what is told of an event that speaks for something


def polars_features(events: pl.DataFrame, items: pl.DataFrame, engine: str = "auto") -> pl.DataFrame:
    """Lazy queries over one numbered frame, run together; users and items are numbers while grouping."""
    users = events.select("user_id").unique().with_row_index("u")
    known = known_items(items)
    pieces = pl.col("quantity").fill_null(1.0)
    weight = pl.col("kind").replace_strict(KIND_WEIGHT, return_dtype=pl.Float64)
    age = (pl.lit(fold_events.AS_OF) - pl.col("ts")).dt.total_microseconds() / DAY_US
    signed = pl.when(pl.col("kind") == "purchase").then(1.0).when(pl.col("kind") == "return").then(-1.0).otherwise(0.0)
    frame = (
        events.lazy()
        .join(users.lazy(), on="user_id")
        .join(known.lazy(), on="item_id", how="left")
        .select(
            "u", "id", "ts", "item_id", "kind", "price", "order_id", "place", "device", "hour", "weekday", "levels",
            "brand", "finest",
            (weight * pl.lit(0.5).pow(age / HALF_LIFE_DAYS)).alias("weight"),
            pieces.alias("quantity"),
            (pl.col("price").fill_null(0.0) * pieces).alias("spend"),
        )
        .with_columns((pl.col("spend") * signed).alias("signed"), (pl.col("kind") != "return").alias("counts"))
        .collect(engine=engine)
        .lazy()
    )  # fmt: skip
    queries = [
        _totals(frame),
        _kinds(frame),
        _sessions(frame),
        _liked(frame.select("u", *ACT, "weight", "signed", "counts", key="levels").explode("key"), "category", 1),
        _liked(frame.select("u", *ACT, "weight", "signed", "counts", key="brand"), "brand", 0),
        *_prices(frame),
        _habits(frame, "place"),
        _habits(frame, "device"),
        frame.filter(pl.col("item_id").is_not_null())
        .sort(["u", "ts", "id"], descending=[False, True, False])
        .group_by("u", maintain_order=True)
        .agg(pl.struct("ts", "item_id", "kind", "price", "id").head(100).alias("last_items")),
        _bought(frame),
    ]
    out = users
    for part in pl.collect_all(queries, engine=engine):
        out = out.join(part, on="u", how="left")
    lists = [name for name, dtype in out.schema.items() if isinstance(dtype, pl.List)]
    return out.with_columns(pl.col(name).fill_null([]) for name in lists).select("user_id", *FEATURES)


def known_items(items: pl.DataFrame) -> pl.DataFrame:
    """What the features need of the catalogue."""
    return items.select("item_id", "levels", "brand", pl.col("categories").list.last().alias("finest"))


def _totals(frame: pl.LazyFrame) -> pl.LazyFrame:
    bought, back = pl.col("kind") == "purchase", pl.col("kind") == "return"
    basket = pl.coalesce("order_id", pl.col("ts").dt.to_string("iso"))
    recency = (pl.lit(fold_events.AS_OF) - pl.col("ts").max()).dt.total_microseconds() / DAY_US
    return (
        frame.group_by("u")
        .agg(
            pl.len().cast(pl.Int64).alias("rows"),
            pl.col("ts").min().alias("first_ts"),
            pl.col("ts").max().alias("last_ts"),
            recency.alias("recency_days"),
            pl.col("signed").sum().alias("monetary"),
            pl.struct(n=back.sum().cast(pl.Int64), value=(pl.col("spend") * back).sum()).alias("returns"),
            (pl.col("quantity") * bought).sum().alias("pieces"),
            pl.concat_list((pl.col("hour") == hour).sum().cast(pl.Float64) for hour in range(24)).alias("hours"),
            pl.concat_list((pl.col("weekday") == day).sum().cast(pl.Float64) for day in range(7)).alias("weekdays"),
        )
        .join(
            frame.filter(bought).group_by("u").agg(basket.n_unique().cast(pl.Float64).alias("frequency")),
            on="u",
            how="left",
        )
        .with_columns(pl.col("frequency").fill_null(0.0))
        .with_columns(
            pl.when(pl.col("frequency") > 0).then(pl.col("pieces") / pl.col("frequency")).alias("basket_size")
        )
        .drop("pieces")
    )


def _bought(frame: pl.LazyFrame) -> pl.LazyFrame:
    return (
        frame.filter(pl.col("item_id").is_not_null() & pl.col("kind").is_in(BUYING))
        .group_by("u", "item_id")
        .agg(pl.len().cast(pl.Int64).alias("n"), pl.col("ts").max().alias("last"))
        .sort(["u", "last", "item_id"], descending=[False, True, False])
        .group_by("u", maintain_order=True)
        .agg(pl.struct("item_id", "n", "last").head(MAX_BOUGHT).alias("bought"))
    )


def _kinds(frame: pl.LazyFrame) -> pl.LazyFrame:
    return (
        frame.group_by("u", "kind")
        .agg(pl.len().cast(pl.Int64).alias("n"), pl.col("quantity").sum(), pl.col("ts").max().alias("last"))
        .sort(["u", "n", "kind"], descending=[False, True, False])
        .group_by("u", maintain_order=True)
        .agg(pl.struct("kind", "n", "quantity", "last").alias("kinds"))
    )


def _sessions(frame: pl.LazyFrame) -> pl.LazyFrame:
    timed = frame.filter(pl.col("hour").is_not_null()).select("u", "ts").sort("u", "ts")
    same = pl.col("u") == pl.col("u").shift()
    pause = pl.col("ts") - pl.col("ts").shift()
    goes_on = (same & (pause <= pl.duration(minutes=SESSION_GAP_MINUTES))).fill_null(False)
    return (
        timed.with_columns(goes_on.alias("on"), pause.alias("pause"))
        .group_by("u")
        .agg(
            (~pl.col("on")).sum().cast(pl.Int64).alias("sessions"),
            (pl.col("pause").filter("on").dt.total_microseconds().sum() / 60_000_000).alias("minutes"),
        )
        .select("u", "sessions", (pl.col("minutes") / pl.col("sessions")).alias("session_minutes"))
    )


def _liked(keyed: pl.LazyFrame, name: str, depths: int) -> pl.LazyFrame:
    depth = pl.col("key").str.count_matches(" > ", literal=True) if depths else pl.lit(0, pl.UInt32)
    return (
        keyed.filter(pl.col("key").is_not_null())
        .sort("weight", "id", descending=[True, False])
        .group_by("u", "key", maintain_order=True)
        .agg(
            pl.col("counts").sum().cast(pl.Int64).alias("n"),
            pl.col("weight").sum(),
            pl.col("signed").sum().alias("spend"),
            pl.col("ts").max().alias("last"),
            pl.struct(ACT).filter(pl.col("weight") > 0).head(3).alias("evidence"),
        )
        .filter(pl.col("n") > 0)
        .with_columns(depth.alias("depth"))
        .with_columns((pl.col("weight") / pl.col("weight").sum().over("u", "depth")).alias("share"))
        .sort("u", -pl.col("share").round_sig_figs(9), "key")
        .group_by("u", maintain_order=True)
        .agg(
            pl.struct(pl.col("key").alias(name), "share", "n", "spend", "last", "evidence")
            .head(30)
            .alias("categories" if name == "category" else "brands")
        )
    )


def _prices(frame: pl.LazyFrame) -> list[pl.LazyFrame]:
    band = (pl.col("price").log(2) * 2).floor().cast(pl.Int32).alias("band")
    bought = frame.filter((pl.col("kind") == "purchase") & (pl.col("price") > 0)).select("u", "finest", "spend", band)
    shop = bought.group_by("finest", "band").agg(pl.len().alias("n")).sort("finest", "band")
    below = pl.col("n").cum_sum().over("finest") - pl.col("n") / 2
    shop = shop.select("finest", "band", (below / pl.col("n").sum().over("finest")).alias("rank"))
    edge = pl.lit(2.0).pow(pl.col("band") / 2)
    bands = (
        bought.group_by("u", "band").agg(pl.col("spend").sum()).sort("u", "band")
        .with_columns(edge.alias("low"), (edge * 2.0**0.5).alias("high"))
        .with_columns((pl.col("spend") / pl.col("spend").sum().over("u")).alias("share"))
        .group_by("u", maintain_order=True).agg(pl.struct("low", "high", "share").alias("price_bands"))
    )  # fmt: skip
    ranks = (
        bought.join(shop, on=["finest", "band"], nulls_equal=True)
        .group_by("u")
        .agg(pl.col("rank").mean().alias("price_rank"))
    )
    return [bands, ranks]


def _habits(frame: pl.LazyFrame, name: str) -> pl.LazyFrame:
    return (
        frame.filter(pl.col(name).is_not_null())
        .sort("ts", "id", descending=[True, False])
        .group_by("u", name, maintain_order=True)
        .agg(
            pl.len().cast(pl.Int64).alias("n"),
            pl.col("ts").first().alias("last"),
            pl.struct(ACT).head(1).alias("evidence"),
        )
        .with_columns((pl.col("n") / pl.col("n").sum().over("u")).alias("share"))
        .sort(["u", "n", name], descending=[False, True, False])
        .group_by("u", maintain_order=True)
        .agg(pl.struct(name, "share", "n", "last", "evidence").alias(f"{name}s"))
    )


_DUCKDB = """
WITH users AS (SELECT user_id, (row_number() OVER ())::UINTEGER AS u FROM (SELECT DISTINCT user_id FROM events)),
e AS MATERIALIZED (
    SELECT u, id, ts, item_id, kind, price, order_id, place, device, hour, weekday, levels, brand, finest,
        CASE kind {weights} END * 0.5 ** ((epoch_us(TIMESTAMPTZ '{as_of}') - epoch_us(ts)) / {day} / {half_life}) AS weight,
        coalesce(quantity, 1.0) AS quantity, coalesce(price, 0.0) * coalesce(quantity, 1.0) AS spend,
        CASE kind WHEN 'purchase' THEN spend WHEN 'return' THEN -spend ELSE 0.0 END AS signed,
        (kind <> 'return')::INT AS counts
    FROM events JOIN users USING (user_id) LEFT JOIN items USING (item_id)
),
totals AS (
    SELECT u, count(*) AS rows, min(ts) AS first_ts, max(ts) AS last_ts,
        (epoch_us(TIMESTAMPTZ '{as_of}') - epoch_us(max(ts))) / {day} AS recency_days,
        count(DISTINCT CASE WHEN kind = 'purchase' THEN coalesce(order_id, ts::VARCHAR) END)::DOUBLE AS frequency,
        sum(signed) AS monetary,
        {{'n': count(*) FILTER (kind = 'return'), 'value': coalesce(sum(spend) FILTER (kind = 'return'), 0.0)}} AS returns,
        sum(quantity) FILTER (kind = 'purchase') / nullif(frequency, 0) AS basket_size,
        [{hours}] AS hours, [{weekdays}] AS weekdays
    FROM e GROUP BY u
),
kinds AS (
    SELECT u, list({{'kind': kind, 'n': n, 'quantity': quantity, 'last': last}} ORDER BY n DESC, kind) AS kinds
    FROM (SELECT u, kind, count(*) AS n, sum(quantity) AS quantity, max(ts) AS last FROM e GROUP BY u, kind) GROUP BY u
),
pauses AS (
    SELECT u, epoch_us(ts) - epoch_us(lag(ts) OVER (PARTITION BY u ORDER BY ts)) AS pause FROM e WHERE hour IS NOT NULL
),
visits AS (
    SELECT u, count(*) FILTER (pause IS NULL OR pause > {gap}) AS sessions,
        coalesce(sum(pause) FILTER (pause <= {gap}), 0) / 6e7 / sessions AS session_minutes
    FROM pauses GROUP BY u
),
{liked_categories},
{liked_brands},
bought AS (
    SELECT u, finest, floor(log2(price) * 2)::INT AS band, spend FROM e WHERE kind = 'purchase' AND price > 0
),
shop AS (
    SELECT finest, band,
        (sum(n) OVER (PARTITION BY finest ORDER BY band) - n / 2) / sum(n) OVER (PARTITION BY finest) AS rank
    FROM (SELECT finest, band, count(*) AS n FROM bought GROUP BY finest, band)
),
ranks AS (
    SELECT u, avg(rank) AS price_rank FROM bought
    JOIN shop ON bought.band = shop.band AND bought.finest IS NOT DISTINCT FROM shop.finest GROUP BY u
),
bands AS (
    SELECT u, list({{'low': 2.0 ** (band / 2), 'high': 2.0 ** ((band + 1) / 2), 'share': spend / whole}} ORDER BY band)
        AS price_bands
    FROM (SELECT u, band, sum(spend) AS spend, sum(sum(spend)) OVER (PARTITION BY u) AS whole FROM bought GROUP BY u, band)
    GROUP BY u
),
{places},
{devices},
latest AS (
    SELECT u, list({{'ts': ts, 'item_id': item_id, 'kind': kind, 'price': price, 'id': id}} ORDER BY ts DESC, id)[:100]
        AS last_items
    FROM e WHERE item_id IS NOT NULL GROUP BY u
),
owned AS (
    SELECT u, list({{'item_id': item_id, 'n': n, 'last': last}} ORDER BY last DESC, item_id)[:{most}] AS bought
    FROM (SELECT u, item_id, count(*) AS n, max(ts) AS last FROM e
        WHERE item_id IS NOT NULL AND kind IN {buying} GROUP BY u, item_id) GROUP BY u
)
SELECT {features} FROM users JOIN totals USING (u) {others}
"""

_LIKED = """liked_{to} AS (
    SELECT u, list({{'{name}': key, 'share': share, 'n': n, 'spend': spend, 'last': last, 'evidence': evidence}}
        ORDER BY round(share, 9) DESC, key)[:30] AS {to}
    FROM (
        SELECT *, weight / sum(weight) OVER (PARTITION BY u, depth) AS share FROM (
            SELECT u, key, {depth} AS depth, sum(counts) AS n, sum(weight) AS weight, sum(signed) AS spend, max(ts) AS last,
                list({act} ORDER BY weight DESC, id) FILTER (weight > 0)[:3] AS evidence
            FROM ({keyed}) WHERE key IS NOT NULL GROUP BY u, key HAVING n > 0
        )
    ) GROUP BY u
)"""

_HABIT = """{name}s_of AS (
    SELECT u, list({{'{name}': {name}, 'share': n / whole, 'n': n, 'last': last, 'evidence': evidence}}
        ORDER BY n DESC, {name}) AS {name}s
    FROM (SELECT u, {name}, count(*) AS n, max(ts) AS last, list({act} ORDER BY ts DESC, id)[:1] AS evidence, sum(count(*)) OVER (PARTITION BY u) AS whole FROM e
        WHERE {name} IS NOT NULL GROUP BY u, {name}) GROUP BY u
)"""


def duckdb_features(events: pl.DataFrame, items: pl.DataFrame) -> pa.Table:
    """One SQL statement over the same frames, which DuckDB reads where they lie."""
    fields = ", ".join(("u", *ACT, "weight", "signed", "counts"))
    act = "{" + ", ".join(f"'{name}': {name}" for name in ACT) + "}"
    others = (
        "kinds",
        "visits",
        "liked_categories",
        "liked_brands",
        "bands",
        "ranks",
        "places_of",
        "devices_of",
        "latest",
        "owned",
    )
    query = _DUCKDB.format(
        day=float(DAY_US),
        half_life=HALF_LIFE_DAYS,
        gap=SESSION_GAP_MINUTES * 60_000_000,
        as_of=fold_events.AS_OF.isoformat(),
        buying=BUYING,
        most=MAX_BOUGHT,
        weights=" ".join(f"WHEN '{kind}' THEN {weight}" for kind, weight in KIND_WEIGHT.items()),
        hours=", ".join(f"count(*) FILTER (hour = {hour})::DOUBLE" for hour in range(24)),
        weekdays=", ".join(f"count(*) FILTER (weekday = {day})::DOUBLE" for day in range(7)),
        liked_categories=_LIKED.format(
            to="categories",
            act=act,
            name="category",
            depth="len(string_split(key, ' > '))",
            keyed=f"SELECT {fields}, unnest(levels) AS key FROM e",
        ),
        liked_brands=_LIKED.format(
            to="brands", act=act, name="brand", depth="0", keyed=f"SELECT {fields}, brand AS key FROM e"
        ),
        places=_HABIT.format(name="place", act=act),
        devices=_HABIT.format(name="device", act=act),
        features=", ".join(("user_id", *FEATURES)),
        others=" ".join(f"LEFT JOIN {other} USING (u)" for other in others),
    )
    # A third of the memory, beyond which it writes to disk: its own default, four fifths, leaves none for the events.
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 3
    with duckdb.connect(config={"memory_limit": f"{limit >> 20}MiB"}) as connection:
        connection.register("events", events.to_arrow())
        connection.register("items", known_items(items).to_arrow())
        return connection.sql(query).to_arrow_table()
