"""What a parser hands on: a block of parsed rows with their numbers, and the lines that could not be parsed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ray_profile.errors import FileRejected

BLOCK_BYTES = 16 << 20  # parsed at once; a parsed block takes several times as much memory
BLOCK_ROWS = 100_000

BROKEN = pl.Schema({"row": pl.Int64, "reason": pl.String, "raw": pl.String})


@dataclass(frozen=True)
class Block:
    """`numbers[i]` is the row number of `frame[i]`; `broken` has the rows that are not in `frame` (schema BROKEN)."""

    frame: pl.DataFrame
    numbers: pl.Series
    broken: pl.DataFrame

    @property
    def rows_read(self) -> int:
        """All rows of the block, parsed or not."""
        return self.frame.height + self.broken.height

    def slices(self) -> Iterator[Block]:
        """The same rows in blocks of at most BLOCK_ROWS; the broken lines go with the first."""
        yield Block(self.frame.head(BLOCK_ROWS), self.numbers.head(BLOCK_ROWS), self.broken)
        for start in range(BLOCK_ROWS, self.frame.height, BLOCK_ROWS):
            part = self.frame.slice(start, BLOCK_ROWS)
            yield Block(part, self.numbers.slice(start, BLOCK_ROWS), self.broken.clear())


def numbered(first: int, rows: int) -> pl.Series:
    """Row numbers from `first` on."""
    return pl.Series("row", np.arange(first, first + rows, dtype=np.int64))


def broken_rows(rows: Sequence[tuple[int, str, str | None]]) -> pl.DataFrame:
    """(row number, reason, raw line) as a frame."""
    return pl.DataFrame(list(rows), schema=BROKEN, orient="row")


def decoded(frame: pl.DataFrame, numbers: pl.Series) -> Block:
    """Turn binary columns into text; a row with bytes that are no UTF-8 is broken."""
    bad = pl.Series(np.zeros(frame.height, dtype=bool))
    for name in [name for name, dtype in frame.schema.items() if dtype == pl.Binary]:
        try:
            frame = frame.with_columns(pl.col(name).cast(pl.String))
        except pl.exceptions.ComputeError:
            texts = [None if value is None else value.decode("utf-8", "replace") for value in frame[name]]
            lossy = pl.Series(name, texts, dtype=pl.String)
            bad |= (lossy.cast(pl.Binary) != frame[name]).fill_null(False)
            frame = frame.with_columns(lossy)
    return unreadable(frame, numbers, bad)


def unreadable(frame: pl.DataFrame, numbers: pl.Series, bad: pl.Series) -> Block:
    """Set the `bad` rows apart, whose text holds U+FFFD in place of bytes that are no UTF-8."""
    if not bad.any():
        return Block(frame, numbers, broken_rows([]))
    raws = [" | ".join("" if value is None else str(value) for value in row) for row in frame.filter(bad).iter_rows()]
    broken = [(int(row), "text_encoding", raw) for row, raw in zip(numbers.filter(bad), raws, strict=True)]
    return Block(frame.filter(~bad), numbers.filter(~bad), broken_rows(broken))


def with_plain_decimals(path: str, names: Sequence[str], columns: Sequence[Any]) -> dict[str, Any]:
    """Arrow columns by name; decimals of more than 38 digits, for which Polars has no type, as text.

    Raises `FileRejected` where they stand inside lists or structs.
    """
    out = {}
    for name, column in zip(names, columns, strict=True):
        if not pa.types.is_decimal256(column.type) and _has_decimal256(column.type):
            reason = f"column {name!r} is {column.type}, which cannot be read; write its numbers with fewer digits"
            raise FileRejected(path, reason)
        out[name] = column.cast(pa.large_string()) if pa.types.is_decimal256(column.type) else column
    return out


def _has_decimal256(kind: pa.DataType) -> bool:
    inner = [kind.field(number).type for number in range(kind.num_fields)]
    return pa.types.is_decimal256(kind) or any(map(_has_decimal256, inner))
