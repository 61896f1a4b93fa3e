"""Corpora of any size for the benchmarks: real review texts spread over made-up users, and made-up events.

Times run over `MONTHS` months in the order of the files, as a shop's daily files do, so that the last files of a corpus
are its newest. The same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

START_US = 1_735_689_600_000_000  # 2025-01-01 UTC
MONTHS = 6
SPAN_US = 181 * 86_400_000_000  # up to 2025-07-01
ITEMS = 20_000
KINDS = np.array(["view", "favourite", "cart", "purchase"])
KIND_SHARE = (0.80, 0.06, 0.08, 0.06)
PLACES = np.array(["London", "Leeds", "Paris", "Lyon", "Berlin", "Wien", "上海", "成都"])
DEVICES = np.array(["web", "ios", "android"])

EVENTS_SOURCE: Mapping[str, Any] = {
    "format": "columns",
    "columns": {
        name: name
        for name in (
            *("user_id", "item_id", "ts", "kind", "price", "quantity", "order_id", "place", "device"),
            *("categories", "brand"),
        )
    },
}
REVIEWS_SOURCE: Mapping[str, Any] = {
    "format": "columns",
    "kind": "review",
    "columns": {name: name for name in ("user_id", "item_id", "ts", "rating", "text", "categories")},
}


def zipf(rng: np.random.Generator, size: int, values: int, exponent: float = 1.1) -> np.ndarray:
    """`size` draws (int64) from 0..values-1, value k with probability proportional to (k + 1) ** -exponent."""
    weight = np.cumsum(np.arange(1, values + 1, dtype=np.float64) ** -exponent)
    return np.searchsorted(weight, rng.random(size) * weight[-1], side="right")


def write_events(folder: Path, rows: int, users: int, files: int, seed: int = 0, hot_share: float = 0.0) -> list[Path]:
    """Events as Parquet files of equal size, newest last; `hot_share` of them are one user's."""
    rng = np.random.default_rng(seed)
    who = zipf(rng, rows, users)
    if hot_share:
        who[rng.random(rows) < hot_share] = 0
    item = zipf(rng, rows, ITEMS)
    kind = rng.choice(4, rows, p=KIND_SHARE)
    price = np.round(np.exp(np.random.default_rng(7).normal(3, 1, ITEMS)), 2)[item]
    frame = pl.DataFrame(
        {
            "user_id": _named("u", who),
            "item_id": _named("i", item),
            "ts": _times(rng, rows),
            "kind": KINDS[kind],
            "price": price,
            "quantity": np.where(kind == 3, rng.integers(1, 4, rows), 1).astype(np.float64),
            "order_id": _named("o", np.arange(rows)).set(pl.Series(kind != 3), None),
            "place": PLACES[who % len(PLACES)],
            "device": DEVICES[rng.choice(3, rows, p=(0.3, 0.3, 0.4))],
            "categories": _named("Department ", item % 12) + " > " + _named("Shelf ", item % 120),
            "brand": _named("Brand ", item % 700),
        }
    )
    return _in_files(folder, frame, files)


def write_reviews(folder: Path, data: Path, rows: int, users: int, files: int, seed: int = 0) -> list[Path]:
    """Distinct real reviews (at most 33,738) as Parquet files of equal size; each user has written about as many."""
    rng = np.random.default_rng(seed)
    texts = review_texts(data).sample(rows, seed=seed, shuffle=True)
    item = zipf(rng, rows, 2_000)
    frame = texts.with_columns(
        _named("u", rng.integers(0, users, rows)).alias("user_id"),
        _named("i", item).alias("item_id"),
        pl.Series("ts", _times(rng, rows)),
        (_named("Department ", item % 6) + " > " + _named("Shelf ", item % 30)).alias("categories"),
    )
    return _in_files(folder, frame, files)


def review_texts(data: Path) -> pl.DataFrame:
    """[text, rating]: the distinct texts of amazon_musical and womens_clothing."""
    musical = pl.read_parquet(data / "amazon_musical" / "reviews.parquet")
    clothing = pl.read_parquet(data / "womens_clothing" / "reviews.parquet")
    both = pl.concat(
        [
            musical.select(pl.col("reviewText").alias("text"), pl.col("overall").cast(pl.Float64).alias("rating")),
            clothing.select(pl.col("Review Text").alias("text"), pl.col("Rating").cast(pl.Float64).alias("rating")),
        ]
    )
    return both.filter(pl.col("text").str.len_chars() > 0).unique("text", keep="first", maintain_order=True)


def _named(prefix: str, numbers: np.ndarray) -> pl.Series:
    return pl.select(pl.lit(prefix) + pl.Series(numbers).cast(pl.String)).to_series()


def _times(rng: np.random.Generator, rows: int) -> pl.Series:
    seconds = np.sort(rng.integers(0, SPAN_US // 1_000_000, rows))
    return pl.Series(START_US + seconds * 1_000_000).cast(pl.Datetime("us", "UTC"))


def _in_files(folder: Path, frame: pl.DataFrame, files: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, frame.height, files + 1).astype(int)
    paths = [folder / f"part-{at:05d}.parquet" for at in range(files)]
    for path, start, end in zip(paths, edges[:-1], edges[1:], strict=True):
        frame.slice(start, end - start).write_parquet(path)
    return paths
