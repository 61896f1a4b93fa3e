"""From raw heads to calibrated ones, and how good they are on people that training has not seen.

Everything is done on the unit vectors that the finished encoder gives, as `build` will see them. Heads are calibrated
on the validation users at their natural frequencies and judged on the test users.

Axes: N rows, D width, C classes, T tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from ray_profile.encode.heads import SENTIMENTS, Odds, Probe
from ray_profile.encode.trained import TrainedTags
from ray_profile.train import baselines, calibrate, metrics
from ray_profile.train.examples import tag_matrix
from ray_profile.train.model import SENTIMENT_SCALE

Floats = npt.NDArray[np.floating[Any]]
Weights = Mapping[str, torch.Tensor]

LEAST = 1e-6  # of a threshold: a tag with no probability at all is not given


@dataclass(frozen=True)
class Judged:
    """Rows of one split: their labels, and their vectors by the finished encoder and by the one it came from."""

    rows: pl.DataFrame  # id, user_id, item_id, text, sentiment, tags
    vectors: npt.NDArray[np.float16]
    before: npt.NDArray[np.float16] | None = None

    @property
    def sentiment(self) -> npt.NDArray[np.int64]:
        """(N,), -1 where nobody rated."""
        return self.rows["sentiment"].fill_null(-1).cast(pl.Int64).to_numpy()

    def tags(self, count: int) -> Floats:
        """(N, T), 1 for a tag of the row; NaN in rows that nobody tagged."""
        return tag_matrix(self.rows["tags"], count)

    def where(self, mask: npt.NDArray[np.bool_]) -> Judged:
        """Some of the rows."""
        before = None if self.before is None else self.before[mask]
        return Judged(self.rows.filter(pl.Series(mask)), self.vectors[mask], before)


@dataclass(frozen=True)
class Splits:
    """What heads are calibrated and judged on; `train` is for the baselines."""

    train: Judged
    validation: Judged
    test: Judged
    seen_items: frozenset[str]  # of the train split

    @property
    def is_new(self) -> npt.NDArray[np.bool_]:
        """(N,): test rows of an item that the train split does not have; a row without an item is of no new one."""
        items = self.test.rows["item_id"]
        return (items.is_not_null() & ~items.is_in(list(self.seen_items)).fill_null(False)).to_numpy()


@dataclass(frozen=True)
class Sentiment:
    """The sentiment head as a probe on unit vectors, with calibrated probabilities, and as training left it."""

    probe: Probe
    offsets: Floats  # (3,), added to log p where one class is to be named
    as_trained: Probe


@dataclass(frozen=True)
class Tags:
    """The tag head with calibrated probabilities, and the odds as training left them."""

    head: TrainedTags
    as_trained: Odds


def sentiment_head(weights: Weights, drawn: Floats, natural: Floats, of: Judged) -> Sentiment:
    """The trained sentiment head, corrected for the classes' shares in training and calibrated on validation rows.

    `drawn` and `natural` are the shares of the classes in training and among all rows. A class that training had no row
    of keeps a bias of minus infinity.
    """
    scaled = weights["sentiment.linear.weight"].numpy() * SENTIMENT_SCALE
    learnt = weights["sentiment.linear.bias"].numpy()
    bias = learnt + calibrate.prior_shift(natural, drawn)
    known = of.sentiment >= 0
    logits = of.vectors[known].astype(np.float32) @ scaled.T + bias
    fitted = calibrate.fit_softmax(logits, of.sentiment[known])
    final = np.where(natural > 0, fitted.apply(bias[None])[0], -np.inf)
    probe = Probe((scaled / fitted.temperature).astype(np.float32), final.astype(np.float32), {})
    chances = np.log(np.maximum(probe.predict(of.vectors[known]), 1e-12))
    offsets = calibrate.decision_offsets(chances, of.sentiment[known])
    return Sentiment(probe, offsets, Probe(scaled.astype(np.float32), learnt.astype(np.float32), {}))


def tag_head(weights: Weights, ids: Sequence[str], texts_TD: Floats, exclusive: bool, of: Judged) -> Tags:
    """The trained tag head, calibrated on validation rows, with thresholds; `texts_TD` are `heads.tag_vectors`."""
    residual = weights["tags.residual"].numpy()
    scale = float(weights["tags.log_scale"].exp())
    common = float(weights["tags.common_bias"])
    bias = weights["tags.bias"].numpy() + common
    truth = of.tags(len(ids))
    known = ~np.isnan(truth).any(1)
    products = of.vectors[known].astype(np.float32) @ (texts_TD + residual).T
    logits = scale * products + bias
    truth = truth[known]
    if exclusive:
        one = truth.sum(1) > 0
        fitted = calibrate.fit_softmax(logits[one], truth[one].argmax(1))
    else:
        fitted = calibrate.fit_sigmoid(logits, truth)
    final = fitted.apply(bias[None])[0].astype(np.float32)
    learnt = Odds(scale, bias.astype(np.float32), "softmax" if exclusive else "sigmoid")
    odds = Odds(scale / fitted.temperature, final, learnt.activation)
    thresholds, usual = calibrate.tag_thresholds(odds(products), truth)
    head = TrainedTags(
        ids=tuple(ids),
        residual=residual.astype(np.float32),
        bias=final,
        threshold=np.maximum(np.asarray(thresholds, np.float32), LEAST),
        scale=odds.scale,
        default_bias=float(common / fitted.temperature + np.median(fitted.bias)),
        default_threshold=max(float(usual), LEAST),
        activation=odds.activation,
    )
    return Tags(head, learnt)


def sentiment_report(of: Sentiment, splits: Splits) -> dict[str, Any]:
    """`report.write`'s "sentiment": the test rows, those of new items, the calibration, and the baselines beside."""
    known = splits.test.sentiment >= 0
    test = splits.test.where(known)
    chances = of.probe.predict(test.vectors)
    guessed = (np.log(np.maximum(chances, 1e-12)) + of.offsets).argmax(1)
    truth, new = test.sentiment, splits.is_new[known]
    raw = metrics.classification(truth, of.as_trained.predict(test.vectors), guessed, SENTIMENTS)
    found: dict[str, Any] = {
        "test": metrics.classification(truth, chances, guessed, SENTIMENTS),
        "test_new_items": metrics.classification(truth[new], chances[new], guessed[new], SENTIMENTS),
    }
    found["calibration"] = {"before": raw["ece"], "after": found["test"]["ece"]}
    train = splits.train.where(splits.train.sentiment >= 0)
    rivals = _rivals(train, train.sentiment, test, baselines.tfidf_svm, baselines.frozen_probe)
    found["baselines"] = _compared(rivals, metrics.SCORES, test, truth, guessed, len(SENTIMENTS))
    return found


def tags_report(of: Tags, texts_TD: Floats, exclusive: bool, splits: Splits) -> dict[str, Any]:
    """`report.write`'s "tags"."""
    tags = of.head
    truth = splits.test.tags(len(tags.ids))
    known = ~np.isnan(truth).any(1) & ((truth.sum(1) > 0) | (not exclusive))
    test, truth = splits.test.where(known), truth[known]
    new = splits.is_new[known]
    matrix = tags.over(tags.ids, texts_TD)
    chances = matrix.scores(test.vectors)
    raw = replace(matrix, odds=of.as_trained).scores(test.vectors)
    found: dict[str, Any] = {
        "test": metrics.tagging(truth, chances, tags.threshold, tags.ids, exclusive),
        "test_new_items": metrics.tagging(truth[new], chances[new], tags.threshold, tags.ids, exclusive),
    }
    before = metrics.tagging(truth, raw, tags.threshold, tags.ids, exclusive)
    found["calibration"] = {"before": before["ece"], "after": found["test"]["ece"]}
    labels = splits.train.tags(len(tags.ids))
    rows = ~np.isnan(labels).any(1) & ((labels.sum(1) > 0) | (not exclusive))
    train, labels = splits.train.where(rows), labels[rows]
    if exclusive:
        rivals = _rivals(train, labels.argmax(1), test, baselines.tfidf_svm, baselines.frozen_probe)
        ours = chances.argmax(1)
        found["baselines"] = _compared(rivals, metrics.SCORES, test, truth.argmax(1), ours, len(tags.ids))
    else:
        rivals = _rivals(train, labels, test, baselines.tfidf_svm_tags, baselines.frozen_probe_tags)
        found["baselines"] = _compared(rivals, metrics.TAG_SCORES, test, truth, chances >= tags.threshold)
    return found


def _rivals(train: Judged, labels: Any, test: Judged, by_words: Any, by_vectors: Any) -> dict[str, Any]:
    """What words alone, and the encoder as it was, make of the test rows after the same train rows."""
    if not train.rows.height:
        return {}
    rivals = {"tfidf_svm": by_words(train.rows["text"].to_list(), labels, test.rows["text"].to_list())}
    if train.before is not None and test.before is not None:
        rivals["frozen"] = by_vectors(train.before, labels, test.before)
    return rivals


def _compared(
    rivals: Mapping[str, Any],
    scores: Mapping[str, metrics.Score],
    test: Judged,
    truth: Any,
    ours: Any,
    classes: int | None = None,
) -> dict[str, Any]:
    """How much better ours is than each, by each score, with an interval over users."""
    users = test.rows["user_id"].to_numpy()
    return {
        name: {
            score: {
                "theirs": measure(truth, theirs),
                "ours": measure(truth, ours),
                **metrics.paired_bootstrap(score, truth, ours, theirs, users, classes=classes),
            }
            for score, measure in scores.items()
        }
        for name, theirs in rivals.items()
    }
