"""Texts -> what `build` would make of each: its vector, how it feels, and the tags it is about."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ray_profile.encode.heads import SENTIMENTS, Encodes, Probe
from ray_profile.profile.tagging import Tagger
from ray_profile.sources.clean import clean

MAX_TEXTS = 256  # of one request
DIGITS = 6  # of a number in an answer: a float16 has three


@dataclass(frozen=True)
class Embedder:
    """The encoder and the heads of a root. Without a probe nothing is said of feelings, without tags none are given."""

    encoder: Encodes
    probe: Probe | None
    tagger: Tagger

    def __call__(self, texts: Sequence[str]) -> list[bytes]:
        """N texts, read as reviews -> the JSON of N {vector, sentiment, tags}; a text with nothing to read has null for
        each. Bytes, which go between processes, and to the caller, as they are."""
        return [json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode() for found in self.read(texts)]

    def read(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The same as values."""
        read = clean(pl.Series(texts, dtype=pl.String))
        said = np.flatnonzero(read.is_not_null().to_numpy())
        found: list[dict[str, Any]] = [{"vector": None, "sentiment": None, "tags": None} for _ in texts]
        if not len(said):
            return found
        vectors = np.asarray(self.encoder.encode(read.drop_nulls()).vectors)
        tags = self.tagger.tag_texts(vectors, np.arange(len(said)), np.ones(len(said), bool))
        named = tags.sort("row", "score", descending=[False, True]).partition_by("row", as_dict=True)
        felt = None if self.probe is None else self.probe.predict(vectors)
        told = vectors.astype(np.float64).round(DIGITS).tolist()
        for at, row in enumerate(said):
            given = named.get((at,))
            found[row] = {
                "vector": told[at],
                "sentiment": None if felt is None else self._felt(felt[at]),
                "tags": [] if given is None else given.select("tag", "source", "score").to_dicts(),
            }
        return found

    def _felt(self, p: Any) -> dict[str, Any]:
        assert self.probe is not None
        return {
            **{name: round(float(x), DIGITS) for name, x in zip(SENTIMENTS, p, strict=True)},
            "source": self.probe.source,
        }
