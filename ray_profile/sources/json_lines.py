"""JSON lines: whole blocks at once; one by one only around a line that is broken.

Every column is read as text, so that a field may change its type from line to line; objects and arrays become JSON.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import polars as pl

from ray_profile.sources.blocks import BLOCK_BYTES, Block, broken_rows, numbered

_KEY = re.compile(rb"""["']([^"'\\]{1,200})["']\s*:""")
_FEW = 64  # lines; below this, parsing one by one costs less than halving further


def line_blocks(stream: BinaryIO, length: int, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Cut the next `length` bytes into blocks of about `block_bytes` that end at a newline."""
    pieces: list[bytes] = []
    while length > 0 and (piece := stream.read(min(block_bytes, length))):
        length -= len(piece)
        cut = piece.rfind(b"\n") + 1 if length else len(piece)
        if cut:
            yield b"".join([*pieces, piece[:cut]])
            pieces = []
        pieces.append(piece[cut:])
    rest = b"".join(pieces)
    if rest:
        yield rest


def keys(block: bytes) -> list[str]:
    """All that looks like a key, nested ones too, in order of first sight."""
    return list(dict.fromkeys(match.decode("utf-8", "replace") for match in _KEY.findall(block)))


def parse_json(block: bytes, first: int, columns: Sequence[str]) -> Block:
    """Parse one block whose first row has the number `first`. Blank lines are no rows."""
    schema = pl.Schema(dict.fromkeys(columns, pl.String))
    frame = _at_once(block, schema)
    if frame is not None and frame.height == block.count(b"\n") + (not block.endswith(b"\n")):
        return Block(frame, numbered(first, frame.height), broken_rows([]))
    rows = [line for line in block.split(b"\n") if line.strip()]
    if frame is not None and frame.height == len(rows):
        return Block(frame, numbered(first, frame.height), broken_rows([]))
    parts: list[Block] = list(_halved(rows, first, schema))
    if not parts:
        return Block(pl.DataFrame(schema=schema), numbered(first, 0), broken_rows([]))
    return Block(
        pl.concat([part.frame for part in parts]),
        pl.concat([part.numbers for part in parts]),
        pl.concat([part.broken for part in parts]),
    )


def _at_once(block: bytes, schema: pl.Schema) -> pl.DataFrame | None:
    if not block.strip():
        return pl.DataFrame(schema=schema)
    try:
        return pl.read_ndjson(io.BytesIO(block), schema=schema)
    except pl.exceptions.PolarsError:
        return None


def _halved(lines: list[bytes], first: int, schema: pl.Schema) -> Iterator[Block]:
    if not lines:
        return
    frame = _at_once(b"\n".join(lines), schema) if len(lines) > _FEW else None
    if frame is not None and frame.height == len(lines):
        yield Block(frame, numbered(first, frame.height), broken_rows([]))
    elif len(lines) > _FEW:
        middle = len(lines) // 2
        yield from _halved(lines[:middle], first, schema)
        yield from _halved(lines[middle:], first + middle, schema)
    else:
        yield _one_by_one(lines, first, schema)


def _one_by_one(lines: list[bytes], first: int, schema: pl.Schema) -> Block:
    rows, numbers, broken = [], [], []
    for number, line in enumerate(lines, first):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            broken.append((number, "text_encoding", line.decode("utf-8", "replace")))
            continue
        record = _record(text)
        if record is None:
            broken.append((number, "line_broken", text.strip()))
            continue
        rows.append({name: _as_text(record.get(name)) for name in schema})
        numbers.append(number)
    frame = pl.DataFrame(rows, schema=schema)
    return Block(frame, pl.Series("row", numbers, dtype=pl.Int64), broken_rows(broken))


def _record(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        if not text.lstrip().startswith(("{'", "{u'")):
            return None
        try:  # Amazon's files of 2014 hold Python literals
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _as_text(value: Any) -> str | None:
    """As Polars writes it: 1.0 is "1", objects and arrays are JSON."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no UTF-8
