"""`train` through Ray: a model that `build` uses comes out, and an interrupted run repeats and leaves out nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import traces

from ray_profile.config import Config
from ray_profile.errors import ConfigError, SourceError, TrainingDiverged
from ray_profile.pipelines.build import build
from ray_profile.pipelines.train import Summary, train
from ray_profile.sources.simulate import Shop
from ray_profile.store.root import Root
from ray_profile.store.tables import Table, read_files

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_here")]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Shop:
    """Enough customers for every split."""
    return tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder, customers=150)


def config_of(shop: Shop, root: Path, *overrides: str) -> Config:
    return tiny.config_of(shop, root, *traces.FAST, *overrides)


@pytest.fixture(scope="module")
def trained(shop: Shop, tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> tuple[Path, Summary, Path]:  # noqa: ARG001
    """A root with a model, how it came about, and what each step trained on."""
    root, trace = tmp_path_factory.mktemp("trained") / "root", tmp_path_factory.mktemp("trace")
    return root, train(config_of(shop, root), trace=str(trace)), trace


def test_everybody_is_on_one_side_and_every_review_with_text_on_some(trained: Any, shop: Shop) -> None:
    root, _, _ = trained
    corpus = traces.corpus_of(config_of(shop, root))
    rows = pl.concat(
        [corpus.rows(split, ("id", "user_id", "split", "text")) for split in ("train", "validation", "test")]
    )
    assert rows.group_by("user_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert not rows["id"].is_duplicated().any()
    assert rows["text"].null_count() == 0
    assert corpus.counts["train"]["rows"] > corpus.counts["test"]["rows"] > 0


def test_both_workers_train_on_every_batch_once_an_epoch(trained: Any, shop: Shop) -> None:
    root, _, trace = trained
    found = traces.traced(trace)
    assert all(len(times) == 1 for times in found.values())
    assert Counter(epoch for epoch, _ in found) == traces.planned(config_of(shop, root))
    assert len(list(trace.glob("*.jsonl"))) == 2


def test_the_model_is_a_folder_that_others_load(trained: Any) -> None:
    from sentence_transformers import SentenceTransformer

    from ray_profile.config import Encoder
    from ray_profile.encode.text import TextEncoder

    _, summary, _ = trained
    texts = ["a fine tent", "茶很好喝"]
    theirs = SentenceTransformer(summary.address, device="cpu").encode(texts, normalize_embeddings=True)
    ours = TextEncoder.load(Encoder(model=summary.address, max_length=64, dtype="float32"), "cpu").encode(
        pl.Series(texts)
    )
    assert (theirs * ours.vectors).sum(1).min() > 0.999
    assert not [path for path in Path(summary.address).rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_report_says_how_good_it_is_and_against_what(trained: Any) -> None:
    _, summary, _ = trained
    report = Path(summary.address) / "report"
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["sentiment"]["test"]["rows"] > 0
    assert set(metrics["sentiment"]["baselines"]) == {"tfidf_svm", "frozen"}
    assert (report / "report.md").is_file()
    assert list(report.glob("*.png"))


def test_the_same_command_again_finds_the_model(trained: Any, shop: Shop) -> None:
    root, summary, _ = trained
    again = train(config_of(shop, root))
    assert not again.trained
    assert again.digest == summary.digest
    assert again.metrics.keys() == summary.metrics.keys()


def test_build_uses_the_model(trained: Any, shop: Shop) -> None:
    root, _, _ = trained
    config = config_of(shop, root, 'encoder.model="root:encoder"', "encoder.max_length=64")
    build(config, local=True, clock=tiny.CLOCK)
    table = Table(Root.existing(str(root)), "profiles")
    handle = table.open()
    assert handle is not None
    found = pl.DataFrame(read_files(table, handle.files()))
    tags = found.explode("tags").unnest("tags")
    of_model = tags.filter(pl.col("source") == "model")
    assert of_model.height
    assert of_model["score"].is_between(0, 1).all()


@pytest.mark.parametrize("engine", ["deepspeed", "ddp"])
def test_a_killed_worker_is_replaced_and_no_batch_is_lost_or_doubled(shop: Shop, tmp_path: Path, engine: str) -> None:
    trace = tmp_path / "trace"
    trace.mkdir()
    config = config_of(shop, tmp_path / "root", f"train.engine={engine}", "train.epochs=3")
    over = threading.Event()
    killed: list[int] = []

    def kill_one() -> None:
        while not over.wait(0.01):
            for path in trace.glob("1-*.jsonl"):
                if len(path.read_text(encoding="utf-8").splitlines()) >= 8:
                    killed.append(int(path.stem.split("-")[1]))
                    os.kill(killed[0], signal.SIGKILL)
                    return

    thread = threading.Thread(target=kill_one)
    thread.start()
    try:
        summary = train(config, trace=str(trace))
    finally:
        over.set()
        thread.join()
    assert killed
    assert summary.ended == "finished"
    traces.assert_exactly_once(trace, traces.planned(config))


def test_a_killed_job_goes_on_where_it_stood(shop: Shop, tmp_path: Path) -> None:
    trace, root = tmp_path / "trace", tmp_path / "root"
    trace.mkdir()
    config = config_of(shop, root, "train.epochs=3", "build.cpus=2")
    first = traces.started(config, trace)
    traces.wait_for(first, lambda: traces.lines(trace) >= 16)
    traces.kill(first)
    assert not (root / "models").exists()
    assert traces.ended(traces.started(config, trace), trace) == "finished"
    traces.assert_exactly_once(trace, traces.planned(config))


def test_a_loss_that_is_no_number_publishes_nothing(shop: Shop, tmp_path: Path) -> None:
    config = config_of(
        shop, tmp_path / "root", "train.learning_rate=1e30", "train.gradient_clip=1e30", "train.warmup_share=0.0"
    )
    with pytest.raises(TrainingDiverged, match=r"step \d+ is no number.*train\.learning_rate"):
        train(config)
    assert not (tmp_path / "root" / "models").exists()


def test_more_workers_than_there_can_ever_be_are_refused_at_once(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.workers asks for 64 workers.*lower train\.workers to 2"):
        train(config_of(shop, tmp_path / "root", "train.workers=64"))


def test_a_shop_without_reviews_has_nothing_to_learn_from(shop: Shop, tmp_path: Path) -> None:
    config = config_of(shop, tmp_path / "root")
    silent = {name: source for name, source in config.sources.items() if name != "reviews"}
    assert len(silent) < len(config.sources)
    with pytest.raises(SourceError, match=r"no review with text is in the train split|no source can hold reviews"):
        train(config.model_copy(update={"sources": silent}))
