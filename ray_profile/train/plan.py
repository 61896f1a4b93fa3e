"""Which examples stand in which batch of which epoch, and who trains on it: all known before the first step.

A shard's batches are a function of (seed, epoch, shard), so any worker makes the same ones. An epoch is the row of all
shards' batches in shuffled order, numbered from 0; workers share it out in runs of neighbours. What is left of an epoch
is a few spans of those numbers: that is the whole state of the sampler, and it says nothing of how many workers there
are, so that a run goes on with more or fewer of them and no example is repeated or left out.

Axes: N rows of a shard, C classes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import numpy.typing as npt

MAX_COPIES = 8.0  # of a row in an epoch; more would teach its words by heart
WINDOW = 32  # batches that are sorted by length together: little padding, and still a mixture

Span = tuple[int, int]  # batch numbers of an epoch: from, to (not included)


@dataclass(frozen=True)
class Drawing:
    """How a shard's rows become batches."""

    seed: int
    tokens: int  # of a batch, with padding
    copies: tuple[float, ...]  # how often a row of each class is drawn in an epoch, on average


@dataclass(frozen=True)
class Piece:
    """Neighbouring batches of one shard: what is read at once."""

    epoch: int
    shard: int
    first: int  # number in the shard
    last: int  # not included
    number: int  # of the first batch, in the epoch


@dataclass(frozen=True)
class Plan:
    """How many batches each shard has in each epoch."""

    seed: int
    batches: tuple[tuple[int, ...], ...]  # [epoch][shard]

    def total(self, epoch: int) -> int:
        """Batches of an epoch."""
        return sum(self.batches[epoch])

    def share(self, epoch: int, left: Sequence[Span]) -> float:
        """How much of all epochs is done, in [0, 1], when `left` is left of one."""
        done = sum(self.total(each) for each in range(epoch + 1)) - size(left)
        return done / max(1, sum(self.total(each) for each in range(len(self.batches))))

    def pieces(self, epoch: int, spans: Sequence[Span]) -> list[Piece]:
        """The pieces of shards that make up some spans of an epoch, in order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.batches[epoch]))
        counts = [self.batches[epoch][shard] for shard in order]
        starts = [0, *accumulate(counts)]
        found = []
        for begin, end in spans:
            at = bisect_right(starts, begin) - 1
            while begin < end:
                stop = min(end, starts[at + 1])
                if stop > begin:
                    first = begin - starts[at]
                    found.append(Piece(epoch, int(order[at]), first, first + stop - begin, begin))
                begin, at = stop, at + 1
        return found


def size(spans: Sequence[Span]) -> int:
    """Batches in some spans."""
    return sum(end - begin for begin, end in spans)


def shared_out(spans: Sequence[Span], workers: int) -> list[list[Span]]:
    """The same batches in order, one run of neighbours a worker; no worker has more than one more than another."""
    whole = size(spans)
    cuts = [whole * worker // workers for worker in range(workers + 1)]
    return [_cut(spans, begin, end) for begin, end in pairwise(cuts)]


def left_after(shares: Sequence[Sequence[Span]], taken: int) -> list[Span]:
    """What is left when each worker has trained on the first `taken` batches of its share, joined and in order."""
    left: list[Span] = []
    for share in shares:
        for begin, end in _cut(share, taken, size(share)):
            if left and left[-1][1] == begin:
                left[-1] = (left[-1][0], end)
            else:
                left.append((begin, end))
    return left


def _cut(spans: Sequence[Span], begin: int, end: int) -> list[Span]:
    """The batches at places begin to end of a row of spans."""
    found, at = [], 0
    for first, last in spans:
        low, high = max(begin, at), min(end, at + last - first)
        if low < high:
            found.append((first + low - at, first + high - at))
        at += last - first
    return found


def copies_of(counts_C: npt.ArrayLike, balance: float, floor: float) -> npt.NDArray[np.float64]:
    """How often a row of each class is drawn in an epoch, (C,): its share to the power of -`balance`, scaled so that an
    epoch is about as long as the corpus, at least `floor` and at most `MAX_COPIES`; 1 for classes without rows."""
    counts = np.asarray(counts_C, dtype=np.float64)
    known = counts > 0
    share = counts / max(counts.sum(), 1.0)
    wanted = np.where(known, np.maximum(share, 1e-12) ** -balance, 1.0)
    scale = (share * wanted).sum() if known.any() else 1.0
    return np.where(known, np.clip(wanted / scale, floor, MAX_COPIES), 1.0)


def batches(
    classes_N: npt.NDArray[np.integer],
    lengths_N: npt.NDArray[np.integer],
    about_N: npt.NDArray[np.integer],
    drawing: Drawing,
    epoch: int,
    shard: int,
) -> list[npt.NDArray[np.intp]]:
    """The row numbers of each batch of a shard in an epoch.

    A row is drawn floor(c) or ceil(c) times, c on average for its class. Rows are shuffled, sorted by length within
    windows, and filled up to `tokens` with the padding of texts and of titles; then the batches are shuffled.
    """
    random = np.random.default_rng([drawing.seed, epoch, shard, 1])
    wanted = np.asarray(drawing.copies)[classes_N]
    times = np.floor(wanted + random.random(len(wanted))).astype(np.intp)
    rows = random.permutation(np.repeat(np.arange(len(wanted)), times))
    made: list[npt.NDArray[np.intp]] = []
    for window in _windows(rows, lengths_N + about_N, WINDOW * drawing.tokens):
        order = window[np.lexsort((about_N[window], -lengths_N[window]))]
        made += _filled(order, lengths_N, about_N, drawing.tokens)
    return [made[at] for at in random.permutation(len(made))]


def _windows(
    rows: npt.NDArray[np.intp], tokens_N: npt.NDArray[np.integer], budget: int
) -> Iterator[npt.NDArray[np.intp]]:
    if len(rows):
        window = (np.cumsum(tokens_N[rows]) - 1) // budget
        yield from np.split(rows, np.flatnonzero(np.diff(window)) + 1)


def _filled(
    rows: npt.NDArray[np.intp], lengths_N: npt.NDArray[np.integer], about_N: npt.NDArray[np.integer], tokens: int
) -> list[npt.NDArray[np.intp]]:
    made, start, longest, widest = [], 0, 0, 0
    for at, row in enumerate(rows.tolist()):
        long, wide = max(longest, int(lengths_N[row])), max(widest, int(about_N[row]))
        if at > start and (at - start + 1) * (long + wide) > tokens:
            made.append(rows[start:at])
            start, long, wide = at, int(lengths_N[row]), int(about_N[row])
        longest, widest = long, wide
    made.append(rows[start:])
    return made
