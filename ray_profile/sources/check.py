"""Split the rows of a chunk into good ones, in the contract's columns, and quarantined ones, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh

from ray_profile.config import Source
from ray_profile.schema import EARLIEST_YEAR, KINDS, MAX_NUMBER, MAX_TEXT_CHARS, REASONS, ROWS
from ray_profile.sources.clean import clean
from ray_profile.sources.formats import Layout
from ray_profile.sources.read import Chunk
from ray_profile.sources.times import resolve
from ray_profile.sources.values import identifiers, joined, numbers


@dataclass
class Seen:
    """The 128-bit hashes of the reviews of one range so far, as sorted runs that double in size."""

    runs: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]] = field(default_factory=list)

    def known(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which hashes stand in an earlier chunk."""
        found = np.zeros(len(high), dtype=bool)
        for run_high, run_low in self.runs:
            at = np.minimum(np.searchsorted(run_high, high), len(run_high) - 1)
            found |= (run_high[at] == high) & (run_low[at] == low)
        return found

    def add(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> None:
        """Remember hashes, none of them known."""
        while self.runs and len(self.runs[-1][0]) <= len(high):
            last_high, last_low = self.runs.pop()
            high, low = np.concatenate([last_high, high]), np.concatenate([last_low, low])
        if len(high):
            order = np.argsort(high, kind="stable")
            self.runs.append((high[order], low[order]))


@dataclass(frozen=True)
class Checked:
    """`good` has the columns of schema.ROWS, unredacted, `id` null where none is mapped.

    `bad` has the rejected rows in the file's own columns, `numbers` and `reasons` say which and why (broken lines are
    not among them: they are in the chunk). `anonymous` counts right rows without a user, which are in neither.
    """

    good: pl.DataFrame
    bad: pl.DataFrame
    numbers: pl.Series
    reasons: pl.Series
    anonymous: int


def check(chunk: Chunk, source: Source, clock: datetime, seen: Seen) -> Checked:
    """Check every row of a chunk. `clock` is the plan's time (aware); `seen` is shared by the chunks of one range.

    A row that is wrong is quarantined even where it names no user. A quantity below 0 makes a purchase a return of so
    many pieces; of another kind it is unreadable. A quantity of 0 (a coupon's line) stays 0: no piece, no spend; but
    beside an amount it says nothing about pieces and becomes null. A price or a quantity beyond schema.MAX_NUMBER is
    unreadable.
    """
    assert clock.tzinfo is not None, "the plan's clock names its zone"
    made = chunk.layout
    rows = _contract(chunk.frame, source, made)
    latest = clock + timedelta(days=1)
    rows = rows.with_columns(reason=_reasons(rows, latest))
    again = _repeated(rows, seen)
    if again is not None:
        rows = rows.with_columns(reason=pl.when(again).then(pl.lit("duplicate")).otherwise("reason"))
    bad = rows["reason"].is_not_null()
    named = rows["user_id"].is_not_null()
    good = rows.filter(~bad & named).select(ROWS.names)
    anonymous = int((~bad & ~named).sum())
    return Checked(good, chunk.frame.filter(bad), chunk.numbers.filter(bad), rows["reason"].filter(bad), anonymous)


def _contract(frame: pl.DataFrame, source: Source, made: Layout) -> pl.DataFrame:
    """The rows in the contract's columns, with what is wrong about them in columns that begin with `_`."""
    columns: dict[str, pl.Series] = {}
    empty = pl.Series([None], dtype=pl.String).new_from_index(0, frame.height)
    for name in ("id", "user_id", "item_id", "order_id", "place", "device"):
        columns[name] = identifiers(_one(frame, made.columns[name])) if name in made.columns else empty
    times = resolve(_times(frame, made.columns["ts"]), source, made)
    columns |= {name: times[name] for name in ("ts", "hour", "weekday")} | {"_no_time": times["missing"]}
    columns |= _texts(frame, made)
    columns |= _numbers(frame, made)
    columns["kind"] = _kinds(frame, made)
    rows = pl.DataFrame({name: column.alias(name) for name, column in columns.items()})
    returned = pl.col("kind").is_in(["purchase", "return"]) & (pl.col("quantity") < 0)
    return rows.with_columns(
        kind=pl.when(returned).then(pl.lit("return")).otherwise("kind"),
        quantity=pl.when(returned | (pl.col("quantity") == 0)).then(pl.col("quantity").abs()).otherwise("quantity"),
    )


def _one(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.Series:
    """A column as it is, or several as one: an order may be known by its day and its number."""
    return frame[names[0]] if len(names) == 1 else joined(frame, names)


def _times(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.Series:
    """The time as it is written, or a day and a time of the day as one text, "2024-03-01 10:00:00"."""
    if len(names) == 1:
        return frame[names[0]]
    parts = [identifiers(frame[name]) for name in names]
    # A day that was exported as a moment: its midnight is not the time.
    days = [part.str.replace(r"[ T]00:00(?::00(?:\.0+)?)?$", "") for part in parts[:-1]]
    whole = pl.select(pl.concat_str([*days, parts[-1]], separator=" ", ignore_nulls=True)).to_series()
    return whole.set((whole == "").fill_null(False), None)


def _texts(frame: pl.DataFrame, made: Layout) -> dict[str, pl.Series]:
    names = (*made.columns.get("title", ()), *made.columns.get("text", ()))
    text = joined(frame, names) if names else pl.Series([None], dtype=pl.String).new_from_index(0, frame.height)
    long = (text.str.len_chars() > MAX_TEXT_CHARS).fill_null(False)
    return {"text": clean(text.set(long, None)) if names else text, "_long": long}


def _numbers(frame: pl.DataFrame, made: Layout) -> dict[str, pl.Series]:
    nothing = pl.Series([None], dtype=pl.Float64).new_from_index(0, frame.height)
    never = nothing.is_not_null()
    out: dict[str, pl.Series] = {}
    for name in ("rating", "quantity", "price", "amount"):
        found = name in made.columns
        column = frame[made.columns[name][0]] if found else nothing
        out[name], out[f"_bad_{name}"] = (
            numbers(column, signs=name in ("price", "amount")) if found else (nothing, never)
        )
    amount = out.pop("amount")
    if "amount" in made.columns:
        # Money was paid, so 0 pieces is no count of them: what is sold by weight is written so.
        out["quantity"] = out["quantity"].set(((out["quantity"] == 0) & (amount != 0)).fill_null(False), None)
        pieces = out["quantity"].abs().fill_null(1.0)
        out["price"] = out["price"].fill_null(amount.abs() / pieces.set(pieces == 0, None))
    out["rating"] = out["rating"].cast(pl.Float32)
    return out


def _kinds(frame: pl.DataFrame, made: Layout) -> pl.Series:
    """The kind of every row; null where its word is unknown."""
    if "kind" not in made.columns:
        return pl.Series([made.kind], dtype=pl.String).new_from_index(0, frame.height)
    words = identifiers(frame[made.columns["kind"][0]])
    known = (
        {kind: kind for kind in KINDS} | {word.lower(): kind for word, kind in made.kinds.items()} | dict(made.kinds)
    )
    kinds = words.replace_strict(known, default=None, return_dtype=pl.String)
    lower = words.str.to_lowercase().replace_strict(known, default=None, return_dtype=pl.String)
    kinds = kinds.fill_null(lower)
    return kinds.zip_with(words.is_not_null(), words.set(words.is_null(), made.kind))


def _reasons(rows: pl.DataFrame, latest: datetime) -> pl.Series:
    """The first reason of schema.REASONS that applies, else null."""
    kind, text, rating = pl.col("kind"), pl.col("text"), pl.col("rating")
    earliest = pl.datetime(EARLIEST_YEAR, 1, 1, time_zone="UTC")
    vast = pl.any_horizontal(pl.col("price", "quantity").abs() > MAX_NUMBER)
    lives_by_text = (kind == "search") | ((kind == "review") & rating.is_null())
    wrong = {
        "time_missing": pl.col("_no_time"),
        "time_unreadable": pl.col("ts").is_null(),
        "time_impossible": (pl.col("ts") < earliest) | (pl.col("ts") > pl.lit(latest)),
        "rating_unreadable": pl.col("_bad_rating"),
        "rating_range": ~rating.is_between(1, 5),
        "text_missing": lives_by_text & text.is_null() & ~pl.col("_long"),
        "text_length": pl.col("_long"),
        "kind_unknown": kind.is_null(),
        "number_unreadable": pl.any_horizontal("_bad_quantity", "_bad_price", "_bad_amount")
        | (pl.col("quantity") < 0)
        | vast,
        "item_missing": ~kind.is_in(["search", "review"]) & pl.col("item_id").is_null(),
    }
    assert set(wrong) < set(REASONS)
    first = pl.coalesce(pl.when(rule).then(pl.lit(name)) for name, rule in wrong.items())
    return rows.select(first).to_series()


def _repeated(rows: pl.DataFrame, seen: Seen) -> pl.Series | None:
    """Which good reviews stand earlier in the range; null reviews, events and anonymous rows never do."""
    chosen = (rows["kind"] == "review").fill_null(False) & rows["reason"].is_null() & rows["user_id"].is_not_null()
    if not chosen.any():
        return None
    reviews = rows.filter(chosen)
    marked = [
        pl.concat_str(pl.col(name).str.len_bytes().cast(pl.String), pl.lit(":"), pl.col(name)).fill_null("-")
        for name in ("user_id", "item_id", "text")
    ]
    key = reviews.select(key=pl.concat_str(*marked, pl.col("ts").cast(pl.Int64).cast(pl.String)))
    hashes = key.select(plh.col("key").nchash.xxh3_128()).to_series()
    first = hashes.is_first_distinct().to_numpy()
    half = pl.lit(2**64, dtype=pl.UInt128)
    halves = hashes.to_frame("key").select(high=pl.col("key") // half, low=pl.col("key") % half).cast(pl.UInt64)
    high, low = halves["high"].to_numpy(), halves["low"].to_numpy()
    old = ~first | seen.known(high, low)
    seen.add(high[~old], low[~old])
    return pl.Series(np.zeros(rows.height, dtype=bool)).scatter(chosen.arg_true(), pl.Series(old))
