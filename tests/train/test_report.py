"""Baselines that are no straw men, and a report that holds also of little."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ray_profile.train import baselines, metrics, report


def test_words_alone_learn_words_in_both_languages() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 300)
    for kinds in (("broken refund", "lovely gift"), ("质量很差要退货", "非常喜欢推荐购买")):
        texts = [f"{kinds[label]} {random.integers(100)}" for label in labels]
        guess = baselines.tfidf_svm(texts[:200], labels[:200], texts[200:])
        assert (guess == labels[200:]).mean() > 0.95


def test_a_probe_learns_a_plane() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(400, 8)).astype(np.float16)
    labels = (vectors[:, 0] > 0).astype(int)
    guess = baselines.frozen_probe(vectors[:300], labels[:300], vectors[300:])
    assert (guess == labels[300:]).mean() > 0.9


def test_one_class_alone_is_what_is_said() -> None:
    assert baselines.tfidf_svm(["a", "b"], np.array([2, 2]), ["c"]).tolist() == [2]
    assert baselines.frozen_probe(np.ones((2, 4)), np.array([1, 1]), np.ones((3, 4))).tolist() == [1, 1, 1]


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 60)
    p = random.dirichlet([1, 1, 1], 60)
    test = metrics.classification(truth, p, p.argmax(1), ("negative", "neutral", "positive"))
    row = {"theirs": 0.4, "ours": 0.5, "difference": 0.1, "low": 0.05, "high": 0.15}
    hot = np.eye(3)[truth]
    found = {
        "sentiment": {
            "test": test,
            "test_new_items": test,
            "baselines": {"frozen": {"macro_f1": row, "accuracy": row}},
        },
        "tags": {"test": metrics.tagging(hot, p, np.full(3, 0.4), ("书籍", "tea", "tents"), True)},
        "training": {"steps": 9, "examples": 90, "ended": "finished", "best_score": 0.5, "best_step": 6},
    }
    curves = [{"step": 3.0, "loss": 2.0}, {"step": 3.0, "score": 0.5, "validation_sentiment": 0.5}]
    files = report.write(tmp_path / "report", found, curves)
    assert {file.suffix for file in files} == {".json", ".md", ".png"}
    assert all(file.stat().st_size for file in files)
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "+0.100 (+0.050 to +0.150)" in text
    assert "书籍" in text
    assert json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))["curves"] == curves


def test_a_report_of_nothing_is_one_too(tmp_path: Path) -> None:
    none = metrics.classification(
        np.zeros(0, int), np.zeros((0, 3)), np.zeros(0, int), ("negative", "neutral", "positive")
    )
    files = report.write(tmp_path, {"sentiment": {"test": none}}, [])
    assert [file.name for file in files] == ["metrics.json", "report.md"]


def test_what_is_unknown_is_a_dash_and_names_stay_in_their_cells(tmp_path: Path) -> None:
    """One user gives no interval, a diverged loss no number, and a tag may have a bar in its name."""
    one = {"theirs": 0.4, "ours": 0.5, **metrics.paired_bootstrap("accuracy", [0], [0], [0], ["me"])}
    test = metrics.tagging(np.eye(2), np.eye(2), np.full(2, 0.5), ("a|b", "tea"), exclusive=False)
    found = {"tags": {"test": test, "baselines": {"of_ours": {"macro_f1": one, "micro_f1": one}}}}
    report.write(tmp_path, found, [{"step": 1.0, "loss": float("nan")}])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| of_ours | 0.400 | 0.400 | +0.000 (- to -) |" in text
    assert "| this model | 1.000 | 1.000 | |" in text
    assert "| 0 | a\\|b | 1.000 |" in text
    curves = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)["curves"]
    assert curves == [{"step": 1.0, "loss": None}]
