"""`train`: the shop's own reviews fine-tune the encoder, and what comes out is a model that `build` uses.

    open -> examples -> plan -> fit (trainer.py) -> encoder folder -> calibrate, judge -> publish

Every stage is kept under the root, so that the same command after a crash goes on where it stopped, and after success
finds the model that is there already.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ray_profile import config as configuration
from ray_profile.config import Cluster, Config
from ray_profile.encode.heads import SENTIMENTS, tag_vectors
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.trained import Heads
from ray_profile.encode.weights import model_digest, resolve
from ray_profile.errors import ConfigError, TrainingDiverged
from ray_profile.pipelines import examples, fresh, trainer
from ray_profile.pipelines.cluster import can_grow, most
from ray_profile.pipelines.engine import Progress as Told
from ray_profile.pipelines.engine import no_progress
from ray_profile.pipelines.examples import Corpus
from ray_profile.pipelines.rays import RayEngine
from ray_profile.pipelines.run import facts_of, resolved
from ray_profile.pipelines.watch import Watch
from ray_profile.store import models
from ray_profile.store.root import Root
from ray_profile.train import judge, report, track
from ray_profile.train.doubt import doubtful
from ray_profile.train.export import write_encoder
from ray_profile.train.judge import Judged, Splits
from ray_profile.train_config import Train

JUDGED_ROWS = 50_000  # of each split, at most
#: Of [train]: what makes no other run, and no other search.
ASIDE = {"name", "workers", "worker_labels", "track", "max_failures", "checkpoint_steps"}
_TEXTS = ("id", "user_id", "item_id", "text", "sentiment", "tags")


@dataclass
class Summary:
    """What a run gave: where the model lies, how good it is, and how long each stage took (seconds)."""

    name: str
    digest: str
    address: str
    metrics: dict[str, Any]
    trained: bool  # False: the root had this very model already
    steps: int = 0
    ended: str = ""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        return {**vars(self), "seconds": round(self.seconds, 3)}


def train(config: Config, progress: Told | None = None, trace: str | None = None) -> Summary:
    """Fine-tune the encoder of `config` on its sources and publish the model under the root.

    `trace` names a folder for the ids of what each step trained on. Raises `SourceError` where an objective has nothing
    to learn from, `ConfigError` for workers that can never start or a tracker that is not installed,
    `TrainingDiverged`, and what reading raises.
    """
    watch = Watch()
    track.insist(config.train.track)
    root = Root.open(config.root, facts_of(config))
    clock = datetime.now(UTC)
    config = based(config, root, clock)
    taxonomy = Taxonomy.load(config.taxonomy.path) if config.taxonomy.path else None
    engine = RayEngine(config, progress or no_progress)
    try:
        gpus, cpus, device, threads = room(config.train, config.cluster)
        watch.mark("start")
        corpus = examples.prepare(config, root, taxonomy, clock, engine)
        watch.mark("examples")
        run = _run_of(config, corpus)
        there = models.current(root, config.train.name)
        if there is not None and there.get("run") == run:
            address = models.located(root, config.train.name)
            return Summary(config.train.name, address.rsplit("/", 1)[-1], address, there["metrics"], trained=False)
        drawing, by = trainer.drawing_of(corpus, config.train)
        plan = trainer.planned(corpus, config.train, drawing, by)
        job = trainer.Job(
            root, corpus.digest, config.train, config.encoder, run, plan, drawing, by, device, threads, trace
        )
        fitted = trainer.fit(job, config.train.workers, gpus, cpus)
        watch.mark("fit")
        _check_finite(fitted, config.train)
        summary = _published(config, root, corpus, job, fitted, engine, watch)
        root.delete(entry.path for entry in root.list(*job.path()))
        return summary
    finally:
        engine.close()


def based(config: Config, root: Root, clock: datetime) -> Config:
    """The configuration with the encoder that training starts from: a new one where `train.init` asks for it."""
    if config.train.init is None:
        return resolved(config, root)
    return fresh.started(config, config.train.init, root, clock)


def room(settings: Train, cluster: Cluster) -> tuple[float, float, str, int]:
    """(GPUs and CPUs of a worker, device, threads), after Ray has started.

    Raises `ConfigError` where a cluster lacks the room for the fewest workers, and cannot grow so far.
    """
    cpus, gpus = most(cluster)
    wanted = settings.gpus_per_worker if settings.gpus_per_worker is not None else min(gpus, 1.0)
    least = settings.workers[0] if isinstance(settings.workers, tuple) else settings.workers
    for kind, of_each, there in (("GPU", wanted, gpus), ("CPU", 1.0, cpus)):
        if least * of_each > there and not can_grow():
            raise ConfigError(
                f"train.workers asks for {least} workers with {of_each:g} {kind} each, and Ray has {there:g} {kind}s; "
                f"lower train.workers to {int(there / of_each)}, name a cluster with more in RAY_ADDRESS, or say under "
                "[cluster] how far this one grows"
            )
    threads = max(1, min(os.cpu_count() or 1, int(cpus)) // settings.most_workers)
    return wanted, 1.0, "cuda" if wanted else "cpu", threads


def _run_of(config: Config, corpus: Corpus) -> str:
    """The name of a run: the same for the same data, settings and base model."""
    settings = config.train.model_dump(exclude=ASIDE)
    base = model_digest(resolve(config.encoder.model), config.encoder)
    return f"{config.train.name}-{configuration.digest([corpus.digest, settings, base])}"


def _check_finite(fitted: trainer.Fitted, settings: Train) -> None:
    if fitted.diverged is not None:
        raise TrainingDiverged(
            f"the loss at step {fitted.diverged} is no number; the last good checkpoint is of step "
            f"{fitted.progress.step}, nothing was published. Lower train.learning_rate ({settings.learning_rate:g}) or "
            f'train.head_learning_rate ({settings.head_learning_rate:g}), or set train.dtype = "float32"'
        )


def _published(
    config: Config,
    root: Root,
    corpus: Corpus,
    job: trainer.Job,
    fitted: trainer.Fitted,
    engine: RayEngine,
    watch: Watch,
) -> Summary:
    with tempfile.TemporaryDirectory(prefix="model-") as made:
        folder = Path(made)
        used = config.encoder.model_copy(update={"max_length": config.train.max_length})
        write_encoder(fitted.weights, resolve(config.encoder.model), config.train, used, folder)
        copy = root.uri(*job.path("encoder"))
        models.copied(folder, root, job.path("encoder"))
        trained = RayEngine(config.model_copy(update={"encoder": used.model_copy(update={"model": copy})}), no_progress)
        splits = _splits(corpus, engine, trained)
        watch.mark("encode")
        heads, found = _judged(corpus, fitted, job, splits, trained)
        trained.close()
        if heads is not None:
            (folder / "heads.safetensors").write_bytes(heads.to_bytes())
        curves = fitted.progress.curves
        found["training"] = {
            "steps": fitted.progress.step, "examples": fitted.progress.seen, "ended": fitted.progress.ended,
            "best_score": fitted.progress.best, "best_step": fitted.progress.best_step,
        }  # fmt: skip
        report.write(folder / "report", found, curves)
        if "sentiment" in config.train.objectives and splits.train.before is not None:
            rows = splits.train.rows
            doubts = doubtful(splits.train.before, splits.train.sentiment, rows["user_id"], rows["id"])
            doubts.write_csv(folder / "report" / "doubtful.csv")
        described = _description(config, corpus, job, found)
        (folder / "model.json").write_text(json.dumps(described, ensure_ascii=False, indent=1), encoding="utf-8")
        digest = models.publish(root, config.train.name, folder)
    watch.mark("judge")
    address = models.located(root, config.train.name)
    stages, seconds = watch.stages, sum(watch.stages.values())
    return Summary(
        config.train.name, digest, address, found, True, fitted.progress.step, fitted.progress.ended, seconds, stages
    )


def _splits(corpus: Corpus, before: RayEngine, after: RayEngine) -> Splits:
    """Rows and vectors to judge by; of the train split, those that the baselines are fitted to."""
    judged = {}
    for split in ("train", "validation", "test"):
        rows = corpus.rows(split, _TEXTS, JUDGED_ROWS)
        nothing = np.zeros((rows.height, 1), np.float16)
        vectors = nothing if split == "train" or not rows.height else after.encode(rows["text"]).vectors
        old = before.encode(rows["text"]).vectors if split != "validation" and rows.height else None
        judged[split] = Judged(rows, vectors, old)
    seen = corpus.rows("train", ("item_id",))["item_id"].drop_nulls().unique().to_list()
    return Splits(judged["train"], judged["validation"], judged["test"], frozenset(seen))


def _judged(
    corpus: Corpus, fitted: trainer.Fitted, job: trainer.Job, splits: Splits, engine: RayEngine
) -> tuple[Heads | None, dict[str, Any]]:
    held, found = corpus.counts["train"], dict[str, Any]()
    felt = tags = None
    if "sentiment" in job.train.objectives:
        natural = np.asarray(held["sentiment"], float)
        drawn = natural * np.asarray(job.drawing.copies[:3]) if job.by == "sentiment" else natural
        felt = judge.sentiment_head(fitted.weights, drawn, natural, splits.validation)
        found["sentiment"] = judge.sentiment_report(felt, splits)
    if "tags" in job.train.objectives:
        texts = tag_vectors(corpus.taxonomy, engine)
        ids = [tag.id for tag in corpus.taxonomy.tags]
        tags = judge.tag_head(fitted.weights, ids, texts, corpus.exclusive, splits.validation)
        found["tags"] = judge.tags_report(tags, texts, corpus.exclusive, splits)
    if felt is None and tags is None:
        return None, found
    probe, offsets = (felt.probe, felt.offsets) if felt else (None, None)
    return Heads(probe, offsets, tags.head if tags else None, {}), found


def _description(config: Config, corpus: Corpus, job: trainer.Job, found: Mapping[str, Any]) -> dict[str, Any]:
    """model.json: what a person, and `build`, must know of a model besides its weights."""
    encoder = config.encoder
    return {
        "name": config.train.name,
        "run": job.run,
        "base": encoder.model,
        "encoder": {"prefix": encoder.prefix, "pooling": encoder.pooling, "max_length": config.train.max_length},
        "train": config.train.model_dump(mode="json"),
        "labels": {"sentiment": list(SENTIMENTS), "tags": [tag.id for tag in corpus.taxonomy.tags]},
        "taxonomy": [asdict(tag) for tag in corpus.taxonomy.tags],
        "corpus": {"digest": corpus.digest, "files": corpus.files, "counts": corpus.counts},
        "metrics": found,
    }
