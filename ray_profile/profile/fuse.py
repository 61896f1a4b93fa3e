"""States -> profiles: what people read, served as it is and explained by the evidence it carries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import polars as pl

from ray_profile.profile import behaviour, fuse_behaviour, fuse_text
from ray_profile.profile.facet import FuseContext, entries, weighted_sum
from ray_profile.profile.periods import decay, period_end
from ray_profile.segments import Runs, lists, ranks, spaced
from ray_profile.state import TIME

VECTOR = pl.List(pl.Float32())
#: Users (G,), ascending, vectors (G, D) and weights (G,), float64.
Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]

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
    users, states = numbered(states, context)
    if users.is_empty():
        return pl.DataFrame(schema=PROFILE_DTYPES)
    text_vectors = fuse_text.vectors(states, context.width)
    frames = [
        states.group_by("u").agg(pl.len().cast(pl.Int64).alias("periods")),
        _embeddings(text_vectors, _acted_on(states, context), fusion),
        _listed("text_vector", text_vectors[0], unit(text_vectors[1])),
        *fuse_behaviour.fuse(states, context),
        *fuse_text.fuse(states, context),
    ]
    facts = users.with_columns(
        pl.lit(context.as_of, dtype=TIME).alias("as_of"),
        pl.lit(context.statistics_version, pl.Int64).alias("statistics"),
        pl.lit(context.encoder_digest).alias("encoder"),
    )
    return beside(facts, frames, PROFILE_DTYPES)


def numbered(states: pl.DataFrame, context: FuseContext) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Users [u, user_id] with a period that ends by `context.as_of`, and the states of those periods (see facet.py)."""
    end = period_end(pl.col("period"), context.period)
    states = states.with_columns(end.alias("end")).rechunk()
    if not (states["end"] <= context.as_of).all():
        states = states.filter(pl.col("end") <= context.as_of)
    runs = Runs.of(ranks(states["user_id"]).astype(np.uint64))
    if not states["user_id"].is_sorted():
        states = states[runs.order]
    users = states[runs.starts].select(pl.row_index("u"), "user_id")
    states = states.with_columns(pl.Series("u", runs.numbers, dtype=pl.UInt32))
    last = pl.Series("last", runs.reduce(states["end"], "max")).gather(runs.numbers)
    return users, states.with_columns(decay(pl.col("end"), pl.lit(last), context.half_life_days).alias("scale"))


def beside(users: pl.DataFrame, frames: Iterable[pl.DataFrame], dtypes: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Users and facets' frames [u, ...] as one frame of `dtypes`; a list that a frame does not have is empty."""
    columns: list[pl.Series] = []
    for frame in frames:
        frame = frame if frame["u"].is_sorted() else frame.sort("u")
        columns += [spaced(frame["u"].to_numpy(), column, users.height) for column in frame.drop("u")]
    out = users.with_columns(columns)
    lists = [name for name, dtype in dtypes.items() if isinstance(dtype, pl.List) and dtype != VECTOR]
    empty = [pl.col(name).fill_null(pl.lit([], dtype=dtypes[name])) for name in lists if out[name].null_count()]
    return out.with_columns(empty).select(*dtypes).cast(pl.Schema(dtypes))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) scaled to length 1 in float64; a zero row stays zero."""
    # Divided by the greatest number first: the squares of what has decayed for long would underflow.
    greatest = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(vectors, greatest, out=np.zeros(vectors.shape), where=greatest > 0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit_length: np.ndarray = np.divide(scaled, length, out=scaled, where=length > 0)
    return unit_length


def _embeddings(text: Vectors, acted: Vectors, fusion: Fusion) -> pl.DataFrame:
    users = np.union1d(text[0], acted[0])
    sums, weights = np.zeros((2, len(users), text[1].shape[1])), np.zeros((len(users), 2))
    for side, (whose, vectors, weight) in enumerate((text, acted)):
        at = np.searchsorted(users, whose)
        sums[side, at], weights[at, side] = vectors, weight
    return _listed("embedding", users, fusion(sums[0], sums[1], weights))


def _acted_on(states: pl.DataFrame, context: FuseContext) -> Vectors:
    """The users who acted on items with vectors, the weighted sums of these, and the total weights."""
    known = context.items.frame.select(pl.col("item_id").alias("key"), "item").filter(pl.Series(context.items.known))
    acted = entries(states, behaviour.ITEMS, scaled=("weight",)).join(known, on="key").sort("u", "item")
    acted = acted.filter(pl.col("weight") > 0)
    u, weight = acted["u"].to_numpy(), acted["weight"].to_numpy()
    users, sums = weighted_sum(u, acted["item"].to_numpy(), weight, context.items.vectors)
    return users, sums, np.bincount(np.searchsorted(users, u), weight, minlength=len(users))


def _listed(name: str, users: np.ndarray, vectors: np.ndarray) -> pl.DataFrame:
    """[u, name]: the vectors (G, D) of some users as lists of float32, without those that are zero."""
    some = vectors.any(axis=1)
    values = pl.Series(name, vectors[some].astype(np.float32).ravel())
    column = lists(np.full(some.sum(), vectors.shape[1]), values, VECTOR)
    return pl.DataFrame([pl.Series("u", users[some], dtype=pl.UInt32), column])
