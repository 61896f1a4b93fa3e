"""`tune`: Ray Tune with ASHA over keys of `[train]`; the best trial becomes the model.

A trial is a training run of its own with its own settings, and reports its score at each evaluation; ASHA stops the
worst. The search is kept under root/training/tune/, so that the same command goes on with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import polars as pl
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler

from ray_profile import config as configuration
from ray_profile.config import Config
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.errors import BuildFailed, ConfigError
from ray_profile.pipelines import examples, trainer
from ray_profile.pipelines import train as training
from ray_profile.pipelines.engine import Progress as Told
from ray_profile.pipelines.engine import no_progress
from ray_profile.pipelines.examples import Corpus
from ray_profile.pipelines.rays import RayEngine
from ray_profile.pipelines.run import facts_of
from ray_profile.store.root import Root
from ray_profile.train_config import Train


@dataclass
class Tuned:
    """The table of trials, best first, and the training run of the best one's settings."""

    trials: pl.DataFrame
    best: dict[str, Any]
    summary: training.Summary


def tune_encoder(config: Config, progress: Told | None = None) -> Tuned:
    """Search `[tune]`'s space, then train with the best settings and publish that model.

    Raises `ConfigError` for a key that `[train]` does not have or a range that is none.
    """
    space = {name: domain(name, said) for name, said in config.tune.search.items()}
    for name, said in config.tune.search.items():
        with_setting(config.train, {name: said["choice"][0] if isinstance(said, Mapping) else said[0]})
    root = Root.open(config.root, facts_of(config))
    clock = datetime.now(UTC)
    config = training.based(config, root, clock)
    taxonomy = Taxonomy.load(config.taxonomy.path) if config.taxonomy.path else None
    engine = RayEngine(config, progress or no_progress)
    try:
        gpus, cpus, device, threads = training.room(config.train)
        corpus = examples.prepare(config, root, taxonomy, clock, engine)
        name = f"tune-{configuration.digest([corpus.digest, config.train.model_dump(), config.tune.model_dump()])}"
        trial = partial(
            _trial, config=config, root=root, corpus=corpus, group=name, place=(gpus, cpus, device, threads)
        )
        results = _searched(trial, space, config, root, name)
    finally:
        engine.close()
    table = trials_of(results, list(space))
    if table.is_empty() or not math.isfinite(table["score"][0] or -math.inf):
        raise BuildFailed("no trial of the search came to an evaluation; run `ray-profile train` to see why")
    best = {key: table[key][0] for key in space}
    chosen = config.model_copy(update={"train": with_setting(config.train, best)})
    return Tuned(table, best, training.train(chosen, progress))


def domain(name: str, said: Any) -> Any:
    """A range of `[tune]` as Ray Tune's: [low, high], or {choice = [...]}."""
    if isinstance(said, Mapping) and isinstance(said.get("choice"), list) and said["choice"]:
        return tune.choice(said["choice"])
    if (
        isinstance(said, list)
        and len(said) == 2
        and all(isinstance(x, int | float) for x in said)
        and said[0] < said[1]
    ):
        low, high = said
        if isinstance(low, int) and isinstance(high, int):
            return tune.randint(low, high + 1)
        return tune.loguniform(low, high) if low > 0 and high >= 10 * low else tune.uniform(low, high)
    raise ConfigError(f"tune.search.{name} = {said!r} is no range; write [low, high], or {{ choice = [...] }}")


def with_setting(settings: Train, chosen: Mapping[str, Any]) -> Train:
    """`[train]` with some keys set ("learning_rate", "objectives.contrast"), checked as the file's are."""
    data = settings.model_dump(exclude_unset=True)
    for key, value in chosen.items():
        at, (*path, last) = data, key.split(".")
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return configuration.parse({"root": "-", "train": data}, "[tune]").train


def trials_of(results: Any, keys: list[str]) -> pl.DataFrame:
    """[trial, score, evaluations, stopped, seconds and the keys searched], best first."""
    rows = []
    for result in results:
        metrics = result.metrics or {}
        rows.append(
            {
                "trial": metrics.get("trial_id", "?"),
                "score": metrics.get("score"),
                "evaluations": metrics.get("training_iteration", 0),
                "error": str(result.error or "").strip().splitlines()[-1:] or [""],
                "seconds": metrics.get("time_total_s"),
                **{key: (result.config or {}).get(key) for key in keys},
            }
        )
    frame = pl.DataFrame(rows, strict=False).with_columns(pl.col("error").list.first())
    return frame.sort("score", descending=True, nulls_last=True)


def _searched(trial: Any, space: Mapping[str, Any], config: Config, root: Root, name: str) -> Any:
    storage = root.path(examples.FOLDER, "tune")
    able = tune.with_resources(trial, {"CPU": 0.01})  # the workers ask for what they need; 0 is refused
    address = root.uri(examples.FOLDER, "tune", name)
    if root.list(examples.FOLDER, "tune", name) and tune.Tuner.can_restore(address, root.arrow_fs):
        tuner = tune.Tuner.restore(f"{storage}/{name}", able, storage_filesystem=root.arrow_fs, restart_errored=True)
        return tuner.fit()
    scheduler = ASHAScheduler(
        time_attr="training_iteration",
        max_t=config.train.epochs * config.train.evaluations_per_epoch + 1,
        grace_period=config.tune.grace,
        reduction_factor=config.tune.reduction,
    )
    tuner = tune.Tuner(
        able,
        param_space=dict(space),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=config.tune.trials,
            max_concurrent_trials=config.tune.at_once,
            scheduler=scheduler,
        ),
        run_config=tune.RunConfig(name=name, verbose=0, storage_path=storage, storage_filesystem=root.arrow_fs),
    )
    return tuner.fit()


def _trial(
    chosen: dict[str, Any],
    config: Config,
    root: Root,
    corpus: Corpus,
    group: str,
    place: tuple[float, float, str, int],
) -> None:
    """One trial: a run of its own, whose evaluations Ray Tune hears of."""
    gpus, cpus, device, threads = place
    settings = with_setting(config.train, chosen)
    drawing, by = trainer.drawing_of(corpus, settings)
    plan = trainer.planned(corpus, settings, drawing, by)
    run = f"{group}-{tune.get_context().get_trial_id()}"
    job = trainer.Job(root, corpus.digest, settings, config.encoder, run, plan, drawing, by, device, threads)
    trainer.fit(
        job,
        settings.workers,
        gpus,
        cpus,
        callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call]
    )
    root.delete(entry.path for entry in root.list(*job.path()))
