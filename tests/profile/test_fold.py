"""Folding in any split and order, then merging, then fusing, is folding all at once; and who gets a profile."""

from __future__ import annotations

import datetime as dt
from typing import Any

import facet_world as world
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.profile import statistics
from ray_profile.profile.fold import fold, state_schema
from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.profile.items import Items
from ray_profile.profile.tagging import Tagger
from ray_profile.state import OTHER

Row = dict[str, Any]


@settings(max_examples=15, deadline=None)
@given(st.lists(world.ROW, min_size=1, max_size=30), st.data())
def test_any_split_in_any_order_fuses_to_the_profiles_of_the_whole(rows: list[Row], data: st.DataObject) -> None:
    whole = world.states_of(rows)
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), min_size=1, max_size=3)))
    parts = [world.states_of(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    together = world.merged(parts)
    world.assert_same(together, whole)
    world.assert_same(world.profiles_of(together), world.profiles_of(whole))


@pytest.mark.parametrize("period", ["week", "quarter", "year"])
@settings(max_examples=4, deadline=None)
@given(st.lists(world.ROW, min_size=2, max_size=20))
def test_other_periods_merge_alike(period: str, rows: list[Row]) -> None:
    whole = world.states_of(rows, period=period)
    parts = [world.states_of(rows[1::2], period=period), world.states_of(rows[::2], period=period)]
    world.assert_same(world.merged(parts), whole)
    world.assert_same(world.profiles_of(world.merged(parts), period=period), world.profiles_of(whole, period=period))


@settings(max_examples=8, deadline=None)
@given(st.lists(world.ROW, min_size=1, max_size=20))
def test_nobodys_profile_depends_on_who_else_is_in_the_table(rows: list[Row]) -> None:
    states = world.states_of(rows)
    corpus = statistics.of_states(states)
    as_of = dt.datetime(2024, 6, 1, tzinfo=dt.UTC)
    together = world.profiles_of(states, as_of, statistics=corpus)
    alone = [
        world.profiles_of(each, as_of, statistics=corpus) for _, each in states.group_by("user_id", maintain_order=True)
    ]
    world.assert_same(pl.concat(alone), together)


def test_periods_that_end_after_as_of_are_ignored_and_users_without_another_vanish() -> None:
    rows = [
        {"user_id": "ann", "ts": world.at(1), "kind": "view", "item_id": "g1"},
        {"user_id": "ann", "ts": world.at(35), "kind": "purchase", "item_id": "t1", "price": 5.0},
        {"user_id": "bo", "ts": world.at(35), "kind": "view", "item_id": "t1"},
    ]
    states = world.states_of(rows)
    march, april = (dt.datetime(2024, month, 1, tzinfo=dt.UTC) for month in (3, 4))
    before = states.filter(pl.col("period") < dt.date(2024, 3, 1))
    known = statistics.of_states(before)
    world.assert_same(
        world.profiles_of(states, march, statistics=known),
        world.profiles_of(world.states_of(rows[:1]), march, statistics=known),
    )
    assert world.profiles_of(states, march)["user_id"].to_list() == ["ann"]
    assert world.profiles_of(states, april)["user_id"].to_list() == ["ann", "bo"]
    assert world.profiles_of(states, march - dt.timedelta(microseconds=1)).is_empty()
    assert world.profiles_of(states, world.START).schema == pl.Schema(PROFILE_DTYPES)


def test_the_last_microsecond_of_a_month_belongs_to_it() -> None:
    midnight = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
    rows = [
        {"user_id": "ann", "ts": midnight - dt.timedelta(microseconds=1), "kind": "view", "item_id": "g1", "id": "a"},
        {"user_id": "ann", "ts": midnight, "kind": "view", "item_id": "g1", "id": "b"},
    ]
    assert world.states_of(rows)["period"].to_list() == [dt.date(2024, 2, 1), dt.date(2024, 3, 1)]
    assert world.profiles_of(world.states_of(rows), midnight)["rows"].to_list() == [1]


def test_no_rows_are_no_states_and_no_profiles_with_every_column() -> None:
    none = world.states_of([])
    assert none.is_empty()
    assert none.schema == pl.Schema(state_schema(world.WIDTH).dtypes)
    assert world.profiles_of(none).schema == pl.Schema(PROFILE_DTYPES)
    assert world.profiles_of(none).is_empty()


def test_rows_without_a_vector_column_fold_like_rows_without_vectors() -> None:
    rows = [{"user_id": "ann", "ts": world.at(1), "kind": "review", "item_id": "g1", "text": "fine", "rating": 4.0}]
    bare = fold(world.rows_of(rows).drop("vector"), world.folding())
    world.assert_same(bare, world.states_of(rows))
    assert bare["text_vector"].item() is None


def test_extra_columns_of_stored_states_do_not_matter() -> None:
    states = world.states_of([{"user_id": "ann", "ts": world.at(1), "kind": "view", "item_id": "g1"}])
    stored = states.with_columns(pl.lit(3).alias("bucket"), pl.lit(7).alias("wave_no"))
    world.assert_same(world.merged([stored]), states)
    world.assert_same(world.profiles_of(stored), world.profiles_of(states))


def test_of_more_tags_than_there_is_room_for_every_kept_one_is_explained_whatever_the_order() -> None:
    catalogue = [{"item_id": f"i{n}", "categories": [f"标签{n}"]} for n in range(700)]
    items = Items.of(world.items_table(catalogue, Tagger()), world.WIDTH)
    rows = [
        {
            "user_id": "ann",
            "ts": world.at(1, n),
            "kind": "review" if n % 3 else "view",
            "item_id": f"i{n % 700}",
            "text": f"text {n}" if n % 3 else None,
        }
        for n in range(1400)
    ]
    whole = world.states_of(rows, items=items, tagger=Tagger())
    parts = [world.states_of(rows[part::4], items=items, tagger=Tagger()) for part in (3, 1, 0, 2)]
    world.assert_same(world.merged(parts), whole)
    assert sum(entry["n"] for entry in whole["tag_sums"][0]) == 1400
    named = {entry["key"].split("\x1f")[0] for entry in whole["tag_sums"][0]} - {OTHER.split("\x1f")[0]}
    assert named == {entry["key"].split("\x1f")[0] for entry in whole["tag_evidence"][0]}
    assert len(named) == 256
    (profile,) = world.profiles_of(whole, items=items).to_dicts()
    assert len(profile["tags"]) == 50
    assert all(tag["evidence"] for tag in profile["tags"])
