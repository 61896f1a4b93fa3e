"""A profile as the documents that are served: JSON objects, with times in ISO 8601 and null for what is unknown."""

from __future__ import annotations

import polars as pl

from ray_profile.profile.fuse import PROFILE_DTYPES, VECTOR
from ray_profile.profile.items import Items

EVIDENCE = "evidence"


def _fields(dtype: pl.DataType) -> list[pl.Field]:
    """Of a struct, or of a list of structs; else none."""
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    return list(inner.fields) if isinstance(inner, pl.Struct) else []


#: What a profile's document holds: all but the vectors, which are of use to programs only, and the evidence.
FIELDS = tuple(name for name, dtype in PROFILE_DTYPES.items() if dtype != VECTOR)

#: What its other document holds, which says why: the attributes that carry evidence, whole.
REASONS = tuple(name for name in FIELDS if any(each.name == EVIDENCE for each in _fields(PROFILE_DTYPES[name])))

#: What an item's document holds.
ITEM_FIELDS = ("item_id", "title", "categories", "brand", "price", "attributes", "tags")


def documents(profiles: pl.DataFrame) -> pl.DataFrame:
    """Rows of PROFILE_DTYPES -> [id, json, why, vector], in their order; `vector` is the embedding, or null."""
    rows = profiles.select(*PROFILE_DTYPES).cast(pl.Schema(PROFILE_DTYPES))
    return rows.select(
        pl.col("user_id").alias("id"),
        pl.struct(*(_without_evidence(name) for name in FIELDS)).struct.json_encode().alias("json"),
        pl.struct(*REASONS).struct.json_encode().alias("why"),
        pl.col("embedding").alias("vector"),
    )


def item_documents(items: Items) -> pl.DataFrame:
    """The catalogue -> [id, json], in its order: what is known of each item, but its vector."""
    facts = pl.struct(*ITEM_FIELDS).struct.json_encode().alias("json")
    return items.frame.select(pl.col("item_id").alias("id"), facts)


def _without_evidence(name: str) -> pl.Expr:
    kept = [each.name for each in _fields(PROFILE_DTYPES[name]) if each.name != EVIDENCE]
    if name not in REASONS:
        return pl.col(name)
    if isinstance(PROFILE_DTYPES[name], pl.List):
        entry = pl.element().struct
        return pl.col(name).list.eval(pl.struct(*(entry.field(field) for field in kept)))
    return (
        pl.when(pl.col(name).is_not_null())
        .then(pl.struct(*(pl.col(name).struct.field(field) for field in kept)))
        .alias(name)
    )
