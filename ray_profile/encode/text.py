"""The text encoder: token ids to unit vectors.

Axes: B batch, L length in tokens, D width of a vector, N texts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import torch
from safetensors import SafetensorError
from transformers import AutoModel
from transformers.utils import logging as hf_logging

from ray_profile.config import Encoder as Settings
from ray_profile.encode.tokens import Tokenizer, Tokens, readable_or_raise
from ray_profile.encode.weights import model_digest, read_json, resolve
from ray_profile.errors import EncoderError

__all__ = [
    "Encoded",
    "TextEncoder",
    "Tokenizer",
    "Tokens",
    "encode_distinct",
    "model_digest",
    "readable_or_raise",
    "resolve",
]

#: How much faster bf16 must be on a CPU: the margin keeps workers of one kind from deciding differently by noise.
BF16_MARGIN = 1.2
_PATIENCE_S = 0.1

Vectors = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Encoded:
    """What encoding N texts gave, and what it tells about the texts."""

    vectors: Vectors  # (N, D), each of length 1
    tokens: int  # after the cut
    truncated: int
    characters: int
    unknown_characters: int


class TextEncoder:
    """A Hugging Face encoder with pooling and L2 normalisation, on one device."""

    def __init__(
        self, model: torch.nn.Module, tokenizer: Tokenizer, settings: Settings, digest: str, device: torch.device
    ) -> None:
        self.digest = digest
        self.tokenizer = tokenizer
        self.width: int = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self._settings = settings
        self._pad = int(getattr(model.config, "pad_token_id", None) or 0)
        self._device = device
        self._model, self._autocast = _place(model, device, settings.dtype)

    @classmethod
    def load(cls, settings: Settings, device: str | None = None) -> TextEncoder:
        """Load `settings.model` onto `device` (default: the GPU if there is one, else the CPU).

        Raises `EncoderError` where the model cannot be found or loaded, or where `settings` contradict it.
        """
        folder = resolve(settings.model)
        _check_settings(folder, settings)
        model = _load_weights(folder, settings.model)
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, Tokenizer.load(settings), settings, model_digest(folder, settings), where)

    def encode_tokens(self, ids: pa.LargeListArray[Any] | pa.ChunkedArray[Any]) -> Vectors:
        """Encode N lists of token ids (as `Tokenizer.tokenise` gives them) to unit vectors (N, D).

        Rows are sorted by length and batches filled up to `tokens_per_batch` padded tokens; the order is restored.
        """
        whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
        assert isinstance(whole, pa.LargeListArray)
        offsets = whole.offsets.to_numpy()
        flat = whole.values.to_numpy()
        starts, lengths = offsets[:-1], np.diff(offsets)
        assert (lengths > 0).all(), "every text has at least its special tokens"
        vectors = np.empty((len(lengths), self.width), dtype=np.float16)
        for rows in _batches(lengths, self._settings.tokens_per_batch):
            at_L = np.arange(lengths[rows[0]])
            mask_BL = at_L < lengths[rows, None]
            ids_BL = np.full(mask_BL.shape, self._pad, dtype=np.int64)
            ids_BL[mask_BL] = flat[(starts[rows, None] + at_L)[mask_BL]]
            vectors[rows] = self._forward(torch.from_numpy(ids_BL), torch.from_numpy(mask_BL)).cpu().numpy()
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

    @torch.inference_mode()
    def _forward(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        mask_BL = mask_BL.to(self._device, non_blocking=True)
        ids_BL = ids_BL.to(self._device, non_blocking=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            h_BLD = self._model(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state
        return _pool(h_BLD.float(), mask_BL, self._settings.pooling).to(torch.float16)


def encode_distinct(encoder: TextEncoder, texts: pl.Series) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Encode each distinct text of N once: vectors (M, D) in order of first appearance, and the row of each text (N,).

    A null text has row -1. Titles, names and short queries repeat a lot.
    """
    frame = pl.DataFrame({"text": texts.cast(pl.String)})
    distinct = frame.drop_nulls().unique(maintain_order=True).with_row_index("at")
    at = frame.join(distinct, on="text", how="left", maintain_order="left")["at"]
    return encoder.encode(distinct["text"]).vectors, at.cast(pl.Int64).fill_null(-1).to_numpy()


def _load_weights(folder: Path, named: str) -> torch.nn.Module:
    try:
        with _quiet():
            model, report = AutoModel.from_pretrained(
                str(folder),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation="sdpa",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"encoder.model {named!r}: transformers cannot load {folder} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check that the folder is whole."
        ) from error
    # A pooler is a trained head on [CLS] that no pooling here uses; anything else missing would be random numbers.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise EncoderError(
            f"encoder.model {named!r}: {folder} lacks {len(missing)} of its weights, as {missing[0]!r}; "
            "fetch the model again."
        )
    assert isinstance(model, torch.nn.Module)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and load report: a worker's log is for a person, and we check the report."""
    level = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _batches(lengths: npt.NDArray[np.int64], budget: int) -> Iterator[npt.NDArray[np.intp]]:
    """Row numbers of each batch, longest first, so that a batch too large for the memory fails at once."""
    order = np.argsort(-lengths, kind="stable")
    at = 0
    while at < len(order):
        rows = max(1, budget // int(lengths[order[at]]))
        yield order[at : at + rows]
        at += rows


def _pool(h_BLD: torch.Tensor, mask_BL: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        h_BD = h_BLD[:, 0]
    elif pooling == "last":
        last_B = mask_BL.sum(1) - 1
        h_BD = h_BLD[torch.arange(len(h_BLD), device=h_BLD.device), last_B]
    else:
        weight_BL1 = mask_BL.unsqueeze(-1).float()
        h_BD = (h_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)
    return torch.nn.functional.normalize(h_BD, dim=1)


def _place(model: torch.nn.Module, device: torch.device, dtype: str) -> tuple[torch.nn.Module, bool]:
    """Put the model on its device in its dtype: the one place that decides both. Returns whether to autocast.

    A GPU holds bf16 weights. A CPU keeps float32 weights and casts the matrix products only, which costs nothing in
    speed and keeps norms and softmax exact.
    """
    model = model.eval().requires_grad_(False).to(device)
    if device.type == "cuda":
        return (model if dtype == "float32" else model.to(torch.bfloat16)), False
    if dtype == "auto":
        return model, _bf16_is_faster(torch.get_num_threads())
    return model, dtype == "bf16"


@lru_cache(maxsize=4)
def _bf16_is_faster(threads: int) -> bool:  # noqa: ARG001 - the cache's key
    """Measure once a process whether this CPU multiplies bf16 faster than float32 (most without AVX512-BF16 do not)."""
    x, w = torch.randn(256, 384), torch.randn(384, 384)
    lowered = x.bfloat16(), w.bfloat16()

    def best_of(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
        torch.mm(*pair)  # the first call builds the kernel
        took: list[float] = []
        while len(took) < 20 and sum(took) < _PATIENCE_S:  # a CPU that emulates bf16 is a hundred times slower
            began = time.perf_counter()
            torch.mm(*pair)
            took.append(time.perf_counter() - began)
        return min(took)

    return best_of((x, w)) > BF16_MARGIN * best_of(lowered)


def _check_settings(folder: Path, settings: Settings) -> None:
    """What sentence-transformers' own files say about a model must not contradict the settings."""
    positions = read_json(folder / "config.json").get("max_position_embeddings")
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
