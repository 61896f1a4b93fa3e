"""Scores against scikit-learn's, and the interval of a difference."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ray_profile.train import metrics
from ray_profile.train.metrics import TAG_SCORES, accuracy, classification, macro_f1, paired_bootstrap, tagging

NAMES = ("a", "b", "c")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 80))
def test_scores_are_scikit_learns(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    truth, p = random.integers(0, 3, rows), random.dirichlet([1, 1, 1], rows)
    guess = p.argmax(1)
    found = classification(truth, p, guess, NAMES)
    there = np.unique(truth)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, guess, labels=there, average="macro", zero_division=0))
    assert found["confusion"] == sk.confusion_matrix(truth, guess, labels=[0, 1, 2]).tolist()
    for at in there:
        wanted = sk.average_precision_score(truth == at, p[:, at])
        assert found["classes"][NAMES[at]]["pr_auc"] == pytest.approx(wanted)


def test_no_rows_and_one_row() -> None:
    none = classification(np.zeros(0, int), np.zeros((0, 3)), np.zeros(0, int), NAMES)
    assert none["rows"] == 0
    assert none["accuracy"] is None
    one = classification(np.array([1]), np.array([[0.0, 1.0, 0.0]]), np.array([1]), NAMES)
    assert one["accuracy"] == one["macro_f1"] == 1
    assert one["ece"] == 0


def test_a_probability_that_is_always_too_high_is_measured_as_such() -> None:
    truth = np.array([0, 1] * 50)
    found = classification(truth, np.tile([0.9, 0.1], (100, 1)), np.zeros(100, int), ("a", "b"))
    assert found["ece"] == pytest.approx(0.4)
    assert found["share_error"] == pytest.approx(0.4)


def test_unknown_tags_count_neither_way() -> None:
    truth = np.array([[1, 0], [np.nan, np.nan], [0, 1]])
    p = np.array([[0.9, 0.2], [0.9, 0.9], [0.6, 0.7]])
    found = tagging(truth, p, np.array([0.5, 0.5]), ("x", "y"), exclusive=False)
    assert found["rows"] == 2
    assert found["micro"]["precision"] == pytest.approx(2 / 3)
    assert found["micro"]["recall"] == 1


def test_the_interval_holds_a_true_difference_and_none_of_nothing() -> None:
    random = np.random.default_rng(0)
    users = random.integers(0, 300, 3_000)
    truth = random.integers(0, 3, 3_000)
    good = np.where(random.random(3_000) < 0.9, truth, 0)
    bad = np.where(random.random(3_000) < 0.7, truth, 0)
    better = paired_bootstrap("macro_f1", truth, good, bad, users)
    assert 0 < better["low"] < better["difference"] < better["high"]
    assert better["difference"] == pytest.approx(macro_f1(truth, good) - macro_f1(truth, bad))
    same = paired_bootstrap("accuracy", truth, good, good, users)
    assert same["low"] == same["high"] == same["difference"] == 0


def test_the_fast_way_is_the_slow_way() -> None:
    random = np.random.default_rng(1)
    users, truth = random.integers(0, 20, 200), random.integers(0, 2, 200)
    ours, theirs = random.integers(0, 2, 200), random.integers(0, 2, 200)
    fast = paired_bootstrap("accuracy", truth, ours, theirs, users, rounds=300)
    slow = paired_bootstrap(lambda a, b: accuracy(a, b), truth, ours, theirs, users, rounds=300)
    assert fast == pytest.approx(slow)


def test_expected_calibration_error_by_hand() -> None:
    """Two bins: 4 rows said with .9, half of them right; 6 rows said with .6, all right."""
    p = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 6)
    truth = np.array([0, 0, 1, 1] + [0] * 6)
    found = classification(truth, p, p.argmax(1), ("a", "b"))
    assert found["ece"] == pytest.approx((4 * 0.4 + 6 * 0.4) / 10)
    assert [each["rows"] for each in found["bins"]] == [6, 4]
    assert found["bins"][1]["confidence"] == pytest.approx(0.9)
    assert found["bins"][1]["frequency"] == pytest.approx(0.5)
    assert found["nll"] == pytest.approx(-(2 * np.log(0.9) + 2 * np.log(0.1) + 6 * np.log(0.6)) / 10)
    assert found["share_error"] == pytest.approx(abs(0.72 - 0.8))
    assert found["class_ece"] == pytest.approx(found["classes"]["a"]["ece"])


@pytest.mark.parametrize("edge", [0.0, 1 / 15, 0.2, 1.0])
def test_every_probability_has_a_bin(edge: float) -> None:
    found = tagging(np.array([[1.0]]), np.array([[edge]]), np.array([0.5]), ("x",), exclusive=False)
    (only,) = found["bins"]
    assert only["low"] - 1e-12 <= edge <= only["high"] + 1e-12


def test_a_class_without_rows_is_left_out_of_the_means() -> None:
    truth, p = np.array([0, 0, 1, 1]), np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]])
    found = classification(truth, p, p.argmax(1), NAMES)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    absent = found["classes"]["c"]
    assert absent["recall"] is absent["f1"] is absent["pr_auc"] is None
    assert (absent["support"], absent["predicted"], absent["precision"]) == (0, 1, 0)


def test_a_row_without_a_label_is_refused() -> None:
    with pytest.raises(AssertionError, match="without a label"):
        classification(np.array([-1]), np.ones((1, 3)) / 3, np.array([0]), NAMES)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60))
def test_tag_scores_are_scikit_learns(seed: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    truth, p = (random.random((rows, 3)) < 0.4).astype(float), random.random((rows, 3))
    found = tagging(truth, p, np.full(3, 0.5), NAMES, exclusive=False)
    given_ = (p >= 0.5).astype(int)
    held = np.flatnonzero(truth.any(0))
    if held.size:
        each = [
            sk.precision_recall_fscore_support(truth[:, at], given_[:, at], average="binary", zero_division=0)[:3]
            for at in held
        ]
        assert list(found["macro"].values()) == pytest.approx(np.mean(each, axis=0).tolist())
        assert found["micro"]["f1"] == pytest.approx(sk.f1_score(truth, given_, average="micro", zero_division=0))
    assert found["coverage"] == pytest.approx(given_.any(1).mean())


def test_one_tag_a_row_is_also_a_choice() -> None:
    truth = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [np.nan] * 3])
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [1, 0, 0]])
    found = tagging(truth, p, np.full(3, 0.3), NAMES, exclusive=True)
    assert found["rows"] == 4
    assert found["accuracy"] == pytest.approx(2 / 3)  # the row without a tag chooses nothing
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert found["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    assert found["micro"] == {"precision": pytest.approx(3 / 5), "recall": 1.0, "f1": pytest.approx(3 / 4)}
    assert sum(each["rows"] for each in found["bins"]) == 3
    assert "accuracy" not in tagging(truth, p, np.full(3, 0.3), NAMES, exclusive=False)


@pytest.mark.parametrize("exclusive", [False, True])
def test_nothing_known_is_no_score_and_goes_into_json(exclusive: bool) -> None:
    found = tagging(np.full((3, 2), np.nan), np.ones((3, 2)), np.ones(2), ("x", "y"), exclusive)
    assert found["rows"] == 0
    assert found["ece"] is found["coverage"] is found["share_error"] is found["micro"]["f1"] is None
    none = classification(np.zeros(0, int), np.zeros((0, 3)), np.zeros(0, int), NAMES)
    json.dumps([found, none], allow_nan=False)


def test_rows_of_one_user_are_no_independent_evidence() -> None:
    random = np.random.default_rng(0)
    truth = np.repeat(random.integers(0, 2, 40), 25)
    ours = np.where(np.repeat(random.random(40) < 0.8, 25), truth, 1 - truth)  # a user is right or wrong throughout
    theirs = np.where(np.repeat(random.random(40) < 0.7, 25), truth, 1 - truth)
    apart = paired_bootstrap("accuracy", truth, ours, theirs, np.arange(1_000))
    users = paired_bootstrap("accuracy", truth, ours, theirs, np.repeat(np.arange(40), 25))
    assert users["high"] - users["low"] > 3 * (apart["high"] - apart["low"])


def test_the_interval_of_accuracy_is_the_known_one() -> None:
    """Rows as groups: the standard error of the mean difference."""
    random = np.random.default_rng(3)
    truth = np.zeros(2_000, int)
    ours, theirs = (random.random((2, 2_000)) > [[0.9], [0.8]]).astype(int)
    found = paired_bootstrap("accuracy", truth, ours, theirs, np.arange(2_000), rounds=4_000)
    error = np.std((ours == truth).astype(int) - (theirs == truth)) / np.sqrt(2_000)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_the_fast_way_is_the_slow_way_for_tags() -> None:
    random = np.random.default_rng(1)
    users, truth = random.integers(0, 20, 200), (random.random((200, 4)) < 0.3).astype(float)
    truth[random.random(200) < 0.1] = np.nan
    ours, theirs = random.random((2, 200, 4)) < 0.4
    for name, score in TAG_SCORES.items():
        fast = paired_bootstrap(name, truth, ours, theirs, users, rounds=60)
        assert fast == pytest.approx(paired_bootstrap(score, truth, ours, theirs, users, rounds=60))


def test_of_one_user_or_nobody_there_is_no_interval() -> None:
    one = paired_bootstrap("macro_f1", [0, 1], [0, 1], [1, 1], ["me", "me"])
    assert one["difference"] == pytest.approx(1 - 1 / 3)
    assert one["low"] is one["high"] is None
    nobody = paired_bootstrap("macro_f1", np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), [])
    assert set(nobody.values()) == {None}


def test_each_round_draws_as_many_groups_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(metrics._draws(7, 10, seed=0)))
    monkeypatch.setattr(metrics, "_RESAMPLED_AT_ONCE", 21)  # three rounds at a time
    parts = np.concatenate(list(metrics._draws(7, 10, seed=0)))
    assert whole.shape == (10, 7)
    assert (whole.sum(1) == 7).all()
    assert np.array_equal(whole, parts)
