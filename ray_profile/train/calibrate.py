"""From the scores of a trained head to probabilities that mean what they say, and to decisions.

Everything here is fitted on validation users at their natural frequencies and then folded into a head's scale and bias.

Axes: N rows, C classes, T tags.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit, logsumexp

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

MIN_ROWS = 50  # with fewer, a fit would follow single rows
_TEMPERATURES = (-np.log(100), np.log(100))  # where a fit of the logarithm may go
_PRIOR_POSITIVES = 10  # a tag with so many positives goes half way from the common threshold to its own
_LEAST = 1e-6  # of a threshold, and of its distance to 1
_CELLS_AT_ONCE = 1 << 20  # of (N, T) in float64: what a step holds beside its input
_ROUNDS = 20  # of the coordinate search; it ends after 2 to 5
_BEYOND = 1e-3  # how far an offset lies from the outermost row
_EQUAL = 1e-12  # numbers this near are the same
_LOG_FLOOR = -700.0  # log p of a class that is ruled out


@dataclass(frozen=True, eq=False)
class Calibration:
    """One temperature for all logits, and a bias for each of them."""

    temperature: float
    bias: Floats  # (C,)

    def apply(self, logits: Array) -> Floats:
        """Logits (..., C) whose softmax, or sigmoid, is calibrated."""
        return np.asarray(logits / self.temperature + self.bias, np.float64)


def prior_shift(natural_C: Array, sampled_C: Array) -> Floats:
    """What to add to logits that were trained on resampled rows, (C,): log natural share - log sampled share.

    Both may be counts or shares. A class that one of them lacks is not shifted. Saerens, Latinne and Decaestecker
    (2002), "Adjusting the outputs of a classifier to new a priori probabilities", equation 2.4.
    """
    natural, sampled = np.asarray(natural_C, np.float64), np.asarray(sampled_C, np.float64)
    both = (natural > 0) & (sampled > 0)
    shift = np.zeros(natural.shape)
    shift[both] = np.log(natural[both] / natural.sum()) - np.log(sampled[both] / sampled.sum())
    return shift


def fit_softmax(logits_NC: Array, labels_N: Array) -> Calibration:
    """Bias-corrected temperature scaling: Alexandari, Kundaje and Shrikumar (2020), "Maximum likelihood with
    bias-corrected calibration is hard-to-beat at label shift adaptation".

    It minimises the summed negative log-likelihood plus half the squares of log temperature and of the biases: standard
    normal priors, which a few hundred rows overrule, and which keep the fit finite where classes are separable. Biases
    of classes that have rows sum to 0; a class without rows has 0. A class whose logit is minus infinity stays out,
    with its rows. With under `MIN_ROWS` rows, or rows of one class, nothing is changed.
    """
    logits, labels = np.asarray(logits_NC, np.float64), np.asarray(labels_N, np.int64)
    width = logits.shape[1]
    possible = np.flatnonzero(np.isfinite(logits).all(0))
    kept = np.isin(labels, possible)
    logits, labels = logits[kept][:, possible], np.searchsorted(possible, labels[kept])
    held = np.flatnonzero(np.bincount(labels, minlength=len(possible)))
    if len(labels) < MIN_ROWS or len(held) < 2:
        return Calibration(1.0, np.zeros(width))
    counts = np.bincount(labels, minlength=len(possible)).astype(np.float64)

    def cost(parameters: Floats) -> tuple[float, Floats]:
        heat, bias = np.exp(parameters[0]), np.zeros(len(possible))
        bias[held] = parameters[1:] - parameters[1:].mean()
        total, slope, by_class = 0.0, 0.0, -counts
        for at in _blocks(len(labels), len(possible)):
            scaled, rows = logits[at] / heat, np.arange(len(labels[at]))
            normal = logsumexp(scaled + bias, axis=1, keepdims=True)
            share = np.exp(scaled + bias - normal)
            total += float(normal.sum() - (scaled + bias)[rows, labels[at]].sum())
            slope += float(scaled[rows, labels[at]].sum() - (share * scaled).sum())
            by_class = by_class + share.sum(0)
        toward = by_class[held] - by_class[held].mean()
        return total + 0.5 * float(parameters @ parameters), np.r_[slope, toward] + parameters

    found = _minimised(cost, 1 + len(held))
    bias = np.zeros(width)
    bias[possible[held]] = found[1:] - found[1:].mean()
    return Calibration(float(np.exp(found[0])), bias)


def fit_sigmoid(logits_NT: Array, labels_NT: Array) -> Calibration:
    """One temperature and a bias a tag, for sigmoids; a label is 1, 0, or NaN where nobody knows.

    It minimises the summed negative log-likelihood plus half the squares of log temperature and of each tag's distance
    to the common bias. This normal prior shrinks a tag by 1 / (1 + sum of p (1 - p)), and the sum is, for a rare tag,
    nearly its number of positives. With under `MIN_ROWS` rows, or labels that are all alike, nothing is changed.
    """
    logits, labels = np.asarray(logits_NT), np.asarray(labels_NT)
    tags = logits.shape[1]
    known = ~np.isnan(labels)
    positives = np.nansum(labels, axis=0, dtype=np.float64)
    if known.any(1).sum() < MIN_ROWS or not 0 < positives.sum() < known.sum():
        return Calibration(1.0, np.zeros(tags))

    def cost(parameters: Floats) -> tuple[float, Floats]:
        heat, bias = np.exp(parameters[0]), parameters[1] + parameters[2:]
        total, slope, by_tag = 0.0, 0.0, np.zeros(tags)
        for at in _blocks(len(labels), tags):
            scaled = logits[at] / heat
            truth, counts = np.nan_to_num(labels[at]), known[at]
            total += float(((np.logaddexp(0, scaled + bias) - truth * (scaled + bias)) * counts).sum())
            error = (expit(scaled + bias) - truth) * counts
            slope -= float((error * scaled).sum())
            by_tag = by_tag + error.sum(0)
        pulled = np.where(np.arange(tags + 2) == 1, 0.0, parameters)  # the common bias has no prior
        return total + 0.5 * float(pulled @ pulled), np.r_[slope, by_tag.sum(), by_tag] + pulled

    found = _minimised(cost, 2 + tags)
    return Calibration(float(np.exp(found[0])), found[1] + found[2:])


def decision_offsets(log_p_NC: Array, labels_N: Array) -> Floats:
    """Offsets (C,) with which argmax(log p + offset) has the highest macro-F1 on these rows.

    One class after another gets the best offset of all (every value at which a row changes sides is tried), until a
    round improves nothing. Of equally good ones the nearest to 0 is taken. All 0 with under `MIN_ROWS` rows. Macro-F1
    is over the classes that the labels have.
    """
    scores, labels = np.maximum(np.asarray(log_p_NC, np.float64), _LOG_FLOOR), np.asarray(labels_N, np.int64)
    classes = scores.shape[1]
    offsets = np.zeros(classes)
    present = np.unique(labels)
    if len(labels) < MIN_ROWS or len(present) < 2:
        return offsets
    best = -1.0
    for _ in range(_ROUNDS):
        before = best
        for at in present:
            found, score = _best_offset(scores + np.where(np.arange(classes) == at, 0, offsets), labels, at, present)
            if score > best + _EQUAL:
                best, offsets[at] = score, found
        if best <= before + _EQUAL:
            break
    return offsets


def tag_thresholds(p_NT: Array, truth_NT: Array) -> tuple[Floats, float]:
    """Thresholds on p, (T,), above which a tag is given, and the common one, for tags that these rows do not know.

    Of n positives, n / (n + 10) of a tag's threshold is its own F1-optimal one, the rest the one that is best for all
    tags together (micro-F1), as log odds. Truth is 1, 0, or NaN where nobody knows. Without any positive: 0.5.
    """
    p, truth = np.asarray(p_NT, np.float64), np.asarray(truth_NT)
    known = ~np.isnan(truth)
    usual = _best_threshold(p[known], truth[known] > 0, 0.5)
    found = np.full(p.shape[1], usual)
    for tag in range(p.shape[1]):
        rows = known[:, tag]
        positives = float(np.nansum(truth[:, tag]))
        if positives:
            own = _best_threshold(p[rows, tag], truth[rows, tag] > 0, usual)
            weight = positives / (positives + _PRIOR_POSITIVES)
            found[tag] = expit(weight * logit(own) + (1 - weight) * logit(usual))
    return found, usual


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CELLS_AT_ONCE // max(1, width))
    return (slice(at, at + step) for at in range(0, rows, step))


def _minimised(cost: Any, width: int) -> Floats:
    bounds = [_TEMPERATURES, *[(None, None)] * (width - 1)]
    found = minimize(cost, np.zeros(width), jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500})
    return np.asarray(found.x, np.float64)


def _best_offset(scores_NC: Floats, labels: npt.NDArray[np.int64], at: int, present: Array) -> tuple[float, float]:
    """The best offset of one class, and its macro-F1, where the others' offsets are in the scores already.

    A row goes to the class where the offset is beyond its margin, so rows in the order of their margins go one by one,
    and each of them leaves the class that it was in.
    """
    others = scores_NC.copy()
    others[:, at] = -np.inf
    second = others.argmax(1)
    margins = others.max(1) - scores_NC[:, at]
    order = np.lexsort((second < at, margins))  # of equal scores argmax takes the first class
    margins, labels, second = margins[order], labels[order], second[order]
    held = np.bincount(labels, minlength=scores_NC.shape[1])
    others_f1, lost = _f1_left(second, labels, held)
    gained = 2 * _running(labels == at) / (np.arange(len(labels) + 1) + held[at])
    offsets = _between(margins)
    offsets[((margins < 0) | ((margins == 0) & (second > at))).sum()] = 0
    scores = np.where(np.isnan(offsets), -1.0, (others_f1 - _running(lost) + gained) / len(present))
    best = scores >= scores.max() - _EQUAL
    choice = np.flatnonzero(best)[np.abs(offsets[best]).argmin()]
    return float(offsets[choice]), float(scores[choice])


def _f1_left(guessed: Array, labels: Array, held_C: Array) -> tuple[float, Floats]:
    """The sum of all classes' F1, and by how much each row lowers it as the rows leave one after another, (N,)."""
    order = np.argsort(guessed, kind="stable")
    classes = guessed[order]
    rows = np.bincount(guessed, minlength=len(held_C))
    right = np.bincount(guessed, guessed == labels, len(held_C))
    hits = (guessed == labels)[order]
    first = np.cumsum(rows) - rows
    before = np.arange(len(order)) - first[classes]  # rows of the class that have left
    hits_before = _running(hits)[:-1] - _running(hits)[first[classes]]
    weight = np.where(held_C > 0, 2.0, 0.0)  # the F1 of a class without labels counts for nothing

    def f1(hits_left: Floats, rows_left: Array) -> Floats:
        left: Floats = weight[classes] * hits_left / np.maximum(rows_left + held_C[classes], 1)
        return left

    hits_left, rows_left = right[classes] - hits_before, rows[classes] - before
    lost = np.empty(len(order))
    lost[order] = f1(hits_left, rows_left) - f1(hits_left - hits, rows_left - 1)
    return float((weight * right / np.maximum(rows + held_C, 1)).sum()), lost


def _between(margins: Floats) -> Floats:
    """An offset beyond the first 0, 1 ... N of the sorted margins, (N + 1,); NaN where a tie admits none."""
    edges = np.r_[margins[0] - 2 * _BEYOND, margins, margins[-1] + 2 * _BEYOND]
    low, high = edges[:-1], edges[1:]
    return np.where(high - low > 2 * _EQUAL, (low + high) / 2, np.nan)


def _running(mask: Array) -> Floats:
    return np.concatenate([[0.0], np.cumsum(mask)])


def _best_threshold(p: Floats, truth: npt.NDArray[np.bool_], near: float) -> float:
    """The F1-optimal threshold for `p >= threshold`, half way between two values of p; of equal ones the nearest to
    `near`, which it is too where nothing is true."""
    if not truth.any():
        return near
    order = np.argsort(-p, kind="stable")
    p, right = p[order], np.cumsum(truth[order])
    last = np.flatnonzero(np.r_[p[1:] < p[:-1], True])  # rows of equal p are above together
    f1 = 2 * right[last] / (last + 1 + truth.sum())
    thresholds = np.clip((p[last] + np.r_[p[1:], 0.0][last]) / 2, _LEAST, 1 - _LEAST)
    best = f1 >= f1.max() - _EQUAL
    return float(thresholds[best][np.abs(thresholds[best] - near).argmin()])
