"""What one worker of a training run has: its engine, and its share of the validation rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from ray_profile.encode.tokens import Tokenizer
from ray_profile.encode.weights import resolve
from ray_profile.pipelines.examples import Corpus, opened
from ray_profile.train import engines, start
from ray_profile.train.batch import COLUMNS, Batch, collate, nothing
from ray_profile.train.engines import Engine
from ray_profile.train.model import Settings, Trainee
from ray_profile.train.objectives import MASKED_SHARE
from ray_profile.train.shards import ABOUT_TOKENS
from ray_profile.train_config import Train

if TYPE_CHECKING:
    from ray_profile.pipelines.trainer import Job

Evaluate = Callable[[], Mapping[str, float]]


def made(job: Job) -> tuple[Engine, Evaluate, int, tuple[int, ...]]:
    """(engine, evaluation, number of tags, special tokens) of this worker, after torch.distributed has started."""
    torch.set_num_threads(job.threads)
    device = torch.device(job.device if job.device == "cpu" else f"cuda:{torch.cuda.current_device()}")
    corpus, folder = opened(job.root, job.corpus), resolve(job.encoder.model)
    tokenizer = Tokenizer.load(job.encoder.model_copy(update={"max_length": start.TAG_TOKENS}))
    texts = start.tag_texts(corpus.taxonomy, tokenizer) if "tags" in job.train.objectives else None
    torch.manual_seed(job.train.seed)  # the same heads on every worker
    encoder = start.encoder(folder, job.train, device.type)
    trainee = Trainee(encoder, _settings(job, corpus, tokenizer.special), texts)
    engine = engines.make(trainee, job.train, device)
    torch.manual_seed(job.train.seed + 1 + engine.rank)  # but dropout of its own
    tags = len(corpus.taxonomy.tags)
    mine = _validation(corpus, job.train, engine, tags)
    return engine, partial(_evaluated, engine, mine, job.judged_by), tags, tokenizer.special


def _settings(job: Job, corpus: Corpus, special: tuple[int, ...]) -> Settings:
    train, held = job.train, corpus.counts["train"]
    copies = job.drawing.copies
    strata = corpus.strata(job.by)
    drawn = sum(count * times for count, times in zip(strata, copies, strict=True)) / max(1, sum(strata))
    rated = sum(held["sentiment"])
    if job.by == "sentiment" and rated:
        rated = sum(count * times for count, times in zip(held["sentiment"], copies, strict=False)) / drawn
    a_batch = drawn / (sum(map(sum, job.plan.batches)) / len(job.plan.batches))
    rows = {
        "sentiment": rated,
        "tags": held["tagged"],
        "contrast": held["paired"],
        "mlm": held["tokens"] * MASKED_SHARE,
    }
    return Settings(
        weights=train.objectives,
        rows_per_batch={name: max(1e-6, count * a_batch) for name, count in rows.items()},
        pooling=job.encoder.pooling,
        exclusive=corpus.exclusive,
        smoothing=train.label_smoothing,
        mask_token=special[0],
        special_tokens=special,
    )


def _validation(corpus: Corpus, train: Train, engine: Engine, tags: int) -> list[Batch]:
    """This worker's validation batches; every worker has as many, for each of them is a meeting of all."""
    rows = corpus.rows("validation", COLUMNS, train.validation_rows).sort("length", descending=True)
    mine = rows.gather_every(engine.world, engine.rank) if rows.height else rows
    longest = int(rows["length"].head(1).sum()) + ABOUT_TOKENS
    size = max(1, train.tokens_per_batch // longest)
    count = math.ceil(math.ceil(rows.height / engine.world) / size)
    parts = [mine.slice(at * size, size) for at in range(count)]
    return [collate(part, tags) if part.height else nothing(tags) for part in parts]


def _evaluated(engine: Engine, batches: list[Batch], weights: Mapping[str, float]) -> dict[str, float]:
    """`score` in [0, 1] and what it is the weighted mean of, over the validation rows of all workers.

    sentiment: macro-F1; tags: how often the first tag is right; contrast: how often a review finds its own item among
    those of its batch; mlm: exp(-loss).
    """
    confusion, hits = torch.zeros(3, 3), torch.zeros(3, 2)  # hits: tags, contrast, mlm by right, of
    state = torch.get_rng_state()
    torch.manual_seed(0)  # the same tokens are hidden at every evaluation
    for batch in batches:
        scores = {name: value.cpu() for name, value in engine.scores(batch).items()}
        if "sentiment" in scores:
            known = batch.sentiment_B >= 0
            guessed = scores["sentiment"][known].argmax(1)
            confusion.index_put_((batch.sentiment_B[known], guessed), torch.ones(len(guessed)), accumulate=True)
        if "tags" in scores:
            known = batch.tags_BT.nan_to_num().sum(1) > 0
            best = scores["tags"][known].argmax(1)
            hits[0] += torch.tensor([batch.tags_BT[known][torch.arange(len(best)), best].sum(), known.sum()])
        if "contrast" in scores:
            found = scores["contrast"].argmax(1) == torch.arange(len(scores["contrast"]))
            hits[1] += torch.tensor([found.sum(), len(found)])
        if "mlm" in scores and batch.rows:
            hits[2] += torch.tensor([float(scores["mlm"]), MASKED_SHARE * batch.tokens])
    torch.set_rng_state(state)
    whole = torch.cat([confusion.flatten(), hits.flatten()]).to(engine.device)
    dist.all_reduce(whole)
    values = whole.cpu().numpy().astype(np.float64)
    return _scored(values[:9].reshape(3, 3), values[9:].reshape(3, 2), weights)


def _scored(confusion: np.ndarray, hits: np.ndarray, weights: Mapping[str, float]) -> dict[str, float]:
    right, given, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * right / np.maximum(given + guessed, 1)
    found = {
        "sentiment": float(f1[given > 0].mean()) if given.any() else 0.0,
        "tags": float(hits[0, 0] / max(hits[0, 1], 1)),
        "contrast": float(hits[1, 0] / max(hits[1, 1], 1)),
        "mlm": float(np.exp(-hits[2, 0] / max(hits[2, 1], 1))),
    }
    score = sum(found[name] * weight for name, weight in weights.items()) / sum(weights.values())
    return {"score": score, **{f"validation_{name}": found[name] for name in weights}}
