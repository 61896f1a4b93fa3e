"""Segments: the users whose profiles satisfy an SQL predicate. Only an expression is read, so there is nothing that
writes, reads another file, joins or loops; what it may name is a flat view of the profiles, all in one row a user."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
AT_ONCE = 2  # questions, of one replica
#: Names in quotes, comments and casts: ways round the list of functions, and to an error that quotes a value.
_NOT_NEEDED = ('"', "`", "--", "/*", "::", "$")
log = logging.getLogger("ray_profile.serve")
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
_LISTED = {**NAMED, "keywords": "term", "bought": "item_id"}

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


class Segments:
    """Counts and lists users. `scan` gives the newest version of the profiles and its rows of PROFILE_DTYPES.

    Questions run on threads of their own, a few at once: nothing can stop a query that Polars has begun, so one whose
    asker was told that it takes too long keeps its place until it ends.
    """

    def __init__(self, scan: Scan, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._scan, self._timeout = scan, timeout_seconds
        self._pool = ThreadPoolExecutor(AT_ONCE, "segments")
        self._running = 0

    async def count(self, predicate: str) -> dict[str, Any]:
        """{version, count, sample}: how many users match, and the pseudonyms of some, in the order of their hashes."""
        sample = pl.col("user_id").bottom_k_by(pl.col("user_id").hash(0), SAMPLE).implode().alias("sample")
        version, found = await self._asked(predicate, lambda rows: rows.select(pl.len().alias("count"), sample))
        return {"version": version, **found.to_dicts()[0]}

    async def export(
        self, predicate: str, columns: list[str], form: Literal["csv", "parquet"]
    ) -> tuple[int, int, Iterator[bytes]]:
        """(version, users, the file in pieces) of the matching users, sorted, with some columns of the flat view.

        Raises `Problem` 413 for more than `MAX_EXPORT` users.
        """
        for name in columns:
            _insist_on_column(name)
        kept = ["user_id", *(name for name in dict.fromkeys(columns) if name != "user_id")]
        version, found = await self._asked(predicate, lambda rows: rows.select(kept).head(MAX_EXPORT + 1))
        if found.height > MAX_EXPORT:
            raise Problem(413, f"more than {MAX_EXPORT:,} users match; narrow the predicate down and ask in parts")
        return version, found.height, _pieces(found.sort("user_id"), form)

    async def _asked(self, predicate: str, of: Callable[[pl.LazyFrame], pl.LazyFrame]) -> tuple[int, pl.DataFrame]:
        """What `of` makes of the matching rows, and their version.

        Raises `Problem` 429 where enough questions are being answered, 408 where this one takes too long.
        """
        if self._running >= AT_ONCE:
            wait = {"Retry-After": "5"}
            raise Problem(429, f"{AT_ONCE} questions of this kind are being answered; ask again in 5 s", wait)

        def work() -> tuple[int, pl.DataFrame]:
            wanted = parsed(predicate)
            version, rows = self._scan()
            return version, _collected(of(flat(rows).filter(wanted)))

        self._running += 1
        answer = asyncio.get_running_loop().run_in_executor(self._pool, work)
        answer.add_done_callback(self._ended)
        try:
            return await asyncio.wait_for(asyncio.shield(answer), self._timeout)
        except TimeoutError as error:
            raise Problem(408, f"the predicate takes longer than {self._timeout:g} s; make it simpler") from error

    def _ended(self, answer: asyncio.Future[Any]) -> None:
        self._running -= 1
        if not answer.cancelled():
            answer.exception()  # looked at, or asyncio would complain of one that nobody waits for any more


def _collected(query: pl.LazyFrame) -> pl.DataFrame:
    """The answer to a query. What it says of an error may quote what people wrote, so the asker is not told."""
    try:
        return query.collect(engine="streaming")
    except (pl.exceptions.ComputeError, pl.exceptions.InvalidOperationError, pl.exceptions.PanicException) as error:
        log.warning("a predicate cannot be evaluated: %s", type(error).__name__)
        raise Problem(
            422, "the predicate cannot be evaluated on these rows; compare columns with their own kind"
        ) from None
    except OSError as error:
        raise Problem(503, "the profiles cannot be read now; ask again", {"Retry-After": "5"}) from error


def parsed(predicate: str) -> pl.Expr:
    """A predicate as an expression on the flat view. Raises `Problem` 422 for anything else."""
    insist_on_text("the predicate", predicate, MAX_PREDICATE)
    bare = re.sub(r"'(?:[^']|'')*'", "''", predicate)
    for sign in _NOT_NEEDED:
        if sign in bare:
            raise Problem(422, f"a predicate needs no {sign} outside of quotes ('...'); leave it out")
    for name in re.findall(r"(\w+)\s*\(", bare):
        if name.lower() not in FUNCTIONS | _WORDS:
            raise Problem(
                422, f"{quoted(name)} is no function of a predicate; there are {', '.join(sorted(FUNCTIONS))}"
            )
    try:
        found = pl.sql_expr(predicate)
        names = found.meta.root_names()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, ValueError, TypeError) as error:
        raise Problem(422, f"the predicate is no SQL expression: {_first_line(error)}") from error
    for name in names:
        _insist_on_column(name)
    schema = pl.LazyFrame(schema=_SCHEMA).select(found.alias("wanted"))
    try:
        (dtype,) = schema.collect_schema().dtypes()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
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
