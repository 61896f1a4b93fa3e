"""Texts to token ids, on CPUs: what runs before an encoder and without torch.

Ids of a block travel as one Arrow list column, so that they go from tokenising tasks to encoding actors without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import tokenizers

from ray_profile.config import Encoder as Settings
from ray_profile.encode.weights import read_json, resolve
from ray_profile.errors import EncoderError

LETTER = r"\p{L}"  # ideographs are letters too (category Lo)
UNREADABLE_SHARE = 1 / 3


@dataclass(frozen=True)
class Tokens:
    """The tokens of N texts, and how well the vocabulary covers them.

    `characters` counts letters and ideographs of the whole texts; `unknown_characters` those of them that lie in
    unknown tokens, which the model cannot tell apart.
    """

    ids: pa.LargeListArray[Any]  # N lists of int32
    truncated: int  # texts longer than max_length
    characters: int
    unknown_characters: int


class Tokenizer:
    """The fast tokenizer of a model folder, with the prefix and the cut of `settings`."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: Settings, unknown: int | None) -> None:
        backend.no_truncation()  # tokenizer.json often carries its own cut and padding
        backend.no_padding()
        self._backend = backend
        self._settings = settings
        self._unknown = unknown
        self._suffix = _suffix(backend)
        if settings.max_length <= backend.num_special_tokens_to_add(is_pair=False):
            raise EncoderError(f"encoder.max_length = {settings.max_length} leaves no room for a text; raise it.")

    @classmethod
    def load(cls, settings: Settings) -> Tokenizer:
        """Load the tokenizer of `settings.model`; raises `EncoderError` where it is missing or broken."""
        folder = resolve(settings.model)
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise EncoderError(
                f"{folder / 'tokenizer.json'} cannot be read ({error}); fetch the model again."
            ) from error
        named = read_json(folder / "tokenizer_config.json").get("unk_token") or getattr(
            backend.model, "unk_token", None
        )
        if isinstance(named, dict):
            named = named.get("content")
        return cls(backend, settings, backend.token_to_id(named) if isinstance(named, str) else None)

    @property
    def special(self) -> tuple[int, ...]:
        """The tokens that stand for no text; first the one that hides another, or the unknown token."""
        known = {token.content: at for at, token in self._backend.get_added_tokens_decoder().items() if token.special}
        mask = next((at for text, at in known.items() if "mask" in text.lower()), self._unknown or 0)
        return (mask, *sorted(set(known.values()) - {mask}))

    def tokenise(self, texts: pl.Series | pa.ChunkedArray[Any] | pa.Array[Any]) -> Tokens:
        """Tokenise N texts without nulls; texts longer than `max_length` tokens are cut and counted.

        The cut keeps the model's closing tokens, as transformers does.
        """
        texts = _as_series(texts)
        assert texts.null_count() == 0, "texts must have no nulls"
        prefixed = (self._settings.prefix + texts if self._settings.prefix else texts).to_list()
        encodings = self._backend.encode_batch_fast(prefixed)
        rows = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
        unknown = self._unknown_characters(texts, prefixed, flat, lengths)
        kept, kept_lengths = self._cut(flat, lengths)
        offsets = np.concatenate([[0], np.cumsum(kept_lengths)]).astype(np.int64)
        return Tokens(
            ids=pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(kept, pa.int32())),
            truncated=int((lengths > self._settings.max_length).sum()),
            characters=int(texts.str.count_matches(LETTER).sum()),
            unknown_characters=unknown,
        )

    def _cut(self, flat: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        limit = self._settings.max_length
        if not (lengths > limit).any():
            return flat, lengths
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        at = np.arange(flat.size) - starts
        length = np.repeat(lengths, lengths)
        keep = (length <= limit) | (at < limit - self._suffix) | (at >= length - self._suffix)
        return flat[keep], np.minimum(lengths, limit)

    def _unknown_characters(self, texts: pl.Series, prefixed: list[str], flat: np.ndarray, lengths: np.ndarray) -> int:
        """Letters inside unknown tokens: only rows that have some are encoded again, this time with offsets."""
        if self._unknown is None:
            return 0
        hit = np.unique(np.searchsorted(np.cumsum(lengths), np.flatnonzero(flat == self._unknown), side="right"))
        if not hit.size:
            return 0
        encodings = self._backend.encode_batch([prefixed[row] for row in hit], add_special_tokens=False)
        skip = len(self._settings.prefix)
        spans = [
            (row, max(start - skip, 0), max(end - skip, 0))
            for row, encoding in zip(hit.tolist(), encodings, strict=True)
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown
        ]
        frame = pl.DataFrame(spans, schema={"row": pl.UInt32, "start": pl.UInt32, "end": pl.UInt32}, orient="row")
        inside = frame.select(
            texts.gather(frame["row"]).alias("text").str.slice(frame["start"], frame["end"] - frame["start"])
        )
        return int(inside.to_series().str.count_matches(LETTER).sum())


@dataclass(frozen=True)
class Letters:
    """How many letters were read, and how many of them the model's vocabulary does not know."""

    read: int = 0
    unknown: int = 0

    def __add__(self, other: Letters) -> Letters:
        return Letters(self.read + other.read, self.unknown + other.unknown)


def readable_or_raise(model: str, letters: Letters) -> None:
    """Raise `EncoderError` where more than a third of the letters that were read are unknown to the model's vocabulary.

    Such a model gives texts in that script nearly the same vector, and every profile would be noise.
    """
    if letters.unknown <= letters.read * UNREADABLE_SHARE:
        return
    share = letters.unknown / letters.read
    raise EncoderError(
        f"encoder.model {model!r} cannot read this text: {share:.0%} of {letters.read:,} letters are unknown to its "
        f"vocabulary (at most {UNREADABLE_SHARE:.0%} may be). Use a model that reads it: "
        "'intfloat/multilingual-e5-small' with prefix = \"query: \" for many languages, or 'BAAI/bge-small-zh-v1.5' "
        'with pooling = "cls" for Chinese.'
    )


def _as_series(texts: pl.Series | pa.ChunkedArray[Any] | pa.Array[Any]) -> pl.Series:
    series = texts if isinstance(texts, pl.Series) else pl.from_arrow(texts)
    assert isinstance(series, pl.Series)
    return series.cast(pl.String)


def _suffix(backend: tokenizers.Tokenizer) -> int:
    """How many special tokens stand after a text (1 for BERT's [SEP])."""
    mask: list[int] = backend.encode("a").special_tokens_mask
    return len(mask) - 1 - max((at for at, special in enumerate(mask) if not special), default=len(mask) - 1)
