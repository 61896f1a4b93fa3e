"""States -> profiles: what people read, served as it is and explained by the evidence it carries."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import polars as pl

from ray_profile.profile import behaviour, fuse_behaviour, fuse_text
from ray_profile.profile.facet import FuseContext, entries, weighted_sum
from ray_profile.profile.periods import decay, period_end
from ray_profile.state import TIME

VECTOR = pl.List(pl.Float32())

#: One row per user. Lists of structs are ordered, most telling first.
PROFILE_DTYPES: dict[str, pl.DataType] = {
    "user_id": pl.String(),
    "as_of": TIME,
    "statistics": pl.Int64(),  # the version of the corpus statistics it was fused with
    "encoder": pl.String(),  # the digest of the encoder whose vectors it holds
    "periods": pl.Int64(),
    "embedding": VECTOR,
    **fuse_behaviour.DTYPES,
    **fuse_text.DTYPES,
}


class Fusion(Protocol):
    """How one vector is made of what a user wrote and acted on; the seam for a trained fusion model.

    `text` (U, D) and `acted` (U, D) are weighted sums of unit vectors, `weights` (U, 2) their total weights; the
    result is (U, D), unit length, zero where both weights are zero.
    """

    def __call__(self, text: np.ndarray, acted: np.ndarray, weights: np.ndarray) -> np.ndarray: ...


def mean_fusion(text: np.ndarray, acted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The normalised weighted mean of the vectors of all texts and of all items acted on."""
    return unit((text + acted) / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))


def fuse(states: pl.DataFrame, context: FuseContext, fusion: Fusion = mean_fusion) -> pl.DataFrame:
    """All states of some users, one row per (user_id, period), -> their profiles (PROFILE_DTYPES), sorted by user.

    Periods that end after `context.as_of` are left out; so are users with no other period.
    """
    end = period_end(pl.col("period"), context.period)
    states = states.with_columns(end.alias("end")).filter(pl.col("end") <= context.as_of)
    if states.is_empty():
        return pl.DataFrame(schema=PROFILE_DTYPES)
    users = states.select("user_id").unique().sort("user_id").with_row_index("u")
    states = states.join(users, on="user_id").sort("u", "period")
    last = pl.col("end").max().over("u")
    states = states.with_columns(decay(pl.col("end"), last, context.half_life_days).alias("scale"))
    text_vector, text_weight = fuse_text.vectors(states, users.height, context.width)
    acted, acted_weight = _acted_on(states, users.height, context)
    embedding = fusion(text_vector, acted, np.column_stack([text_weight, acted_weight]))
    frames = [
        states.group_by("u").agg(pl.len().cast(pl.Int64).alias("periods")),
        *fuse_behaviour.fuse(states, context),
        *fuse_text.fuse(states, context),
    ]
    out = users.with_columns(
        pl.lit(context.as_of, dtype=TIME).alias("as_of"),
        pl.lit(context.statistics_version, pl.Int64).alias("statistics"),
        pl.lit(context.encoder_digest).alias("encoder"),
        _listed("embedding", embedding),
        _listed("text_vector", unit(text_vector)),
    )
    for frame in frames:
        out = out.join(frame, on="u", how="left", maintain_order="left")
    lists = [name for name, dtype in PROFILE_DTYPES.items() if isinstance(dtype, pl.List) and dtype != VECTOR]
    empty = [pl.col(name).fill_null(pl.lit([], dtype=PROFILE_DTYPES[name])) for name in lists]
    return out.with_columns(empty).select(*PROFILE_DTYPES).cast(pl.Schema(PROFILE_DTYPES))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) scaled to length 1 in float64; a zero row stays zero."""
    # Divided by the greatest number first: the squares of what has decayed for long would underflow.
    greatest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(vectors, greatest, out=np.zeros(vectors.shape), where=greatest > 0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit_length: np.ndarray = np.divide(scaled, length, out=scaled, where=length > 0)
    return unit_length


def _acted_on(states: pl.DataFrame, users: int, context: FuseContext) -> tuple[np.ndarray, np.ndarray]:
    """Per user the weighted sum (U, D) of the vectors of the items they acted on, and the total weight (U,)."""
    sums, weights = np.zeros((users, context.width)), np.zeros(users)
    known = context.items.frame.select(pl.col("item_id").alias("key"), "item").filter(pl.Series(context.items.known))
    acted = entries(states, behaviour.ITEMS, scaled=("weight",)).join(known, on="key").sort("u", "item")
    acted = acted.filter(pl.col("weight") > 0)
    if not acted.is_empty():
        u, weight = acted["u"].to_numpy(), acted["weight"].to_numpy()
        groups, totals = weighted_sum(u, acted["item"].to_numpy(), weight, context.items.vectors)
        sums[groups] = totals
        weights += np.bincount(u, weight, minlength=users)
    return sums, weights


def _listed(name: str, vectors: np.ndarray) -> pl.Series:
    """Vectors (U, D) as lists of float32, null where zero."""
    column = pl.Series(name, vectors.astype(np.float32)).cast(VECTOR)
    return column.set(pl.Series(~vectors.any(axis=1)), None)
