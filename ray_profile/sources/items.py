"""The catalogue's columns from a file's own: categories, prices and attributes in the many ways shops write them."""

from __future__ import annotations

import ast
import json
import re
from itertools import chain
from typing import Any

import polars as pl
import pyarrow as pa

from ray_profile.schema import ITEMS, MAX_NUMBER
from ray_profile.sources.clean import clean
from ray_profile.sources.formats import Layout
from ray_profile.sources.redact import redact, redact_distinct
from ray_profile.sources.values import as_text, identifiers, joined, numbers

MAX_ATTRIBUTE_CHARS = 40  # longer values are sentences, which nobody names

_PATH = re.compile(r"\s*[>|]\s*")


def item_ids(frame: pl.DataFrame, made: Layout) -> pl.Series:
    """The item of every row, null where it names none."""
    names = made.columns["item_id"]
    return identifiers(joined(frame, names) if len(names) > 1 else frame[names[0]])


def items(frame: pl.DataFrame, made: Layout) -> pa.Table:
    """The distinct items that rows describe, as a table of schema.ITEMS in the order of the rows they come from.

    Of a catalogue the last row of an item counts, of an event file the first; rows without an id describe none. The
    title is the catalogue's `title`, an event file's `item_title`. A price that cannot be read, or beyond
    schema.MAX_NUMBER, is null. Personal data goes out of every text: sellers write telephone numbers anywhere.
    """
    ids = item_ids(frame, made).alias("item_id")
    rows = pl.DataFrame(ids).with_row_index("at").filter(pl.col("item_id").is_not_null())
    rows = rows.unique("item_id", keep="last" if made.items else "first", maintain_order=True)
    return _described(frame[rows["at"]], rows["item_id"], made).select(ITEMS.names).to_arrow().cast(ITEMS)


def _described(frame: pl.DataFrame, ids: pl.Series, made: Layout) -> pl.DataFrame:
    has = made.columns
    title = has.get("item_title") or (has.get("title", ()) if made.items else ())
    category = has.get("categories") or has.get("category", ())
    nothing = pl.Series([None], dtype=pl.String).new_from_index(0, frame.height)
    price = numbers(frame[has["price"][0]], signs=True)[0] if "price" in has else nothing.cast(pl.Float64)
    price = price.set((price.abs() > MAX_NUMBER).fill_null(False), None)
    return pl.DataFrame(
        {
            "item_id": ids,
            "title": redact_distinct(clean(joined(frame, title))) if title else nothing,
            "categories": _lists(frame, category, _path),
            "brand": redact_distinct(identifiers(joined(frame, has["brand"]))) if "brand" in has else nothing,
            "price": price,
            "attributes": _lists(frame, has.get("attributes", ()), _values),
        }
    )


def _lists(frame: pl.DataFrame, names: tuple[str, ...], parse: Any) -> pl.Series:
    """Each row's values as a list, redacted, of several columns one after the other; null where there is none.

    Only the distinct values of a column are parsed and redacted, which for categories are few.
    """
    columns = []
    for name in names:
        text = as_text(frame[name])
        values = text.unique().drop_nulls()
        parsed = [parse(value) for value in values]
        words = pl.Series(list(dict.fromkeys(chain.from_iterable(parsed))), dtype=pl.String)
        safe = dict(zip(words, redact(words), strict=True))
        lists = pl.Series([[safe[word] for word in each] or None for each in parsed], dtype=pl.List(pl.String))
        known = pl.DataFrame({"text": values, "list": lists})
        columns.append(pl.DataFrame({"text": text}).join(known, on="text", how="left", maintain_order="left")["list"])
    if not columns:
        return pl.Series([None], dtype=pl.List(pl.String)).new_from_index(0, frame.height)
    if len(columns) == 1:
        return columns[0]
    whole = pl.select(pl.concat_list([column.fill_null([]) for column in columns])).to_series()
    return whole.set(whole.list.len() == 0, None)


def _decode(text: str) -> Any:
    """JSON, or the Python literal that a CSV copy holds, or the text itself."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text


def _path(text: str) -> list[str]:
    """A path from coarse to fine: a list, the first of several, or "Home > Kitchen" and "Home|Kitchen"."""
    value = _decode(text.strip())
    while isinstance(value, list) and value and isinstance(value[0], list):
        value = value[0]
    parts = value if isinstance(value, list) else _PATH.split(str(value))
    return [part for part in (_word(part) for part in parts) if part]


def _values(text: str) -> list[str]:
    """What stands in a list, or the values of an object; sentences, numbers' objects and repetitions left out."""
    value = _decode(text.strip())
    flat = list(value.values()) if isinstance(value, dict) else value
    parts = flat if isinstance(flat, list) else re.split(r"[,;|，；、]", str(flat))
    words = (_word(part) for part in parts if isinstance(part, (str, int, float)))
    return [word for word in dict.fromkeys(words) if word and len(word) <= MAX_ATTRIBUTE_CHARS]


def _word(value: Any) -> str:
    return " ".join(str(value).split()) if value is not None else ""
