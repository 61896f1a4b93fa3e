"""A new encoder and tokenizer, for a shop whose language no public model reads: random weights, the shop's own words.

Masked-language training (`objectives = { mlm = 1.0 }`) is what makes something of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from ray_profile.errors import SourceError
from ray_profile.train_config import Init

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MIN_TEXTS = 100


def write(texts: Iterable[str], init: Init, max_length: int, seed: int, folder: Path) -> None:
    """Learn a WordPiece vocabulary from texts and write it with a BERT of random weights as a Hugging Face folder.

    Han characters are words of their own, other scripts are lower-cased and split at spaces and punctuation. The same
    texts and seed give the same folder. Raises `SourceError` where there are too few texts to learn words from.
    """
    texts = list(texts)
    if len(texts) < MIN_TEXTS:
        raise SourceError(
            f"train.init learns a vocabulary from the reviews, and there are {len(texts)} (at least {MIN_TEXTS} are "
            "needed); name more files, or a model under encoder.model"
        )
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, handle_chinese_chars=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=init.vocab, special_tokens=list(SPECIAL), min_frequency=2, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    numbers = {token: backend.token_to_id(token) for token in SPECIAL}
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, numbers[token]) for token in ("[CLS]", "[SEP]")]
    )
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_length, **names)  # type: ignore[no-untyped-call]
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=backend.get_vocab_size(),
            hidden_size=init.width,
            num_hidden_layers=init.layers,
            num_attention_heads=init.heads,
            intermediate_size=4 * init.width,
            max_position_embeddings=max_length,
            pad_token_id=numbers["[PAD]"],
        )
    )
    model.save_pretrained(folder)
