"""A peer of `fold.py`: Ray Data's groupby("user_id").map_groups, one Python call a user on NumPy arrays."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Any

import fold_events
import numpy as np
import polars as pl
import ray
from fold_peers import DAY_US, HALF_LIFE_DAYS, SESSION_GAP_MINUTES, known_items

from ray_profile.profile.behaviour import BUYING
from ray_profile.profile.fuse_behaviour import MAX_BOUGHT
from ray_profile.schema import KIND_WEIGHT

AS_OF_US = int(fold_events.AS_OF.timestamp()) * 1_000_000


def ray_features(events: pl.DataFrame, items: pl.DataFrame) -> int:
    """The features of every user but the price rank, which needs all users; gives the number of users."""
    known = ray.put({row[0]: row[1:] for row in known_items(items).iter_rows()})
    blocks = ray.data.from_arrow([part.to_arrow() for part in events.iter_slices(100_000)])
    groups = blocks.groupby("user_id", num_partitions=2 * (os.cpu_count() or 1))
    done = groups.map_groups(_features, fn_args=(known,), batch_format="numpy", num_cpus=1)
    return sum(table.num_rows for table in done.iter_batches(batch_size=None, batch_format="pyarrow"))


def _features(rows: dict[str, np.ndarray], known: Any) -> dict[str, list[Any]]:
    catalogue = _catalogue(known)
    ts = rows["ts"].astype("datetime64[us]").astype(np.int64)
    kind, quantity = rows["kind"], np.nan_to_num(rows["quantity"].astype(np.float64), nan=1.0)
    spend = rows["price"] * quantity
    bought, back = kind == "purchase", kind == "return"
    weight = np.array([KIND_WEIGHT[each] for each in kind]) * 0.5 ** ((AS_OF_US - ts) / DAY_US / HALF_LIFE_DAYS)
    signed = spend * bought - spend * back
    order = np.sort(ts)
    pause = np.diff(order)
    breaks = pause > SESSION_GAP_MINUTES * 60_000_000
    orders = len({basket or at for basket, at in zip(rows["order_id"][bought], ts[bought], strict=True)})
    bands = np.floor(np.log2(rows["price"][bought]) * 2).astype(int)
    spent = Counter[int]()
    for band, paid in zip(bands, spend[bought], strict=True):
        spent[band] += paid
    of_item = [catalogue.get(item, ([], None, None)) for item in rows["item_id"]]
    latest = np.lexsort((rows["id"], -ts))[:100]
    feature: dict[str, Any] = {
        "user_id": rows["user_id"][0],
        "rows": len(ts),
        "first_ts": order[0],
        "last_ts": order[-1],
        "recency_days": (AS_OF_US - order[-1]) / DAY_US,
        "kinds": _counted(kind, ts),
        "frequency": float(orders),
        "monetary": signed.sum(),
        "returns": {"n": int(back.sum()), "value": spend[back].sum()},
        "basket_size": quantity[bought].sum() / orders if orders else None,
        "sessions": int(breaks.sum()) + 1,
        "session_minutes": pause[~breaks].sum() / 6e7 / (breaks.sum() + 1),
        "hours": np.bincount(rows["hour"], minlength=24),
        "weekdays": np.bincount(rows["weekday"], minlength=7),
        "categories": _liked([levels for levels, _, _ in of_item], weight, signed, back, ts),
        "brands": _liked([[brand] if brand else [] for _, brand, _ in of_item], weight, signed, back, ts),
        "price_bands": [{"low": 2 ** (b / 2), "share": p / sum(spent.values())} for b, p in sorted(spent.items())],
        "places": _counted(rows["place"], ts),
        "devices": _counted(rows["device"], ts),
        "last_items": [{name: rows[name][at] for name in ("ts", "item_id", "kind", "price", "id")} for at in latest],
        "bought": _bought(rows["item_id"], kind, ts),
    }
    return {name: [value] for name, value in feature.items()}


@lru_cache(maxsize=1)
def _catalogue(known: Any) -> dict[str, Any]:
    """Once a worker: it takes as long to read as a hundred groups."""
    return ray.get(known)


def _counted(values: np.ndarray, ts: np.ndarray) -> list[dict[str, Any]]:
    latest: dict[str, int] = {}
    for value, at in zip(values, ts, strict=True):
        latest[value] = max(latest.get(value, at), at)
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"name": name, "share": n / len(values), "n": n, "last": latest[name]} for name, n in counts]


def _bought(items: np.ndarray, kind: np.ndarray, ts: np.ndarray) -> list[dict[str, Any]]:
    counts, latest = Counter[str](), dict[str, int]()
    for item, each, at in zip(items, kind, ts, strict=True):
        if item is not None and each in BUYING:
            counts[item] += 1
            latest[item] = max(latest.get(item, at), at)
    owned = sorted(counts, key=lambda item: (-latest[item], item))
    return [{"item_id": item, "n": counts[item], "last": latest[item]} for item in owned[:MAX_BOUGHT]]


def _liked(
    keys: list[list[str]], weight: np.ndarray, signed: np.ndarray, back: np.ndarray, ts: np.ndarray
) -> list[dict[str, Any]]:
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0])
    for mine, w, s, returned, at in zip(keys, weight, signed, back, ts, strict=True):
        for key in mine:
            entry = sums[key]
            entry[0] += not returned
            entry[1] += w
            entry[2] += s
            entry[3] = max(entry[3], at)
    whole: Counter[int] = Counter()
    for key, entry in sums.items():
        whole[key.count(" > ")] += entry[1]  # type: ignore[assignment]
    shares = ((entry[1] / (whole[key.count(" > ")] or 1.0), key, entry) for key, entry in sums.items() if entry[0])
    best = sorted(shares, key=lambda each: (-each[0], each[1]))[:30]
    return [{"key": k, "share": share, "n": e[0], "spend": e[2], "last": e[3]} for share, k, e in best]
