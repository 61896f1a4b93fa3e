"""Statistics of the whole corpus: they add up over buckets, and those as of a time know nothing later."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from typing import Any

import facet_world as world
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.encode import terms
from ray_profile.profile import statistics
from ray_profile.profile.statistics import DTYPES, combine, of, of_states, total

Row = dict[str, Any]


@settings(max_examples=10, deadline=None)
@given(st.lists(world.ROW, min_size=1, max_size=25))
def test_the_statistics_of_buckets_add_up_to_those_of_the_whole(rows: list[Row]) -> None:
    states = world.states_of(rows)
    buckets = [states.filter(pl.col("user_id") == user) for user in ("李雷", "👩‍🚀", "ann")]
    world.assert_same(combine(of_states(bucket) for bucket in buckets), combine([of_states(states)]))


@settings(max_examples=10, deadline=None)
@given(st.lists(world.ROW, min_size=1, max_size=25))
def test_they_say_what_a_plain_reading_of_the_rows_says(rows: list[Row]) -> None:
    corpus = of_states(world.states_of(rows))
    assert corpus.schema == pl.Schema(DTYPES)
    assert total(corpus, "writers") == len({r["user_id"] for r in rows if r["text"]})
    users: dict[str, set[str]] = {}
    written = [r for r in rows if r["text"]]
    found = terms.keywords(pl.Series([r["text"] for r in written], dtype=pl.String))
    for row, term in found.select("row", "term").rows():
        users.setdefault(term, set()).add(written[row]["user_id"])
    assert dict(of(corpus, "term").rows()) == {term: len(names) for term, names in users.items()}
    weighing = [r for r in rows if r["kind"] != "return"]
    could = [r for r in weighing if r["item_id"] in world.PATHS or r["vector"]]
    assert total(corpus, "taggable") == len(could)
    outdoor = sum(r["item_id"] == "t1" for r in weighing)
    assert dict(of(corpus, "tag").rows()).get("outdoor", 0) == outdoor
    bought = Counter(
        (world.PATHS.get(r["item_id"]) or [""])[-1] for r in rows if r["kind"] == "purchase" and r["price"]
    )
    priced = of(corpus, "price").with_columns(pl.col("key").str.split("\x1f").list.first())
    assert dict(priced.group_by("key").agg(pl.col("value").sum()).rows()) == bought


def test_they_need_no_other_columns_than_they_name() -> None:
    states = world.states_of([{"user_id": "ann", "ts": world.at(1), "kind": "review", "item_id": "g1", "text": "warm"}])
    world.assert_same(of_states(states), of_states(states.select("user_id", "period", *statistics.STATE_COLUMNS)))


def test_statistics_as_of_a_time_are_those_of_the_rows_before_it() -> None:
    rows = [
        {"user_id": "ann", "ts": world.at(1), "kind": "review", "item_id": "g1", "text": "warm tone"},
        {"user_id": "ann", "ts": world.at(50), "kind": "purchase", "item_id": "g1", "price": 10.0},
        {"user_id": "bo", "ts": world.at(50), "kind": "review", "item_id": "t1", "text": "warm tent"},
    ]
    states = world.states_of(rows)
    early = of_states(states.filter(pl.col("period") < dt.date(2024, 3, 1)))
    world.assert_same(early, of_states(world.states_of(rows[:1])))
    assert total(early, "writers") == 1
    assert "tent" not in of(early, "term")["key"]
    assert of(early, "price").is_empty()


def test_a_term_counts_once_for_a_user_whatever_the_number_of_months() -> None:
    rows = [
        {"user_id": user, "ts": world.at(day), "kind": "review", "text": "咖啡很香"}
        for user in ("ann", "李雷")
        for day in (1, 40, 70)
    ]
    assert set(of(of_states(world.states_of(rows)), "term")["value"]) == {2.0}


def test_no_states_and_no_statistic_count_nothing() -> None:
    none = of_states(world.states_of([]))
    assert total(none, "writers") == total(none, "taggable") == 0
    assert of(none, "term").is_empty()
    assert total(pl.DataFrame(schema=DTYPES), "writers") == 0


def test_a_term_that_one_user_has_is_not_kept() -> None:
    part = pl.DataFrame({"statistic": ["term"] * 2, "key": ["rare", "shared"], "value": [1.0, 2.0]}, schema=DTYPES)
    assert combine([part]).rows() == [("term", "shared", 2.0)]


def test_of_too_many_terms_the_most_common_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MAX_TERMS", 2)
    part = pl.DataFrame(
        {"statistic": ["term"] * 3 + ["writers"], "key": ["b", "a", "c", ""], "value": [2.0, 2.0, 3.0, 4.0]},
        schema=DTYPES,
    )
    assert combine([part]).rows() == [("term", "a", 2.0), ("term", "c", 3.0), ("writers", "", 4.0)]
    assert dict(of(combine([part, part]), "term").rows()) == {"a": 4.0, "c": 6.0}
