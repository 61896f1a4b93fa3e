"""Noise on the training texts, off by default: hidden words, and other words for the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import polars as pl
import torch

from ray_profile.errors import ConfigError
from ray_profile.train.batch import Batch

REWRITTEN = "~rewritten"  # what follows the id of an example in other words


def rewritten(examples: pl.DataFrame, named: str) -> pl.DataFrame:
    """Further examples: those of the train split in the words that a function ("module:name") gives for theirs.

    Raises `ConfigError` where there is no such function, or where it gives another number of texts.
    """
    mine = examples.filter(pl.col("split") == "train")
    if mine.is_empty():
        return mine
    texts = _function(named)(mine["text"].to_list())
    if len(texts) != mine.height:
        raise ConfigError(f"train.augment.rewrite {named!r} gave {len(texts)} texts for {mine.height}; give as many")
    ids = (pl.col("id") + REWRITTEN).alias("id")
    other = mine.with_columns(ids, pl.Series("text", texts, dtype=pl.String))
    return other.filter(pl.col("text").is_not_null() & (pl.col("text").str.strip_chars() != "")).select(
        examples.columns
    )


def _function(named: str) -> Callable[[list[str]], Sequence[str | None]]:
    module, name = named.split(":")
    try:
        found: Callable[[list[str]], Sequence[str | None]] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"train.augment.rewrite = {named!r} cannot be loaded ({error}); install the module where the workers run"
        ) from error
    return found


def word_dropout(batch: Batch, share: float, replaced_by: int, spared: Sequence[int], seed: int) -> Batch:
    """`share` of the text's tokens become one token; special ones are spared. The same for the same batch and seed."""
    random = torch.Generator().manual_seed(hash((seed, batch.epoch, batch.number)) & 0x7FFF_FFFF)
    hit = torch.rand(batch.ids_BL.shape, generator=random) < share
    for token in spared:
        hit &= batch.ids_BL != token
    return replace(batch, ids_BL=batch.ids_BL.masked_fill(hit & batch.mask_BL, replaced_by))
