"""How a column writes times: its format, unit and zone, told from its values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from ray_profile.config import Source
from ray_profile.sources.formats import Layout
from ray_profile.sources.times import resolve

Unit = Literal["s", "ms", "us", "ns"]

_READABLE = 0.95
_YEARS = (1990, 2100)
_ENDS: tuple[tuple[int, Unit], ...] = ((10**11, "s"), (10**14, "ms"), (10**17, "us"))
_OFFSET = r"\d:\d{2}(?:[:.,]\d+)*\s*(Z|z|UTC|GMT|[+-]\d{2}:?\d{2})$"

#: Dates that do not begin with the year. Day before month first: of two that fit alike it is the more widespread.
_DATES = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%y", "%m/%d/%y")
_CLOCKS = ("", " %H:%M:%S", " %H:%M", " %I:%M:%S %p", " %I:%M %p")


@dataclass(frozen=True)
class Times:
    """What a sample of times tells. `zone` is an offset such as "+08:00", "instant" where each value fixes its own
    moment (epochs, mixed offsets), None where no zone is written. `rival` is another format that reads them as well."""

    readable: float
    format: str | None = None
    unit: Unit | None = None
    zone: str | None = None
    whole_days: bool = False
    rival: str | None = None


def read_times(values: pl.Series) -> Times | None:
    """How to read a column as times, or None where it holds none (less than 95 % lie between 1990 and 2100)."""
    values = values.drop_nulls()
    if values.is_empty() or values.dtype in (pl.Boolean, pl.Binary, pl.Time, pl.Null) or values.dtype.is_nested():
        return None
    plain = _try(values, None)
    if plain is not None:
        return plain
    if values.dtype != pl.String:
        return None
    found = [(form, times) for date in _DATES for clock in _CLOCKS if (times := _try(values, form := date + clock))]
    if not found:
        return None
    form, best = max(found, key=lambda each: each[1].readable)
    rivals = [other for other, times in found if times.readable == best.readable and other != form]
    return Times(best.readable, form, None, None, best.whole_days, rivals[0] if rivals else None)


def _try(values: pl.Series, form: str | None) -> Times | None:
    source = Source(format="columns", paths=("-",), time_format=form)
    read = resolve(values, source, Layout({}))
    given = read.filter(~pl.col("missing"))
    if given.is_empty():
        return None
    readable = float(given["ts"].dt.year().is_between(*_YEARS).fill_null(False).mean() or 0)  # type: ignore[arg-type]
    if readable < _READABLE:
        return None
    unit = _unit(values) if form is None else None
    zone = "instant" if unit else _zone(values)
    days = bool(given["hour"].is_null().all()) and unit != "ms"
    return Times(readable, form, unit, zone, days)


def _unit(values: pl.Series) -> Unit | None:
    """The unit of epochs, by magnitude; None for calendar numbers and for all that is no number."""
    if values.dtype.is_temporal():
        return None
    numbers = values.cast(pl.Float64, strict=False)
    if numbers.null_count() > len(numbers) * (1 - _READABLE):
        return None
    middle = float(numbers.median() or 0)  # type: ignore[arg-type]
    if any(19_000_101 * 10**more <= middle <= 22_000_101 * 10**more for more in (0, 4, 6)):
        return None
    return next((unit for end, unit in _ENDS if middle < end), "ns")


def _zone(values: pl.Series) -> str | None:
    if isinstance(values.dtype, pl.Datetime):
        return "instant" if values.dtype.time_zone else None
    if values.dtype != pl.String:
        return None
    zones = values.str.extract(_OFFSET, 1)
    if zones.null_count():
        return None
    distinct = zones.unique().to_list()
    return str(distinct[0]) if len(distinct) == 1 else "instant"
