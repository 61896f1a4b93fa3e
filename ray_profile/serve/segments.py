"""Segments: the users whose profiles satisfy an SQL predicate. Only an expression is read, so there is nothing that
writes, reads another file, joins or loops; what it may name is a flat view of the profiles, all in one row a user."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import polars as pl

from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.serve.problems import Problem, insist_on_text, quoted
from ray_profile.serve.reasons import NAMED

MAX_PREDICATE = 2_000  # characters
SAMPLE = 20
TIMEOUT_SECONDS = 20.0
MAX_EXPORT = 1_000_000  # users
POLL_SECONDS = 0.005
#: What a predicate may call; all take time in proportion to what they are given, and give no more than they were given.
FUNCTIONS = frozenset(
    {
        "array_contains",
        "array_length",
        "lower",
        "upper",
        "length",
        "abs",
        "round",
        "floor",
        "ceil",
        "coalesce",
        "nullif",
    }
    | {"starts_with", "ends_with", "regexp_like", "least", "greatest"}
)
#: Words that may stand before a parenthesis and call nothing.
_WORDS = frozenset({"and", "or", "not", "in", "case", "when", "then", "else", "between", "is", "like", "ilike"})
_LISTED = {**NAMED, "keywords": "term"}

Scan = Callable[[], tuple[int, pl.LazyFrame]]


def flat(profiles: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of PROFILE_DTYPES as a predicate sees them: numbers as they are, times as ISO 8601 days, lists as the names
    in them, and `sentiment_negative` ... `sentiment_trend`, `liked` and `disliked` (tags)."""
    columns = []
    for name, dtype in PROFILE_DTYPES.items():
        if name in _LISTED:
            columns.append(pl.col(name).list.eval(pl.element().struct.field(_LISTED[name])).alias(name))
        elif isinstance(dtype, pl.Datetime):
            columns.append(pl.col(name).dt.strftime("%Y-%m-%d"))
        elif dtype.is_numeric() or dtype == pl.String:
            columns.append(pl.col(name))
    stance, tag = pl.element().struct.field("stance"), pl.element().struct.field("tag")
    for name in ("liked", "disliked"):
        columns.append(pl.col("tags").list.eval(tag.filter(stance == name)).alias(name))
    felt = ("negative", "neutral", "positive", "n", "trend")
    columns += [pl.col("sentiment").struct.field(name).alias(f"sentiment_{name}") for name in felt]
    return profiles.select(columns)


_SCHEMA = flat(pl.LazyFrame(schema=pl.Schema(PROFILE_DTYPES))).collect_schema()
COLUMNS = tuple(_SCHEMA.names())


@dataclass(frozen=True)
class Segments:
    """Counts and lists users. `scan` gives the newest version of the profiles and its rows of PROFILE_DTYPES."""

    scan: Scan
    timeout_seconds: float = TIMEOUT_SECONDS

    async def count(self, predicate: str) -> dict[str, Any]:
        """{version, count, sample}: how many users match, and the pseudonyms of some, in the order of their hashes."""
        wanted = parsed(predicate)
        version, rows = await asyncio.to_thread(self.scan)
        matching = flat(rows).filter(wanted)
        sample = pl.col("user_id").bottom_k_by(pl.col("user_id").hash(0), SAMPLE).implode().alias("sample")
        found = await self._collected(matching.select(pl.len().alias("count"), sample))
        return {"version": version, **found.to_dicts()[0]}

    async def export(
        self, predicate: str, columns: list[str], form: Literal["csv", "parquet"]
    ) -> tuple[int, int, Iterator[bytes]]:
        """(version, users, the file in pieces) of the matching users, sorted, with some columns of the flat view.

        Raises `Problem` 413 for more than `MAX_EXPORT` users.
        """
        wanted = parsed(predicate)
        for name in columns:
            _insist_on_column(name)
        version, rows = await asyncio.to_thread(self.scan)
        kept = ["user_id", *(name for name in dict.fromkeys(columns) if name != "user_id")]
        found = await self._collected(flat(rows).filter(wanted).select(kept).head(MAX_EXPORT + 1))
        if found.height > MAX_EXPORT:
            raise Problem(413, f"more than {MAX_EXPORT:,} users match; narrow the predicate down and ask in parts")
        return version, found.height, _pieces(found.sort("user_id"), form)

    async def _collected(self, query: pl.LazyFrame) -> pl.DataFrame:
        """Run a query, and stop it when its time is over."""
        running = query.collect(engine="streaming", background=True)
        until = time.monotonic() + self.timeout_seconds
        try:
            while (found := running.fetch()) is None:
                if time.monotonic() > until:
                    raise Problem(408, f"the predicate took longer than {self.timeout_seconds:g} s; make it simpler")
                await asyncio.sleep(POLL_SECONDS)
        except pl.exceptions.PolarsError as error:
            raise Problem(422, f"the predicate cannot be evaluated: {_first_line(error)}") from error
        finally:
            running.cancel()
        return found


def parsed(predicate: str) -> pl.Expr:
    """A predicate as an expression on the flat view. Raises `Problem` 422 for anything else."""
    insist_on_text("the predicate", predicate, MAX_PREDICATE)
    bare = re.sub(r"'(?:[^']|'')*'", "''", predicate)
    for name in re.findall(r"(\w+)\s*\(", bare):
        if name.lower() not in FUNCTIONS | _WORDS:
            raise Problem(
                422, f"{quoted(name)} is no function of a predicate; there are {', '.join(sorted(FUNCTIONS))}"
            )
    try:
        found = pl.sql_expr(predicate)
        names = found.meta.root_names()
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        raise Problem(422, f"the predicate is no SQL expression: {_first_line(error)}") from error
    for name in names:
        _insist_on_column(name)
    schema = pl.LazyFrame(schema=_SCHEMA).select(found.alias("wanted"))
    try:
        (dtype,) = schema.collect_schema().dtypes()
    except pl.exceptions.PolarsError as error:
        raise Problem(422, f"the predicate does not fit the columns: {_first_line(error)}") from error
    if dtype != pl.Boolean:
        raise Problem(422, f"the predicate gives {dtype}, and must say yes or no, as `monetary > 100`")
    return found


def _insist_on_column(name: str) -> None:
    if name not in COLUMNS:
        raise Problem(422, f"{quoted(name)} is no column of a segment; there are {', '.join(COLUMNS)}")


def _pieces(found: pl.DataFrame, form: Literal["csv", "parquet"]) -> Iterator[bytes]:
    if form == "parquet":
        body = BytesIO()
        found.write_parquet(body)
        yield body.getvalue()
        return
    lists = [name for name, dtype in found.schema.items() if isinstance(dtype, pl.List)]
    found = found.with_columns(pl.col(name).list.join("|") for name in lists)
    for at in range(0, max(found.height, 1), 50_000):
        yield found[at : at + 50_000].write_csv(include_header=at == 0).encode()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
