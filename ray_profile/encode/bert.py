"""BERT's forward pass on a CPU, as few and as large operations as torch offers: the same vectors at a multiple of the
speed of `transformers.AutoModel`. docs/performance.md has the figures.

It implements exactly BERT (Devlin et al., 2019) and RoBERTa (Liu et al., 2019; XLM-RoBERTa and CamemBERT are the same
network), which most sentence encoders are; `implements` says whether a model is one. What differs from AutoModel:
weights are cast and laid out for oneDNN once; query, key and value are one product, with the scale of the scores in the
query's weights; the bias of the keys, which cancels out, is left out; GELU is part of the product before it; the
softmax runs over whole vectors of the processor.

Axes: B batch, L length in tokens, T = B x L tokens, D width, H heads, E = D / H, S = L rounded up to `LANES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn import functional

from ray_profile.encode.weights import read_json

#: torch's CPU softmax does a row's last elements one by one where they do not fill two vectors of 512 bits of bf16.
LANES = 32
#: oneDNN multiplies float32 twice as fast as MKL does on a CPU that is not Intel's, and takes GELU along.
_ONEDNN: bool = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)
#: How many tokens a product will have at a time, for which oneDNN lays the weights out; other numbers only cost speed.
_TYPICAL_TOKENS = 1024

_TYPES = {"bert", "roberta", "xlm-roberta", "camembert"}
_WORDS = "embeddings.word_embeddings.weight"
_EMBEDDINGS = (
    _WORDS,
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
)
_DENSE = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)

Config = Mapping[str, Any]  # a model folder's config.json
Weights = Mapping[str, torch.Tensor]


def implements(config: Config) -> bool:
    """Whether `Bert` is exactly the network that `config` describes."""
    return (
        config.get("model_type") in _TYPES
        and all(size in config for size in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type") in (None, "absolute")
        and not config.get("is_decoder")
        and not config.get("pruned_heads")
        and not config.get("add_cross_attention")
    )


def unused_positions(config: Config) -> int:
    """How many of a model's positions no text takes: RoBERTa's begin after the one that stands for padding."""
    return int(config.get("pad_token_id", 1)) + 1 if config.get("model_type") in _TYPES - {"bert"} else 0


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder's safetensors files under AutoModel's names, without the prefix of a model with a head.

    Raises `OSError` or `safetensors.SafetensorError` where a file cannot be read.
    """
    index = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    assert isinstance(index, dict)
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(index.values())) or ["model.safetensors"]:
        tensors.update(load_file(folder / name))
    prefix = next((name.removesuffix(_WORDS) for name in tensors if name.endswith(_WORDS)), "")
    return {_today(name.removeprefix(prefix)): tensor for name, tensor in tensors.items()}


def _today(name: str) -> str:
    """The name that checkpoints of BERT's first years gave differently."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def weight_names(config: Config) -> set[str]:
    """The tensors that `Bert` needs."""
    layers = range(int(config["num_hidden_layers"]))
    modules = [f"encoder.layer.{layer}.{name}" for layer in layers for name in _DENSE]
    return {*_EMBEDDINGS, *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))}


class Linear:
    """x W^T + b, then GELU where asked for: (T, K) -> (T, N), all in one dtype."""

    def __init__(self, weight_NK: torch.Tensor, bias_N: torch.Tensor, dtype: torch.dtype, gelu: bool = False) -> None:
        self._weight = weight_NK.to(dtype).contiguous()
        self._bias = bias_N.to(dtype)
        self._gelu = gelu
        if _ONEDNN:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, _TYPICAL_TOKENS)

    def __call__(self, x_TK: torch.Tensor) -> torch.Tensor:
        if not _ONEDNN:
            y_TN = functional.linear(x_TK, self._weight, self._bias)
            return functional.gelu(y_TN) if self._gelu else y_TN
        after, how = ("gelu", "none") if self._gelu else ("none", "")  # "none": by erf, not by tanh
        y_TN = torch.ops.mkldnn._linear_pointwise(x_TK, self._weight, self._bias, after, [], how)
        assert isinstance(y_TN, torch.Tensor)
        return y_TN


class Norm:
    """Layer normalisation over the last axis."""

    def __init__(self, weights: Weights, name: str, epsilon: float, dtype: torch.dtype) -> None:
        self._weight, self._bias = weights[f"{name}.weight"].to(dtype), weights[f"{name}.bias"].to(dtype)
        self._epsilon = epsilon

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self._weight.shape, self._weight, self._bias, self._epsilon)


class Bert:
    """Token ids to hidden states; safe to call from several threads at once."""

    def __init__(self, weights: Weights, config: Config, dtype: torch.dtype) -> None:
        self.width = int(config["hidden_size"])
        self._unused_positions = unused_positions(config)
        self._dtype = dtype
        epsilon = float(config.get("layer_norm_eps", 1e-12))
        self._words, positions, types = (weights[name] for name in _EMBEDDINGS[:3])
        self._positions = positions.float() + types[0].float()  # a text alone is all of type 0
        self._norm = Norm(weights, "embeddings.LayerNorm", epsilon, torch.float32)
        heads = int(config["num_attention_heads"])
        self._layers = [
            _Layer(weights, f"encoder.layer.{layer}.", heads, epsilon, dtype)
            for layer in range(int(config["num_hidden_layers"]))
        ]

    def __call__(self, ids_BL: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (B, L, D); where `lengths_B` is given, those past a text's end mean nothing.

        Padding may be any token.
        """
        batch, length = ids_BL.shape
        x_BLD = self._words[ids_BL].float()
        x_BLD += self._positions_of(ids_BL)
        x_TD = self._norm(x_BLD).to(self._dtype).view(batch * length, self.width)
        hidden = None if lengths_B is None else _hidden(_span(length), lengths_B, self._dtype)
        for layer in self._layers:
            x_TD = layer(x_TD, batch, hidden)
        return x_TD.view(batch, length, self.width)

    def _positions_of(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """(L, D), or (B, L, D) for RoBERTa, whose count passes over tokens of padding, as a text may spell them."""
        if not self._unused_positions:
            return self._positions[: ids_BL.shape[1]]
        padding = self._unused_positions - 1
        counted_BL = ids_BL != padding
        return self._positions[counted_BL.cumsum(1) * counted_BL + padding]


class _Layer:
    def __init__(self, weights: Weights, prefix: str, heads: int, epsilon: float, dtype: torch.dtype) -> None:
        def linear(name: str, gelu: bool = False) -> Linear:
            return Linear(weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"], dtype, gelu)

        self._heads = heads
        qkv = {kind: [weights[f"{prefix}{name}.{kind}"].float() for name in _DENSE[:3]] for kind in ("weight", "bias")}
        # The keys' bias adds the same to all scores of a query, which no softmax sees; bf16 is finer on smaller scores.
        qkv["bias"][1] = torch.zeros_like(qkv["bias"][1])
        scale = (qkv["bias"][0].numel() // heads) ** -0.5
        for query_key_value in qkv.values():
            query_key_value[0] = query_key_value[0] * scale
        self._qkv = Linear(torch.cat(qkv["weight"]), torch.cat(qkv["bias"]), dtype)
        self._merge = linear("attention.output.dense")
        self._merge_norm = Norm(weights, prefix + "attention.output.LayerNorm", epsilon, dtype)
        self._widen = linear("intermediate.dense", gelu=True)
        self._narrow = linear("output.dense")
        self._norm = Norm(weights, prefix + "output.LayerNorm", epsilon, dtype)

    def __call__(self, x_TD: torch.Tensor, batch: int, hidden: torch.Tensor | None) -> torch.Tensor:
        mixed_TD = self._merge(self._attend(self._qkv(x_TD), batch, hidden))
        x_TD = self._merge_norm(mixed_TD.add_(x_TD))
        return self._norm(self._narrow(self._widen(x_TD)).add_(x_TD))

    def _attend(self, qkv_T3D: torch.Tensor, batch: int, hidden: torch.Tensor | None) -> torch.Tensor:
        """Softmax attention (T, D) within each text. Keys and values are widened to S rows, of which the rest is zero.

        Two products and a softmax beat torch's own fused kernel, whose blocks are too large for heads of 32 and texts
        of a hundred tokens.
        """
        tokens, width = qkv_T3D.shape[0], qkv_T3D.shape[1] // 3
        heads, length = self._heads, tokens // batch
        span = _span(length)
        qkv_3BHLE = qkv_T3D.view(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        keys_values = qkv_T3D.new_zeros((2, batch, heads, span, width // heads))
        keys_values[:, :, :, :length] = qkv_3BHLE[1:]
        q = qkv_3BHLE[0].reshape(batch * heads, length, -1)
        k, v = keys_values.view(2, batch * heads, span, -1)
        scores = torch.bmm(q, k.transpose(1, 2))
        if hidden is None:
            scores[:, :, length:] = -torch.inf
        else:
            scores.view(batch, heads, length, span).add_(hidden)
        mixed = torch.bmm(scores.softmax(-1), v)
        return mixed.view(batch, heads, length, -1).transpose(1, 2).reshape(tokens, width)


def _span(length: int) -> int:
    return -(-length // LANES) * LANES


def _hidden(span: int, lengths_B: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, 1, 1, S), to be added to scores: 0 where a text has a key, minus infinity past its end."""
    past_BS = torch.arange(span) >= lengths_B[:, None]
    return torch.zeros(past_BS.shape, dtype=dtype).masked_fill_(past_BS, -torch.inf)[:, None, None]
