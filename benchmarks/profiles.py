"""Profiles of any number, as a build writes them: folded and fused from made-up events and real reviews.

Only the encoder is left out: vectors are random and of unit length, which no Parquet encoding can shrink either. A
profile is folded and fused for one of at most `TEMPLATES` users; further users get their own id and their own vectors.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from corpus import DEVICES, ITEMS, KIND_SHARE, KINDS, PLACES, START_US, review_texts, zipf

from ray_profile.profile import statistics
from ray_profile.profile.facet import FoldContext, FuseContext
from ray_profile.profile.fold import fold, state_schema
from ray_profile.profile.fuse import fuse
from ray_profile.profile.items import ITEM_DTYPES, TAG_STRUCT, Items

WIDTH = 384
TEMPLATES = 5_000
EVENTS_PER_USER, REVIEWS_PER_USER = 12, 1.5
SPAN_SECONDS = 181 * 86_400
AS_OF = datetime(2025, 7, 1, tzinfo=UTC)


def make_profiles(users: int, data: Path, seed: int = 0) -> pl.DataFrame:
    """`users` rows of fuse.PROFILE_DTYPES, sorted by user id (64 hex digits, as pseudonyms are)."""
    rng = np.random.default_rng(seed)
    templates = _fused(rng, min(users, TEMPLATES), data)
    copies = templates[np.arange(users) % templates.height]
    names = pl.Series("user_id", [hashlib.sha256(f"{seed}-{at}".encode()).hexdigest() for at in range(users)])
    vectors = [_listed(name, _unit(rng, users)).set(copies[name].is_null(), None) for name in VECTORS]
    return copies.with_columns(names, *vectors).sort("user_id")


VECTORS = ("embedding", "text_vector")


def _fused(rng: np.random.Generator, users: int, data: Path) -> pl.DataFrame:
    items = _items(rng)
    events = fold(_events(rng, users * EVENTS_PER_USER, users), FoldContext(items, WIDTH))
    reviews = fold(_reviews(rng, int(users * REVIEWS_PER_USER), users, data), FoldContext(items, WIDTH))
    states = state_schema(WIDTH).merge(pl.concat([events, reviews]))
    corpus = statistics.combine([statistics.of_states(states)])
    return fuse(states, FuseContext(items, AS_OF, corpus, 1, "0123456789abcdef", WIDTH))


def _items(rng: np.random.Generator) -> Items:
    number = pl.Series(np.arange(ITEMS))
    aisle, shelf = "Department " + (number % 12).cast(pl.String), "Shelf " + (number % 120).cast(pl.String)
    tag = pl.struct(shelf.alias("tag"), pl.lit("catalogue").alias("source"), pl.lit(1.0, pl.Float32).alias("score"))
    raw = [row.tobytes() for row in _unit(rng, ITEMS).astype("<f2")]
    frame = pl.select(
        ("i" + number.cast(pl.String)).alias("item_id"),
        pl.lit(None, pl.String).alias("title"),
        pl.concat_list(aisle, shelf).alias("categories"),
        ("Brand " + (number % 700).cast(pl.String)).alias("brand"),
        pl.Series(np.round(np.exp(rng.normal(3, 1, ITEMS)), 2)).alias("price"),
        pl.lit(None, pl.List(pl.String)).alias("attributes"),
        pl.concat_list(tag).cast(pl.List(TAG_STRUCT)).alias("tags"),
        pl.Series(raw, dtype=pl.Binary).alias("vector"),
        pl.lit(False).alias("implicit"),
    )
    return Items.of(frame.select(*ITEM_DTYPES), WIDTH)


def _rows(rng: np.random.Generator, who: np.ndarray, kind: np.ndarray, prefix: str) -> pl.DataFrame:
    """The columns of schema.ROWS that every row has, and nulls in the others."""
    rows = len(who)
    seconds = rng.integers(0, SPAN_SECONDS, rows)
    item = zipf(rng, rows, ITEMS)
    price = np.round(np.exp(np.random.default_rng(7).normal(3, 1, ITEMS)), 2)[item]
    return pl.DataFrame(
        {
            "id": [hashlib.sha256(f"{prefix}{at}".encode()).hexdigest()[:32] for at in range(rows)],
            "user_id": "u" + pl.Series(who).cast(pl.String),
            "item_id": "i" + pl.Series(item).cast(pl.String),
            "ts": pl.Series(START_US + seconds * 1_000_000).cast(pl.Datetime("us", "UTC")),
            "hour": pl.Series(seconds // 3600 % 24, dtype=pl.Int8),
            "weekday": pl.Series((seconds // 86_400 + 2) % 7, dtype=pl.Int8),  # 2025-01-01 was a Wednesday
            "kind": pl.Series(kind),
            "price": price,
            "place": PLACES[who % len(PLACES)],
            "device": DEVICES[who % len(DEVICES)],
        }
    )


def _events(rng: np.random.Generator, rows: int, users: int) -> pl.DataFrame:
    kind = KINDS[rng.choice(len(KINDS), rows, p=KIND_SHARE)]
    frame = _rows(rng, rng.integers(0, users, rows), kind, "event ")
    order = pl.when(pl.col("kind") == "purchase").then("order " + pl.col("id"))
    return frame.with_columns(
        pl.lit(None, pl.String).alias("text"),
        pl.lit(None, pl.Float32).alias("rating"),
        pl.lit(1.0).alias("quantity"),
        order.alias("order_id"),
    )


def _reviews(rng: np.random.Generator, rows: int, users: int, data: Path) -> pl.DataFrame:
    texts = review_texts(data).sample(rows, with_replacement=True, seed=1)
    frame = _rows(rng, rng.integers(0, users, rows), np.full(rows, "review"), "review ")
    return frame.with_columns(
        texts["text"],
        texts["rating"].cast(pl.Float32),
        pl.lit(None, pl.Float64).alias("quantity"),
        pl.lit(None, pl.String).alias("order_id"),
        pl.Series("vector", _unit(rng, rows).astype(np.float16), dtype=pl.Array(pl.Float16, WIDTH)),
    )


def _unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Random vectors (rows, WIDTH) float32 of length 1."""
    vectors = rng.standard_normal((rows, WIDTH), dtype=np.float32)
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _listed(name: str, vectors: np.ndarray) -> pl.Series:
    return pl.Series(name, vectors, dtype=pl.Array(pl.Float32, WIDTH)).cast(pl.List(pl.Float32))
