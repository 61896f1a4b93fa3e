"""The simulated shop: deterministic, honest, and loadable by the configuration it writes."""

from __future__ import annotations

import gzip
import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from ray_profile import config
from ray_profile.errors import ConfigError
from ray_profile.sources.files import expand
from ray_profile.sources.ingest import ingest
from ray_profile.sources.read import ranges
from ray_profile.sources.simulate import Shop, simulate
from ray_profile.sources.simulate_behaviour import words


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return simulate(tmp_path_factory.mktemp("shop") / "data", customers=600, months=6, seed=7)


@pytest.fixture(scope="module")
def truth(shop: Shop) -> pl.DataFrame:
    return pl.read_parquet(shop.truth)


def _review_lines(shop: Shop) -> list[str]:
    return [line for path in shop.reviews for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def _reviews(shop: Shop) -> pl.DataFrame:
    rows = []
    for line in _review_lines(shop):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return pl.DataFrame(rows, infer_schema_length=None)


def _events(shop: Shop) -> pl.DataFrame:
    return pl.concat([pl.read_csv(path, infer_schema=False) for path in shop.events])


def _item_tags(shop: Shop) -> pl.DataFrame:
    leaf = {tuple(path): fact["id"] for fact in words()["interests"] for path in fact["category"]}
    items = [json.loads(line) for line in shop.items.read_text(encoding="utf-8").splitlines()]
    return pl.DataFrame(
        {"sku": [item["parent_asin"] for item in items], "tag": [leaf[tuple(item["categories"])] for item in items]}
    )


def test_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", customers=30, months=3, seed=3)
    two = simulate(tmp_path / "two", customers=30, months=3, seed=3)
    names = sorted(path.name for path in one.folder.iterdir())
    assert names == sorted(path.name for path in two.folder.iterdir())
    for name in names:
        if name == "ray_profile.toml":  # it names its folder, and nothing else differs
            here = (one.folder / name).read_text().replace(str(one.folder), str(two.folder))
            assert here == (two.folder / name).read_text()
        else:
            assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


def test_another_seed_is_another_shop(tmp_path: Path) -> None:
    one = simulate(tmp_path / "one", customers=30, months=3, seed=3)
    two = simulate(tmp_path / "two", customers=30, months=3, seed=4)
    assert one.key_file.read_bytes() != two.key_file.read_bytes()
    assert one.events[0].read_bytes() != two.events[0].read_bytes()


def test_one_customer_and_one_month(tmp_path: Path) -> None:
    shop = simulate(tmp_path / "shop", customers=1, months=1)
    assert pl.read_parquet(shop.truth).height == 1
    assert shop.event_rows == _events(shop).height >= 1


def test_the_configuration_loads_and_names_what_exists(shop: Shop) -> None:
    loaded = config.load(shop.config)
    assert set(loaded.sources) == {"reviews", "events", "items"}
    assert loaded.sources["events"].kinds["pv"] == "view"
    assert len(loaded.privacy.key() or b"") >= 32
    assert loaded.taxonomy.path == str(shop.taxonomy)
    assert Path(loaded.root).parent == shop.folder
    assert not Path(loaded.root).exists()
    assert stat.S_IMODE(shop.key_file.stat().st_mode) == 0o600


def test_an_encoder_can_be_named(tmp_path: Path) -> None:
    shop = simulate(tmp_path / "shop", 5, 1, encoder="bundled:multilingual-e5-small", prefix="query: ")
    assert config.load(shop.config).encoder.model == "bundled:multilingual-e5-small"
    assert config.load(shop.config).encoder.prefix == "query: "


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reviews-mine.jsonl.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match="not empty"):
        simulate(tmp_path, customers=5, months=1)
    with pytest.raises(ConfigError, match="at least 1"):
        simulate(tmp_path / "new", customers=0)


def test_counts_of_the_shop_are_those_of_the_files(shop: Shop) -> None:
    lines, events = _review_lines(shop), _events(shop)
    assert len(lines) == shop.review_rows
    assert events.height == shop.event_rows
    assert events["customer"].null_count() == shop.anonymous > 0
    assert len(lines) - len(set(lines)) == shop.duplicates > 0


def test_broken_rows_are_few_in_every_month(shop: Shop) -> None:
    events = _events(shop).with_columns(
        time_bad=pl.col("time").str.to_datetime("%F %T", strict=False).is_null(),
        action_bad=~pl.col("action").is_in(["pv", "fav", "cart", "buy", "search"]),
        price_bad=pl.col("price").is_not_null() & pl.col("price").cast(pl.Float64, strict=False).is_null(),
    )
    bad = events.select("time_bad", "action_bad", "price_bad").sum().row(0)
    assert min(bad) > 0
    reviews = _reviews(shop)
    spoilt = reviews.filter((pl.col("rating") > 5) | pl.col("timestamp").is_null()).height
    unreadable = len(_review_lines(shop)) - reviews.height
    assert sum(bad) + spoilt + unreadable == shop.broken
    assert sum(bad) < 0.01 * shop.event_rows
    assert spoilt + unreadable + shop.duplicates < 0.01 * shop.review_rows


def test_sessions_and_times(shop: Shop) -> None:
    events = _events(shop).with_columns(pl.col("time").str.to_datetime("%F %T", strict=False)).drop_nulls("time")
    assert events["time"].min() >= datetime(2025, 7, 1)  # type: ignore[operator]
    assert events["time"].max() < datetime(2026, 1, 1)  # type: ignore[operator]
    buys = events.filter(pl.col("action") == "buy").with_columns(pl.col("quantity").cast(pl.Int64))
    returned = buys.filter(pl.col("quantity") < 0)
    assert 0 < returned.height < 0.2 * buys.height
    kept = buys.filter(pl.col("quantity") > 0).select("order", "sku", pl.col("time").alias("bought"))
    paired = returned.join(kept.unique(["order", "sku"]), on=["order", "sku"], how="left")
    assert (paired["time"] > paired["bought"]).sum() >= 0.9 * paired.height  # the others' purchase is a broken row
    assert events.filter(pl.col("action") == "search")["query"].null_count() == 0
    assert (
        events.filter(pl.col("action") == "search")["sku"].null_count()
        == events.filter(pl.col("action") == "search").height
    )


def test_activity_is_skewed(truth: pl.DataFrame) -> None:
    events = truth["events"].sort(descending=True)
    assert events[:30].sum() > 0.25 * events.sum()  # the busiest twentieth


def test_a_third_write_chinese_and_see_chinese_titles(shop: Shop, truth: pl.DataFrame) -> None:
    share = (truth["language"] == "zh").mean()
    assert share == pytest.approx(1 / 3, abs=0.08)
    reviews = _reviews(shop).filter(pl.col("text").str.len_chars() > 12).join(truth, on="user_id")
    han = reviews["text"].str.contains(r"\p{Han}")
    assert (han == (reviews["language"] == "zh")).all()
    items = [json.loads(line) for line in shop.items.read_text(encoding="utf-8").splitlines()]
    titles = pl.DataFrame({"sku": [i["parent_asin"] for i in items], "title": [i["title"] for i in items]})
    seen = _events(shop).join(truth, left_on="customer", right_on="user_id").join(titles, on="sku")
    assert (seen["title"].str.contains(r"\p{Han}") == (seen["language"] == "zh")).all()
    assert len(items) == 288


def test_stars_agree_with_planted_sentiment(shop: Shop, truth: pl.DataFrame) -> None:
    mean = _reviews(shop).filter(pl.col("rating") <= 5).group_by("user_id").agg(pl.col("rating").mean())
    both = truth.join(mean, on="user_id").drop_nulls("sentiment")
    assert both.select(pl.corr("rating", "sentiment")).item() > 0.8
    assert truth.filter(pl.col("reviews") == 0)["sentiment"].null_count() == (truth["reviews"] == 0).sum()


def test_planted_tastes_show_in_what_people_do(shop: Shop, truth: pl.DataFrame) -> None:
    views = _events(shop).filter(pl.col("action") == "pv").join(_item_tags(shop), on="sku")
    share = views.join(truth, left_on="customer", right_on="user_id").select(
        pl.col("tag").is_in(pl.col("likes")).mean()
    )
    assert 0.6 < share.item() < 0.97
    rated = _reviews(shop).filter(pl.col("rating") <= 5).join(_item_tags(shop), left_on="parent_asin", right_on="sku")
    rated = rated.join(truth, on="user_id")
    liked = rated.filter(pl.col("tag").is_in(pl.col("likes")))["rating"].mean()
    disliked = rated.filter(pl.col("tag").is_in(pl.col("dislikes")))["rating"].mean()
    assert isinstance(liked, float)
    assert isinstance(disliked, float)
    assert liked > 3.8
    assert disliked < 2.8


def test_no_text_names_its_tag(shop: Shop) -> None:
    def word(name: str) -> str:
        return rf"\b{name.lower()}\b" if name.isascii() else name

    texts = pl.concat([_reviews(shop)["text"], _reviews(shop)["title"], _events(shop)["query"]]).drop_nulls()
    for fact in [*words()["interests"], *words()["themes"]]:
        for name in [fact["id"], *fact["name"]]:
            assert texts.str.to_lowercase().str.contains(word(name)).mean() == 0, name  # type: ignore[operator]


def test_taxonomy_examples_are_not_copied_from_reviews() -> None:
    vocabulary = words()
    for fact in [*vocabulary["interests"], *vocabulary["themes"]]:
        clauses = fact["clauses"] if "clauses" in fact else [*fact["good"], *fact["bad"]]
        said = {clause for group in clauses for clause in group}
        assert not any(example in clause or clause in example for example in fact["examples"] for clause in said)


def test_churned_customers_are_gone(shop: Shop, truth: pl.DataFrame) -> None:
    gone = truth.filter("churned")
    assert 0.1 < gone.height / truth.height < 0.3
    assert truth.filter(~pl.col("churned"))["churned_since"].null_count() == truth.height - gone.height
    events = _events(shop).with_columns(
        pl.col("time").str.to_datetime("%F %T", strict=False).dt.replace_time_zone("Asia/Shanghai")
    )
    after = events.join(gone, left_on="customer", right_on="user_id").filter(
        pl.col("time").dt.convert_time_zone("UTC") > pl.col("churned_since")
    )
    assert after.height == 0
    written = _reviews(shop).join(gone, on="user_id").drop_nulls("timestamp")
    late = pl.from_epoch(written["timestamp"], time_unit="ms").dt.replace_time_zone("UTC") > written["churned_since"]
    assert not late.any()
    assert gone["churned_since"].max() < datetime(2026, 1, 1, tzinfo=UTC)  # type: ignore[operator]


def test_favourite_hours_are_busy_hours(shop: Shop, truth: pl.DataFrame) -> None:
    events = _events(shop).with_columns(pl.col("time").str.to_datetime("%F %T", strict=False)).drop_nulls("time")
    mine = events.join(truth, left_on="customer", right_on="user_id")
    inside = mine.select(pl.col("time").dt.hour().is_in(pl.col("favourite_hours")).mean()).item()
    assert inside > 0.6  # three hours of twenty-four would be .125 by chance


def test_price_level_shows_in_purchases(shop: Shop, truth: pl.DataFrame) -> None:
    items = [json.loads(line) for line in shop.items.read_text(encoding="utf-8").splitlines()]
    catalogue = pl.DataFrame(
        [(item["parent_asin"], item["categories"][1], item["price"]) for item in items],
        schema=["sku", "category", "list_price"],
        orient="row",
    ).with_columns(level=pl.col("list_price").rank().over("category"))
    bought = _events(shop).filter(pl.col("action") == "buy").join(catalogue, on="sku")
    mean = bought.group_by("customer").agg(pl.col("level").mean())
    both = mean.join(truth, left_on="customer", right_on="user_id")
    assert both.select(pl.corr("level", "price_level", method="spearman")).item() > 0.9


def test_personal_data_is_planted_and_recorded(shop: Shop, truth: pl.DataFrame) -> None:
    everything = "\n".join(_review_lines(shop))
    planted = [value for values in truth["personal"] for value in values]
    assert planted
    assert any("@" in value for value in planted)
    assert any(value.startswith("1300000") for value in planted)
    spoilt = sum(value not in everything for value in planted)
    assert spoilt <= shop.broken  # a line that is cut short may have lost it


def test_the_sources_read_every_row_of_it(shop: Shop, truth: pl.DataFrame) -> None:
    loaded, clock = config.load(shop.config), datetime(2026, 6, 1, tzinfo=UTC)
    counts = {}
    for name in ("reviews", "events"):
        source = loaded.sources[name]
        parts = [range_ for file in expand(name, source) for range_ in ranges(file, source)]
        blocks = [block for part in parts for block in ingest(part, source, clock, loaded.privacy.key())]
        quarantined = pl.concat(
            [pl.Series(block.quarantined["reason"].to_pylist(), dtype=pl.String) for block in blocks]
        )
        counts[name] = (sum(block.rows_read for block in blocks), len(quarantined))
        if name == "reviews":
            texts = pl.concat(
                [pl.Series(block.rows["text"].to_pylist(), dtype=pl.String) for block in blocks]
            ).drop_nulls()
            planted = [value for values in truth["personal"] for value in values]
            assert not any(texts.str.contains(value, literal=True).any() for value in planted)
            assert (quarantined == "duplicate").sum() == shop.duplicates
    assert [read for read, _ in counts.values()] == [shop.review_rows, shop.event_rows]
    assert sum(bad for _, bad in counts.values()) == shop.broken + shop.duplicates
