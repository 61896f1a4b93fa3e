"""Formats: from a file's own column names to the contract's, and what a file of that shape leaves unsaid.

A format is a small function from the column names of a file (the fields of its first line, where a CSV has no header)
to a `Layout`. Whatever a source's own section says (`columns`, `kinds`, `kind`, `whole_days`, `time_unit`) goes before
what its format says.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ray_profile.config import Source
from ray_profile.errors import ConfigError, SourceError
from ray_profile.schema import ITEMS, ROWS

#: What only describes the item: an event source that carries one of these is an implicit catalogue too.
ITEM_COLUMNS = ("item_title", "categories", "category", "brand", "attributes")

#: What may stand between the fields of a CSV.
DELIMITERS = ";\t|,"

_OF_AN_ITEM = {*ITEMS.names, *ITEM_COLUMNS}

#: `title` is a review's title. `amount` is the price of the whole line: `price` is it divided by the quantity.
CONTRACT = (
    *(name for name in ROWS.names if name not in ("hour", "weekday")),
    "title",
    "amount",
    *ITEM_COLUMNS,
)


@dataclass(frozen=True)
class Layout:
    """Where a file keeps the contract's columns, and the facts that its rows do not state."""

    columns: Mapping[str, tuple[str, ...]]  # contract column -> file columns (several are joined)
    required: tuple[str, ...] = ()  # contract columns without which the file is not of this format
    kind: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    items: bool = False
    whole_days: bool | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    header: tuple[str, ...] | None = None  # of a CSV without a header line

    @property
    def needed(self) -> list[str]:
        """The file columns that are read, each once."""
        return list(dict.fromkeys(name for names in self.columns.values() for name in names))


def layout(
    source: Source,
    names: Sequence[str],
    name: str = "X",
    file: str = "the file",
    sparse: bool = False,
    begins: bool = True,
) -> Layout:
    """The layout of a file with these column names.

    `name` and `file` are for messages. `sparse` says that a column may be absent because no row fills it (JSON lines):
    it is then read as null, but at the beginning of a file (`begins`) a time must be there, and no near name.
    Raises `ConfigError` for an unknown format or contract column and `SourceError` for a column that the file lacks.
    """
    made = _format(source, name)(names, source)
    _check_map(source, name)
    columns = {key: names_ for key, names_ in made.columns.items() if key not in source.columns}
    own = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in source.columns.items()}
    made = replace(
        made,
        columns={**columns, **own},
        kind=source.kind or made.kind,
        kinds={**made.kinds, **source.kinds},
        whole_days=made.whole_days if source.whole_days is None else source.whole_days,
        time_unit=source.time_unit or made.time_unit,
    )
    present = made.header or names
    if begins or not sparse:
        _check_present(made, own, names, sparse, file, name)
    always = {*own, *(made.required if sparse else ())}
    kept = {key: tuple(n for n in names_ if key in always or n in present) for key, names_ in made.columns.items()}
    made = replace(made, columns={key: names_ for key, names_ in kept.items() if names_})
    if not made.items and made.kind is None and "kind" not in made.columns:
        if "rating" not in made.columns:
            raise ConfigError(
                f'[sources.{name}] does not say what its rows are; set kind = "purchase" (or another kind), '
                f"or map a column: columns.kind"
            )
        made = replace(made, kind="review")
    return made


def is_catalogue(source: Source) -> bool:
    """Whether the source's rows are items. Raises `ConfigError` for an unknown format."""
    _format(source, "X")
    if source.format == "columns":
        return "item_id" in source.columns and set(source.columns) <= _OF_AN_ITEM
    return source.format.endswith("-items")


def describes_items(source: Source) -> bool:
    """Whether rows of the source are items, or say what their item is (its title, category, brand ...)."""
    made = _format(source, "X")((), source)
    return made.items or bool({*ITEM_COLUMNS} & {*made.columns, *source.columns})


def may_hold_text(source: Source) -> bool:
    """Whether rows of the source can carry a text, so that an encoder is worth starting for it."""
    made = _format(source, "X")((), source)
    return bool({"text", "title"} & {*made.columns, *source.columns})


def _format(source: Source, name: str) -> Format:
    found = FORMATS.get(source.format)
    if found is None:
        near = difflib.get_close_matches(source.format, FORMATS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"sources.{name}.format = {source.format!r} is no format; did you mean {near!r}? "
            f"There are {', '.join(FORMATS)}"
        )
    return found


def _check_map(source: Source, name: str) -> None:
    for column in source.columns:
        if column not in CONTRACT:
            near = difflib.get_close_matches(column, CONTRACT, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"[sources.{name}.columns] maps {column!r}, which is no column of the contract; "
                f"did you mean {near!r}? There are {', '.join(CONTRACT)}"
            )
    if source.format != "columns" or is_catalogue(source):
        return
    for column, why in (("user_id", "a row without a user belongs to no profile"), ("ts", "every row needs a time")):
        if column not in source.columns:
            raise ConfigError(
                f'[sources.{name}.columns] maps no {column!r} ({why}); add {column} = "...", '
                "or map item_id alone for a catalogue"
            )


def _check_present(
    made: Layout, own: Mapping[str, tuple[str, ...]], names: Sequence[str], sparse: bool, file: str, name: str
) -> None:
    present = made.header or names
    for key, columns in made.columns.items():
        missing = [column for column in columns if column not in present]
        needed = bool(missing) if key in own else key in made.required and len(missing) == len(columns)
        if not needed:
            continue
        # A JSON field that no row of a file fills is absent from it; a misspelt one lies close to a real one.
        if sparse and (key == "user_id" or (key in own and key != "ts")):
            unmapped = [column for column in present if column not in made.needed]
            if not difflib.get_close_matches(missing[0], unmapped, n=1, cutoff=0.8):
                continue
        raise SourceError(_lacks(file, missing[0], names, name))


def _lacks(file: str, column: str, names: Sequence[str], name: str) -> str:
    has = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    delimiter = next((each for each in DELIMITERS if len(names) == 1 and each in names[0]), None)
    step = f"map it under [sources.{name}.columns]"
    if delimiter is not None:
        step = f"if its fields stand between {delimiter!r}, set sources.{name}.delimiter = {json.dumps(delimiter)}"
    return f"{file} has no column {column!r}; it has {has}; {step}"


def _pick(names: Sequence[str], *alternatives: str) -> tuple[str, ...]:
    """The first alternative that the file has, else the first of all (which is then reported as missing)."""
    return (next((name for name in alternatives if name in names), alternatives[0]),)


def _amazon_reviews(names: Sequence[str], bare: tuple[str, ...]) -> Layout:
    """The copies of 2014 and 2018; `bare` are the columns of that year's ratings-only CSV, which has no header."""
    headless = len(names) == 4 and names[3].isdecimal()  # a name is no number
    if headless:
        names = bare
    return Layout(
        {
            "user_id": _pick(names, "reviewerID", "UserId", "user_id"),
            "item_id": _pick(names, "asin", "ProductId", "item_id"),
            "rating": _pick(names, "overall", "Rating", "rating"),
            "ts": _pick(names, "unixReviewTime", "Timestamp", "timestamp", "reviewTime"),
            "title": _pick(names, "summary", "Summary"),
            "text": _pick(names, "reviewText", "Text"),
        },
        required=("user_id", "item_id", "rating", "ts"),
        kind="review",
        whole_days=True,
        header=bare if headless else None,
    )


def _amazon_2014(names: Sequence[str], _: Source) -> Layout:
    return _amazon_reviews(names, ("reviewerID", "asin", "overall", "unixReviewTime"))


def _amazon_2018(names: Sequence[str], _: Source) -> Layout:
    return _amazon_reviews(names, ("asin", "reviewerID", "overall", "unixReviewTime"))


def _amazon_2023(names: Sequence[str], _: Source) -> Layout:
    return Layout(
        {
            "user_id": ("user_id",),
            "item_id": _pick(names, "parent_asin", "asin"),
            "rating": ("rating",),
            "ts": _pick(names, "timestamp", "timestamp_ms", "sort_timestamp"),
            "title": ("title",),
            "text": ("text",),
        },
        required=("user_id", "item_id", "rating", "ts"),
        kind="review",
        whole_days=False,
        time_unit="ms",
    )


def _amazon_items(names: Sequence[str], _: Source) -> Layout:
    return Layout(
        {
            "item_id": _pick(names, "asin", "parent_asin"),
            "title": ("title",),
            "categories": _pick(names, "categories", "category", "main_cat"),
            "brand": ("brand",),
            "price": ("price",),
            "attributes": ("details",),
        },
        required=("item_id",),
        items=True,
    )


def _amazon_2023_items(names: Sequence[str], _: Source) -> Layout:
    return Layout(
        {
            "item_id": _pick(names, "parent_asin", "asin"),
            "title": ("title",),
            "categories": _pick(names, "categories", "main_category"),
            "brand": _pick(names, "store", "brand"),
            "price": ("price",),
            "attributes": ("details",),
        },
        required=("item_id",),
        items=True,
    )


def _taobao(names: Sequence[str], _: Source) -> Layout:
    """Two public logs: UserBehavior (pv, cart, fav, buy; no header) and Tianchi's mobile one (1 to 4; whole hours)."""
    header = None
    if len(names) == 5 and names[4].isdecimal():  # a name is no number
        names = header = ("user_id", "item_id", "category_id", "behavior_type", "timestamp")
    return Layout(
        {
            "user_id": ("user_id",),
            "item_id": ("item_id",),
            "kind": _pick(names, "behavior_type", "behavior", "type"),
            "ts": _pick(names, "time", "timestamp"),
            "category": _pick(names, "item_category", "category_id"),
            "place": ("user_geohash",),
        },
        required=("user_id", "item_id", "kind", "ts"),
        kinds={
            "pv": "view",
            "fav": "favourite",
            "cart": "cart",
            "buy": "purchase",
            "1": "view",
            "2": "favourite",
            "3": "cart",
            "4": "purchase",
        },
        whole_days=False,  # hour 00 is an hour like the others
        header=header,
    )


def _columns(names: Sequence[str], source: Source) -> Layout:
    """The user's own map. Column numbers ("0", "1", ...) say that a CSV has no header."""
    mapped = [column for value in source.columns.values() for column in ([value] if isinstance(value, str) else value)]
    numbered = bool(mapped) and all(column.isdecimal() for column in mapped) and not set(mapped) <= set(names)
    header = tuple(str(number) for number in range(len(names))) if numbered else None
    return Layout({}, items=is_catalogue(source), header=header)


Format = Callable[[Sequence[str], Source], Layout]

FORMATS: dict[str, Format] = {
    "columns": _columns,
    "amazon-2014": _amazon_2014,
    "amazon-2018": _amazon_2018,
    "amazon-2023": _amazon_2023,
    "amazon-2014-items": _amazon_items,
    "amazon-2018-items": _amazon_items,
    "amazon-2023-items": _amazon_2023_items,
    "taobao": _taobao,
}
