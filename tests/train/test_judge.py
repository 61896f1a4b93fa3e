"""From a trained head to the one that build uses, and what its report says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ray_profile.encode.heads import SENTIMENTS
from ray_profile.train import judge, report
from ray_profile.train.judge import Judged, Splits, Weights
from ray_profile.train.model import SENTIMENT_SCALE

WIDTH = 8
NOISE = 0.5  # so much that a head that is sure of everything is wrong now and then
TAGS = ("tea", "书籍", "tents")


def judged(rows: int, seed: int, several_tags: bool = False) -> Judged:
    """Rows whose vectors tell both labels, with noise; users of two rows each."""
    random = np.random.default_rng(seed)
    felt, tag = random.integers(0, 3, rows), random.integers(0, len(TAGS), rows)
    vectors = random.normal(scale=NOISE, size=(rows, WIDTH))
    vectors[np.arange(rows), felt] += 1
    vectors[np.arange(rows), 3 + tag] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tags = [[int(one), (int(one) + 1) % 3] if several_tags and one else [int(one)] for one in tag]
    frame = pl.DataFrame(
        {
            "id": [f"{seed}-{at}" for at in range(rows)],
            "user_id": [f"user-{seed}-{at // 2}" for at in range(rows)],
            "item_id": [f"item-{one}" for one in tag],
            "text": [f"{SENTIMENTS[one]} {TAGS[other]}" for one, other in zip(felt, tag, strict=True)],
            "sentiment": pl.Series(felt, dtype=pl.Int8),
            "tags": pl.Series(tags, dtype=pl.List(pl.Int32)),
        }
    )
    return Judged(frame, vectors.astype(np.float16), vectors.astype(np.float16))


def splits(several_tags: bool = False) -> Splits:
    train, validation, test = (judged(rows, at, several_tags) for at, rows in enumerate((400, 200, 300)))
    return Splits(train, validation, test, frozenset({"item-0", "item-1"}))


def weights(sure: float) -> Weights:
    """Heads that look at the right numbers, and are so many times too sure of what they see."""
    sentiment, residual = torch.zeros(3, WIDTH), torch.zeros(3, WIDTH)
    for at in range(3):
        sentiment[at, at], residual[at, 3 + at] = sure, 1.0
    return {
        "sentiment.linear.weight": sentiment / SENTIMENT_SCALE * 5,
        "sentiment.linear.bias": torch.zeros(3),
        "tags.residual": residual,
        "tags.bias": torch.zeros(3),
        "tags.common_bias": torch.zeros(1),
        "tags.log_scale": torch.tensor([sure * 5.0]).log(),
    }


@pytest.mark.parametrize("sure", [0.2, 20.0])
def test_calibration_mends_heads_that_are_too_sure_or_not_sure_enough(sure: float) -> None:
    of = splits()
    shares = np.ones(3) / 3
    felt = judge.sentiment_report(judge.sentiment_head(weights(sure), shares, shares, of.validation), of)
    texts = np.zeros((3, WIDTH), np.float32)
    tags = judge.tag_head(weights(sure), TAGS, texts, True, of.validation)
    tagged = judge.tags_report(tags, texts, True, of)
    for found in (felt, tagged):
        assert found["calibration"]["before"] > 2 * found["calibration"]["after"]
        assert found["calibration"]["after"] == found["test"]["ece"]
        assert found["test"]["macro_f1"] > 0.6


def test_the_sampling_prior_is_taken_back() -> None:
    """Training drew as many negatives as positives where nine of ten are positive: nine of ten are said to be."""
    of = splits()
    natural, drawn = np.array([5.0, 5.0, 90.0]), np.ones(3) / 3
    common = of.validation.sentiment == 2
    rare = np.flatnonzero(~common)[:: max(1, int(9 * (~common).sum() / common.sum()))]
    kept = common.copy()
    kept[rare] = True
    few = of.validation.where(kept)
    head = judge.sentiment_head(weights(1.0), drawn, natural, few)
    said = head.probe.predict(few.vectors).mean(0)
    assert np.abs(said - np.bincount(few.sentiment, minlength=3) / len(few.sentiment)).max() < 0.02


def test_a_review_of_no_item_is_of_no_new_one() -> None:
    of = splits()
    rows = of.test.rows.with_columns(pl.when(pl.int_range(pl.len()) % 2 == 0).then("item_id").alias("item_id"))
    of = Splits(of.train, of.validation, Judged(rows, of.test.vectors, of.test.before), of.seen_items)
    assert of.is_new.tolist() == (rows["item_id"] == "item-2").fill_null(False).to_list()
    assert 0 < of.is_new.sum() < rows.height / 2


def test_tags_of_which_a_row_may_have_several_have_their_baselines_too(tmp_path: Any) -> None:
    of = splits(several_tags=True)
    texts = np.zeros((3, WIDTH), np.float32)
    tags = judge.tag_head(weights(1.0), TAGS, texts, False, of.validation)
    found = judge.tags_report(tags, texts, False, of)
    assert set(found["baselines"]) == {"tfidf_svm", "frozen"}
    words = found["baselines"]["tfidf_svm"]
    assert words["macro_f1"]["theirs"] > 0.99, "each tag's word is in the text"
    assert words["macro_f1"]["ours"] == pytest.approx(found["test"]["macro"]["f1"])
    assert words["micro_f1"]["ours"] == pytest.approx(found["test"]["micro"]["f1"])
    assert words["micro_f1"]["low"] <= words["micro_f1"]["difference"] <= words["micro_f1"]["high"]
    report.write(tmp_path, {"tags": found}, [])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    micro = found["test"]["micro"]["f1"]
    assert "| | macro-F1 | micro-F1 |" in text
    assert f"| this model | {found['test']['macro']['f1']:.3f} | {micro:.3f} | |" in text


def test_nobody_in_the_train_split_has_nothing_to_compare_with() -> None:
    of = splits()
    empty = of.train.where(np.zeros(of.train.rows.height, bool))
    found = judge.sentiment_report(
        judge.sentiment_head(weights(1.0), np.ones(3), np.ones(3), of.validation),
        Splits(empty, of.validation, of.test, frozenset()),
    )
    assert found["baselines"] == {}
