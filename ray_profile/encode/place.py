"""Where an encoder runs: the one place that decides device, dtype, the size of batches and how many run at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch

from ray_profile.encode.bert import Linear

#: How much faster bf16 must be on a CPU: the margin keeps workers of one kind from deciding differently by noise.
BF16_MARGIN = 1.2
_PATIENCE_S = 0.1
#: Tokens of a batch on a core: the widest activation of a small encoder, 1,024 x 1,536 bf16, stays in its caches.
CORE_TOKENS = 1024
#: A product of fewer rows leaves its kernel half empty, so that splitting a small job further gains nothing.
FEWEST_TOKENS = 128

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Place:
    """A device, the dtype of its products, and the threads that a CPU may use."""

    device: torch.device
    bf16: bool
    threads: int

    @classmethod
    def choose(cls, device: str | None, dtype: str) -> Place:
        """`device`, else the GPU if there is one; `dtype` is "float32", "bf16" or "auto".

        "auto" is bf16 on a GPU, as those of the last years have it in hardware, and on a CPU what is faster there.
        """
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        threads = torch.get_num_threads()
        if dtype == "auto":
            return cls(chosen, chosen.type != "cpu" or bf16_is_faster(threads), threads)
        return cls(chosen, dtype == "bf16", threads)

    def batch_tokens(self, most: int, tokens: int) -> int:
        """Tokens of a batch: at most `most`; on a CPU so few that they fit its caches and every core has some."""
        if self.device.type != "cpu":
            return most
        return min(most, CORE_TOKENS, max(FEWEST_TOKENS, -(-tokens // self.threads)))

    def send(self, values: torch.Tensor) -> torch.Tensor:
        """Bring a batch's input to the device, without waiting: from pinned memory a GPU copies while it computes."""
        if self.device.type == "cuda":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def map(self, work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
        """Do `work` on every item; give the results in order.

        A GPU is handed one batch after the other and queues them by itself. On a CPU each core takes whole batches: it
        shares no loop with another, so none waits for the slowest at the end of every operation.
        """
        at_once = min(self.threads, len(items)) if self.device.type == "cpu" else 1
        if at_once <= 1:
            return [work(item) for item in items]
        try:
            with ThreadPoolExecutor(
                at_once, initializer=torch.set_num_threads, initargs=(self.threads // at_once,)
            ) as pool:
                return list(pool.map(work, items))
        finally:
            torch.set_num_threads(self.threads)  # what a thread sets holds for those that start later, too


@lru_cache(maxsize=4)
def bf16_is_faster(threads: int) -> bool:  # noqa: ARG001 - the cache's key
    """Measure once a process whether this CPU multiplies bf16 faster than float32 (most without AVX512-BF16 do not)."""

    @torch.inference_mode()
    def best_of(dtype: torch.dtype) -> float:
        x, linear = torch.randn(256, 384).to(dtype), Linear(torch.randn(384, 384), torch.randn(384), dtype)
        linear(x)  # the first call builds the kernel
        took: list[float] = []
        while len(took) < 20 and sum(took) < _PATIENCE_S:  # a CPU that emulates bf16 is a hundred times slower
            began = time.perf_counter()
            linear(x)
            took.append(time.perf_counter() - began)
        return min(took)

    return best_of(torch.float32) > BF16_MARGIN * best_of(torch.bfloat16)
