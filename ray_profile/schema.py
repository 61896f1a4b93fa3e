"""The contract: what a row, an item and a quarantined row look like, whatever shop they come from.

Everything else imports this module and it imports nothing of the package. Arrow schemas are exact: a table that
crosses a module's border has these columns, in this order, with these types.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 2

#: What a row can be. A negative quantity makes a purchase a return.
KINDS = ("review", "search", "view", "favourite", "cart", "purchase", "return")

#: How much an action says about what a person likes, relative to a view. A return takes back a purchase's count and
#: spend but not the interest that led to it, so it weighs nothing.
KIND_WEIGHT = {"review": 3.0, "search": 1.0, "view": 1.0, "favourite": 2.0, "cart": 3.0, "purchase": 5.0, "return": 0.0}

TS = pa.timestamp("us", tz="UTC")


def _fields(*fields: pa.Field[Any]) -> list[pa.Field[Any]]:
    return list(fields)


#: One review or one event, checked, redacted and identified.
ROWS = pa.schema(
    _fields(
        pa.field("id", pa.large_string(), nullable=False),  # the mapped id, else SHA-256 of the contract fields
        pa.field("user_id", pa.large_string(), nullable=False),  # a pseudonym when a key is set
        pa.field("item_id", pa.large_string()),
        pa.field("ts", TS, nullable=False),  # event time
        pa.field("hour", pa.int8()),  # 0-23 in the source's zone; null where only the day is known
        pa.field("weekday", pa.int8(), nullable=False),  # 0 = Monday, in the source's zone
        pa.field("kind", pa.large_string(), nullable=False),  # one of KINDS
        pa.field("text", pa.large_string()),  # a review's title and text, or a search query; cleaned and redacted
        pa.field("rating", pa.float32()),  # 1-5
        pa.field("quantity", pa.float64()),  # >= 0; null means 1
        pa.field("price", pa.float64()),  # of one piece, in the shop's currency
        pa.field("order_id", pa.large_string()),
        pa.field("place", pa.large_string()),
        pa.field("device", pa.large_string()),
    )
)

#: One item of the catalogue as a source states it; vectors and tags are added when it is encoded.
ITEMS = pa.schema(
    _fields(
        pa.field("item_id", pa.large_string(), nullable=False),
        pa.field("title", pa.large_string()),
        pa.field("categories", pa.large_list(pa.large_string())),  # a path, coarse to fine
        pa.field("brand", pa.large_string()),
        pa.field("price", pa.float64()),
        pa.field("attributes", pa.large_list(pa.large_string())),  # values people may name: "cordless", "棉"
    )
)

#: One rejected row. `row` counts from 0 at byte `offset` of the file (0 except inside a file read in ranges).
QUARANTINE = pa.schema(
    _fields(
        pa.field("source", pa.large_string(), nullable=False),
        pa.field("file", pa.large_string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("reason", pa.large_string(), nullable=False),  # a key of REASONS
        pa.field("raw", pa.large_string()),  # the row as JSON, or the line; redacted
    )
)

#: Why a row is quarantined: the code in the table, and the sentence that a person reads.
REASONS = {
    "line_broken": "the line is no valid JSON or CSV record",
    "time_missing": "the row has no time",
    "time_unreadable": "the time cannot be read; set sources.X.time_format or time_unit",
    "time_impossible": "the time is before 1990 or more than a day after the run's start",
    "rating_unreadable": "the rating is no number",
    "rating_range": "the rating is outside 1 to 5",
    "text_missing": "a row that lives by its text (a search, or a review without a rating) has none",
    "text_encoding": "the text is no valid UTF-8",
    "text_length": "the text is longer than 100,000 characters",
    "kind_unknown": "the kind is none of " + ", ".join(KINDS) + "; map it under [sources.X.kinds]",
    "number_unreadable": "the price or the quantity is no number, or one beyond 10^12",
    "item_missing": "an event other than a search names no item",
    "duplicate": "the same user, item, time and text stands earlier in the same range",
}

MAX_TEXT_CHARS = 100_000
MAX_NUMBER = 1e12  # of a price or a quantity, either sign: sums of their products stay finite
EARLIEST_YEAR = 1990
