"""A taxonomy that has grown since training: its new tags can be given, and the trained ones stay as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny
import traces
from equal import profiles_of

from ray_profile.config import Config, Encoder
from ray_profile.encode.heads import tag_vectors
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.text import TextEncoder
from ray_profile.encode.trained import Heads, TrainedTags
from ray_profile.pipelines.build import build
from ray_profile.pipelines.train import Summary, train
from ray_profile.sources.simulate import Shop
from ray_profile.store import models
from ray_profile.store.root import Root

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_here")]

OBJECTIVES = "train.objectives={ sentiment = 1.0, tags = 1.0 }"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Shop:
    return tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder, customers=150)


@pytest.fixture(scope="module")
def fewer(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop's taxonomy without every third tag."""
    return some_of(shop, tmp_path_factory.mktemp("taxonomy") / "fewer.toml", lambda at: at % 3 != 0)


@pytest.fixture(scope="module")
def other(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that `fewer` lacks, and a few of its own."""
    return some_of(shop, tmp_path_factory.mktemp("taxonomy") / "other.toml", lambda at: at % 3 == 0 or at % 6 == 1)


def some_of(shop: Shop, path: Path, kept: Callable[[int], bool]) -> Path:
    head, *tags = shop.taxonomy.read_text(encoding="utf-8").split("[[tags]]\n")
    path.write_text("[[tags]]\n".join([head, *(tag for at, tag in enumerate(tags) if kept(at))]), encoding="utf-8")
    return path


def config_of(shop: Shop, root: Path, taxonomy: Path, *overrides: str) -> Config:
    return tiny.config_of(shop, root, f"taxonomy.path={taxonomy}", *overrides)


@pytest.fixture(scope="module")
def trained(shop: Shop, fewer: Path, tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> Any:  # noqa: ARG001
    """A root with a model that has learnt from the fewer tags."""
    root = tmp_path_factory.mktemp("trained") / "root"
    return root, train(config_of(shop, root, fewer, *traces.FAST, "train.engine=ddp", OBJECTIVES))


def learnt_by(summary: Summary) -> tuple[TrainedTags, TextEncoder]:
    heads = Heads.read(Path(summary.address))
    assert heads is not None
    assert heads.tags is not None
    settings = Encoder(model=summary.address, max_length=64, dtype="float32")
    return heads.tags, TextEncoder.load(settings, "cpu")


def test_a_new_tag_is_what_its_words_say_and_a_trained_one_keeps_what_it_learnt(
    trained: Any, shop: Shop, fewer: Path
) -> None:
    tags, encoder = learnt_by(trained[1])
    known, whole = Taxonomy.load(str(fewer)), Taxonomy.load(str(shop.taxonomy))
    assert set(tags.ids) == {tag.id for tag in known.tags}
    assert np.abs(tags.residual).max() > 0
    old, grown, words = tags.matrix(known, encoder), tags.matrix(whole, encoder), tag_vectors(whole, encoder)
    assert old.odds is not None
    assert grown.odds is not None
    for at, name in enumerate(grown.tags):
        if name in tags.ids:
            before = old.tags.index(name)
            assert np.array_equal(grown.vectors[at], old.vectors[before])
            assert grown.odds.bias[at] == old.odds.bias[before]
            assert grown.thresholds[at] == old.thresholds[before]
        else:
            assert np.array_equal(grown.vectors[at], words[at])
            assert grown.odds.bias[at] == np.float32(tags.default_bias)
            assert grown.thresholds[at] == np.float32(tags.default_threshold)


def test_builds_with_either_taxonomy_use_the_one_model(
    trained: Any, shop: Shop, fewer: Path, other: Path, tmp_path: Path
) -> None:
    address, summary = trained
    tags, encoder = learnt_by(summary)
    corpus = traces.corpus_of(config_of(shop, address, fewer))
    texts = pl.concat([corpus.rows(split, ("text",)) for split in ("train", "validation", "test")])["text"]
    vectors = encoder.encode(texts).vectors
    given = {}
    for taxonomy in (fewer, other):
        root = tmp_path / taxonomy.stem
        build(config_of(shop, root, taxonomy, f"encoder.model={summary.address}"), local=True, clock=tiny.CLOCK)
        told = profiles_of(root).explode("tags").select(pl.col("tags").struct.unnest())
        given[taxonomy] = set(told.filter(pl.col("source") == "model")["tag"])
        found = tags.matrix(Taxonomy.load(str(taxonomy)), encoder).tags_of(vectors)
        assert given[taxonomy]
        assert given[taxonomy] <= set(found["tag"])  # of many tags, a profile keeps the strongest
    assert given[fewer] <= set(tags.ids)
    assert given[other] - set(tags.ids)
    assert models.versions(Root.bare(str(address)), "encoder") == [summary.digest]


def test_the_curves_of_the_run_are_tensorboard_s_to_show_when_it_is_over(trained: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    address, summary = trained
    root = Root.bare(str(address))
    (file,) = root.list("training", "tensorboard")
    events = EventAccumulator(str(address / file.path))
    events.Reload()
    assert [each.step for each in events.Scalars("score")][-1] == summary.steps
    assert {"loss", "loss_sentiment", "loss_tags", "validation_sentiment", "validation_tags"} <= set(
        events.Tags()["scalars"]
    )
    best = max(each.value for each in events.Scalars("score"))
    assert best == pytest.approx(summary.metrics["training"]["best_score"], abs=1e-6)
