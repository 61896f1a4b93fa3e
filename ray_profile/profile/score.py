"""How well built profiles recover what a simulated shop planted (`truth.parquet` of `sources.simulate`).

Every measure stands beside its chance level: the same measure with the truth dealt out to other users at random. A
profile that knows nothing about its own user reaches chance, however good the marginals are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from ray_profile.sources.redact import pseudonyms

TOP_TAGS = 3
RECALL_TAGS = 5

#: A measure of aligned frames (profiles, truth): its value, None where it is undefined, and how many cases it rests on.
Figure = tuple[float | None, int]


@dataclass(frozen=True)
class Measure:
    """What is measured of which attribute, and the profile columns it needs."""

    attribute: str
    name: str
    needs: tuple[str, ...]
    of: Callable[[pl.DataFrame, pl.DataFrame], Figure]


def score(
    profiles: pl.DataFrame,
    truth: pl.DataFrame,
    pseudonym: Callable[[pl.Series], pl.Series] | bytes | None,
    shuffles: int = 20,
    seed: int = 0,
) -> pl.DataFrame:
    """Columns attribute, measure, value, chance, n: one row a measure; value is null where nothing can be measured.

    `pseudonym` turns the raw user ids of `truth` into those of `profiles`: the pseudonym key, a function of a column,
    or None where ids passed unchanged. Users with no profile count in `coverage` only. `chance` is the mean over
    `shuffles` random deals.
    """
    names = pseudonym(truth["user_id"]) if callable(pseudonym) else pseudonyms(truth["user_id"], pseudonym)
    wanted = pl.DataFrame({"user_id": names.cast(pl.String)}).with_row_index("truth_row")
    present = profiles.select(pl.col("user_id").cast(pl.String)).with_row_index("profile_row")
    both = wanted.join(present, on="user_id", how="inner", maintain_order="left")
    left, right = profiles[both["profile_row"]], truth[both["truth_row"]]
    seen = (truth["events"] + truth["reviews"] > 0).to_numpy()
    active = int(seen.sum())
    covered = float(seen[both["truth_row"].to_numpy()].sum()) / active if active else None
    rng = np.random.default_rng(seed)
    deals = [right[rng.permutation(right.height)] for _ in range(shuffles)] if right.height > 1 else []
    rows: list[tuple[str, str, float | None, float | None, int]] = [("users", "coverage", covered, None, active)]
    for measure in MEASURES:
        if not set(measure.needs) <= set(left.columns):
            rows.append((measure.attribute, measure.name, None, None, 0))
            continue
        value, count = measure.of(left, right)
        dealt = [found for deal in deals if (found := measure.of(left, deal)[0]) is not None]
        rows.append((measure.attribute, measure.name, value, float(np.mean(dealt)) if dealt else None, count))
    schema = {"attribute": pl.String, "measure": pl.String, "value": pl.Float64, "chance": pl.Float64, "n": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _tags(profiles: pl.DataFrame) -> pl.DataFrame:
    """(row, tag, stance) of every profile tag, in the profile's own order (by falling share)."""
    if not isinstance(profiles.schema["tags"], pl.List) or profiles["tags"].list.len().fill_null(0).sum() == 0:
        return pl.DataFrame(schema={"row": pl.UInt32, "tag": pl.String, "stance": pl.String})
    tags = profiles.select("tags").with_row_index("row").explode("tags", empty_as_null=False, keep_nulls=False)
    return tags.select("row", pl.col("tags").struct.field("tag"), pl.col("tags").struct.field("stance"))


def _planted(truth: pl.DataFrame, column: str) -> pl.DataFrame:
    """(row, tag) of every planted like or dislike."""
    tags = truth.select(pl.col(column).alias("tag")).with_row_index("row")
    return tags.explode("tag", empty_as_null=False, keep_nulls=False)


def _precision(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
    """Share of the top tags a profile shows as liked that were planted as liked; mean over users who show any."""
    shown = _wanted_tags(profiles).filter(pl.int_range(pl.len()).over("row") < TOP_TAGS)
    hits = shown.join(_planted(truth, "likes").with_columns(hit=1.0), on=["row", "tag"], how="left")
    return _mean(hits.group_by("row").agg(pl.col("hit").fill_null(0.0).mean())["hit"])


def _recall(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
    """Share of a user's planted likes among the first tags that the profile shows; mean over users with likes."""
    shown = _wanted_tags(profiles).filter(pl.int_range(pl.len()).over("row") < RECALL_TAGS)
    likes = _planted(truth, "likes").join(shown.with_columns(hit=1.0), on=["row", "tag"], how="left")
    return _mean(likes.group_by("row").agg(pl.col("hit").fill_null(0.0).mean())["hit"])


def _wanted_tags(profiles: pl.DataFrame) -> pl.DataFrame:
    return _tags(profiles).filter(pl.col("stance").ne_missing("disliked"))


def _stance(column: str, stance: str) -> Callable[[pl.DataFrame, pl.DataFrame], Figure]:
    """Of the planted tags that a profile takes a stance on, the share with the right one ("mixed" is not right)."""

    def share(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
        taken = _tags(profiles).drop_nulls("stance").join(_planted(truth, column), on=["row", "tag"])
        return _mean((taken["stance"] == stance).cast(pl.Float64))

    return share


def _language(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
    """Share of users whose most used language is the planted one; "zh-cn" counts as "zh"."""
    first = profiles.select(pl.col("languages").list.get(0, null_on_oob=True).alias("first"))["first"]
    if not isinstance(first.dtype, pl.Struct):
        return None, 0
    spoken = first.struct.field("language").str.slice(0, 2)
    return _mean((spoken == truth["language"]).cast(pl.Float64))


def _hours(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
    """Share of a user's activity that falls into their planted hours; mean over users with any."""
    pairs = pl.DataFrame({"hours": profiles["hours"], "favourite": truth["favourite_hours"]}).with_row_index("row")
    long = pairs.explode("hours", empty_as_null=False, keep_nulls=False)
    if long.is_empty():
        return None, 0
    long = long.with_columns(inside=pl.int_range(pl.len()).over("row").is_in(pl.col("favourite")))
    return _mean(
        long.group_by("row").agg(share=pl.col("hours").filter("inside").sum() / pl.col("hours").sum())["share"]
    )


def _correlation(method: str, made: pl.Expr, planted: str) -> Callable[[pl.DataFrame, pl.DataFrame], Figure]:
    def correlation(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
        pairs = pl.DataFrame({"made": profiles.select(made).to_series(), "planted": truth[planted]})
        pairs = pairs.with_columns(pl.all().cast(pl.Float64).fill_nan(None)).drop_nulls()
        if method == "spearman":
            pairs = pairs.with_columns(pl.all().rank())
        if pairs["made"].n_unique() < 2 or pairs["planted"].n_unique() < 2:
            return None, pairs.height
        return float(pairs.select(pl.corr("made", "planted")).item()), pairs.height

    return correlation


def _churn(profiles: pl.DataFrame, truth: pl.DataFrame) -> Figure:
    """Area under the ROC curve of recency as a sign of churn (Mann and Whitney's U over the number of pairs)."""
    pairs = pl.DataFrame({"days": profiles["recency_days"], "churned": truth["churned"]}).drop_nulls()
    gone = int(pairs["churned"].sum())
    if gone in (0, pairs.height):
        return None, pairs.height
    ranks = pairs["days"].rank().filter(pairs["churned"]).sum()
    return (float(ranks) - gone * (gone + 1) / 2) / (gone * (pairs.height - gone)), pairs.height


def _mean(values: pl.Series) -> Figure:
    known = values.cast(pl.Float64).fill_nan(None).drop_nulls()
    return (float(np.mean(known.to_numpy())) if len(known) else None), len(known)


_FEELING = pl.col("sentiment").struct
_SENTIMENT = (_FEELING.field("positive") - _FEELING.field("negative")) / (
    _FEELING.field("negative") + _FEELING.field("neutral") + _FEELING.field("positive")
)

MEASURES = (
    Measure("tags", f"precision@{TOP_TAGS}", ("tags",), _precision),
    Measure("tags", f"recall@{RECALL_TAGS}", ("tags",), _recall),
    Measure("stance", "right on likes", ("tags",), _stance("likes", "liked")),
    Measure("stance", "right on dislikes", ("tags",), _stance("dislikes", "disliked")),
    Measure("language", "accuracy", ("languages",), _language),
    Measure("hours", "share in planted hours", ("hours",), _hours),
    Measure(
        "price level",
        "rank correlation",
        ("price_rank",),
        _correlation("spearman", pl.col("price_rank"), "price_level"),
    ),
    Measure("sentiment", "correlation", ("sentiment",), _correlation("pearson", _SENTIMENT, "sentiment")),
    Measure("churn", "AUC of recency", ("recency_days",), _churn),
)
