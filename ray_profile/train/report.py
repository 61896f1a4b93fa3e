"""What a training run tells a person: metrics.json, report.md, and pictures.

`metrics` has, for each objective with a head, `{"sentiment" | "tags": {"test": ..., "test_new_items": ..., "baselines":
{name: {score: {"theirs", "ours", "difference", "low", "high"}}}, "calibration": {"before", "after"}}}` with what
metrics.classification and metrics.tagging give, and `training` with the steps, examples and how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_profile.encode.heads import SENTIMENTS
from ray_profile.train import charts

BASELINES = {"tfidf_svm": "TF-IDF and a linear SVM", "frozen": "the encoder as it was, and a linear probe"}
MAX_TAGS = 60


def write(folder: Path, metrics: Mapping[str, Any], curves: Sequence[Mapping[str, float]]) -> list[Path]:
    """Write the report into a folder; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**metrics, "curves": list(curves)}
    (folder / "metrics.json").write_text(
        json.dumps(whole, ensure_ascii=False, indent=1, default=float), encoding="utf-8"
    )
    pictures = list(_pictures(folder, metrics, curves))
    text = "\n".join(_lines(metrics, [path.name for path in pictures]))
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    return [folder / "metrics.json", folder / "report.md", *pictures]


def _pictures(folder: Path, metrics: Mapping[str, Any], curves: Sequence[Mapping[str, float]]) -> Iterator[Path]:
    names = sorted({name for point in curves for name in point})
    for stem, kept, ylabel in (
        ("losses", [name for name in names if name.startswith("loss")], "loss"),
        ("scores", [name for name in names if name.startswith("validation_") or name == "score"], "validation score"),
    ):
        if kept:
            charts.curves(curves, kept, ylabel, folder / f"{stem}.png")
            yield folder / f"{stem}.png"
    for objective in ("sentiment", "tags"):
        test = metrics.get(objective, {}).get("test", {})
        if not test.get("rows"):
            continue
        charts.reliability(test["bins"], f"{objective}: what was said first", folder / f"{objective}-reliability.png")
        yield folder / f"{objective}-reliability.png"
        if test.get("confusion"):
            labels = list(SENTIMENTS) if objective == "sentiment" else list(test["tags"])
            charts.confusion(test["confusion"], labels, folder / f"{objective}-confusion.png")
            yield folder / f"{objective}-confusion.png"
    if metrics.get("tags", {}).get("test", {}).get("rows"):
        charts.tag_scores(metrics["tags"]["test"]["tags"], folder / "tags-f1.png")
        yield folder / "tags-f1.png"


def _lines(metrics: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    yield "# How good the model is on people it has not seen\n"
    if told := metrics.get("training"):
        yield f"{told['steps']:,} steps over {told['examples']:,} examples; {told['ended']}. Best score "
        yield f"{told['best_score']:.3f} on validation users, at step {told['best_step']:,}, whose weights it has.\n"
    for objective in ("sentiment", "tags"):
        if objective in metrics:
            yield from _objective(objective, metrics[objective])
    for name in pictures:
        yield f"![{name}]({name})\n"


def _objective(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    test = found["test"]
    yield f"## {name}: {test['rows']:,} reviews of test users\n"
    yield "| | macro-F1 | accuracy | better by (95 % interval, by users) |"
    yield "|---|---|---|---|"
    yield f"| this model | {_number(test.get('macro_f1'))} | {_number(test.get('accuracy'))} | |"
    new = found.get("test_new_items") or {}
    if new.get("rows"):
        cells = f"{_number(new.get('macro_f1'))} | {_number(new.get('accuracy'))}"
        yield f"| on the {new['rows']:,} of items it has not seen | {cells} | |"
    for kind, scores in found.get("baselines", {}).items():
        macro, accuracy = scores["macro_f1"], scores["accuracy"]
        interval = f"{macro['difference']:+.3f} ({macro['low']:+.3f} to {macro['high']:+.3f})"
        yield f"| {BASELINES[kind]} | {_number(macro['theirs'])} | {_number(accuracy['theirs'])} | {interval} |"
    yield ""
    after = f"expected calibration error {_number(test['ece'])}"
    shares = f"a class's mean probability is at most {_number(test['share_error'])} from its share"
    yield f"Probabilities: {after}; {shares}.\n"
    yield "| | precision | recall | F1 | rows | PR-AUC |"
    yield "|---|---|---|---|---|---|"
    each = test.get("classes") or test["tags"]
    for label in sorted(each, key=lambda label: -each[label]["support"])[:MAX_TAGS]:
        row = each[label]
        numbers = " | ".join(_number(row[key]) for key in ("precision", "recall", "f1"))
        yield f"| {label} | {numbers} | {row['support']:,} | {_number(row['pr_auc'])} |"
    yield ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
