"""`train.init` and masked words: a shop without a model for its languages makes one of its own texts, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import traces

from ray_profile.config import Config
from ray_profile.encode.trained import Heads
from ray_profile.pipelines import fresh
from ray_profile.pipelines.train import Summary, train
from ray_profile.sources.simulate import Shop
from ray_profile.store.root import Root

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_here")]

INIT = ("train.init={ layers = 1, width = 32, heads = 2, vocab = 800 }", "train.objectives={ mlm = 1.0 }")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Shop:
    """Enough customers for a vocabulary; some of them write English, some Chinese."""
    return tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder, customers=150)


def config_of(shop: Shop, root: Path, *overrides: str) -> Config:
    return tiny.config_of(shop, root, *traces.FAST, *overrides)


def of_words(shop: Shop, root: Path) -> Config:
    return config_of(shop, root, *INIT, "train.name=words", "train.learning_rate=0.01", "train.tokens_per_batch=1024")


@pytest.fixture(scope="module")
def words(shop: Shop, tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> tuple[Path, Summary]:  # noqa: ARG001
    """A root with an encoder that has learnt from the shop's texts alone."""
    root = tmp_path_factory.mktemp("words") / "root"
    return root, train(of_words(shop, root))


def test_it_reads_both_languages_and_others_load_it(words: Any, shop: Shop) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    root, summary = words
    tokenizer, model = AutoTokenizer.from_pretrained(summary.address), AutoModel.from_pretrained(summary.address)
    assert model.config.hidden_size == 32
    corpus = traces.corpus_of(of_words(shop, root))
    texts = corpus.rows("test", ("text",))["text"]
    chinese = texts.str.contains(r"\p{Han}")
    for some in (texts.filter(chinese), texts.filter(~chinese)):
        ids = [each for row in tokenizer(some.to_list())["input_ids"] for each in row]
        assert len(ids) > 100
        assert ids.count(tokenizer.unk_token_id) < 0.02 * len(ids)
    with torch.inference_mode():
        states = model(**tokenizer(["a fine tent", "茶很好喝"], return_tensors="pt", padding=True)).last_hidden_state
    assert states.isfinite().all()


def test_it_learns_which_words_the_shop_s_people_use(words: Any) -> None:
    _, summary = words
    assert summary.ended == "finished"
    report = json.loads((Path(summary.address) / "report" / "metrics.json").read_text(encoding="utf-8"))
    losses = [point["loss"] for point in report["curves"] if "loss" in point]
    assert losses[-1] < 0.9 * losses[0]
    scores = [point["score"] for point in report["curves"] if "score" in point]
    assert 0 < scores[0] < scores[-1]
    assert not (Path(summary.address) / "heads.safetensors").exists()


def test_the_same_command_again_makes_neither_vocabulary_nor_model(words: Any, shop: Shop) -> None:
    root, summary = words
    made = list((root / "training" / "fresh").glob("*/*"))
    times = {path: path.stat().st_mtime_ns for path in made}
    again = train(of_words(shop, root))
    assert (again.trained, again.digest) == (False, summary.digest)
    assert {path: path.stat().st_mtime_ns for path in (root / "training" / "fresh").glob("*/*")} == times


def test_fine_tuning_goes_on_from_it_by_its_name(words: Any, shop: Shop) -> None:
    root, summary = words
    felt = train(config_of(shop, root, "encoder.model=root:words", "train.name=felt", "train.epochs=1"))
    assert felt.trained
    described = json.loads((Path(felt.address) / "model.json").read_text(encoding="utf-8"))
    assert described["base"] == summary.address
    tokenizers = [(Path(each.address) / "tokenizer.json").read_bytes() for each in (summary, felt)]
    assert tokenizers[0] == tokenizers[1]
    heads = Heads.read(Path(felt.address))
    assert heads is not None
    assert heads.sentiment is not None
    assert heads.sentiment.weights.shape == (3, 32)


def test_a_vocabulary_of_texts_that_were_not_redacted_is_not_used_when_they_are(shop: Shop, tmp_path: Path) -> None:
    root = Root.bare(str(tmp_path / "root"))
    made = set()
    for redact in ("false", "true"):
        config = config_of(shop, tmp_path / "root", *INIT, f"privacy.redact={redact}")
        assert config.train.init is not None
        made.add(fresh.started(config, config.train.init, root, tiny.CLOCK).encoder.model)
    assert len(made) == 2
