"""Examples as token ids, in Parquet shards: made once, read in every epoch.

Axes: N examples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ray_profile.encode.tokens import Tokenizer
from ray_profile.train.examples import EXAMPLES

SHARD_ROWS = 16_384
ABOUT_TOKENS = 64  # a title says what it is about at its beginning
GENERIC_SHARE = 0.02  # a token in more of the texts says nothing about one item
MIN_TELLING = 3  # tokens, or a review could be about anything ("great product")
MIN_ROWS = 500  # below, no token's share is known

#: What a shard holds beside EXAMPLES.
TOKENISED: dict[str, pl.DataType] = {
    "ids": pl.List(pl.Int32()),
    "about_ids": pl.List(pl.Int32()),  # null where there is no title, or the review is generic
    "title_key": pl.Int64(),  # alike for titles that differ in case, punctuation and order of words only
    "length": pl.Int32(),  # of ids
    "about_length": pl.Int32(),  # of about_ids, 0 for null
}


def tokenised(examples: pl.DataFrame, texts: Tokenizer, titles: Tokenizer) -> pl.DataFrame:
    """EXAMPLES -> EXAMPLES and TOKENISED. `titles` cuts at `ABOUT_TOKENS`."""
    ids = texts.tokenise(examples["text"]).ids
    telling = _telling(ids)
    pairs = examples["about"].set(pl.Series(~telling), None) if examples.height else examples["about"]
    found = examples.with_columns(
        pl.Series("ids", ids, dtype=pl.List(pl.Int32)),
        _about(pairs, titles),
        title_key(examples["about"]),
    )
    lengths = (pl.col(name).list.len().fill_null(0).cast(pl.Int32) for name in ("ids", "about_ids"))
    return found.with_columns(length=next(lengths), about_length=next(lengths)).select(*EXAMPLES, *TOKENISED)


def title_key(titles: pl.Series) -> pl.Series:
    """`title_key` (N,): equal where titles are the same words in any order, case and punctuation; null for null."""
    words = titles.str.normalize("NFKC").str.to_lowercase().str.extract_all(r"\p{Han}|[\p{L}\p{N}]+")
    plain = words.list.unique().list.sort().list.join(" ")
    return plain.hash(7).reinterpret(signed=True).set(titles.is_null(), None).alias("title_key")


def _about(titles: pl.Series, tokenizer: Tokenizer) -> pl.Series:
    """`about_ids`: each distinct title is tokenised once."""
    distinct = titles.drop_nulls().unique(maintain_order=True)
    ids = pl.Series("about_ids", tokenizer.tokenise(distinct).ids, dtype=pl.List(pl.Int32))
    known = pl.DataFrame({"about": distinct, "about_ids": ids})
    return titles.to_frame("about").join(known, on="about", how="left", maintain_order="left")["about_ids"]


def _telling(ids: pa.LargeListArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of N texts have `MIN_TELLING` tokens that few texts have."""
    lengths = np.diff(ids.offsets.to_numpy())
    if len(lengths) < MIN_ROWS:
        return lengths >= 2 + MIN_TELLING
    rows = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(np.stack([rows, ids.values.to_numpy()], 1), axis=0)
    texts_with = np.bincount(pairs[:, 1])
    rare = texts_with[pairs[:, 1]] <= GENERIC_SHARE * len(lengths)
    return np.bincount(pairs[rare, 0], minlength=len(lengths)) >= MIN_TELLING
