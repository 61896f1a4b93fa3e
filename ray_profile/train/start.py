"""What a run begins with: the encoder to fine-tune (or a new one), and the tokens of the tags' texts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch
from torch import nn

from ray_profile.encode import automodel
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.tokens import Tokenizer
from ray_profile.errors import EncoderError
from ray_profile.train.batch import rectangle
from ray_profile.train.model import TagTexts
from ray_profile.train_config import Peft, Train

TAG_TOKENS = 48  # of one text of a tag


def encoder(folder: Path, settings: Train, device: str = "cpu") -> nn.Module:
    """The encoder of a model folder in float32, with the dropout and the trainable parameters that `settings` ask for.

    Raises `EncoderError` where it cannot be loaded.
    """
    try:
        model, missing = automodel.load(folder)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EncoderError(f"{folder} cannot be loaded ({error}); check that the folder is whole") from error
    if missing:
        raise EncoderError(f"{folder} lacks {len(missing)} of its weights, as {missing[0]!r}; fetch the model again")
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = settings.dropout
        if name == "pooler":
            module.requires_grad_(False)  # no pooling here uses it, and weights without gradients stop an all-reduce
    if device == "cpu":
        # The backward pass of torch's fused attention takes a third of a CPU's step, the plain products a tenth.
        model.set_attn_implementation("eager")  # type: ignore[operator]
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return adapted(model, settings.peft) if settings.peft else model


def adapted(model: nn.Module, settings: Peft) -> nn.Module:
    """The encoder with few new parameters to train, and its own ones frozen."""
    import peft

    attention, dense = _linears(model)
    task = peft.TaskType.FEATURE_EXTRACTION
    made: peft.PeftConfig
    if settings.method == "lora":
        made = peft.LoraConfig(
            task_type=task,
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=attention + dense,
        )
    else:
        made = peft.IA3Config(task_type=task, target_modules=attention + dense, feedforward_modules=dense)
    return peft.get_peft_model(model, made)


def tag_texts(taxonomy: Taxonomy, tokenizer: Tokenizer) -> TagTexts:
    """The tokens of each text of each tag (`Tag.texts`), by a tokenizer that cuts at `TAG_TOKENS` or so."""
    pairs = [(at, text) for at, tag in enumerate(taxonomy.tags) for text in tag.texts]
    ids_KL, mask_KL = rectangle(pl.Series(tokenizer.tokenise(pl.Series([text for _, text in pairs])).ids))
    return TagTexts(ids_KL, mask_KL, torch.tensor([at for at, _ in pairs]), len(taxonomy.tags))


def _linears(model: nn.Module) -> tuple[list[str], list[str]]:
    """Full names of the attention's linear layers, and of the others."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "pooler" not in name]
    attention = [name for name in names if "attention" in name or "attn" in name]
    return attention, [name for name in names if name not in attention]
