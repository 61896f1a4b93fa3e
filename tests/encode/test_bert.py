"""Our BERT against transformers' on small random models: every architecture it claims, none that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_encoder
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
)

from ray_profile.config import Encoder
from ray_profile.encode import bert
from ray_profile.encode.text import TextEncoder

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 90,
}
PADDING = 1


def saved(folder: Path, kind: str) -> PreTrainedModel:
    """A model whose weights are large enough that every part of it matters."""
    torch.manual_seed(3)
    if kind == "bert":
        model: PreTrainedModel = BertModel(BertConfig(**SHAPE, layer_norm_eps=1e-3))
    else:
        model = RobertaModel(RobertaConfig(**SHAPE, pad_token_id=PADDING, layer_norm_eps=1e-3, type_vocab_size=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    model.eval().save_pretrained(folder)
    return model.eval()


def ours(folder: Path, dtype: torch.dtype = torch.float32) -> bert.Bert:
    described = bert.read_json(folder / "config.json")
    weights = bert.read_weights(folder)
    assert bert.implements(described)
    assert bert.weight_names(described) <= weights.keys()
    return bert.Bert(weights, described, dtype)


@torch.inference_mode()
def differences(model: PreTrainedModel, mine: bert.Bert, ids: torch.Tensor, lengths: torch.Tensor | None) -> float:
    """The largest difference of a hidden state from transformers', past no text's end."""
    mask = None if lengths is None else (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state
    apart = (mine(ids, lengths).float() - theirs).abs().amax(-1)
    return float((apart if mask is None else apart * mask).max())


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(5, 50, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 80])
def test_hidden_states_are_those_of_transformers(tmp_path: Path, kind: str, length: int) -> None:
    model = saved(tmp_path, kind)
    assert differences(model, ours(tmp_path), tokens(3, length), None) < 1e-4


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_what_pads_a_shorter_text_does_not_matter(tmp_path: Path, kind: str) -> None:
    model, mine = saved(tmp_path, kind), ours(tmp_path)
    lengths = torch.tensor([40, 39, 7, 1])
    padded = tokens(4, 40).masked_fill(torch.arange(40) >= lengths[:, None], PADDING)
    assert differences(model, mine, padded, lengths) < 1e-4
    with torch.inference_mode():
        other = padded.masked_fill(torch.arange(40) >= lengths[:, None], 9)
        assert torch.allclose(mine(padded, lengths)[2, :7], mine(other, lengths)[2, :7], atol=1e-5)


def test_a_text_that_spells_the_padding_token_keeps_roberta_s_positions(tmp_path: Path) -> None:
    model = saved(tmp_path, "roberta")
    ids = tokens(2, 12)
    ids[0, 4] = PADDING
    assert differences(model, ours(tmp_path), ids, torch.tensor([12, 12])) < 1e-4


def test_bf16_is_close(tmp_path: Path) -> None:
    model, mine = saved(tmp_path, "bert"), ours(tmp_path, torch.bfloat16)
    ids = tokens(2, 20)
    with torch.inference_mode():
        near = torch.cosine_similarity(mine(ids, None).float(), model(input_ids=ids).last_hidden_state, dim=-1)
    assert near.min() > 0.99


def test_without_onednn_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved(tmp_path, "bert")
    monkeypatch.setattr(bert, "_ONEDNN", False)
    assert differences(model, ours(tmp_path), tokens(2, 20), None) < 1e-4


def test_checkpoints_with_a_head_old_names_or_in_parts_are_read(tmp_path: Path) -> None:
    model = saved(tmp_path / "whole", "bert")
    tensors = load_file(tmp_path / "whole/model.safetensors")
    old = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    save_file({**old, "cls.predictions.bias": torch.zeros(50)}, tmp_path / "whole/model.safetensors")
    assert differences(model, ours(tmp_path / "whole"), tokens(2, 20), None) < 1e-4
    model.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert differences(model, ours(tmp_path / "parts"), tokens(2, 20), None) < 1e-4


def test_only_what_it_computes_exactly_is_claimed(tmp_path: Path) -> None:
    saved(tmp_path, "bert")
    described = bert.read_json(tmp_path / "config.json")
    assert bert.implements(described)
    assert bert.implements(XLMRobertaConfig(**SHAPE).to_dict())
    for key, value in {
        "model_type": "mpnet",
        "hidden_act": "relu",
        "position_embedding_type": "relative_key",
        "is_decoder": True,
        "add_cross_attention": True,
    }.items():
        assert not bert.implements({**described, key: value}), key
    assert not bert.implements({key: value for key, value in described.items() if key != "num_hidden_layers"})


def test_another_architecture_goes_through_transformers(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 256}
    DistilBertModel(DistilBertConfig(vocab_size=260, **shape)).eval().save_pretrained(folder)
    encoder = TextEncoder.load(Encoder(model=str(folder), max_length=64, dtype="float32"), device="cpu")
    vectors = encoder.encode(pl.Series(["good strap", "it broke at once"])).vectors
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        ids = encoder.tokenizer.tokenise(pl.Series(["good strap"])).ids.to_pylist()
        wanted = torch.nn.functional.normalize(model(torch.tensor(ids)).last_hidden_state.mean(1), dim=1)
    assert torch.allclose(torch.from_numpy(vectors[:1]).float(), wanted, atol=2e-3)
