"""Scores against scikit-learn's, and the interval of a difference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ray_profile.train.metrics import accuracy, classification, macro_f1, paired_bootstrap, tagging

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
