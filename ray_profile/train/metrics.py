"""How good predictions and probabilities are, as plain dicts that go into JSON.

A score that the rows do not define (the recall of a class without rows, anything of no rows) is None. Means over
classes are over those that have rows. Where nothing was predicted, precision is 0.

Axes: N rows, C classes, T tags, G groups, K bins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Score = Callable[[Array, Array], float]

BINS = 15
MAX_CONFUSION = 50  # a square of more tags tells nobody anything
_LEAST = 1e-12  # of a probability whose logarithm is taken
_RESAMPLED_AT_ONCE = 1 << 22  # group draws that are held at a time


def classification(truth_N: Array, p_NC: Array, predicted_N: Array, names: Sequence[str]) -> dict[str, Any]:
    """How well one of C classes was found, and whether the probabilities are right.

    `rows`; `accuracy`; `macro_f1`; `classes`: by name precision, recall, f1, support, predicted, pr_auc (average
    precision), ece and bins; `confusion` (C x C; rows are the truth); `ece` and `bins` of the most probable class (Guo
    et al. 2017, "On calibration of modern neural networks", 15 bins of equal width); `class_ece`, the mean of the
    classes' (Kull et al. 2019, "Beyond temperature scaling"); `nll`, mean -log p of the truth; `share_error`, the
    largest distance of a class's mean probability to its share. A bin is low, high, rows, confidence (mean p) and
    frequency.
    """
    truth, predicted, p = (np.asarray(each) for each in (truth_N, predicted_N, p_NC))
    rows, classes = len(truth), len(names)
    assert p.shape == (rows, classes), (p.shape, rows, classes)
    assert truth.min(initial=0) >= 0, "a row without a label cannot be judged"
    is_it = truth[:, None] == np.arange(classes)
    counts = _Counts.of_labels(truth, predicted, classes).summed()
    shares = is_it.mean(0) if rows else np.zeros(classes)
    top, best = p.argmax(1), p.max(1, initial=0.0)
    bins = _bins(best, top == truth)
    by_class = [_bins(p[:, at], is_it[:, at]) for at in range(classes)]
    eces = [_ece(each) for each in by_class]
    return {
        "rows": rows,
        "accuracy": _known(counts.accuracy()),
        "macro_f1": _known(counts.macro_f1()),
        "classes": {
            name: {**table, "pr_auc": _pr_auc(is_it[:, at], p[:, at]), "ece": eces[at], "bins": by_class[at]}
            for at, (name, table) in enumerate(zip(names, counts.tables(), strict=True))
        },
        "confusion": _confusion(truth, predicted, classes),
        "ece": _ece(bins),
        "class_ece": float(np.mean(eces)) if rows else None,  # type: ignore[arg-type]
        "nll": float(-np.log(np.maximum(p[np.arange(rows), truth], _LEAST)).mean()) if rows else None,
        "share_error": float(np.abs(p.mean(0) - shares).max()) if rows else None,
        "bins": bins,
    }


def tagging(truth_NT: Array, p_NT: Array, thresholds_T: Array, tags: Sequence[str], exclusive: bool) -> dict[str, Any]:
    """How well tags were found. Truth is 1, 0, or NaN where nobody knows; a tag is given where p reaches its threshold.

    `rows` (with anything known); `micro` and `macro`: precision, recall, f1; `tags`: by id precision, recall, f1,
    support, predicted, pr_auc; `coverage`, the share of rows that were given any tag; `ece` and `bins`, of all
    (row, tag) probabilities; `share_error`, the largest distance of a tag's mean probability to its share.
    Where a row has exactly one tag (`exclusive`) also `accuracy` and `macro_f1` of the most probable one, for rows that
    have a tag, `confusion` of at most `MAX_CONFUSION` tags, and `ece` and `bins` are of the most probable tag.
    """
    p, truth = np.asarray(p_NT), np.asarray(truth_NT)
    assert p.shape == truth.shape == (len(truth), len(tags)), (p.shape, truth.shape, len(tags))
    known = ~np.isnan(truth)
    kept = known.any(1)
    p, truth, known = p[kept], truth[kept], known[kept]
    is_it, given = truth > 0, p >= np.asarray(thresholds_T)
    counts = _Counts.of_tags(truth, given).summed()
    columns = [known[:, at] for at in range(len(tags))]
    held = np.maximum(known.sum(0), 1)
    apart = np.abs((np.where(known, p, 0).sum(0) - is_it.sum(0)) / held)
    found: dict[str, Any] = {
        "rows": len(truth),
        "micro": counts.micro(),
        "macro": counts.macro(),
        "tags": {
            tag: {**table, "pr_auc": _pr_auc(is_it[rows, at], p[rows, at])}
            for at, (tag, table, rows) in enumerate(zip(tags, counts.tables(), columns, strict=True))
        },
        "coverage": float(given.any(1).mean()) if len(truth) else None,
        "share_error": float(apart.max()) if known.any() else None,
    }
    bins = _bins(p[known], is_it[known])
    if exclusive:
        one = is_it.any(1)
        top, label = p[one].argmax(1), is_it[one].argmax(1)
        best = _Counts.of_labels(label, top, len(tags)).summed()
        found |= {"accuracy": _known(best.accuracy()), "macro_f1": _known(best.macro_f1())}
        if len(tags) <= MAX_CONFUSION:
            found["confusion"] = _confusion(label, top, len(tags))
        bins = _bins(p[one].max(1, initial=0.0), top == label)
    return {**found, "ece": _ece(bins), "bins": bins}


def macro_f1(truth: Array, predicted: Array) -> float:
    """Mean F1 of the classes (N,) or tags (N, T; NaN unknown) that the truth has; NaN where it has none."""
    return float(_Counts.of(truth, predicted).summed().macro_f1())


def micro_f1(truth_NT: Array, predicted_NT: Array) -> float:
    """F1 of all (row, tag) decisions together; NaN where nothing is true. Of labels (N,) it is the accuracy."""
    return float(_Counts.of(truth_NT, predicted_NT).summed().micro_f1())


def accuracy(truth_N: Array, predicted_N: Array) -> float:
    """The share of labels that are right; NaN of none."""
    return float(_Counts.of(truth_N, predicted_N).summed().accuracy())


#: Of labels (N,), and of tags (N, T).
SCORES: Mapping[str, Score] = {"macro_f1": macro_f1, "accuracy": accuracy}
TAG_SCORES: Mapping[str, Score] = {"macro_f1": macro_f1, "micro_f1": micro_f1}


def paired_bootstrap(
    score: str | Score,
    truth: Array,
    ours: Array,
    theirs: Array,
    groups: Array,
    rounds: int = 2000,
    seed: int = 0,
    classes: int | None = None,
) -> dict[str, float | None]:
    """`difference` = score(truth, ours) - score(truth, theirs), and `low` and `high`, its 95 % interval.

    Whole groups (users) are drawn with replacement, for rows of one person are no independent evidence; the interval is
    between the 2.5 % and 97.5 % percentiles (Efron and Tibshirani 1993, chapter 13). Both predictions are scored on the
    same draws. `score` is a name in `SCORES` or `TAG_SCORES`, which is fast, or a function, which is called twice a
    round. `classes` is how many there are, if more than labels and predictions show. None where there are no rows, and
    for the ends where there are fewer than two groups.
    """
    truth, ours, theirs = np.asarray(truth), np.asarray(ours), np.asarray(theirs)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    assert len(truth) == len(ours) == len(theirs) == len(group), "rows of truth, predictions and groups differ"
    if isinstance(score, str):
        observed, drawn = _fast(score, (truth, ours, theirs), group, len(names), classes, rounds, seed)
    else:
        observed = score(truth, ours) - score(truth, theirs) if len(truth) else np.nan
        drawn = _slow(score, (truth, ours, theirs), group, len(names), rounds, seed)
    drawn = drawn[np.isfinite(drawn)]
    if len(names) < 2 or not len(drawn):
        return {"difference": _known(observed), "low": None, "high": None}
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"difference": _known(observed), "low": float(low), "high": float(high)}


@dataclass(frozen=True)
class _Counts:
    """Of each class or tag (last axis) how often it was predicted and true, predicted, and true."""

    right: Any  # (..., C) or sparse (N, C)
    predicted: Any
    true: Any

    @classmethod
    def of(cls, truth: Array, predicted: Array, classes: int | None = None) -> _Counts:
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.ndim == 2:
            return cls.of_tags(truth, predicted)
        most = max((int(each.max(initial=-1)) for each in (truth, predicted)), default=-1)
        return cls.of_labels(truth, predicted, max(classes or 0, most + 1))

    @classmethod
    def of_labels(cls, truth_N: Array, predicted_N: Array, classes: int) -> _Counts:
        right = truth_N == predicted_N
        return cls(_one_hot(truth_N, classes, right), _one_hot(predicted_N, classes), _one_hot(truth_N, classes))

    @classmethod
    def of_tags(cls, truth_NT: Array, predicted_NT: Array) -> _Counts:
        true = truth_NT > 0  # NaN > 0 is false
        given = predicted_NT.astype(bool) & ~np.isnan(truth_NT)
        return cls(*(sparse.csr_matrix(each, dtype=np.float64) for each in (true & given, given, true)))

    def summed(self, weights_RG: Array | None = None) -> _Counts:
        """Over the rows, (C,); or over groups as often as they were drawn, (R, C), where these are sums by group."""
        parts = (self.right, self.predicted, self.true)
        if weights_RG is None:
            return _Counts(*(np.asarray(each.sum(0), np.float64).reshape(-1) for each in parts))
        return _Counts(*((each.T @ weights_RG.T).T for each in parts))

    def by_group(self, group_N: Array, groups: int) -> _Counts:
        """Sums of the rows of each group, sparse (G, C)."""
        rows = np.arange(len(group_N))
        member = sparse.csr_matrix((np.ones(len(rows)), (group_N, rows)), shape=(groups, len(rows)))
        return _Counts(*(member @ each for each in (self.right, self.predicted, self.true)))

    def f1(self) -> Floats:
        """(..., C), NaN for a class that is never true."""
        return _ratio(2 * self.right, np.where(self.true > 0, self.predicted + self.true, 0))

    def macro_f1(self) -> Floats:
        held = self.true > 0
        return _ratio(np.where(held, np.nan_to_num(self.f1()), 0).sum(-1), held.sum(-1))

    def micro_f1(self) -> Floats:
        whole = self.true.sum(-1)
        return _ratio(2 * self.right.sum(-1), np.where(whole > 0, self.predicted.sum(-1) + whole, 0))

    def accuracy(self) -> Floats:
        return _ratio(self.right.sum(-1), self.true.sum(-1))

    def micro(self) -> dict[str, float | None]:
        whole = _Counts(*(np.array([each.sum()]) for each in (self.right, self.predicted, self.true)))
        table = next(whole.tables())
        return {name: table[name] for name in ("precision", "recall", "f1")}

    def macro(self) -> dict[str, float | None]:
        tables = [table for table in self.tables() if table["support"]]
        names = ("precision", "recall", "f1")
        return {name: float(np.mean([table[name] for table in tables])) if tables else None for name in names}

    def tables(self) -> Iterator[dict[str, Any]]:
        """Of each class precision, recall, f1, support and predicted."""
        f1 = self.f1()
        for at in range(len(self.true)):
            right, guessed, true = (float(each[at]) for each in (self.right, self.predicted, self.true))
            yield {
                "precision": right / guessed if guessed else 0.0,
                "recall": right / true if true else None,
                "f1": _known(f1[at]),
                "support": int(true),
                "predicted": int(guessed),
            }


_BY_NAME: Mapping[str, Callable[[_Counts], Floats]] = {
    "macro_f1": _Counts.macro_f1,
    "micro_f1": _Counts.micro_f1,
    "accuracy": _Counts.accuracy,
}


def _fast(
    name: str, data: tuple[Array, Array, Array], group: Array, groups: int, classes: int | None, rounds: int, seed: int
) -> tuple[float, Floats]:
    """The observed difference, and those of the draws (R,): sums by group are enough, so no draw touches a row."""
    truth, *guesses = data
    sides = [_Counts.of(truth, guess, classes) for guess in guesses]
    measured = [_BY_NAME[name](side.summed()) for side in sides]
    by_group = [side.by_group(group, groups) for side in sides]
    drawn = []
    for weights in _draws(groups, rounds, seed):
        ours, theirs = (_BY_NAME[name](side.summed(weights)) for side in by_group)
        drawn.append(ours - theirs)
    return float(measured[0] - measured[1]), np.concatenate(drawn) if drawn else np.empty(0)


def _slow(score: Score, data: tuple[Array, Array, Array], group: Array, groups: int, rounds: int, seed: int) -> Floats:
    order = np.argsort(group, kind="stable")
    drawn = []
    for weights in _draws(groups, rounds, seed):
        for weight in weights:
            truth, ours, theirs = (each[np.repeat(order, weight[group[order]].astype(int))] for each in data)
            drawn.append(score(truth, ours) - score(truth, theirs))
    return np.asarray(drawn, np.float64)


def _draws(groups: int, rounds: int, seed: int) -> Iterator[Floats]:
    """How often each group was drawn, (R, G), some rounds at a time, `rounds` in all."""
    random = np.random.default_rng(seed)
    step = max(1, _RESAMPLED_AT_ONCE // max(1, groups))
    for first in range(0, rounds if groups else 0, step):
        count = min(step, rounds - first)
        cells = random.integers(groups, size=(count, groups)) + groups * np.arange(count)[:, None]
        yield np.bincount(cells.reshape(-1), minlength=count * groups).reshape(count, groups).astype(np.float64)


def _bins(p: Array, truth: Array) -> list[dict[str, Any]]:
    """The bins that hold anything; the right edge belongs to a bin, as in Guo et al."""
    at = np.clip(np.ceil(np.asarray(p, np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    rows = np.bincount(at, minlength=BINS)
    confidence = np.bincount(at, np.asarray(p, np.float64), BINS) / np.maximum(rows, 1)
    frequency = np.bincount(at, np.asarray(truth, np.float64), BINS) / np.maximum(rows, 1)
    return [
        {
            "low": each / BINS,
            "high": (each + 1) / BINS,
            "rows": int(rows[each]),
            "confidence": float(confidence[each]),
            "frequency": float(frequency[each]),
        }
        for each in np.flatnonzero(rows).tolist()
    ]


def _ece(bins: Sequence[Mapping[str, Any]]) -> float | None:
    rows = sum(each["rows"] for each in bins)
    return sum(each["rows"] * abs(each["confidence"] - each["frequency"]) for each in bins) / rows if rows else None


def _pr_auc(truth: Array, p: Array) -> float | None:
    """Average precision; None where nothing is true."""
    if not truth.any():
        return None
    from sklearn.metrics import average_precision_score  # a second of every worker's start, and only a report needs it

    return float(average_precision_score(truth, p))


def _confusion(truth: Array, predicted: Array, classes: int) -> list[list[int]]:
    table: list[list[int]] = (
        np.bincount(truth * classes + predicted, minlength=classes**2).reshape(-1, classes).tolist()
    )
    return table


def _one_hot(labels_N: Array, classes: int, kept: Array | None = None) -> Any:
    """Sparse (N, C); rows that are not kept are 0."""
    rows = np.arange(len(labels_N)) if kept is None else np.flatnonzero(kept)
    ones = np.ones(len(rows))
    return sparse.csr_matrix((ones, (rows, labels_N[rows])), shape=(len(labels_N), classes))


def _ratio(above: Array, below: Array) -> Floats:
    """NaN where `below` is 0."""
    found = np.full(np.shape(below), np.nan)
    np.divide(above, below, out=found, where=np.asarray(below) > 0)
    return found


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
