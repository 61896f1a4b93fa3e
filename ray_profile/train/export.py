"""A trained encoder as a folder that AutoModel, sentence-transformers and `build` load unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ray_profile.config import Encoder
from ray_profile.train.start import encoder
from ray_profile.train_config import Train

#: What belongs to the tokenizer and comes along as it is.
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
)
_ENCODER = "encoder."


def write_encoder(
    weights: Mapping[str, torch.Tensor], base: Path, settings: Train, used: Encoder, folder: Path
) -> None:
    """Write the encoder of `Trainee` weights to an empty folder, as float32 safetensors; parameters beside frozen
    weights are merged into them. `used` says how it is used: prefix, pooling and length."""
    model = encoder(base, settings)
    own = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
    missing, strange = model.load_state_dict(own, strict=False)
    assert not strange, strange[:3]
    assert settings.peft is not None or not [name for name in missing if not name.startswith("pooler.")], missing[:3]
    if settings.peft is not None:
        model = model.merge_and_unload()  # type: ignore[operator]
    folder.mkdir(parents=True, exist_ok=True)
    _restored_dropout(model, base)
    model.save_pretrained(folder)  # type: ignore[operator]
    for name in _TOKENIZER:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    _describe(folder, int(model.config.hidden_size), settings.max_length, used)  # type: ignore[union-attr, arg-type]


def _restored_dropout(model: nn.Module, base: Path) -> None:
    """The configuration's own word on dropout: ours was for this run."""
    described = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        if name in described:
            setattr(model.config, name, described[name])


def _describe(folder: Path, width: int, length: int, used: Encoder) -> None:
    """What sentence-transformers reads: pooling, normalisation, length, and the prefix as its default prompt."""
    pooling = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    modes = {f"pooling_mode_{name}": mode == used.pooling for mode, name in pooling.items()}
    prompt = {"prompts": {"text": used.prefix}, "default_prompt_name": "text"} if used.prefix else {}
    kinds = (("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize"))
    modules = [
        {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for name, path, kind in kinds
    ]
    for path in ("1_Pooling", "2_Normalize"):
        (folder / path).mkdir(exist_ok=True)
    files: dict[str, object] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {"max_seq_length": length, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine", **prompt},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
