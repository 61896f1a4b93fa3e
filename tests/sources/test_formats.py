from __future__ import annotations

import json
import re
from typing import Any

import pytest

from ray_profile.config import Source
from ray_profile.errors import ConfigError, SourceError
from ray_profile.schema import ITEMS, ROWS
from ray_profile.sources.formats import CONTRACT, FORMATS, is_catalogue, layout


def source(format: str = "columns", **rest: Any) -> Source:
    return Source(format=format, paths=("x",), **rest)


EVENTS = {"user_id": "u", "item_id": "i", "ts": "t"}


@pytest.mark.parametrize(
    ("format", "names", "expected"),
    [
        (
            "amazon-2014",
            "reviewerID asin reviewerName helpful reviewText overall summary unixReviewTime reviewTime",
            {"user_id": "reviewerID", "ts": "unixReviewTime", "title": "summary", "text": "reviewText"},
        ),
        (
            "amazon-2018",
            "overall verified reviewTime reviewerID asin style reviewerName reviewText summary unixReviewTime vote",
            {"user_id": "reviewerID", "rating": "overall", "ts": "unixReviewTime"},
        ),
        (
            "amazon-2023",
            "rating title text images asin parent_asin user_id timestamp helpful_vote verified_purchase",
            {"item_id": "parent_asin", "ts": "timestamp", "title": "title"},
        ),
        ("amazon-2023", "user_id parent_asin rating timestamp", {"item_id": "parent_asin"}),
        (
            "amazon-2014-items",
            "asin title price imUrl related salesRank brand categories description",
            {"item_id": "asin", "categories": "categories", "brand": "brand"},
        ),
        (
            "amazon-2018-items",
            "category tech1 description fit title also_buy brand feature rank main_cat price asin details",
            {"item_id": "asin", "categories": "category", "attributes": "details"},
        ),
        (
            "amazon-2023-items",
            "main_category title average_rating features description price store categories details parent_asin",
            {"item_id": "parent_asin", "categories": "categories", "brand": "store"},
        ),
        (
            "taobao",
            "user_id item_id behavior_type user_geohash item_category time",
            {"kind": "behavior_type", "place": "user_geohash", "category": "item_category", "ts": "time"},
        ),
    ],
)
def test_each_format_knows_the_original_columns(format: str, names: str, expected: dict[str, str]) -> None:
    made = layout(source(format), names.split())
    assert {key: made.columns[key] for key in expected} == {key: (name,) for key, name in expected.items()}
    assert set(made.needed) <= set(names.split())


@pytest.mark.parametrize(
    ("format", "first_line", "header"),
    [
        ("taobao", "1,2268318,2520377,pv,1511544070", "user_id item_id category_id behavior_type timestamp"),
        ("amazon-2014", "A39HTATAQ9V7YF,0205616461,5.0,1369699200", "reviewerID asin overall unixReviewTime"),
        ("amazon-2018", "0205616461,A39HTATAQ9V7YF,5.0,1369699200", "asin reviewerID overall unixReviewTime"),
    ],
)
def test_files_without_a_header_are_recognised_by_their_first_line(format: str, first_line: str, header: str) -> None:
    made = layout(source(format), first_line.split(","))
    assert made.header == tuple(header.split())
    assert set(made.needed) <= set(header.split())


def test_column_numbers_read_a_file_without_a_header() -> None:
    made = layout(source(columns={"user_id": "0", "ts": "2", "item_id": "1"}, kind="view"), ["u1", "i1", "2024-01-01"])
    assert made.header == ("0", "1", "2")


def test_every_built_in_format_but_columns_has_required_columns() -> None:
    for name in FORMATS:
        if name != "columns":
            with pytest.raises(SourceError, match="the file has no column"):
                layout(source(name), ["a", "b", "c"])


def test_contract_columns_are_those_of_the_schemas() -> None:
    assert set(ROWS.names) - set(CONTRACT) == {"hour", "weekday"}
    assert set(ITEMS.names) <= set(CONTRACT)


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'amazon2014' is no format; did you mean 'amazon-2014'\?"):
        layout(source("amazon2014"), ["a"])
    with pytest.raises(ConfigError, match="did you mean 'taobao'"):
        is_catalogue(source("tabao"))


def test_missing_column_names_file_columns_and_section() -> None:
    with pytest.raises(SourceError) as caught:
        layout(source(columns=EVENTS, kind="view"), ["a", "b", "c"], "reviews", "reviews.csv")
    assert str(caught.value) == (
        "reviews.csv has no column 'u'; it has a, b, c; map it under [sources.reviews.columns]"
    )


def test_unknown_contract_column_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"maps 'userid', which is no column of the contract; did you mean 'user_id'"):
        layout(source(columns={**EVENTS, "userid": "u"}, kind="view"), ["u", "i", "t"])


@pytest.mark.parametrize("column", ["user_id", "ts"])
def test_map_without_user_or_time_says_what_is_missing(column: str) -> None:
    mapped = {key: value for key, value in EVENTS.items() if key != column}
    with pytest.raises(ConfigError, match=rf"maps no '{column}'"):
        layout(source(columns=mapped, kind="view"), ["u", "i", "t"])


def test_map_of_a_text_alone_is_refused_and_not_read_as_a_catalogue() -> None:
    with pytest.raises(ConfigError, match=r"\[sources.zh.columns\] maps no 'user_id'"):
        layout(source(columns={"text": "review"}, kind="review"), ["cat", "label", "review"], "zh")


def test_rows_of_no_kind_are_refused_unless_they_are_rated() -> None:
    with pytest.raises(ConfigError, match="does not say what its rows are"):
        layout(source(columns=EVENTS), ["u", "i", "t"])
    assert layout(source(columns={**EVENTS, "rating": "r"}), ["u", "i", "t", "r"]).kind == "review"


def test_sources_own_settings_go_before_the_formats() -> None:
    names = ["reviewerID", "asin", "overall", "unixReviewTime", "summary", "reviewText", "country"]
    made = layout(
        source("amazon-2014", columns={"place": "country", "text": ["summary", "reviewText"]}, whole_days=False), names
    )
    assert made.columns["place"] == ("country",)
    assert made.columns["text"] == ("summary", "reviewText")
    assert made.whole_days is False
    assert made.kind == "review"
    own = layout(source("taobao", kinds={"pv": "search"}), ["user_id", "item_id", "behavior_type", "time"])
    assert own.kinds["pv"] == "search"
    assert own.kinds["buy"] == "purchase"


def test_sparse_files_may_lack_a_field_that_no_row_fills_but_not_a_misspelt_one() -> None:
    query = source(columns={"user_id": "u", "ts": "t", "item_id": "i", "text": "query"}, kind="view")
    assert layout(query, ["u", "t", "i"], sparse=True).columns["text"] == ("query",)
    with pytest.raises(SourceError, match="no column 'query'; it has u, t, i, querry"):
        layout(query, ["u", "t", "i", "querry"], sparse=True)
    with pytest.raises(SourceError, match="no column 't'"):
        layout(query, ["u", "i"], sparse=True)
    assert layout(query, ["u", "i"], sparse=True, begins=False).columns["ts"] == ("t",)


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (source(columns={**EVENTS, "user_id": "member"}, kind="view"), ["i", "t"]),
        (source("amazon-2023"), ["rating", "parent_asin", "timestamp"]),
    ],
)
def test_sparse_files_may_lack_the_user_but_not_a_misspelt_one(made: Source, names: list[str]) -> None:
    user = made.columns.get("user_id", "user_id")
    assert layout(made, names, sparse=True).columns["user_id"] == (user,)
    with pytest.raises(SourceError, match=f"no column '{user}'"):
        layout(made, names)
    with pytest.raises(SourceError, match=f"no column '{user}'; .*{user}s"):
        layout(made, [*names, f"{user}s"], sparse=True)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
@pytest.mark.parametrize("columns", [EVENTS, {"user_id": "0", "item_id": "1", "ts": "2"}])
def test_columns_between_another_delimiter_name_it(delimiter: str, columns: dict[str, str]) -> None:
    made = source(columns=columns, kind="view")
    with pytest.raises(SourceError, match=rf"set sources\.s\.delimiter = {re.escape(json.dumps(delimiter))}$"):
        layout(made, [delimiter.join("uit")], "s")
    with pytest.raises(SourceError, match=r"map it under \[sources\.s\.columns\]$"):
        layout(made, ["a;b", "c"], "s")


def test_catalogue_is_told_from_events() -> None:
    assert is_catalogue(source("amazon-2018-items"))
    assert not is_catalogue(source("amazon-2018"))
    assert is_catalogue(source(columns={"item_id": "sku", "title": "name", "category": "dept"}))
    assert not is_catalogue(source(columns=EVENTS))
    assert not is_catalogue(source(columns={"item_id": "cat", "text": "review"}))
