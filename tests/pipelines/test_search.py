"""`tune` through Ray Tune: the best trial becomes the model, and a search that was killed goes on where it stood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tiny
import traces

from ray_profile.config import Config, Encoder
from ray_profile.encode.text import TextEncoder
from ray_profile.pipelines.tune import tune_encoder
from ray_profile.sources.simulate import Shop
from ray_profile.store import models
from ray_profile.store.root import Root

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_here")]

GOOD, BAD = 0.01, 1e-9  # learning rates; the seed draws them in this order


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Shop:
    return tiny.write_shop(tmp_path_factory.mktemp("shop") / "data", encoder, customers=150)


def config_of(shop: Shop, root: str) -> Config:
    """Two workers a trial, so that each needs all cores that Ray has here."""
    trial = ("train.objectives={ mlm = 1.0 }", "train.engine=ddp", "train.tokens_per_batch=1024", "build.cpus=2")
    search = ("tune.trials=2", "tune.seed=1", f"tune.search={{ learning_rate = {{ choice = [{GOOD}, {BAD}] }} }}")
    return tiny.config_of(shop, root, *traces.FAST, *trial, *search)


def test_a_killed_search_goes_on_with_the_second_trial_and_its_best_becomes_the_model(
    shop: Shop, tmp_path: Path
) -> None:
    root, said = Root.bare(str(tmp_path / "root")), tmp_path / "said"
    config = config_of(shop, root.address)
    first = traces.started(config, said, "tune")
    traces.wait_for(first, lambda: len(curves(root)) == 2)  # the second trial has come to a checkpoint
    traces.kill(first)
    before, (finished,) = curves(root), [name for name, each in outcomes(root).items() if each["ended"]]
    kept = outcomes(root)[finished]
    assert kept["ended"] == "finished"
    assert models.versions(root, "encoder") == []

    done = tune_encoder(config)

    # The first trial was not trained again, and yet the second was compared with it, and stopped.
    assert curves(root)[finished] == before[finished]
    assert outcomes(root)[finished] == kept
    assert curves(root).keys() == before.keys()
    assert done.trials["trial"].to_list() == ["00000", "00001"]
    assert done.trials["learning_rate"].to_list() == [GOOD, BAD]
    assert done.trials["ended"].to_list() == ["finished", "outdone"]
    assert done.trials["evaluations"].to_list() == [len(kept["scores"]), 1]
    assert done.trials["score"][0] == max(kept["scores"])
    assert done.trials["score"][0] > done.trials["score"][1]
    # Its cores were given back: the best was trained on them, as the trial was.
    assert done.best == {"learning_rate": GOOD}
    assert (done.summary.trained, done.summary.ended) == (True, "finished")
    described = models.current(root, "encoder")
    assert described is not None
    assert described["train"]["learning_rate"] == GOOD
    assert described["metrics"]["training"]["best_score"] == pytest.approx(done.trials["score"][0], rel=0.1)
    encoder = TextEncoder.load(Encoder(model=done.summary.address, max_length=64, dtype="float32"), "cpu")
    assert encoder.encode(pl.Series(["a fine tent"])).vectors.shape == (1, tiny.WIDTH)
    assert not root.list("training", "runs")

    again = tune_encoder(config)
    assert again.trials.equals(done.trials)
    assert (again.summary.trained, again.summary.digest) == (False, done.summary.digest)


def curves(root: Root) -> dict[str, list[str]]:
    """The event files of each trial's run; a run that trains writes a new one, named by when and by whom."""
    found: dict[str, list[str]] = {}
    for entry in root.list("training", "tensorboard"):
        _, _, run, name = entry.path.split("/")
        found.setdefault(run, []).append(name)
    return {run: names for run, names in found.items() if run.startswith("tune-")}


def outcomes(root: Root) -> dict[str, Any]:
    """What is kept of each trial, by its run."""
    return {Path(entry.path).stem: root.read_json(entry.path) for entry in root.list("training", "tune")}
