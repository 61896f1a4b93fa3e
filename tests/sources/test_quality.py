from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_profile.config import Source
from ray_profile.errors import SourceError
from ray_profile.sources.files import expand
from ray_profile.sources.quality import SourceQuality, quality
from ray_profile.sources.sample import draw

CLOCK = datetime(2026, 1, 1, tzinfo=UTC)
LINES = ("a,x,2024-01-01,1", ",x,2024-01-01,1", "a,x,never,1", "a,x,2024-01-01,nan", "broken")
COLUMNS = {"user_id": "u", "item_id": "i", "ts": "t", "price": "p"}


def of(source: Source, rows: int = 20_000, key: bytes | None = None) -> SourceQuality:
    return quality("x", source, expand("x", source), CLOCK, key, rows)


def events(folder: Path, lines: list[str], name: str = "a.csv", **rest: Any) -> Source:
    (folder / name).write_text("u,i,t,p\n" + "".join(f"{line}\n" for line in lines))
    values = {"kind": "purchase", "columns": COLUMNS, **rest}
    return Source(format="columns", paths=(f"{folder}/*",), **values)


def column(found: SourceQuality, name: str) -> Any:
    return next(each for each in found.columns if each.name == name)


def test_every_row_of_a_small_file_is_accounted_for(tmp_path: Path) -> None:
    lines = ["a,x,2024-01-01 10:00,1", "b,y,2024-02-01,2.5", ",x,2024-01-01 10:00,1", "c,x,never,1", "d,,2024-01-01,1"]
    found = of(events(tmp_path, [*lines, "a,x,2024-01-01 10:00,1", "too,few"]))
    assert (found.rows, found.rows_exact, found.rows_sampled, found.files_sampled) == (7, True, 7, 1)
    assert {each.reason: (each.rows, each.row) for each in found.quarantined} == {
        "time_unreadable": (1, 3),
        "item_missing": (1, 4),
        "line_broken": (1, 6),
    }
    assert found.quarantined_share == pytest.approx(3 / 7)
    assert found.anonymous_share == pytest.approx(1 / 7)
    assert found.repeated_share == pytest.approx(1 / 7)
    assert found.whole_day_share == pytest.approx(1 / 3)
    assert (found.users, found.items) == (2, 2)
    assert (column(found, "price").low, column(found, "price").high) == (1.0, 2.5)
    assert found.first == datetime(2024, 1, 1, 10, tzinfo=UTC)
    assert found.too_bad


def test_examples_are_redacted_and_users_in_them_pseudonyms(tmp_path: Path) -> None:
    source = Source(
        format="columns", paths=(f"{tmp_path}/*",), kind="review", columns={"user_id": "u", "ts": "t", "text": "x"}
    )
    (tmp_path / "a.csv").write_text("u,t,x\nalice,never,write to alice@example.org\nbob,2024-01-01,fine\nalice,x\n")
    keyed, plain = of(source, key=b"k" * 16), of(source)
    assert "alice@example.org" not in str(plain.quarantined)
    assert "alice" in str(plain.quarantined)
    assert "alice" not in str(keyed.quarantined)
    broken = next(each for each in keyed.quarantined if each.reason == "line_broken")
    assert broken.raw is None


def test_rows_of_large_files_are_estimated_from_their_beginning(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        lines = [f"user{n % 100},item{n % 50},2024-01-01 10:{n % 60:02},{n % 9}" for n in range(20_000)]
        source = events(tmp_path, lines, name)
    found = of(source, rows=1_000)
    assert not found.rows_exact
    assert found.rows == pytest.approx(40_000, rel=0.02)
    assert 900 <= found.rows_sampled <= 1_100
    assert found.files_sampled == 2


def test_rows_of_gzip_are_estimated_by_compressed_bytes(tmp_path: Path) -> None:
    rows = [
        json.dumps({"u": f"u{n * 7919 % 1009}", "i": f"i{n}", "t": 1_700_000_000 + n * 37, "p": n % 97})
        for n in range(60_000)
    ]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    source = Source(format="columns", paths=(f"{tmp_path}/*",), kind="view", columns=COLUMNS)
    assert of(source, rows=500).rows == pytest.approx(60_000, rel=0.1)


def test_parquet_says_how_many_rows_it_has(tmp_path: Path) -> None:
    table = pa.table({"u": ["a", "b"] * 500, "i": ["x"] * 1000, "t": ["2024-01-01"] * 1000, "p": [1.0] * 1000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    found = of(Source(format="columns", paths=(f"{tmp_path}/*",), kind="view", columns=COLUMNS), rows=80)
    assert (found.rows, found.rows_exact, found.rows_sampled) == (1000, True, 80)
    assert found.whole_day_share == 1.0


def test_a_file_that_cannot_be_read_whole_is_apart(tmp_path: Path) -> None:
    source = events(tmp_path, ["a,x,2024-01-01,1"])
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"u,i,t,p\n" + b"b,y,2024-01-01,2\n" * 5_000)[:-30])
    found = of(source)
    assert [Path(path).name for path, _ in found.rejected] == ["cut.csv.gz"]
    assert "gzip" in found.rejected[0][1]
    assert (found.rows_sampled, found.users) == (1, 1)
    assert not found.rows_exact


def test_nothing_to_see_is_no_error(tmp_path: Path) -> None:
    empty = of(events(tmp_path, []))
    assert (empty.rows, empty.rows_sampled, empty.columns) == (0, 0, ())
    (tmp_path / "a.csv").write_bytes(b"")
    assert of(Source(format="columns", paths=(f"{tmp_path}/*",), kind="view", columns=COLUMNS)).rows == 0


def test_one_row(tmp_path: Path) -> None:
    found = of(events(tmp_path, ["a,x,2024-01-01 10:00,1"]))
    assert (found.rows, found.users, found.quarantined_share) == (1, 1, 0.0)


def test_a_column_that_the_file_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no column 'q'"):
        of(events(tmp_path, ["a,x,2024-01-01,1"], columns={**COLUMNS, "quantity": "q"}))


def test_languages_and_lengths_of_texts(tmp_path: Path) -> None:
    texts = ["This guitar stays in tune and sounds wonderful.", "质量很好，非常满意，下次还会再来购买。"] * 10
    pl.DataFrame({"u": [f"u{n}" for n in range(20)], "t": ["2024-01-01"] * 20, "x": texts}).write_csv(
        tmp_path / "a.csv"
    )
    columns: dict[str, str | list[str]] = {"user_id": "u", "ts": "t", "text": "x"}
    found = of(Source(format="columns", paths=(f"{tmp_path}/*",), kind="review", columns=columns))
    assert found.languages == {"en": 0.5, "zh": 0.5}
    assert found.text_share == 1.0
    assert found.text_chars[-1] == len(texts[0])


def test_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku,name,cat\n1,Lamp,A > B\n2,,A\n1,Lamp,A\n,Nameless,A\n")
    columns: dict[str, str | list[str]] = {"item_id": "sku", "title": "name", "category": "cat"}
    found = of(Source(format="columns", paths=(f"{tmp_path}/*",), columns=columns))
    assert found.catalogue
    assert (found.rows, found.items) == (4, 2)
    assert found.repeated_share == 0.25
    assert [(each.reason, each.rows) for each in found.quarantined] == [("item_missing", 1)]
    assert column(found, "title").null_share == 0.5


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(LINES), max_size=60),
    st.integers(1, 70),
)
@example(["a,x,2024-01-01,1"] * 13, 12)
def test_good_bad_and_anonymous_add_up(tmp_path_factory: pytest.TempPathFactory, lines: list[str], rows: int) -> None:
    source = events(tmp_path_factory.mktemp("rows"), lines)
    sample = draw(source, expand("x", source), CLOCK, None, rows)
    assert sample.rows_read == sample.good.height + sample.bad.height + sample.anonymous
    assert sample.rows_read == min(len(lines), rows)


def test_a_real_purchase_log(shared: Path) -> None:
    columns: dict[str, str | list[str]] = {
        "user_id": "CustomerID",
        "item_id": "Description",
        "ts": "InvoiceDate",
        "quantity": "Quantity",
        "price": "UnitPrice",
    }
    path = str(shared / "data" / "online_retail" / "online_retail.parquet")
    found = of(Source(format="columns", paths=(path,), kind="purchase", columns=columns))
    assert (found.rows, found.rows_exact, found.rows_sampled) == (541_909, True, 20_000)
    assert 0.2 < found.anonymous_share < 0.4
    assert set(found.kinds) == {"purchase", "return"}
    assert [each.reason for each in found.quarantined] == ["item_missing"]
    assert not found.too_bad


def test_real_reviews(shared: Path) -> None:
    path = str(shared / "data" / "amazon_musical" / "reviews.parquet")
    found = of(Source(format="amazon-2014", paths=(path,)))
    assert (found.rows, found.users, found.items) == (10_261, 1_429, 900)
    assert found.whole_day_share == 1.0
    assert found.languages["en"] > 0.95
    assert found.first is not None
    assert found.first.year == 2004


def test_a_large_chunk_is_sampled_all_over(tmp_path: Path) -> None:
    lines = [f"u{n},i{n},2024-{1 + n // 1_000:02}-01 10:00,1" for n in range(12_000)]
    found = of(events(tmp_path, lines), rows=100)
    assert found.rows_sampled == 100
    assert found.last is not None
    assert found.last.month >= 10
