"""The plan of a run: what is drawn, in which batch, by whom, and what is left after an interruption."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.train.plan import (
    MAX_COPIES,
    Drawing,
    Plan,
    batches,
    copies_of,
    left_after,
    shared_out,
    size,
)


@st.composite
def spans(draw: st.DrawFn) -> list[tuple[int, int]]:
    edges = sorted(draw(st.sets(st.integers(0, 200), max_size=12)))
    return list(zip(edges[::2], edges[1::2], strict=False))


def numbers(found: list[tuple[int, int]]) -> list[int]:
    return [number for begin, end in found for number in range(begin, end)]


@given(spans(), st.integers(1, 9))
def test_workers_share_out_every_batch_once_and_evenly(left: list[tuple[int, int]], workers: int) -> None:
    shares = shared_out(left, workers)
    assert [number for share in shares for number in numbers(share)] == numbers(left)
    sizes = [size(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@given(spans(), st.lists(st.tuples(st.integers(1, 5), st.integers(0, 30)), max_size=6))
def test_any_row_of_interruptions_with_any_workers_trains_each_batch_once(
    left: list[tuple[int, int]], attempts: list[tuple[int, int]]
) -> None:
    wanted, trained = numbers(left), list[int]()
    for workers, steps in [*attempts, (2, 1_000)]:
        shares = shared_out(left, workers)
        for share in shares:
            trained += numbers(share)[:steps]
        left = left_after(shares, steps)
    assert sorted(trained) == wanted
    assert not left


@given(st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=3), st.data())
def test_pieces_are_the_spans_and_no_batch_of_a_shard_comes_twice(counts: list[list[int]], data: st.DataObject) -> None:
    plan = Plan(3, tuple(map(tuple, counts)))
    epoch = data.draw(st.integers(0, len(counts) - 1))
    whole = plan.pieces(epoch, [(0, plan.total(epoch))])
    met = Counter((piece.shard, at) for piece in whole for at in range(piece.first, piece.last))
    assert met == Counter((shard, at) for shard, count in enumerate(counts[epoch]) for at in range(count))
    cut = data.draw(st.integers(0, plan.total(epoch)))
    halves = [*plan.pieces(epoch, [(0, cut)]), *plan.pieces(epoch, [(cut, plan.total(epoch))])]
    flat = [(p.shard, at, p.number + at - p.first) for p in halves for at in range(p.first, p.last)]
    assert flat == [(p.shard, at, p.number + at - p.first) for p in whole for at in range(p.first, p.last)]
    assert [number for *_, number in flat] == list(range(plan.total(epoch)))


def test_share_goes_from_nothing_to_all_over_the_epochs() -> None:
    plan = Plan(0, ((3, 5), (4, 4)))
    assert plan.share(0, [(0, 8)]) == 0
    assert plan.share(1, [(0, 8)]) == 0.5
    assert plan.share(1, []) == 1


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 400), st.integers(40, 300))
def test_batches_hold_every_drawn_row_and_keep_the_budget(seed: int, rows: int, tokens: int) -> None:
    random = np.random.default_rng(seed)
    lengths, about = random.integers(2, 40, rows), random.integers(0, 12, rows)
    drawn = random.integers(0, 2, rows)
    made = batches(drawn, lengths, about, Drawing(seed, tokens, (1.0, 2.0)), 0, 0)
    times = Counter(np.concatenate(made).tolist())
    assert times == Counter({row: 1 + int(drawn[row]) for row in range(rows)})
    for batch in made:
        assert len(batch) == 1 or len(batch) * (lengths[batch].max() + about[batch].max()) <= tokens


def test_batches_are_the_same_again_and_others_in_another_epoch_or_shard() -> None:
    lengths, nothing = np.arange(2, 102), np.zeros(100, int)
    drawing = Drawing(1, 200, (1.0,))
    first = [batch.tolist() for batch in batches(nothing, lengths, nothing, drawing, 0, 0)]
    assert first == [batch.tolist() for batch in batches(nothing, lengths, nothing, drawing, 0, 0)]
    assert first != [batch.tolist() for batch in batches(nothing, lengths, nothing, drawing, 1, 0)]
    assert first != [batch.tolist() for batch in batches(nothing, lengths, nothing, drawing, 0, 1)]


def test_rows_are_drawn_in_proportion_and_by_chance_between_whole_numbers() -> None:
    rows = 20_000
    made = batches(np.zeros(rows, int), np.full(rows, 9), np.zeros(rows, int), Drawing(0, 4096, (1.25,)), 0, 0)
    times = np.bincount(np.concatenate(made), minlength=rows)
    assert set(times.tolist()) == {1, 2}
    assert times.mean() == pytest.approx(1.25, abs=0.02)


def test_an_empty_shard_has_no_batch() -> None:
    nothing = np.zeros(0, int)
    assert batches(nothing, nothing, nothing, Drawing(0, 100, (1.0,)), 0, 0) == []


def test_copies_balance_classes_between_floor_and_ceiling() -> None:
    counts = np.array([800, 150, 50, 0])
    assert copies_of(counts, 0.0, 0.5) == pytest.approx([1, 1, 1, 1])
    whole = copies_of(counts, 1.0, 0.01)
    assert (whole * counts)[:3] == pytest.approx(np.full(3, 1000 / 3), rel=1e-6)
    half = copies_of(counts, 0.5, 0.5)
    assert 0.5 <= half[0] < 1 < half[1] < half[2] <= MAX_COPIES
    assert copies_of([10_000, 1], 1.0, 0.6).tolist() == [0.6, MAX_COPIES]
    assert copies_of([0, 0], 1.0, 0.5).tolist() == [1.0, 1.0]
