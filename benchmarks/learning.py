"""How good trained models are on people that training has not seen, beside baselines fitted to the same split.

    python benchmarks/learning.py [amazon_musical|amazon_2023|shopping_zh ...] [--full] [--data ...] [--out ...]

Each set goes through `ray-profile train` as a person would run it. amazon_musical: sentiment from stars, three classes;
amazon_2023: the items' main_category from the review's text alone; both by five folds over users (the short form: one).
shopping_zh: sentiment (given labels) and ten categories of deduplicated Chinese reviews with multilingual-e5-small, one
split, one seed; then the same model on English reviews. Baselines: TF-IDF and a linear SVM; the encoder as it was and a
linear probe.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from sklearn.metrics import f1_score

from ray_profile.config import Encoder, parse
from ray_profile.encode.heads import sentiment_of_stars
from ray_profile.encode.text import TextEncoder
from ray_profile.encode.trained import Heads
from ray_profile.pipelines.train import Summary, train

FOLDS = 5


def main() -> None:
    parser = measuring.arguments(__doc__ or "")
    parser.add_argument("sets", nargs="*", default=list(SETS), help="which sets")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as made:
        for name in args.sets:
            found = SETS[name](args.data, Path(made) / name, args.full)
            Console().print(name, table_of(found))
            body = {"what": f"{name}: {__doc__}", "machine": measuring.machine("torch", "deepspeed", "ray"), **found}
            measuring.finish(f"learning_{name}", body, found["scores"], args.out, args.full)


def musical(data: Path, folder: Path, full: bool) -> dict[str, Any]:
    """3-way sentiment of Amazon Musical Instruments."""
    source = {"format": "amazon-2014", "paths": [str(data / "amazon_musical" / "reviews.parquet")]}
    told = {"objectives": {"sentiment": 1.0}, "epochs": 3, "learning_rate": 5e-5}
    return folded(folder, {"reviews": source}, told, "sentiment", FOLDS if full else 1)


def amazon_2023(data: Path, folder: Path, full: bool) -> dict[str, Any]:
    """The category of a review's item, from its text alone."""
    sources = {
        "reviews": {"format": "amazon-2023", "paths": [str(data / "amazon_2023" / "reviews.parquet")]},
        "items": {"format": "amazon-2023-items", "paths": [str(data / "amazon_2023" / "items.parquet")]},
    }
    told = {"objectives": {"tags": 1.0, "sentiment": 0.5, "contrast": 0.5}, "epochs": 6, "learning_rate": 5e-5}
    return folded(folder, sources, told, "tags", FOLDS if full else 1)


def folded(
    folder: Path, sources: Mapping[str, Any], told: Mapping[str, Any], objective: str, folds: int
) -> dict[str, Any]:
    """One run a fold of the users; means and spreads of the folds' test users, all of them once."""
    runs = []
    for fold in range(folds):
        settings = {**COMMON, **told, "split": [72, 8, 20], "fold": fold}
        runs.append(trained(folder / f"fold-{fold}", sources, settings, {}))
    kinds = {"ours": [run.metrics[objective]["test"] for run in runs]}
    scores: dict[str, float] = {}
    for score in ("macro_f1", "accuracy"):
        values = [test[score] for test in kinds["ours"]]
        scores |= {score: float(np.mean(values)), f"{score}_sd": float(np.std(values))}
        for name in ("tfidf_svm", "frozen"):
            beside = [run.metrics[objective]["baselines"][name][score] for run in runs]
            scores[f"{score}_{name}"] = float(np.mean([each["theirs"] for each in beside]))
            scores[f"{score}_over_{name}"] = float(np.mean([each["difference"] for each in beside]))
            scores[f"{score}_over_{name}_low"] = float(np.mean([each["low"] for each in beside]))
    return {"settings": dict(told), "folds": folds, "scores": scores, "runs": [_kept(run) for run in runs]}


def shopping_zh(data: Path, folder: Path, full: bool) -> dict[str, Any]:
    """Chinese reviews: sentiment and category; then the same model on English stars."""
    rows = pl.read_parquet(data / "shopping_zh" / "reviews.parquet").drop_nulls("review")
    rows = rows.filter(pl.col("review").str.strip_chars() != "").unique("review", keep="first", maintain_order=True)
    rows = rows if full else rows.sample(6_000, seed=0)
    rows = rows.select(
        pl.int_range(pl.len()).cast(pl.String).alias("id"), "cat", "label", "review", pl.lit(1_577_836_800).alias("ts")
    )
    folder.mkdir(parents=True)
    rows.select("id", "ts", "review").write_parquet(folder / "reviews.parquet")
    rows.select("id", "cat", "label").write_parquet(folder / "labels.parquet")
    columns = {"id": "id", "user_id": "id", "ts": "ts", "text": "review"}
    source = {"format": "columns", "kind": "review", "columns": columns, "paths": [str(folder / "reviews.parquet")]}
    labels = {"paths": [str(folder / "labels.parquet")], "columns": {"id": "id", "sentiment": "label", "tags": "cat"}}
    told = {"objectives": {"sentiment": 1.0, "tags": 1.0}, "epochs": 2, "learning_rate": 2e-4, "labels": labels}
    settings = {**COMMON, **told, "split": [76, 4, 20]}
    encoder = {"model": str(data.parent / "models" / "multilingual-e5-small-zh-en"), "prefix": "query: "}
    run = trained(folder / "root", {"reviews": {**source, "max_quarantine": 0.05}}, settings, encoder)
    scores = {
        "sentiment_accuracy": run.metrics["sentiment"]["test"]["accuracy"],
        "category_accuracy": run.metrics["tags"]["test"]["accuracy"],
    }
    for objective, name in (("sentiment", "sentiment"), ("tags", "category")):
        for kind, each in run.metrics[objective]["baselines"].items():
            scores[f"{name}_accuracy_{kind}"] = each["accuracy"]["theirs"]
            scores[f"{name}_accuracy_over_{kind}_low"] = each["accuracy"]["low"]
    scores |= english(data, run, encoder)
    return {"settings": {**told, "labels": None}, "scores": scores, "runs": [_kept(run)]}


def english(data: Path, run: Summary, encoder: Mapping[str, str]) -> dict[str, float]:
    """What a head trained on Chinese makes of English stars (3 stars left out, as training had no neutral ones)."""
    rows = pl.read_parquet(data / "womens_clothing" / "reviews.parquet").drop_nulls("Review Text")
    rows = rows.filter(pl.col("Rating") != 3).sample(3_000, seed=0)
    truth = sentiment_of_stars(rows["Rating"]).argmax(1)
    model = TextEncoder.load(Encoder(**{**encoder, "model": run.address}, max_length=COMMON["max_length"]))
    heads = Heads.read(Path(run.address))
    assert heads is not None
    assert heads.sentiment is not None
    p = heads.sentiment.predict(model.encode(rows["Review Text"]).vectors)
    guess = np.where(p[:, 2] >= p[:, 0], 2, 0)
    return {
        "english_macro_f1": float(f1_score(truth, guess, average="macro")),
        "english_accuracy": float((truth == guess).mean()),
        "english_majority": float(max(np.mean(truth == 2), np.mean(truth == 0))),
    }


def trained(
    folder: Path, sources: Mapping[str, Any], settings: Mapping[str, Any], encoder: Mapping[str, Any]
) -> Summary:
    """One `ray-profile train`."""
    return train(parse({"root": str(folder), "sources": sources, "encoder": encoder, "train": settings}))


def _kept(run: Summary) -> dict[str, Any]:
    told = {"steps": run.steps, "ended": run.ended, "seconds": run.seconds, "stages": run.stages}
    return {**told, "metrics": json.loads(json.dumps(run.metrics, default=float))}


def table_of(found: Mapping[str, Any]) -> Table:
    table = Table("score", "value")
    for name, value in found["scores"].items():
        table.add_row(name, f"{value:.4f}")
    return table


COMMON: dict[str, Any] = {"workers": 2, "max_length": 128, "tokens_per_batch": 2048, "dropout": 0.0}
SETS: dict[str, Callable[[Path, Path, bool], dict[str, Any]]] = {
    "amazon_musical": musical,
    "amazon_2023": amazon_2023,
    "shopping_zh": shopping_zh,
}

if __name__ == "__main__":
    main()
