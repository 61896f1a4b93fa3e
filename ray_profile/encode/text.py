"""The text encoder: token ids to unit vectors.

Axes: B batch, L length in tokens, D width of a vector, N texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch
from safetensors import SafetensorError

from ray_profile.config import Encoder as Settings
from ray_profile.encode import bert
from ray_profile.encode.batches import Ragged, batches
from ray_profile.encode.place import Place
from ray_profile.encode.tokens import Tokenizer, Tokens
from ray_profile.encode.weights import model_digest, read_json, resolve
from ray_profile.errors import EncoderError

__all__ = [
    "Encoded",
    "TextEncoder",
    "Tokenizer",
    "Tokens",
    "model_digest",
    "resolve",
]

Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Encoded:
    """What encoding N texts gave, and what it tells about the texts."""

    vectors: Vectors  # (N, D), each of length 1
    tokens: int  # after the cut
    truncated: int
    characters: int
    unknown_characters: int


class Model(Protocol):
    """Token ids (B, L) on the device, and lengths (B,) where not all texts are as long, to hidden states (B, L, D)."""

    width: int

    def __call__(self, ids_BL: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor: ...


class TextEncoder:
    """An encoder with pooling and L2 normalisation, on one device."""

    def __init__(self, model: Model, tokenizer: Tokenizer, settings: Settings, digest: str, place: Place) -> None:
        self.digest = digest
        self.tokenizer = tokenizer
        self.width = model.width
        self._model = model
        self._settings = settings
        self._place = place

    @classmethod
    def load(cls, settings: Settings, device: str | None = None) -> TextEncoder:
        """Load `settings.model` onto `device` (default: the GPU if there is one, else the CPU).

        On a CPU, `torch.get_num_threads()` at this moment is how many cores it will use.
        Raises `EncoderError` where the model cannot be found or loaded, or where `settings` contradict it.
        """
        folder = resolve(settings.model)
        _check_settings(folder, settings)
        place = Place.choose(device, settings.dtype)
        model = _load_model(folder, settings.model, place)
        return cls(model, Tokenizer.load(settings), settings, model_digest(folder, settings), place)

    def encode_tokens(self, ids: pa.LargeListArray[Any] | pa.ChunkedArray[Any]) -> Vectors:
        """Encode N lists of token ids (as `Tokenizer.tokenise` gives them) to unit vectors (N, D).

        Rows are sorted by length and batches filled up to a number of tokens with padding; the order is restored.
        """
        texts = _ragged(ids)
        vectors = np.empty((len(texts.lengths), self.width), dtype=np.float16)
        if not vectors.size:
            return vectors
        assert (texts.lengths > 0).all(), "every text has at least its special tokens"
        budget = self._place.batch_tokens(self._settings.tokens_per_batch, len(texts.flat))
        plan = list(batches(texts.lengths, budget))
        done = self._place.map(lambda rows: self._forward(texts, rows), plan)
        vectors[np.concatenate(plan)] = torch.cat(done).cpu().numpy()
        return vectors

    def encode(self, texts: pl.Series | pa.ChunkedArray[Any]) -> Encoded:
        """Tokenise and encode N texts without nulls."""
        tokens = self.tokenizer.tokenise(texts)
        return Encoded(
            vectors=self.encode_tokens(tokens.ids),
            tokens=len(tokens.ids.values),
            truncated=tokens.truncated,
            characters=tokens.characters,
            unknown_characters=tokens.unknown_characters,
        )

    @torch.inference_mode()  # of a thread, so it belongs where the threads are
    def _forward(self, texts: Ragged, rows_B: npt.NDArray[np.intp]) -> torch.Tensor:
        """The vectors (B, D) of one batch, float16 on the device."""
        ids_BL, is_padded = texts.rectangle(rows_B)
        ids = self._place.send(torch.from_numpy(ids_BL))
        lengths = self._place.send(torch.from_numpy(texts.lengths[rows_B])) if is_padded else None
        return pool(self._model(ids, lengths), lengths, self._settings.pooling).to(torch.float16)


def _ragged(ids: pa.LargeListArray[Any] | pa.ChunkedArray[Any]) -> Ragged:
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    assert isinstance(whole, pa.LargeListArray)
    offsets = whole.offsets.to_numpy()
    return Ragged(whole.values.to_numpy(), offsets[:-1], np.diff(offsets))


def _load_model(folder: Path, named: str, place: Place) -> Model:
    """`bert.Bert` where it is exactly this model and the device is a CPU, else transformers' own."""
    described = read_json(folder / "config.json")
    try:
        if place.device.type == "cpu" and bert.implements(described):
            weights = bert.read_weights(folder)
            missing = sorted(bert.weight_names(described) - weights.keys())
            if not missing:
                return bert.Bert(weights, described, torch.bfloat16 if place.bf16 else torch.float32)
        else:
            from ray_profile.encode import automodel  # transformers takes longer to import than all the rest

            model, missing = automodel.load(folder)
            if not missing:
                return automodel.HuggingFaceModel(model, place.device, place.bf16)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"encoder.model {named!r}: {folder} cannot be loaded "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check that the folder is whole."
        ) from error
    raise EncoderError(
        f"encoder.model {named!r}: {folder} lacks {len(missing)} of its weights, as {missing[0]!r}; "
        "fetch the model again."
    )


def pool(h_BLD: torch.Tensor, lengths_B: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One unit vector a text (B, D), float32; None: every text fills its row."""
    batch, length, _ = h_BLD.shape
    if pooling == "cls":
        h_BD = h_BLD[:, 0]
    elif pooling == "last":
        last_B = length - 1 if lengths_B is None else lengths_B - 1
        h_BD = h_BLD[torch.arange(batch, device=h_BLD.device), last_B]
    elif lengths_B is None:
        h_BD = h_BLD.mean(1, dtype=torch.float32)
    else:
        inside_BL1 = (torch.arange(length, device=h_BLD.device) < lengths_B[:, None]).unsqueeze(-1)
        h_BD = (h_BLD.float() * inside_BL1).sum(1) / lengths_B[:, None]
    return torch.nn.functional.normalize(h_BD.float(), dim=1)


def _check_settings(folder: Path, settings: Settings) -> None:
    """What sentence-transformers' own files say about a model must not contradict the settings."""
    described = read_json(folder / "config.json")
    positions = described.get("max_position_embeddings")
    if isinstance(positions, int):
        positions -= bert.unused_positions(described)
    declared = read_json(folder / "tokenizer_config.json").get("model_max_length")
    limit = min((int(x) for x in (positions, declared) if isinstance(x, int | float) and 0 < x < 1e6), default=None)
    if limit is not None and settings.max_length > limit:
        raise EncoderError(
            f"encoder.max_length = {settings.max_length}, but {settings.model!r} reads at most {limit}; lower it."
        )
    pooling = read_json(folder / "1_Pooling" / "config.json")
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
    trained = [name for name, key in modes.items() if pooling.get(key)]
    if trained and settings.pooling not in trained:
        raise EncoderError(
            f"encoder.pooling = {settings.pooling!r}, but {settings.model!r} was trained with {trained[0]!r}; "
            f'set encoder.pooling = "{trained[0]}".'
        )
    if any(folder.glob("[0-9]*_Dense")):
        raise EncoderError(
            f"encoder.model {settings.model!r} ends in a dense layer, which ray_profile does not apply; "
            "name a model whose vector is its pooled hidden state."
        )
