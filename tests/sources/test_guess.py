from __future__ import annotations

import gzip
import json
import re
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_profile import config
from ray_profile.config import Config, Source
from ray_profile.errors import SourceError
from ray_profile.schema import KINDS
from ray_profile.sources.files import expand, filesystem
from ray_profile.sources.formats import is_catalogue
from ray_profile.sources.guess import Guess, GuessedSource, guess, starter
from ray_profile.sources.ingest import ingest, ingest_items
from ray_profile.sources.quality import quality
from ray_profile.sources.read import ranges

CLOCK = datetime(2026, 1, 1, tzinfo=UTC)


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def only(found: Guess) -> GuessedSource:
    assert len(found.sources) == 1, found
    return found.sources[0]


def mapped(source: GuessedSource) -> dict[str, Any]:
    return {name: guessed.value for name, guessed in source.columns.items()}


def settings(source: GuessedSource) -> dict[str, Any]:
    return {name: guessed.value for name, guessed in source.settings.items() if name != "paths"}


def parsed(found: Guess) -> Config:
    """The configuration that the guess writes, as a build would read it."""
    return config.parse(tomllib.loads(found.to_toml("root")))


def rows_of(source: Source) -> tuple[pl.DataFrame, int, int, int]:
    """Every good row; rows read, anonymous and quarantined."""
    parts = [part for file in expand("x", source) for part in ranges(file, source)]
    blocks = [block for part in parts for block in ingest(part, source, CLOCK, None)]
    rows = pl.concat([pl.DataFrame(block.rows) for block in blocks])
    return (
        rows,
        sum(block.rows_read for block in blocks),
        sum(block.anonymous for block in blocks),
        sum(block.quarantined.num_rows for block in blocks),
    )


def items_of(source: Source) -> pl.DataFrame:
    parts = [part for file in expand("x", source) for part in ranges(file, source)]
    tables = [table for part in parts for table in ingest_items(part, source)]
    return pl.concat([pl.DataFrame(table) for table in tables]).unique("item_id")


# The starter file


def test_starter_is_valid_and_names_every_key_with_its_default() -> None:
    text = starter()
    made = config.parse(tomllib.loads(text))
    assert list(made.sources) == ["reviews"]
    sections = (config.Encoder, config.Taxonomy, config.Privacy, config.State, config.Build, config.Serve)
    for section in (Config, *sections, Source):
        for key in section.model_fields:
            assert f"{key} = " in text or f"[{key}]" in text or f".{key}]" in text or f"[{key}." in text, (
                f"{section.__name__}.{key}"
            )
    for section in ("encoder", "taxonomy", "privacy", "state", "build", "serve"):
        assert f"# [{section}]" in text


def test_starter_with_every_comment_made_a_key_is_valid_and_changes_no_default() -> None:
    lines = re.findall(r"^(?:# )?(\w+ = .+|\[[\w.]+\])$", starter(), re.MULTILINE)
    made = config.parse(tomllib.loads("\n".join(lines)))
    plain = Config(root="x")
    assert made.encoder == plain.encoder
    assert made.state == plain.state
    examples = {"cpus", "encoders", "gpus_per_encoder", "encoder_labels"}  # their default is what the machine has
    assert made.build.model_dump(exclude=examples) == plain.build.model_dump(exclude=examples)
    assert made.serve.jwt is not None
    secured = {"tokens", "jwt", "tls_certificate", "tls_key", "proxy"}  # they have examples alone
    assert made.serve.model_dump(exclude=secured) == plain.serve.model_dump(exclude=secured)
    assert made.sources["orders"].columns["user_id"] == "customer"


# Real sets


@pytest.mark.parametrize(
    ("folder", "format", "rows", "users", "items"),
    [("amazon_musical", "amazon-2014", 10_261, 1_429, 900), ("amazon_2023", "amazon-2023", 3_455, 354, 3_228)],
)
def test_amazon_reviews(shared: Path, folder: str, format: str, rows: int, users: int, items: int) -> None:
    found = guess([str(shared / "data" / folder / "reviews.parquet")])
    assert settings(only(found))["format"] == format
    good, read, anonymous, quarantined = rows_of(parsed(found).sources["reviews"])
    assert (read, anonymous, quarantined) == (rows, 0, 0)
    assert (good["user_id"].n_unique(), good["item_id"].n_unique()) == (users, items)


def test_amazon_items_beside_their_reviews(shared: Path) -> None:
    found = guess([str(shared / "data" / "amazon_2023")])
    sources = parsed(found).sources
    assert sorted(sources) == ["items", "reviews"]
    assert is_catalogue(sources["items"])
    assert items_of(sources["items"]).height == 3_228


def test_online_retail(shared: Path) -> None:
    found = guess([str(shared / "data" / "online_retail" / "*.parquet")])
    source = only(found)
    assert mapped(source) == {
        "user_id": "CustomerID",
        "item_id": "Description",
        "item_title": "Description",
        "ts": "InvoiceDate",
        "price": "UnitPrice",
        "quantity": "Quantity",
        "place": "Country",
    }
    assert settings(source) == {"format": "columns", "kind": "purchase", "timezone": "UTC"}
    assert "columns.item_id" in source.unsure()
    assert "timezone" in source.unsure()
    good, read, anonymous, quarantined = rows_of(parsed(found).sources["online_retail"])
    assert read == 541_909
    assert anonymous + quarantined == 135_080
    assert quarantined == 1_454, "lines without a description, none of which names a customer"
    assert good["user_id"].n_unique() == 4_372
    assert set(good["kind"].unique()) == {"purchase", "return"}


def test_complete_journey(shared: Path) -> None:
    found = guess([str(shared / "data" / "complete_journey" / "*.parquet")])
    usable = {source.name: source for source in found.sources if not source.needed}
    assert sorted(usable) == ["products", "transactions"]
    assert mapped(usable["transactions"]) == {
        "user_id": "household_id",
        "item_id": "product_id",
        "ts": "transaction_timestamp",
        "quantity": "quantity",
        "order_id": "basket_id",
        "place": "store_id",
        "amount": "sales_value",
    }
    sources = parsed(found).sources
    assert sources["transactions"].paths[0].endswith("/transactions_*.parquet")
    assert sources["products"].columns["categories"] == ["department", "product_category", "product_type"]
    assert items_of(sources["products"]).height == 92_331
    good, read, anonymous, quarantined = rows_of(sources["transactions"])
    assert (read, anonymous, quarantined) == (1_469_307, 0, 0)
    assert good["user_id"].n_unique() == 2_469
    told = "\n".join(found.warnings())
    assert "[sources.coupon_redemptions] is commented out" in told
    assert "demographics" in told


def test_taobao(shared: Path) -> None:
    found = guess([str(shared / "data" / "taobao" / "*.csv")])
    assert [settings(source)["format"] for source in found.sources] == ["taobao", "taobao"]
    read = sorted(rows_of(source)[1:] for source in parsed(found).sources.values())
    assert read == [(1_999, 0, 0), (4_321, 0, 0)]


@pytest.mark.parametrize("folder", ["shopping_zh", "womens_clothing"])
def test_reviews_without_users_and_times_are_not_made_up(shared: Path, folder: str) -> None:
    found = guess([str(shared / "data" / folder / "reviews.parquet")])
    source = only(found)
    assert "text" in source.columns
    assert any(need.startswith("columns.user_id") for need in source.needed)
    assert any(need.startswith("columns.ts") for need in source.needed)
    assert parsed(found).sources == {}
    assert "is commented out" in found.warnings()[0]


def test_womens_clothing_columns(shared: Path) -> None:
    columns = mapped(only(guess([str(shared / "data" / "womens_clothing" / "*")])))
    assert columns["item_id"] == "Clothing ID"
    assert (columns["title"], columns["text"], columns["rating"]) == ("Title", "Review Text", "Rating")
    assert columns["categories"] == ["Division Name", "Department Name", "Class Name"]


def test_cdnow_is_separated_by_blanks_and_names_no_item(shared: Path, tmp_path: Path) -> None:
    original = shared / "data" / "cdnow" / "CDNOW_master.txt"
    found = guess([str(original)])
    assert not found.sources
    assert "runs of blanks" in found.notes[0]
    lines = [",".join(line.split()) for line in original.read_text().splitlines() if line.strip()]
    source = only(guess([write(tmp_path / "cdnow.csv", "\n".join(lines))]))
    assert mapped(source) == {
        "user_id": "customer_id",
        "ts": "date",
        "quantity": "number_of_cds",
        "amount": "dollar_value",
    }
    assert settings(source)["whole_days"] is True
    assert len(source.needed) == 1
    assert "item_id" in source.needed[0]


def test_files_that_are_no_rows_are_named_with_the_reason(shared: Path) -> None:
    found = guess([str(shared / "data" / "amazon_seqrec"), str(shared / "data" / "presidio_pii")])
    told = "\n".join(found.notes)
    assert "JSON array" in told
    assert "12,101 keys" in told
    assert "Beauty.txt" in told


# Made files


ZH_ORDERS = (
    "订单编号,买家会员名,商品编号,商品名称,下单时间,单价,数量,收货城市,一级类目,二级类目\n"
    "20240001,小明,A1,棉质衬衫,2024-01-02 10:11:12,¥59.00,1,杭州,服装,衬衫\n"
    "20240002,小红,A2,无线耳机,2024-01-03 08:00:01,¥199.00,2,上海,数码,耳机\n"
)


def test_chinese_headers(tmp_path: Path) -> None:
    found = guess([write(tmp_path / "订单.csv", ZH_ORDERS)])
    assert mapped(only(found)) == {
        "user_id": "买家会员名",
        "item_id": "商品编号",
        "item_title": "商品名称",
        "ts": "下单时间",
        "price": "单价",
        "quantity": "数量",
        "order_id": "订单编号",
        "place": "收货城市",
        "categories": ["一级类目", "二级类目"],
    }
    rows, read, anonymous, quarantined = rows_of(parsed(found).sources["订单"])
    assert (read, anonymous, quarantined) == (2, 0, 0)
    assert rows["price"].to_list() == [59.0, 199.0]
    assert rows["kind"].unique().to_list() == ["purchase"]


def test_chinese_reviews(tmp_path: Path) -> None:
    text = "用户ID,商品ID,评分,评价内容,评价时间\nu1,i1,5,质量很好,2023/5/1 9:30\nu2,i2,1,太差了,2023/12/31 23:59\n"
    found = guess([write(tmp_path / "评价.csv", text)])
    assert mapped(only(found)) == {
        "user_id": "用户ID",
        "item_id": "商品ID",
        "ts": "评价时间",
        "text": "评价内容",
        "rating": "评分",
    }
    assert settings(only(found))["kind"] == "review"
    assert rows_of(parsed(found).sources["评价"])[1:] == (2, 0, 0)


def test_a_file_in_gbk_says_how_to_convert_it(tmp_path: Path) -> None:
    found = guess([write(tmp_path / "orders.csv", ZH_ORDERS, "gb18030")])
    assert not found.sources
    assert "GB18030" in found.notes[0]


def test_semicolons_and_day_first_dates(tmp_path: Path) -> None:
    rows = [f"c{n % 3};p{n};{n + 1:02}/03/2024 08:1{n % 10};1,5;x, y" for n in range(25)]
    path = write(tmp_path / "sales.csv", "customer;sku;order_date;price;note\n" + "\n".join(rows))
    source = only(guess([path]))
    made = settings(source)
    assert made["delimiter"] == ";"
    assert made["time_format"] == "%d/%m/%Y %H:%M"
    assert "price" not in source.columns, "1,5 is no number"
    assert any("'1,5'" in remark for remark in source.remarks)


def test_dates_that_fit_two_orders_are_unsure(tmp_path: Path) -> None:
    text = "user,item,date,price\na,x,01/02/2024,3\nb,y,03/04/2024,4\n"
    source = only(guess([write(tmp_path / "sales.csv", text)]))
    assert "day or month first" in source.unsure()["time_format"]


def test_gzip_of_json_lines_in_dated_folders_is_one_source(tmp_path: Path) -> None:
    for day in range(1, 13):
        rows = [{"uid": f"u{n}", "sku": f"i{n}", "event": "add_to_cart", "ts": 1_700_000_000_000 + n} for n in range(3)]
        rows[0] |= {"event": "hover"} if day == 3 else {}
        path = tmp_path / "events" / f"dt=2024-01-{day:02}" / "part-0000.json.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in rows).encode()))
    found = guess([str(tmp_path / "events")])
    source = only(found)
    assert (source.name, source.files) == ("events", 12)
    assert settings(source)["time_unit"] == "ms"
    assert source.kinds["add_to_cart"].value == "cart"
    text = guess([f"{tmp_path}/events/*/*.json.gz"]).to_toml("root")
    assert '"cart"' in text
    assert len(expand("x", parsed(found).sources["events"])) == 12


def test_an_unknown_word_for_a_kind_is_a_comment(tmp_path: Path) -> None:
    text = "user_id,item_id,action,time\n" + "".join(
        f"u{n},i{n},{['buy', 'zoom'][n % 2]},2024-01-0{n + 1}T10:00:00+08:00\n" for n in range(6)
    )
    found = guess([write(tmp_path / "log.csv", text)])
    assert '# zoom = "..."  # unsure:' in found.to_toml("root")
    source = parsed(found).sources["log"]
    assert source.kinds == {"buy": "purchase"}
    assert source.timezone == "Etc/GMT-8"


def test_one_row_no_rows_and_no_bytes(tmp_path: Path) -> None:
    one = only(guess([write(tmp_path / "one.csv", "user_id,item_id,rating,time\nu,i,5,2024-01-01 10:00\n")]))
    assert set(one.columns) == {"user_id", "item_id", "rating", "ts"}
    none = only(guess([write(tmp_path / "none.csv", "user_id,item_id,rating,time\n")]))
    assert set(none.columns) == {"user_id", "item_id", "rating", "ts"}
    assert "no rows" in none.unsure()["columns.user_id"]
    empty = guess([write(tmp_path / "empty.csv", "")])
    assert not empty.sources
    assert "is empty" in empty.notes[0]


def test_headerless_csv_is_mapped_by_place(tmp_path: Path) -> None:
    text = "".join(
        f"{100 + n % 5},{9000 + n},{['pv', 'buy'][n % 2]},2024-02-0{n % 9 + 1} 10:00:0{n % 10},7.5\n" for n in range(30)
    )
    found = guess([write(tmp_path / "log.csv", text)])
    source = only(found)
    assert mapped(source) == {"user_id": "0", "item_id": "1", "kind": "2", "ts": "3"}
    assert set(source.unsure()) >= {"columns.user_id", "columns.item_id"}
    assert rows_of(parsed(found).sources["log"])[1:] == (30, 0, 0)


@pytest.mark.parametrize(
    ("rows", "format"),
    [
        ("A1YJEY40YUW4SE,7806397051,3.0,1391040000", "amazon-2014"),
        ("7806397051,A1YJEY40YUW4SE,3.0,1391040000", "amazon-2018"),
    ],
)
def test_amazon_ratings_without_a_header(tmp_path: Path, rows: str, format: str) -> None:
    found = guess([write(tmp_path / "ratings_Beauty.csv", f"{rows}\n{rows}\n")])
    assert settings(only(found))["format"] == format


def test_files_of_one_folder_and_two_shapes_are_two_sources(tmp_path: Path) -> None:
    for month in (1, 2, 3):
        write(tmp_path / f"orders-2024-{month:02}.csv", "user,item,price,date\na,b,1,2024-01-01\nc,d,2,2024-01-02\n")
        write(tmp_path / f"views-2024-{month:02}.csv", "user,item,date\na,b,2024-01-01\nc,d,2024-01-02\n")
    found = guess([str(tmp_path)])
    assert {source.name: settings(source)["kind"] for source in found.sources} == {
        "orders": "purchase",
        "views": "view",
    }
    assert parsed(found).sources["orders"].paths == (f"{tmp_path}/orders-*.csv",)


def test_what_a_row_is_must_be_said_where_nothing_says_it(tmp_path: Path) -> None:
    source = only(guess([write(tmp_path / "log.csv", "user,item,date\na,b,2024-01-01\nc,d,2024-01-02\n")]))
    assert source.needed
    assert source.needed[0].startswith("kind = ")


def test_the_content_of_a_key_is_in_no_message(tmp_path: Path) -> None:
    write(tmp_path / "shop.key", "c2VjcmV0LXNlY3JldA==\n")
    write(tmp_path / "secret.txt", "c2VjcmV0LXNlY3JldA==\n")
    found = guess([str(tmp_path)])
    assert len(found.notes) == 2
    assert "c2VjcmV0" not in found.to_toml("root")


def test_addresses_as_users_are_found_and_not_shown(tmp_path: Path) -> None:
    text = "who,item,stars,when\n" + "".join(f"p{n}@example.org,i{n},4,2024-01-0{n + 1}\n" for n in range(5))
    found = guess([write(tmp_path / "reviews.csv", text)])
    assert mapped(only(found))["user_id"] == "who"
    assert "example.org" not in found.to_toml("root")


def test_no_file_is_an_error_that_names_the_pattern(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing-here"):
        guess([str(tmp_path / "nothing-here*.csv")])


@pytest.mark.parametrize("kind", KINDS)
def test_every_guess_of_a_kind_is_one_of_the_contract(kind: str, tmp_path: Path) -> None:
    text = "user_id,item_id,query,event_type,time\n" + "".join(
        f"u{n},i{n},q,{kind},2024-01-0{n + 1} 10:00\n" for n in range(5)
    )
    assert {guessed.value for guessed in only(guess([write(tmp_path / "e.csv", text)])).kinds.values()} == {kind}


def test_a_simulated_shop(tmp_path: Path) -> None:
    from ray_profile.sources.simulate import simulate

    shop = simulate(tmp_path / "shop", customers=20, months=2, seed=1)
    patterns: Sequence[str] = [f"{shop.folder}/{name}*" for name in ("reviews-", "events-", "items")]
    found = guess(patterns)
    own = config.load(shop.config).sources
    guessed = parsed(found).sources
    assert sorted(guessed) == sorted(own)
    assert guessed["events"].columns == own["events"].columns
    assert guessed["events"].kinds == {
        word: kind for word, kind in own["events"].kinds.items() if word in guessed["events"].kinds
    }
    assert guessed["reviews"].format == own["reviews"].format
    assert guessed["items"].format == own["items"].format


def test_files_on_s3(s3: Any) -> None:
    folder = s3.fresh()
    fs, inner = filesystem(folder)
    for month in (1, 2):
        fs.pipe(f"{inner}/orders/2024-{month:02}.csv", ZH_ORDERS.encode())
    found = guess([f"{folder}/orders/"])
    source = parsed(found).sources["orders"]
    assert source.columns["user_id"] == "买家会员名"
    assert rows_of(source)[1:] == (4, 0, 0)
    described = quality("orders", source, expand("orders", source), CLOCK, None)
    assert (described.files, described.rows, described.users) == (2, 4, 2)


def test_parquet_of_wide_decimals_is_guessed_and_one_of_equal_names_is_not_read(tmp_path: Path) -> None:
    wide = pa.array([10**45, 10**46], pa.decimal256(60, 0))
    table = pa.table({"user_id": wide, "item_id": [1, 2], "rating": [5, 4], "time": ["2024-01-02", "2024-01-03"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert mapped(only(guess([str(tmp_path / "a.parquet")])))["user_id"] == "user_id"
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["u", "u"]), tmp_path / "b.parquet")
    found = guess([str(tmp_path / "b.parquet")])
    assert not found.sources
    assert any("has columns of one name" in warning for warning in found.warnings())
