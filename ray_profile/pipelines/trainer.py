"""The training loop on Ray Train: workers, their batches, checkpoints under the root, and going on after a failure.

Batches come through Ray Data, but not first come first served: each worker is handed its own part of the plan (see
train/plan.py), which is what lets a run that was interrupted go on without repeating or leaving out an example.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data
import ray.train
from ray.data import TaskPoolStrategy
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ray_profile.config import Encoder
from ray_profile.errors import BuildFailed
from ray_profile.pipelines.examples import FOLDER, Corpus, opened
from ray_profile.pipelines.rays import plainly
from ray_profile.pipelines.tables import frame_of
from ray_profile.store.root import Root
from ray_profile.train import loop, track
from ray_profile.train.augment import word_dropout
from ray_profile.train.batch import COLUMNS, Batch, classes, collate, of_piece
from ray_profile.train.loop import Hooks, Progress
from ray_profile.train.plan import Drawing, Piece, Plan, batches, copies_of
from ray_profile.train_config import Train

WEIGHTS = "weights.safetensors"
RESUME = "resume.json"
DIVERGED = "diverged.json"
TRAIN = "train"
UNJUDGED = -1.0  # the score of a checkpoint between evaluations; Ray keeps it as JSON, which has no infinity
READERS = 2  # tasks that read ahead for a worker


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    root: Root
    corpus: str  # digest
    train: Train
    encoder: Encoder
    run: str  # its folder's name
    plan: Plan
    drawing: Drawing
    by: str  # what rows are drawn by: sentiment, tags or nothing
    device: str
    threads: int
    trace: str | None = None  # a folder for the ids of what each step trained on
    judge: Mapping[str, float] | None = None  # weights of the score; absent: those of the objectives

    @property
    def judged_by(self) -> Mapping[str, float]:
        """What the score of an evaluation is the weighted mean of."""
        return self.judge or self.train.objectives

    def path(self, *parts: str) -> tuple[str, ...]:
        """Of something of this run, under the root."""
        return (FOLDER, "runs", self.run, *parts)


@dataclass(frozen=True)
class Fitted:
    """How a run ended: the weights of its best evaluation, and its curves."""

    weights: dict[str, Any]  # name -> torch.Tensor
    progress: Progress
    diverged: int | None = None  # the step whose loss was no number


def drawing_of(corpus: Corpus, settings: Train) -> tuple[Drawing, str]:
    """How rows are drawn, and by which label: sentiment's classes where they are learnt, else the rarest tag."""
    by = next((each for each in ("sentiment", "tags") if each in settings.objectives), "nothing")
    copies = copies_of(corpus.strata(by), settings.balance, settings.balance_floor)
    return Drawing(settings.seed, settings.tokens_per_batch, tuple(copies.tolist())), by


def planned(corpus: Corpus, settings: Train, drawing: Drawing, by: str) -> Plan:
    """Count the batches of every shard and epoch, in tasks."""
    task = ray.remote(_counted).options(scheduling_strategy="DEFAULT")  # also within a trial of `tune`
    shared = ray.put((corpus, drawing, by, settings.epochs))
    waiting = [task.remote(shared, at) for at in range(len(corpus.of(TRAIN)))]
    with plainly():
        counts: list[list[int]] = ray.get(waiting)
    return Plan(settings.seed, tuple(zip(*counts, strict=True)))


def fit(job: Job, workers: int | tuple[int, int], gpus: float, cpus: float, callbacks: Sequence[Any] = ()) -> Fitted:
    """Train; a worker that dies is replaced and the run goes on at its last checkpoint, as the same run started again
    does. Raises `BuildFailed` where it cannot."""
    root = job.root
    root.delete(["/".join(job.path(DIVERGED))])  # what an attempt before this one said
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # a pair is an elastic range
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
            label_selector=job.train.worker_labels,  # type: ignore[call-arg]  # mypy sees the class of Train's first version
        ),
        run_config=RunConfig(
            name=job.run,
            storage_path=root.path(FOLDER, "runs"),
            storage_filesystem=root.arrow_fs,
            failure_config=FailureConfig(max_failures=job.train.max_failures),
            callbacks=list(callbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute="best_here"),
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        datasets={TRAIN: lambda: ray.data.range(1)},  # what `_Parts` replaces by each worker's own part of the plan
        dataset_config=_Parts(job),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        if isinstance(error, ray.train.TrainingFailedError):
            raise BuildFailed(f"training failed: {_reason(error)}; run the same command to go on") from error
        raise
    told = root.read_json(*job.path(DIVERGED))
    bad = None if told is None else int(told["step"])
    if not result.best_checkpoints:
        assert bad is not None, "a run that ends well ends with a checkpoint"
        return Fitted({}, Progress(), bad)
    return replace(_fitted(result), diverged=bad)


class _Parts(DataConfig):
    """Hands each worker the batches that the plan gives it from where the run stands."""

    def __init__(self, job: Job) -> None:
        super().__init__(datasets_to_split=[])  # else Ray would want to share rows out itself
        self._job = job

    def configure(self, datasets: Any, world_size: int, *_: Any, **__: Any) -> list[dict[str, Any]]:
        """For each worker, its own batches."""
        job, (name,) = self._job, datasets
        found = job.root.read_json(*job.path(RESUME))
        progress = Progress.start(job.plan) if found is None else Progress.of(found)
        corpus = opened(job.root, job.corpus)
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        made = partial(_batches, job=job, corpus=corpus)
        output = []
        for share in loop.shares(job.plan, progress, job.train.epochs, world_size):
            pieces = [piece for epoch, spans in share for piece in job.plan.pieces(epoch, spans)]
            rows = ray.data.from_items([{"piece": json.dumps(vars(piece))} for piece in pieces] or [{"piece": ""}])
            # A reading task asks for no core, for all may be the workers' own; so it is told how many run at once.
            read = rows.map_batches(
                made, batch_size=1, batch_format="pyarrow", num_cpus=0, compute=TaskPoolStrategy(READERS)
            )
            output.append({name: read.iterator()})
        return output


def _batches(table: pa.Table, job: Job, corpus: Corpus) -> Iterator[pa.Table]:
    """The batches of a piece, a row each: every column a list."""
    for said in table["piece"].to_pylist():
        if not said:
            continue
        piece = Piece(**json.loads(said))
        read = partial(_read, corpus)
        for at, rows in enumerate(of_piece(piece, read, job.drawing, partial(_classes, by=job.by, corpus=corpus))):
            row = rows.select(pl.all().implode()).with_columns(epoch=piece.epoch, number=piece.number + at)
            yield row.to_arrow()


def _read(corpus: Corpus, shard: int, columns: Sequence[str]) -> pl.DataFrame:
    return corpus.read(corpus.of(TRAIN)[shard], columns)


def _classes(rows: pl.DataFrame, by: str, corpus: Corpus) -> np.ndarray:
    if by == "nothing":
        return np.zeros(rows.height, np.int64)
    rank = np.argsort(np.argsort(corpus.counts[TRAIN]["tags"])) if by == "tags" else None
    return classes(rows, by, rank)


def _counted(shared: tuple[Corpus, Drawing, str, int], at: int) -> list[int]:
    corpus, drawing, by, epochs = shared
    rows = _read(corpus, at, ("sentiment", "tags", "length", "about_length"))
    drawn = _classes(rows, by, corpus)
    lengths, about = rows["length"].to_numpy(), rows["about_length"].to_numpy()
    return [len(batches(drawn, lengths, about, drawing, epoch, at)) for epoch in range(epochs)]


def _work(told: dict[str, Any]) -> None:
    """One worker, from where the run stands to its end."""
    from ray_profile.pipelines import trainee

    job: Job = told["job"]
    context = ray.train.get_context()
    engine, evaluate, tags, special = trainee.made(job)
    checkpoint = ray.train.get_checkpoint()
    progress = Progress.start(job.plan)
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            progress = Progress.read(Path(folder))
            engine.load(Path(folder))
    if progress.ended:
        return
    if context.get_world_rank() == 0:
        job.root.replace_json(progress.to_json(), *job.path(RESUME))
    import torch.distributed as dist

    dist.barrier()  # before anyone asks for batches, which are made from what was just written
    stream = ray.train.get_dataset_shard(TRAIN)
    mine = _collated(stream, job, tags, special)
    with _tracked(job, context.get_world_rank()) as tell:
        hooks = Hooks(evaluate, partial(_report, engine=engine, tell=tell), _traced(job, context))
        ended = loop.train(engine, job.train, job.plan, progress, mine, tags, hooks)
    if ended.ended == "diverged" and context.get_world_rank() == 0:
        job.root.replace_json({"step": ended.step}, *job.path(DIVERGED))


def _collated(stream: Any, job: Job, tags: int, special: tuple[int, ...]) -> Iterator[Batch]:
    augment = job.train.augment
    for table in stream.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=4):
        row = frame_of(table)
        epoch, number = row["epoch"][0], row["number"][0]
        batch = collate(row.select(COLUMNS).explode(COLUMNS), tags, epoch, number)
        if augment.word_dropout:
            hidden, *spared = special
            batch = word_dropout(batch, augment.word_dropout, hidden, spared, job.train.seed)
        yield batch


def _tracked(job: Job, rank: int) -> AbstractContextManager[track.Tell]:
    """Worker 0 tells the trackers; what they keep outlives the run's own folder."""
    if rank:
        return nullcontext(lambda _: None)
    return track.tracked(job.train.track, job.root, (FOLDER, "tensorboard", job.run), job.run)


def _traced(job: Job, context: Any) -> Any:
    """Writes which examples each step trained on, where somebody wants to know."""
    if job.trace is None:
        return lambda _, __: None
    path = Path(job.trace) / f"{context.get_world_rank()}-{os.getpid()}.jsonl"

    def write(step: int, used: Sequence[Batch]) -> None:
        with path.open("a", encoding="utf-8") as file:
            for batch in used:
                said: dict[str, Any] = {"at": time.time(), "step": step, "epoch": batch.epoch, "number": batch.number}
                said["ids"] = list(batch.names)
                file.write(json.dumps(said) + "\n")

    return write


def _report(metrics: Mapping[str, float], progress: Progress, engine: Any, tell: track.Tell) -> None:
    """Keep a checkpoint: every worker's part, and on worker 0 where the run stands, and the weights when they were
    judged, so that the best ones are there at the end."""
    tell(progress.curves)
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as made:
        folder = Path(made)
        engine.save(folder)
        weights = engine.weights() if metrics else None
        if engine.rank == 0:
            progress.write(folder)
            if weights is not None:
                from safetensors.torch import save_file

                save_file({name: value.contiguous() for name, value in weights.items()}, str(folder / WEIGHTS))
        said: dict[str, Any] = {"step": progress.step, "best_here": metrics.get("score", UNJUDGED), **metrics}
        group = ray.util.get_current_placement_group()
        said |= {"scores": scores_of(progress), "group": group.id.hex() if group else ""}  # `tune` asks for these
        ray.train.report(said, checkpoint=ray.train.Checkpoint.from_directory(made))


def scores_of(progress: Progress) -> list[float]:
    """The score of each evaluation so far."""
    return [point["score"] for point in progress.curves if "score" in point]


def _fitted(result: Any) -> Fitted:
    from safetensors.torch import load_file

    judged = [pair for pair in result.best_checkpoints if pair[1].get("best_here", UNJUDGED) > UNJUDGED]
    weights: dict[str, Any] = {}
    if judged:
        with max(judged, key=lambda pair: pair[1]["best_here"])[0].as_directory() as folder:
            weights = load_file(str(Path(folder) / WEIGHTS))
    with result.checkpoint.as_directory() as folder:
        progress = Progress.read(Path(folder))
    return Fitted(weights, progress)


def _reason(error: BaseException) -> str:
    inner = getattr(error, "worker_failures", None) or {}
    first = next(iter(inner.values()), error) if isinstance(inner, Mapping) else error
    return str(first).strip().splitlines()[-1][:300]
