"""The training loop: the same for every engine, and for tests, benchmarks and clusters. It knows no Ray.

It is given an engine, a plan, the worker's batches and what to call with each checkpoint, and gives back why it ended.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

from ray_profile.train.batch import Batch, nothing
from ray_profile.train.engines import Engine
from ray_profile.train.plan import Plan, Span, left_after, shared_out, size
from ray_profile.train_config import Train

LOG_STEPS = 20  # steps whose losses are looked at together
PROGRESS = "progress.json"


@dataclass
class Progress:
    """Where a run is: all that a checkpoint needs besides the engine's own state."""

    epoch: int = 0
    left: list[Span] = field(default_factory=list)  # of the epoch
    step: int = 0
    seen: int = 0  # examples
    curves: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_step: int = 0
    worse: int = 0  # evaluations since the best
    ended: str = ""  # why: "finished", "stopped" (no better score), "diverged"

    @classmethod
    def start(cls, plan: Plan) -> Progress:
        """Before the first step."""
        return cls(left=[(0, plan.total(0))])

    def to_json(self) -> dict[str, Any]:
        """As a JSON value (with -Infinity before the first evaluation)."""
        return asdict(self)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Progress:
        """From `to_json`."""
        return cls(**{**found, "left": [(begin, end) for begin, end in found["left"]]})

    def write(self, folder: Path) -> None:
        """To a checkpoint's folder."""
        (folder / PROGRESS).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Progress:
        """From a checkpoint's folder."""
        return cls.of(json.loads((folder / PROGRESS).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Hooks:
    """What the loop calls. `evaluate` gives the metrics, `score` among them; all workers call it at the same step.

    `report(metrics, progress)` keeps a checkpoint; the metrics are empty between evaluations. `trained(step, batches)`
    is told what a step used.
    """

    evaluate: Callable[[], Mapping[str, float]]
    report: Callable[[Mapping[str, float], Progress], None]
    trained: Callable[[int, Sequence[Batch]], None] = lambda _, __: None


def train(
    engine: Engine,
    settings: Train,
    plan: Plan,
    progress: Progress,
    batches: Iterator[Batch],
    tags: int,
    hooks: Hooks,
) -> Progress:
    """Train from `progress` to the end: of the epochs, of the patience, or of all sense (a loss that is no number).

    `batches` are this worker's, as `shares` of the plan say, over all epochs that are left. A run that diverges gives
    back the progress whose `ended` is "diverged" and whose `step` is the first bad one; no checkpoint has it.
    """
    while not progress.ended:
        shares = shared_out(progress.left, engine.world)
        each = max(size(share) for share in shares)
        mine = _padded(batches, size(shares[engine.rank]), each, tags)
        log = _Log(engine.device)
        taken = 0
        whole = plan.total(progress.epoch)
        parts = settings.evaluations_per_epoch
        due = [mark for part in range(parts) if (mark := whole * (part + 1) // parts) > whole - size(progress.left)]
        while taken < each:
            waited = perf_counter()
            step = [batch for _, batch in zip(range(settings.gradient_accumulation), mine, strict=False)]
            log.waited += perf_counter() - waited
            taken = min(taken + settings.gradient_accumulation, each)
            left = left_after(shares, taken)
            factor = learning_factor(plan.share(progress.epoch, left), settings.warmup_share)
            _one_step(engine, step, factor, log)
            progress.step += 1
            progress.left = left
            hooks.trained(progress.step, step)
            evaluates = bool(due) and whole - size(left) >= due[0]
            keeps = evaluates or progress.step % settings.checkpoint_steps == 0
            if keeps or progress.step % LOG_STEPS == 0 or taken >= each:
                bad = log.flush(progress)
                if bad is not None:
                    progress.step, progress.ended = bad, "diverged"
                    return progress
            while due and whole - size(left) >= due[0]:
                due.pop(0)
            over = taken >= each
            if over and progress.epoch + 1 < settings.epochs:
                progress.epoch, progress.left = progress.epoch + 1, [(0, plan.total(progress.epoch + 1))]
            elif over:
                progress.ended = "finished"
            if keeps or progress.ended:
                _keep(progress, hooks, evaluates or bool(progress.ended), settings.patience)
            if progress.ended:
                break
    return progress


def shares(plan: Plan, progress: Progress, epochs: int, world: int) -> list[list[tuple[int, list[Span]]]]:
    """What each worker trains on from `progress` to the end: its spans of each epoch that is left."""
    found: list[list[tuple[int, list[Span]]]] = [[] for _ in range(world)]
    for epoch in range(progress.epoch, epochs):
        left = progress.left if epoch == progress.epoch else [(0, plan.total(epoch))]
        for worker, spans in enumerate(shared_out(left, world)):
            found[worker].append((epoch, spans))
    return found


def learning_factor(share: float, warmup: float) -> float:
    """Of the learning rate when `share` of all batches is done: a linear rise, then a linear fall to 0."""
    if share < warmup:
        return share / warmup
    return max(0.0, (1 - share) / (1 - warmup))


def _one_step(engine: Engine, step: Sequence[Batch], factor: float, log: _Log) -> None:
    losses = []
    for at, batch in enumerate(step):
        loss, by_objective = engine.loss(batch, last=at == len(step) - 1)
        engine.backward(loss)
        losses.append((loss.detach().float(), by_objective))
    norm = engine.step(factor)
    log.add(losses, norm, factor, step)


def _padded(batches: Iterator[Batch], have: int, wanted: int, tags: int) -> Iterator[Batch]:
    """`have` batches, and so many empty ones that the others do not wait for this worker."""
    for _ in range(have):
        yield next(batches)
    for _ in range(wanted - have):
        yield nothing(tags)


def _keep(progress: Progress, hooks: Hooks, evaluates: bool, patience: int) -> None:
    metrics = dict(hooks.evaluate()) if evaluates else {}
    if evaluates:
        progress.curves.append({"step": float(progress.step), **metrics})
        if metrics["score"] > progress.best:
            progress.best, progress.best_step, progress.worse = metrics["score"], progress.step, 0
        else:
            progress.worse += 1
            if progress.worse >= patience and not progress.ended:
                progress.ended = "stopped"
    hooks.report(metrics, progress)


class _Log:
    """The losses of the steps since the last look: looking waits for a GPU, so it is done seldom."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clear()

    def _clear(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._parts: dict[str, list[torch.Tensor]] = {}
        self._began = perf_counter()
        self._norm, self._factor, self._tokens, self._rows = 0.0, 0.0, 0, 0
        self.waited = 0.0

    def add(
        self,
        losses: Sequence[tuple[torch.Tensor, Mapping[str, torch.Tensor]]],
        norm: float,
        factor: float,
        step: Sequence[Batch],
    ) -> None:
        """What a step's batches gave."""
        self._losses.append(torch.stack([loss for loss, _ in losses]).mean())
        for _, parts in losses:
            for name, part in parts.items():
                self._parts.setdefault(name, []).append(part)
        self._norm, self._factor = norm, factor
        self._tokens += sum(batch.tokens for batch in step)
        self._rows += sum(batch.rows for batch in step)

    def flush(self, progress: Progress) -> int | None:
        """Add a point to the curves, and all workers' examples to those seen; the first step whose loss is no number on
        any worker, else None."""
        if not self._losses:
            return None
        means = [torch.stack(parts).mean() for parts in self._parts.values()]
        rows = torch.tensor(float(self._rows), device=self._device)
        whole = torch.stack([*self._losses, *means, rows])
        dist.all_reduce(whole)
        *values, rows_of_all = whole.tolist()
        values = [value / dist.get_world_size() for value in values]
        losses = values[: len(self._losses)]
        bad = next((at for at, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            return progress.step - len(losses) + 1 + bad
        took = perf_counter() - self._began
        point: dict[str, Any] = {"step": float(progress.step), "loss": sum(losses) / len(losses)}
        point |= {f"loss_{name}": value for name, value in zip(self._parts, values[len(losses) :], strict=True)}
        point |= {"gradient_norm": self._norm, "learning_factor": self._factor}
        point |= {"tokens_per_second": self._tokens / took, "waited_share": self.waited / took}
        progress.curves.append(point)
        progress.seen += int(rows_of_all)
        self._clear()
        return None
