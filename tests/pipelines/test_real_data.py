"""Real shops' files build, and the counts are those that the sets are known to have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
from equal import profiles_of, states_of

from ray_profile.config import Config, Encoder, parse
from ray_profile.pipelines.build import Summary, build
from ray_profile.sources.check import Seen, check
from ray_profile.sources.files import expand
from ray_profile.sources.read import ranges, read
from ray_profile.sources.redact import redact


def config_of(root: Path, encoder: Path, sources: dict[str, Any]) -> Config:
    settings = {"model": str(encoder), "dtype": "float32", "max_length": 64}
    return parse({"root": str(root), "sources": sources, "encoder": settings})


def run(config: Config) -> Summary:
    return build(config, local=True, clock=tiny.CLOCK)


def assert_states_hold(root: Path, done: Summary) -> None:
    assert states_of(root, tiny.WIDTH)["rows"].sum() == done.report.rows_folded


def test_amazon_musical(shared: Path, encoder: Path, tmp_path: Path) -> None:
    paths = [str(shared / "data/amazon_musical/reviews.parquet")]
    config = config_of(tmp_path / "root", encoder, {"reviews": {"format": "amazon-2014", "paths": paths}})
    done = run(config)
    assert done.report.rows_read == done.report.rows_folded == 10_261
    assert done.users == 1_429
    profiles = profiles_of(tmp_path / "root")
    assert profiles["review_count"].sum() == 10_261
    assert profiles["last_items"].explode().struct.field("item_id").n_unique() == 900
    # All times are midnight: days, not hours.
    assert profiles["hours"].list.len().sum() == 0
    assert profiles["sessions"].sum() == 0
    assert profiles["weekdays"].list.sum().sum() == 10_261
    assert profiles["sentiment"].struct.field("source").unique().to_list() == ["stars"]
    stars = pl.read_parquet(paths[0]).group_by("reviewerID").agg(pl.col("overall").mean())
    joined = profiles.join(stars, left_on="user_id", right_on="reviewerID")
    assert np.allclose(joined["mean_rating"], joined["overall"])
    assert_states_hold(tmp_path / "root", done)


def test_amazon_2023_with_its_catalogue(shared: Path, encoder: Path, tmp_path: Path) -> None:
    folder = shared / "data/amazon_2023"
    sources = {
        "reviews": {"format": "amazon-2023", "paths": [str(folder / "reviews.parquet")]},
        "items": {"format": "amazon-2023-items", "paths": [str(folder / "items.parquet")]},
    }
    done = run(config_of(tmp_path / "root", encoder, sources))
    assert (done.report.rows_read, done.users) == (3_455, 354)
    profiles = profiles_of(tmp_path / "root")
    tags = profiles["tags"].explode().struct.unnest().drop_nulls("tag")
    truth = pl.read_parquet(folder / "items.parquet")["main_category"].drop_nulls().unique()
    assert set(tags["tag"]) <= set(truth)
    assert tags["source"].unique().to_list() == ["catalogue"]
    assert tags["share"].is_between(0, 1).all()
    assert (tags["support"] <= tags["of"]).all()
    assert tags["evidence"].list.len().min() > 0
    assert (tags["weak"] == (tags["items"] < 2)).all()
    assert_states_hold(tmp_path / "root", done)


def test_online_retail(shared: Path, encoder: Path, tmp_path: Path) -> None:
    path = shared / "data/online_retail/online_retail.parquet"
    columns = {
        "user_id": "CustomerID",
        "item_id": "Description",
        "item_title": "Description",
        "ts": "InvoiceDate",
        "price": "UnitPrice",
        "quantity": "Quantity",
        "place": "Country",
    }
    source = {"format": "columns", "kind": "purchase", "paths": [str(path)], "columns": columns}
    done = run(config_of(tmp_path / "root", encoder, {"orders": source}))
    report = done.report
    assert report.rows_read == 541_909
    # 1,454 of the 135,080 rows without a customer have no description either, so that they are wrong before anonymous.
    assert report.rows_anonymous + report.quarantined["item_missing"] == 135_080
    assert done.users == 4_372
    profiles = profiles_of(tmp_path / "root").with_columns(pl.col("user_id").cast(pl.Int64))
    raw = pl.read_parquet(path).drop_nulls("CustomerID").with_columns(pl.col("CustomerID").cast(pl.Int64))
    spent = raw.group_by("CustomerID").agg(
        (pl.col("Quantity") * pl.col("UnitPrice")).sum().alias("net"),
        (pl.col("Quantity") < 0).sum().alias("returns"),
        pl.col("InvoiceDate").filter(pl.col("Quantity") > 0).n_unique().alias("orders"),
        pl.len().alias("lines"),
    )
    joined = profiles.join(spent, left_on="user_id", right_on="CustomerID")
    assert joined.height == 4_372
    assert np.allclose(joined["monetary"], joined["net"], atol=0.01)
    assert joined["returns"].struct.field("n").equals(joined["returns_right"].cast(pl.Int64), check_names=False)
    assert np.allclose(joined["frequency"], joined["orders"])
    assert joined["rows"].equals(joined["lines"].cast(pl.Int64), check_names=False)
    assert joined["places"].list.len().min() >= 1
    assert_states_hold(tmp_path / "root", done)


@pytest.mark.slow
def test_complete_journey(shared: Path, encoder: Path, tmp_path: Path) -> None:
    folder = shared / "data/complete_journey"
    columns = {
        "user_id": "household_id",
        "item_id": "product_id",
        "ts": "transaction_timestamp",
        "amount": "sales_value",
        "quantity": "quantity",
        "order_id": "basket_id",
        "place": "store_id",
    }
    catalogue = {
        "item_id": "product_id",
        "title": "product_type",
        "categories": ["department", "product_category", "product_type"],
        "brand": "brand",
    }
    sources = {
        "sales": {
            "format": "columns",
            "kind": "purchase",
            "paths": [str(folder / "transactions_*.parquet")],
            "columns": columns,
        },
        "products": {"format": "columns", "paths": [str(folder / "products.parquet")], "columns": catalogue},
    }
    done = run(config_of(tmp_path / "root", encoder, sources))
    assert done.report.rows_read == done.report.rows_folded == 1_469_307
    assert done.users == 2_469
    profiles = profiles_of(tmp_path / "root")
    raw = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("transactions_*.parquet"))])
    baskets = raw.group_by(pl.col("household_id").cast(pl.String)).agg(
        pl.col("basket_id").n_unique().alias("orders"), pl.col("sales_value").sum().alias("net")
    )
    joined = profiles.join(baskets, left_on="user_id", right_on="household_id")
    assert np.allclose(joined["frequency"], joined["orders"])
    assert np.allclose(joined["monetary"], joined["net"], atol=0.05)
    assert joined["categories"].list.len().min() > 0
    assert joined["price_rank"].drop_nulls().is_between(0, 1).all()
    assert_states_hold(tmp_path / "root", done)


@pytest.mark.parametrize(
    ("file", "rows"), [("UserBehavior_first4321.csv", 4_321), ("tianchi_mobile_user_behavior_sample.csv", 1_999)]
)
def test_taobao(shared: Path, encoder: Path, tmp_path: Path, file: str, rows: int) -> None:
    source = {"format": "taobao", "paths": [str(shared / "data/taobao" / file)], "timezone": "Asia/Shanghai"}
    source["max_quarantine"] = 0.02
    done = run(config_of(tmp_path / "root", encoder, {"log": source}))
    assert done.report.rows_read == rows
    assert done.report.rows_folded + done.report.rows_quarantined == rows
    kinds = profiles_of(tmp_path / "root")["kinds"].explode().struct.field("kind").unique()
    assert {"view", "purchase"} <= set(kinds)
    assert_states_hold(tmp_path / "root", done)


def test_chinese_reviews_without_users_or_times_go_through_check_redaction_and_encoding(
    shared: Path, tmp_path: Path
) -> None:
    from ray_profile.encode.text import TextEncoder
    from ray_profile.encode.tokens import Letters, readable_or_raise

    frame = pl.read_parquet(shared / "data/shopping_zh/reviews.parquet")
    dated = frame.select("review", pl.lit("2020-01-01").alias("ts"), pl.lit("u").alias("user"))
    dated = dated.with_columns(pl.int_range(pl.len()).alias("item"), pl.lit(5).alias("stars"))
    dated.write_parquet(tmp_path / "reviews.parquet")
    columns = {"user_id": "user", "item_id": "item", "ts": "ts", "text": "review", "rating": "stars"}
    raw = {"format": "columns", "kind": "review", "paths": [str(tmp_path / "reviews.parquet")], "columns": columns}
    source = parse({"root": "x", "sources": {"zh": raw}}).sources["zh"]
    good, rows = [], 0
    for range_ in ranges(expand("zh", source)[0], source):
        for chunk in read(range_, source):
            checked = check(chunk, source, tiny.CLOCK, Seen())
            good.append(checked.good["text"])
            rows += chunk.rows_read
    assert rows == 62_774
    texts = pl.concat(good)
    assert texts.null_count() <= 5
    clean = redact(texts.drop_nulls())
    mobile = r"1[3-9]\d{9}"
    # What is left of eleven such digits stands in two order numbers and in the address of a page.
    assert clean.str.contains(mobile).sum() == 3 < texts.str.contains(mobile).sum()
    settings = Encoder(
        model=str(shared / "models/multilingual-e5-small-zh-en"), prefix="query: ", dtype="float32", max_length=64
    )
    encoder = TextEncoder.load(settings, device="cpu")
    encoded = encoder.encode(clean.head(64))
    readable_or_raise(settings.model, Letters(encoded.characters, encoded.unknown_characters))
    assert encoded.vectors.shape == (64, 384)
    assert np.allclose(np.linalg.norm(encoded.vectors.astype(np.float32), axis=1), 1, atol=2e-3)
