from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_profile.config import DEFAULT_ENCODER, Encoder
from ray_profile.encode import place
from ray_profile.encode.batches import batches
from ray_profile.encode.text import TextEncoder, Tokenizer, resolve
from ray_profile.encode.tokens import Letters, readable_or_raise
from ray_profile.errors import EncoderError

ENGLISH = [
    "A great guitar strap for the price.",
    "",
    "Broke after two days, I want my money back! " * 60,
    "naïve café 😀 №5",
    "手机很好",
    "Great",
]
CHINESE = [
    "手机的屏幕很清晰，电池也耐用",
    "酒店的服务态度太差了",
    "苹果很新鲜，物流也快",
    "The phone is great",
    "书" * 600,
]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder.load(Encoder(dtype="float32"), device="cpu")


def e5(shared: Path) -> Encoder:
    return Encoder(model=str(shared / "models/multilingual-e5-small-zh-en"), prefix="query: ", dtype="float32")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def reference(folder: Path, texts: list[str], length: int = 256) -> np.ndarray:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the peer is not installed")
    peer = sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    peer.max_seq_length = length
    return np.asarray(peer.encode(texts, normalize_embeddings=True))


def test_vectors_are_those_of_sentence_transformers(minilm: TextEncoder) -> None:
    encoded = minilm.encode(pl.Series(ENGLISH))
    assert encoded.vectors.dtype == np.float16
    assert encoded.vectors.shape == (len(ENGLISH), minilm.width)
    assert encoded.truncated == 1
    assert np.allclose(np.linalg.norm(encoded.vectors.astype(np.float32), axis=1), 1, atol=1e-3)
    assert cosines(encoded.vectors, reference(resolve(DEFAULT_ENCODER), ENGLISH)).min() > 0.9999


def test_bf16_vectors_are_close(minilm: TextEncoder) -> None:
    texts = pl.Series([ENGLISH[0], ENGLISH[3]])  # few, for a CPU without bf16 emulates it slowly
    lowered = TextEncoder.load(Encoder(dtype="bf16"), device="cpu").encode(texts).vectors
    assert cosines(lowered, minilm.encode(texts).vectors).min() > 0.999


def test_the_choice_of_dtype_takes_no_time() -> None:
    place.bf16_is_faster.cache_clear()
    began = time.perf_counter()
    chosen = place.bf16_is_faster(torch.get_num_threads())
    assert isinstance(chosen, bool)
    assert time.perf_counter() - began < 3  # a tenth of that on an idle machine


def test_chinese_vectors_are_those_of_sentence_transformers(shared: Path) -> None:
    settings = e5(shared)
    encoded = TextEncoder.load(settings, device="cpu").encode(pl.Series(CHINESE))
    assert encoded.unknown_characters == 0
    assert encoded.truncated == 1
    peer = reference(Path(settings.model), [settings.prefix + text for text in CHINESE])
    assert cosines(encoded.vectors, peer).min() > 0.9999


def test_tokens_are_those_of_transformers(shared: Path) -> None:
    from transformers import AutoTokenizer

    for settings, texts in ((Encoder(max_length=32), ENGLISH), (e5(shared), CHINESE)):
        peer = AutoTokenizer.from_pretrained(str(resolve(settings.model)))
        wanted = peer([settings.prefix + text for text in texts], truncation=True, max_length=settings.max_length)
        assert Tokenizer.load(settings).tokenise(pl.Series(texts)).ids.to_pylist() == wanted["input_ids"]


def test_order_is_restored_and_batches_do_not_matter(minilm: TextEncoder) -> None:
    texts = pl.Series([f"{'word ' * (i * 7 % 40)}{i}" for i in range(50)])
    small = TextEncoder.load(Encoder(dtype="float32", tokens_per_batch=64), device="cpu")
    whole, pieces = minilm.encode(texts).vectors, small.encode(texts).vectors
    assert cosines(whole, pieces).min() > 0.9999
    alone = np.concatenate([minilm.encode(texts[i : i + 1]).vectors for i in range(0, 50, 10)])
    assert cosines(whole[::10], alone).min() > 0.9999


def test_a_batch_never_exceeds_the_budget() -> None:
    lengths = np.array([5, 300, 2, 2, 64, 9, 64])
    plan = list(batches(lengths, 128))
    assert sorted(np.concatenate(plan)) == list(range(7))
    assert all(len(rows) == 1 or len(rows) * lengths[rows].max() <= 128 for rows in plan)


def test_ids_may_come_in_chunks_and_slices(minilm: TextEncoder) -> None:
    ids = minilm.tokenizer.tokenise(pl.Series(["one", "two three", "four"])).ids
    whole = minilm.encode_tokens(ids)
    chunks = pa.chunked_array([ids.slice(0, 1), ids.slice(1)])
    assert cosines(minilm.encode_tokens(chunks), whole).min() > 0.9999
    assert cosines(minilm.encode_tokens(ids.slice(1, 2)), whole[1:]).min() > 0.9999


def test_no_texts_give_no_vectors(minilm: TextEncoder) -> None:
    encoded = minilm.encode(pl.Series([], dtype=pl.String))
    assert encoded.vectors.shape == (0, minilm.width)
    assert (encoded.tokens, encoded.truncated, encoded.characters) == (0, 0, 0)
    assert minilm.encode(pa.chunked_array([], pa.large_string())).vectors.shape == (0, minilm.width)


def test_unknown_characters_are_letters_inside_unknown_tokens() -> None:
    tokens = Tokenizer.load(Encoder(prefix="鼎鼎 ")).tokenise(pl.Series(["abc 鼎鼐 !", "plain", "鼐鼐鼐"]))
    assert (tokens.characters, tokens.unknown_characters) == (13, 5)


def test_a_vocabulary_that_cannot_read_the_corpus_is_refused(shared: Path) -> None:
    reviews = pl.read_parquet(shared / "data/shopping_zh/reviews.parquet")["review"].drop_nulls()[:500]
    tokens = Tokenizer.load(Encoder()).tokenise(reviews)
    with pytest.raises(EncoderError, match=r"cannot read this text: \d\d% of [\d,]+ letters.*bge-small-zh-v1.5"):
        readable_or_raise(DEFAULT_ENCODER, Letters(tokens.characters, tokens.unknown_characters))
    tokens = Tokenizer.load(e5(shared)).tokenise(reviews)
    readable_or_raise("e5", Letters(tokens.characters, tokens.unknown_characters))
    readable_or_raise("any", Letters())
    readable_or_raise("any", Letters(3, 1))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(resolve(DEFAULT_ENCODER), tmp_path / "model")


def test_settings_that_contradict_the_model_are_refused(copied: Path) -> None:
    with pytest.raises(EncoderError, match="reads at most 512"):
        TextEncoder.load(Encoder(max_length=1024), device="cpu")
    with pytest.raises(EncoderError, match=r'set encoder\.pooling = "mean"'):
        TextEncoder.load(Encoder(pooling="cls"), device="cpu")
    (copied / "2_Dense").mkdir()
    with pytest.raises(EncoderError, match="ends in a dense layer"):
        TextEncoder.load(Encoder(model=str(copied)), device="cpu")


def test_cls_and_last_pooling_take_one_token(copied: Path) -> None:
    shutil.rmtree(copied / "1_Pooling")
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(str(copied)).eval(), AutoTokenizer.from_pretrained(str(copied))
    for pooling, at in (("cls", 0), ("last", -1)):
        encoder = TextEncoder.load(Encoder(model=str(copied), pooling=pooling, dtype="float32"), device="cpu")
        vectors = encoder.encode(pl.Series(["a longer text than the other", "short"])).vectors
        with torch.inference_mode():
            states = model(**tokenizer("short", return_tensors="pt")).last_hidden_state[0]
        assert cosines(vectors[1:], states[at : at + 1 or None].numpy()).min() > 0.9999


def test_a_broken_model_is_refused_with_a_next_step(copied: Path) -> None:
    tensors = load_file(copied / "model.safetensors")
    dropped = next(name for name in tensors if "layer.3.output.dense.weight" in name)
    save_file({k: v for k, v in tensors.items() if k != dropped}, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 1 of its weights"):
        TextEncoder.load(Encoder(model=str(copied)), device="cpu")
    (copied / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(EncoderError, match="cannot be loaded"):
        TextEncoder.load(Encoder(model=str(copied)), device="cpu")
    (copied / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(EncoderError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.load(Encoder(model=str(copied)))
