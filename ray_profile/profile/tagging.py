"""Which tags a row carries: those of its item's categories, and those its text resembles.

Tags travel as a long frame [row, tag, source, score]: `row` numbers the rows of whatever is tagged, `source` is
`catalogue` or `zero-shot`, `score` is 1 for a catalogue's word and a cosine for a resemblance, never a probability.
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
    """Tags by catalogue and by text. Without a taxonomy, an item's finest category is its tag and texts have none."""

    taxonomy: Taxonomy | None = None
    matrix: TagMatrix | None = None

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

    def tag_texts(self, vectors: np.ndarray, rows: np.ndarray) -> pl.DataFrame:
        """Vectors (N, D), of which `rows` (M,) name the ones to tag -> LONG with those row numbers."""
        if self.matrix is None or len(rows) == 0:
            return pl.DataFrame(schema=LONG)
        found = self.matrix.tags_of(vectors[rows])
        numbers = pl.Series(rows.astype(np.uint32)).gather(found["row"])
        return found.select(numbers.alias("row"), "tag", pl.lit("zero-shot").alias("source"), pl.col("score")).cast(
            pl.Schema(LONG)
        )

    def best(self, parts: list[pl.DataFrame]) -> pl.DataFrame:
        """Join parts; a tag implies its parents; per (row, tag) the catalogue's word goes before a resemblance."""
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


def _norm(expr: pl.Expr) -> pl.Expr:
    return expr.str.normalize("NFKC").str.to_lowercase().str.strip_chars()
