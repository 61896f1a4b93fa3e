"""Periods and forward decay.

A period is a calendar week (from Monday), month, quarter or year in UTC, named by its first day. Decay is forward
decay (Cormode et al., ICDE 2009): a row weighs 2^(-(end of its period - its time) / half_life), so that a period's
sums never change as time goes on; fuse scales whole periods against each other.
"""

from __future__ import annotations

import datetime as dt

import polars as pl

from ray_profile.errors import ConfigError

EVERY = {"week": "1w", "month": "1mo", "quarter": "1q", "year": "1y"}
DAY_US = 86_400_000_000


def period_of(ts: pl.Expr, period: str) -> pl.Expr:
    """Times (UTC) -> the first day of their period (Date)."""
    return ts.dt.truncate(EVERY[period]).dt.date()


def period_end(start: pl.Expr, period: str) -> pl.Expr:
    """First days (Date) -> the moment the period ends, exclusive (Datetime UTC)."""
    return start.cast(pl.Datetime("us", "UTC")).dt.offset_by(EVERY[period])


def decay(earlier: pl.Expr, later: pl.Expr, half_life_days: float) -> pl.Expr:
    """2^(-(later - earlier) / half_life), Float64 in (0, 1] for earlier <= later."""
    days = (later - earlier).dt.total_microseconds() / DAY_US
    return pl.lit(0.5).pow(days / half_life_days)


def end_of(start: dt.date, period: str) -> dt.datetime:
    """The moment, exclusive, at which the period that starts on `start` ends."""
    end: dt.datetime = pl.select(period_end(pl.lit(start), period)).item()
    return end


def check_as_of(as_of: dt.datetime, period: str) -> dt.datetime:
    """`as_of` in UTC if it is a period's start (naive times are UTC).

    Raises `ConfigError` naming the nearest two starts otherwise.
    """
    at = as_of.replace(tzinfo=dt.UTC) if as_of.tzinfo is None else as_of.astimezone(dt.UTC)
    start: dt.date = pl.select(period_of(pl.lit(at, dtype=pl.Datetime("us", "UTC")), period)).item()
    begin = dt.datetime.combine(start, dt.time(), tzinfo=dt.UTC)
    if at == begin:
        return at
    after = end_of(start, period).date()
    raise ConfigError(f"as_of {at.isoformat()} is not the start of a {period}; the nearest are {start} and {after}")
