from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import json
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_profile.config import Source
from ray_profile.errors import ConfigError, SourceError
from ray_profile.schema import ITEMS, QUARANTINE, ROWS
from ray_profile.sources.files import expand
from ray_profile.sources.ingest import Ingested, identified, ingest, ingest_items
from ray_profile.sources.read import ranges
from ray_profile.sources.redact import pseudonym
from ray_profile.sources.sample import draw

CLOCK = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEY = b"a key of the tests, not a secret"


def source(path: Path | str, format: str = "columns", **rest: Any) -> Source:
    return Source(format=format, paths=(str(path),), **rest)


def ingested(made: Source, key: bytes | None = KEY, redact_text: bool = True) -> list[Ingested]:
    blocks = [
        block
        for file in expand("s", made)
        for part in ranges(file, made)
        for block in ingest(part, made, CLOCK, key, redact_text)
    ]
    for block in blocks:
        assert block.rows.schema.equals(ROWS)
        assert block.quarantined.schema.equals(QUARANTINE)
        assert block.rows_read == block.rows.num_rows + block.quarantined.num_rows + block.anonymous
    return blocks


def items_of(made: Source, rejected: list[pa.Table] | None = None) -> list[dict[str, Any]]:
    tables = [
        table
        for file in expand("s", made)
        for part in ranges(file, made)
        for table in ingest_items(part, made, rejected)
    ]
    assert all(table.schema.equals(ITEMS) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def rows_of(blocks: list[Ingested]) -> pa.Table:
    return pa.concat_tables([block.rows for block in blocks])


def quarantine_of(blocks: list[Ingested]) -> list[dict[str, Any]]:
    return pa.concat_tables([block.quarantined for block in blocks]).to_pylist()


def count(blocks: list[Ingested]) -> dict[str, int]:
    rows = rows_of(blocks)
    return {
        "read": sum(block.rows_read for block in blocks),
        "rows": rows.num_rows,
        "anonymous": sum(block.anonymous for block in blocks),
        "quarantined": sum(block.quarantined.num_rows for block in blocks),
        "users": len(pc.unique(rows["user_id"])),
        "items": len(pc.unique(rows["item_id"])),
    }


# Real files, with the counts that their README gives.


def test_amazon_2014_musical_instruments(shared: Path) -> None:
    blocks = ingested(source(shared / "data/amazon_musical/*.parquet", "amazon-2014"))
    assert count(blocks) == {
        "read": 10_261,
        "rows": 10_261,
        "anonymous": 0,
        "quarantined": 0,
        "users": 1_429,
        "items": 900,
    }
    rows = rows_of(blocks)
    assert rows["hour"].null_count == 10_261
    assert Counter(rows["kind"].to_pylist()) == {"review": 10_261}
    assert pc.min_max(rows["rating"]).as_py() == {"min": 1.0, "max": 5.0}
    written = pl.read_parquet(shared / "data/amazon_musical/reviews.parquet")["reviewTime"].str.to_date("%m %d, %Y")
    assert sorted(rows["weekday"].to_pylist()) == sorted(written.dt.weekday() - 1)


def test_amazon_2023_reviews_and_items(shared: Path) -> None:
    blocks = ingested(source(shared / "data/amazon_2023/reviews.parquet", "amazon-2023"))
    assert count(blocks) | {"items": 0} == {
        "read": 3_455,
        "rows": 3_455,
        "anonymous": 0,
        "quarantined": 0,
        "users": 354,
        "items": 0,
    }
    assert rows_of(blocks)["hour"].null_count == 0
    items = items_of(source(shared / "data/amazon_2023/items.parquet", "amazon-2023-items"))
    assert len(items) == 3_228
    assert len({item["categories"][0] for item in items if item["categories"]}) > 20
    assert 0.25 < sum(item["price"] is None for item in items) / 3_228 < 0.31
    known = {item["item_id"] for item in items}
    assert set(rows_of(blocks)["item_id"].to_pylist()) <= known


RETAIL = {
    "user_id": "CustomerID",
    "item_id": "Description",
    "ts": "InvoiceDate",
    "quantity": "Quantity",
    "price": "UnitPrice",
    "place": "Country",
}


def test_online_retail_with_a_quarter_of_its_rows_anonymous(shared: Path) -> None:
    made = source(shared / "data/online_retail/*.parquet", kind="purchase", columns=RETAIL, timezone="Europe/London")
    blocks = ingested(made, key=None)
    found = count(blocks)
    assert (found["read"], found["users"]) == (541_909, 4_372)
    # 1,454 rows name neither item nor customer: they are wrong before they are anonymous.
    assert found["anonymous"] + found["quarantined"] == 135_080
    assert Counter(row["reason"] for row in quarantine_of(blocks)) == {"item_missing": 1_454}
    rows = rows_of(blocks)
    assert Counter(rows["kind"].to_pylist())["return"] == 8_905
    assert pc.min(rows["quantity"]).as_py() > 0
    assert "17850" in set(rows["user_id"].to_pylist())


@pytest.mark.slow
def test_complete_journey(shared: Path) -> None:
    columns = {
        "user_id": "household_id",
        "item_id": "product_id",
        "ts": "transaction_timestamp",
        "quantity": "quantity",
        "amount": "sales_value",
        "order_id": "basket_id",
        "place": "store_id",
    }
    made = source(
        shared / "data/complete_journey/transactions*.parquet",
        kind="purchase",
        columns=columns,
        timezone="America/New_York",
    )
    found = count(ingested(made))
    assert (found["read"], found["rows"], found["users"]) == (1_469_307, 1_469_307, 2_469)
    products = {"item_id": "product_id", "categories": ["department", "product_category", "product_type"]}
    items = items_of(source(shared / "data/complete_journey/products.parquet", columns=products))
    assert len(items) == 92_331
    assert items[0]["categories"] == ["GROCERY", "FRZN ICE", "ICE - CRUSHED/CUBED"]


def test_taobao_samples_with_and_without_a_header(shared: Path) -> None:
    plain = source(shared / "data/taobao/UserBehavior*.csv", "taobao", timezone="Asia/Shanghai")
    blocks = ingested(plain)
    assert count(blocks)["rows"] == 4_321
    kinds = Counter(rows_of(blocks)["kind"].to_pylist())
    assert kinds == {"view": 3_926, "cart": 190, "favourite": 128, "purchase": 77}
    mobile = source(shared / "data/taobao/tianchi*.csv", "taobao", timezone="Asia/Shanghai")
    blocks = ingested(mobile)
    assert count(blocks)["rows"] == 1_999
    rows = rows_of(blocks)
    assert Counter(rows["kind"].to_pylist()) == {"view": 1_876, "favourite": 18, "cart": 70, "purchase": 35}
    assert rows["hour"].null_count == 0
    written = pl.read_csv(shared / "data/taobao/tianchi_mobile_user_behavior_sample.csv")["time"].str.slice(11)
    assert Counter(rows["hour"].to_pylist()) == Counter(written.cast(pl.Int8))
    assert all(len(item["categories"]) == 1 for item in items_of(mobile))


def test_reviews_without_users_and_times_are_refused_before_they_are_read(shared: Path) -> None:
    chinese = shared / "data/shopping_zh/reviews.parquet"
    with pytest.raises(ConfigError, match="maps no 'user_id'"):
        ingested(source(chinese, kind="review", columns={"text": "review", "item_id": "cat"}))
    with pytest.raises(SourceError, match="has no column 'user'; it has cat, label, review"):
        ingested(source(chinese, kind="review", columns={"text": "review", "user_id": "user", "ts": "time"}))
    blocks = ingested(source(chinese, kind="review", columns={"text": "review", "user_id": "cat", "ts": "label"}))
    assert Counter(row["reason"] for row in quarantine_of(blocks)) == {"time_impossible": 62_774}


def test_clothing_and_fashion_files_as_catalogues(shared: Path) -> None:
    columns = {"item_id": "Clothing ID", "categories": ["Division Name", "Department Name", "Class Name"]}
    clothing = items_of(source(shared / "data/womens_clothing/reviews.parquet", columns=columns))
    reviews = pl.read_parquet(shared / "data/womens_clothing/reviews.parquet")
    assert len(clothing) == reviews["Clothing ID"].n_unique()
    fashion = {
        "item_id": "id",
        "title": "productDisplayName",
        "categories": ["masterCategory", "subCategory", "articleType"],
        "attributes": ["baseColour", "usage"],
    }
    rejected: list[pa.Table] = []
    items = items_of(source(shared / "data/fashion_images/styles.csv", columns=fashion), rejected)
    assert (len(items), rejected) == (2_000, [])
    assert items[0] == {
        "item_id": "26960",
        "title": "Jealous 21 Women Purple Shirt",
        "categories": ["Apparel", "Topwear", "Shirts"],
        "brand": None,
        "price": None,
        "attributes": ["Purple", "Casual"],
    }


# Files of the shape that the data sets were published in.


def test_amazon_2018_json_with_its_metadata(tmp_path: Path) -> None:
    review = {
        "overall": 5.0,
        "verified": True,
        "reviewTime": "09 1, 2016",
        "reviewerID": "A3CIUOJXQ5VDQ2",
        "asin": "B0000530HU",
        "style": {"Size:": " 7.0 oz", "Flavor:": " Classic"},
        "reviewerName": "Shelly F",
        "reviewText": "As advertised.",
        "summary": "Five Stars",
        "unixReviewTime": 1472688000,
    }
    bare = {key: value for key, value in review.items() if key not in ("reviewText", "summary", "style")}
    data = "\n".join(json.dumps(row) for row in (review, bare | {"vote": "1,234"}))
    (tmp_path / "r.json.gz").write_bytes(gzip.compress(data.encode()))
    rows = rows_of(ingested(source(tmp_path / "r.json.gz", "amazon-2018"), key=None)).to_pylist()
    assert [row["text"] for row in rows] == ["Five Stars\nAs advertised.", None]
    assert rows[0]["ts"] == dt.datetime(2016, 9, 1, tzinfo=dt.UTC)
    assert (rows[0]["hour"], rows[0]["weekday"], rows[0]["user_id"]) == (None, 3, "A3CIUOJXQ5VDQ2")
    item = {
        "category": ["All Beauty", "Hair", "Brushes"],
        "title": "Brush &amp; comb",
        "brand": "Acme",
        "price": "$1,012.99",
        "asin": "B0000530HU",
        "details": {"Color": "Red", "Note": "a sentence that is much too long to be an attribute of anything"},
    }
    (tmp_path / "m.json").write_text(json.dumps(item) + "\n" + json.dumps(item | {"price": "$1 - $2", "category": []}))
    first, *rest = items_of(source(tmp_path / "m.json", "amazon-2018-items"))
    assert rest == []
    assert (first["price"], first["categories"]) == (None, None)  # the last row of an item counts
    (tmp_path / "m.json").write_text(json.dumps(item))
    assert items_of(source(tmp_path / "m.json", "amazon-2018-items")) == [
        {
            "item_id": "B0000530HU",
            "title": "Brush & comb",
            "categories": ["All Beauty", "Hair", "Brushes"],
            "brand": "Acme",
            "price": 1012.99,
            "attributes": ["Red"],
        }
    ]


def test_amazon_2014_metadata_in_python_literals(tmp_path: Path) -> None:
    line = "{'asin': '0001', 'title': \"Kid's drum\", 'price': 3.17, 'categories': [['Toys', 'Drums'], ['Music']]}"
    (tmp_path / "meta.json").write_text(line + "\n")
    (item,) = items_of(source(tmp_path / "meta.json", "amazon-2014-items"))
    assert (item["title"], item["categories"], item["price"]) == ("Kid's drum", ["Toys", "Drums"], 3.17)


def test_amazon_ratings_only_files_have_no_header(tmp_path: Path) -> None:
    (tmp_path / "14.csv").write_text("U1,I1,5.0,1472688000\nU2,I1,4.0,1472688000\n")
    (tmp_path / "18.csv").write_text("I1,U1,5.0,1472688000\n")
    for name, users in (("14", ["U1", "U2"]), ("18", ["U1"])):
        rows = rows_of(ingested(source(tmp_path / f"{name}.csv", f"amazon-20{name}"), key=None))
        assert rows["user_id"].to_pylist() == users
        assert set(rows["item_id"].to_pylist()) == {"I1"}


# What becomes of a row.

EVENT_COLUMNS = {"user_id": "user", "item_id": "sku", "ts": "time", "text": "body", "rating": "stars"}


def write_reviews(path: Path, rows: list[dict[str, Any]]) -> Source:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return source(path, kind="review", columns=EVENT_COLUMNS)


def test_text_is_cleaned_and_redacted_and_users_are_pseudonyms(tmp_path: Path) -> None:
    body = "Write to jo@example.com<br/>or 我的手机13812345678请联系"
    rows = [{"user": "u-77", "sku": "1", "time": "2024-01-02 03:04", "body": body, "stars": 4}]
    made = write_reviews(tmp_path / "a.jsonl", rows)
    (row,) = rows_of(ingested(made)).to_pylist()
    assert row["user_id"] == pseudonym("u-77", KEY) != "u-77"
    assert "jo@example.com" not in row["text"]
    assert "13812345678" not in row["text"]
    assert row["text"].startswith("Write to <EMAIL>\nor")
    (plain,) = rows_of(ingested(made, key=None, redact_text=False)).to_pylist()
    assert plain["user_id"] == "u-77"
    assert "jo@example.com" in plain["text"]


def test_quarantine_keeps_the_row_but_nothing_personal(tmp_path: Path) -> None:
    rows = [
        {"user": "u-77", "sku": "1", "time": "2024-01-02", "body": "jo@example.com", "stars": 9},
        {"user": "u-78", "sku": "1", "time": "2024-01-02", "body": "x" * 150_000 + " jo@example.com", "stars": 3},
        {"user": "u-79", "sku": "1", "time": "2024-01-02", "body": "x" * 1_985 + " jo.smith@example.com", "stars": 9},
    ]
    made = write_reviews(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"user": "u-80", "body": "call jo@example.com"\n')
    found = quarantine_of(ingested(made))
    assert [(row["row"], row["reason"]) for row in found] == [
        (0, "rating_range"),
        (1, "text_length"),
        (2, "rating_range"),
        (3, "line_broken"),
    ]
    raw = json.loads(found[0]["raw"])
    assert (raw["user"], raw["body"], raw["stars"]) == (pseudonym("u-77", KEY), "<EMAIL>", "9")
    assert found[3]["raw"] is None  # nobody can tell where in the line the user stands
    stored = json.dumps(found)
    assert all(secret not in stored for secret in ("u-77", "u-78", "u-79", "u-80", "jo@", "jo.smith"))
    assert len(stored) < 10_000
    assert (found[0]["file"], found[0]["offset"], found[0]["source"]) == (str(tmp_path / "a.jsonl"), 0, "s")
    bare = quarantine_of(ingested(made, key=None))
    assert bare[3]["raw"] == '{"user": "u-80", "body": "call <EMAIL>"'


def test_everything_that_can_be_wrong_in_one_file_adds_up(tmp_path: Path) -> None:
    good = {"user": "a", "sku": "1", "time": "2024-01-02", "body": "fine", "stars": 5}
    rows: list[dict[str, Any]] = [
        good,
        good,
        good | {"user": None},
        good | {"user": "b", "time": None},
        good | {"user": "c", "stars": "many"},
        {"user": "d", "sku": "1", "time": "2024-01-02"},
        good | {"user": "e", "time": "1970-01-01"},
        good | {"user": "f", "time": "soon"},
    ]
    blocks = ingested(write_reviews(tmp_path / "a.jsonl", rows))
    assert [row["reason"] for row in quarantine_of(blocks)] == [
        "duplicate",
        "time_missing",
        "rating_unreadable",
        "text_missing",
        "time_impossible",
        "time_unreadable",
    ]
    found = count(blocks)
    assert (found["read"], found["rows"], found["anonymous"], found["quarantined"]) == (8, 1, 1, 6)


def test_duplicates_are_found_across_the_blocks_of_one_range(tmp_path: Path) -> None:
    one = {"user": "a", "sku": "1", "time": "2024-01-02", "body": "fine", "stars": 5}
    rows = [one, *({**one, "body": f"number {n}"} for n in range(100_000)), one]
    blocks = ingested(write_reviews(tmp_path / "a.jsonl", rows))
    assert len(blocks) == 2
    assert [(row["row"], row["reason"]) for row in quarantine_of(blocks)] == [(100_001, "duplicate")]


def test_id_is_the_mapped_column_where_it_has_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,user,sku,time\nr1,a,1,2024-01-02\n,a,1,2024-01-02\n")
    made = source(path, kind="view", columns={"id": "id", "user_id": "user", "item_id": "sku", "ts": "time"})
    ids = rows_of(ingested(made))["id"].to_pylist()
    assert ids[0] == "r1"
    assert len(ids[1]) == 32
    assert int(ids[1], 16) >= 0


@pytest.mark.parametrize("id_columns", ["order", "user", ["user", "order"], ["line", "order"]])
def test_id_made_of_a_user_or_an_order_is_a_pseudonym(tmp_path: Path, id_columns: str | list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text("line,order,user,sku,time\n1,INV-7788,alice@x.com,1,2024-01-02\n2,INV-7788,alice@x.com,1,never\n")
    columns = {"id": id_columns, "order_id": "order", "user_id": "user", "item_id": "sku", "ts": "time"}
    made = source(path, kind="purchase", columns=columns)
    blocks = ingested(made)
    (row,) = rows_of(blocks).to_pylist()
    plain = rows_of(ingested(made, key=None))["id"][0].as_py()
    assert row["id"] == pseudonym(plain, KEY)
    assert row["order_id"] == pseudonym("INV-7788", KEY)
    raw = json.loads(quarantine_of(blocks)[0]["raw"])
    assert (raw["time"], raw.get("line")) == ("never", "2" if "line" in id_columns else None)
    shown = draw(made, expand("s", made), CLOCK, KEY).bad["raw"].to_list()
    stored = json.dumps([row, quarantine_of(blocks), shown], default=str)
    assert all(secret not in stored for secret in ("alice", "INV-7788"))


def test_id_of_its_own_is_kept_with_a_key(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,user,sku,time\nr1,a,1,2024-01-02\n")
    made = source(path, kind="view", columns={"id": "id", "user_id": "user", "item_id": "sku", "ts": "time"})
    assert rows_of(ingested(made))["id"].to_pylist() == ["r1"]


def test_category_of_nothing_but_brackets_is_a_word(tmp_path: Path) -> None:
    path, deep = tmp_path / "a.csv", "[" * 3000
    path.write_text(f"sku,dept\n1,{deep}\n2,{deep}{']' * 3000}\n")
    found = items_of(source(path, columns={"item_id": "sku", "category": "dept"}))
    assert [item["categories"] for item in found] == [[deep], [deep + "]" * 3000]]


def contract_row(**values: Any) -> pl.DataFrame:
    row = {
        "id": None,
        "user_id": "u",
        "item_id": "i",
        "ts": dt.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
        "hour": 3,
        "weekday": 1,
        "kind": "review",
        "text": "好 text",
        "rating": 4.5,
        "quantity": None,
        "price": 12.5,
        "order_id": None,
        "place": None,
        "device": None,
    }
    types = {"ts": pl.Datetime("us", "UTC"), "hour": pl.Int8, "weekday": pl.Int8, "rating": pl.Float32}
    floats = dict.fromkeys(("quantity", "price"), pl.Float64)
    schema = {name: {**types, **floats}.get(name, pl.String) for name in ROWS.names}
    return pl.DataFrame([row | values], schema=schema)


def test_id_is_the_sha256_of_the_fields_as_documented() -> None:
    (found,) = identified(contract_row())["id"].to_pylist()
    bits = [str(struct.unpack("<q", struct.pack("<d", value))[0]) for value in (4.5, 12.5)]
    fields = ["u", "i", "1704164645000006", "review", "好 text", bits[0], "\x1bN", bits[1], "\x1bN", "\x1bN", "\x1bN"]
    assert found == hashlib.sha256("\x1f".join(fields).encode()).hexdigest()[:32]
    assert found == "009d911ff0d653b9a4ef966734f77381"


def test_id_does_not_depend_on_the_rows_around_it() -> None:
    odd = contract_row(item_id="a\x1fb\x1bc", quantity=2.0, order_id="o", id=None)
    alone = identified(contract_row())["id"].to_pylist()
    assert identified(pl.concat([odd, contract_row(), contract_row(id="own")]))["id"].to_pylist()[1:] == [*alone, "own"]


cell = st.none() | st.text(st.sampled_from(["a", "b", "\x1b", "\x1f", "N", "S", "E"]), max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(cell, cell, cell), min_size=2, max_size=8, unique=True))
def test_different_rows_have_different_ids(rows: list[tuple[str | None, str | None, str | None]]) -> None:
    frames = [contract_row(item_id=item, text=text, order_id=order) for item, text, order in rows]
    assert len(set(identified(pl.concat(frames))["id"].to_pylist())) == len(rows)


def test_same_rows_have_the_same_ids_whatever_the_file(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "user": [17850, 2, 3],
            "sku": ["a", "b", "c"],
            "time": ["2024-01-02 03:04:05"] * 3,
            "body": ["fine", "非常好", None],
            "stars": [5.0, 4.5, 3.0],
        }
    )
    frame.write_csv(tmp_path / "a.csv")
    frame.write_ndjson(tmp_path / "a.jsonl")
    frame.with_columns(pl.col("user").cast(pl.Float64), pl.col("time").str.to_datetime()).write_parquet(
        tmp_path / "a.parquet"
    )
    ids = [
        rows_of(ingested(source(tmp_path / f"a.{kind}", kind="review", columns=EVENT_COLUMNS)))["id"].to_pylist()
        for kind in ("csv", "jsonl", "parquet")
    ]
    assert ids[0] == ids[1] == ids[2]
    assert len(set(ids[0])) == 3


def test_event_source_describes_its_items_the_first_time_it_names_them(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("user,sku,time,dept\na,1,2024-01-02,Home > Kitchen\nb,1,2024-01-02,Other\n,2,2024-01-02,\nc,,x,y\n")
    columns = {"user_id": "user", "item_id": "sku", "ts": "time", "category": "dept"}
    items = items_of(source(path, kind="view", columns=columns))
    assert [(item["item_id"], item["categories"]) for item in items] == [("1", ["Home", "Kitchen"]), ("2", None)]
    assert (
        items_of(source(path, kind="view", columns={key: columns[key] for key in ("user_id", "item_id", "ts")})) == []
    )


def test_catalogue_rows_without_an_id_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('sku,name,tags\n1,茶杯,"[""陶瓷"", ""蓝色""]"\n,nobody,\n2,cup\n3,Cup,"red; large"\n')
    rejected: list[pa.Table] = []
    made = source(path, columns={"item_id": "sku", "title": "name", "attributes": "tags"})
    items = items_of(made, rejected)
    assert [(item["item_id"], item["title"], item["attributes"]) for item in items] == [
        ("1", "茶杯", ["陶瓷", "蓝色"]),
        ("3", "Cup", ["red", "large"]),
    ]
    found = pa.concat_tables(rejected)
    assert found.schema.equals(QUARANTINE)
    assert [(row["row"], row["reason"]) for row in found.to_pylist()] == [(1, "item_missing"), (2, "line_broken")]


def test_catalogue_in_parquet_with_lists(tmp_path: Path) -> None:
    rows = {
        "parent_asin": ["1", "2", "3"],
        "title": ["a", None, "c"],
        "main_category": ["Beauty"] * 3,
        "categories": [["Beauty", 'Hair "x"'], [], None],
        "store": ["Acme", None, " "],
        "price": ["12.5", "None", "—"],
        "details": ['{"Color": "红", "Size": 4, "Parts": {"a": 1}}', "{}", None],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    found = items_of(source(tmp_path / "a.parquet", "amazon-2023-items"))
    assert [item["categories"] for item in found] == [["Beauty", 'Hair "x"'], None, None]
    assert [item["price"] for item in found] == [12.5, None, None]
    assert [item["brand"] for item in found] == ["Acme", None, None]
    assert [item["attributes"] for item in found] == [["红", "4"], None, None]


def test_every_text_of_an_item_is_redacted(tmp_path: Path) -> None:
    row = {
        "sku": "1",
        "name": "Cup, call 13900139000",
        "seller": "jo@example.com",
        "path": ["Home", "加微信13900139000"],
        "more": {"Color": "red", "Phone": 13900139000},
        "cost": 1e200,
    }
    columns = {"title": "name", "brand": "seller", "categories": "path", "attributes": "more", "price": "cost"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"sku": "2", "cost": 2}))
    first, second = items_of(source(tmp_path / "a.jsonl", columns={"item_id": "sku", **columns}))
    assert first == {
        "item_id": "1",
        "title": "Cup, call <PHONE>",
        "categories": ["Home", "加微信<PHONE>"],
        "brand": "<EMAIL>",
        "price": None,
        "attributes": ["red", "<PHONE>"],
    }
    assert second == first | {"item_id": "2", "price": 2.0}


value = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=5)
    | st.lists(st.integers(0, 9), max_size=2)
    | st.sampled_from(["2024-01-02", "2024-01-02T03:04:05Z", 1_700_000_000, "view", "search", "u1", "5", -2, "NULL"])
)
fields = ["user", "sku", "time", "body", "stars", "what", "n", "cost"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(fields, value)), max_size=12))
def test_whatever_a_row_holds_it_is_counted_once(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "a.jsonl"
    whole = {"user": "u", "sku": "1", "time": "2024-01-02", "what": "view"}
    path.write_text("\n".join(json.dumps(whole | row) for row in rows), encoding="utf-8")
    columns = {**EVENT_COLUMNS, "kind": "what", "quantity": "n", "price": "cost"}
    columns = {key: name for key, name in columns.items() if name in whole or any(name in row for row in rows)}
    blocks = ingested(source(path, columns=columns))
    assert sum(block.rows_read for block in blocks) == len(rows)
    assert all(block.rows.validate(full=True) is None for block in blocks)


def test_catalogue_holds_no_events(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku\n1\n")
    made = source(tmp_path / "a.csv", columns={"item_id": "sku"})
    with pytest.raises(SourceError, match="is a catalogue"):
        ingested(made)
