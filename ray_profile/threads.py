"""Several cores of one process: Polars, NumPy and Arrow let go of Python's lock while they compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import polars as pl

In = TypeVar("In")
Out = TypeVar("Out")


def mapped(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """`work` of each item, in order, on as many threads as Polars has (POLARS_MAX_THREADS, else the cores).

    So many items are under way and no more are taken, so that memory is bounded: while the caller looks at a result,
    the next ones are made. The first error of `work` or `items` ends it.
    """
    at_once = int(pl.thread_pool_size())
    if at_once == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(at_once) as pool:
        under_way: deque[Future[Out]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(work, item))
                if len(under_way) == at_once:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for each in under_way:
                each.cancel()
