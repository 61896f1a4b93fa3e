from __future__ import annotations

import dataclasses
import gzip
import io
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import seaweedfs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_profile.config import Source
from ray_profile.errors import FileRejected, SourceError, StorageError
from ray_profile.sources import blocks, json_lines
from ray_profile.sources import read as reading
from ray_profile.sources.files import SourceFile, expand
from ray_profile.sources.read import Chunk, Range, ranges, read

COLUMNS = {"user_id": "u", "item_id": "i", "ts": "t"}


def source(path: Path | str, **rest: Any) -> Source:
    given_ = {"format": "columns", "kind": "view", "columns": COLUMNS, "paths": (str(path),)}
    return Source(**{**given_, **rest})


def file_of(path: Path | str) -> SourceFile:
    (file,) = expand("s", source(path))
    return file


def chunks(path: Path | str, **rest: Any) -> list[Chunk]:
    made = source(path, **rest)
    file = file_of(path)
    return [chunk for part in ranges(file, made) for chunk in read(part, made)]


def rows(parts: list[Chunk]) -> list[tuple[Any, ...]]:
    return [row for part in parts for row in part.frame.select("u", "i", "t").iter_rows()]


def numbers(parts: list[Chunk]) -> list[int]:
    return [number for part in parts for number in part.numbers]


def broken(parts: list[Chunk]) -> list[tuple[int, str]]:
    return [row for part in parts for row in part.broken.select("row", "reason").iter_rows()]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


THREE = [("a", "1", "2024-01-01"), ("b", "2", "2024-01-02"), ("c", "3", "2024-01-03")]
CSV = b"u,i,t,more\n" + b"".join(f"{u},{i},{t},x\n".encode() for u, i, t in THREE)
JSONL = b"".join(json.dumps({"t": t, "u": u, "i": i, "more": 1}).encode() + b"\n" for u, i, t in THREE)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CSV),
        ("a.csv.gz", CSV),
        ("a.tsv", CSV.replace(b",", b"\t")),
        ("a.txt", CSV),
        ("a.dat", CSV),
        ("a.jsonl", JSONL),
        ("a.json", JSONL),
        ("a.ndjson.gz", JSONL),
        ("a.txt", JSONL),
        ("a", JSONL),
        ("a.gz", JSONL),
        ("a.csv", b"\xef\xbb\xbf" + CSV),
        ("a.csv", CSV.replace(b"\n", b"\r\n")),
        ("a.csv", CSV.rstrip(b"\n")),
        ("a.csv", CSV.replace(b"\n", b"\n\n")),
        ("a.csv", b"\n\n" + CSV + b"\n\n"),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("a.jsonl", JSONL.replace(b"\n", b"\r\n")),
        ("a.jsonl", JSONL.rstrip(b"\n")),
        ("a.jsonl", b"\n" + JSONL.replace(b"\n", b"\n \n\n")),
    ],
)
def test_same_rows_from_every_kind_of_text(tmp_path: Path, name: str, data: bytes) -> None:
    parts = chunks(write(tmp_path / name, data))
    assert rows(parts) == THREE
    assert numbers(parts) == [0, 1, 2]
    assert broken(parts) == []
    assert parts[0].frame.columns == ["u", "i", "t"] or set(parts[0].frame.columns) == {"u", "i", "t"}


def test_parquet_is_read_by_row_group_with_row_numbers_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"u": range(10), "i": range(10), "t": range(10), "more": ["x"] * 10})
    pq.write_table(table, path, row_group_size=4)
    made = source(path)
    parts = ranges(file_of(path), made)
    assert [(part.row_group, part.start, part.end, part.offset) for part in parts] == [
        (0, 0, 4, 0),
        (1, 4, 8, 0),
        (2, 8, 10, 0),
    ]
    read_parts = [chunk for part in parts for chunk in read(part, made)]
    assert numbers(read_parts) == list(range(10))
    assert all(part.frame.columns == ["u", "i", "t"] for part in read_parts)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a"])
def test_empty_text_has_no_ranges_and_is_no_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert ranges(file_of(tmp_path / name), source(tmp_path / name)) == []


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "A.PARQUET"])
def test_empty_parquet_and_gzip_are_damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileRejected, match="is empty, which no Parquet or gzip file is"):
        ranges(file_of(tmp_path / name), source(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "data"), [("a.csv.gz", b""), ("a.csv", b"u,i,t\n"), ("a.jsonl", b"\n\n"), ("a.csv", b"\n")]
)
def test_file_without_rows_yields_none(tmp_path: Path, name: str, data: bytes) -> None:
    assert rows(chunks(write(tmp_path / name, data))) == []


def test_json_fields_may_change_their_type_and_be_absent(tmp_path: Path) -> None:
    lines = [
        '{"u": "a", "i": 1, "t": 1.5}',
        '{"u": 17850.0, "i": "1", "t": null}',
        '{"u": true, "i": {"k": [1, "二"]}, "t": [1, 2]}',
        '{"i": 12345678901234567890, "u": "é\\ud83d\\ude00"}',
    ]
    parts = chunks(write(tmp_path / "a.jsonl", "\n".join(lines).encode()))
    assert broken(parts) == []
    assert rows(parts)[0] == ("a", "1", "1.5")
    assert rows(parts)[1] == ("17850", "1", None)
    assert json.loads(rows(parts)[2][1]) == {"k": [1, "二"]}
    assert rows(parts)[3] == ("é😀", "12345678901234567890", None)


ANONYMOUS = b'{"i": "x", "t": "2024-01-01"}\n'


@pytest.mark.parametrize("rows_", [1, 60_000])
def test_json_rows_without_a_user_are_anonymous(tmp_path: Path, rows_: int) -> None:
    head = ANONYMOUS * rows_
    path = write(tmp_path / "a.jsonl", head + JSONL)
    assert rows(chunks(path))[-4:] == [(None, "x", "2024-01-01"), *THREE]
    assert set(rows(chunks(write(path, head)))) == {(None, "x", "2024-01-01")}


@pytest.mark.parametrize("range_bytes", [2 << 20, 64 << 20])
@pytest.mark.parametrize("escaped", [False, True])
def test_json_columns_that_begin_after_the_first_megabytes_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_bytes: int, escaped: bool
) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", range_bytes)
    early = {"user_id": "a", "parent_asin": "b", "rating": 5, "timestamp": 1700000000000}
    late = {"title": "Good", "text": "很好", "user_id": "c", "asin": "d"}
    lines = [*[early] * 60_000, {**early, **late}]
    data = "".join(json.dumps(line, ensure_ascii=escaped) + "\n" for line in lines)
    path = write(tmp_path / "a.jsonl", data.encode())
    last = chunks(path, format="amazon-2023", columns={"place": "地方"}, kind=None)[-1]
    assert last.layout.columns.keys() == {"user_id", "item_id", "rating", "ts", "title", "text", "place"}
    assert last.frame.row(-1, named=True) == {
        "user_id": "c",
        "parent_asin": "b",
        "rating": "5",
        "timestamp": "1700000000000",
        "title": "Good",
        "text": "很好",
        "地方": None,
    }


def test_json_name_spelt_with_escapes_counts_as_there(tmp_path: Path) -> None:
    line = json.dumps({"u": "a", "i": "1", "时间": "2024-01-01"}).encode()
    columns = {**COLUMNS, "ts": "时间"}
    (part,) = chunks(write(tmp_path / "a.jsonl", line), columns=columns)
    assert part.frame.row(0, named=True) == {"u": "a", "i": "1", "时间": "2024-01-01"}


def test_json_file_is_refused_for_what_its_beginning_lacks_and_not_a_later_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match=r"a\.jsonl has no column 't'; it has u, i"):
        chunks(write(tmp_path / "a.jsonl", b'{"u": "a", "i": "1"}\n'))
    monkeypatch.setattr(reading, "RANGE_BYTES", len(JSONL))
    assert rows(chunks(write(tmp_path / "b.jsonl", JSONL + b'{"u": "a", "i": "1"}\n')))[-1] == ("a", "1", None)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**15, 10**45)
    | st.floats()
    | st.text(max_size=6)
    | st.text(st.characters(categories=["Cs", "Cc", "Lo"]), max_size=4)
    | st.sampled_from([1e-7, 1e300, -0.0, "\ud800", "\udc00", "NaN", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
json_records = st.dictionaries(st.sampled_from(["u", "i", "t", "x"]), json_values)
spellings = st.sampled_from([json.dumps, repr, lambda record: json.dumps(record, ensure_ascii=False)])


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(json_records, spellings), min_size=1, max_size=4), st.sampled_from([1, 40]))
def test_a_json_line_has_the_same_text_alone_and_beside_a_broken_one(
    given_: list[tuple[dict[str, Any], Any]], times: int
) -> None:
    lines = [spell(record).encode("utf-8", "surrogatepass") for record, spell in given_]
    alone = [json_lines.parse_json(line, 0, ["u", "i", "t"]) for line in lines]
    frame = pl.concat([each.frame for each in alone] * times)
    for around in ([], [b"rubbish"], [b'{"u": NaN}'], [b"{'u': 1}"]):
        block = json_lines.parse_json(b"\n".join([*around, *lines * times, *around]), 0, ["u", "i", "t"])
        other = block.frame if around in ([], [b"rubbish"]) else block.frame.slice(1, block.frame.height - 2)
        assert other.equals(frame)


@pytest.mark.parametrize("value", ["1e-7", "1.0", '"\\ud800x"', "[1e-7, {}]", "123456789012345678901234567890"])
def test_a_json_value_has_the_same_text_in_a_line_that_only_python_reads(value: str) -> None:
    lines = (f'{{"u": {value}, "i": "b"}}', f'{{"u": {value}, "i": "\tb"}}', f'{{"u": {value}, "i": NaN}}')
    texts = [json_lines.parse_json(line.encode(), 0, ["u", "i"]).frame["u"].item() for line in lines]
    assert texts[0] is not None
    assert texts == [texts[0]] * 3


def test_json_that_polars_cannot_read_is_text_or_a_broken_line(tmp_path: Path) -> None:
    deep = f'{{"u": {"[" * 3000}1{"]" * 3000}, "i": "1", "t": "1"}}'
    odd = "{'u': {(1, 2): {3}}, 'i': b'1', 't': 1}"
    long = f'{{"u": {"9" * 60}, "i": 1, "t": 1}}'
    parts = chunks(write(tmp_path / "a.jsonl", "\n".join([deep, odd, long]).encode()))
    assert broken(parts) == [(0, "line_broken")]
    assert rows(parts) == [("{(1, 2): {3}}", "b'1'", "1"), ("9" * 60, "1", "1")]


def test_broken_json_lines_are_told_apart_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = '{"u": "a", "i": "1", "t": "2024"}'
    lines: list[bytes] = [good.encode()] * 1000
    bad = [b'{"u": "a", "i"', b"[1, 2]", b"123", b"null", b"rubbish", good.encode() + b" x", b'{"u": "caf\xe9"}']
    for place, line in zip((0, 17, 18, 500, 501, 700, 999), bad, strict=True):
        lines[place] = line
    lines[300] = b'{"u": NaN, "i": Infinity, "t": "2024"}'
    lines[301] = b"{'u': 'a', 'i': u'1', 't': None}"  # a Python literal, as in Amazon's files of 2014
    lines[0], lines[10] = lines[10], lines[0]
    parts = chunks(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    expected = [(10, "line_broken"), *((n, "line_broken") for n in (17, 18, 500, 501, 700)), (999, "text_encoding")]
    assert broken(parts) == expected
    assert numbers(parts) == [n for n in range(1000) if n not in dict(expected)]
    assert rows(parts)[298] == ("NaN", "Infinity", "2024") or rows(parts)[297] == ("NaN", "Infinity", "2024")


def test_json_array_and_utf16_are_rejected_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FileRejected, match="one object a line"):
        chunks(write(tmp_path / "a.json", b'[{"u": 1}]'))
    with pytest.raises(FileRejected, match="save it as UTF-8"):
        chunks(write(tmp_path / "a.csv", CSV.decode().encode("utf-16")))


@pytest.mark.parametrize(("magic", "what"), [(b"PK\x03\x04", "Excel"), (b"BZh9", "bzip2"), (b"PAR1", "Parquet")])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.csv.gz"])
def test_other_formats_under_a_wrong_name_are_rejected(tmp_path: Path, name: str, magic: bytes, what: str) -> None:
    with pytest.raises(FileRejected, match=what):
        chunks(write(tmp_path / name, magic + os.urandom(100)))


def test_range_travels_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV)
    (part,) = ranges(file_of(path), source(path))
    sent = json.loads(json.dumps(dataclasses.asdict(part)))
    assert Range(**{**sent, "file": SourceFile(**sent["file"])}) == part


def test_csv_quotes_newlines_and_inch_marks(tmp_path: Path) -> None:
    data = b'u,i,t\n"a, b","say ""hi""\nthere","x"\n5" pipe,2,3\n"","",""\n'
    parts = chunks(write(tmp_path / "a.csv", data))
    assert rows(parts) == [("a, b", 'say "hi"\nthere', "x"), ('5" pipe', "2", "3"), ("", "", "")]


def test_ragged_csv_rows_are_broken_with_their_numbers(tmp_path: Path) -> None:
    data = b"u,i,t\n1,2,3\n1,2\n\n4,5,6,7\n7,8,9\n,,\nx\n"
    parts = chunks(write(tmp_path / "a.csv", data))
    assert broken(parts) == [(1, "line_broken"), (2, "line_broken"), (5, "line_broken")]
    assert numbers(parts) == [0, 3, 4]
    assert parts[0].broken["raw"].to_list()[:2] == ["1,2", "4,5,6,7"]


def test_csv_with_only_broken_rows(tmp_path: Path) -> None:
    parts = chunks(write(tmp_path / "a.csv", b"u,i,t\n1\n2\n"))
    assert broken(parts) == [(0, "line_broken"), (1, "line_broken")]
    assert rows(parts) == []


def test_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    lines = [f"u{n},{n},2024" for n in range(3000)]
    lines[40] = 'u40,"40,2024'
    lines[2999] = '"u2999,2999,2024'
    lines[50] = 'u50,"two\nlines",2024'
    parts = chunks(write(tmp_path / "a.csv", ("u,i,t\n" + "\n".join(lines) + "\n").encode()))
    assert broken(parts) == [(40, "line_broken"), (2999, "line_broken")]
    assert numbers(parts) == [n for n in range(2999) if n != 40]
    assert rows(parts)[49] == ("u50", "two\nlines", "2024")


@pytest.mark.parametrize("end", [b"", b'p,"q,2024\nf,6,6\n'])
def test_carriage_return_ends_a_csv_line_with_and_without_an_open_quote(tmp_path: Path, end: bytes) -> None:
    data = b'u,i,t\nb,y\rz,2024-03-02\nc,"k\rl",3\nd,4,4\re,5,5\r\n' + end
    parts = chunks(write(tmp_path / "a.csv", data))
    assert broken(parts) == [(number, "line_broken") for number in ((0, 1, 5) if end else (0, 1))]
    good = [(2, ("c", "k\rl", "3")), (3, ("d", "4", "4")), (4, ("e", "5", "5")), (6, ("f", "6", "6"))]
    assert list(zip(numbers(parts), rows(parts), strict=True)) == good[: 4 if end else 3]


def test_bytes_that_are_no_utf8_cost_one_csv_row(tmp_path: Path) -> None:
    parts = chunks(write(tmp_path / "a.csv", b"u,i,t\na,1,x\nb,caf\xe9,x\nc,\xe4\xb8\xad,x\n\xff\xfe,1\n"))
    assert broken(parts) == [(1, "text_encoding"), (3, "line_broken")]
    assert rows(parts) == [("a", "1", "x"), ("c", "中", "x")]


def test_csv_column_names_may_repeat(tmp_path: Path) -> None:
    parts = chunks(write(tmp_path / "a.csv", b"u,i,i,t\n1,2,3,4\n"), columns={**COLUMNS, "place": "i_2"})
    assert parts[0].frame.row(0, named=True) == {"u": "1", "i": "2", "t": "4", "i_2": "3"}


def test_another_delimiter_is_named_as_the_next_step(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV.replace(b",", b";"))
    with pytest.raises(SourceError, match=r"has no column 'u'; it has u;i;t;more; .*set sources\.s\.delimiter = \";\""):
        chunks(path)
    assert rows(chunks(path, delimiter=";")) == THREE


def test_text_is_cut_into_ranges_at_newlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 1000)
    lines = [json.dumps({"u": f"用户{n}", "i": "x" * (n % 300), "t": str(n)}, ensure_ascii=False) for n in range(500)]
    lines[100] = json.dumps({"u": "long", "i": "y" * 5000, "t": "100"})
    path = write(tmp_path / "a.jsonl", "\n".join(lines).encode())
    made, file = source(path), file_of(path)
    parts = ranges(file, made)
    assert len(parts) > 40
    assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
    assert parts[-1].end == file.size
    found = [row for part in parts for chunk in read(part, made) for row in chunk.frame["t"]]
    assert found == [str(n) for n in range(500)]
    assert all(next(read(part, made)).numbers[0] == 0 for part in parts)


@pytest.mark.parametrize("header", [True, False])
def test_csv_is_cut_into_ranges_only_where_no_field_holds_newlines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bool
) -> None:
    monkeypatch.setattr(reading, "RANGE_BYTES", 1000)
    data = "".join(f"u{n},{n},{n}\n" for n in range(1000))
    path = write(tmp_path / "a.csv", (b"u,i,t\n" if header else b"") + data.encode())
    columns = COLUMNS if header else {"user_id": "0", "item_id": "1", "ts": "2"}
    assert len(ranges(file_of(path), source(path, columns=columns))) == 1
    made = source(path, columns=columns, multiline=False)
    parts = ranges(file_of(path), made)
    assert len(parts) > 5
    found = [row for part in parts for chunk in read(part, made) for row in chunk.frame[columns["ts"]]]
    assert found == [str(n) for n in range(1000)]


def test_large_file_comes_in_chunks_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows_ = 250_000
    pl.DataFrame({"u": range(rows_), "i": range(rows_), "t": range(rows_)}).write_csv(path)
    parts = chunks(path)
    assert max(part.frame.height for part in parts) <= blocks.BLOCK_ROWS
    assert numbers(parts) == list(range(rows_))


def test_line_longer_than_a_block_is_one_row(tmp_path: Path) -> None:
    text = "长" * 400_000
    data = JSONL + json.dumps({"u": "d", "i": text, "t": "4"}).encode() + b"\n" + JSONL
    found = list(json_lines.line_blocks(io.BytesIO(data), len(data), 1000))
    assert b"".join(found) == data
    assert all(block.endswith(b"\n") for block in found)
    assert rows(chunks(write(tmp_path / "a.jsonl", data)))[3] == ("d", text, "4")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_truncated_gzip_is_rejected_before_its_first_row(tmp_path: Path, name: str, keep: float) -> None:
    path = tmp_path / name
    data = gzip.compress((CSV if "csv" in name else JSONL) + os.urandom(50_000).hex().encode())
    path.write_bytes(data[: int(len(data) * keep)])
    made = source(path)
    (part,) = ranges(file_of(path), made)
    with pytest.raises(FileRejected, match="broken gzip"):
        next(read(part, made))


def test_gz_without_gzip_data_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(CSV)
    with pytest.raises(FileRejected, match="holds no gzip data"):
        chunks(tmp_path / "a.csv.gz")


def parquet(path: Path, rows_: int = 20_000) -> Path:
    table = pa.table({"u": [str(n * 7919) for n in range(rows_)], "i": range(rows_), "t": range(rows_)})
    pq.write_table(table, path, row_group_size=5000)
    return path


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_truncated_parquet_is_rejected_when_it_is_planned(tmp_path: Path, keep: float) -> None:
    path = parquet(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(FileRejected, match="no whole Parquet file"):
        ranges(file_of(path), source(path))


def test_parquet_with_a_damaged_page_is_rejected_with_its_row_group(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet")
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + 20 : start + 2000] = b"\x00\xff" * 990
    path.write_bytes(bytes(data))
    with pytest.raises(FileRejected, match="row group 1 is damaged"):
        chunks(path)


def test_parquet_text_that_is_no_utf8_costs_one_row(tmp_path: Path) -> None:
    raw = pa.array([b"a", b"caf\xe9", None, b"\xe4\xb8\xad"], pa.binary())
    users = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    pq.write_table(pa.table({"u": users, "i": [1, 2, 3, 4], "t": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    parts = chunks(tmp_path / "a.parquet")
    assert broken(parts) == [(1, "text_encoding")]
    assert parts[0].frame["u"].to_list() == ["a", None, "中"]
    assert numbers(parts) == [0, 2, 3]


def test_parquet_decimals_of_many_digits_are_read_as_text(tmp_path: Path) -> None:
    user = pa.array([10**45, None], pa.decimal256(60, 0))
    price = pa.array([Decimal("12.50"), Decimal("1.00")], pa.decimal256(50, 2))
    pq.write_table(pa.table({"u": user, "i": [1, 2], "t": [1, 2], "p": price}), tmp_path / "a.parquet")
    (part,) = chunks(tmp_path / "a.parquet", columns={**COLUMNS, "price": "p"})
    assert part.frame["u"].to_list() == [str(10**45), None]
    assert part.frame["p"].to_list() == ["12.50", "1.00"]


def test_parquet_list_of_such_decimals_is_rejected(tmp_path: Path) -> None:
    users = pa.array([[Decimal(1)]], pa.list_(pa.decimal256(60, 0)))
    pq.write_table(pa.table({"u": users, "i": [1], "t": [1]}), tmp_path / "a.parquet")
    with pytest.raises(FileRejected, match=r"column 'u' is list<.*decimal256\(60, 0\)>, which cannot be read"):
        chunks(tmp_path / "a.parquet")


def test_parquet_column_that_occurs_twice_is_refused_by_name(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3]), pa.array([4])], names=["u", "i", "t", "u"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet has 2 columns named 'u'.*distinct names"):
        chunks(tmp_path / "a.parquet")
    again = pa.table([pa.array([1]), pa.array([2]), pa.array([3]), pa.array([4]), pa.array([5])], names=list("uitxx"))
    pq.write_table(again, tmp_path / "b.parquet")
    assert rows(chunks(tmp_path / "b.parquet")) == [(1, 2, 3)]


def test_changed_and_vanished_files_are_rejected(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV)
    made, file = source(path), file_of(path)
    (part,) = ranges(file, made)
    path.write_bytes(CSV + b"d,4,2024\n")
    with pytest.raises(FileRejected, match="changed while being read"):
        list(read(part, made))
    path.write_bytes(CSV)
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileRejected, match="changed while being read"):
        list(read(part, made))
    path.unlink()
    with pytest.raises(FileRejected, match="vanished"):
        list(read(part, made))
    with pytest.raises(FileRejected, match="vanished"):
        ranges(file, made)


def test_file_that_changes_under_the_reader_is_rejected_at_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV)
    made = source(path)
    (part,) = ranges(file_of(path), made)
    reader = read(part, made)
    next(reader)
    os.utime(path, ns=(1, 1))
    with pytest.raises(FileRejected, match="changed while being read"):
        next(reader)


def test_missing_column_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"b\.csv has no column 'u'; it has x, y; map it under \[sources.s.columns\]"):
        chunks(write(tmp_path / "b.csv", b"x,y\n1,2\n"))


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_s3_reads_what_was_listed_and_nothing_else(s3: seaweedfs.S3Server, name: str) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    path = f"{s3.fresh()}/{name}"
    data = CSV if "csv" in name else JSONL
    fs.pipe_file(path, gzip.compress(data) if name.endswith(".gz") else data)
    assert rows(chunks(path)) == THREE
    made, file = source(path), file_of(path)
    (part,) = ranges(file, made)
    fs.pipe_file(path, gzip.compress(data[:-1]) if name.endswith(".gz") else data[:-1] + b" ")
    with pytest.raises(FileRejected, match="changed while being read"):
        list(read(part, made))
    fs.rm_file(path)
    with pytest.raises(FileRejected, match="vanished"):
        list(read(part, made))


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_s3_that_refuses_is_no_fault_of_the_file(
    s3: seaweedfs.S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    path = f"{s3.fresh()}/{name}"
    local = parquet(tmp_path / "a.parquet") if name.endswith("parquet") else write(tmp_path / "a.csv", CSV)
    fs.put_file(str(local), path)
    made = source(path)
    part, *_ = ranges(file_of(path), made)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    type(fs).clear_instance_cache()
    try:
        with pytest.raises(StorageError, match="run the same command again"):
            list(read(part, made))
    finally:
        type(fs).clear_instance_cache()


def test_s3_file_that_changes_between_two_reads_is_rejected(s3: seaweedfs.S3Server) -> None:
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    path = f"{s3.fresh()}/a.jsonl"
    line = json.dumps({"u": "a", "i": "x" * 2000, "t": "2024"}).encode() + b"\n"
    data = line * (2 * blocks.BLOCK_BYTES // len(line))
    fs.pipe_file(path, data)
    made = source(path)
    (part,) = ranges(file_of(path), made)
    reader = read(part, made)
    assert next(reader).frame.height > 0
    fs.pipe_file(path, data.replace(b"2024", b"2025"))
    with pytest.raises(FileRejected, match="changed while being read"):
        list(reader)


text = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(text, text, text), max_size=30))
def test_any_text_survives_csv_and_json(tmp_path: Path, given_rows: list[tuple[str, str, str]]) -> None:
    frame = pl.DataFrame(given_rows, schema={"u": pl.String, "i": pl.String, "t": pl.String}, orient="row")
    frame.write_csv(tmp_path / "a.csv", quote_style="always")
    assert rows(chunks(tmp_path / "a.csv")) == given_rows
    if given_rows:
        frame.write_ndjson(tmp_path / "a.jsonl")
        assert rows(chunks(tmp_path / "a.jsonl")) == given_rows


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_are_rows_or_broken_lines_and_never_a_crash(tmp_path: Path, data: bytes) -> None:
    for name, head in (("a.csv", b"u,i,t\n"), ("a.jsonl", JSONL)):
        parts = chunks(write(tmp_path / name, head + data))
        seen = numbers(parts) + [row for row, _ in broken(parts)]
        assert sorted(seen) == list(range(len(seen)))
