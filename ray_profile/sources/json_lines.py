"""JSON lines: whole blocks at once; one by one only around a line that is broken.

Every column is read as text, so that a field may change its type from line to line; objects and arrays become JSON.
Polars writes the text of every line, whatever stands beside it: Python only judges the lines that Polars refuses, and
writes their values anew as JSON that it reads.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import polars as pl

from ray_profile.sources.blocks import BLOCK_BYTES, Block, broken_rows, numbered

_KEY = re.compile(rb"""["']([^"'\\]{1,200})["']\s*:""")
_SURROGATE = re.compile("[\ud800-\udfff]")
_FEW = 64  # lines; below this, parsing one by one costs less than halving further
_HEAD_BYTES = 1 << 20


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


class Keys(list[str]):
    """The field names of JSON lines: those that their beginning shows, and any asked for that a later line has.

    Names that were found stay found, so that one range's blocks agree.
    """

    _block = b""

    def see(self, block: bytes) -> None:
        """Answer for this block, too. The first one that is not blank is the beginning."""
        self._block = block
        if not self:
            self.extend(keys(block[:_HEAD_BYTES]))

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        found = isinstance(name, str) and any(map(self._has, _spellings(name)))
        if found:
            self.append(str(name))
        return found

    def _has(self, spelt: bytes) -> bool:
        # The search for the bare bytes is many times faster, and most often ends the matter.
        return spelt in self._block and re.search(re.escape(spelt) + rb"\s*:", self._block) is not None


def _spellings(name: str) -> set[bytes]:
    """A key in JSON, with and without escapes, and in a Python literal."""
    spelt = (json.dumps(name, ensure_ascii=False), json.dumps(name), repr(name))
    return {text.encode("utf-8", "replace") for text in spelt}


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
    texts: list[bytes] = []
    odd: dict[int, dict[str, Any]] = {}  # place in texts -> the record of a line that only Python reads
    numbers, broken = [], []
    for number, (line, accepted) in enumerate(zip(lines, _accepted(lines, schema), strict=True), first):
        if not accepted:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                broken.append((number, "text_encoding", line.decode("utf-8", "replace")))
                continue
            record = _record(text)
            if record is not None:
                odd[len(texts)] = record
                line = _as_json(record, schema, _json)
            elif not _reads(line, schema):
                broken.append((number, "line_broken", text.strip()))
                continue
        texts.append(line)
        numbers.append(number)
    frame = _at_once(b"\n".join(texts), schema)
    if frame is None:  # a list too deep or a number too long for Polars, though not for Python
        for at in (at for at in odd if not _reads(texts[at], schema)):
            texts[at] = _as_json(odd[at], schema, _quoted)
        frame = _at_once(b"\n".join(texts), schema)
    assert frame is not None
    assert frame.height == len(texts)
    return Block(frame, pl.Series("row", numbers, dtype=pl.Int64), broken_rows(broken))


def _accepted(lines: list[bytes], schema: pl.Schema) -> list[bool]:
    """Which lines Polars reads, of those that are JSON to Python; tried together, as a call costs more than a line."""
    plain = [_is_plain(line) for line in lines]
    if _at_once(b"\n".join(line for line, each in zip(lines, plain, strict=True) if each), schema) is not None:
        return plain
    return [each and _reads(line, schema) for line, each in zip(lines, plain, strict=True)]


def _reads(line: bytes, schema: pl.Schema) -> bool:
    frame = _at_once(line, schema)
    return frame is not None and frame.height == 1


def _is_plain(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8"), parse_constant=_refuse), dict)
    except (ValueError, RecursionError):
        return False


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _record(text: str) -> dict[str, Any] | None:
    """What Python reads of a line: also NaN, control characters in strings, and literals of its own."""
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


def _as_json(record: dict[str, Any], schema: pl.Schema, write: Callable[[Any], str]) -> bytes:
    fields = ", ".join(f"{json.dumps(name)}: {write(record.get(name))}" for name in schema)
    return f"{{{fields}}}".encode()


def _json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except (ValueError, TypeError, RecursionError):  # no number, a key that is no text, a depth
        return _quoted(value)
    return _SURROGATE.sub(r"\\u0000", text)  # as Polars reads one that stands alone


def _quoted(value: Any) -> str:
    """A value that JSON has no place for, as a text."""
    if value is None:
        return "null"
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = str(value)
    return json.dumps(_SURROGATE.sub("\0", text), ensure_ascii=False)
