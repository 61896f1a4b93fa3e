"""CSV: Arrow's parser, block by block; Python's only for a file whose quotes do not pair up.

All fields are text. A record with the wrong number of fields is broken and the records after it go on.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from ray_profile.sources.blocks import BLOCK_BYTES, Block, broken_rows, decoded, unreadable

#: Stands for bytes that are no UTF-8: ASCII's own "substitute", one byte, so that a marked text is never longer.
_MARK = "\x1a"
codecs.register_error("ray_profile.mark", lambda error: (_MARK, cast(UnicodeDecodeError, error).end))

csv.field_size_limit(1 << 30)  # the 128 KiB of the library would make an error of a long text

_OPEN_LINES = 1_000  # a quoted field that is still open after so many lines was never closed
_SLOW_ROWS = 20_000


def first_record(head: bytes, delimiter: str) -> tuple[list[str], int]:
    """The fields of the first record that is not blank, and the bytes up to its end; no fields in an empty file."""
    used = 0

    def lines() -> Iterator[str]:
        nonlocal used
        for line in head.splitlines(keepends=True):
            used += len(line)
            yield line.decode("utf-8", "replace")

    for fields in csv.reader(lines(), delimiter=delimiter):
        if fields:
            return fields, used
    return [], used


def distinct(names: Sequence[str]) -> list[str]:
    """Column names made unique: a, a_2, a_3."""
    seen: dict[str, int] = {}
    out = []
    for name in (name.strip() for name in names):
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return out


class _Marked(io.RawIOBase):
    """A stream whose bytes are UTF-8 for certain: Arrow's parser loses a refused row in silence where they are not."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream, self._rest, self.marks = stream, b"", False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        read = self._stream.read(size - len(self._rest) if size > len(self._rest) else size)
        data, self._rest = self._rest + read, b""
        try:
            _, used = codecs.utf_8_decode(data, "strict", not read)
        except UnicodeDecodeError:
            self.marks = True
            text, used = codecs.utf_8_decode(data, "ray_profile.mark", not read)
            self._rest = data[used:]
            return text.encode()
        self._rest = data[used:]
        return data[:used] if used or not read else self.read(size)


@dataclass
class _Rejects:
    """Rows that Arrow's parser refuses, kept until the block around them is handed on."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    unpaired: bool = False

    def take(self, row: Any) -> Literal["skip", "error"]:
        text = row.text
        if "\n" in text.strip():
            self.unpaired = True  # perhaps a quote that was never closed, with many good rows inside
            return "error"
        self.rows.append((row.number - 1, text.replace(_MARK, "\ufffd")))
        return "skip"


def parse_csv(
    stream: BinaryIO, start: int, names: Sequence[str], columns: Sequence[str], delimiter: str
) -> Iterator[Block]:
    """Parse from byte `start` of the stream to its end.

    `names` are all columns of the file, `columns` those wanted. Row numbers count from 0; blank lines are no rows.
    """
    done = 0
    stream.seek(start)
    rejects, marked = _Rejects(), _Marked(stream)
    try:
        for batch in _arrow_batches(marked, names, columns, delimiter, rejects):
            block, done = _block(batch, done, rejects, marked.marks)
            yield block
        if rejects.rows:
            done = rejects.rows[-1][0] + 1
            empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
            yield Block(empty, pl.Series("row", [], dtype=pl.Int64), _taken(rejects, done))
        return
    except pa.ArrowInvalid:
        stream.seek(start)
    yield from _slowly(stream, names, columns, delimiter, done)


def _arrow_batches(
    stream: _Marked, names: Sequence[str], columns: Sequence[str], delimiter: str, rejects: _Rejects
) -> Iterator[pa.RecordBatch]:
    yield from pacsv.open_csv(
        cast(BinaryIO, stream),
        read_options=pacsv.ReadOptions(column_names=list(names), use_threads=False, block_size=BLOCK_BYTES),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=rejects.take, ignore_empty_lines=True
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.large_string()),
            include_columns=list(columns),
            strings_can_be_null=False,
            quoted_strings_can_be_null=False,
        ),
    )


def _block(batch: pa.RecordBatch, first: int, rejects: _Rejects, marks: bool) -> tuple[Block, int]:
    """Number the rows of a batch around those that were refused; also the number after its last row."""
    refused = np.array([row for row, _ in rejects.rows], dtype=np.int64)
    candidates = np.arange(first, first + batch.num_rows + len(refused), dtype=np.int64)
    numbers = candidates[~np.isin(candidates, refused)][: batch.num_rows]
    after = int(numbers[-1]) + 1 if len(numbers) else first
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    if not marks:
        return Block(frame, pl.Series("row", numbers), _taken(rejects, after)), after
    bad = frame.select(pl.any_horizontal(pl.all().str.contains(_MARK, literal=True))).to_series()
    plain = frame.with_columns(pl.all().str.replace_all(_MARK, "\ufffd", literal=True))
    block = unreadable(plain, pl.Series("row", numbers), bad)
    broken = pl.concat([block.broken, _taken(rejects, after)]).sort("row")
    return Block(block.frame, block.numbers, broken), after


def _taken(rejects: _Rejects, before: int) -> pl.DataFrame:
    out = [(row, "line_broken", text) for row, text in rejects.rows if row < before]
    rejects.rows = [(row, text) for row, text in rejects.rows if row >= before]
    return broken_rows(out)


def _slowly(
    stream: BinaryIO, names: Sequence[str], columns: Sequence[str], delimiter: str, done: int
) -> Iterator[Block]:
    """All records from number `done` on, by Python's parser, which can step back behind an open quote."""
    places = [list(names).index(column) for column in columns]
    records = islice(enumerate(_records(stream, len(names), delimiter)), done, None)
    while part := list(islice(records, _SLOW_ROWS)):
        good = [(number, fields) for number, (fields, _) in part if fields is not None]
        frame = pl.DataFrame(
            {
                column: pl.Series(
                    [fields[place].encode("utf-8", "surrogateescape") for _, fields in good], dtype=pl.Binary
                )
                for column, place in zip(columns, places, strict=True)
            }
        )
        block = decoded(frame, pl.Series("row", [number for number, _ in good], dtype=pl.Int64))
        broken = broken_rows([(number, "line_broken", raw) for number, (fields, raw) in part if fields is None])
        yield Block(block.frame, block.numbers, pl.concat([block.broken, broken]).sort("row"))


def _records(stream: BinaryIO, width: int, delimiter: str) -> Iterator[tuple[list[str] | None, str]]:
    """The fields of each record, or None and its text where it is broken. Lines end as they do for Arrow's parser."""
    ahead: deque[str] = deque()
    while True:
        used: list[str] = []
        is_open = False

        def lines(used: list[str] = used) -> Iterator[str]:
            nonlocal is_open
            while len(used) < _OPEN_LINES:
                if not ahead:
                    read = stream.readline().splitlines(keepends=True)  # a lone carriage return ends a line, too
                    ahead.extend(line.decode("utf-8", "surrogateescape") for line in read)
                if not ahead:
                    break
                line = ahead.popleft()
                used.append(line)
                yield line
            is_open = True  # the parser asks for another line only inside quotes

        fields = next(csv.reader(lines(), delimiter=delimiter), None)
        if not used:
            return
        if not fields:
            continue
        if not is_open and len(fields) == width:
            yield fields, ""
            continue
        if len(used) > 1 and (is_open or _whole(used[1], width, delimiter)):
            ahead.extendleft(reversed(used[1:]))
            used = used[:1]
        yield None, "".join(used).encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def _whole(line: str, width: int, delimiter: str) -> bool:
    return len(next(csv.reader([line], delimiter=delimiter), [])) == width
