"""A state is a commutative monoid: any split of the rows, in any order, gives the same state."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
from collections import defaultdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.state import (
    OTHER,
    Intervals,
    LastN,
    MapSum,
    Scalar,
    StateSchema,
    TopK,
    VectorSum,
    distinct_keys,
    group,
    join_intervals,
)

START = dt.datetime(2024, 1, 31, 20, tzinfo=dt.UTC)

MAP = MapSum("map", {"weight": ("sum", pl.Float64()), "n": ("sum", pl.Int64()), "id": ("min", pl.String())}, cap=3)
LATEST = LastN("latest", {"item": pl.String()}, n=3)
BEST = TopK("best", {"item": pl.String()}, k=2, cap=3)
SCHEMA = StateSchema(
    (
        Scalar("rows", "sum", pl.Int64()),
        Scalar("first", "min", pl.Datetime("us", "UTC")),
        Scalar("last", "max", pl.Datetime("us", "UTC")),
        VectorSum("vector", 2),
        MAP,
        LATEST,
        BEST,
        Intervals("sessions"),
    )
)

ROW = st.fixed_dictionaries(
    {
        "user_id": st.sampled_from(["ann", "李雷"]),
        "minutes": st.integers(0, 60 * 24 * 2),  # two days across a month's end
        "key": st.sampled_from(["a", "b", "c", "d", "吉他", "ü"]),
        "id": st.sampled_from([f"r{i}" for i in range(12)]),
        "weight": st.integers(1, 40).map(lambda n: n / 8),
        "item": st.sampled_from(["x", "y", None]),
    }
)


def fold(rows: list[dict[str, object]]) -> pl.DataFrame:
    """One row per (user, period) from plain rows, with every kind of column."""
    frame = pl.DataFrame(
        rows,
        schema={
            "user_id": pl.String,
            "minutes": pl.Int64,
            "key": pl.String,
            "id": pl.String,
            "weight": pl.Float64,
            "item": pl.String,
        },
    )
    frame = frame.with_columns((pl.lit(START) + pl.duration(minutes="minutes")).alias("ts"))
    frame = frame.with_columns(pl.col("ts").dt.truncate("1mo").dt.date().alias("period"))
    g, keys = group(frame)
    frame = frame.with_columns(g)
    vector = pl.Series(
        np.column_stack([frame["weight"].to_numpy(), np.ones(len(frame))]), dtype=pl.Array(pl.Float64, 2)
    )
    pieces = [
        SCHEMA.columns[0].gather(frame.select("g", pl.lit(1).alias("rows"))),
        SCHEMA.columns[1].gather(frame.select("g", pl.col("ts").alias("first"))),
        SCHEMA.columns[2].gather(frame.select("g", pl.col("ts").alias("last"))),
        SCHEMA.columns[3].gather(frame.select("g").with_columns(vector.alias("vector"))),
        MAP.gather(frame.select("g", "key", "weight", pl.lit(1).alias("n"), "id")),
        LATEST.gather(frame),
        BEST.gather(frame),
        Intervals("sessions").gather(frame.select("g", pl.col("ts").alias("start"), pl.col("ts").alias("end"))),
    ]
    return SCHEMA.assemble(keys, pieces)


def assert_equal(left: pl.DataFrame, right: pl.DataFrame) -> None:
    assert left.columns == right.columns
    assert _same(left.to_dicts(), right.to_dicts())


def _same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-9 * max(1.0, abs(a))
    return a == b


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=40), st.data())
def test_any_split_in_any_order_merges_to_the_state_of_the_whole(rows, data):
    whole = fold(rows)
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = [fold(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    flat = SCHEMA.merge(pl.concat(parts))
    assert_equal(flat, whole)
    nested = parts[0]
    for part in parts[1:]:
        nested = SCHEMA.merge(pl.concat([part, nested]))
    assert_equal(SCHEMA.merge(nested), whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=40))
def test_the_state_says_what_a_plain_reading_of_the_rows_says(rows):
    for state in fold(rows).to_dicts():
        mine = [
            row
            for row in rows
            if row["user_id"] == state["user_id"]
            and (START + dt.timedelta(minutes=row["minutes"])).date().replace(day=1) == state["period"]
        ]
        assert state["rows"] == len(mine)
        totals: dict[str, float] = defaultdict(float)
        for row in mine:
            totals[row["key"]] += row["weight"]
        kept = sorted(totals, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:3]
        said = {entry["key"]: entry["weight"] for entry in state["map"]}
        assert {key: said[key] for key in kept} == pytest.approx({key: totals[key] for key in kept})
        assert sum(said.values()) == pytest.approx(sum(totals.values()))
        for key in kept:
            best: dict[str, float] = {}
            for row in mine:
                if row["key"] == key:
                    best[row["id"]] = max(best.get(row["id"], 0), row["weight"])
            want = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:2]
            assert [(e["id"], e["weight"]) for e in state["best"] if e["key"] == key] == want
        assert [entry["ts"] for entry in state["latest"]] == sorted(
            (START + dt.timedelta(minutes=row["minutes"]) for row in mine), reverse=True
        )[:3]
        minutes = sorted(row["minutes"] for row in mine)
        gaps = sum(b - a > 30 for a, b in itertools.pairwise(minutes))
        assert len(state["sessions"]) == 1 + gaps


def test_a_session_across_the_months_end_is_one_interval_when_joined():
    rows = [
        {"user_id": "ann", "minutes": m, "key": "a", "id": "r", "weight": 1.0, "item": None}
        for m in (225, 239, 241, 255)
    ]
    states = fold(rows)
    assert states["period"].to_list() == [dt.date(2024, 1, 1), dt.date(2024, 2, 1)]
    spread = states.select(pl.lit(0, pl.UInt32).alias("g"), "sessions").explode("sessions").unnest("sessions")
    assert join_intervals(spread).height == 1


def test_no_rows_are_no_states_and_merging_nothing_gives_nothing():
    assert fold([]).is_empty()
    assert SCHEMA.merge(fold([])).is_empty()


def test_a_map_below_its_cap_counts_its_keys_exactly_and_above_it_estimates_them():
    wide = MapSum("wide", {"n": ("sum", pl.Int64())}, cap=256)
    entries = pl.DataFrame({"g": [0] * 40_000 + [1] * 7, "key": [f"k{i}" for i in range(40_000)] + list("abcdefg")})
    states = wide.gather(entries.with_columns(pl.col("g").cast(pl.UInt32), pl.lit(1).alias("n"))).sort("g")
    big, small = distinct_keys(states, wide)
    assert small == 7
    assert big == pytest.approx(40_000, rel=0.2)  # the standard error of KMV at 256 keys is 6 %
    assert next(e["n"] for e in states["wide"][0].to_list() if e["key"] == OTHER) == 40_000 - 256
