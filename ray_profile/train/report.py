"""What a training run tells a person: metrics.json, report.md, and pictures.

`metrics` has, for each objective with a head, `{"sentiment" | "tags": {"test": ..., "test_new_items": ..., "baselines":
{name: {score: {"theirs", "ours", "difference", "low", "high"}}}, "calibration": {"before", "after"}}}` (expected
calibration errors of the test rows) with what metrics.classification and metrics.tagging give, and `training` with the
steps, examples and how it ended.
"""

from __future__ import annotations

import json
import math
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
        json.dumps(_finite(whole), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
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
    yield f"| | macro-F1 | {second(test)} | better by (95 % interval, by users) |"
    yield "|---|---|---|---|"
    for cells in compared(found):
        yield f"| {' | '.join(cells).rstrip()} |"
    yield ""
    scaled = found.get("calibration")
    before = f" (before it was scaled {_number(scaled['before'])})" if scaled else ""
    after = f"expected calibration error {_number(test['ece'])}{before}"
    shares = f"a class's mean probability is at most {_number(test['share_error'])} from its share"
    yield f"Probabilities: {after}; {shares}.\n"
    yield "| | | precision | recall | F1 | rows | PR-AUC |"
    yield "|---|---|---|---|---|---|---|"
    each = test.get("classes") or test["tags"]
    places = {label: at for at, label in enumerate(each)}
    for label in sorted(each, key=lambda label: -each[label]["support"])[:MAX_TAGS]:
        row = each[label]
        numbers = " | ".join(_number(row[key]) for key in ("precision", "recall", "f1"))
        yield f"| {places[label]} | {_cell(label)} | {numbers} | {row['support']:,} | {_number(row['pr_auc'])} |"
    yield ""


def compared(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(who, macro-F1, what `second` names, by how much this model is better) of an objective's part of `metrics`, as
    words."""
    test, new = found["test"], found.get("test_new_items") or {}
    yield "this model", *_both(test), ""
    if new.get("rows"):
        yield f"on the {new['rows']:,} of items it has not seen", *_both(new), ""
    for kind, scores in found.get("baselines", {}).items():
        macro = scores["macro_f1"]
        interval = f"{_signed(macro['difference'])} ({_signed(macro['low'])} to {_signed(macro['high'])})"
        other = scores["accuracy"] if "accuracy" in scores else scores["micro_f1"]
        theirs = _number(macro["theirs"]), _number(other["theirs"])
        yield BASELINES.get(kind, kind), *theirs, interval


def second(test: Mapping[str, Any]) -> str:
    """The score beside macro-F1: of one label a row, or of tags of which a row may have several."""
    return "accuracy" if "accuracy" in test else "micro-F1"


def _both(test: Mapping[str, Any]) -> tuple[str, str]:
    if "accuracy" in test:
        return _number(test["macro_f1"]), _number(test["accuracy"])
    return _number(test["macro"]["f1"]), _number(test["micro"]["f1"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _finite(value: Any) -> Any:
    """Of what JSON has: no number (a loss that diverged) is null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return float(value) if math.isfinite(value) else None
