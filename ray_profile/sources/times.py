"""From a time as a file writes it to UTC, and to the hour and weekday of the shop's own zone."""

from __future__ import annotations

import re
from typing import Literal

import polars as pl

from ray_profile.config import Source
from ray_profile.errors import ConfigError
from ray_profile.sources.formats import Layout
from ray_profile.sources.values import MISSING_WORDS, as_text

_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_MIN_US, _MAX_US = -(10**16), 2 * 10**16  # 1653 to 2603: beyond, calendars overflow, and all is impossible

#: Tried on all rows before anything costlier.
_ISO = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d")

#: Dates as year-month-day, without zone and T: `_from_forms` has brought them to that.
_FORMS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%m %d, %Y",  # Amazon
    "%b %d, %Y",
    "%B %d, %Y",
    "%d %b %Y",
    "%d %B %Y",
    "%d %b %Y %H:%M:%S",
    "%a, %d %b %Y %H:%M:%S",
    "%Y%m%d %H:%M:%S",
    "%Y%m%d %H%M%S",
)
_PADDING = re.compile(r"%[-_0](?=[A-Za-z])")
_HOURS = ("%H", "%I", "%k", "%l")
_MINUTES = ("%M", "%T", "%R", "%X", "%c", "%r")
_ZONE = r"\s*(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"
_TIME_AND_ZONE = r"\d:\d{2}(?:[:.,]\d+)*" + _ZONE  # a zone follows a time: the -18 of 2014-11-18 is none


def resolve(times: pl.Series, source: Source, layout: Layout) -> pl.DataFrame:
    """One row a time: `ts` (UTC, µs; null where unreadable), `missing`, `hour` (0-23 or null), `weekday` (0 = Monday).

    A time without a zone is in `source.timezone`: in a gap of daylight saving it is moved on by the gap, of two equal
    ones the earlier counts. Numbers are epochs in `time_unit`, else by magnitude; numbers of 8, 12 or 14 digits that
    could be no sensible epoch are calendar times (20140101). Where only the day is known (`whole_days`, or exactly
    midnight as written where that is not said), the hour is null and the weekday is the written date's.
    """
    written, offset_us, missing = _written(times, source, layout)
    frame = pl.DataFrame({"written": written, "offset": offset_us, "missing": missing})
    frame = frame.with_columns(ts=_utc(frame, source.timezone))
    midnight = pl.col("written").dt.time() == pl.time(0, 0, 0)
    day_only = pl.lit(True) if layout.whole_days else (pl.lit(False) if layout.whole_days is False else midnight)
    shop = pl.col("ts").dt.convert_time_zone(source.timezone)
    return frame.select(
        "ts",
        "missing",
        hour=pl.when(~day_only).then(shop.dt.hour()).cast(pl.Int8),
        weekday=(pl.when(day_only).then(pl.col("written").dt.weekday()).otherwise(shop.dt.weekday()) - 1).cast(pl.Int8),
    )


def _written(times: pl.Series, source: Source, layout: Layout) -> tuple[pl.Series, pl.Series, pl.Series]:
    """The naive time as written, its zone's offset from UTC (µs; null where no zone is named), and what is missing."""
    dtype = times.dtype
    no_offset = pl.Series("offset", [None], dtype=pl.Int64).new_from_index(0, len(times))
    missing = times.is_null()
    if dtype.is_float():
        missing |= times.is_nan().fill_null(False)
    if isinstance(dtype, pl.Datetime):
        naive = _clipped(times.cast(pl.Datetime("us", dtype.time_zone)))
        if dtype.time_zone is None:
            return naive, no_offset, missing
        local = naive.dt.replace_time_zone(None)
        utc = naive.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return local, (local - utc).dt.total_microseconds(), missing
    if dtype == pl.Date:
        days = times.cast(pl.Int64).clip(_MIN_US // 86_400_000_000, _MAX_US // 86_400_000_000)
        return (days * 86_400_000_000).cast(pl.Datetime("us")), no_offset, missing
    if dtype.is_numeric() and source.time_format is None:
        return *_from_numbers(times, layout.time_unit), missing
    text = as_text(times).str.strip_chars()
    missing |= text.is_in(MISSING_WORDS).fill_null(True)
    return *_from_text(text.set(missing, None), source, layout), missing


def _from_numbers(numbers: pl.Series, unit: Literal["s", "ms", "us", "ns"] | None) -> tuple[pl.Series, pl.Series]:
    frame = pl.DataFrame({"n": numbers.cast(pl.Float64 if not numbers.dtype.is_integer() else pl.Int64, strict=False)})
    n = pl.col("n")
    size = n.abs()
    as_us = {name: _scaled(n, per) for name, per in _PER_SECOND.items()}
    if unit is not None:
        us = as_us[unit]
    else:
        us = (
            pl.when(size < 10**11).then(as_us["s"]).when(size < 10**14).then(as_us["ms"])
            .when(size < 10**17).then(as_us["us"]).otherwise(as_us["ns"])
        )  # fmt: skip
    frame = frame.with_columns(us=pl.when(n.is_finite()).then(us) if numbers.dtype.is_float() else us)
    written = frame["us"].cast(pl.Datetime("us"))
    offset = pl.select(pl.when(written.is_not_null()).then(pl.lit(0, pl.Int64))).to_series()
    if unit is None:
        written, offset = _calendar_numbers(frame["n"], written, offset)
    return written, offset


def _calendar_numbers(n: pl.Series, written: pl.Series, offset: pl.Series) -> tuple[pl.Series, pl.Series]:
    """20140101, 201401012359 and 20140101235959: as epochs they would lie in 1970, in 1976 and after 2600."""
    for digits, form in ((8, "%Y%m%d"), (12, "%Y%m%d%H%M"), (14, "%Y%m%d%H%M%S")):
        scale = 10 ** (digits - 8)
        chosen = n.is_between(19_000_101 * scale, 22_000_101 * scale).fill_null(False)
        if chosen.any():
            text = n.filter(chosen).cast(pl.Int64, strict=False).cast(pl.String)
            parsed = text.str.to_datetime(form, time_unit="us", strict=False)
            written = written.scatter(chosen.arg_true(), parsed)
            offset = offset.scatter(chosen.arg_true(), [None])
    return written, offset


def _scaled(n: pl.Expr, per_second: int) -> pl.Expr:
    if per_second > 1_000_000:
        us = n // (per_second // 1_000_000)
    else:
        factor = 1_000_000 // per_second
        us = n.clip(_MIN_US // factor, _MAX_US // factor) * factor
    return us.clip(_MIN_US, _MAX_US).cast(pl.Int64, strict=False)


def _from_text(text: pl.Series, source: Source, layout: Layout) -> tuple[pl.Series, pl.Series]:
    """Text by the source's own format; else plain ISO forms and plain numbers at once, then the rest form by form."""
    if source.time_format is not None:
        return _by_format(text, source.time_format)
    written, offset = _nothing(len(text))
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return _from_numbers(whole, layout.time_unit)
    left = text.is_not_null()
    for form in _ISO:
        if not left.any():
            return _clipped(written), offset
        parsed = text.filter(left).str.to_datetime(form, time_unit="us", strict=False)
        written = parsed if left.all() else written.scatter(left.arg_true(), parsed)
        left = text.is_not_null() & written.is_null()
    return _from_odd_text(text, left, _clipped(written), layout)


def _from_odd_text(text: pl.Series, left: pl.Series, written: pl.Series, layout: Layout) -> tuple[pl.Series, pl.Series]:
    offset = _nothing(len(text))[1]
    number = left & text.str.contains(r"^[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$").fill_null(False)
    if number.any():
        chosen = text.filter(number)
        values = chosen.cast(pl.Int64, strict=False)
        if values.null_count():
            values = chosen.cast(pl.Float64, strict=False)
        parsed, zones = _from_numbers(values, layout.time_unit)
        written = written.scatter(number.arg_true(), parsed)
        offset = offset.scatter(number.arg_true(), zones)
    left = left & ~number
    if left.any():
        parsed, zones = _from_forms(text.filter(left))
        written = written.scatter(left.arg_true(), parsed)
        offset = offset.scatter(left.arg_true(), zones)
    return written, offset


def _nothing(rows: int) -> tuple[pl.Series, pl.Series]:
    written = pl.Series("written", [None], dtype=pl.Datetime("us"))
    return written.new_from_index(0, rows), pl.Series("offset", [None], dtype=pl.Int64).new_from_index(0, rows)


def _by_format(text: pl.Series, form: str) -> tuple[pl.Series, pl.Series]:
    plain = _PADDING.sub("%", form)  # padding is a matter of writing
    if any(hour in plain for hour in _HOURS) and not any(minute in plain for minute in _MINUTES):
        text, plain = "00|" + text, "%M|" + plain  # chrono wants minutes
    try:
        return _by_plain_format(text, plain)
    except pl.exceptions.ComputeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"time_format = {form!r} cannot be read ({reason}); mend it in its source") from error


def _by_plain_format(text: pl.Series, form: str) -> tuple[pl.Series, pl.Series]:
    if "%z" in form or "%:z" in form or "%#z" in form:
        utc = text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
        naive = text.str.replace(r"\s*(?:Z|[+-]\d{2}:?\d{2})\s*$", "")
        local = naive.str.to_datetime(_without_zone(form), time_unit="us", strict=False)
        local = local.fill_null(utc.dt.replace_time_zone(None))
        return local, (local - utc.dt.replace_time_zone(None)).dt.total_microseconds()
    if any(sign in form for sign in (*_HOURS, *_MINUTES, "%s")):
        written = text.str.to_datetime(form, time_unit="us", strict=False)
    else:
        written = text.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    return _clipped(written), _nothing(len(text))[1]


def _without_zone(form: str) -> str:
    for zone in ("%:z", "%#z", "%z"):
        form = form.replace(zone, "")
    return form.strip()


def _from_forms(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    frame = pl.DataFrame({"text": text}).with_columns(zone=pl.col("text").str.extract(_TIME_AND_ZONE, 1))
    bare = pl.col("text").str.replace(_ZONE, "")
    frame = frame.select(
        text=pl.when(pl.col("zone").is_null()).then("text").otherwise(bare),
        offset=_offset_us(pl.col("zone")),
    )
    normal = frame["text"].str.replace(r"^(\d{4})[-/.年](\d{1,2})[-/.月](\d{1,2})日?", "$1-$2-$3")
    normal = normal.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2})[Tt\s]\s*", "$1 ").str.replace(r"(:\d{2}),(\d+)$", "$1.$2")
    normal = normal.str.replace(r"^(\d{4}-\d{1,2}-\d{1,2} \d{1,2})$", "$1:00")  # an hour alone
    written = _nothing(len(text))[0]
    for form in _FORMS:
        left = written.is_null() & normal.is_not_null()
        if not left.any():
            break
        parsed = normal.filter(left).str.to_datetime(form, time_unit="us", strict=False)
        written = parsed if left.all() else written.scatter(left.arg_true(), parsed)
    return _clipped(written), frame["offset"]


def _offset_us(zone: pl.Expr) -> pl.Expr:
    digits = zone.str.replace_all(":", "", literal=True)
    hours = digits.str.slice(1, 2).cast(pl.Int64, strict=False)
    minutes = digits.str.slice(3, 2).cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.when(digits.str.starts_with("-")).then(-1).otherwise(1)
    named = zone.is_in(["Z", "z", "UTC", "GMT"])
    return pl.when(named).then(pl.lit(0, pl.Int64)).otherwise(sign * (hours * 60 + minutes) * 60_000_000)


def _clipped(times: pl.Series) -> pl.Series:
    return times.cast(pl.Int64).clip(_MIN_US, _MAX_US).cast(times.dtype)


def _utc(frame: pl.DataFrame, zone: str) -> pl.Series:
    stated = frame["written"] - frame["offset"].cast(pl.Duration("us"))
    naive = frame["offset"].is_null() & frame["written"].is_not_null()
    if not naive.any():
        return stated.dt.replace_time_zone("UTC")
    local = frame["written"].filter(naive)
    utc = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")
    gaps = utc.is_null()
    if gaps.any():  # read with the offset from before the gap, as Python's fold=0: that moves the time on by the gap
        inside = local.filter(gaps)
        before = inside.dt.offset_by("-2d").dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
        offset = (before.dt.base_utc_offset() + before.dt.dst_offset()).cast(pl.Duration("us"))
        utc = utc.scatter(gaps.arg_true(), (inside - offset).dt.replace_time_zone("UTC"))
    stated = stated.dt.replace_time_zone("UTC")
    return utc if naive.all() else stated.scatter(naive.arg_true(), utc)
