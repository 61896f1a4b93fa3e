"""Which tags a row carries: those of its item's categories, and those its text resembles.

Tags travel as a long frame [row, tag, source, score]: `row` numbers the rows of whatever is tagged, `source` is one of

    catalogue   the score is 1
    model       a head that was trained with the encoder; the score is a calibrated probability
    zero-shot   the score is a cosine, never a probability
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ray_profile.encode.heads import TagMatrix
from ray_profile.encode.taxonomy import Taxonomy

LONG: dict[str, pl.DataType] = {
    "row": pl.UInt32(),
    "tag": pl.String(),
    "source": pl.String(),
    "score": pl.Float32(),
}


@dataclass(frozen=True)
class Tagger:
    """Tags by catalogue and by text. Without a taxonomy, an item's finest category is its tag and texts have none.

    A trained head (`of_reviews`) learnt and was calibrated on what reviews say, so only they are tagged by it. Titles
    and searches are other texts, in other proportions of tags: its probabilities would be none there, and the category
    of an item says its tags already. They resemble a tag or not, by the plain vectors of the same encoder.
    """

    taxonomy: Taxonomy | None = None
    matrix: TagMatrix | None = None
    of_reviews: TagMatrix | None = None  # absent: reviews are tagged as any text

    def tag_items(self, items: pl.DataFrame, vectors: np.ndarray, known: np.ndarray) -> pl.DataFrame:
        """Items with `categories` (N rows) and their titles' vectors (N, D) -> LONG, one row per (item, tag)."""
        numbered = items.select(pl.row_index("row"), "categories")
        if self.taxonomy is None:
            named = numbered.select("row", pl.col("categories").list.last().alias("tag"))
        else:
            words = numbered.explode("categories").select("row", _norm(pl.col("categories")).alias("word"))
            named = words.join(self._words(self.taxonomy), on="word").select("row", "tag")
        by_category = named.filter(pl.col("tag").is_not_null()).select(
            "row", "tag", pl.lit("catalogue").alias("source"), pl.lit(1.0, pl.Float32).alias("score")
        )
        return self.best([by_category.cast(pl.Schema(LONG)), self.tag_texts(vectors, np.flatnonzero(known))])

    def tag_texts(self, vectors: np.ndarray, rows: np.ndarray, is_review: np.ndarray | None = None) -> pl.DataFrame:
        """Vectors (N, D), of which `rows` (M,) name the ones to tag -> LONG with those row numbers.

        `is_review` (N,): which of them are of reviews; none where it is absent.
        """
        if self.of_reviews is None or is_review is None:
            return _tagged(self.matrix, vectors, rows)
        said = is_review[rows]
        return pl.concat([_tagged(self.of_reviews, vectors, rows[said]), _tagged(self.matrix, vectors, rows[~said])])

    def best(self, parts: list[pl.DataFrame]) -> pl.DataFrame:
        """Join parts; a tag implies its parents; per (row, tag) the catalogue's word goes before the model's, and that
        before a resemblance, which is how they stand in the alphabet."""
        tags = pl.concat(parts)
        if self.taxonomy is not None:
            above = tags.join(self._ancestors(self.taxonomy), on="tag").drop("tag").rename({"ancestor": "tag"})
            tags = pl.concat([tags, above.select(*LONG)])
        order = tags.sort(["row", "tag", "source", "score"], descending=[False, False, False, True])
        return order.unique(["row", "tag"], keep="first", maintain_order=True)

    @staticmethod
    def _words(taxonomy: Taxonomy) -> pl.DataFrame:
        pairs = {(word, tag.id) for tag in taxonomy.tags for word in (tag.id, tag.name, *tag.categories)}
        frame = pl.DataFrame(sorted(pairs), schema={"word": pl.String, "tag": pl.String}, orient="row")
        return frame.with_columns(_norm(pl.col("word"))).unique()

    @staticmethod
    def _ancestors(taxonomy: Taxonomy) -> pl.DataFrame:
        parent = {tag.id: tag.parent for tag in taxonomy.tags if tag.parent}
        pairs = []
        for tag in parent:
            at: str | None = parent[tag]
            while at:
                pairs.append((tag, at))
                at = parent.get(at)
        return pl.DataFrame(pairs, schema={"tag": pl.String, "ancestor": pl.String}, orient="row")


def _tagged(matrix: TagMatrix | None, vectors: np.ndarray, rows: np.ndarray) -> pl.DataFrame:
    if matrix is None or len(rows) == 0:
        return pl.DataFrame(schema=LONG)
    found = matrix.tags_of(vectors[rows])
    numbers = pl.Series(rows.astype(np.uint32)).gather(found["row"])
    named = found.select(numbers.alias("row"), "tag", pl.lit(matrix.source).alias("source"), pl.col("score"))
    return named.cast(pl.Schema(LONG))


def _norm(expr: pl.Expr) -> pl.Expr:
    return expr.str.normalize("NFKC").str.to_lowercase().str.strip_chars()
