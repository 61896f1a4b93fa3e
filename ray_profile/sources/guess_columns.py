"""Which column of a sample is which of the contract's: by its name, and by what its values can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ray_profile.sources.guess_times import Times, read_times
from ray_profile.sources.naming import ATTRIBUTES, NAMES, category_level, kind_of, normal, rank
from ray_profile.sources.values import as_text, identifiers, numbers

_MOST = 0.95  # of the values must be what the column is taken for: files have bad rows
_ENOUGH_ROWS = 20  # below it, how often values repeat says nothing
_MAX_KINDS = 30
_LONG_TEXT = 20  # characters on average; an ideograph says as much as three letters
_ID_CHARS = 64
_SHOWN_CHARS = 30
_NOT_AN_ITEM = ("campaign", "coupon", "session", "promo", "manufacturer", "seller", "employee", "page", "device")
_EMAIL = r"^\S+@\S+\.\S+$"


@dataclass(frozen=True)
class Guessed:
    """A value of the configuration, and why it may be wrong; an empty `unsure` is a value that was found."""

    value: Any
    unsure: str = ""


@dataclass
class ColumnMap:
    """Contract column -> the file's column, what is remarkable, and how the time column writes times."""

    columns: dict[str, Guessed] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    times: Times | None = None

    def taken(self) -> set[str]:
        """The file's columns that are mapped."""
        values = (guessed.value for guessed in self.columns.values())
        return {name for value in values for name in ([value] if isinstance(value, str) else value)}


def map_columns(frame: pl.DataFrame, header: bool = True) -> ColumnMap:
    """Map the columns of a sample; what a file does not hold is not mapped."""
    made = ColumnMap()
    filled = frame.select(column for column in frame if column.null_count() < len(column)) if len(frame) else frame
    if header:
        for column in _ORDER:
            _by_name(made, filled, column)
        _categories(made, filled)
        _attributes(made, filled)
    _by_value(made, filled, header)
    if "ts" in made.columns:
        made.times = read_times(frame[made.columns["ts"].value])
    return made


def kinds_in(values: pl.Series) -> dict[str, str | None]:
    """The distinct words of a kind column, the most frequent first, each with its kind or None."""
    counts = identifiers(values).drop_nulls().value_counts(sort=True)
    return {word: kind_of(word) for word in counts.to_series(0).head(_MAX_KINDS).to_list()}


def is_number(values: pl.Series, low: float = float("-inf"), high: float = float("inf")) -> bool:
    """Whether nearly all values are numbers (also "$1,234.50") between two bounds."""
    parsed, bad = numbers(values.drop_nulls(), signs=True)
    given = len(parsed)
    return given > 0 and int((parsed.is_between(low, high) & ~bad).sum()) >= _MOST * given


def mean_chars(values: pl.Series) -> float:
    """The average length of a text; an ideograph counts three characters. 0 for all that is no text."""
    if values.dtype != pl.String or values.null_count() == len(values):
        return 0.0
    texts = values.drop_nulls()
    return float((texts.str.len_chars() + 2 * texts.str.count_matches(r"\p{Han}")).mean() or 0)  # type: ignore[arg-type]


def _is_id(values: pl.Series) -> bool:
    given = values.drop_nulls()
    if given.dtype.is_float():
        return bool((given.drop_nans() % 1 == 0).all())
    is_word = given.dtype.is_integer() or given.dtype == pl.String
    return is_word and (given.is_empty() or mean_chars(given) <= _ID_CHARS) and read_times(given) is None


def _repeats(values: pl.Series) -> bool:
    return values.drop_nulls().n_unique() > 1 or len(values) < _ENOUGH_ROWS


def _is_text(values: pl.Series) -> bool:
    return values.dtype == pl.String and not is_number(values) and read_times(values) is None


def _is_kind(values: pl.Series) -> bool:
    words = kinds_in(values)
    codes = set(words) <= {"1", "2", "3", "4"}
    return 0 < len(words) < _MAX_KINDS and (codes or any(words.values()))


def _is_unique(values: pl.Series) -> bool:
    return values.null_count() == 0 and values.n_unique() == len(values) and _is_id(values)


def _is_name(values: pl.Series) -> bool:
    return values.dtype == pl.String or values.dtype.is_integer()


#: What the values of a contract column must be. The order decides who gets a column that two names fit.
_ORDER: dict[str, Callable[[pl.Series], bool]] = {
    "ts": lambda values: read_times(values) is not None,
    "user_id": lambda values: _is_id(values) and _repeats(values),
    "order_id": _is_id,
    "rating": lambda values: is_number(values, 1, 5),
    "quantity": is_number,
    "price": is_number,
    "amount": is_number,
    "kind": _is_kind,
    "text": _is_text,
    "title": _is_text,
    "item_id": lambda values: _is_id(values) and mean_chars(values) <= _ID_CHARS,
    "item_title": _is_text,
    "query": _is_text,
    "brand": _is_name,
    "place": _is_name,
    "device": _is_name,
    "id": _is_unique,
}


def _by_name(made: ColumnMap, frame: pl.DataFrame, column: str) -> None:
    ranked = [(at, name) for name in frame.columns if (at := rank(column, name)) is not None]
    taken = made.taken()
    for at, name in sorted(ranked):
        if name in taken:
            continue
        if len(frame) and not _ORDER[column](frame[name]):
            if at < 100 and column not in ("kind", "id", "query"):
                made.remarks.append(_unfit(column, name, frame[name]))
            continue
        unsure = "" if at < 100 else f"only the end of the name {name!r} says so"
        if not len(frame):
            unsure = "by its name alone, the file has no rows"
        elif column == "id" and normal(name) in ("id", "rowid"):
            unsure = "every value is different in the sample; a column of ids must name each row once in all files"
        made.columns[column] = Guessed(name, unsure)
        return


def _unfit(column: str, name: str, values: pl.Series) -> str:
    """What is wrong with a column that has the right name. Only numbers and times are shown: a name is personal."""
    rules = {
        "rating": "ratings are numbers from 1 to 5",
        "ts": "no form of time is known that reads them; set time_format",
        "user_id": "a user id is a short text or a whole number, and there is more than one user",
        **dict.fromkeys(("quantity", "price", "amount"), "they are numbers with a point as decimal mark"),
        **dict.fromkeys(("text", "title", "item_title"), "they are words"),
    }
    example = str(as_text(values.drop_nulls().head(1))[0])[:_SHOWN_CHARS]
    shown = f" (such as {example!r})" if column in ("rating", "ts", "quantity", "price", "amount") else ""
    rule = rules.get(column, "they are short ids or names")
    return f"{name!r} is {column} by its name, but not by its values{shown}: {rule}"


def _categories(made: ColumnMap, frame: pl.DataFrame) -> None:
    taken = made.taken()
    levels = [(level, name) for name in frame.columns if (level := category_level(name)) is not None]
    names = [name for _, name in sorted(levels, key=lambda each: each[0]) if name not in taken]
    if names:
        several = "the order must be from coarse to fine" if len(names) > 1 else ""
        made.columns["categories" if len(names) > 1 else "category"] = Guessed(
            names if len(names) > 1 else names[0], several
        )


def _attributes(made: ColumnMap, frame: pl.DataFrame) -> None:
    taken = made.taken()
    names = [name for name in frame.columns if normal(name) in ATTRIBUTES and name not in taken]
    if names:
        made.columns["attributes"] = Guessed(names, "values that people may name about an item")


def _by_value(made: ColumnMap, frame: pl.DataFrame, header: bool) -> None:
    """What names leave open and values may answer; all of it is unsure."""
    if not len(frame):
        return
    columns = made.columns
    if "ts" not in columns:
        _first(made, frame, "ts", lambda values: _looks_like_times(values, header), "its values read as times")
    if "user_id" not in columns:
        _first(made, frame, "user_id", _are_emails, "its values are e-mail addresses")
    if not header:
        _nameless(made, frame)
    if "item_id" not in columns and header:
        _item_by_value(made, frame)
    if {"user_id", "ts"} <= set(columns) and not {"text", "rating", "kind", "query", "quantity", "price"} & set(
        columns
    ):
        _first(made, frame, "text", _is_long, "its values are the longest texts")


def _first(made: ColumnMap, frame: pl.DataFrame, column: str, fits: Callable[[pl.Series], bool], why: str) -> None:
    taken = made.taken()
    found = [name for name in frame.columns if name not in taken and fits(frame[name])]
    if found:
        made.columns[column] = Guessed(found[0], why)


def _looks_like_times(values: pl.Series, header: bool) -> bool:
    times = read_times(values)
    if times is None:
        return False
    # Numbers with a name that says nothing of time are more often ids; without a header there is nothing else to go by.
    return not values.dtype.is_numeric() and (times.unit is None or not header)


def _are_emails(values: pl.Series) -> bool:
    if values.dtype != pl.String:
        return False
    return float(values.drop_nulls().str.contains(_EMAIL).mean() or 0) > _MOST  # type: ignore[arg-type]


def _is_long(values: pl.Series) -> bool:
    return _is_text(values) and mean_chars(values) >= _LONG_TEXT and values.n_unique() > len(values) / 2


def _are_stars(values: pl.Series) -> bool:
    return is_number(values, 1, 5) and values.n_unique() <= 9


def _nameless(made: ColumnMap, frame: pl.DataFrame) -> None:
    """Roles of a CSV without a header: words for actions, then ids in the order that logs are written in."""
    _first(made, frame, "kind", lambda values: _is_kind(values) and any(kinds_in(values).values()), "by its words")
    _first(made, frame, "text", _is_long, "its values are long texts")
    _first(made, frame, "rating", _are_stars, "all numbers from 1 to 5")
    for column in ("user_id", "item_id"):
        if column not in made.columns:
            _first(made, frame, column, _is_id, "the file has no header; by its place")


def _item_by_value(made: ColumnMap, frame: pl.DataFrame) -> None:
    columns = made.columns
    if "item_title" in columns and "ts" in columns:
        columns["item_id"] = Guessed(columns["item_title"].value, "no column of item ids; the name stands for the item")
        return
    taken = made.taken() - {columns["id"].value if "id" in columns else ""}
    others = {word for words in NAMES.values() for word in words if word != "id"}
    ids = [
        name
        for name in frame.columns
        if name not in taken and (word := normal(name)).endswith("id") and word not in others and _is_id(frame[name])
    ]
    ids = [name for name in ids if not normal(name).startswith(_NOT_AN_ITEM)]
    events = {"user_id", "ts"} <= set(columns)
    ids = [name for name in ids if normal(name) != "id" or (not events and _is_unique(frame[name]))]
    if ids:
        columns["item_id"] = Guessed(ids[0], f"no column names the item for certain; {ids[0]!r} holds ids")
        if "id" in columns and columns["id"].value == ids[0]:
            del columns["id"]
