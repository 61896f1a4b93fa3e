"""Scoring: a perfect profile scores one, anybody else's scores chance, and no profile at all breaks nothing."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from ray_profile.profile.score import MEASURES, score
from ray_profile.sources.redact import pseudonyms
from ray_profile.sources.simulate import simulate

KEY = b"0123456789abcdef"
TAG = pl.Struct({"tag": pl.String, "share": pl.Float64, "stance": pl.String})
COLUMNS: dict[str, pl.DataType] = {
    "tags": pl.List(TAG),
    "languages": pl.List(pl.Struct({"language": pl.String, "share": pl.Float64})),
    "hours": pl.List(pl.Float64()),
    "price_rank": pl.Float64(),
    "sentiment": pl.Struct(dict.fromkeys(("negative", "neutral", "positive"), pl.Float64)),
    "recency_days": pl.Float64(),
}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    return pl.read_parquet(simulate(tmp_path_factory.mktemp("shop") / "data", 400, 6, seed=1).truth)


def _tags(row: dict[str, list[str]]) -> list[dict[str, object]]:
    liked = [{"tag": tag, "share": 0.2, "stance": "liked"} for tag in row["likes"]]
    disliked = [{"tag": tag, "share": 0.1, "stance": "disliked"} for tag in row["dislikes"]]
    return [*liked, *disliked]


def _perfect(truth: pl.DataFrame, key: bytes | None = KEY) -> pl.DataFrame:
    """Profiles that know exactly what was planted, in another order than the truth."""
    hours = [[1.0 if hour in favourite else 0.0 for hour in range(24)] for favourite in truth["favourite_hours"]]
    feeling = [
        None if joy is None else {"negative": (1 - joy) / 2, "neutral": 0.0, "positive": (1 + joy) / 2}
        for joy in truth["sentiment"]
    ]
    return (
        pl.DataFrame(
            {
                "user_id": pseudonyms(truth["user_id"], key),
                "tags": pl.Series([_tags(row) for row in truth.to_dicts()], dtype=pl.List(TAG)),
                "languages": [[{"language": language, "share": 1.0}] for language in truth["language"]],
                "hours": hours,
                "price_rank": truth["price_level"],
                "sentiment": feeling,
                "recency_days": [200.0 if gone else 3.0 for gone in truth["churned"]],
            }
        )
        .sample(fraction=1.0, shuffle=True, seed=1)
        .sort("user_id")
    )


def _value(figures: pl.DataFrame, attribute: str, measure: str, column: str = "value") -> float:
    found = figures.filter((pl.col("attribute") == attribute) & (pl.col("measure") == measure))[column].item()
    assert isinstance(found, float)
    return found


def test_perfect_profiles_score_one(truth: pl.DataFrame) -> None:
    figures = score(_perfect(truth), truth, KEY)
    assert figures.columns == ["attribute", "measure", "value", "chance", "n"]
    assert figures.height == len(MEASURES) + 1
    recall = (figures["attribute"] == "tags") & figures["measure"].str.starts_with("recall")
    assert figures.filter(~recall)["value"].to_list() == pytest.approx([1.0] * (figures.height - 1))
    assert _value(figures, "tags", "recall@5") > 0.99  # a few like more than five things
    assert figures["n"].min() > 50  # type: ignore[operator]


def test_chance_is_far_from_perfect(truth: pl.DataFrame) -> None:
    figures = score(_perfect(truth), truth, KEY)
    assert 0.1 < _value(figures, "tags", "precision@3", "chance") < 0.4
    assert 0.4 < _value(figures, "language", "accuracy", "chance") < 0.7
    assert abs(_value(figures, "price level", "rank correlation", "chance")) < 0.1
    assert abs(_value(figures, "sentiment", "correlation", "chance")) < 0.1
    assert _value(figures, "churn", "AUC of recency", "chance") == pytest.approx(0.5, abs=0.05)
    assert _value(figures, "hours", "share in planted hours", "chance") < 0.4


def test_profiles_of_other_people_score_chance(truth: pl.DataFrame) -> None:
    perfect = _perfect(truth)
    names = perfect["user_id"].to_list()
    random.Random(2).shuffle(names)
    figures = score(perfect.with_columns(pl.Series("user_id", names)), truth, KEY).filter(
        pl.col("attribute") != "users"
    )
    small = figures.filter(pl.col("attribute") == "stance")  # few users share a tag, so these are noisy
    rest = figures.filter(pl.col("attribute") != "stance")
    assert (rest["value"] - rest["chance"]).abs().max() < 0.1  # type: ignore[operator]
    assert (small["value"] - small["chance"]).abs().max() < 0.3  # type: ignore[operator]


def test_a_wrong_stance_is_counted(truth: pl.DataFrame) -> None:
    swap = pl.element().struct.with_fields(stance=pl.lit("mixed"))
    figures = score(_perfect(truth).with_columns(pl.col("tags").list.eval(swap)), truth, KEY)
    assert _value(figures, "stance", "right on likes") == 0
    assert _value(figures, "stance", "right on dislikes") == 0


def test_only_the_first_three_tags_count_for_precision() -> None:
    truth = pl.DataFrame(
        {
            "user_id": ["a"],
            "language": ["en"],
            "likes": [["x", "y"]],
            "dislikes": [["z"]],
            "events": [4],
            "reviews": [1],
        }
    )
    tags = [{"tag": tag, "share": 0.1, "stance": stance} for tag, stance in
            [("x", "liked"), ("z", "disliked"), ("q", None), ("r", "mixed"), ("y", None)]]  # fmt: skip
    profiles = pl.DataFrame({"user_id": ["a"], "tags": pl.Series([tags], dtype=pl.List(TAG))})
    figures = score(profiles, truth, None)
    assert _value(figures, "tags", "precision@3") == pytest.approx(1 / 3)  # x of x, q, r; z is known to be disliked
    assert _value(figures, "tags", "recall@5") == 1
    assert figures.filter(pl.col("attribute") == "hours")["n"].item() == 0  # profiles without that column


def test_users_without_a_profile_lower_coverage_only(truth: pl.DataFrame) -> None:
    figures = score(_perfect(truth).head(200), truth, KEY)
    assert _value(figures, "users", "coverage") == pytest.approx(0.5, abs=0.02)
    assert _value(figures, "tags", "precision@3") == 1


def test_a_function_or_no_key_names_the_users(truth: pl.DataFrame) -> None:
    assert _value(score(_perfect(truth, None), truth, None), "users", "coverage") == 1
    renamed = _perfect(truth, None).with_columns(user_id="u:" + pl.col("user_id"))
    assert _value(score(renamed, truth, lambda users: "u:" + users), "users", "coverage") == 1
    wrong_key = score(_perfect(truth), truth, b"another key of 16+")
    assert _value(wrong_key, "users", "coverage") == 0
    assert wrong_key["n"].sum() == truth.height


def test_scores_repeat(truth: pl.DataFrame) -> None:
    assert score(_perfect(truth), truth, KEY).equals(score(_perfect(truth), truth, KEY))


def test_empty_profiles_and_empty_truth(truth: pl.DataFrame) -> None:
    columns = {"user_id": pl.String(), **COLUMNS}
    for profiles in (pl.DataFrame(schema=columns), pl.DataFrame(schema={"user_id": pl.String()})):
        figures = score(profiles, truth, KEY)
        assert _value(figures, "users", "coverage") == 0
        assert figures.filter(pl.col("attribute") != "users")["value"].null_count() == len(MEASURES)
    assert score(_perfect(truth), truth.clear(), KEY)["value"].null_count() == len(MEASURES) + 1


def test_profiles_that_know_nothing(truth: pl.DataFrame) -> None:
    """Every column there and null or empty, with the types that a build writes."""
    columns = {"user_id": pl.String(), **COLUMNS}
    blank = pl.DataFrame({"user_id": pseudonyms(truth["user_id"], KEY)}).with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in columns.items() if name != "user_id"
    )
    figures = score(blank, truth, KEY)
    assert _value(figures, "users", "coverage") == 1
    assert _value(figures, "tags", "recall@5") == 0
    others = figures.filter(~pl.col("measure").is_in(["coverage", "recall@5"]))
    assert others["value"].null_count() == others.height
    empty = blank.with_columns(
        pl.lit([], dtype=dtype).alias(n) for n, dtype in columns.items() if dtype.base_type() is pl.List
    )
    assert score(empty, truth, KEY)["n"].to_list() == figures["n"].to_list()


def test_one_user(tmp_path: Path) -> None:
    truth = pl.read_parquet(simulate(tmp_path / "shop", 1, 3, seed=5).truth)
    figures = score(_perfect(truth), truth, KEY)
    assert figures["chance"].null_count() == figures.height
    assert _value(figures, "language", "accuracy") == 1
    assert datetime(2026, 1, 1, tzinfo=UTC) > truth["churned_since"].fill_null(datetime(2025, 1, 1, tzinfo=UTC)).item()
