"""Read a source file in ranges, and a range in chunks of bounded size, only the columns that its format needs.

A file that is not the one that was planned, or that cannot be read whole, raises `FileRejected`. A broken gzip does so
before its first row is handed on.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ray_profile.config import Source
from ray_profile.errors import FileRejected, SourceError, StorageError
from ray_profile.sources.blocks import BLOCK_ROWS, Block, decoded, numbered, with_plain_decimals
from ray_profile.sources.csv_lines import distinct, first_record, parse_csv
from ray_profile.sources.files import NEVER_EMPTY, SourceFile, filesystem
from ray_profile.sources.formats import Layout, layout
from ray_profile.sources.json_lines import Keys, line_blocks, parse_json

RANGE_BYTES = 64 << 20
_HEAD_BYTES = 1 << 20
_SPOOL_BYTES = 64 << 20
_BATCH_BYTES = 64 << 20
_SEEK_BYTES, _STREAM_BYTES = 1 << 20, 8 << 20  # fetched from S3 at once

#: First bytes of what people take for a text file.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel file",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"\x1f\x8b": "gzip inside gzip",
    b"PAR1": "Parquet; name it .parquet",
    b"Obj\x01": "Avro",
    b"ORC": "ORC",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}

Kind = Literal["parquet", "jsonl", "csv"]
_SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet",
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}


@dataclass(frozen=True)
class Range:
    """A part of a file that one task reads: a row group of Parquet (`start` and `end` are row numbers of the file), or
    the bytes from `start` to `end` of text, which begin after a newline and end with one."""

    file: SourceFile
    kind: Kind
    row_group: int | None
    start: int
    end: int

    @property
    def offset(self) -> int:
        """Where the row numbers of the range count from: a byte of the file, 0 where they count from its beginning."""
        return 0 if self.kind == "parquet" else self.start


@dataclass(frozen=True)
class Chunk(Block):
    """Some rows of a range: the file's own columns, their row numbers, the broken lines, and what the columns mean."""

    layout: Layout


def ranges(file: SourceFile, source: Source) -> list[Range]:
    """The ranges of a file, in order; none for a text of no bytes.

    A Parquet file has one a row group, a text file one each 64 MiB where rows end at newlines for certain (JSON lines;
    CSV with `multiline = false`), any other one in all. Raises `FileRejected` for a truncated or changed file.
    """
    if file.size == 0:
        if file.path.lower().endswith(NEVER_EMPTY):
            raise FileRejected(file.path, "is empty, which no Parquet or gzip file is; write it again")
        return []
    with _opened(file, _SEEK_BYTES) as stream:
        packed = _is_gzip(file, stream)
        kind = _kind(file, stream, packed)
        if kind == "parquet" and not packed:
            metadata = _parquet(file, stream).metadata
            out, start = [], 0
            for group in range(metadata.num_row_groups):
                end = start + metadata.row_group(group).num_rows
                out.append(Range(file, kind, group, start, end))
                start = end
            return out
        whole = packed or (kind == "csv" and source.multiline) or kind == "parquet"
        cuts = [0, file.size] if whole else _cuts(stream, file.size)
    return [Range(file, kind, None, start, end) for start, end in pairwise(cuts)]


def read(range_: Range, source: Source) -> Iterator[Chunk]:
    """The rows of a range in chunks of at most 100,000 rows.

    Raises `FileRejected` where the file vanished, changed or is damaged, `SourceError` where it lacks a column that is
    mapped, `ConfigError` for a map that makes no sense and `StorageError` where the store does not answer.
    """
    file = range_.file
    with _opened(file, _SEEK_BYTES if range_.kind == "parquet" else _STREAM_BYTES) as stream:
        if range_.kind == "parquet":
            chunks = _read_parquet(range_, source, _unpacked(file, stream))
        elif range_.kind == "jsonl":
            chunks = _read_json(range_, source, _unpacked(file, stream))
        else:
            chunks = _read_csv(range_, source, _unpacked(file, stream))
        for chunk in chunks:
            for part in chunk.slices():
                if part.rows_read:
                    yield Chunk(part.frame, part.numbers, part.broken, chunk.layout)


@contextmanager
def _opened(file: SourceFile, block_size: int) -> Iterator[BinaryIO]:
    """Open the file and insist that it is the one that was listed, before and after (S3: at every read, If-Match)."""
    fs, inner = filesystem(file.path)
    remote = "://" in file.path
    try:
        with fs.open(inner, "rb", **({"block_size": block_size} if remote else {})) as stream:
            if remote:
                _insist(file, int(stream.details["size"]), str(stream.details.get("ETag", file.tag)).strip('"'))
            else:
                _insist_local(file)
            yield stream
        if not remote:
            _insist_local(file)
    except FileNotFoundError as error:
        raise FileRejected(file.path, "vanished after it was listed", transient=True) from error
    except Exception as error:
        if _is_expired(error):
            raise FileRejected(file.path, "changed while being read", transient=True) from error
        if _is_of_the_store(error):
            raise StorageError(f"{file.path} cannot be read ({error}); run the same command again") from error
        raise


def _is_expired(error: BaseException) -> bool:
    """Whether the store answered that If-Match does not hold (s3fs has a class for it, which it does not export)."""
    return type(error).__name__ == "FileExpired" or "pre-conditions" in str(error)


def _is_of_the_store(error: BaseException | None) -> bool:
    """Whether a refusal or a broken connection is at the bottom of it, and not the file's content."""
    while error is not None:
        known = type(error).__module__.split(".")[0] in ("botocore", "aiohttp")
        if known or isinstance(error, (PermissionError, ConnectionError, TimeoutError)):
            return True
        error = error.__cause__
    return False


def _insist_local(file: SourceFile) -> None:
    stat = Path(file.path).stat()
    _insist(file, stat.st_size, str(stat.st_mtime_ns))


def _insist(file: SourceFile, size: int, tag: str) -> None:
    if (size, tag) != (file.size, file.tag):
        raise FileRejected(file.path, "changed while being read: it is not the file that was listed", transient=True)


def _is_gzip(file: SourceFile, stream: BinaryIO) -> bool:
    stream.seek(0)
    packed = stream.read(2) == b"\x1f\x8b"
    if not packed and file.path.lower().endswith(".gz") and file.size:
        raise FileRejected(file.path, "is named .gz but holds no gzip data")
    return packed


def _kind(file: SourceFile, stream: BinaryIO, packed: bool) -> Kind:
    """By the ending of the name; where that says nothing, by the first bytes."""
    suffix = Path(file.path.lower().removesuffix(".gz")).suffix
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    stream.seek(0)
    try:
        with gzip.open(stream) if packed else nullcontext(stream) as content:
            head = content.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise FileRejected(file.path, f"is a broken gzip ({error})") from error
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "csv"


def _unpacked(file: SourceFile, stream: BinaryIO) -> BinaryIO:
    """The stream itself, or the whole content of a gzip in a temporary file, so that a broken one yields no row."""
    if not _is_gzip(file, stream):
        stream.seek(0)
        return stream
    stream.seek(0)
    spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115 (lives as long as the generator)
    try:
        with gzip.open(stream) as content:
            shutil.copyfileobj(content, spool, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FileRejected(
            file.path, f"is a broken gzip ({error}); it was probably cut off, upload it again"
        ) from error
    spool.seek(0)
    return cast(BinaryIO, spool)


def _short(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _plain_text(file: SourceFile, head: bytes) -> bytes:
    """The beginning of a text without its byte order mark."""
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise FileRejected(file.path, f"is {what}; CSV, JSON lines (plain or gzip) and Parquet are read")
    return head.removeprefix(b"\xef\xbb\xbf")


def _cuts(stream: BinaryIO, size: int) -> list[int]:
    cuts = [0]
    for target in range(RANGE_BYTES, size, RANGE_BYTES):
        if target <= cuts[-1]:
            continue  # inside a line longer than a range
        stream.seek(target - 1)
        at = target - 1
        while piece := stream.read(1 << 16):
            if (found := piece.find(b"\n")) >= 0:
                at += found + 1
                break
            at += len(piece)
        if at < size:
            cuts.append(at)
    return [*cuts, size]


def _parquet(file: SourceFile, stream: BinaryIO) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(stream)
    except pa.ArrowException as error:
        raise FileRejected(file.path, f"is no whole Parquet file ({_short(error)}); write it again") from error


def _read_parquet(range_: Range, source: Source, stream: BinaryIO) -> Iterator[Chunk]:
    file = range_.file
    parquet = _parquet(file, stream)
    names = parquet.schema_arrow.names
    made = layout(source, names, file.source, Path(file.path).name)
    for name in made.needed:
        if names.count(name) > 1:
            raise SourceError(
                f"{Path(file.path).name} has {names.count(name)} columns named {name!r}, so that nobody knows which "
                f"one [sources.{file.source}] means; write the file with distinct names"
            )
    groups = range(parquet.num_row_groups) if range_.row_group is None else [range_.row_group]
    row = range_.start
    for group in groups:
        try:
            rows = _batch_rows(parquet, group, made.needed)
            for batch in parquet.iter_batches(rows, [group], made.needed):
                yield Chunk(**vars(_arrow_block(file, batch, row)), layout=made)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError) or _is_expired(error) or _is_of_the_store(error):
                raise
            reason = f"row group {group} is damaged and cannot be decoded ({_short(error)}); write the file again"
            raise FileRejected(file.path, reason) from error


def _batch_rows(parquet: pq.ParquetFile, group: int, columns: list[str]) -> int:
    metadata = parquet.metadata.row_group(group)
    parts = [metadata.column(number) for number in range(metadata.num_columns)]
    size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in columns)
    return max(1, min(BLOCK_ROWS, _BATCH_BYTES * max(metadata.num_rows, 1) // max(size, 1)))


def _arrow_block(file: SourceFile, batch: pa.RecordBatch, first: int) -> Block:
    columns = with_plain_decimals(file.path, batch.schema.names, batch.columns)
    for name, column in columns.items():
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            try:
                column.validate(full=True)  # readers do not check that text is UTF-8
            except pa.ArrowInvalid:
                is_large = pa.types.is_large_string(column.type)
                columns[name] = column.cast(pa.large_binary() if is_large else pa.binary())
    frame = pl.from_arrow(pa.RecordBatch.from_pydict(columns))
    assert isinstance(frame, pl.DataFrame)
    return decoded(frame, numbered(first, batch.num_rows))


def _read_json(range_: Range, source: Source, stream: BinaryIO) -> Iterator[Chunk]:
    file = range_.file
    whole = range_.start == 0 and range_.end == file.size  # then the end is the stream's, which a gzip moves
    length = stream.seek(0, io.SEEK_END) if whole else range_.end - range_.start
    stream.seek(range_.start)
    fields = Keys()
    row = 0
    for block in line_blocks(stream, length):
        if row == 0 and range_.start == 0:
            block = _plain_text(file, block)
            if block.lstrip().startswith(b"["):
                raise FileRejected(file.path, "is one JSON array; write one object a line (`jq -c '.[]'` does it)")
        if row == 0 and not block.strip():
            continue
        fields.see(block)
        begins = row == 0 and range_.start == 0
        made = layout(source, fields, file.source, Path(file.path).name, sparse=True, begins=begins)
        parsed = parse_json(block, row, made.needed)
        row += parsed.rows_read
        yield Chunk(**vars(parsed), layout=made)


def _read_csv(range_: Range, source: Source, stream: BinaryIO) -> Iterator[Chunk]:
    file = range_.file
    delimiter = "\t" if source.delimiter == "," and ".tsv" in Path(file.path).suffixes else source.delimiter
    stream.seek(0)
    raw = stream.read(_HEAD_BYTES)
    head = _plain_text(file, raw)
    mark = len(raw) - len(head)
    fields, used = first_record(head, delimiter)
    if not fields:
        return
    made = layout(source, distinct(fields), file.source, Path(file.path).name)
    names = distinct(fields) if made.header is None else list(made.header)
    data = mark + (used if made.header is None else 0)
    if range_.end < file.size or range_.start > 0:
        start = max(range_.start, data)
        stream.seek(start)
        stream, data = io.BytesIO(stream.read(range_.end - start)), 0
    for block in parse_csv(stream, data, names, made.needed, delimiter):
        yield Chunk(**vars(block), layout=made)
