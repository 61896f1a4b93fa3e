"""The encoder as a deployment of its own under Ray Serve, for `/v1/embed` and `/v1/profiles:compute`."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import Any

import torch
from ray import serve

from ray_profile.config import Config
from ray_profile.encode.text import TextEncoder
from ray_profile.pipelines import probe
from ray_profile.pipelines.computing import Computing
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.wave import make_tagger
from ray_profile.serve.embedding import Embedder
from ray_profile.serve.problems import Problem
from ray_profile.serve_config import most

BATCH_CHARS = 64_000  # that the encoder is given together
BATCH_SECONDS = 0.005  # that a request waits for others
WARMING = ("茶香很浓，回购三次了", "The lid leaks.")
TEXT_CHARS = 2_000  # of a text; the encoder cuts it about there


def weight_of(requests: list[list[str]]) -> int:
    """Characters of some requests, of each text those that the encoder may read; one alone is never too much."""
    whole = sum(min(len(text), TEXT_CHARS) + 16 for texts in requests for text in texts)
    return min(whole, BATCH_CHARS) if len(requests) == 1 else whole


@serve.deployment
class Encoder:
    """One replica of the encoder: look-ups never wait behind it. Requests are joined up to a number of characters."""

    def __init__(self, config: Config) -> None:
        run = Run.open(config, datetime.now(UTC))
        run.check()
        # Ray gives an actor one thread a CPU that it reserves, which here says how much it may count on, not use.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // most(config.serve.encoders)))
        encoder = TextEncoder.load(run.config.encoder)
        head, tagger = run.sentiment or probe.stored(run.root), make_tagger(run, encoder)
        self._embedder = Embedder(encoder, head, tagger)
        self._embedder(WARMING)  # a replica takes requests when this is done
        self._computing = Computing(run, encoder, tagger, head)

    async def here(self) -> None:
        """Answer, which says that the model is loaded and warm."""

    @serve.batch(max_batch_size=BATCH_CHARS, batch_wait_timeout_s=BATCH_SECONDS, batch_size_fn=weight_of)
    async def embed(self, requests: list[list[str]]) -> list[list[bytes]]:
        """What `Embedder` makes of the texts of some requests."""
        found = iter(await asyncio.to_thread(self._embedder, [text for texts in requests for text in texts]))
        return [[next(found) for _ in texts] for texts in requests]

    async def compute(self, rows: list[dict[str, Any]]) -> dict[str, Any] | Problem:
        """What `Computing` makes of some rows; a problem is given back, for what is raised comes wrapped by Ray."""
        try:
            return await asyncio.to_thread(self._computing, rows, datetime.now(UTC))
        except Problem as problem:
            return problem
