"""Rows -> partial states: the map-side combine that every block goes through, whoever runs it."""

from __future__ import annotations

from functools import cache

import polars as pl

from ray_profile.profile import behaviour, text
from ray_profile.profile.facet import FoldContext
from ray_profile.profile.periods import decay, period_end, period_of
from ray_profile.schema import KIND_WEIGHT
from ray_profile.state import StateSchema, group


@cache
def state_schema(width: int) -> StateSchema:
    """The state of an encoder with vectors of `width` numbers."""
    return StateSchema((*behaviour.COLUMNS, *text.columns(width)))


def fold(rows: pl.DataFrame, context: FoldContext) -> pl.DataFrame:
    """Rows of schema.ROWS, with or without `vector` (Array(Float16, D)), -> one state per (user_id, period), sorted."""
    schema = state_schema(context.width)
    if rows.is_empty():
        return pl.DataFrame(schema=schema.dtypes)
    keys, rows = prepared(rows, context)
    pieces = [*behaviour.fold(rows, context), *text.fold(rows, context)]
    return schema.assemble(keys, pieces)


def prepared(rows: pl.DataFrame, context: FoldContext) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The keys [g, user_id, period] of rows of schema.ROWS, and the rows as facets see them (see facet.py)."""
    if "vector" not in rows.columns:
        rows = rows.with_columns(pl.lit(None, dtype=pl.Array(pl.Float16, context.width)).alias("vector"))
    rows = rows.with_columns(period_of(pl.col("ts"), context.period).alias("period"))
    g, keys = group(rows)
    end = period_end(pl.col("period"), context.period)
    rows = rows.with_columns(g, decay(pl.col("ts"), end, context.half_life_days).alias("decay"))
    kinds = pl.DataFrame({"kind": list(KIND_WEIGHT), "weight": list(KIND_WEIGHT.values())})
    rows = rows.join(kinds, on="kind", how="left", maintain_order="left")
    rows = rows.with_columns(pl.col("weight") * pl.col("decay"))
    rows = rows.join(context.items.frame.select("item_id", "item"), on="item_id", how="left", maintain_order="left")
    return keys, rows
