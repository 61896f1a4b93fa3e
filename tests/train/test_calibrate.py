"""Probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_profile.train.calibrate import (
    Calibration,
    decision_offsets,
    fit_sigmoid,
    fit_softmax,
    prior_shift,
    tag_thresholds,
)
from ray_profile.train.metrics import classification, macro_f1


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def drawn(rows: int, prior: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the truth's own distribution, and labels drawn from it."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (rows, len(prior))) + np.log(prior)
    p = softmax(logits)
    labels = (random.random(rows)[:, None] > p.cumsum(1)).sum(1).clip(max=len(prior) - 1)
    return logits, labels


def test_overconfident_and_shifted_logits_are_set_right() -> None:
    logits, labels = drawn(20_000, [0.1, 0.2, 0.7])
    wrong = 3 * (logits + np.array([1.0, 0.0, -1.0]))
    names = ("a", "b", "c")
    before = classification(labels[10_000:], softmax(wrong[10_000:]), wrong[10_000:].argmax(1), names)
    fitted = fit_softmax(wrong[:10_000], labels[:10_000])
    right = fitted.apply(wrong[10_000:])
    after = classification(labels[10_000:], softmax(right), right.argmax(1), names)
    assert before["ece"] > 0.1
    assert after["ece"] < 0.02
    assert after["share_error"] < 0.02
    assert fitted.temperature == pytest.approx(3, rel=0.1)


def test_few_rows_change_nothing() -> None:
    logits, labels = drawn(20, [0.5, 0.5])
    assert np.array_equal(fit_softmax(logits, labels).apply(logits), logits)
    empty = np.zeros((0, 3))
    assert fit_softmax(empty, np.zeros(0, int)).apply(empty).shape == (0, 3)


def test_a_class_without_rows_does_not_blow_up() -> None:
    logits, labels = drawn(2_000, [0.5, 0.5, 1e-9])
    fitted = fit_softmax(logits, np.minimum(labels, 1))
    assert np.isfinite(fitted.apply(logits)).all()


@given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
def test_the_shift_takes_a_resampled_prior_back(natural: list[float], sampled: list[float]) -> None:
    a, b = np.array(natural) / sum(natural), np.array(sampled) / sum(sampled)
    assert softmax(np.log(b)[None] + prior_shift(a, b))[0] == pytest.approx(a)


def test_classes_that_never_occur_are_not_shifted() -> None:
    assert prior_shift(np.array([1.0, 0.0]), np.array([1.0, 0.0])).tolist() == [0, 0]


def test_sigmoids_are_set_right_with_labels_missing() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(-1, 2, (20_000, 3))
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    labels[random.random(labels.shape) < 0.3] = np.nan
    fitted = fit_sigmoid(2 * logits + 1, labels)
    p = 1 / (1 + np.exp(-fitted.apply(2 * logits + 1)))
    assert np.abs(np.nanmean(labels, 0) - p.mean(0)).max() < 0.02
    assert fitted.temperature == pytest.approx(2, rel=0.1)


def test_offsets_raise_macro_f1_of_rare_classes() -> None:
    logits, labels = drawn(6_000, [0.04, 0.06, 0.9])
    log_p = np.log(softmax(logits))
    plain = macro_f1(labels, log_p.argmax(1))
    assert macro_f1(labels, (log_p + decision_offsets(log_p, labels)).argmax(1)) > plain
    assert decision_offsets(log_p[:0], labels[:0]).tolist() == [0, 0, 0]


def test_thresholds_find_where_a_tag_begins() -> None:
    random = np.random.default_rng(0)
    p = random.random((4_000, 2))
    truth = (p > np.array([0.3, 0.8])).astype(float)
    thresholds, usual = tag_thresholds(p, truth)
    assert thresholds == pytest.approx([0.3, 0.8], abs=0.1)
    assert 0 < usual < 1


def test_a_tag_that_nobody_has_gets_the_usual_threshold() -> None:
    p = np.random.default_rng(0).random((200, 2))
    truth = np.stack([p[:, 0] > 0.5, np.zeros(200)], 1)
    thresholds, usual = tag_thresholds(p, truth)
    assert thresholds[1] == pytest.approx(usual)


def test_identity() -> None:
    assert Calibration(1.0, np.zeros(2)).apply(np.array([[1.0, 2.0]])).tolist() == [[1, 2]]
