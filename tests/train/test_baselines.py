"""Baselines that are no straw men: both scripts, several tags, few rows, and what offsets buy them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ray_profile.encode.heads import sentiment_of_stars
from ray_profile.train.baselines import frozen_probe, frozen_probe_tags, tfidf_svm, tfidf_svm_tags
from ray_profile.train.metrics import macro_f1, micro_f1

WORDS = {0: ("broken", "refund", "坏了", "退货"), 1: ("lovely", "gift", "喜欢", "推荐")}


def written(labels: np.ndarray, chinese: bool, seed: int = 0) -> list[str]:
    """A review with one telling word among five that tell nothing; Chinese without spaces."""
    random = np.random.default_rng(seed)
    plain = ("的", "这个", "我们", "昨天", "包裹") if chinese else ("the", "parcel", "came", "on", "monday")
    at = 2 if chinese else 0
    texts = []
    for label in labels:
        words = [*random.choice(plain, 5), WORDS[int(label)][at + random.integers(2)]]
        random.shuffle(words)
        texts.append(("" if chinese else " ").join(words))
    return texts


@pytest.mark.parametrize("chinese", [False, True])
def test_words_are_learnt_in_scripts_with_and_without_spaces(chinese: bool) -> None:
    labels = np.random.default_rng(0).integers(0, 2, 300)
    texts = written(labels, chinese)
    found = tfidf_svm(texts[:200], labels[:200], texts[200:])
    assert found.shape == (100,)
    assert (found == labels[200:]).mean() > 0.97


def test_the_labels_that_come_out_are_those_that_went_in() -> None:
    labels = np.random.default_rng(0).integers(0, 2, 200)
    texts = written(labels, chinese=False)
    assert set(tfidf_svm(texts, np.where(labels, 7, 2), texts)) == {2, 7}


def test_offsets_help_a_rare_class() -> None:
    random = np.random.default_rng(0)
    labels = (random.random(6_000) < 0.05).astype(int)
    vectors = random.normal(0, 1, (6_000, 4)) + labels[:, None] * np.array([1.2, 0, 0, 0])
    train, test = slice(0, 4_000), slice(4_000, None)
    plain = frozen_probe(vectors[train], labels[train], vectors[test], offsets=False)
    moved = frozen_probe(vectors[train], labels[train], vectors[test])
    assert macro_f1(labels[test], moved) > macro_f1(labels[test], plain) + 0.02


def tagged(rows: int = 400) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts, vectors and truth (N, 3) of independent tags; the last is never true, a tenth is unknown."""
    random = np.random.default_rng(0)
    truth = (random.random((rows, 3)) < [0.3, 0.5, 0]).astype(float)
    names = np.array(["tent", "rope", "boat"])
    texts = [" ".join(["thing", *names[row > 0]]) for row in truth]
    vectors = truth + random.normal(0, 0.1, truth.shape)
    truth[random.random(rows) < 0.1] = np.nan
    truth[0, 1] = np.nan  # one cell alone, too
    return texts, vectors, truth


def test_tags_of_words_and_of_vectors() -> None:
    texts, vectors, truth = tagged()
    for found in (
        tfidf_svm_tags(texts[:300], truth[:300], texts[300:]),
        frozen_probe_tags(vectors[:300], truth[:300], vectors[300:]),
    ):
        assert found.shape == (100, 3)
        assert found.dtype == bool
        assert micro_f1(truth[300:], found) > 0.98
        assert not found[:, 2].any()


def test_one_class_no_test_rows_and_few_rows() -> None:
    assert tfidf_svm(["a", "b"], np.array([2, 2]), ["c"]).tolist() == [2]
    assert tfidf_svm(["good thing", "bad thing"], np.array([0, 1]), []).tolist() == []
    assert tfidf_svm(["good thing", "bad thing"], np.array([0, 1]), ["bad", "good"]).tolist() == [1, 0]
    assert frozen_probe(np.ones((2, 4)), np.array([1, 1]), np.ones((3, 4))).tolist() == [1, 1, 1]
    assert frozen_probe(np.eye(2), np.array([0, 3]), np.eye(2)).tolist() == [0, 3]
    assert tfidf_svm_tags(["good", "bad"], np.array([[1.0, 0.0], [1.0, 0.0]]), ["new"]).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="needs rows"):
        tfidf_svm([], np.zeros(0), ["a"])


def test_texts_without_a_word_are_all_alike() -> None:
    found = tfidf_svm(["!", "?", "..."] * 20, np.array([0, 1, 1] * 20), ["!", "?"], offsets=False)
    assert len(set(found)) == 1


@pytest.mark.slow
def test_the_svm_reaches_its_known_score_on_real_reviews(shared: Path) -> None:
    """Macro-F1 of stars in three classes was .532 without offsets and .607 with, over five folds by user."""
    path = shared / "data" / "amazon_musical" / "reviews.parquet"
    if not path.exists():
        pytest.skip("amazon_musical is not here")
    rows = pl.read_parquet(path).with_columns(
        text=pl.concat_str("summary", "reviewText", separator="\n", ignore_nulls=True)
    )
    labels = sentiment_of_stars(rows["overall"]).argmax(1)
    test = (rows["reviewerID"].hash(seed=0) % 5 == 0).to_numpy()
    texts = np.array(rows["text"].to_list(), object)
    plain, moved = (tfidf_svm(list(texts[~test]), labels[~test], list(texts[test]), each) for each in (False, True))
    assert macro_f1(labels[test], plain) > 0.48
    assert macro_f1(labels[test], moved) > 0.55
