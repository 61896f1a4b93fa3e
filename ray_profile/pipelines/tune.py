"""`tune`: Ray Tune with ASHA over keys of `[train]`; the best trial becomes the model.

A trial is a training run of its own with its own settings, and reports its score at each evaluation; ASHA stops the
worst. What each trial came to is kept under root/training/tune/, one JSON file a trial. The same command draws the same
trials again, tells Ray Tune what is known of each, and so goes on with the first that has not come to its end: ASHA
decides as it did, and nothing is trained twice.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import polars as pl
import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import BasicVariantGenerator

from ray_profile import config as configuration
from ray_profile.config import Config
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.weights import model_digest, resolve
from ray_profile.errors import BuildFailed, ConfigError
from ray_profile.pipelines import examples, trainer
from ray_profile.pipelines import train as training
from ray_profile.pipelines.engine import Progress as Told
from ray_profile.pipelines.engine import no_progress
from ray_profile.pipelines.examples import FOLDER, Corpus
from ray_profile.pipelines.rays import RayEngine
from ray_profile.pipelines.run import facts_of
from ray_profile.pipelines.trainer import UNJUDGED
from ray_profile.store.root import Root
from ray_profile.train import track
from ray_profile.train_config import Train

OUTDONE = "outdone"  # how a trial ended that ASHA stopped
NEXT_TO_NOTHING = {"memory": 1.0}  # byte, of a trial itself: nothing is refused, and its workers may need every core


@dataclass
class Tuned:
    """The table of trials, best first, and the training run of the best one's settings."""

    trials: pl.DataFrame
    best: dict[str, Any]
    summary: training.Summary


@dataclass(frozen=True)
class Outcome:
    """What is known of a trial, and kept of it."""

    scores: Sequence[float] = ()  # of each evaluation
    seconds: float = 0.0
    ended: str = ""  # why; "" while it goes on, and where ASHA stopped it

    def told(self) -> dict[str, Any]:
        """As Ray Tune hears of it: the best score so far, for that is the model that a run gives."""
        failed = not self.scores or self.ended.startswith("diverged")
        score = UNJUDGED if failed else max(self.scores)
        return {"score": score, "evaluation": len(self.scores), "seconds": self.seconds, "ended": self.ended}


def tune_encoder(config: Config, progress: Told | None = None) -> Tuned:
    """Search `[tune]`'s space, then train with the best settings and publish that model.

    Raises `ConfigError` for a key that `[train]` does not have, that changes the training set, or a range that is none;
    `BuildFailed` where no trial came to an evaluation; and what `train` raises.
    """
    track.insist(config.train.track)
    space = {name: domain(name, said) for name, said in config.tune.search.items()}
    _check(config)
    root = Root.open(config.root, facts_of(config))
    clock = datetime.now(UTC)
    config = training.based(config, root, clock)
    taxonomy = Taxonomy.load(config.taxonomy.path) if config.taxonomy.path else None
    engine = RayEngine(config, progress or no_progress)
    try:
        place = training.room(config.train, config.cluster)
        corpus = examples.prepare(config, root, taxonomy, clock, engine)
        name = _name(config, corpus)
        trial = partial(_trial, config=config, root=root, corpus=corpus, name=name, place=place)
        results = sorted(_searched(trial, space, config), key=_score, reverse=True)
        runs = root.list(FOLDER, "runs")
        root.delete(entry.path for entry in runs if entry.path.startswith(f"{FOLDER}/runs/{name}-"))
    finally:
        engine.close()
    if not results or _score(results[0]) <= UNJUDGED:
        raise BuildFailed("no trial of the search came to an evaluation; run `ray-profile train` to see why")
    best = {key: results[0].config[key] for key in space}
    chosen = config.model_copy(update={"train": with_setting(config.train, best)})
    return Tuned(trials_of(results, list(space)), best, training.train(chosen, progress))


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


def trials_of(results: Sequence[Any], keys: Sequence[str]) -> pl.DataFrame:
    """[trial, score, evaluations, ended, seconds and the keys searched], a row for each result in its order.

    `ended`: finished; stopped, for want of a better score; outdone, where ASHA stopped it; else what went wrong.
    """
    rows = []
    for result in results:
        told, error = result.metrics or {}, str(result.error or "").strip().splitlines()[-1:]
        score = _score(result)
        rows.append(
            {
                "trial": _number(told.get("trial_id", "?")),
                "score": score if score > UNJUDGED else None,
                "evaluations": told.get("evaluation", 0),
                "ended": error[0] if error else told.get("ended") or OUTDONE,
                "seconds": told.get("seconds"),
                **{key: _cell((result.config or {}).get(key)) for key in keys},
            }
        )
    return pl.DataFrame(rows, strict=False, infer_schema_length=None)


def _cell(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) or value is None else str(value)


def _score(result: Any) -> float:
    """Of a trial's best evaluation; a trial that failed is worse than all others."""
    told = result.metrics or {}
    return UNJUDGED if result.error else float(told.get("score", UNJUDGED))


def _number(trial_id: str) -> str:
    return trial_id.rpartition("_")[2]


def _ends(said: Any) -> list[Any]:
    """What a range must be good for: all its choices, or both its ends."""
    return list(said["choice"]) if isinstance(said, Mapping) else list(said)


def _check(config: Config) -> None:
    """Raise `ConfigError` for a value that `[train]` refuses, and for one that needs another training set."""
    for key, said in config.tune.search.items():
        for value in _ends(said):
            if _of_examples(with_setting(config.train, {key: value})) != _of_examples(config.train):
                raise ConfigError(
                    f"tune.search.{key}: all trials learn from one training set, and this key changes it; take it out, "
                    f"and compare searches with other values of train.{key}"
                )


def _of_examples(settings: Train) -> list[Any]:
    """What a training set depends on, and the model that is trained on it."""
    data = settings.model_dump()
    return [data["augment"]["rewrite"], *(data[key] for key in ("max_length", "split", "fold", "labels", "init"))]


def _name(config: Config, corpus: Corpus) -> str:
    """Of a search: the same for the same data, settings and ranges, however many trials are drawn from them."""
    settings = config.train.model_dump(exclude=training.ASIDE)
    drawn = config.tune.model_dump(include={"search", "seed", "grace", "reduction"})
    base = model_digest(resolve(config.encoder.model), config.encoder)
    return f"tune-{configuration.digest([corpus.digest, settings, drawn, base])}"


def _searched(trial: Any, space: Mapping[str, Any], config: Config) -> Any:
    settings, most = config.tune, 1
    for key in ("epochs", "evaluations_per_epoch"):
        most *= max(_ends(settings.search.get(key, [getattr(config.train, key)])))
    scheduler = ASHAScheduler(
        time_attr="evaluation",
        max_t=max(most, settings.grace) + 1,  # so that a trial comes to its own end at its last evaluation
        grace_period=settings.grace,
        reduction_factor=settings.reduction,
    )
    with tempfile.TemporaryDirectory(prefix="tune-") as storage:
        tuner = tune.Tuner(
            tune.with_resources(trial, NEXT_TO_NOTHING),
            param_space=dict(space),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=settings.trials,
                search_alg=BasicVariantGenerator(max_concurrent=settings.at_once, random_state=settings.seed),
                scheduler=scheduler,
            ),
            run_config=tune.RunConfig(verbose=0, storage_path=storage, callbacks=[_Freed()]),
        )
        found = tuner.fit()
        return [found[at] for at in range(len(found))]


def _trial(
    chosen: dict[str, Any],
    config: Config,
    root: Root,
    corpus: Corpus,
    name: str,
    place: tuple[float, float, str, int],
) -> None:
    """One trial: what is known of it, then a run of its own, whose evaluations Ray Tune hears of."""
    run = f"{name}-{_number(tune.get_context().get_trial_id())}-{configuration.digest(chosen)}"
    kept = (FOLDER, "tune", name, f"{run}.json")
    known = Outcome(**(root.read_json(*kept) or {}))
    for count in range(1, len(known.scores) + 1):
        tune.report(Outcome(known.scores[:count], known.seconds).told())
    if not known.ended:
        gpus, cpus, device, threads = place
        settings = with_setting(config.train, chosen)
        drawing, by = trainer.drawing_of(corpus, settings)
        plan = trainer.planned(corpus, settings, drawing, by)
        job = trainer.Job(
            root, corpus.digest, settings, config.encoder, run, plan, drawing, by, device, threads,
            judge=config.train.objectives,
        )  # fmt: skip
        telling = _Telling(root, kept, known.seconds)
        fitted = trainer.fit(job, settings.workers, gpus, cpus, callbacks=[telling])
        ended = fitted.progress.ended if fitted.diverged is None else f"diverged at step {fitted.diverged}"
        known = Outcome(trainer.scores_of(fitted.progress), telling.seconds, ended)
        root.replace_json(vars(known), *kept)
        root.delete(entry.path for entry in root.list(*job.path()))
    tune.report(known.told())


class _Telling(TuneReportCallback):
    """Tells Ray Tune of a run's evaluations, and keeps them; not of the checkpoints between, which have no score."""

    def __init__(self, root: Root, kept: tuple[str, ...], seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._kept = root, kept
        self._began = time.time() - seconds

    @property
    def seconds(self) -> float:
        """Since the trial began, without the time between its attempts."""
        return time.time() - self._began

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002
        """Called in the run's controller after every report of its workers."""
        said = metrics[0]
        if said["best_here"] == UNJUDGED:
            return
        known = Outcome(said["scores"], self.seconds)
        self._root.replace_json(vars(known), *self._kept)
        whose = {"controller": ray.get_runtime_context().get_actor_id(), "group": said["group"]}
        super().after_report(run_context, [{**known.told(), **whose}], None)


class _Freed(tune.Callback):
    """Gives back the cores of trials that ASHA has stopped.

    A stopped trial takes its run's controller along, but the placement group of the workers stays for as long as this
    program runs, and the next trial would wait for its cores for ever: Ray's own cleaning asks the dashboard, which
    need not be there.
    """

    def __init__(self) -> None:
        self._standing: list[tuple[str, str]] = []  # controller, placement group

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """A trial that came to its own end names no group."""
        told = trial.last_result or {}
        if "group" in told:
            self._standing.append((told["controller"], told["group"]))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process may have died, and its controller with it."""
        self.on_trial_complete(iteration, trials, trial, **info)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:  # noqa: ARG002
        """Free what is dead; a controller that lives would make itself a new group."""
        from ray._private.state import actors
        from ray._raylet import PlacementGroupID
        from ray.util.placement_group import PlacementGroup, remove_placement_group

        standing, self._standing = self._standing, []
        for controller, group in standing:
            if actors(controller).get("State") == "DEAD":
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
            else:
                self._standing.append((controller, group))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """The training with the best settings needs the cores too."""
        while self._standing:
            time.sleep(0.1)
            self.on_step_end(0, trials, **info)
