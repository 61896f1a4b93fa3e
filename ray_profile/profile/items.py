"""The catalogue as facets see it: what an item is, which tags it carries and where its title lies among all texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

PATH_SEPARATOR = " > "
LEVELS = 3  # how deep into a category path affinities are counted

TAG_STRUCT = pl.Struct({"tag": pl.String(), "source": pl.String(), "score": pl.Float32()})

#: The items table: one row per item. `vector` is the title's vector as raw little-endian float16, null without one.
ITEM_DTYPES: dict[str, pl.DataType] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "categories": pl.List(pl.String()),
    "brand": pl.String(),
    "price": pl.Float64(),
    "attributes": pl.List(pl.String()),
    "tags": pl.List(TAG_STRUCT),
    "vector": pl.Binary(),
    "implicit": pl.Boolean(),  # known only from rows that mention it; a catalogue's word replaces it
}


@dataclass(frozen=True)
class Items:
    """All items, sorted by id.

    `frame` has `item` (UInt32, the row number), ITEM_DTYPES without the vector, and `levels` (List(String): "A",
    "A > B", ...). `vectors` is (N, D) float16, zero where `known` (N, bool) is False.
    """

    frame: pl.DataFrame
    vectors: np.ndarray
    known: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame, width: int) -> Items:
        """From the items table's rows (ITEM_DTYPES)."""
        frame = table.select(*ITEM_DTYPES).sort("item_id")
        known = frame["vector"].is_not_null().to_numpy()
        vectors = np.zeros((frame.height, width), dtype=np.float16)
        if known.any():
            blobs = frame["vector"].drop_nulls().rechunk().to_arrow()
            start, end, stored = blobs.offset, blobs.offset + len(blobs), blobs.buffers()[2]
            assert stored is not None
            vectors[known] = np.frombuffer(memoryview(stored), dtype="<f2").reshape(-1, width)[start:end]
        return cls(
            frame.drop("vector").with_columns(levels("categories").alias("levels")).with_row_index("item"),
            vectors,
            known,
        )

    @cached_property
    def keys(self) -> pl.DataFrame:
        """[item, levels, brand, finest]: what rows are grouped by. Levels and brands are sorted Enums, for speed."""
        named = {
            "levels": self.frame["levels"].explode().drop_nulls().unique().sort(),
            "brand": self.frame["brand"].drop_nulls().unique().sort(),
        }
        return self.frame.select(
            "item",
            pl.col("levels").cast(pl.List(pl.Enum(named["levels"]))),
            pl.col("brand").cast(pl.Enum(named["brand"])),
            pl.col("categories").list.last().alias("finest"),
        )

    @classmethod
    def none(cls, width: int) -> Items:
        """No catalogue."""
        return cls.of(pl.DataFrame(schema=ITEM_DTYPES), width)


def levels(column: str) -> pl.Expr:
    """A category path -> the names of its first three levels, ["A", "B"] -> ["A", "A > B"]; empty for null."""
    path = pl.col(column).fill_null(pl.lit([], dtype=pl.List(pl.String()))).list.drop_nulls()
    depths = [path.list.head(depth).list.join(PATH_SEPARATOR) for depth in range(1, LEVELS + 1)]
    return pl.concat_list(depths).list.unique(maintain_order=True).list.filter(pl.element() != "")
