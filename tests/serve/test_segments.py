"""Segments: a predicate counts whom it says, and is nothing but an expression on the columns."""

from __future__ import annotations

import asyncio
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ray_profile.pipelines.serve import scanned
from ray_profile.profile.fuse import PROFILE_DTYPES
from ray_profile.serve.problems import Problem
from ray_profile.serve.segments import AT_ONCE, COLUMNS, SAMPLE, Scan, Segments, parsed
from ray_profile.store.root import Root


@pytest.fixture(scope="module")
def scan(built: Path) -> Scan:
    root = Root.existing(str(built))
    return lambda: scanned(root)


@pytest.fixture(scope="module")
def segments(scan: Scan) -> Segments:
    return Segments(scan)


@pytest.fixture(scope="module")
def rows(scan: Scan) -> list[dict[str, Any]]:
    return scan()[1].select(*PROFILE_DTYPES).collect().to_dicts()


def count(segments: Segments, predicate: str) -> Any:
    return asyncio.run(segments.count(predicate))


def export(segments: Segments, predicate: str, columns: list[str], form: Any = "csv") -> Any:
    version, users, pieces = asyncio.run(segments.export(predicate, columns, form))
    return version, users, b"".join(pieces)


def test_it_counts_whom_plain_python_counts(segments: Segments, rows: list[dict[str, Any]]) -> None:
    tag = next(row["tags"][0]["tag"] for row in rows if row["tags"])
    for predicate, says in (
        ("1 = 1", lambda _: True),
        ("review_count > 2 AND monetary >= 50.5", lambda row: row["review_count"] > 2 and row["monetary"] >= 50.5),
        (f"array_contains(tags, '{tag}')", lambda row: any(each["tag"] == tag for each in row["tags"])),
        (
            f"array_contains(liked, '{tag}')",
            lambda row: any(each["tag"] == tag and each["stance"] == "liked" for each in row["tags"]),
        ),
        ("last_ts >= '2025-02-15'", lambda row: row["last_ts"].date().isoformat() >= "2025-02-15"),
        (
            "sentiment_positive > 0.6 OR sentiment_n IS NULL",
            lambda row: (
                row["sentiment"] is None or row["sentiment"]["n"] is None or (row["sentiment"]["positive"] or 0) > 0.6
            ),
        ),
        ("array_length(searches) BETWEEN 1 AND 3", lambda row: 1 <= len(row["searches"]) <= 3),
    ):
        wanted = {row["user_id"] for row in rows if says(row)}
        found = count(segments, predicate)
        assert found["count"] == len(wanted), predicate
        assert set(found["sample"]) <= wanted
        assert len(found["sample"]) == min(SAMPLE, len(wanted))
        assert found == count(segments, predicate), "the sample is the same every time"


def test_an_export_lists_them_all(segments: Segments, rows: list[dict[str, Any]]) -> None:
    wanted = sorted(row["user_id"] for row in rows if row["review_count"] > 2)
    _, users, body = export(segments, "review_count > 2", ["review_count", "liked"])
    found = pl.read_csv(BytesIO(body), schema_overrides={"user_id": pl.String})
    assert (users, found["user_id"].to_list(), found.columns) == (
        len(wanted),
        wanted,
        ["user_id", "review_count", "liked"],
    )
    _, _, body = export(segments, "review_count > 2", ["liked"], "parquet")
    assert pl.read_parquet(BytesIO(body))["user_id"].to_list() == wanted
    _, users, body = export(segments, "review_count < 0", ["liked"])
    assert (users, body.decode().strip()) == (0, "user_id,liked")


@pytest.mark.parametrize(
    "predicate",
    [
        "",
        "review_count",
        "review_count >",
        "review_count > 1; DROP TABLE profiles",
        "(SELECT 1)",
        "EXISTS (SELECT 1)",
        "review_count IN (SELECT review_count FROM self)",
        "read_parquet('/etc/passwd') = 1",
        "pg_read_file('/etc/passwd') = 'x'",
        "repeat('a', 1000000000) = 'x'",
        "nothing > 1",
        "embedding IS NULL",
        "tags = 'tea'",
        "a.b > 1",
        "(" * 500 + "1 = 1" + ")" * 500,
        "review_count > 1 AND " * 200 + "1 = 1",
        "'\ud800' = city",
        "array_contains(tags, 1)",
        "SUM(review_count) > 3",
        "(SUM/**/(review_count)) > 3",
        "\"rpad\"(user_id, 5, 'x') = 'x'",
        "lpad/**/(user_id, 5, 'x') = 'x'",
        '"max"(rows) = rows',
        "user_id::int > 1",
        "greatest() > 1",
    ],
)
def test_whatever_is_no_predicate_is_refused(segments: Segments, predicate: str) -> None:
    with pytest.raises(Problem) as caught:
        count(segments, predicate)
    assert caught.value.status == 422
    assert caught.value.detail


def test_names_in_quotes_are_no_functions() -> None:
    found = parsed("array_contains(liked, 'repeat(tea)') OR array_contains(tags, 'it''s (new)')")
    assert set(found.meta.root_names()) == {"liked", "tags"}


def test_nobody_waits_too_long_and_so_many_questions_run_at_once(scan: Scan) -> None:
    """A question keeps its place until it ends, also when nobody waits for it any more."""
    may_go = threading.Event()

    def slowly() -> Any:
        may_go.wait(20)
        return scan()

    async def asked() -> list[int]:
        hurried = Segments(slowly, timeout_seconds=0.01)
        told = []
        for _ in range(AT_ONCE + 1):
            with pytest.raises(Problem) as caught:
                await hurried.count("1 = 1")
            told.append(caught.value.status)
        may_go.set()
        while hurried._running:
            await asyncio.sleep(0)
        hurried._timeout = 20.0
        assert (await hurried.count("1 = 1"))["count"] > 0
        return told

    assert asyncio.run(asked()) == [408] * AT_ONCE + [429]


def test_profiles_that_cannot_be_read_are_no_mistake_of_the_asker() -> None:
    gone = Segments(lambda: (1, pl.scan_parquet("/nowhere/at-all.parquet", schema=pl.Schema(PROFILE_DTYPES))))
    with pytest.raises(Problem) as caught:
        count(gone, "1 = 1")
    assert caught.value.status == 503


def test_a_column_that_is_not_there_cannot_be_exported(segments: Segments) -> None:
    assert "embedding" not in COLUMNS
    with pytest.raises(Problem, match="'embedding' is no column of a segment"):
        export(segments, "1 = 1", ["embedding"])
