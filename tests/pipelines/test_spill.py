"""Partial states that outgrow their memory come back as they would have without a limit."""

from __future__ import annotations

from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.pipelines.spill import Spill
from ray_profile.state import MapSum, Scalar, StateSchema

SCHEMA = StateSchema((Scalar("rows", "sum", pl.Int64()), MapSum("seen", {"n": ("sum", pl.Int64())}, cap=3)))
BUCKETS = 4

PARTS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.integers(1, 5), st.sampled_from("abcde")), max_size=12),
    max_size=6,
)


def states_of(rows: list[tuple[int, int, int, str]]) -> pl.DataFrame:
    """Partial states of (user, month, n, key), several of them of one user and month, with their bucket."""
    return pl.DataFrame(
        {
            "user_id": [f"u{user}" for user, *_ in rows],
            "period": [date(2024, month, 1) for _, month, *_ in rows],
            "rows": [n for _, _, n, _ in rows],
            "seen": [[{"key": key, "n": n}] for _, _, n, key in rows],
            "bucket": [user % BUCKETS for user, *_ in rows],
        },
        schema={**SCHEMA.dtypes, "bucket": pl.Int32},
    )


@settings(deadline=None, max_examples=60)
@given(parts=PARTS, limit=st.sampled_from([1, 500, 1 << 30]))
def test_any_limit_gives_the_states_of_one_merge(parts: list[list[tuple[int, int, int, str]]], limit: int) -> None:
    frames = [states_of(part) for part in parts]
    with Spill(SCHEMA, limit) as spill:
        for frame in frames:
            spill.add(frame)
        found = list(spill.buckets())
    assert [bucket for bucket, _ in found] == sorted({user % BUCKETS for part in parts for user, *_ in part})
    for bucket, states in found:
        mine = pl.concat(frames).filter(pl.col("bucket") == bucket)
        assert SCHEMA.merge(states).equals(SCHEMA.merge(mine))
        assert set(states["user_id"]) == set(mine["user_id"])


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_nothing_is_left_on_disk(limit: int) -> None:
    with Spill(SCHEMA, limit) as spill:
        spill.add(states_of([(1, 1, 1, "a"), (2, 1, 1, "b")]))
        spill.add(states_of([(1, 1, 1, "a")]))
        assert sum(states["rows"].sum() for _, states in spill.buckets()) == 3
        folder = spill.folder
        assert any(folder.iterdir()) == (limit == 1)
    assert not folder.exists()
