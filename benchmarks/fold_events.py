"""Generated events for `fold.py`: visits of users to a shop, as a log keeps them, ordered by time."""

from __future__ import annotations

import datetime as dt

import numpy as np
import polars as pl
from corpus import zipf

from ray_profile.pipelines.tables import frame_of
from ray_profile.profile.items import ITEM_DTYPES, Items
from ray_profile.schema import ROWS
from ray_profile.segments import starts

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
AS_OF = dt.datetime(2024, 7, 1, tzinfo=dt.UTC)
DAYS = (AS_OF - START).days
EVENTS_PER_VISIT = 3.0
ITEMS, BRANDS, PLACES = 50_000, 2_000, 200
KINDS = {"view": 0.72, "favourite": 0.05, "cart": 0.12, "purchase": 0.10, "return": 0.01}
DEVICES = ("phone", "desktop", "tablet", "app")


def catalogue(width: int, rng: np.random.Generator) -> Items:
    """50,000 items in a tree of 12 x 8 x 6 categories, of 2,000 brands, tagged by their finest category."""
    top, middle, fine = (rng.integers(0, n, ITEMS) for n in (12, 8, 6))
    paths = [
        [f"Department {a}", f"Group {a}-{b}", f"Shelf {a}-{b}-{c}"] for a, b, c in zip(top, middle, fine, strict=True)
    ]
    table = pl.DataFrame(
        {
            "item_id": [f"B{n:09d}" for n in range(ITEMS)],
            "title": [f"Item {n} of {path[-1]}" for n, path in enumerate(paths)],
            "categories": paths,
            "brand": [f"Brand {n}" for n in zipf(rng, ITEMS, BRANDS, 1.0)],
            "price": np.exp(rng.normal(3.2, 1.0, ITEMS)).round(2),
            "tags": [[{"tag": path[-1], "source": "catalogue", "score": 1.0}] for path in paths],
        },
        schema_overrides={"tags": ITEM_DTYPES["tags"]},
    )
    vectors = rng.normal(size=(ITEMS, width)).astype("<f2")
    absent = {
        "attributes": pl.lit(None),
        "implicit": pl.lit(False),
        "vector": pl.Series([row.tobytes() for row in vectors]),
    }
    table = table.with_columns(**absent).select(*ITEM_DTYPES).cast(pl.Schema(ITEM_DTYPES))
    return Items.of(table, width)


def events(
    rows: int, users: int, items: Items, rng: np.random.Generator, exponent: float = 1.1, heavy: float = 0.0
) -> pl.DataFrame:
    """`rows` events (schema.ROWS) of half a year. Every user comes once; further visits go to users by Zipf's law.

    With `heavy`, one user makes that share of all visits.
    """
    sizes = rng.geometric(1 / EVENTS_PER_VISIT, int(rows / EVENTS_PER_VISIT * 1.05) + 100)
    visit = np.repeat(np.arange(len(sizes)), sizes)[:rows]
    visits = int(visit[-1]) + 1
    once = rng.permutation(users)[:visits]
    who = np.r_[once, zipf(rng, visits - len(once), users, exponent)]
    who[rng.random(visits) < heavy] = 0
    begin = rng.integers(0, DAYS, visits) * 86_400 + (rng.normal(15, 4, visits) % 24 * 3_600).astype(np.int64)
    gap = rng.exponential(150, rows).astype(np.int64) + 1
    at = np.cumsum(gap) - np.repeat(np.cumsum(gap)[starts(visit)], np.bincount(visit))
    seconds = np.minimum(begin[visit] + at, DAYS * 86_400 - 1)
    order = np.argsort(seconds, kind="stable")
    visit, seconds = visit[order], seconds[order]
    user = who[visit]
    kind = rng.choice(len(KINDS), rows, p=list(KINDS.values()))
    item = zipf(rng, rows, ITEMS, 0.9)
    away = rng.random(rows) < 0.1
    place = np.where(away, zipf(rng, rows, PLACES, 1.0), user * 7919 % PLACES)
    bought = kind == 3
    table = pl.DataFrame(
        {
            "id": _hex(rng, rows),
            "user_id": _hex(rng, users).gather(user),
            "item_id": items.frame["item_id"].gather(item),
            "ts": pl.Series(seconds * 1_000_000 + int(START.timestamp()) * 1_000_000).cast(pl.Datetime("us", "UTC")),
            "kind": pl.Series(list(KINDS)).gather(kind),
            "quantity": pl.Series(rng.integers(1, 4, rows).astype(np.float64)).set(pl.Series(~bought), None),
            "price": items.frame["price"].gather(item),
            "order_id": _hex(rng, visits).gather(visit).set(pl.Series(~bought), None),
            "place": pl.Series([f"City {n}" for n in range(PLACES)]).gather(place),
            "device": pl.Series(DEVICES).gather((user + (rng.random(rows) < 0.2)) % len(DEVICES)),
        }
    )
    table = table.with_columns(
        pl.col("ts").dt.hour().alias("hour"),
        (pl.col("ts").dt.weekday() - 1).alias("weekday"),
        pl.lit(None, pl.String).alias("text"),
        pl.lit(None, pl.Float32).alias("rating"),
    )
    return table.select(ROWS.names).cast(frame_of(ROWS.empty_table()).schema).rechunk()


def _hex(rng: np.random.Generator, n: int) -> pl.Series:
    """Random ids of 32 hexadecimal digits, as pseudonyms and hashes are."""
    raw = np.frombuffer(rng.bytes(16 * n), dtype="S16")
    return pl.Series(raw.tolist(), dtype=pl.Binary).bin.encode("hex")
