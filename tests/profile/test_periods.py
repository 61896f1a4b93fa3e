"""Periods, forward decay, and what may be asked for as of."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_profile.errors import ConfigError
from ray_profile.profile.periods import EVERY, check_as_of, decay, end_of, period_end, period_of
from ray_profile.state import TIME

TIMES = st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2100, 1, 1)).map(lambda t: t.replace(tzinfo=dt.UTC))


def _start(at: dt.datetime, period: str) -> dt.date:
    return pl.select(period_of(pl.lit(at, dtype=TIME), period)).item()


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("week", dt.date(2024, 2, 26), dt.date(2024, 3, 4)),
        ("month", dt.date(2024, 2, 1), dt.date(2024, 3, 1)),
        ("quarter", dt.date(2024, 1, 1), dt.date(2024, 4, 1)),
        ("year", dt.date(2024, 1, 1), dt.date(2025, 1, 1)),
    ],
)
def test_a_leap_day_lies_in_these_periods(period: str, start: dt.date, end: dt.date) -> None:
    assert _start(dt.datetime(2024, 2, 29, 23, 59, 59, 999_999, dt.UTC), period) == start
    assert end_of(start, period) == dt.datetime.combine(end, dt.time(), dt.UTC)


@given(TIMES, st.sampled_from(sorted(EVERY)))
def test_every_moment_lies_in_exactly_one_period(at: dt.datetime, period: str) -> None:
    start = _start(at, period)
    end = end_of(start, period)
    assert dt.datetime.combine(start, dt.time(), dt.UTC) <= at < end
    assert _start(end, period) == end.date()
    assert _start(end - dt.timedelta(microseconds=1), period) == start


@given(TIMES, TIMES, st.floats(0.5, 1000))
def test_decay_halves_every_half_life_and_never_rises_above_one(a: dt.datetime, b: dt.datetime, half: float) -> None:
    earlier, later = sorted((a, b))
    value = pl.select(decay(pl.lit(earlier, dtype=TIME), pl.lit(later, dtype=TIME), half)).item()
    assert 0 <= value <= 1
    assert value == pytest.approx(0.5 ** ((later - earlier).total_seconds() / 86_400 / half), rel=1e-9)


def test_an_end_is_exclusive_and_in_utc() -> None:
    frame = pl.DataFrame({"period": [dt.date(2023, 12, 1), dt.date(2024, 2, 1)]})
    ends = frame.select(period_end(pl.col("period"), "month")).to_series()
    assert ends.dtype == TIME
    assert ends.to_list() == [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 3, 1, tzinfo=dt.UTC)]


def test_as_of_a_start_passes_in_any_zone_and_naive_times_are_utc() -> None:
    start = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
    shanghai = dt.timezone(dt.timedelta(hours=8))
    assert check_as_of(dt.datetime(2024, 3, 1), "month") == start
    assert check_as_of(dt.datetime(2024, 3, 1, 8, tzinfo=shanghai), "month") == start
    with pytest.raises(ConfigError, match="2024-02-01 and 2024-03-01"):
        check_as_of(dt.datetime(2024, 3, 1, tzinfo=shanghai), "month")


@pytest.mark.parametrize(
    ("period", "nearest"),
    [
        ("week", "2024-03-04 and 2024-03-11"),
        ("month", "2024-03-01 and 2024-04-01"),
        ("quarter", "2024-01-01 and 2024-04-01"),
        ("year", "2024-01-01 and 2025-01-01"),
    ],
)
def test_as_of_between_two_starts_names_both(period: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"not the start of a {period}; the nearest are {nearest}"):
        check_as_of(dt.datetime(2024, 3, 5, 0, 0, 0, 1), period)
