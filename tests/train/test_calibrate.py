"""Probabilities that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.train.calibrate import (
    Calibration,
    _best_offset,
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


def test_shares_and_counts_shift_alike() -> None:
    assert prior_shift(np.array([30, 70]), np.array([5, 5])) == pytest.approx(np.log([0.6, 1.4]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 5), st.floats(0.05, 20))
def test_calibrating_never_makes_the_rows_less_likely(seed: int, classes: int, heat: float) -> None:
    logits, labels = drawn(300, [1 / classes] * classes, seed)
    fitted = fit_softmax(heat * logits, labels)
    before, after = (
        np.log(softmax(each))[np.arange(300), labels].sum() for each in (heat * logits, fitted.apply(heat * logits))
    )
    assert after >= before - 1e-6
    assert fitted.bias.sum() == pytest.approx(0, abs=1e-9)


def test_a_prior_keeps_separable_classes_finite() -> None:
    labels = np.arange(400) % 2
    fitted = fit_softmax(np.eye(2)[labels] * 4, labels)
    assert 0.05 < fitted.temperature < 1
    tags = fit_sigmoid(np.eye(2)[labels] * 4 - 2, np.eye(2)[labels])
    assert 0.05 < tags.temperature < 1
    assert np.abs(tags.bias).max() < 5


def test_a_class_that_is_ruled_out_stays_so_and_disturbs_nothing() -> None:
    logits, labels = drawn(1_000, [0.3, 0.7])
    with_it = np.column_stack([logits[:, 0], np.full(1_000, -np.inf), logits[:, 1]])
    alone, beside = fit_softmax(logits, labels), fit_softmax(with_it, labels * 2)
    assert beside.temperature == pytest.approx(alone.temperature)
    assert beside.bias == pytest.approx([alone.bias[0], 0, alone.bias[1]])
    assert (beside.apply(with_it)[:, 1] == -np.inf).all()
    lost = fit_softmax(with_it, np.where(np.arange(1_000) < 10, 1, labels * 2))  # rows of a class that cannot be
    assert np.isfinite(lost.bias).all()


def test_rows_of_one_class_change_nothing() -> None:
    logits, labels = drawn(200, [0.5, 0.5])
    assert np.array_equal(fit_softmax(logits, labels * 0).apply(logits), logits)
    assert np.array_equal(fit_sigmoid(logits, np.zeros((200, 2))).apply(logits), logits)
    assert np.array_equal(fit_sigmoid(logits, np.full((200, 2), np.nan)).apply(logits), logits)


def test_a_tags_bias_is_its_own_as_far_as_its_positives_reach() -> None:
    random = np.random.default_rng(0)
    shift = np.array([0.0, 0.0, 1.5, 1.5])
    logits = random.normal(0, 2, (8_000, 4)) - np.array([1, 1, 1, 7])  # the last tag has a few positives
    labels = (random.random(logits.shape) < 1 / (1 + np.exp(-(logits + shift)))).astype(float)
    labels[:, 1] = np.nan  # nobody says anything of the second
    fitted = fit_sigmoid(logits, labels)
    common = fitted.bias[1]
    assert fitted.bias[2] - fitted.bias[0] == pytest.approx(1.5, abs=0.25)
    assert fitted.bias[0] < common < fitted.bias[2]
    distances = []
    for rows in (20, 200, 2_000):  # of no positive at all: the more rows say so, the further it may go
        none = labels.copy()
        none[:rows, 3], none[rows:, 3] = 0, np.nan
        bias = fit_sigmoid(logits, none).bias
        distances.append(bias[1] - bias[3])
    assert 0 < distances[0] < 0.3 < distances[1] < distances[2] < 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4), st.booleans())
def test_an_offset_is_the_best_of_all(seed: int, classes: int, ties: bool) -> None:
    """One class moves: no offset on a fine grid beats what the search says, and what it says is so."""
    random = np.random.default_rng(seed)
    scores = random.integers(-3, 3, (60, classes)).astype(float) if ties else random.normal(size=(60, classes))
    labels = random.integers(0, classes, 60)
    present = np.unique(labels)
    at = int(random.choice(present))
    moved = lambda by: macro_f1(labels, (scores + by * (np.arange(classes) == at)).argmax(1))  # noqa: E731
    offset, said = _best_offset(scores, labels, at, present)
    assert moved(offset) == pytest.approx(said, abs=1e-12)
    assert said >= max(moved(by) for by in np.linspace(-7.03, 7.05, 141)) - 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_offsets_never_lower_macro_f1_on_their_rows(seed: int, classes: int) -> None:
    logits, labels = drawn(120, [1 / classes] * classes, seed)
    log_p = np.log(softmax(logits))
    offsets = decision_offsets(log_p, labels)
    assert macro_f1(labels, (log_p + offsets).argmax(1)) >= macro_f1(labels, log_p.argmax(1)) - 1e-12


def test_where_nothing_is_gained_offsets_are_nothing() -> None:
    labels = np.arange(90) % 3
    sure = np.log(np.eye(3)[labels] * 0.9 + 0.05)
    assert decision_offsets(sure, labels).tolist() == [0, 0, 0]
    assert decision_offsets(sure, labels * 0).tolist() == [0, 0, 0]
    ruled_out = np.where(np.arange(3) == 1, -np.inf, sure)
    assert np.isfinite(decision_offsets(ruled_out, labels // 2 * 2)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_a_threshold_is_the_best_of_all(seed: int) -> None:
    """One tag: its own threshold is the common one, so nothing is shrunk. Ties of p go together."""
    random = np.random.default_rng(seed)
    p = random.integers(0, 20, (50, 1)) / 20
    truth = (random.random((50, 1)) < p).astype(float)
    truth[random.random((50, 1)) < 0.2] = np.nan
    thresholds, usual = tag_thresholds(p, truth)
    assert thresholds[0] == pytest.approx(usual)
    if np.nansum(truth):
        scored = [macro_f1(truth, p >= each) for each in (*np.linspace(0.01, 0.99, 99), 1e-6)]
        assert macro_f1(truth, p >= thresholds) >= max(scored) - 1e-12


def test_a_tag_of_few_positives_keeps_near_the_common_threshold() -> None:
    random = np.random.default_rng(0)
    p = random.random((4_000, 3))
    truth = (p > 0.6).astype(float)
    truth[:, 2] = p[:, 2] > 0.9
    few = truth.copy()
    few[10:, 2] = np.nan
    many, usual = tag_thresholds(p, truth)
    rare, _ = tag_thresholds(p, few)
    assert many[2] == pytest.approx(0.9, abs=0.02)
    assert usual < rare[2] < many[2]


def test_without_any_positive_the_threshold_is_a_half() -> None:
    assert tag_thresholds(np.zeros((0, 2)), np.zeros((0, 2)))[0].tolist() == [0.5, 0.5]
    assert tag_thresholds(np.full((9, 2), 0.7), np.zeros((9, 2)))[1] == 0.5
