"""Worlds of training workers in processes of their own, what they train on, and a plain loop to compare them with.

A micro-batch is `ROWS` rows that the workers of a world share, so that a world of any size sees the same ones.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
import torch.distributed as dist
from torch import nn

from ray_profile.config import Encoder
from ray_profile.encode.taxonomy import Tag, Taxonomy
from ray_profile.encode.tokens import Tokenizer
from ray_profile.errors import BuildFailed
from ray_profile.train import engines, loop, start
from ray_profile.train.batch import Batch, collate
from ray_profile.train.examples import EXAMPLES
from ray_profile.train.loop import Hooks, Progress
from ray_profile.train.model import Settings, Trainee
from ray_profile.train.plan import Plan
from ray_profile.train.shards import tokenised
from ray_profile.train_config import Train

ROWS = 12  # of a micro-batch: for worlds of 1, 2 and 3
MICRO = 6  # micro-batches there are
PATIENCE = timedelta(minutes=2)  # with workers that answer nothing; they take seconds
TAXONOMY = Taxonomy((Tag("tea", "tea"), Tag("tents", "tents")))

Arrays = dict[str, npt.NDArray[np.float32]]
Steps = Sequence[Sequence[int]]  # the numbers of each step's micro-batches


@dataclass(frozen=True)
class Found:
    """What a worker has after its steps."""

    weights: Arrays | None
    norms: list[float]
    scores: Arrays
    loaded: Arrays | None = None  # the weights before the first step


class World:
    """Workers that do one work after another together, in a process each."""

    def __init__(self, size: int, folder: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        pipes = [spawn.Pipe() for _ in range(size)]
        self._ends = [ours for ours, _ in pipes]
        self._workers = [
            spawn.Process(target=_serve, args=(rank, size, folder / "meet", theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for worker, (_, theirs) in zip(self._workers, pipes, strict=True):
            worker.start()
            theirs.close()

    def do(self, work: Callable[..., Any], *told: Any) -> list[Any]:
        """What the work gives on each worker. The first one that fails ends the world."""
        for end in self._ends:
            end.send((work, told))
        found: dict[Any, Any] = {}
        while len(found) < len(self._ends):
            ready = wait([end for end in self._ends if end not in found], PATIENCE.seconds)
            if not ready:
                self._end("a worker waits for another for ever")
            for end in ready:
                assert isinstance(end, Connection)
                try:
                    well, found[end] = end.recv()
                except EOFError:
                    self._end("a worker died")
                if not well:
                    self._end(found[end])
        return [found[end] for end in self._ends]

    def _end(self, why: str) -> NoReturn:
        self.close()
        raise AssertionError(why)

    @property
    def alive(self) -> bool:
        return all(worker.is_alive() for worker in self._workers)

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.join()


def _serve(rank: int, size: int, meet: Path, end: Connection) -> None:
    """A worker: what a launcher sets, then one work after another until nobody asks."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size, timeout=PATIENCE)
    while True:
        try:
            work, told = end.recv()
        except EOFError:
            return
        try:
            end.send((True, work(*told)))
        except Exception:
            end.send((False, f"worker {rank} of {size}:\n{traceback.format_exc()}"))


def micro_batches(encoder: Path) -> list[pl.DataFrame]:
    """Reviews whose words tell their labels, `ROWS` of them in each."""
    random, count = np.random.default_rng(0), ROWS * MICRO
    label, tag = random.integers(0, 3, count), random.integers(0, 2, count)
    felt, about = ("awful broken", "okay average", "great lovely"), ("green tea leaves", "dry tent")
    texts = [f"{felt[a]} {about[b]} {'very ' * (at % 4)}" for at, (a, b) in enumerate(zip(label, tag, strict=True))]
    rows = pl.DataFrame(
        {
            "id": [f"r{at}" for at in range(count)],
            "user_id": [f"u{at % 40}" for at in range(count)],
            "item_id": [f"i{at % 9}" for at in range(count)],
            "split": "train",
            "text": texts,
            "sentiment": label,
            "tags": [[int(b)] for b in tag],
            "about": [f"item number {at % 9}" for at in range(count)],
        },
        schema_overrides=EXAMPLES,
    )
    reader = Tokenizer.load(Encoder(model=str(encoder), max_length=64))
    whole = tokenised(rows, reader, reader)
    return [whole[at : at + ROWS] for at in range(0, count, ROWS)]


def trainee_of(encoder: Path, told: Train, rows: float) -> Trainee:
    """The same weights every time; `rows` in an average batch of a worker."""
    torch.manual_seed(0)
    texts = start.tag_texts(TAXONOMY, Tokenizer.load(Encoder(model=str(encoder), max_length=64)))
    counts = {name: rows * (10 if name == "mlm" else 1) for name in told.objectives}
    made = Settings(told.objectives, counts, "mean", True, 0.0, mask_token=1, special_tokens=(0, 1, 2, 3))
    return Trainee(start.encoder(encoder, told), made, texts)


def stepped(encoder: Path, told: Train, steps: Steps, begin: Path | None = None, save: Path | None = None) -> Found:
    """A worker's steps on its share of the rows, from a checkpoint on, and then to one."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = micro_batches(encoder)
    engine = engines.make(trainee_of(encoder, told, ROWS / world), told, torch.device("cpu"))
    loaded = None
    if begin is not None:
        engine.load(begin)
        loaded = arrays(engine.weights())
    torch.manual_seed(rank)  # of the words that are masked
    norms = []
    for step in steps:
        for at, number in enumerate(step):
            mine = collate(batches[number][rank::world], len(TAXONOMY.tags))
            loss, _ = engine.loss(mine, last=at == len(step) - 1)
            engine.backward(loss)
        norms.append(engine.step(1.0))
    if save is not None:
        engine.save(save)
    scores = engine.scores(collate(batches[0], len(TAXONOMY.tags)))
    return Found(arrays(engine.weights()), norms, arrays(scores) or {}, loaded)


def looped(encoder: Path, told: Train, plan: Plan) -> tuple[Arrays | None, Progress]:
    """The training loop over a plan whose batches are the micro-batches, each a worker's own."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = micro_batches(encoder)
    engine = engines.make(trainee_of(encoder, told, ROWS), told, torch.device("cpu"))
    progress = Progress.start(plan)
    mine = (
        collate(batches[number], len(TAXONOMY.tags))
        for _, spans in loop.shares(plan, progress, told.epochs, world)[rank]
        for begin, end in spans
        for number in range(begin, end)
    )
    hooks = Hooks(lambda: {"score": 0.5}, lambda _, __: None)
    ended = loop.train(engine, told, plan, progress, mine, len(TAXONOMY.tags), hooks)
    return arrays(engine.weights()), ended


def refused(encoder: Path, told: Train, begin: Path) -> str:
    """What is said about a checkpoint that cannot be gone on from."""
    engine = engines.make(trainee_of(encoder, told, ROWS), told, torch.device("cpu"))
    try:
        engine.load(begin)
    except BuildFailed as error:
        return str(error)
    return "it was loaded"


class Plain:
    """The reference: one process, one AdamW, every step on all rows, and nobody to exchange anything with."""

    def __init__(self, encoder: Path, told: Train) -> None:
        self._told, self._batches = told, micro_batches(encoder)
        self.trainee = trainee_of(encoder, told, ROWS)
        self.norms: list[float] = []
        self.fresh_optimizer()

    def fresh_optimizer(self) -> None:
        self._optimizer = torch.optim.AdamW(engines.parameter_groups(self.trainee, self._told))

    def step(self, numbers: Sequence[int], factor: float = 1.0, parts: float | None = None) -> None:
        """One step on micro-batches, whose gradients are added up and divided by as many as are accumulated; or by
        `parts`, and then all rows are taken at once."""
        self.trainee.train()
        at_once = [[number] for number in numbers] if parts is None else [numbers]
        for each in at_once:
            loss, _ = self.trainee(self.batch(*each))
            (loss / (parts or self._told.gradient_accumulation)).backward()
        self.norms.append(float(nn.utils.clip_grad_norm_(self.trainee.parameters(), self._told.gradient_clip)))
        for group in self._optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        self._optimizer.step()
        self._optimizer.zero_grad()

    def batch(self, *numbers: int) -> Batch:
        return collate(pl.concat([self._batches[number] for number in numbers]), len(TAXONOMY.tags))

    @property
    def weights(self) -> Arrays:
        found = arrays(self.trainee.state_dict())
        assert found is not None
        return found

    @property
    def scores(self) -> Arrays:
        with torch.no_grad():
            return arrays(self.trainee.eval().scores(self.batch(0))) or {}


def arrays(tensors: dict[str, torch.Tensor] | None) -> Arrays | None:
    return None if tensors is None else {name: value.float().numpy().copy() for name, value in tensors.items()}
