from __future__ import annotations

import datetime as dt
import itertools
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.config import Source, parse
from ray_profile.errors import ConfigError
from ray_profile.schema import REASONS, ROWS
from ray_profile.sources.blocks import broken_rows, numbered
from ray_profile.sources.check import Checked, Seen, check
from ray_profile.sources.formats import layout
from ray_profile.sources.read import Chunk
from ray_profile.sources.values import identifiers, numbers

CLOCK = dt.datetime(2024, 6, 1, 12, tzinfo=dt.UTC)
COLUMNS = {"user_id": "u", "item_id": "i", "ts": "t"}


def checked(frame: pl.DataFrame, seen: Seen | None = None, **rest: Any) -> Checked:
    extra = {"rating", "text", "title", "price", "quantity", "amount", "kind", "id", "order_id", "place", "device"}
    columns = {**COLUMNS, **{name: name for name in frame.columns if name in extra}, **rest.pop("columns", {})}
    kind = rest.pop("kind", None if "kind" in columns else "purchase")
    source = Source(format="columns", paths=("x",), columns=columns, kind=kind, **rest)
    chunk = Chunk(frame, numbered(0, frame.height), broken_rows([]), layout(source, frame.columns))
    done = check(chunk, source, CLOCK, seen or Seen())
    assert done.good.height + done.bad.height + done.anonymous == frame.height
    assert done.good.columns == ROWS.names
    return done


def one(**values: Any) -> pl.DataFrame:
    return pl.DataFrame({"u": ["a"], "i": ["1"], "t": ["2024-01-01 10:00:00"], **{k: [v] for k, v in values.items()}})


def reason(frame: pl.DataFrame, **rest: Any) -> str | None:
    done = checked(frame, **rest)
    return done.reasons[0] if done.bad.height else None


@pytest.mark.parametrize(
    ("expected", "values", "rest"),
    [
        (None, {}, {}),
        ("time_missing", {"t": None}, {}),
        ("time_missing", {"t": " "}, {}),
        ("time_missing", {"t": "NULL"}, {}),
        ("time_unreadable", {"t": "yesterday"}, {}),
        ("time_unreadable", {"t": "2024-02-30"}, {}),
        ("time_unreadable", {"t": "3/4/2024"}, {}),
        (None, {"t": "3/4/2024"}, {"time_format": "%d/%m/%Y"}),
        ("time_unreadable", {"t": "2024-04-03"}, {"time_format": "%d/%m/%Y"}),
        ("time_impossible", {"t": "1989-12-31 23:59:59"}, {}),
        (None, {"t": "1990-01-01"}, {}),
        (None, {"t": "2024-06-02T12:00:00Z"}, {}),
        ("time_impossible", {"t": "2024-06-02T12:00:01Z"}, {}),
        ("time_impossible", {"t": "9999-12-31"}, {}),
        ("time_impossible", {"t": "0001-01-01"}, {}),
        ("time_impossible", {"t": "99999999999999999999999"}, {}),
        ("rating_unreadable", {"rating": "good"}, {"kind": "review"}),
        ("rating_unreadable", {"rating": float("nan")}, {"kind": "review"}),
        ("rating_range", {"rating": 0}, {"kind": "review"}),
        ("rating_range", {"rating": "5.1"}, {"kind": "review"}),
        (None, {"rating": "4.5"}, {"kind": "review"}),
        (None, {"rating": 3, "text": None}, {"kind": "review"}),
        ("text_missing", {"rating": None, "text": " \n"}, {"kind": "review"}),
        ("text_missing", {"rating": "", "text": "<br/>"}, {"kind": "review"}),
        ("text_missing", {"text": None}, {"kind": "search"}),
        (None, {"text": "红色 shoes", "i": None}, {"kind": "search"}),
        (None, {"text": "x" * 100_000}, {"kind": "review"}),
        ("text_length", {"text": "字" * 100_001}, {"kind": "review"}),
        ("kind_unknown", {"kind": "wave"}, {}),
        ("kind_unknown", {"kind": None}, {}),
        (None, {"kind": "VIEW"}, {}),
        (None, {"kind": None}, {"kind": "view"}),
        ("number_unreadable", {"price": "cheap"}, {}),
        ("number_unreadable", {"price": float("nan")}, {}),
        ("number_unreadable", {"price": float("inf")}, {}),
        ("number_unreadable", {"price": 1e200, "quantity": 1e200}, {}),
        ("number_unreadable", {"price": "-1000000000001"}, {}),
        ("number_unreadable", {"quantity": -2e12}, {}),
        ("number_unreadable", {"amount": 5.0, "quantity": 1e-300}, {}),
        (None, {"price": 1e12, "quantity": -1e12}, {}),
        ("number_unreadable", {"quantity": "two"}, {}),
        ("number_unreadable", {"quantity": -1}, {"kind": "cart"}),
        (None, {"price": None, "quantity": ""}, {}),
        (None, {"quantity": -1}, {}),
        ("item_missing", {"i": None}, {}),
        ("item_missing", {"i": " nan "}, {}),
        (None, {"i": None, "rating": 3}, {"kind": "review"}),
    ],
)
def test_reason(expected: str | None, values: dict[str, Any], rest: dict[str, Any]) -> None:
    assert reason(one().with_columns(pl.Series(k, [v]) for k, v in values.items()), **rest) == expected


def test_reasons_are_those_of_the_contract_and_come_in_its_order() -> None:
    done = checked(one().with_columns(t=pl.lit("never"), price=pl.lit("cheap"), i=pl.lit(None, pl.String)))
    assert done.reasons.to_list() == ["time_unreadable"]
    assert set(done.reasons) <= set(REASONS)


def test_wrong_row_is_quarantined_though_nobody_owns_it_and_a_right_one_is_anonymous() -> None:
    frame = pl.DataFrame(
        {
            "u": [None, "", "NULL", "nan", "a", None],
            "i": ["1", "1", "1", "1", "1", None],
            "t": ["2024-01-01"] * 6,
        }
    )
    done = checked(frame)
    assert (done.anonymous, done.good.height, done.reasons.to_list()) == (4, 1, ["item_missing"])
    assert done.numbers.to_list() == [5]


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([17850.0, None]),
        pl.Series([17850, None]),
        pl.Series(["17850.0", "nan"]),
        pl.Series([" 17850 ", ""]),
        pl.Series(["17850", "\\N"], dtype=pl.Categorical),
        pl.Series([17850.0, float("nan")]),
    ],
)
def test_same_id_however_the_file_stores_it(values: pl.Series) -> None:
    assert identifiers(values).to_list() == ["17850", None]


def test_ids_are_not_otherwise_touched() -> None:
    kept = ["007", "1.50", "v1.0.0", "a.0", "用户 1", "-3"]
    assert identifiers(pl.Series(kept)).to_list() == kept
    assert identifiers(pl.Series([1.5, 2.0**60, -1.0])).to_list() == ["1.5", str(2**60), "-1"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.3", 12.3),
        (" 12 ", 12.0),
        ("$1,234.50", 1234.5),
        ("¥99", 99.0),
        ("99元", 99.0),
        ("12.50 €", 12.5),
        ("-3", -3.0),
    ],
)
def test_prices_may_carry_a_currency_sign(text: str, value: float) -> None:
    parsed, bad = numbers(pl.Series([text]), signs=True)
    assert (parsed.to_list(), bad.to_list()) == ([value], [False])


@pytest.mark.parametrize("text", ["1,5", "12.99 - 15.00", "from 3", "1,23,4", "$"])
def test_prices_that_could_be_two_things_are_unreadable(text: str) -> None:
    assert numbers(pl.Series([text]), signs=True)[1].to_list() == [True]


def test_negative_quantity_is_a_return_zero_is_no_piece_and_absence_says_nothing() -> None:
    frame = pl.concat([one(quantity=q, price=2.5) for q in (3.0, -3.0, 0.0, -0.0, None)])
    good = checked(frame).good
    assert good["kind"].to_list() == ["purchase", "return", "purchase", "purchase", "purchase"]
    assert [str(pieces) for pieces in good["quantity"]] == ["3.0", "3.0", "0.0", "0.0", "None"]  # -0.0 is another id
    assert good["price"].to_list() == [2.5] * 5
    assert checked(one(quantity="-2"), kind="return").good["quantity"].to_list() == [2.0]


def test_amount_of_a_line_becomes_the_price_of_a_piece() -> None:
    lines = ((4, 10.0), (-4, -10.0), (None, 3.0), (0, 3.0), (0, 0.0))
    good = checked(pl.concat([one(quantity=q, amount=a) for q, a in lines])).good
    assert good["price"].to_list() == [2.5, 2.5, 3.0, 3.0, None]
    assert good["quantity"].to_list() == [4, 4, None, None, 0]  # what is paid for is more than no piece


def test_words_for_kinds_are_mapped() -> None:
    frame = pl.concat([one(kind=word) for word in ("pv", "PV", "4", "cart", "下单")])
    good = checked(frame, kinds={"pv": "view", "4": "purchase", "下单": "purchase"}).good
    assert good["kind"].to_list() == ["view", "view", "purchase", "cart", "purchase"]
    numbers_ = checked(one().with_columns(kind=pl.lit(4.0)), kinds={"4": "purchase"}).good
    assert numbers_["kind"].to_list() == ["purchase"]


def test_title_stands_before_the_text_and_columns_are_joined() -> None:
    frame = pl.DataFrame({"u": ["a"] * 4, "i": ["1"] * 4, "t": ["2024-01-01"] * 4, "x": ["T", "", None, None]})
    frame = frame.with_columns(
        y=pl.Series(["good", "bad", "no &amp; no", None]), z=pl.Series(["more", None, " ", None])
    )
    good = checked(frame, columns={"title": "x", "text": ["y", "z"]}, kind="view")
    assert good.good["text"].to_list() == ["T\ngood\nmore", "bad", "no & no", None]


def times(values: Any, zone: str = "UTC", **rest: Any) -> list[tuple[str | None, int | None, int | None]]:
    frame = pl.DataFrame({"t": values}).with_columns(u=pl.lit("a"), i=pl.lit("1"))
    good = checked(frame, timezone=zone, **rest).good
    return list(zip(good["ts"].dt.strftime("%Y-%m-%dT%H:%M:%S%.6f"), good["hour"], good["weekday"], strict=True))


@pytest.mark.parametrize(
    "value",
    [
        "2014-11-18 10:11:12",
        "2014-11-18T10:11:12",
        "2014-11-18T10:11:12Z",
        "2014-11-18 10:11:12 UTC",
        "2014-11-18T05:11:12-05:00",
        "2014-11-18T05:11:12-0500",
        "2014-11-18T15:41:12+05:30",
        "2014-11-18 18:11:12 +08",
        "2014/11/18 10:11:12",
        "2014.11.18 10:11:12",
        "2014年11月18日 10:11:12",
        "20141118 10:11:12",
        "20141118101112",
        "18 Nov 2014 10:11:12",
        "Tue, 18 Nov 2014 10:11:12 GMT",
        "1416305472",
        "1416305472.0",
        "1416305472000",
        "1416305472000000",
        "1416305472000000000",
        "1.416305472e9",
        1416305472,
        1416305472000,
        1416305472000000,
        1416305472000000000,
        1416305472.0,
        20141118101112,
        dt.datetime(2014, 11, 18, 10, 11, 12),
        dt.datetime(2014, 11, 18, 10, 11, 12, tzinfo=ZoneInfo("UTC")),
        dt.datetime(2014, 11, 18, 18, 11, 12, tzinfo=ZoneInfo("Asia/Shanghai")),
    ],
)
def test_moment_is_read_however_it_is_written(value: Any) -> None:
    assert times(pl.Series([value])) == [("2014-11-18T10:11:12.000000", 10, 1)]


@pytest.mark.parametrize(
    "value",
    [
        "2014-11-18",
        "20141118",
        "2014/11/18",
        "11 18, 2014",
        "Nov 18, 2014",
        "18 November 2014",
        "2014年11月18日",
        20141118,
    ],
)
def test_day_alone_has_no_hour(value: Any) -> None:
    assert times(pl.Series([value])) == [("2014-11-18T00:00:00.000000", None, 1)]
    assert times(pl.Series([value]), "Asia/Shanghai") == [("2014-11-17T16:00:00.000000", None, 1)]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_timestamps_and_dates_of_every_unit(unit: Any) -> None:
    moments = pl.Series([dt.datetime(2014, 11, 18, 10)]).cast(pl.Datetime(unit))
    assert times(moments) == [("2014-11-18T10:00:00.000000", 10, 1)]
    assert times(pl.Series([dt.date(2014, 11, 18)])) == [("2014-11-18T00:00:00.000000", None, 1)]


def test_forms_zones_and_fractions_may_mix_in_one_column() -> None:
    mixed = ["2024-01-01T00:00:01+14:00", "2024-01-01 10", "2024-01-01 10:30", "1704103200", "2024-01-01 10:00:00.25"]
    assert times(pl.Series(mixed)) == [
        ("2023-12-31T10:00:01.000000", 10, 6),
        ("2024-01-01T10:00:00.000000", 10, 0),
        ("2024-01-01T10:30:00.000000", 10, 0),
        ("2024-01-01T10:00:00.000000", 10, 0),
        ("2024-01-01T10:00:00.250000", 10, 0),
    ]


def test_hour_and_weekday_are_the_shops() -> None:
    assert times(pl.Series(["2024-01-01T20:00:00Z"]), "Asia/Shanghai") == [("2024-01-01T20:00:00.000000", 4, 1)]
    assert times(pl.Series(["2024-01-02 04:00"]), "Asia/Shanghai") == [("2024-01-01T20:00:00.000000", 4, 1)]


@pytest.mark.parametrize(
    ("day", "time"),
    [
        ("2024-03-01", "10:00:00"),
        ("2024-03-01", dt.time(10)),
        (dt.date(2024, 3, 1), "10:00"),
        (dt.datetime(2024, 3, 1), dt.time(10)),
        ("2024-03-01T00:00:00", "10:00:00"),
        (20240301, "10:00:00"),
        ("2024/3/1", 10),
        ("2024-03-01", 10.0),
    ],
)
def test_day_and_time_in_two_columns_are_one_moment(day: Any, time: Any) -> None:
    frame = pl.DataFrame({"u": ["a"], "i": ["1"], "d": [day], "h": [time]})
    good = checked(frame, columns={"ts": ["d", "h"]}).good
    assert (good["ts"].item(), good["hour"].item()) == (dt.datetime(2024, 3, 1, 10, tzinfo=dt.UTC), 10)


def test_day_without_its_time_is_a_day_and_neither_is_missing() -> None:
    frame = pl.DataFrame(
        {"u": ["a"] * 3, "i": ["1"] * 3, "d": ["2024-03-01", "NULL", "1/3/2024"], "h": [None, "", "x"]}
    )
    done = checked(frame, columns={"ts": ["d", "h"]})
    assert (done.good["hour"].to_list(), done.good["weekday"].to_list()) == ([None], [4])
    assert done.reasons.to_list() == ["time_missing", "time_unreadable"]
    own = pl.DataFrame({"u": ["a"], "i": ["1"], "d": ["1/3/2024"], "h": ["1030"]})
    good = checked(own, columns={"ts": ["d", "h"]}, time_format="%d/%m/%Y %H%M").good
    assert good["ts"].item() == dt.datetime(2024, 3, 1, 10, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"ts": []}, r"sources\.s\.columns.*ts = \[\] names no column; name one"),
        ({"user_id": []}, r"user_id = \[\] names no column"),
        *(
            ({name: ["a", "b"]}, rf"{name} = \['a', 'b'\] names 2 columns, and only .* is read from one: {name} = 'a'")
            for name in ("price", "quantity", "amount", "rating", "kind")
        ),
    ],
)
def test_lists_of_columns_that_mean_nothing_are_refused(columns: dict[str, Any], message: str) -> None:
    section = {"format": "columns", "paths": ["x"], "columns": {"user_id": "u", "ts": "t", **columns}}
    with pytest.raises(ConfigError, match=message):
        parse({"root": "r", "sources": {"s": section}})


def test_a_list_of_one_column_is_that_column() -> None:
    assert checked(one(p=2.5), columns={"price": ["p"]}).good["price"].to_list() == [2.5]


def test_midnight_is_an_hour_where_the_source_says_so() -> None:
    midnight = pl.Series(["2024-01-01 00:00:00", "2024-01-01 00:00:01"])
    assert [hour for _, hour, _ in times(midnight)] == [None, 0]
    assert [hour for _, hour, _ in times(midnight, whole_days=False)] == [0, 0]
    assert [hour for _, hour, _ in times(midnight, whole_days=True)] == [None, None]


def test_whole_days_written_as_utc_epochs_keep_their_weekday() -> None:
    tuesday = int(dt.datetime(2014, 11, 18, tzinfo=dt.UTC).timestamp())
    assert times(pl.Series([tuesday]), "America/New_York") == [("2014-11-18T00:00:00.000000", None, 1)]


def test_gap_and_overlap_of_daylight_saving() -> None:
    gap = pl.Series(["2024-03-10 02:30:00", "2023-11-05 01:30:00"])
    assert times(gap, "America/New_York") == [
        ("2024-03-10T07:30:00.000000", 3, 6),
        ("2023-11-05T05:30:00.000000", 1, 6),
    ]
    assert times(pl.Series(["2011-12-30 10:00"]), "Pacific/Apia") == [("2011-12-30T20:00:00.000000", 10, 5)]
    assert times(pl.Series(["2023-10-01 02:15"]), "Australia/Lord_Howe") == [("2023-09-30T15:45:00.000000", 2, 6)]


def test_time_unit_of_the_source_goes_before_magnitude() -> None:
    assert times(pl.Series([1416305472000]), time_unit="ms") == times(pl.Series([1416305472000]))
    assert reason(one().with_columns(t=pl.lit(1416305472)), time_unit="ms") == "time_impossible"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("%d/%m/%Y %H:%M", "18/11/2014 10:00"),
        ("%m/%d/%Y %I:%M %p", "11/18/2014 10:00 AM"),
        ("%d.%m.%Y %H", "18.11.2014 10"),
        ("%d/%b/%Y:%H:%M:%S %z", "18/Nov/2014:05:00:00 -0500"),
        ("%-d.%-m.%Y %-H:%M", "18.11.2014 10:00"),
        ("%Y-%m-%d %I %p", "2014-11-18 10 AM"),
        ("%Y%m%dT%H%z", "20141118T05-0500"),
    ],
)
def test_own_time_format(form: str, text: str) -> None:
    assert times(pl.Series([text]), time_format=form) == [("2014-11-18T10:00:00.000000", 10, 1)]


def review(user: str | None, text: str, item: str | None = "1", t: str = "2024-01-01") -> pl.DataFrame:
    return pl.DataFrame(
        {"u": [user], "i": [item], "t": [t], "text": [text]}, schema_overrides={"u": pl.String, "i": pl.String}
    )


def test_same_review_again_is_a_duplicate_across_the_chunks_of_a_range() -> None:
    seen = Seen()
    first = pl.concat([review("a", "fine"), review("a", "fine"), review("a", "fine!"), review("b", "fine")])
    assert checked(first, seen, kind="review").reasons.to_list() == ["duplicate"]
    second = pl.concat(
        [
            review("a", "fine"),
            review("a", "fine", "2"),
            review("a", "fine", None),
            review("a", "fine", "1", "2024-01-02"),
        ]
    )
    done = checked(second, seen, kind="review")
    assert (done.reasons.to_list(), done.numbers.to_list()) == (["duplicate"], [0])
    assert checked(first, Seen(), kind="review").bad.height == 1


def test_events_and_anonymous_reviews_are_never_duplicates() -> None:
    assert checked(pl.concat([one()] * 3)).good.height == 3
    done = checked(pl.concat([review(None, "fine")] * 3), kind="review")
    assert (done.anonymous, done.bad.height) == (3, 0)


def test_joined_fields_do_not_make_a_duplicate() -> None:
    done = checked(pl.concat([review("a", "bc", "1"), review("ab", "c", "1"), review("a", "c", "1b")]), kind="review")
    assert done.good.height == 3


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=10))
def test_seen_knows_exactly_what_was_added(parts: list[list[int]]) -> None:
    seen, plain = Seen(), set[int]()
    for part in parts:
        high = np.array(sorted(set(part)), dtype=np.uint64)
        low = high * np.uint64(7)
        known = seen.known(high, low)
        assert known.tolist() == [int(value) in plain for value in high]
        seen.add(high[~known], low[~known])
        plain |= set(part)
    assert len(seen.runs) <= 7


@settings(max_examples=100, deadline=None)
@given(
    st.datetimes(dt.datetime(1995, 1, 1), dt.datetime(2024, 5, 1)),
    st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York", "Australia/Lord_Howe", "Europe/London"]),
)
def test_naive_times_agree_with_zoneinfo(moment: dt.datetime, zone: str) -> None:
    expected = moment.replace(tzinfo=ZoneInfo(zone)).astimezone(dt.UTC)
    found = times(pl.Series([moment.isoformat()]), zone)[0]
    assert found[0] == expected.strftime("%Y-%m-%dT%H:%M:%S.%f")
    if moment.time() != dt.time(0):
        assert found[1] == expected.astimezone(ZoneInfo(zone)).hour


def test_no_rows_and_null_columns_are_fine() -> None:
    empty = pl.DataFrame({"u": [], "i": [], "t": []}, schema=dict.fromkeys("uit", pl.String))
    assert checked(empty).good.height == 0
    nulls = pl.DataFrame({"u": [None], "i": [None], "t": [None]})
    assert checked(nulls).reasons.to_list() == ["time_missing"]


def test_every_kind_of_column_may_hold_anything() -> None:
    odd: list[pl.Series] = [
        pl.Series([[1, 2]]),
        pl.Series([{"a": 1}]),
        pl.Series([True]),
        pl.Series(["x"], dtype=pl.Categorical),
        pl.Series([1.5]),
        pl.Series([dt.date(2024, 1, 1)]),
        pl.Series([None]),
        pl.Series([1]).cast(pl.Decimal(10, 2)),
        pl.Series([dt.timedelta(1)]),
    ]
    names = ("u", "i", "t", "rating", "text", "price", "quantity", "order_id")
    for name, values in itertools.product(names, odd):
        frame = one(rating=3, text="x", price=1, quantity=1, order_id="o").with_columns(values.alias(name))
        done = checked(frame, kind="review")
        assert done.good.height + done.bad.height + done.anonymous == 1
