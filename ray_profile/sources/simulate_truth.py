"""What was planted in a simulated shop, and the settings that build it: truth, taxonomy, key and `ray_profile.toml`."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from ray_profile.sources.simulate_behaviour import Catalogue, Customers, Flags, Log, Words
from ray_profile.sources.simulate_reviews import Reviews

ZONE = "Asia/Shanghai"


def truth(words: Words, people: Customers, goods: Catalogue, log: Log, reviews: Reviews, first: date) -> pl.DataFrame:
    """One row a raw user id, as far as the files show it: a taste that never led to a row is left out."""
    hour = people.peak.astype(np.int64)
    likes, dislikes = _tastes(words, people, goods, log, reviews)
    facts = pl.DataFrame(
        {
            "user_id": people.ids,
            "language": np.array(["en", "zh"])[people.language],
            "likes": likes,
            "dislikes": dislikes,
            "price_level": people.price_level,
            "favourite_hours": pl.Series(np.stack([hour - 1, hour, hour + 1], axis=1) % 24).cast(pl.List(pl.Int8)),
            "churned": people.churned,
            "churned_since": _left(people, first),
            "events": np.bincount(log.customer[~log.anonymous], minlength=len(people.ids)),
        }
    ).with_row_index("row")
    written = pl.DataFrame({"row": reviews.customer, "sentiment": reviews.joy, "personal": reviews.personal})
    given = pl.col("personal").filter(pl.col("personal") != "").sort()
    per = written.group_by("row").agg(pl.col("sentiment").mean(), pl.len().alias("reviews"), given)
    return (
        facts.join(per.with_columns(pl.col("row").cast(pl.UInt32)), on="row", how="left", maintain_order="left")
        .drop("row")
        .with_columns(pl.col("reviews").fill_null(0), pl.col("personal").fill_null([]))
    )


def _tastes(
    words: Words, people: Customers, goods: Catalogue, log: Log, reviews: Reviews
) -> tuple[pl.Series, pl.Series]:
    """Tags liked (an interest acted on, a theme spoken of) and disliked (an interest reviewed), one list a customer."""
    shape = people.stance.shape
    acted, reviewed = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    acted[log.customer[~log.anonymous], log.interest[~log.anonymous]] = True
    reviewed[reviews.customer, goods.frame["interest"].to_numpy()[reviews.item]] = True
    spoken = np.zeros((shape[0], len(words["themes"])), dtype=np.bool_)
    spoken[reviews.customer[reviews.theme >= 0], reviews.theme[reviews.theme >= 0]] = True
    names = np.array([fact["id"] for fact in words["interests"] + words["themes"]])
    likes = _named(names, np.hstack([(people.stance == 1) & acted, spoken]))
    return likes, _named(names, np.hstack([(people.stance == -1) & reviewed, np.zeros_like(spoken)]))


def _named(names: np.ndarray[Any, np.dtype[np.str_]], chosen: Flags) -> pl.Series:
    """The names where a row of `chosen` (customers, tags) is set, as one list a customer."""
    row, column = np.nonzero(chosen)
    found = pl.DataFrame({"row": row, "name": names[column]}, schema={"row": pl.Int64, "name": pl.String})
    lists = found.group_by("row", maintain_order=True).agg("name")
    every = pl.DataFrame({"row": np.arange(len(chosen))})
    return every.join(lists, on="row", how="left", maintain_order="left")["name"].fill_null([])


def _left(people: Customers, first: date) -> pl.Series:
    """When each churned customer left (UTC), null for the others."""
    midnight = datetime(first.year, first.month, first.day, tzinfo=ZoneInfo(ZONE)).astimezone(UTC)
    when = [midnight + timedelta(days=float(day)) for day in people.leave]
    return pl.select(pl.when(pl.Series(people.churned)).then(pl.Series(when))).to_series()


def write_taxonomy(path: Path, words: Words) -> Path:
    """Every interest and theme as a tag in both languages; interests that are `mapped` also name their categories."""
    blocks = []
    for fact in words["interests"] + words["themes"]:
        lines = {
            "id": fact["id"],
            "name": " / ".join(fact["name"]),
            "description": "\n".join(fact["description"]),
            "examples": fact["examples"],
        }
        if fact.get("mapped"):
            lines["categories"] = [path[-1] for path in fact["category"]]
        blocks.append("[[tags]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in lines.items()))
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


def write_settings(folder: Path, seed: int, encoder: str | None, prefix: str) -> tuple[Path, Path]:
    """`ray_profile.toml` and the pseudonym key it names.

    The key follows from the seed, so that a shop made again has the same pseudonyms: good for invented people only.
    """
    key_file, config = folder / "pseudonym.key", folder / "ray_profile.toml"
    key_file.write_bytes(base64.b64encode(hashlib.sha256(f"simulated shop {seed}".encode()).digest()) + b"\n")
    key_file.chmod(0o600)
    events = {
        "user_id": "customer",
        "item_id": "sku",
        "kind": "action",
        "ts": "time",
        "text": "query",
        "id": "event_id",
    }
    events |= {"order_id": "order", "place": "city"} | {name: name for name in ("quantity", "price", "device")}
    sections: dict[str, dict[str, Any]] = {
        "sources.reviews": {"format": "amazon-2023", "paths": [f"{folder}/reviews-*.jsonl.gz"], "timezone": ZONE},
        "sources.events": {
            "format": "columns",
            "paths": [f"{folder}/events-*.csv"],
            "timezone": ZONE,
            "multiline": False,
        },
        "sources.events.columns": events,
        "sources.events.kinds": {
            "pv": "view",
            "fav": "favourite",
            "cart": "cart",
            "buy": "purchase",
            "search": "search",
        },
        "sources.items": {"format": "amazon-2023-items", "paths": [f"{folder}/items.jsonl"]},
        "encoder": {} if encoder is None else {"model": encoder, "prefix": prefix},
        "taxonomy": {"path": f"{folder}/taxonomy.toml"},
        "privacy": {"key_file": str(key_file)},
        "state": {"buckets": 4},
    }
    text = f"root = {_toml(f'{folder}/root')}\n"
    for name, values in sections.items():
        if values:
            text += f"\n[{name}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    config.write_text(text, encoding="utf-8")
    return config, key_file


def _toml(value: str | bool | int | list[str]) -> str:
    """A string, flag, number or list of strings; JSON writes them as TOML does."""
    return json.dumps(value, ensure_ascii=False)
