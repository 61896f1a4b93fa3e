"""The beginning of a file, from as few bytes as tell its shape: what a configuration is guessed from."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_profile.errors import FileRejected, StorageError
from ray_profile.sources.blocks import with_plain_decimals
from ray_profile.sources.csv_lines import distinct
from ray_profile.sources.files import SourceFile, filesystem
from ray_profile.sources.json_lines import keys, parse_json
from ray_profile.sources.values import MISSING_WORDS

HEAD_BYTES = 1 << 20
SAMPLE_ROWS = 2_000
MAX_COLUMNS = 1_000  # a JSON object with more keys is a dictionary, no row

#: Files of other names are not opened: beside data lie keys, and nothing of a key may end in a message.
DATA_SUFFIXES = ("", ".parquet", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".log")

_DELIMITERS = ",;\t|"
_WIDTH_SHARE = 0.9  # of the records have the width that the delimiter gives most of them
_BROKEN_LINES = 0.05  # more lines that are no UTF-8 than this: the file is in another encoding
_VALUE = re.compile(r"[+-]?[\d.,]+(?:[eE][+-]?\d+)?|\d{1,4}[-/.年]\d{1,2}[-/.月]\d{1,4}.*|\S+@\S+\.\S+")


@dataclass(frozen=True)
class Peek:
    """The shape of one file and a sample of its first rows.

    `names` are the columns ("0", "1", ... in a CSV without a header line). `frame` has at most SAMPLE_ROWS rows; a
    CSV's columns are text, its empty fields null. `row_bytes` is how many bytes of the file, as it lies, a row takes.
    """

    file: SourceFile
    kind: Literal["parquet", "jsonl", "csv"]
    frame: pl.DataFrame
    row_bytes: float
    delimiter: str = ","
    header: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.frame.columns)


def peek(file: SourceFile) -> Peek:
    """Look at the first megabyte of a file, or at the first rows of a Parquet file.

    Raises `FileRejected` for a file that is empty or cannot be read as it is (with what to do about it), `StorageError`
    where the store refuses or does not answer.
    """
    suffix = Path(file.path.lower().removesuffix(".gz")).suffix
    if suffix not in DATA_SUFFIXES and not suffix[1:2].isdigit():  # events.2024-01 is a log
        raise FileRejected(file.path, "is no CSV, JSON lines or Parquet by its name, and was not opened")
    fs, inner = filesystem(file.path)
    try:
        with fs.open(inner, "rb") as stream:
            return _look(file, stream)
    except FileNotFoundError as error:
        raise FileRejected(file.path, "vanished after it was listed") from error
    except (PermissionError, ConnectionError, TimeoutError) as error:
        raise StorageError(f"{file.path} cannot be read ({error}); check the permission to read it") from error


def _look(file: SourceFile, stream: BinaryIO) -> Peek:
    magic = stream.read(4)
    stream.seek(0)
    if not magic:
        raise FileRejected(file.path, "is empty")
    if magic == b"PAR1":
        return _parquet(file, stream)
    data, used = _head(file, stream, packed=magic.startswith(b"\x1f\x8b"))
    if data.startswith(b"PAR1"):
        raise FileRejected(file.path, "is a Parquet file inside a gzip; unpack it (Parquet is compressed already)")
    text = _text(file, data, whole=used >= file.size)
    if not text.strip():
        raise FileRejected(file.path, "is empty")
    suffix = Path(file.path.lower().removesuffix(".gz")).suffix
    if suffix in (".json", ".jsonl", ".ndjson") or text.lstrip().startswith("{"):
        return _json(file, text, used)
    return _csv(file, text, used)


def _head(file: SourceFile, stream: BinaryIO, packed: bool) -> tuple[bytes, int]:
    """The first bytes of the content, and how many bytes of the file they take."""
    if not packed:
        data = stream.read(HEAD_BYTES)
        return data, len(data)
    try:
        with gzip.open(stream) as content:
            data = content.read(HEAD_BYTES)
            ended = not content.read(1)
    except (OSError, EOFError, zlib.error) as error:
        raise FileRejected(file.path, f"is a broken gzip ({error})") from error
    return data, file.size if ended else min(stream.tell(), file.size - 1)


def _text(file: SourceFile, data: bytes, whole: bool) -> str:
    """The content as text, without a byte order mark and without the line that the end cuts through."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FileRejected(file.path, "is UTF-16; save it as UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not whole and b"\n" in data:
        data = data[: data.rfind(b"\n") + 1]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    lines = text.splitlines()
    if sum("\ufffd" in line for line in lines) > _BROKEN_LINES * len(lines):
        reads = "; it reads as GB18030: convert it with `iconv -f GB18030 -t UTF-8`" if _is(data, "gb18030") else ""
        raise FileRejected(file.path, f"is no UTF-8{reads}; save it as UTF-8")
    return text


def _is(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start > len(data) - 4  # only a character that the end cuts through
    return True


def _parquet(file: SourceFile, stream: BinaryIO) -> Peek:
    try:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        empty = parquet.schema_arrow.empty_table()
        batch: Any = next(parquet.iter_batches(SAMPLE_ROWS), None)
        table = empty if batch is None else pa.Table.from_batches([batch])
        if len(set(table.column_names)) < table.num_columns:
            raise FileRejected(file.path, "has columns of one name; write the file with distinct names")
        frame = pl.from_arrow(pa.table(with_plain_decimals(file.path, table.schema.names, table.columns)))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise FileRejected(file.path, f"is no whole Parquet file ({reason}); write it again") from error
    assert isinstance(frame, pl.DataFrame)
    return Peek(file, "parquet", frame, file.size / max(parquet.metadata.num_rows, 1))


def _json(file: SourceFile, text: str, used: int) -> Peek:
    if text.lstrip().startswith("["):
        raise FileRejected(file.path, "is one JSON array; write one object a line (`jq -c '.[]'` does it)")
    data = text.encode()
    rows = sum(1 for line in text.split("\n") if line.strip())
    if rows == 1 and len(every := keys(data)) > MAX_COLUMNS:
        raise FileRejected(file.path, f"is one JSON object of {len(every):,} keys; write one object a row and line")
    try:
        frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        frame = parse_json(data, 0, keys(data)[:MAX_COLUMNS]).frame
        frame = frame.select(column for column in frame if column.null_count() < len(column))
    if frame.is_empty():
        raise FileRejected(file.path, "holds no JSON object a line; write one object a line (`jq -c .` does it)")
    return Peek(file, "jsonl", frame.head(SAMPLE_ROWS), used / rows)


def _csv(file: SourceFile, text: str, used: int) -> Peek:
    delimiter = _delimiter(file, text)
    records = [fields for fields in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if fields]
    first = [field.strip() for field in records[0]]
    header = all(field and _VALUE.fullmatch(field) is None for field in first)
    names = distinct(first) if header else [str(number) for number in range(len(first))]
    body = records[1:] if header else records
    good = [fields for fields in body[:SAMPLE_ROWS] if len(fields) == len(names)]
    columns = dict(zip(names, zip(*good, strict=True), strict=True)) if good else dict.fromkeys(names, ())
    frame = pl.DataFrame({name: pl.Series(values, dtype=pl.String) for name, values in columns.items()})
    blank = pl.all().str.strip_chars().is_in(MISSING_WORDS)
    frame = frame.with_columns(pl.when(~blank).then(pl.all())) if frame.width else frame
    return Peek(file, "csv", frame, used / max(len(body), 1), delimiter, header)


def _delimiter(file: SourceFile, text: str) -> str:
    """The character that cuts most records into the same number of fields, the more fields the better."""
    head = text[: 1 << 18]
    found: list[tuple[float, int, str]] = []
    for delimiter in _DELIMITERS:
        width, share = _usual([len(f) for f in csv.reader(io.StringIO(head, newline=""), delimiter=delimiter) if f])
        if width > 1 and share >= _WIDTH_SHARE:
            found.append((round(share, 2), width, delimiter))
    if found:
        return max(found)[2]
    width, share = _usual([len(line.split()) for line in head.splitlines() if line.strip()])
    if width > 1 and share >= 0.99 and not any(delimiter in head for delimiter in ",;\t|"):
        raise FileRejected(
            file.path, r"has columns between runs of blanks; write a CSV: `sed -E 's/^ +//; s/ +/,/g' FILE > FILE.csv`"
        )
    return ","


def _usual(widths: Sequence[int]) -> tuple[int, float]:
    """The most frequent width and the share of records that have it."""
    width, count = Counter(widths).most_common(1)[0]
    return width, count / len(widths)
