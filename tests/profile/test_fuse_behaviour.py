"""What the behaviour facet says of a person, against a plain reading of their rows."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import random
from collections import Counter, defaultdict
from time import monotonic
from typing import Any

import facet_world as world
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.profile import behaviour
from ray_profile.profile.fold import fold
from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.profile.items import Items
from ray_profile.profile.tagging import Tagger
from ray_profile.schema import KIND_WEIGHT

Row = dict[str, Any]


def row(kind: str, item: str | None = None, ts: dt.datetime | None = None, **more: Any) -> Row:
    return {"user_id": "ann", "kind": kind, "item_id": item, "ts": ts or world.at(1), **more}


def _pieces(r: Row) -> float:
    return 1.0 if r.get("quantity") is None else float(r["quantity"])


def _spend(r: Row) -> float:
    return (r.get("price") or 0.0) * _pieces(r)


def _weight(r: Row, as_of: dt.datetime) -> float:
    return float(KIND_WEIGHT[r["kind"]] * 0.5 ** ((as_of - r["ts"]).total_seconds() / 86_400 / 90))


def _sessions(rows: list[Row]) -> list[float]:
    """Minutes of each session: visits split where more than thirty minutes pass."""
    times = sorted(r["ts"] for r in rows if not r.get("whole_day"))
    found: list[list[dt.datetime]] = []
    for time in times:
        if found and time - found[-1][-1] <= dt.timedelta(minutes=30):
            found[-1].append(time)
        else:
            found.append([time])
    return [(visit[-1] - visit[0]).total_seconds() / 60 for visit in found]


def _levels(r: Row) -> list[str]:
    path = world.PATHS.get(r["item_id"], [])
    return [" > ".join(path[:depth]) for depth in range(1, min(len(path), 3) + 1)]


def _affinities(rows: list[Row], keys: dict[int, list[str]], as_of: dt.datetime) -> dict[str, Row]:
    out: dict[str, Row] = {}
    for number, r in enumerate(rows):
        for key in keys[number]:
            entry = out.setdefault(key, {"n": 0, "spend": 0.0, "last": r["ts"], "weight": 0.0})
            entry["last"] = max(entry["last"], r["ts"])
            entry["n"] += r["kind"] != "return"
            entry["spend"] += {"purchase": 1, "return": -1}.get(r["kind"], 0) * _spend(r)
            entry["weight"] += _weight(r, as_of)
    out = {key: entry for key, entry in out.items() if entry["n"]}
    depths: dict[int, float] = defaultdict(float)
    for key, entry in out.items():
        depths[key.count(" > ")] += entry["weight"]
    for key, entry in out.items():
        entry["share"] = entry.pop("weight") / depths[key.count(" > ")]
    return out


def _band(price: float) -> int:
    return math.floor(2 * math.log2(price))


def _price_level(mine: list[Row], everybody: list[Row]) -> float | None:
    """Mean over purchases of the middle rank of their band among all purchases of the same finest category."""

    def bought(rows: list[Row]) -> list[tuple[str, int]]:
        priced = [r for r in rows if r["kind"] == "purchase" and r.get("price")]
        return [((world.PATHS.get(r["item_id"]) or [""])[-1], _band(r["price"])) for r in priced]

    shop = bought(everybody)
    ranks = []
    for category, band in bought(mine):
        bands = [other for kind, other in shop if kind == category]
        ranks.append((sum(b < band for b in bands) + sum(b == band for b in bands) / 2) / len(bands))
    return sum(ranks) / len(ranks) if ranks else None


def _bought(mine: list[Row]) -> list[tuple[str, int, dt.datetime]]:
    """What was bought, reviewed or returned: the item, how many such rows, the last of them, the newest first."""
    rows = [r for r in mine if r["kind"] in ("purchase", "review", "return") and r.get("item_id")]
    n = Counter(r["item_id"] for r in rows)
    last = {item: max(r["ts"] for r in rows if r["item_id"] == item) for item in n}
    return [(item, n[item], last[item]) for item in sorted(n, key=lambda item: (-last[item].timestamp(), item))]


def _oracle(mine: list[Row], everybody: list[Row], as_of: dt.datetime) -> Row:
    bought = [r for r in mine if r["kind"] == "purchase"]
    back = [r for r in mine if r["kind"] == "return"]
    orders = {r.get("order_id") or r["ts"] for r in bought}
    visits = _sessions(mine)
    timed = [r for r in mine if not r.get("whole_day")]
    asked = [r for r in mine if r["kind"] == "search" and r.get("text")]
    spent: dict[int, float] = defaultdict(float)
    for r in bought:
        if r.get("price"):
            spent[_band(r["price"])] += _spend(r)
    return {
        "rows": len(mine),
        "first_ts": min(r["ts"] for r in mine),
        "last_ts": max(r["ts"] for r in mine),
        "recency_days": (as_of - max(r["ts"] for r in mine)).total_seconds() / 86_400,
        "kinds": dict(Counter(r["kind"] for r in mine)),
        "frequency": float(len(orders)),
        "monetary": sum(map(_spend, bought)) - sum(map(_spend, back)),
        "returns": {"n": len(back), "value": float(sum(map(_spend, back)))},
        "basket_size": sum(map(_pieces, bought)) / len(orders) if orders else None,
        "sessions": len(visits),
        "session_minutes": sum(visits) / len(visits) if visits else None,
        "hours": [float(sum(r["ts"].hour == hour for r in timed)) for hour in range(24)] if timed else [],
        "weekdays": [float(sum(r["ts"].weekday() == day for r in mine)) for day in range(7)],
        "categories": _affinities(mine, {n: _levels(r) for n, r in enumerate(mine)}, as_of),
        "brands": _affinities(
            mine, {n: [b] if (b := world.BRANDS.get(r["item_id"])) else [] for n, r in enumerate(mine)}, as_of
        ),
        "price_bands": [spent[band] / sum(spent.values()) for band in sorted(spent)],
        "price_rank": _price_level(mine, everybody),
        "places": dict(Counter(r["place"] for r in mine if r.get("place"))),
        "devices": dict(Counter(r["device"] for r in mine if r.get("device"))),
        "searches": dict(Counter(r["text"].lower()[:100] for r in asked)),
        "last_items": sorted((r["ts"] for r in mine if r.get("item_id")), reverse=True)[:100],
        "bought": _bought(mine),
    }


def _read(profile: Row) -> Row:
    """A profile in the oracle's form."""
    by_name = {"kinds": "kind", "places": "place", "devices": "device", "searches": "query"}
    plain = {column: {e[key]: e["n"] for e in profile[column]} for column, key in by_name.items()}
    for column, key in (("categories", "category"), ("brands", "brand")):
        plain[column] = {e[key]: {name: e[name] for name in ("n", "spend", "last", "share")} for e in profile[column]}
    plain["price_bands"] = [e["share"] for e in profile["price_bands"]]
    plain["bought"] = [(e["item_id"], e["n"], e["last"]) for e in profile["bought"]]
    plain["last_items"] = [e["ts"] for e in profile["last_items"]]
    return {**profile, **plain}


HABITS = (("places", "place", "place"), ("devices", "device", "device"), ("searches", "query", "text"))


@settings(max_examples=15, deadline=None)
@given(st.lists(world.ROW, min_size=1, max_size=30))
def test_the_profile_says_what_a_plain_reading_of_the_rows_says(rows: list[Row]) -> None:
    for profile in world.profiles_of(world.states_of(rows)).to_dicts():
        mine = [r for r in rows if r["user_id"] == profile["user_id"]]
        wanted = _oracle(mine, rows, profile["as_of"])
        said = _read(profile)
        found = world.difference({name: said[name] for name in wanted}, wanted)
        assert found is None, found
        ids = set(world.rows_of(mine)["id"])
        for entry in (*profile["categories"], *profile["brands"]):
            weights = [act["weight"] for act in entry["evidence"]]
            assert weights == sorted(weights, reverse=True)
            assert 1 <= len(weights) <= 3
            assert {act["id"] for act in entry["evidence"]} <= ids
            assert all(act["kind"] != "return" for act in entry["evidence"])
        by_id = dict(zip(world.rows_of(mine)["id"], mine, strict=True))
        for column, name, field in HABITS:
            for entry in profile[column]:
                (act,) = entry["evidence"]
                said = by_id[act["id"]]
                assert (said[field] or "").lower()[:100] == entry[name].lower()
                assert act["ts"] == said["ts"] == entry["last"]
                assert 0 < act["weight"] <= 1
        for entries in (profile["categories"], profile["brands"], profile["places"], profile["devices"]):
            assert [e["share"] for e in entries] == pytest.approx(sorted((e["share"] for e in entries), reverse=True))


def test_sessions_split_after_thirty_minutes_and_run_on_over_a_months_end() -> None:
    midnight = 240  # minutes from START to the end of January
    minutes = [midnight - 31 - 30, midnight - 31, midnight - 1, midnight + 29, midnight + 59.0001]
    rows = [row("view", "g1", world.at(0, m)) for m in minutes]
    profile = world.profile_of(rows)
    assert profile["periods"] == 2
    assert profile["sessions"] == 2
    assert profile["session_minutes"] == pytest.approx(45)
    days = world.profile_of([{**r, "whole_day": True} for r in rows])
    assert (days["sessions"], days["session_minutes"], days["hours"]) == (0, None, [])
    assert sum(days["weekdays"]) == 5


def test_an_order_over_a_months_end_is_one_and_two_purchases_at_one_time_are_one_basket() -> None:
    january, february = world.at(0, 239), world.at(0, 241)
    assert world.profile_of([row("purchase", "g1", t, order_id="o") for t in (january, february)])["frequency"] == 1
    same = [row("purchase", item, january, quantity=2.0) for item in ("g1", "t1")]
    assert world.profile_of(same)["basket_size"] == 4
    assert world.profile_of([row("purchase", "g1", t) for t in (january, february)])["frequency"] == 2


def test_two_equal_purchases_stay_two() -> None:
    profile = world.profile_of([row("purchase", "g1", price=10.0, id="same")] * 2)
    assert profile["monetary"] == 20
    assert profile["basket_size"] == 2
    assert profile["kinds"] == [{"kind": "purchase", "n": 2, "quantity": 2.0, "last": world.at(1)}]
    assert len(profile["last_items"]) == 2
    assert profile["brands"][0]["n"] == 2
    assert [act["id"] for act in profile["brands"][0]["evidence"]] == ["same"]


def test_a_return_takes_money_back_and_says_nothing_about_liking() -> None:
    rows = [row("purchase", "g1", price=100.0), row("return", "g1", world.at(3), price=100.0), row("return", "t1")]
    profile = world.profile_of(rows)
    assert profile["monetary"] == 0
    assert profile["returns"] == {"n": 2, "value": 100.0}
    assert [e["category"] for e in profile["categories"]] == ["Music", "Music > Guitars", "Music > Guitars > Electric"]
    assert {e["spend"] for e in profile["categories"]} == {0.0}
    assert {e["n"] for e in profile["categories"]} == {1}
    only = world.profile_of([row("return", "t1", price=5.0)])
    assert (only["monetary"], only["categories"], only["frequency"], only["basket_size"]) == (-5.0, [], 0.0, None)


def test_a_user_who_only_searched_has_a_profile_without_items() -> None:
    rows = [row("search", text="Blue Guitar"), row("search", ts=world.at(2), text="blue guitar"), row("search")]
    profile = world.profile_of(rows)
    (asked,) = profile["searches"]
    assert (asked["query"], asked["n"], asked["last"]) == ("blue guitar", 2, world.at(2))
    assert [(act["id"], act["kind"], act["ts"]) for act in asked["evidence"]] == [
        (world.rows_of(rows)["id"][1], "search", world.at(2))
    ]
    assert profile["last_items"] == profile["categories"] == profile["price_bands"] == []
    assert (profile["frequency"], profile["monetary"], profile["basket_size"]) == (0.0, 0.0, None)
    assert profile["embedding"] is None


def test_no_word_of_a_person_is_taken_for_the_rest_of_a_map() -> None:
    profile = world.profile_of([row("search", text="_other"), row("view", "_other", place="_other")])
    assert [each["query"] for each in profile["searches"]] == ["_other"]
    assert [each["place"] for each in profile["places"]] == ["_other"]


def test_a_row_with_nothing_optional_makes_a_profile_of_every_column() -> None:
    profile = world.profile_of([{"user_id": "🧑‍🎤", "ts": world.at(0), "kind": "view", "whole_day": True}])
    assert set(profile) == set(PROFILE_DTYPES)
    assert profile["user_id"] == "🧑‍🎤"
    assert profile["rows"] == 1
    assert {name for name, value in profile.items() if value is None} == {
        "embedding", "basket_size", "session_minutes", "price_rank", "mean_rating", "sentiment", "text_vector"
    }  # fmt: skip


def test_the_last_hundred_items_are_newest_first_over_all_periods() -> None:
    rows = [row("view", "g1", world.at(0, 30 * n), id=f"v{n:04}") for n in range(3000)]
    last = world.profile_of(rows)["last_items"]
    assert [e["id"] for e in last] == [f"v{n:04}" for n in range(2999, 2899, -1)]
    ties = world.profile_of([row("view", "g1", id=name) for name in "cab"])["last_items"]
    assert [e["id"] for e in ties] == ["a", "b", "c"]


@pytest.mark.parametrize("price", [0.01, 0.5, 1.0, 2.0**0.5, 2.0, 9.99, 1024.0, 2.0**29, 2.0**31, 1e9])
def test_a_price_lies_in_its_band(price: float) -> None:
    (band,) = world.profile_of([row("purchase", "g1", price=price)])["price_bands"]
    assert band["low"] <= price < band["high"]
    assert band["high"] / band["low"] == pytest.approx(2**0.5)
    assert band["share"] == 1
    low, high = behaviour.band_edges(_band(price))
    assert (band["low"], band["high"]) == pytest.approx((low, high))


def test_the_price_rank_tells_cheap_from_dear_within_a_category() -> None:
    rows = [row("purchase", "g1", price=p) | {"user_id": u} for u, p in (("a", 10.0), ("b", 100.0), ("c", 1000.0))]
    rows += [row("purchase", "咖啡1", price=9000.0) | {"user_id": "d"}]
    ranks = world.profiles_of(world.states_of(rows))["price_rank"].to_list()
    assert ranks == pytest.approx([1 / 6, 1 / 2, 5 / 6, 1 / 2])
    assert world.profile_of([row("purchase", "g1", price=0.0)])["price_rank"] is None


def test_what_weighs_the_same_keeps_its_order_however_the_rows_were_split() -> None:
    rows = [row("view", item, world.at(0, 17.3 * n)) for n in range(40) for item in ("g1", "咖啡1")]
    whole = world.profiles_of(world.states_of(rows))
    for seed in range(4):  # on any one split the sums may agree to the last bit by chance
        random.Random(seed).shuffle(rows)
        parts = [world.states_of(rows[a:b]) for a, b in ((0, 23), (23, 47), (47, 80))]
        world.assert_same(world.profiles_of(world.merged(parts)), whole)
    assert [e["brand"] for e in whole["brands"][0]] == ["Fender", "星巴克"]
    assert [e["tag"] for e in whole["tags"][0]] == ["coffee", "guitar", "kitchen", "music"]


def _wide(items: int) -> tuple[Items, list[Row]]:
    """A catalogue in which every item has its own category and brand, and one view of each in one month."""
    table = world.items_table(
        [{"item_id": f"i{n}", "categories": [f"top{n % 7}", f"c{n}"], "brand": f"b{n}"} for n in range(items)],
        Tagger(),
    )
    return Items.of(table, world.WIDTH), [row("view", f"i{n}", world.at(1, n)) for n in range(items)]


def test_beyond_a_maps_room_totals_stay_exact_and_everything_named_keeps_its_evidence() -> None:
    items, rows = _wide(1200)
    whole = world.states_of(rows, items=items, tagger=Tagger())
    for column in ("category_sums", "brand_sums", "item_sums"):
        kept = whole[column][0].to_list()
        assert sum(entry["n"] for entry in kept) == 1200 * (2 if column == "category_sums" else 1)
    halves = [world.states_of(rows[part::3], items=items, tagger=Tagger()) for part in (2, 0, 1)]
    world.assert_same(world.merged(halves), whole)
    profile = world.profiles_of(whole, items=items).to_dicts()[0]
    assert len(profile["categories"]) == len(profile["brands"]) == 30
    for entry in (*profile["categories"], *profile["brands"], *profile["tags"]):
        assert entry["evidence"], entry
    assert profile["brands"][0]["share"] < 0.01, "a share is of all brands, also of those without room"
    assert profile["rows"] == 1200


def test_distinct_orders_are_exact_up_to_the_room_of_a_month_and_estimated_beyond() -> None:
    def frequency(orders: int) -> float:
        bought = [row("purchase", "g1", world.at(1, n), order_id=f"o{n % orders}") for n in range(2 * orders)]
        return float(world.profile_of(bought)["frequency"])

    assert frequency(256) == 256
    assert frequency(2000) == pytest.approx(2000, rel=0.2)  # the standard error of 256 hashes is 6 %


def test_a_brand_named_like_a_path_is_a_brand_among_the_others() -> None:
    table = world.items_table([{"item_id": "a", "brand": "A > B"}, {"item_id": "b", "brand": "C"}])
    rows = [row("view", "a"), row("view", "b")]
    profile = world.profile_of(rows, items=Items.of(table, world.WIDTH))
    assert [(e["brand"], e["share"]) for e in profile["brands"]] == [("A > B", 0.5), ("C", 0.5)]


def test_shares_of_each_depth_sum_to_one() -> None:
    profile = world.profile_of([row("view", "g1"), row("purchase", "g2"), row("cart", "咖啡1"), row("view", "t1")])
    depths: dict[int, float] = defaultdict(float)
    for entry in profile["categories"]:
        depths[entry["category"].count(" > ")] += entry["share"]
    assert dict(depths) == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0})
    assert sum(e["share"] for e in profile["brands"]) == pytest.approx(1)
    for a, b in itertools.pairwise(profile["categories"]):
        assert a["share"] >= b["share"] - 1e-9


def test_a_hundred_thousand_events_of_one_user_fold_in_seconds() -> None:
    one = world.rows_of([row("purchase", "g1", price=10.0)])
    n = 100_000
    numbers = pl.int_range(n, eager=True)
    many = pl.concat([one] * 1000).select(pl.all().repeat_by(n // 1000).explode()).with_columns(
        (pl.lit(world.START) + pl.duration(minutes=numbers)).alias("ts"),
        ("e" + numbers.cast(pl.String)).alias("id"),
        ("i" + (numbers % 5000).cast(pl.String)).alias("item_id"),
    )  # fmt: skip
    begin = monotonic()
    profile = world.profiles_of(fold(many, world.folding())).to_dicts()[0]
    assert monotonic() - begin < 10
    assert profile["rows"] == n
    assert profile["monetary"] == 10.0 * n
    assert len(profile["last_items"]) == 100


def test_what_was_bought_is_known_of_whoever_browses_a_lot() -> None:
    """A month of more items looked at than a map has room for leaves every purchase where it was."""
    looked = [row("view", f"seen-{at}", ts=world.at(1 + at / 100)) for at in range(600)]
    bought = [row("purchase", f"own-{at}", ts=world.at(5 + at / 10)) for at in range(40)]
    profile = world.profile_of([*looked, *bought, row("view", "own-3", ts=world.at(20))])
    assert [each["item_id"] for each in profile["bought"]] == [f"own-{at}" for at in reversed(range(40))]
