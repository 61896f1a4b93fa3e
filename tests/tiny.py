"""A tiny encoder and tiny shops, so that whole builds take a second."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ray_profile.config import Config, load
from ray_profile.sources.simulate import Shop, simulate

WIDTH = 32
CLOCK = datetime(2026, 1, 2, tzinfo=UTC)  # after the last month of every simulated shop


def write_encoder(folder: Path) -> Path:
    """A one-layer BERT with random weights and a byte tokenizer, which reads every script. Same bytes every time."""
    torch.manual_seed(7)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {token: at for at, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=256, pad_token_id=0, **shape))
    model.eval().save_pretrained(folder)
    return folder


def write_shop(folder: Path, encoder: Path, customers: int = 30, months: int = 3, seed: int = 0) -> Shop:
    """A simulated shop whose configuration names the tiny encoder."""
    return simulate(folder, customers=customers, months=months, seed=seed, encoder=str(encoder))


def config_of(shop: Shop, root: str | Path, *overrides: str) -> Config:
    """The shop's configuration with another root; float32, so that nothing is measured to decide a dtype."""
    return load(shop.config, [f"root={root}", "encoder.dtype=float32", *overrides])
