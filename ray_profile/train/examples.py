"""Rows of the contract become examples to learn from: what a review says, and what the shop knows about it.

A label that nobody gave is absent (null), never a negative: an item without a category teaches the tags nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ray_profile.encode.heads import SENTIMENTS, sentiment_of_stars, user_hashes
from ray_profile.encode.taxonomy import Tag, Taxonomy
from ray_profile.errors import SourceError
from ray_profile.profile.items import PATH_SEPARATOR
from ray_profile.profile.tagging import Tagger
from ray_profile.train_config import Train

SPLITS = ("train", "validation", "test")
MIN_TAG_ITEMS = 5  # a category with fewer items becomes no tag by itself

EXAMPLES: dict[str, pl.DataType] = {
    "id": pl.String(),
    "user_id": pl.String(),
    "item_id": pl.String(),
    "split": pl.String(),  # one of SPLITS
    "text": pl.String(),  # the review alone: what the tag head sees
    "sentiment": pl.Int8(),  # index into SENTIMENTS, or null
    "tags": pl.List(pl.Int32()),  # indices into the taxonomy's tags, or null
    "about": pl.String(),  # the item's title and category, or null
}


@dataclass(frozen=True)
class Known:
    """What examples are made with: the catalogue's words for items, the shop's own labels, the tags.

    `items` [item_id, about, tags (List(Int32))], `labels` [id, sentiment, tags] or None.
    """

    items: pl.DataFrame
    labels: pl.DataFrame | None
    taxonomy: Taxonomy

    @classmethod
    def of(cls, items: pl.DataFrame, labels: pl.DataFrame | None, taxonomy: Taxonomy | None) -> Known:
        """From rows of schema.ITEMS, each item once, and labels [id, sentiment, tags (List(String))].

        Without a taxonomy the tags are those of the labels, else the categories of enough items.
        """
        if taxonomy is None:
            taxonomy = _of_labels(labels) or _of_categories(items)
        numbers = {tag.id: at for at, tag in enumerate(taxonomy.tags)}
        words = pl.concat_list(pl.col("title"), pl.col("categories").list.join(PATH_SEPARATOR)).list.drop_nulls()
        about = words.list.eval(pl.element().filter(pl.element() != "")).list.join(". ")
        described = items.select("item_id", pl.when(about != "").then(about).alias("about"))
        tags = _numbered(_finest(_tags_of(items, taxonomy), taxonomy), numbers)
        joined = described.join(tags, on="item_id", how="left")
        return cls(joined, None if labels is None else _labels(labels, numbers), taxonomy)


def examples(rows: pl.DataFrame, known: Known, settings: Train) -> pl.DataFrame:
    """Rows (schema.ROWS) -> EXAMPLES: the reviews among them that carry text, in their order."""
    reviews = rows.filter((pl.col("kind") == "review") & pl.col("text").is_not_null())
    stars = sentiment_of_stars(reviews["rating"])
    felt = pl.Series("sentiment", stars.argmax(1).astype(np.int8)).set(pl.Series(np.isnan(stars[:, 0])), None)
    found = reviews.select("id", "user_id", "item_id", "text", split_of(reviews["user_id"], settings), felt)
    found = found.join(known.items, on="item_id", how="left", maintain_order="left")
    if known.labels is not None:
        found = found.join(known.labels, on="id", how="left", maintain_order="left", suffix="_given")
        given = [pl.coalesce(f"{name}_given", name).alias(name) for name in ("sentiment", "tags")]
        found = found.with_columns(given)
    return found.select(*EXAMPLES).cast(pl.Schema(EXAMPLES))


def split_of(users: pl.Series, settings: Train) -> pl.Series:
    """`split` (N,): one of SPLITS, by the hash of the user, so that nobody is on two sides.

    Another `fold` gives other users the test's place; 100 / (percent of test users) folds give everybody a turn.
    """
    place = (user_hashes(users, skip=8) + settings.fold * settings.split[2]) % 100
    _, validation, test = settings.split
    named = np.where(place < test, SPLITS[2], np.where(place < test + validation, SPLITS[1], SPLITS[0]))
    return pl.Series("split", named, dtype=pl.String)


def tag_matrix(tags: pl.Series, count: int) -> npt.NDArray[np.float32]:
    """Lists of tag numbers as (N, T): 1 for a tag of the row, else 0; NaN in rows that nobody tagged (null)."""
    labels = np.zeros((len(tags), count), np.float32)
    labels[tags.is_null().to_numpy()] = np.nan
    known = tags.to_frame("tag").with_row_index("row").explode("tag").drop_nulls("tag")
    labels[known["row"].to_numpy(), known["tag"].to_numpy()] = 1
    return labels


def sentiment_label(column: pl.Series) -> pl.Series:
    """A shop's own words for how a review feels -> Int8, indices into SENTIMENTS.

    0 and 1 are negative and positive, then nothing is neutral; or the three words themselves. Raises `SourceError`.
    """
    words = column.cast(pl.String).str.strip_chars().str.to_lowercase().replace("", None)
    words = words.str.strip_suffix(".0")
    meant = {"0": 0, "1": 2, "false": 0, "true": 2, **{name: at for at, name in enumerate(SENTIMENTS)}}
    found = words.replace_strict(meant, default=None, return_dtype=pl.Int8)
    strange = words.filter(words.is_not_null() & found.is_null())
    if strange.len():
        raise SourceError(
            f"[train.labels] sentiment holds {strange[0]!r}; write 0 and 1, or {', '.join(SENTIMENTS)}, or nothing"
        )
    return found


def _tags_of(items: pl.DataFrame, taxonomy: Taxonomy) -> pl.DataFrame:
    """[item_id, tag] by the items' categories."""
    nobody = np.zeros((items.height, 1), np.float16), np.zeros(items.height, bool)
    named = Tagger(taxonomy).tag_items(items, *nobody)
    ids = items["item_id"].gather(named["row"])
    return named.select(ids.alias("item_id"), "tag")


def _finest(tags: pl.DataFrame, taxonomy: Taxonomy) -> pl.DataFrame:
    """Without the tags that another one of the same item implies."""
    parents = pl.DataFrame(
        [(tag.id, tag.parent) for tag in taxonomy.tags if tag.parent],
        schema={"tag": pl.String, "parent": pl.String},
        orient="row",
    )
    implied = tags.join(parents, on="tag").select("item_id", pl.col("parent").alias("tag")).unique()
    return tags.join(implied, on=["item_id", "tag"], how="anti")


def _numbered(tags: pl.DataFrame, numbers: dict[str, int]) -> pl.DataFrame:
    of = pl.col("tag").replace_strict(numbers, default=None, return_dtype=pl.Int32)
    known = tags.with_columns(of.alias("tag")).drop_nulls("tag")
    return known.group_by("item_id", maintain_order=True).agg(pl.col("tag").unique().sort().alias("tags"))


def _of_labels(labels: pl.DataFrame | None) -> Taxonomy | None:
    if labels is None:
        return None
    names = labels["tags"].explode().drop_nulls().unique().sort().to_list()
    return Taxonomy(tuple(Tag(name, name) for name in names)) if names else None


def _of_categories(items: pl.DataFrame) -> Taxonomy:
    finest = items.select(pl.col("categories").list.last().alias("tag")).drop_nulls()
    common = finest.group_by("tag").len().filter((pl.col("len") >= MIN_TAG_ITEMS) & (pl.col("tag") != "")).sort("tag")
    return Taxonomy(tuple(Tag(name, name, categories=(name,)) for name in common["tag"]))


def _labels(labels: pl.DataFrame, numbers: dict[str, int]) -> pl.DataFrame:
    unknown = labels["tags"].explode().drop_nulls().unique().sort()
    unknown = unknown.filter(~unknown.is_in(list(numbers)))
    if unknown.len():
        raise SourceError(
            f"[train.labels] names tag {unknown[0]!r}, which is not in the taxonomy; add it there, or correct the file"
        )
    number = pl.element().replace_strict(numbers, default=None, return_dtype=pl.Int32)
    return labels.select("id", "sentiment", pl.col("tags").list.eval(number).list.sort()).unique("id", keep="last")


def insist(held: Mapping[str, Any], objectives: Sequence[str], tags: int) -> None:
    """Raise `SourceError` where an objective has nothing to learn from.

    `held` is of the train split: `rows`, `sentiment` and `tags` (rows by class and tag), `paired` (rows with a title).
    """
    if not held["rows"]:
        raise SourceError(
            "no review with text is in the train split; map `text` under [sources.X.columns], or name more files"
        )
    classes = [name for name, rows in zip(SENTIMENTS, held["sentiment"], strict=True) if rows]
    if "sentiment" in objectives and len(classes) < 2:
        said = f"all are {classes[0]}" if classes else "no review has a rating"
        raise SourceError(
            f"train.objectives has sentiment, which needs two classes, and {said}; map `rating` under "
            "[sources.X.columns], name labels under [train.labels], or take the objective out"
        )
    seen = sum(1 for rows in held["tags"] if rows)
    if "tags" in objectives and seen < 2:
        raise SourceError(
            f"train.objectives has tags, and the reviews' items match {seen} of {tags} tags (2 are needed); map "
            "`categories` of the catalogue, give the taxonomy's tags the catalogue's words under `categories`, "
            "name tags under [train.labels], or take the objective out"
        )
    if "contrast" in objectives and held["paired"] < 2:
        raise SourceError(
            "train.objectives has contrast, which pairs a review with its item's title and category, and no review's "
            "item has one; name a catalogue among the sources, or take the objective out"
        )
