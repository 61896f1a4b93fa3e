"""A believable shop on disk, with what was planted in it: the data of `ray-profile demo`, and of many tests.

The same arguments give the same bytes (only `ray_profile.toml` names the folder it lies in). The shop is honest: no
column and no text names what a customer likes; a taste shows in what they look at, buy, return and write.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ray_profile.errors import ConfigError
from ray_profile.sources import simulate_behaviour as behaviour
from ray_profile.sources.simulate_behaviour import PURCHASE, SEARCH, Catalogue, Customers, Log, Words
from ray_profile.sources.simulate_reviews import Reviews, write
from ray_profile.sources.simulate_truth import ZONE, truth, write_settings, write_taxonomy

END = date(2026, 1, 1)  # first day after the log: fixed, so that a shop does not depend on the day it is made
KIND_WORDS = ("pv", "fav", "cart", "buy", "search")
BROKEN_SHARE = 0.004  # of a month's rows; as many reviews again are duplicates


@dataclass(frozen=True)
class Shop:
    """Where everything lies, and how many rows the files hold (`broken` and `duplicates` are among them)."""

    folder: Path
    config: Path
    taxonomy: Path
    key_file: Path
    truth: Path
    items: Path
    reviews: tuple[Path, ...]
    events: tuple[Path, ...]
    review_rows: int
    event_rows: int
    anonymous: int  # rows of events without a customer, broken ones included
    broken: int
    duplicates: int


def simulate(
    folder: Path, customers: int = 600, months: int = 12, seed: int = 0, encoder: str | None = None, prefix: str = ""
) -> Shop:
    """Write a shop of so many customers and months (the last is December 2025) into `folder`, made if absent.

    `truth.parquet` has one row a raw user id: `likes` and `dislikes` (tags that the data shows at least once), the
    language, `price_level` (0 cheapest to 1 dearest), `favourite_hours` (local), `churned` with `churned_since`,
    `sentiment` (mean of -1 to 1 over the reviews, null without one), how many `reviews` and `events`, and the
    `personal` data given away in texts. `encoder` and `prefix` go into `ray_profile.toml`; without them the default
    encoder is used.

    Raises `ConfigError` for fewer than one customer or month, and for a folder that is not empty.
    """
    if customers < 1 or months < 1:
        raise ConfigError(f"a shop of {customers} customers and {months} months is empty; give at least 1 of each")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; a simulated shop needs a folder of its own")
    rng, words = np.random.default_rng(seed), behaviour.words()
    first = date((END.year * 12 - months) // 12, (END.year * 12 - months) % 12 + 1, 1)
    days = (END - first).days
    goods = behaviour.catalogue(rng, words)
    people = behaviour.customers(rng, words, customers, days)
    log = behaviour.browse(rng, people, goods, days, first.weekday())
    bought = behaviour.purchases(rng, people, log, days)
    joy = behaviour.satisfaction(rng, people, goods, bought)
    log = log.plus(bought).plus(behaviour.returns(rng, people, bought, joy, days))
    reviews = write(rng, words, people, goods, bought, joy, days)
    events = _events(rng, words, people, goods, log, first)
    event_files, broken_events = _write_events(rng, folder, events)
    review_files, broken, duplicates = _write_reviews(rng, folder, _review_rows(rng, people, goods, reviews, first))
    truth(words, people, goods, log, reviews, first).write_parquet(folder / "truth.parquet")
    config, key_file = write_settings(folder, seed, encoder, prefix)
    return Shop(
        folder,
        config,
        taxonomy=write_taxonomy(folder / "taxonomy.toml", words),
        key_file=key_file,
        truth=folder / "truth.parquet",
        items=_write_items(folder / "items.jsonl", goods),
        reviews=review_files,
        events=event_files,
        review_rows=len(reviews.stars) + duplicates,
        event_rows=events.height,
        anonymous=events["customer"].null_count(),
        broken=broken_events + broken,
        duplicates=duplicates,
    )


def _local(seconds: pl.Expr, first: date) -> pl.Expr:
    """Seconds since the log's first local midnight as a naive local time."""
    return pl.lit(datetime(first.year, first.month, first.day)) + pl.duration(seconds=seconds.cast(pl.Int64))


def _write_items(path: Path, goods: Catalogue) -> Path:
    """Field names of the Amazon Reviews 2023 catalogue."""
    lines = [
        {
            "parent_asin": row["item_id"],
            "title": row["title"],
            "main_category": row["category"][0],
            "categories": row["category"],
            "store": row["brand"],
            "price": row["price"],
            "details": {("Feature", "特点")[row["language"]]: row["attributes"][0]},
        }
        for row in goods.frame.iter_rows(named=True)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def _queries(rng: np.random.Generator, words: Words, people: Customers, log: Log) -> pl.Series:
    """What is typed into the search box: a phrase of the interest in the customer's language; null elsewhere."""
    phrases = [fact["searches"][language] for language in (0, 1) for fact in words["interests"]]
    each = len(phrases[0])
    bank = pl.Series([text for group in phrases for text in group])
    group = people.language[log.customer] * len(words["interests"]) + log.interest
    picked = bank.gather(group * each + rng.integers(0, each, len(group)))
    return picked.zip_with(
        pl.Series(log.kind == SEARCH), pl.Series([None], dtype=pl.String).new_from_index(0, len(group))
    )


def _events(
    rng: np.random.Generator, words: Words, people: Customers, goods: Catalogue, log: Log, first: date
) -> pl.DataFrame:
    """All rows of the log in order of time, as the shop exports them: a return is a purchase of a negative quantity."""
    places = pl.Series([name for names in words["generic"]["places"] for name in names])
    place = people.language * len(words["generic"]["places"][0]) + people.place
    has_item, is_buy = pl.Series(log.item >= 0), pl.Series(log.kind == PURCHASE)
    clock = _local(pl.col("seconds"), first)
    frame = pl.DataFrame(
        {
            "seconds": log.seconds,
            "customer": pl.Series(people.ids).gather(log.customer),
            "action": pl.Series(KIND_WORDS).gather(log.kind),
            "sku": goods.frame["item_id"].gather(log.item.clip(0)),
            "query": _queries(rng, words, people, log),
            "quantity": log.quantity,
            "price": log.price,
            "order": log.session,
            "device": pl.Series(["phone", "desktop"]).gather(log.device),
            "city": places.gather(place[log.customer]),
        }
    ).with_columns(
        customer=pl.when(pl.Series(~log.anonymous)).then("customer"),
        sku=pl.when(has_item).then("sku"),
        quantity=pl.when(is_buy).then("quantity"),
        price=pl.when(has_item).then("price"),
        order=pl.when(is_buy).then(pl.format("o{}", "order")),
    )
    return frame.sort("seconds", maintain_order=True).select(
        pl.format("e{}", pl.int_range(pl.len())).alias("event_id"),
        clock.dt.to_string("%Y-%m").alias("month"),
        clock.dt.to_string("%F %T").alias("time"),
        pl.exclude("seconds"),
    )


def _write_events(rng: np.random.Generator, folder: Path, events: pl.DataFrame) -> tuple[tuple[Path, ...], int]:
    """One CSV a month, by local time; and how many rows are broken."""
    files, broken = [], 0
    for month, part in _months(events):
        spoilt, bad = _break_events(rng, part)
        broken += bad
        files.append(folder / f"events-{month}.csv")
        spoilt.write_csv(files[-1])
    return tuple(files), broken


def _months(frame: pl.DataFrame) -> Iterable[tuple[str, pl.DataFrame]]:
    parts = frame.partition_by("month", maintain_order=True)
    return [(part["month"][0], part.drop("month")) for part in parts]


def _break_events(rng: np.random.Generator, part: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Spoil a few rows of a month: an unreadable time, an unknown action, a price that is no number."""
    bad = rng.permutation(part.height)[: int(part.height * BROKEN_SHARE)]
    flaw = np.full(part.height, -1)
    flaw[bad] = np.arange(len(bad)) % 3
    spoilt = pl.Series(flaw)
    return part.with_columns(
        time=pl.when(spoilt == 0).then(pl.lit("yesterday")).otherwise("time"),
        action=pl.when(spoilt == 1).then(pl.lit("hover")).otherwise("action"),
        price=pl.when(spoilt == 2).then(pl.lit("n/a")).otherwise(pl.col("price").cast(pl.String)),
    ), len(bad)


def _review_rows(
    rng: np.random.Generator, people: Customers, goods: Catalogue, reviews: Reviews, first: date
) -> pl.DataFrame:
    """Reviews in order of time with the field names of Amazon Reviews 2023."""
    clock = _local(pl.col("seconds"), first)
    frame = pl.DataFrame(
        {
            "rating": reviews.stars.astype(np.float64),
            "title": reviews.title,
            "text": reviews.text,
            "parent_asin": goods.frame["item_id"].gather(reviews.item),
            "user_id": pl.Series(people.ids).gather(reviews.customer),
            "seconds": reviews.seconds,
            "helpful_vote": rng.geometric(0.6, len(reviews.stars)) - 1,
            "verified_purchase": np.ones(len(reviews.stars), dtype=np.bool_),
        }
    )
    return (
        frame.sort("seconds", maintain_order=True)
        .with_columns(clock.dt.to_string("%Y-%m").alias("month"))
        .with_columns(clock.dt.replace_time_zone(ZONE).dt.epoch("ms").alias("timestamp"))
        .drop("seconds")
    )


def _write_reviews(rng: np.random.Generator, folder: Path, rows: pl.DataFrame) -> tuple[tuple[Path, ...], int, int]:
    """One gzip of JSON lines a month; how many lines are broken, and how many are duplicates."""
    files, broken, duplicates = [], 0, 0
    for month, part in _months(rows):
        lines = part.select(pl.struct(pl.all()).struct.json_encode().alias("line"))["line"].to_list()
        bad = int(len(lines) * BROKEN_SHARE)
        chosen = rng.permutation(len(lines))[: 2 * bad].tolist()
        for number, row in enumerate(chosen[:bad]):
            lines[row] = _break_line(lines[row], broken + number)
        for row in chosen[bad:]:
            lines[row] += "\n" + lines[row]
        broken, duplicates = broken + bad, duplicates + bad
        files.append(folder / f"reviews-{month}.jsonl.gz")
        _gzip(files[-1], lines)
    return tuple(files), broken, duplicates


def _break_line(line: str, number: int) -> str:
    """A line cut short, a rating out of range or a missing time, in turn."""
    if number % 3 == 0:
        return line[: len(line) // 2]
    row: dict[str, Any] = json.loads(line)
    row |= {"rating": 9.0} if number % 3 == 1 else {"timestamp": None}
    return json.dumps(row, ensure_ascii=False)


def _gzip(path: Path, lines: Iterable[str]) -> None:
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
        packed.write("".join(line + "\n" for line in lines).encode())
